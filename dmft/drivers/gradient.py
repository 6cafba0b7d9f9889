"""`gradient`: derivatives of the loss of the limit in the numbers of a problem; what `dmft.optimise` goes down.

    V = sum_t c_t L(t),   L the training or test loss        dV/dp = sum_r (dV/dr) (dr/dp)

r are the numbers of a step (`dmft.engine.form.Rule`), of which one backward pass through the run has all derivatives
(`dmft.engine.slopes`); p is a field of the network or the training.  How r depends on p is a short function of NumPy,
whose derivatives are differences: exact to rounding where r is a polynomial of second degree or less, as of rates,
momentum, decay, richness and scales; to 1e-6 of variances, of which it has roots.  Variances of 0 are refused.

Cost: a backward pass is about three times a run, and keeps the state of every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.machine import available_bytes, find_devices, precision
from dmft.drivers.numerics import check_numerics
from dmft.drivers.repetitions import repetitions
from dmft.drivers.room import bytes_needed
from dmft.drivers.run import Run
from dmft.drivers.uncertainty import warn_of_few_particles
from dmft.engine import loop
from dmft.engine.slopes import slopes
from dmft.running import memory
from dmft.running.estimates import Estimates
from dmft.running.host import usual_errors
from dmft.running.progress import Bar, progress_bar
from dmft.specs import Problem, loss, vary
from dmft.specs.training.recurrence import RECURRENCE

Array = NDArray[np.float64]
LOSSES = ("loss", "test_loss")
ROOM = 64  # the room for directions is a multiple: problems that need a little more compile nothing anew
DIFFERENCE = 1e-3  # of a number, relative to its size, or to one for 0
STENCILS = (((-1, 1), (-0.5, 0.5)), ((0, 1, 2), (-1.5, 2.0, -0.5)), ((0, -1, -2), (1.5, -2.0, 0.5)))
COPIES = 3  # of the state of a step that the backward pass takes besides those that are kept


@dataclass(frozen=True)
class Objective:
    """V of problems that differ in numbers.

    of: "loss" or "test_loss"; weights: c (step,), of steps 0..T.
    """

    of: str
    weights: tuple[float, ...]
    particles: int
    scrambles: int
    seed: int
    tolerance: float
    devices: tuple[jax.Device, ...]
    memory_limit: int | None

    @property
    def last(self) -> int:
        """The last step that counts."""
        return int(np.flatnonzero(self.weights)[-1])

    def run_of(self, problem: Problem) -> Run:
        steps = np.flatnonzero(self.weights)
        return Run(
            problem,
            steps,
            None if problem.linear else self.particles,
            self.tolerance,
            problem.network.centered,
            observables=(),
            devices=self.devices,
            smoothed=not all(phi.smooth for phi in problem.sketch.activations),
            alone=True,
        )

    def slopes(
        self, problem: Problem, by: Sequence[str], bar: Bar, capacity: int | None = None
    ) -> tuple[Estimates, Run]:
        """V ("value") and its derivatives in all entries of these fields ("gradient"), of every scramble.

        Without fields V alone, of no backward pass.  Normals depend on the room for directions: `capacity` is that of
        a problem that is to have the same.

        Raises:
            DivergenceError, MemoryEstimateError.
        """
        run = self.run_of(problem)
        part = schema.splits(problem)["" if self.of == "loss" else "test_"]
        count = range(problem.task.n_samples)[problem.observed]
        share = np.zeros(len(count))
        share[part] = 1 / len(share[part])
        weights = np.multiply.outer(self.weights[: self.last + 1], share)
        targets = problem.task.targets[problem.observed]
        found, changes = Estimates(), [change for name in by for change in _changes(problem, run, name)]
        scrambles = 1 if run.particles is None else self.scrambles
        begun = Estimates(capacity=capacity)
        for trained in repetitions(run, self.seed, scrambles, bar, memory_limit=self.memory_limit, done=begun):
            if not by:
                f = np.asarray(trained.history.vitals.prediction)
                each = loss.values(np, run.form.loss, f[..., None] if run.form.single else f, targets)
                found.add({"value": np.sum(weights * each)}, trained.capacity, trained.directions)
                continue
            room = min(trained.capacity, -(-(trained.directions + run.step_room) // ROOM) * ROOM)
            self._require_memory(run, trained.capacity)
            value, numbers = slopes(
                run.rule,
                run.populations(trained.capacity, trained.stream),
                jnp.asarray(targets),
                jnp.asarray(weights),
                run.tolerance,
                last=self.last,
                form=run.form,
                capacity=room,
            )
            gradient = np.array([_chained(numbers, change) for change in changes])
            found.add({"value": np.asarray(value), "gradient": gradient}, trained.capacity, trained.directions)
            bar.update(2 * (run.last + 1))
            del trained
        return found, run

    def _require_memory(self, run: Run, capacity: int) -> None:
        memory.require(
            (self.last + 1 + COPIES) * bytes_needed(run, capacity),
            limit=self.memory_limit,
            available=available_bytes(run.device),
            what=f"derivatives of {self.last + 1} steps with {capacity} directions",
            ways_out="lower particles, raise tolerance, or take fewer steps or samples",
        )


def objective_of(
    problem: Problem,
    of: str,
    at: Any,
    particles: int,
    scrambles: int,
    seed: int,
    tolerance: float,
    device: str,
    memory_limit: int | None,
) -> Objective:
    """Checked; arguments as of `gradient`."""
    if not isinstance(problem, Problem):
        raise TypeError(f"expected a dmft.Problem, got {type(problem).__name__}.")
    if of not in LOSSES:
        raise ValueError(f"of={of!r} is not offered; choose one of {', '.join(LOSSES)}.")
    if of == "test_loss" and not problem.task.n_test:
        raise ValueError('of="test_loss": the task has no test samples; take of="loss".')
    if of == "loss" and problem.observed.start:
        raise ValueError('of="loss": a stream is observed on its test samples; take of="test_loss".')
    if problem.training.stepping != RECURRENCE:
        name = type(problem.training).__name__
        raise ValueError(
            f"derivatives are those of steps that are linear in gradients, and those of {name} are not; take "
            "dmft.GradientDescent, or an optimiser of its kind."
        )
    particles, scrambles, seed, tolerance, memory_limit = check_numerics(
        particles, scrambles, seed, tolerance, memory_limit
    )
    weights = _weights(at, problem.training.steps)
    return Objective(of, weights, particles, scrambles, seed, tolerance, find_devices(device), memory_limit)


def _weights(at: Any, steps: int) -> tuple[float, ...]:
    """c (step,): one of a step, shares of several."""
    chosen = [steps] if at is None else [at] if isinstance(at, int | np.integer) else list(at)
    if not chosen or any(not isinstance(t, int | np.integer) or not 0 <= t <= steps for t in chosen):
        raise ValueError(f"at={at!r}: give a step between 0 and {steps}, or a list of such; by default the last.")
    found = np.zeros(steps + 1)
    for t in chosen:
        found[t] += 1 / len(chosen)
    return tuple(found.tolist())


@usual_errors
def gradient(
    problem: Problem,
    *,
    of: str = "loss",
    by: str | Sequence[str] = "learning_rate",
    at: int | Sequence[int] | None = None,
    particles: int = 2048,
    scrambles: int = 4,
    seed: int = 0,
    tolerance: float = 1e-3,
    device: str = "auto",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Derivatives of a loss of the limit in numbers of the problem.

    Args:
        problem: network, task, training by gradient descent.
        of: "loss" or "test_loss".
        by: fields of the training or the network: learning_rate (a schedule has one derivative a step), momentum,
            weight_decay, gamma0, branch_scale, bias, weight_variance, ...
        at: the step at whose loss to look, or several, over which it is averaged; by default the last.
        particles, scrambles, seed, tolerance, device, memory_limit, progress: as of `dmft.solve`.  Values and
            derivatives of problems with the same seed have common normals.

    Returns:
        Dataset of kind "gradient" (`dmft.schema`): value, and gradient(parameter), of the entries of all fields one
        after the other, with the coordinates `field` and `entry`; each with `_se`, standard errors of the mean over
        scrambles.  Kinks of activations are rounded, as by `dmft.fluctuations`: value is then not that of `dmft.solve`.

    Raises:
        ValueError, TypeError: a field that is no number, or that shapes the compiled code; arguments out of range.
        DivergenceError: training leaves the finite numbers.  MemoryEstimateError: the states of all steps do not fit.

    Example:
        >>> found = dmft.gradient(problem, by=["learning_rate", "gamma0"], particles=256, scrambles=2)
        >>> found["gradient"].sel(parameter="learning_rate").item() < 0  # larger rates learn faster here
        True
    """
    names = (by,) if isinstance(by, str) else tuple(by)
    objective = objective_of(problem, of, at, particles, scrambles, seed, tolerance, device, memory_limit)
    coords = parameters(problem, names)
    steps = 3 * objective.scrambles * (objective.last + 1)
    where = objective.devices[0]
    with precision("float64", where), progress_bar(steps, "gradient", "step", progress) as bar:
        found, run = objective.slopes(problem, names, bar)
    warn_of_few_particles(run, found.directions)
    return schema.build(
        "gradient",
        problem,
        found.moments.mean_and_error(exact=run.particles is None),
        coords=coords,
        attrs={
            "producer": "dmft.gradient",
            "of": of,
            "at": [int(t) for t in run.steps],
            "dtype": "float64",
            "device": f"{run.device.platform}: {run.device.device_kind}",
            "seed": seed,
            "particles": particles,
            "scrambles": scrambles,
            "tolerance": tolerance,
            "directions": found.directions,
        },
    )


