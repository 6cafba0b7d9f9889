"""Runs of the causal engine (`dmft.engine`) for a Problem: what `solve` and `fluctuations` share.

A run is one training of the populations from initialisation to the last step that is asked for.  Populations are S
particles, whose raw normals are one scramble of the Sobol points, or, for networks without nonlinearity, linear forms,
which are exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dmft import memory, schema
from dmft.engine import loop
from dmft.engine.network import Network, Rule, Vitals
from dmft.engine.population import Population, linear_forms, particles, sobol_normals
from dmft.errors import DivergenceError, exploded
from dmft.progress import Bar
from dmft.specs import Problem, _check

CALLS = 20  # of the compiled loop a run: progress and checks in between
GPU_WORKSPACE = 2**26  # bytes that matrix products take for themselves
TOLERANCES = (1e-7, 3e-2)  # below, rounding decides; above, kernels are off by more than particles make up for


class Trained(NamedTuple):
    """A run: the capacity that sufficed, its seeds, the state at its end, what was seen."""

    capacity: int
    stream: np.random.SeedSequence
    network: Network
    history: loop.History

    @property
    def directions(self) -> int:
        """The most that a side of a weight matrix has met."""
        return max((int(matrix.ranks.max()) for matrix in self.network.matrices), default=0)


@dataclass(frozen=True)
class Run:
    """What all runs of a driver share.

    steps: to record; training ends with the last of them.
    particles: S, or None for linear forms.
    centered: whether the output at initialisation is subtracted.
    """

    problem: Problem
    steps: NDArray[np.int64]
    particles: int | None
    tolerance: float
    centered: bool
    two_time: bool = False

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

    @property
    def rule(self) -> Rule:
        return loop.rule_of(self.problem)._replace(centered=jnp.asarray(float(self.centered)))

    def draws(self, capacity: int) -> list[int]:
        """Raw normals for each population."""
        return loop.draws_needed(self.problem.network.depth, self.problem.task.n_samples, capacity)

    def sizes(self, capacity: int) -> list[int]:
        """Components of the vectors of each population."""
        draws = self.draws(capacity)
        return draws if self.particles is None else [self.particles] * len(draws)

    def network(self, capacity: int, stream: np.random.SeedSequence, room: int | None = None) -> Network:
        """At initialisation; the same for the same capacity and stream, with less `room` in its matrices if asked."""
        populations = self._populations(capacity, stream)
        return loop.limit_network(self.rule, populations, self.tolerance, capacity=room or capacity)

    def _populations(self, capacity: int, stream: np.random.SeedSequence) -> list[Population]:
        draws = self.draws(capacity)
        if self.particles is None:
            return [linear_forms(n) for n in draws]
        # children are named, not spawned: a second attempt must find the same seeds
        seeds = [np.random.SeedSequence(stream.entropy, spawn_key=(*stream.spawn_key, i)) for i in range(len(draws))]
        return [particles(sobol_normals(n, self.particles, s)) for n, s in zip(draws, seeds, strict=True)]

    def repetitions(
        self, seed: int, count: int, bar: Bar, *, device: jax.Device, memory_limit: int | None
    ) -> Iterator[Trained]:
        """Independent runs, one for each scramble.  A run whose capacity turns out too small is repeated with twice as
        much, with which the others begin.

        Raises:
            DivergenceError, MemoryEstimateError.
        """
        capacity = self.first_capacity
        self.require_memory(capacity, device, memory_limit, bar)
        for stream in np.random.SeedSequence(seed).spawn(count):
            while (done := self._train(capacity, stream, bar)) is None:
                capacity = min(2 * capacity, self.full_capacity)
                self.require_memory(capacity, device, memory_limit, bar)
            yield Trained(capacity, stream, *done)

    def _train(self, capacity: int, stream: np.random.SeedSequence, bar: Bar) -> tuple[Network, loop.History] | None:
        """From initialisation to the last step; None if `capacity` directions do not suffice."""
        network, rule = self.network(capacity, stream), self.rule
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
        return network, history

    def memory_estimate(self, capacity: int) -> tuple[int, int]:
        """Bytes on the device for one run (state, and blocks (sample, component) of a step), and on the host besides
        (results of one run and their moments; the making of a population's normals)."""
        depth, samples, rows = self.problem.network.depth, self.problem.task.n_samples, len(self.steps)
        sizes, draws = self.sizes(capacity), self.draws(capacity)

        def state() -> Any:
            empty = [particles(jnp.zeros((n, size))) for n, size in zip(draws, sizes, strict=True)]
            network = loop.limit_network(self.rule, empty, 0.0, capacity=capacity)
            return network, loop.empty_history(network, self.steps.tolist(), two_time=self.two_time)

        kept = int(sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(state))))
        blocks = (8 * depth + 16) * samples * max(sizes) * 8
        results = (2 * depth + 1) * rows * samples**2 * 8
        if self.two_time:
            results += 2 * depth * (rows * samples) ** 2 * 8
        return kept + blocks + results, 4 * results + 2 * max(draws) * max(sizes) * 8

    def require_memory(self, capacity: int, device: jax.Device, limit: int | None, bar: Bar) -> None:
        """Show the estimate beside the bar; MemoryEstimateError if a run does not fit."""
        needed = self.bytes_needed(capacity, device)
        neurons = "exact linear forms" if self.particles is None else f"{self.particles} particles"
        memory.require(
            needed,
            limit=limit,
            available=available_bytes(device),
            what=f"the limit with {neurons} and {capacity} directions",
            ways_out=("" if self.particles is None else "lower particles, raise tolerance, ")
            + "record fewer save_steps, or use fewer samples"
            + (", or two_time=False" if self.two_time else ""),
        )
        bar.set_postfix_str(f"about {memory.readable(needed)} of memory")

    def bytes_needed(self, capacity: int, device: jax.Device) -> int:
        """By a run, of the memory that `available_bytes` counts."""
        on_device, on_host = self.memory_estimate(capacity)
        return on_device + (GPU_WORKSPACE if device.memory_stats() else on_host)


