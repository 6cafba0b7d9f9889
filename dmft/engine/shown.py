"""What observables see of a pass over populations (`dmft.schema.seen`), and their values at a step.

Averages over a population are exact inner products of its vectors (`dmft.engine.population`), of particles and linear
forms alike.  With positions a field is (row, position, component).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from dmft.engine import preconditioned
from dmft.engine.form import Form, Rule
from dmft.engine.layers import held, over_layers
from dmft.engine.network import Network, Pass
from dmft.engine.ntk import tangent_kernel
from dmft.engine.population import Population
from dmft.schema import Seen

Fields = Sequence[jax.Array]


class Shown(Seen):
    """Of the observed rows; `network` is the state after step t."""

    xp = jnp

    def __init__(self, network: Network, rule: Rule, seen: Pass, t: jax.Array | int, form: Form) -> None:
        super().__init__(slice(0, 0 if form.probes else form.trained))
        self._network, self._pass, self._t, self._form = network, seen, t, form
        # rows are all samples in their order where these are observed
        self.targets = rule.targets[rule.probes] if form.probes else rule.targets

    @property
    def preactivations(self) -> Fields:
        return self._pass.h

    @property
    def features(self) -> Fields:
        return self._pass.features

    @property
    def gradients(self) -> Fields:
        self.require_gradients(self._form.gradients)
        assert self._pass.gradients is not None
        return self._pass.gradients.map(lambda g: g.reshape(-1, *g.shape[2:]))

    def inner(self, a: Fields, b: Fields, *, mean: bool = True) -> jax.Array:
        def averages(population: Population, v: jax.Array, w: jax.Array) -> jax.Array:
            return _over_positions(population.along(v, w), v, mean=mean)

        sketch = self._form.sketch
        return over_layers(sketch, self._network.populations, averages, *(held(sketch.groups, v) for v in (a, b)))

    def averages(self, name: str, function: Callable[[jax.Array], jax.Array] = lambda a: a) -> jax.Array:
        found = self._pass.tape.shown(name)
        return jnp.stack([_over_units(function(a), of) for a, of in found])

    def tangent_kernel(self) -> jax.Array:
        self.require_gradients(self._form.gradients)
        return _of_events(tangent_kernel(self._network, self._pass, self._pass, self._form))

    def preconditioned_kernel(self) -> jax.Array:
        self.require_gradients(self._form.gradients)
        P = preconditioned.preconditioners(self._network, self._t, self._form)
        return _of_events(preconditioned.tangent_kernel(self._network, self._pass, P, self._form))


def _of_events(K: jax.Array) -> jax.Array:
    """(event, event_2) of (row, output, row_2, output_2)."""
    events = len(K) * K.shape[1]
    return K.reshape(events, events)


def _over_units(a: jax.Array, population: Population | None) -> jax.Array:
    """The average over the last axis, units of a population or numbers that are alike."""
    return a.mean(-1) if population is None else jnp.sum(a * population.measure, axis=-1)


def sizes(rule: Rule, form: Form) -> dict[str, int]:
    """Of the dimensions of observables at a step."""
    samples, outputs = form.probes or rule.rows.shape[1], rule.targets.shape[1]
    return {**form.sketch.dimensions, "sample": samples, "output": outputs}


def values(network: Network, rule: Rule, seen: Pass, t: jax.Array | int, form: Form) -> dict[str, jax.Array]:
    """Observables of step t by name, of the pass over the observed rows; `network` is the state after it."""
    shown, known = Shown(network, rule, seen, t, form), sizes(rule, form)
    return {one.name: one.arranged(shown.value(one), known, outputs=not form.single) for one in form.observables}


def two_time_kernels(fields: Fields, network: Network, *, mean: bool) -> jax.Array:
    """(layer, step, vector, step_2, vector_2): averages between all steps of `fields`, of every group of layers (step,
    [layer,] vector, [position,] component); the mean over equal positions, or their sum."""

    def kernel(population: Population, v: jax.Array) -> jax.Array:
        flat = v.reshape(-1, *v.shape[2:])
        found = population.along(flat, flat).reshape(v.shape[:2] * 2)
        return _over_positions(found, flat, mean=mean)

    return over_layers(network.sketch, network.populations, kernel, fields, axis=1)


def _over_positions(total: jax.Array, v: jax.Array, *, mean: bool) -> jax.Array:
    return total / v.shape[1] if mean and v.ndim == 3 else total