# ---- numbers of problems ---------------------------------------------------------------------------------------------


def parameters(problem: Problem, by: Sequence[str]) -> dict[str, Any]:
    """Coordinates of all entries of these fields: parameter, field, entry.

    Raises:
        ValueError, TypeError: a field that is no number.
    """
    entries = [(name, index) for name in by for index in np.ndindex(number(problem, name).shape)]
    if not entries:
        raise ValueError('by=[] names no field; give e.g. by="learning_rate".')
    labels = [name + "".join(f"[{i}]" for i in index) for name, index in entries]
    return {
        "parameter": labels,
        "field": ("parameter", [name for name, _ in entries]),
        "entry": ("parameter", [index[0] if index else 0 for _, index in entries]),
    }


def number(problem: Problem, name: str) -> Array:
    """The field of this name, a number or several.

    Raises:
        ValueError, TypeError: there is none.
    """
    specs: tuple[Any, ...] = (problem.network, problem.training)
    known = {field.name: getattr(spec, field.name) for spec in specs for field in fields(spec)}
    numbers = {n: v for n, v in known.items() if _is_number(v)}
    if name not in known:
        raise ValueError(f"by={name!r} is no field of this problem; numbers of it are {', '.join(sorted(numbers))}.")
    if name not in numbers:
        raise TypeError(f"by={name!r} is {known[name]!r}, no number; numbers are {', '.join(sorted(numbers))}.")
    return np.asarray(known[name], np.float64)


