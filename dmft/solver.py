"""`solve`: from a Problem to the Dataset of its infinite-width limit.

The causal engine (`dmft.engine`) gives one estimate of every order parameter for each set of S particles.  Independent
scrambles of the Sobol points give independent estimates; their mean is reported, with its standard error.

Assumptions and approximations
    S particles stand for infinitely many neurons: the error falls like S^-0.7 to S^-0.9, and its random part is
    reported.  Its bias, of order 1/S, was measured at a tenth of the scatter of one scramble, a third of the standard
    error of eight, while S is well above the number of directions met; a warning says when it is not.  Directions
    smaller than `tolerance` are dropped from the weight matrices: relative errors of kernels of order tolerance^2.  The
    output at initialisation vanishes in the limit, centered or not, so that the limit is always computed with it
    subtracted (an estimate of the same number with less noise).

Cost of a scramble: 36 S k P floating-point operations for each step and hidden matrix and 48 S k bytes for each hidden
matrix, k the room for directions (at most P (T+1), else a power of two times 128 or 8 P).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import memory, schema
from dmft.engine import loop
from dmft.engine.network import Network, Rule, Vitals
from dmft.engine.population import sobol_normals
from dmft.errors import DivergenceError, exploded
from dmft.progress import Bar, progress_bar
from dmft.specs import Problem, _check

CALLS = 20  # of the compiled loop a scramble: progress and checks in between
GPU_WORKSPACE = 2**26  # bytes that matrix products take for themselves
TOLERANCES = (1e-7, 3e-2)  # below, rounding decides; above, kernels are off by more than particles make up for


def solve(
    problem: Problem,
    *,
    particles: int = 4096,
    scrambles: int = 8,
    seed: int = 0,
    tolerance: float = 3e-3,
    two_time: bool = False,
    save_steps: Iterable[int] | None = None,
    device: str = "auto",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """The infinite-width limit of `problem`, by Monte Carlo over particles (exact discrete gradient descent).

    Args:
        problem: network, task, training.
        particles: S, a power of two; the error falls like S^-0.7 to S^-0.9, time and memory grow like S.
        scrambles: independent repetitions, at least 2; their scatter gives the standard errors.
        seed: of the scrambles.
        tolerance: relative size below which a direction met by a weight matrix is dropped, 1e-7 to 3e-2.
        two_time: add `feature_kernel_two_time` and `gradient_kernel_two_time`, between all saved steps.
        save_steps: the steps to record; all of 0..T by default.  Training ends with the last of them.
        device: "auto" (a GPU if JAX has one), "cpu" or "gpu".
        memory_limit: in bytes; by default what is available on the device.
        progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "limit" (`dmft.schema`): prediction, loss, test_loss, feature_kernel, gradient_kernel, ntk, and
        for each `<name>_se`, the standard error of the mean over scrambles (Student's t with scrambles - 1 degrees of
        freedom).

    Raises:
        DivergenceError: non-finite or exploding dynamics, naming step and layer.
        MemoryEstimateError: when the estimate exceeds the limit, with both numbers.
        ValueError, TypeError: arguments out of range.

    Source: Bordelon & Pehlevan 2022 for the limit; solved forward in time by conditioning (`dmft.engine.matrix`).
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"solve expects a dmft.Problem, got {type(problem).__name__}.")
    particles = _check.integer("particles", particles, minimum=2)
    if particles & (particles - 1):
        lower = 1 << (particles.bit_length() - 1)
        raise ValueError(
            f"particles={particles} is not a power of two, as Sobol points need; use {lower} or {2 * lower}."
        )
    scrambles = _check.integer("scrambles", scrambles, minimum=2)
    seed = _check.integer("seed", seed, minimum=0)
    tolerance = _check.positive("tolerance", tolerance)
    if not TOLERANCES[0] <= tolerance <= TOLERANCES[1]:
        raise ValueError(f"tolerance={tolerance} must lie between {TOLERANCES[0]} and {TOLERANCES[1]}.")
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    run = Run(problem, schema.saved_steps(problem, save_steps), particles, tolerance, two_time)
    where = _device(device)

    capacity, directions, moments = run.first_capacity, 0, Moments()
    with (
        jax.enable_x64(True),
        jax.default_device(where),
        progress_bar(scrambles * (run.last + 1), "theory", "step", progress) as bar,
    ):
        memory_estimate = run.require_memory(capacity, where, memory_limit, bar)
        for stream in np.random.SeedSequence(seed).spawn(scrambles):
            while (done := run.scramble(capacity, stream, bar)) is None:
                capacity = min(2 * capacity, run.full_capacity)
                memory_estimate = run.require_memory(capacity, where, memory_limit, bar)
            values, met = done
            moments.add(values)
            directions = max(directions, met)
    if 2 * directions > particles:
        warnings.warn(
            f"the weight matrices met {directions} directions with {particles} particles only: standard errors do not "
            f"hold the bias of so few. Use particles={_power_of_two(4 * directions)} or more.",
            stacklevel=2,
        )
    return schema.build(
        "limit",
        problem,
        moments.mean_and_error(),
        steps=run.steps,
        attrs={
            "producer": "dmft.solve",
            "method": "causal particles, revealed Gaussian matrices",
            "dtype": "float64",
            "device": f"{where.platform}: {where.device_kind}",
            "seed": seed,
            "particles": particles,
            "scrambles": scrambles,
            "tolerance": tolerance,
            "directions": directions,
            "memory_estimate": memory_estimate,
        },
    )