def available_bytes(device: jax.Device) -> int:
    """Free memory of a GPU, or of the machine."""
    stats = device.memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else memory.available_on_host()


def find_device(name: str) -> jax.Device:
    """The JAX device called "auto", "cpu" or "gpu".

    Raises:
        ValueError: another name, or no such device.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f'device={name!r} is unknown; use "auto", "cpu" or "gpu".')
    try:
        return jax.devices(None if name == "auto" else name)[0]
    except RuntimeError as error:
        raise ValueError(f'device={name!r}: JAX has only {jax.devices()[0].platform} devices; use "auto".') from error


def check_particles(value: Any) -> int:
    """A number of particles, or the error that says why it is none."""
    count = _check.integer("particles", value, minimum=2)
    if count & (count - 1):
        lower = 1 << (count.bit_length() - 1)
        raise ValueError(f"particles={count} is not a power of two, as Sobol points need; use {lower} or {2 * lower}.")
    return count


def check_tolerance(value: Any) -> float:
    """A tolerance in its range, or the error that says why it is none."""
    tolerance = _check.positive("tolerance", value)
    if not TOLERANCES[0] <= tolerance <= TOLERANCES[1]:
        raise ValueError(f"tolerance={tolerance} must lie between {TOLERANCES[0]} and {TOLERANCES[1]}.")
    return tolerance


def warn_of_few_particles(run: Run, directions: int) -> None:
    """Where the particles of a run are too few for the directions that its matrices have met."""
    if run.particles is not None and 2 * directions > run.particles:
        warnings.warn(
            f"the weight matrices met {directions} directions with {run.particles} particles only: standard errors do "
            f"not hold the bias of so few. Use particles={1 << (4 * directions - 1).bit_length()} or more.",
            stacklevel=3,
        )


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
