"""`gradient`: derivatives of the loss of the limit in the numbers of a problem; what `dmft.optimise` goes down.

    V = sum_t c_t L(t),   L the training or test loss        dV/dp = sum_r (dV/dr) (dr/dp)

r are the numbers of a step (`dmft.engine.form.Rule`), of which one backward pass through the run has all derivatives
(`dmft.engine.slopes`); p is a field of the network or the training; `dmft.drivers.parameters` has dr/dp.

Cost: a backward pass is about three times a run, and keeps the state of every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from dmft import schema
from dmft.drivers.machine import available_bytes, find_devices, precision
from dmft.drivers.numerics import check_numerics
from dmft.drivers.parameters import chained, changes_of, parameters
from dmft.drivers.repetitions import repetitions
from dmft.drivers.room import bytes_needed
from dmft.drivers.run import Run
from dmft.drivers.uncertainty import warn_of_few_particles
from dmft.engine.slopes import slopes
from dmft.running import memory
from dmft.running.estimates import Estimates
from dmft.running.host import usual_errors
from dmft.running.progress import Bar, progress_bar
from dmft.specs import Problem, loss
from dmft.specs.training.recurrence import RECURRENCE

LOSSES = ("loss", "test_loss")
ROOM = 64  # the room for directions is a multiple: problems that need a little more compile nothing anew
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
        found, changes = Estimates(), [change for name in by for change in changes_of(problem, run, name)]
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
            gradient = np.array([chained(numbers, change) for change in changes])
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