class Moments:
    """Mean and sum of squared deviations of named arrays, updated one set at a time (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: dict[str, NDArray[np.float64]] = {}
        self.squares: dict[str, NDArray[np.float64]] = {}

    def add(self, values: dict[str, NDArray[np.float64]]) -> None:
        self.count += 1
        for name, value in values.items():
            mean = self.mean.setdefault(name, np.zeros_like(value))
            deviation = value - mean
            self.mean[name] = mean + deviation / self.count
            self.squares[name] = self.squares.get(name, 0.0) + deviation * (value - self.mean[name])

    def mean_and_error(self) -> dict[str, NDArray[np.float64]]:
        """`<name>`, and `<name>_se`, the standard error of the mean."""
        n = self.count
        errors = {f"{name}_se": np.sqrt(square / (n * (n - 1))) for name, square in self.squares.items()}
        return self.mean | errors


@dataclass(frozen=True)
class Run:
    """What every scramble of a solution shares."""

    problem: Problem
    steps: NDArray[np.int64]
    particles: int
    tolerance: float
    two_time: bool

    @property
    def last(self) -> int:
        """The last step that is computed."""
        return int(self.steps[-1])

    @property
    def full_capacity(self) -> int:
        """Directions that a matrix can meet at most: every sample at every step."""
        return self.problem.task.n_samples * (self.last + 1)

    @property
    def first_capacity(self) -> int:
        """A first guess of the directions needed; doubled where it does not suffice."""
        return min(self.full_capacity, max(128, 8 * self.problem.task.n_samples))

    def draws(self, capacity: int) -> list[int]:
        """Raw normals for each population."""
        return loop.draws_needed(self.problem.network.depth, self.problem.task.n_samples, capacity)

    def scramble(
        self, capacity: int, stream: np.random.SeedSequence, bar: Bar
    ) -> tuple[dict[str, NDArray[np.float64]], int] | None:
        """One independent estimate of the variables of the schema, and the directions met; None if `capacity` of
        them do not suffice."""
        rule = loop.rule_of(self.problem)._replace(centered=jnp.ones(()))
        network = self._network(rule, capacity, stream)
        history = loop.empty_history(network, self.steps.tolist(), two_time=self.two_time)

        stride, begun = -(-(self.last + 1) // CALLS), bar.n
        for start in range(0, self.last + 1, stride):
            stop = min(start + stride, self.last + 1)
            network, history = loop.advance(
                network, history, rule, start, stop, activation=self.problem.network.activation
            )
            ranks = np.asarray(history.vitals.ranks)
            before_last_step = ranks[max(stop - 2, 0)].max(initial=0)
            if capacity < self.full_capacity and before_last_step > capacity - self.problem.task.n_samples:
                bar.update(begun - bar.n)
                return None
            _raise_if_diverged(self.problem, history.vitals, stop)
            bar.update(stop - start)
        return self._values(network, history), int(ranks.max(initial=0))

    def _network(self, rule: Rule, capacity: int, stream: np.random.SeedSequence) -> Network:
        # children are named, not spawned: a second attempt must find the same seeds
        seeds = [
            np.random.SeedSequence(stream.entropy, spawn_key=(*stream.spawn_key, layer))
            for layer in range(self.problem.network.depth)
        ]
        raw = (sobol_normals(n, self.particles, s) for n, s in zip(self.draws(capacity), seeds, strict=True))
        return loop.limit_network(rule, [jnp.asarray(z) for z in raw], self.tolerance, capacity=capacity)

    def _values(self, network: Network, history: loop.History) -> dict[str, NDArray[np.float64]]:
        values = {name: np.asarray(value) for name, value in history.kernels._asdict().items()}
        values["prediction"] = np.asarray(history.vitals.prediction)[self.steps]
        values |= schema.losses(self.problem, values["prediction"])
        for name, vectors in (("feature", history.features), ("gradient", history.gradients)):
            values[f"{name}_kernel"] = np.moveaxis(values[f"{name}_kernel"], 0, 1)  # to (layer, step, ...)
            if vectors is not None:
                two_time = loop.two_time_kernels(vectors, network.populations)
                values[f"{name}_kernel_two_time"] = np.asarray(two_time)
        return {name: values[name] for name in schema.VARIABLES if name in values}

    def memory_estimate(self, capacity: int) -> tuple[int, int]:
        """Bytes on the device for one scramble (state, and blocks (sample, particle) of a step), and on the host
        besides (results of one scramble and their moments; the making of a population's normals)."""
        depth, samples, rows = self.problem.network.depth, self.problem.task.n_samples, len(self.steps)

        def state() -> Any:
            normals = [jnp.zeros((n, self.particles)) for n in self.draws(capacity)]
            network = loop.limit_network(loop.rule_of(self.problem), normals, 0.0, capacity=capacity)
            return network, loop.empty_history(network, self.steps.tolist(), two_time=self.two_time)

        kept = int(sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(state))))
        blocks = (8 * depth + 16) * samples * self.particles * 8
        results = (2 * depth + 1) * rows * samples**2 * 8
        if self.two_time:
            results += 2 * depth * (rows * samples) ** 2 * 8
        return kept + blocks + results, 4 * results + 2 * max(self.draws(capacity)) * self.particles * 8

    def require_memory(self, capacity: int, where: jax.Device, limit: int | None, bar: Bar) -> int:
        """The estimated bytes, shown beside the bar; MemoryEstimateError if a scramble does not fit."""
        on_device, on_host = self.memory_estimate(capacity)
        stats = where.memory_stats()
        if stats:
            needed, available = on_device + GPU_WORKSPACE, stats["bytes_limit"] - stats["bytes_in_use"]
        else:
            needed, available = on_device + on_host, memory.available_on_host()
        memory.require(
            needed,
            limit=limit,
            available=available,
            what=f"the limit with {self.particles} particles and {capacity} directions",
            ways_out="lower particles, raise tolerance, record fewer save_steps, or use fewer samples"
            + (", or two_time=False" if self.two_time else ""),
        )
        bar.set_postfix_str(f"about {memory.readable(needed)} of memory")
        return needed


