"""What formulas of observables of one's own are known by: numbers that they make.

A result holds the name of an observable.  What is continued later, a checkpoint or a store, holds a digest besides: of
what the formula makes of a pass that never was, with as many layers, samples and outputs as those of the problem have,
whose fields are numbers in general position.  What jumps is known as far as some of them lie between its old and its
new place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.schema.observable import HESSIAN, PREDICTIONS, Observable
from dmft.schema.predictions import splits
from dmft.schema.registry import own
from dmft.schema.seen import Fields, Seen
from dmft.specs import Problem, _own
from dmft.specs.curvature import ITERATIONS

NEURONS = (8, 256)  # of every layer, or between these as twice the events, so that small kernels have full rank
PREDICTED, SPECTRA = 4096, 64  # predictions; lists of eigenvalues


def digests(names: Collection[str], problem: Problem, xp: Any) -> dict[str, str]:
    """Of those of one's own among the observables, by name; `xp` is the module that their producer computes with, in
    double precision.

    Raises:
        ValueError: a formula that fails.
    """
    return {one.name: _digest(one, problem, xp) for one in own() if one.name in names}


def _digest(one: Observable, problem: Problem, xp: Any) -> str:
    beside = repr((one.dims, one.needs, one.per_output, one.mean))
    try:
        values = [np.asarray(value, np.float64) for value in _values(one, _Example(problem, xp))]
    except Exception as error:
        raise ValueError(
            f"the formula of {one.name} fails for an example, by whose value a checkpoint or a store knows it: "
            f"{type(error).__name__}: {error}. Leave it out, or write it for arrays of any values."
        ) from error
    return _own.digest_of(beside, values, max(float(abs(np.nan_to_num(value)).max(initial=0.0)) for value in values))


def _values(one: Observable, seen: _Example) -> list[Any]:
    assert one.formula is not None
    if one.needs == PREDICTIONS:
        rows = max(1, PREDICTED // math.prod(seen.targets.shape))
        return [
            one.formula(seen.xp, seen.problem.sample_loss, seen.numbers("f", (rows, *seen.targets.shape)), seen.targets)
        ]
    if one.needs == HESSIAN:
        return [one.formula(seen.xp.asarray(np.sort(_own.in_general_position("A", (SPECTRA, ITERATIONS)))))]
    return [one.formula(seen), *([] if one.fields is None else one.fields(seen))]


class _Example(Seen):
    """Of a pass over the observed samples of `problem`."""

    def __init__(self, problem: Problem, xp: Any) -> None:
        super().__init__(splits(problem).get("", slice(0, 0)))
        self.problem, self.xp = problem, xp
        targets = problem.task.targets[problem.observed]
        self.targets = xp.asarray(targets)

    def numbers(self, name: str, shape: tuple[int, ...]) -> Any:
        values: NDArray[np.float64] = _own.in_general_position(name, shape)
        return self.xp.asarray(values)

    def _fields(self, name: str, events: int) -> Fields:
        least, most = NEURONS
        neurons = max(least, min(most, 2 * self.targets.shape[0] * self.targets.shape[1]))
        return [self.numbers(f"{name}{i}", (events, neurons)) for i in range(self.problem.sketch.depth)]

    @property
    def preactivations(self) -> Fields:
        return self._fields("preactivations", self.targets.shape[0])

    @property
    def features(self) -> Fields:
        return self._fields("features", self.targets.shape[0])

    @property
    def gradients(self) -> Fields:
        return self._fields("gradients", self.targets.shape[0] * self.targets.shape[1])

    def inner(self, a: Fields, b: Fields, *, mean: bool = True) -> Any:
        each = zip(self.problem.sketch.layers, a, b, strict=True)
        counts = [(v @ w.T / v.shape[-1], 1 if mean else max(positions, 1)) for (_, positions), v, w in each]
        return self.xp.stack([count * kernel for kernel, count in counts])

    def averages(self, name: str, function: Callable[[Any], Any] = lambda a: a) -> Any:
        samples = self.targets.shape[0]
        counts = [positions for each, positions, _ in self.problem.sketch.shown if each == name]
        shapes = [(samples, *[count] * (count > 0), NEURONS[0]) for count in counts]
        units = [self.numbers(f"{name}{i}", shape) for i, shape in enumerate(shapes)]
        return self.xp.stack([function(a).mean(-1) for a in units])

    def preconditioned_kernel(self) -> Any:
        g = self._fields("preconditioned tangents", self.targets.shape[0] * self.targets.shape[1])
        return self.inner(g, g).sum(0)

    def tangent_kernel(self) -> Any:
        g = self._fields("tangents", self.targets.shape[0] * self.targets.shape[1])
        return self.inner(g, g).sum(0)
