"""The scalars of reverse mode: linear combinations of the observables of a run, one backward pass each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.run import Run
from dmft.engine.form import Form
from dmft.engine.loop import observed_shapes
from dmft.engine.variation import Observables
from dmft.running.executables import kept
from dmft.running.moments import Array, Arrays


def no_observables(run: Run) -> Observables:
    """Zeros in the shape of the observables of a run."""
    shapes = observed_shapes(run.rule, run.form)
    zeros: dict[str, Any] = {name: np.zeros((run.length, *shape)) for name, shape in shapes.items()}
    return Observables(zeros.pop("prediction"), zeros)


def recorded(seen: Observables, form: Form, steps: NDArray[np.int64]) -> dict[str, Any]:
    """By name, of the recorded steps, with axes (..., layer, step, ...); directions may lead.  Arrays of any kind."""
    outputs = not form.single
    found = {"prediction": _at(seen.prediction, steps, 1 + outputs)}
    for one in form.observables:
        dims = one.dims_with(outputs)
        value = _at(seen.values[one.name], steps, len(dims) - 1)
        found[one.name] = np.moveaxis(value, -len(dims), dims.index("step") - len(dims))
    return found


def _at(value: Any, steps: NDArray[np.int64], after: int) -> Any:
    """Of these steps, whose axis has `after` others behind it."""
    return value[(..., steps, *[slice(None)] * after)]


class Scalars:
    """Single entries (of symmetric kernels the upper ones), predictions first, then losses, linearised."""

    def __init__(self, run: Run, wanted: set[str], prediction: jax.Array) -> None:
        """Of the observables `wanted`, in a run with the given prediction (step, sample[, output])."""
        leaves, self._tree = jax.tree.flatten(no_observables(run))
        self._shapes = [leaf.shape for leaf in leaves]
        self._ends = np.cumsum([leaf.size for leaf in leaves])
        places = recorded(self._unravel(np.arange(self._ends[-1])), run.form, run.steps)
        self._places = {name: place for name, place in places.items() if name in wanted}
        for one in run.form.observables:
            if one.kernel and one.name in self._places:
                pair = 2 if one.per_output and not run.form.single else 1
                first, second = tuple(range(-2 * pair, -pair)), tuple(range(-pair, 0))
                transposed = np.moveaxis(self._places[one.name], first, second)
                self._places[one.name] = np.minimum(self._places[one.name], transposed)
        self._entries = np.unique(np.concatenate([p.ravel() for p in self._places.values()] or [np.zeros(0, int)]))
        self.predictions = self._places["prediction"].size if "prediction" in self._places else 0

        following = schema.following(run.problem, wanted, smooth=True)
        averages, targets = schema.Averages.of(run.problem, following), run.problem.task.targets[run.problem.observed]
        slopes = _slopes(np.asarray(prediction), targets, averages=averages) if following else {}
        self._losses = {n: np.asarray(s)[run.steps].reshape(len(run.steps), -1) for n, s in slopes.items()}
        self.count = len(self._entries) + len(run.steps) * len(self._losses)

    def combinations(self, start: int, stop: int) -> Observables:
        """Coefficients of the scalars `start`..`stop` - 1, zero beyond the last."""
        entries = self._entries[start:stop]
        rows = np.zeros((stop - start, self._ends[-1]))
        rows[np.arange(len(entries)), entries] = 1.0
        if self._losses and stop > len(self._entries):
            slopes = np.concatenate(list(self._losses.values()))
            first = max(start, len(self._entries))
            slopes = slopes[first - len(self._entries) : stop - len(self._entries)]
            # predictions lead the observables
            rows[np.arange(len(slopes)) + first - start, : slopes.shape[1]] = slopes
        # on the host until here: what is done on a device operation by operation is compiled operation by operation
        combinations: Observables = jax.device_put(self._unravel(rows))
        return combinations

    def _unravel(self, values: NDArray[Any]) -> Observables:
        """Observables of which each has its part of the last axis."""
        parts = np.split(values, self._ends[:-1], axis=-1)
        shaped = [part.reshape(values.shape[:-1] + shape) for part, shape in zip(parts, self._shapes, strict=True)]
        observables: Observables = jax.tree.unflatten(self._tree, shaped)
        return observables

    def named(self, values: Array) -> Arrays:
        """Values of all scalars (scalar,), by name of observable, with its dimensions."""
        named = {name: values[np.searchsorted(self._entries, place)] for name, place in self._places.items()}
        losses = np.split(values[len(self._entries) :], max(len(self._losses), 1))
        return named | dict(zip(self._losses, losses, strict=False))  # an empty part where there are none


@kept(static=("averages",), brief=True)
def _slopes(prediction: Array, targets: Array, *, averages: schema.Averages) -> dict[str, jax.Array]:
    """Of averages over samples, by name: (step, step_2, sample[, output])."""
    slopes: dict[str, jax.Array] = jax.jacobian(lambda f: averages(jnp, f, targets))(prediction)
    return slopes
