"""`optimise`: numbers of a problem that make a loss of its limit as small as it can be, a whole schedule of rates too.

    min over p of log V(p),      V and dV/dp of `dmft.gradient`, with the same normals for every p

by L-BFGS-B (SciPy).  The logarithm lets the search come down from where V is large; numbers at which training diverges,
or that no problem may have, count as much worse than the first.

V is that of the scrambles of one seed, and its optimum may be good for these alone: of few particles a search finds
rates beyond stability that happen to suit them.  So V at the optimum is taken once more with other normals.  Where
numbers change the order in which a matrix meets its directions, V jumps, by as much as scrambles differ: a search that
meets such a jump ends there ("ABNORMAL"), within the error of V of the optimum; more particles make jumps smaller.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import minimize

from dmft import schema
from dmft.drivers.gradient import Objective, objective_of
from dmft.drivers.machine import precision
from dmft.drivers.parameters import number, parameters, stored
from dmft.drivers.uncertainty import warn_of_few_particles
from dmft.errors import DivergenceError
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from dmft.specs import Problem, _check, vary

Array = NDArray[np.float64]
WORSE = 10.0  # in log V: where training diverges
SLOPE = 1e-4  # of log V along any number, relative to its size or one, at which the search ends
NEAR = 0.1  # relative: what is no worse by more is not spoken of
TINY = 1e-30  # in the place of a loss of zero
FAR, LEAST = 3.0, 4  # standard errors; scrambles with other normals
GAIN = 1e-9  # in log V of a step, below which it ends
LEAST_PART = 1e-3  # of a number where the search begins: how small it may become; 0 is often another problem
BOUNDS = {"momentum": 0.999}  # upper ones of fields that have them


@dataclass(frozen=True)
class Optimum:
    """What a search has found.

    problem: the best one; path: Dataset of kind "optimum" (`dmft.schema`), by iteration.
    """

    problem: Problem
    path: xr.Dataset


@usual_errors
def optimise(
    problem: Problem,
    *,
    of: str = "loss",
    by: str | Sequence[str] = "learning_rate",
    at: int | Sequence[int] | None = None,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
    iterations: int = 50,
    particles: int = 2048,
    scrambles: int = 2,
    seed: int = 0,
    tolerance: float = 1e-3,
    device: str = "auto",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> Optimum:
    """Numbers that make a loss of the limit small.

    Args:
        problem: where the search begins; a schedule of rates, `dmft.GradientDescent([0.5] * 10, 10)`, is searched
            rate by rate.
        of, by, at, particles, scrambles, seed, tolerance, device, memory_limit: as of `dmft.gradient`.
        bounds: by field, least and largest value, or None for none; by default a thousandth of every number with
            which the search begins, and none.
        iterations: of the search, at most.
        progress: show a bar of iterations.

    Returns:
        the best problem, and the path: value(iteration), and number and gradient(iteration, parameter); in its
        attributes the value of the best problem with other normals, `checked`, and its standard error.  A warning says
        where that is larger by more than a tenth, and than its error explains.

    Raises:
        DivergenceError: training diverges where the search begins.
        ValueError, TypeError, MemoryEstimateError: as of `dmft.gradient`; bounds that the first problem is out of.

    Example:
        >>> schedule = dmft.GradientDescent([0.3, 0.3, 0.3], 3)
        >>> begin = dmft.Problem(problem.network, problem.task, schedule)
        >>> found = dmft.optimise(begin, particles=256, iterations=2)
        >>> bool(found.path["value"][-1] < found.path["value"][0])
        True
    """
    names = (by,) if isinstance(by, str) else tuple(by)
    objective = objective_of(problem, of, at, particles, scrambles, seed, tolerance, device, memory_limit)
    iterations = _check.integer("iterations", iterations, minimum=1)
    coords = parameters(problem, names)
    search = _Search(objective, problem, names)
    begin, limits = search.numbers(problem), _limits(problem, names, bounds or {})
    where = objective.devices[0]
    with precision("float64", where), progress_bar(iterations, "optimise", "iteration", progress) as bar:
        search.visit(begin, first=True)

        def noted(x: Array) -> None:
            search.visit(x)
            search.note(x)
            bar.update(1)

        search.note(begin)
        descended: Any = minimize
        found = descended(
            search.visit,
            begin,
            jac=True,
            method="L-BFGS-B",
            bounds=limits,
            callback=noted,
            options={"maxiter": iterations, "gtol": SLOPE, "ftol": GAIN},
        )
        values, visited, slopes = map(np.array, zip(*search.path, strict=True))
        best = search.problem(visited[int(np.argmin(values))])
        checked, se, directions = _checked(objective, best)
    warn_of_few_particles(objective.run_of(best), directions)
    if not checked - FAR * se <= values.min() * (1 + NEAR):  # nor a number
        warnings.warn(
            f"{of} of the optimum is {values.min():.3g} with the normals of the search, and {checked:.3g}({se:.1g}) "
            f"with others: the search has found what these scrambles are good for. Raise particles={particles}.",
            stacklevel=3,
        )
    path = schema.build(
        "optimum",
        problem,
        {"value": values, "number": visited, "gradient": slopes},
        coords={"iteration": np.arange(len(values)), **coords},
        attrs={
            "producer": "dmft.optimise",
            "of": of,
            "at": [int(t) for t in np.flatnonzero(objective.weights)],
            "best": best.to_json(arrays=False),
            "checked": checked,
            "checked_se": se,
            "message": str(found.message),
            "evaluations": search.evaluations,
            "dtype": "float64",
            "device": f"{where.platform}: {where.device_kind}",
            "seed": seed,
            "particles": particles,
            "scrambles": scrambles,
            "tolerance": tolerance,
        },
    )
    return Optimum(best, path)


def _checked(objective: Objective, problem: Problem) -> tuple[float, float, int]:
    """V of the problem with other normals, its standard error, and the directions met; infinite where it diverges."""
    others = replace(objective, seed=objective.seed + 1, scrambles=max(objective.scrambles, LEAST))
    try:
        found, run = others.slopes(problem, (), progress_bar(None, "", "step", show=False))
    except DivergenceError:
        return math.inf, 0.0, 0
    moments = found.moments.mean_and_error(exact=run.particles is None)
    return float(moments["value"]), float(moments["value_se"]), found.directions


class _Search:
    """log V and its slope at numbers, each found once in a row; the path of those that were kept."""

    def __init__(self, objective: Objective, begin: Problem, by: Sequence[str]) -> None:
        self._objective, self._begin, self._by = objective, begin, by
        self._last: tuple[Array, float, Array] | None = None
        self._first: float | None = None
        self._capacity: int | None = None  # of what was visited last
        self.path: list[tuple[float, Array, Array]] = []
        self.evaluations = 0
        self._silent = progress_bar(None, "", "step", show=False)

    def numbers(self, problem: Problem) -> Array:
        return np.concatenate([np.ravel(number(problem, name)) for name in self._by])

    def problem(self, numbers: Array) -> Problem:
        """The problem with these numbers."""
        values: dict[str, list[Any]] = {}
        for name in self._by:
            shape = number(self._begin, name).shape
            own, numbers = numbers[: math.prod(shape)], numbers[math.prod(shape) :]
            values[name] = [stored(own.reshape(shape))]
        return vary(self._begin, **values)[0]

    def visit(self, x: Array, *, first: bool = False) -> tuple[float, Array]:
        """log V and its slope."""
        if self._last is not None and np.array_equal(self._last[0], x):
            return self._last[1:]
        self.evaluations += 1
        try:
            found, _ = self._objective.slopes(self.problem(x), self._by, self._silent, self._capacity)
        except (DivergenceError, ValueError, TypeError):  # nor what no problem may have
            if first:
                raise
            assert self._first is not None
            self._last = (x.copy(), self._first + WORSE, np.zeros_like(x))
            return self._last[1:]
        self._capacity = found.capacity
        moments = found.moments.mean
        value, slope = float(moments["value"]), np.asarray(moments["gradient"])
        value = max(value, TINY)
        self._last = (x.copy(), math.log(value), slope / value)
        self._first = self._last[1] if first else self._first
        return self._last[1:]

    def note(self, x: Array) -> None:
        """Keep what was visited last."""
        assert self._last is not None
        _, value, slope = self._last
        self.path.append((math.exp(value), x.copy(), slope * math.exp(value)))


def _limits(
    problem: Problem, by: Sequence[str], bounds: Mapping[str, tuple[float | None, float | None]]
) -> list[tuple[float | None, float | None]]:
    """Of every entry."""
    if unknown := [name for name in bounds if name not in by]:
        raise ValueError(f"bounds of {unknown[0]!r}, which is not searched; by={list(by)}.")
    found = []
    for name in by:
        values = np.ravel(number(problem, name))
        for value in values:
            low, high = bounds.get(name, (LEAST_PART * float(value), BOUNDS.get(name)))
            if (low is not None and value < low) or (high is not None and value > high):
                raise ValueError(f"{name}={value:g} is out of its bounds ({low}, {high}); begin between them.")
            found.append((low, high))
    return found
