"""How a whole run of training depends on the measures of its populations: what finite width does to it.

A network of width N is, in law, the run over the empirical measure of N draws of each population's raw normals
(`dmft.engine.matrix`).  An observable q is therefore one function F of the measures M^1 .. M^L, and expanding it around
the true ones (von Mises 1947) gives, with dM the fluctuation of the empirical measure of one neuron,

    lim N Cov(q, q')     = sum_l E[ F'[dM^l] F'[dM^l] ]
    lim N (E q_N - q)    = (1/2) sum_l E[ F''[dM^l, dM^l] ]

Three ways to the derivatives of F along given directions dM:

    vary        Taylor coefficients to second order, carried through the steps (forward mode)
    perturb     finite differences between runs at M + h dM and M - h dM: for activations with kinks, whose
                crossings by neurons no derivative sees
    gradients   of chosen scalars in the whole measure, one backward pass each (reverse mode)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dmft.engine.flow import observed_step
from dmft.engine.form import Form, Rule
from dmft.engine.loop import observed_shapes
from dmft.engine.network import Network, Pass, predictions
from dmft.engine.shown import values
from dmft.running.executables import kept

VARIANTS = "variants"  # the mapped axis of `perturb`
Measures = tuple[jax.Array, ...]


class Observables(NamedTuple):
    """Of the steps 0..last: prediction (step, sample[, output]); others of passes (step, ...) by name.  Zero at steps
    at which a stream is not looked at."""

    prediction: jax.Array
    values: dict[str, jax.Array]


class Taylor(NamedTuple):
    """Value, first and second derivative along a curve."""

    value: Any
    first: Any
    second: Any


def taylor(function: Callable[[Any], Any], x: Taylor) -> Taylor:
    """Of `function` along a curve with the coefficients `x`, on trees of floating-point arrays."""

    def slope(value: Any, first: Any) -> Any:
        return jax.jvp(function, (value,), (first,))

    # the inner and the outer first derivatives are one computation, which the compiler finds
    (value, first), (_, second) = jax.jvp(slope, (x.value, x.first), (x.first, x.second))
    return Taylor(value, first, second)


@kept(static=("length", "form"))
def vary(
    network: Network, rule: Rule, directions: Measures, last: jax.Array | int, *, length: int, form: Form
) -> Taylor:
    """Observables of a run, and their derivatives along directions of its measures.

    Args:
        network: at initialisation.
        directions: dM, for each population an array (direction, *shape of its measure).
        last: step; length: of the results, more than `last`, zero after it.

    Returns:
        Observables: the value without, first and second derivatives with a leading axis over directions.
    """

    def one(direction: Measures) -> Taylor:
        measures = Taylor(_measures(network), direction, jax.tree.map(jnp.zeros_like, direction))

        def body(t: jax.Array, state: tuple[Taylor, Any, Taylor]) -> tuple[Taylor, Any, Taylor]:
            numbers, counts, every = state

            def forward(x: tuple[Any, Measures]) -> tuple[Any, Any, Observables]:
                trained, seen = _observed_step(_joined(network, x[0], counts, x[1]), rule, t, form)
                return *_parts(trained), seen

            moved = taylor(forward, Taylor(*zip(numbers, measures, strict=True)))
            numbers, seen = Taylor(*(part[0] for part in moved)), Taylor(*(part[2] for part in moved))
            return numbers, moved.value[1], jax.tree.map(lambda room, new: room.at[t].set(new), every, seen)

        start, counts = _parts(network)
        still = jax.tree.map(jnp.zeros_like, start)
        nothing = _nothing(rule, form, length)
        begun = Taylor(start, still, still), counts, Taylor(nothing, nothing, nothing)
        return lax.fori_loop(0, last + 1, body, begun)[-1]  # type: ignore[no-any-return]

    # one after the other where they do not all fit: batched products of one direction would be transposed in vain
    if len(directions[0]) == 1:
        alone = one(jax.tree.map(lambda a: a[0], directions))
        return Taylor(alone.value, *(jax.tree.map(lambda a: a[None], part) for part in alone[1:]))
    return jax.vmap(one, out_axes=Taylor(None, 0, 0))(directions)


@kept(static=("length", "form"))
def perturb(
    network: Network,
    rule: Rule,
    directions: Measures,
    size: jax.Array | float,
    last: jax.Array | int,
    *,
    length: int,
    form: Form,
) -> Taylor:
    """As `vary`, by central differences between runs at M + h dM and M - h dM, h the `size`.

    All runs add the same directions to the bases of their matrices, those of the run at M: which is the only thing that
    would not depend smoothly on the measure of neurons without kinks.
    """
    network = replace(network, matrices=tuple(replace(m, leader=VARIANTS) for m in network.matrices))
    count = len(directions[0])

    def around(measure: jax.Array, direction: jax.Array) -> jax.Array:
        return jnp.concatenate([measure[None], measure + size * direction, measure - size * direction])

    measures = jax.tree.map(around, _measures(network), directions)
    seen = jax.vmap(lambda m: _run(network, m, rule, last, length, form), axis_name=VARIANTS)(measures)
    value = jax.tree.map(lambda a: a[0], seen)
    up, down = (jax.tree.map(lambda a, at=at: a[at : at + count], seen) for at in (1, 1 + count))
    return Taylor(
        value,
        jax.tree.map(lambda a, b: (a - b) / (2 * size), up, down),
        jax.tree.map(lambda a, b, c: (a + b - 2 * c) / size**2, up, down, value),
    )


@kept(static=("length", "form"))
def gradients(
    network: Network, rule: Rule, scalars: Observables, last: jax.Array | int, *, length: int, form: Form
) -> tuple[Observables, Measures]:
    """Derivatives of linear combinations of the observables in the whole measures.

    Args:
        scalars: coefficients of the combinations, with a leading axis over them.
        last, length: as in `vary`.

    Returns:
        the observables; for each population an array (scalar, *shape of its measure).
    """
    seen, back = jax.vjp(lambda m: _run(network, m, rule, last, length, form), _measures(network))
    if len(scalars.prediction) == 1:  # as in `vary`
        return seen, jax.tree.map(lambda a: a[None], back(jax.tree.map(lambda a: a[0], scalars))[0])
    return seen, jax.vmap(back)(scalars)[0]


def run_from(network: Network, rule: Rule, last: int, form: Form) -> Observables:
    """Observables of a run from this network, which is at initialisation; ready to be differentiated backward."""
    return _run(network, _measures(network), rule, last, last + 1, form)


def _run(
    network: Network, measures: Measures, rule: Rule, last: jax.Array | int, length: int, form: Form
) -> Observables:
    State = tuple[tuple[Any, Any], Observables]

    def taken(state: tuple[Any, Any], t: jax.Array) -> State:
        trained, seen = _observed_step(_joined(network, *state, measures), rule, t, form)
        return _parts(trained), seen

    def stands(state: tuple[Any, Any], t: jax.Array) -> State:
        del t
        return state, _nothing(rule, form)

    @jax.checkpoint
    def body(state: tuple[Any, Any], t: jax.Array) -> State:
        found: State = lax.cond(t <= last, taken, stands, state, t)
        return found

    # where all steps are taken, without the code that leaves some out
    whole = isinstance(last, int) and last + 1 == length
    seen: Observables
    _, seen = lax.scan(jax.checkpoint(taken) if whole else body, _parts(network), jnp.arange(length))
    return seen


def _nothing(rule: Rule, form: Form, *lead: int) -> Observables:
    """Zeros in the shapes of the observables of a step, with axes of these sizes before all others."""
    zeros = {name: jnp.zeros((*lead, *shape)) for name, shape in observed_shapes(rule, form).items()}
    return Observables(zeros.pop("prediction"), zeros)


def _observed_step(network: Network, rule: Rule, t: jax.Array, form: Form) -> tuple[Network, Observables]:
    def record(network: Network, seen: Pass) -> Observables:
        return Observables(predictions(seen, form), values(network, rule, seen, t, form))

    network, _, found = observed_step(network, rule, t, form, record)
    return network, found


# ---- the state of a run, without what it never changes: raw normals and measures ------------------------------------


def _measures(network: Network) -> Measures:
    return tuple(p.measure for p in network.populations)


def _parts(network: Network) -> tuple[Any, Any]:
    """What varies with the measures, and the counts, which do not."""
    nothing: Any = None
    bare = replace(
        network, populations=tuple(replace(p, normals=nothing, measure=nothing) for p in network.populations)
    )

    def select(floating: bool) -> Any:
        return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) == floating else None, bare)

    return select(True), select(False)


def _joined(network: Network, numbers: Any, counts: Any, measures: Measures) -> Network:
    """The state whose parts are given; raw normals are those of `network`."""
    bare: Network = jax.tree.map(lambda a, b: b if a is None else a, numbers, counts, is_leaf=lambda a: a is None)
    populations = (
        replace(p, normals=q.normals, measure=m)
        for p, q, m in zip(bare.populations, network.populations, measures, strict=True)
    )
    return replace(bare, populations=tuple(populations))
