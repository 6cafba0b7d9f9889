"""`adaptive_flow`: steps of a gradient flow chosen from the local error of its limit.

The second-order step of `dmft.engine.flow` comes with e, its difference from a step of first order, on the outputs of
all training samples.  With r the root mean square of e over that of the targets, a step is repeated with a smaller dt
if r exceeds the tolerance, and the next dt is

    dt <- dt min(GROWTH, max(1 / GROWTH, SAFETY sqrt(tolerance / r)))            (e grows like dt^2)

Late in training fast modes have relaxed and slow ones move on their own time scale: steps grow in proportion to the
time, and the cost like its logarithm.  The grid is chosen once, from one scramble of particles, and belongs to the
problem from then on: theory, fluctuations and networks all step on it.

Source: step control as in Hairer & Wanner 1996, sec. IV.8.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dmft.drivers.machine import find_devices, precision
from dmft.drivers.numerics import check_particles, check_tolerance
from dmft.drivers.room import require_memory
from dmft.drivers.run import Run
from dmft.engine import flow
from dmft.engine.form import Form, Rule
from dmft.engine.network import Network
from dmft.errors import DivergenceError
from dmft.running.host import usual_errors
from dmft.running.progress import Bar, progress_bar
from dmft.specs import GradientFlow, Problem, _check
from dmft.specs.loss import LOSSES

GROWTH = 4.0
SAFETY = 0.9
FIRST = 0.05  # of the time in which the loss could fall, the first step that is tried


@usual_errors
def adaptive_flow(
    problem: Problem,
    until: float,
    *,
    tolerance: float = 1e-3,
    max_steps: int = 1000,
    particles: int = 1024,
    seed: int = 0,
    basis_tolerance: float = 3e-3,
    device: str = "auto",
    progress: bool | None = None,
) -> Problem:
    """`problem` with a gradient flow whose steps, up to the time `until`, follow the dynamics of the limit.

    Args:
        problem: its training is a `dmft.GradientFlow` with the scheme "rosenbrock", of which the learning rate is kept.
        until: the last time; t of d theta / dt = eta D.
        tolerance: of the local error of the output, root mean square over training samples and outputs, relative to
            that of the targets (absolute where all of them are zero).  The error at the end is of its size where the
            flow contracts.
        max_steps: most steps that are accepted.
        particles, seed, basis_tolerance: of the scramble that chooses (of `dmft.solve`: particles, seed, tolerance).
        device: "auto" (a GPU if JAX has one), "cpu" or "gpu".
        progress: show a bar; by default in terminals and notebooks, elsewhere a line now and then of long work.

    Returns:
        The problem with the steps found; `.training.times` are eta t.

    Raises:
        ValueError, TypeError: another training or scheme; a hinge loss; arguments out of range.
        DivergenceError: no step is small enough.

    Warns: when `max_steps` end before `until`.

    Example:
        >>> flow = dmft.vary(problem, training=[dmft.GradientFlow(1.0, 0.1, 2)])[0]
        >>> found = dmft.adaptive_flow(flow, until=1.0, tolerance=1e-2, particles=256)
        >>> bool(np.isclose(found.training.times[-1], 1.0))
        True
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"adaptive_flow expects a dmft.Problem, got {type(problem).__name__}.")
    training = problem.training
    if not isinstance(training, GradientFlow) or training.scheme != "rosenbrock":
        raise ValueError(f'training={training!r}: give a dmft.GradientFlow with the scheme "rosenbrock".')
    if LOSSES[problem.loss].jumps:
        raise ValueError(
            f'loss="{problem.loss}" jumps at the margin, where no error of a step is small; give a grid of your own, '
            'or take loss="logistic".'
        )
    until = _check.positive("until", until)
    tolerance = _check.positive("tolerance", tolerance)
    max_steps = _check.integer("max_steps", max_steps, minimum=1)
    seed = _check.integer("seed", seed, minimum=0)
    pilot = replace(problem, training=GradientFlow(training.learning_rate, 1.0, max_steps))
    run = Run(
        pilot,
        np.array([max_steps]),
        check_particles(particles),
        check_tolerance(basis_tolerance, "basis_tolerance"),
        centered=True,
        observables=(),
        devices=find_devices(device),
    )
    with precision(run.dtype, run.device), progress_bar(100, "adaptive steps", "%", progress) as bar:
        sizes = _Search(run, until, tolerance, np.random.SeedSequence(seed), bar).sizes()
    return replace(problem, training=GradientFlow(training.learning_rate, tuple(sizes), len(sizes)))


class _Search:
    """Steps of one scramble, taken back where their error is too large."""

    def __init__(self, run: Run, until: float, tolerance: float, stream: np.random.SeedSequence, bar: Bar) -> None:
        self.run, self.until, self.tolerance, self.stream, self.bar = run, until, tolerance, stream, bar
        task = run.problem.task
        self.scale = float(np.sqrt(np.mean(task.targets[: task.n_train] ** 2))) or 1.0
        self.rate = run.problem.training.rates[0]

    def sizes(self) -> list[float]:
        """dt of every step.  Directions beyond the room of the matrices make it twice as large, and begin anew."""
        capacity = self.run.first_capacity
        while True:
            found = self._accepted(capacity)
            if found is not None:
                return found
            capacity *= 2

    def _accepted(self, capacity: int) -> list[float] | None:
        require_memory(self.run, capacity, None, self.bar)
        network, rule, form = self.run.network(capacity, self.stream), self.run.rule, self.run.form
        largest = float(np.trace(self.run.problem.task.input_kernel)) / self.run.problem.task.n_train
        dt, time = min(FIRST / ((largest or 1.0) * self.rate), self.until), 0.0
        accepted: list[float] = []
        while time < self.until and len(accepted) < self.run.last:
            dt = min(dt, self.until - time)
            trial, error = _trial(network, rule, len(accepted), dt * self.rate, form=form)
            ranks = max((int(m.ranks.max()) for m in trial.matrices), default=0)
            if ranks > capacity - self.run.block and capacity < self.run.full_capacity:
                return None
            r = float(error) / self.scale
            if r <= self.tolerance:  # not so for a number that is none
                network, time = trial, time + dt
                accepted.append(dt)
                self.bar.update(round(100 * self._progress(time)) - self.bar.n)
            factor = SAFETY * np.sqrt(self.tolerance / max(r, 1e-300)) if np.isfinite(r) else 0.0
            dt *= float(np.clip(factor, 1 / GROWTH, GROWTH))
            if time + dt <= time:
                raise DivergenceError(
                    f"at time {time:.3g} no step is small enough for a local error of {self.tolerance:g}: the flow of "
                    f"gamma0={self.run.problem.network.gamma0} leaves the finite numbers there."
                )
        if time < self.until:
            warnings.warn(
                f"max_steps={self.run.last} ended at time {time:.3g}, before until={self.until:g}; raise it, or the "
                f"tolerance={self.tolerance:g}.",
                stacklevel=5,
            )
        return accepted

    def _progress(self, time: float) -> float:
        return float(np.log1p(time) / np.log1p(self.until))


@partial(jax.jit, static_argnames=("form",))
def _trial(network: Network, rule: Rule, t: int, rate: jax.Array | float, *, form: Form) -> tuple[Network, jax.Array]:
    """The state after a step, and the root mean square of its e."""
    network, _, error = flow.rosenbrock(network, rule, t, jnp.asarray(rate), form)
    return network, jnp.sqrt(jnp.mean(error**2))