def _raise_if_diverged(problem: Problem, seen: Vitals, stop: int) -> None:
    """Name the first step below `stop` whose loss exploded or whose numbers are not finite, and the layer."""
    loss = schema.losses(problem, np.asarray(seen.prediction)[:stop])["loss"]
    sizes = np.asarray(seen.sizes)[:stop].max(axis=1)  # (step, layer): the larger of <h^2> and <g^2>
    bad = exploded(loss, loss[0]) | ~np.isfinite(sizes).all(axis=1)
    if bad.any():
        step = int(np.argmax(bad))
        growth = np.where(np.isfinite(sizes[step]), sizes[step] / np.maximum(sizes[0], 1e-300), np.inf)
        layer = int(np.argmax(growth)) + 1
        raise DivergenceError(
            f"the limit diverges at step {step}: loss {loss[step]:.3g} (initially {loss[0]:.3g}), fields of layer "
            f"{layer} grown {growth[layer - 1]:.3g} times. Lower learning_rate={problem.training.learning_rate}, "
            f"or gamma0={problem.network.gamma0}."
        )


def _device(name: str) -> jax.Device:
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f'device={name!r} is unknown; use "auto", "cpu" or "gpu".')
    try:
        return jax.devices(None if name == "auto" else name)[0]
    except RuntimeError as error:
        raise ValueError(f'device={name!r}: JAX has only {jax.devices()[0].platform} devices; use "auto".') from error


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