def stored(value: Array) -> Any:
    """A number or several, as a field has them."""
    return tuple(value.tolist()) if value.shape else float(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, float)


def _changes(problem: Problem, run: Run, name: str) -> list[Any]:
    """dr/dp of every entry of a field, in the order of its entries."""
    value, form, coordinates = (
        number(problem, name),
        loop.form_of(problem, run.observables),
        loop.input_coordinates(problem),
    )

    def rule(entries: Array) -> Any:
        (other,) = vary(problem, **{name: [stored(entries)]})
        if loop.form_of(other, run.observables) != form:
            raise TypeError(f"by={name!r} shapes the compiled code, which has no derivative in it.")
        known = coordinates if other.network == problem.network else None
        found = loop.rule_of(other, known, length=len(run.rule.rows))
        return jax.tree.map(lambda a: np.asarray(a, np.float64), found)

    return [_difference(rule, name, value, index) for index in np.ndindex(value.shape)]


def _difference(rule: Callable[[Array], Any], name: str, value: Array, index: tuple[int, ...]) -> Any:
    """dr/dp of one entry, on trees of NumPy arrays, None for those that do not change: a central difference, or where
    one side is out of range that of three points on the other."""
    h = DIFFERENCE * (abs(float(value[index])) or 1.0)

    if name == "weight_variance" and not value[index]:
        raise ValueError("weight_variance=0 has no derivative: deviations are its root. Take a small one.")

    def at(offset: float) -> Any:
        moved = value.copy()
        moved[index] += offset
        return rule(moved)

    for points, weights in STENCILS:
        try:
            parts = [at(point * h) for point in points]
        except ValueError:
            continue
        shapes = {tuple(a.shape for a in jax.tree.leaves(part)) for part in parts}
        if len(shapes) > 1:
            break

        def changed(*a: Array, weights: Any = weights) -> Any:
            if all(np.array_equal(a[0], x) for x in a[1:]):
                return None
            return sum(w * x for w, x in zip(weights, a, strict=True)) / h

        return jax.tree.map(changed, *parts)
    raise ValueError(
        f"{name}={value[index]:g} cannot be changed by a little: it shapes what is computed there. Take another value."
    )


def _chained(numbers: Any, change: Any) -> float:
    """sum_r (dV/dr) (dr/dp)."""
    slopes, changes = (jax.tree.leaves(tree, is_leaf=lambda a: a is None) for tree in (numbers, change))
    pairs = zip(slopes, changes, strict=True)
    return float(sum(np.sum(np.asarray(a) * b) for a, b in pairs if a is not None and b is not None))
