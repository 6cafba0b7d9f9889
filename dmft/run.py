"""Runs of the causal engine (`dmft.engine`) for a Problem: what `solve` and `fluctuations` share.

A run is one training of the populations from initialisation to the last step that is asked for.  Populations are S
particles, whose raw normals are one scramble of the Sobol points, or, for networks without nonlinearity, linear forms,
which are exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from dmft import compiling, host, memory, schema
from dmft.checkpoint import Checkpoint
from dmft.engine import curvature, loop
from dmft.engine.network import Form, Network, Rule, Vitals, most_vectors, probe_block
from dmft.engine.normals import DIMENSIONS, Sobol, Stored, blank, sobol, stored
from dmft.engine.population import Population, linear_forms, particles
from dmft.errors import DivergenceError, exploded
from dmft.progress import Bar
from dmft.specs import Problem, _check

CALLS = 20  # of the compiled loop a run: progress and checks in between
GPU_WORKSPACE = 2**26  # bytes that matrix products take for themselves
STORED_NORMALS = 2**28  # bytes of raw normals of a population that are kept; more are made whenever they are asked for
TOLERANCES = (1e-7, 3e-2)  # below, rounding decides; above, kernels are off by more than particles make up for
DTYPES = {"float64": 8, "float32": 4}


class Trained(NamedTuple):
    """A run: the capacity that sufficed, its seeds, the state at its end, what was seen; sharpness (saved step,), where
    it is recorded."""

    capacity: int
    stream: np.random.SeedSequence
    network: Network
    history: loop.History
    sharpness: jax.Array | None

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
    kernels: which are recorded.
    devices: over which the particles are spread.
    keep_normals: hold all raw normals, however many.
    sharpness: whether it is recorded.
    joint: whether observables of several steps are wanted together (of streams, `dmft.engine.network.Form`).
    doubled: half of the particles stand for the other half too: a run with S/2 in the compiled code of one with S.
    smoothed: whether kinks of the activation are rounded (`dmft.engine.smoothing`).
    """

    problem: Problem
    steps: NDArray[np.int64]
    particles: int | None
    tolerance: float
    centered: bool
    two_time: bool = False
    kernels: tuple[str, ...] = loop.KERNELS
    dtype: str = "float64"
    devices: tuple[jax.Device, ...] = ()
    keep_normals: bool = False
    sharpness: bool = False
    joint: bool = True
    doubled: bool = False
    smoothed: bool = False

    @property
    def last(self) -> int:
        """The last step that is computed."""
        return int(self.steps[-1])

    @property
    def depth(self) -> int:
        return self.form.sketch.depth

    @cached_property
    def form(self) -> Form:
        form = loop.form_of(self.problem, self.kernels, joint=self.joint)
        return replace(form, smoothed=self.smoothed)

    @cached_property
    def rule(self) -> Rule:
        rule = loop.rule_of(self.problem)
        looked = jnp.zeros(len(rule.looked), bool).at[jnp.asarray(self.steps)].set(True)
        return rule._replace(centered=jnp.asarray(float(self.centered)), looked=looked)

    @property
    def block(self) -> int:
        """The most vectors that a matrix meets at once in training."""
        rows = self.rule.rows.shape[1]
        outputs = self.rule.targets.shape[1] if self.form.per_output else 1
        return most_vectors(self.form, rows, (rows if self.form.every_row else self.form.trained) * outputs)

    @property
    def probe_block(self) -> int:
        """The most that it meets at once of the probes of a stream."""
        return probe_block(self.rule, self.form)

    @property
    def look_room(self) -> int:
        """Directions that a look at the probes leaves in a matrix."""
        return self.probe_block if self.form.joint else 0

    @property
    def step_room(self) -> int:
        """The room that a step needs in a matrix."""
        return self.block * self.form.passes * self.form.sketch.uses + self.look_room

    @property
    def full_capacity(self) -> int:
        """Directions that a matrix can meet at most: every vector of every step."""
        each = self.block * self.form.passes * self.form.sketch.uses
        return each * (self.last + 1) + self.look_room * len(self.steps)

    @property
    def first_capacity(self) -> int:
        """A first guess of the directions needed; doubled where it does not suffice."""
        most = max(self.block, self.look_room)
        if not self.banks or self.particles is None:
            return min(self.full_capacity, max(128, 16 * most))
        # positions of an image are alike, the more so the more there are; beyond half the particles there is a warning
        guess = min((6 if most <= 256 else 4) * most, self.particles // 2 + self.step_room)
        return min(self.full_capacity, max(128, guess))

    @property
    def banks(self) -> int:
        """Matrices of the largest bank."""
        return max((part.bank for part in self.form.sketch.matrices), default=0)

    def draws(self, capacity: int) -> list[int]:
        """Raw normals for each population; those that probes take from a copy are besides what training uses."""
        copied = self.probe_block - self.look_room
        return loop.draws_needed(self.rule, self.form, capacity + copied)

    def sizes(self, capacity: int) -> list[int]:
        """Components of the vectors of each population."""
        draws = self.draws(capacity)
        return draws if self.particles is None else [self.particles] * len(draws)

    def network(self, capacity: int, stream: np.random.SeedSequence, room: int | None = None) -> Network:
        """At initialisation; the same for the same capacity and stream, with less `room` in its matrices if asked."""
        populations = self._populations(capacity, stream)
        placed: Network = self.spread(self._initial(populations, room or capacity))
        return placed

    def _initial(self, populations: list[Population], capacity: int) -> Network:
        begun, used = _begun(self.rule, populations, form=self.form, tolerance=self.tolerance, capacity=capacity)
        spent = (replace(p, used=n) for p, n in zip(populations, used, strict=True))
        network: Network = replace(begun, populations=tuple(spent))
        return network

    def begun(self, capacity: int, stream: np.random.SeedSequence) -> tuple[Network, loop.History]:
        """A network at initialisation, and room for what is seen of it."""
        network = self.network(capacity, stream)
        return network, self.spread(self._empty_history(network))

    def _empty_history(self, network: Network) -> loop.History:
        found: loop.History = _empty_history(
            network, self.rule, form=self.form, saved=tuple(self.steps.tolist()), two_time=self.two_time
        )
        return found

    def _populations(self, capacity: int, stream: np.random.SeedSequence) -> list[Population]:
        draws = self.draws(capacity)
        if self.particles is None:
            return [linear_forms(n) for n in draws]
        # children are named, not spawned: a second attempt must find the same seeds
        seeds = [np.random.SeedSequence(stream.entropy, spawn_key=(*stream.spawn_key, i)) for i in range(len(draws))]
        sources = [sobol(n, self.particles, s) for n, s in zip(draws, seeds, strict=True)]
        return [self._population(source, n) for source, n in zip(sources, draws, strict=True)]

    def _blank_populations(self, capacity: int) -> list[Population]:
        """In the shapes of `_populations`; for `jax.eval_shape`, which needs no more."""
        draws, size = self.draws(capacity), self.particles
        if size is None:
            return [linear_forms(n) for n in draws]
        if self.keep_normals:  # however many, which no Sobol sequence has
            return [particles(jnp.zeros((n, size))) for n in draws]
        return [self._population(blank(n, size), n) for n in draws]

    def _population(self, source: Sobol, draws: int) -> Population:
        if self.doubled:
            source = source.doubled()
        return particles(self._kept(source) if self._stored(draws) else source)

    def _kept(self, source: Sobol) -> Stored:
        """All its rows; where the curvature of the loss asks for more, with those of its tail."""
        return Stored(stored(source), source.key if self.sharpness else None)

    def _stored(self, draws: int) -> bool:
        """Whether the raw normals of a population are kept."""
        if self.particles is None or self.keep_normals:
            return True
        return draws <= DIMENSIONS and draws * self.particles * DTYPES[self.dtype] <= STORED_NORMALS

    def spread(self, state: Any) -> Any:
        """The arrays over particles spread over the devices, all others on each of them."""
        if not self.devices:
            return state
        mesh = Mesh(np.array(self.devices), ("particles",))

        def place(a: Any) -> Any:
            over_particles = a.ndim > 0 and a.shape[-1] == self.particles
            axes = (*[None] * (a.ndim - 1), "particles") if over_particles else ()
            sharding = NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]
            return jax.device_put(a, sharding)

        return jax.tree.map(place, state)

    def repetitions(
        self,
        seed: int,
        count: int,
        bar: Bar,
        checkpoint: Checkpoint,
        *,
        memory_limit: int | None,
        look: Callable[[Network, int], None] | None = None,
    ) -> Iterator[Trained]:
        """Independent runs, one for each scramble; those that `checkpoint` has are left out.  A run whose capacity
        turns out too small is repeated with twice as much, with which the others begin.

        `look` is shown the network before each recorded step, which is its to read, not to keep; once more in a run
        that is repeated.  Memory is for one run: delete what was yielded before the next is asked for.

        Raises:
            DivergenceError, MemoryEstimateError.
        """
        capacity = checkpoint.capacity or self.first_capacity
        self.require_memory(capacity, memory_limit, bar)
        done = checkpoint.moments.count
        bar.update(done * (self.last + 1))
        for stream in np.random.SeedSequence(seed).spawn(count)[done:]:
            while (trained := self._train(capacity, stream, bar, checkpoint, look)) is None:
                capacity = min(2 * capacity, self.full_capacity)
                self.require_memory(capacity, memory_limit, bar)
            yield Trained(capacity, stream, *trained)
            del trained

    def _train(
        self,
        capacity: int,
        stream: np.random.SeedSequence,
        bar: Bar,
        checkpoint: Checkpoint,
        look: Callable[[Network, int], None] | None,
    ) -> tuple[Network, loop.History, jax.Array | None] | None:
        """From initialisation to the last step; None if `capacity` directions do not suffice."""
        network, history = self.begun(capacity, stream)
        sharpness = jnp.zeros(len(self.steps)) if self.sharpness else None
        begin = network, history, sharpness
        (network, history, sharpness), first = checkpoint.resumed(begin, capacity)
        stride, begun = -(-(self.last + 1) // CALLS), bar.n
        bar.update(first)
        pauses = {*range(first, self.last + 1, stride), self.last + 1}
        looked_at = look is not None or sharpness is not None
        looks = {t for t in self.steps.tolist() if t >= first} if looked_at else set()
        for start, stop in pairwise(sorted(pauses | looks)):
            if look is not None and start in looks:
                look(network, start)
            if sharpness is not None and start in looks:
                found = curvature.sharpness(network, self.rule, start, form=self.form)
                if not np.isfinite(found):
                    raise DivergenceError(
                        f"the sharpness at step {start} is not finite; raise particles={self.particles}, or leave it "
                        "out of the observables."
                    )
                sharpness = sharpness.at[self.steps.tolist().index(start)].set(found)
            network, history = loop.advance(network, history, self.rule, start, stop, form=self.form)
            ranks = np.asarray(history.vitals.ranks)
            # with room for all that the last step may add to what the one before it left, every call had its room
            if capacity < self.full_capacity and ranks[max(stop - 2, 0)].max(initial=0) + self.step_room > capacity:
                bar.update(begun - bar.n)
                return None
            _raise_if_diverged(self.problem, history.vitals, stop)
            bar.update(stop - start)
            if stop <= self.last:
                checkpoint.reached((network, history, sharpness), capacity, stop)
        return network, history, sharpness

    def memory_estimate(self, capacity: int) -> tuple[int, int]:
        """Bytes on each device for one run (state, and blocks (vector, component) of a step), and on the host besides
        (results of one run and their moments)."""
        rows, itemsize = len(self.steps), DTYPES[self.dtype]
        sizes = self.sizes(capacity)

        def state() -> Any:
            network = self._initial(self._blank_populations(capacity), capacity)
            copied = None if self.form.joint else network.with_room(self.probe_block).matrices
            return network, self._empty_history(network), copied

        kept = int(sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(state))))
        at_once = max(self.block, self.probe_block)
        blocks = (8 * self.depth + 16) * at_once * max(sizes) * itemsize
        # raw normals that are not kept are made when they are asked for
        blocks += sum(not self._stored(n) for n in self.draws(capacity)) * at_once * max(sizes) * itemsize
        # of a bank: normals and images; coordinates and responses; what C is moved by
        each = 4 * at_once * max(sizes) + 4 * at_once * capacity + 2 * capacity**2
        blocks += self.banks * each * itemsize
        samples = self.form.probes or self.rule.rows.shape[1]
        outputs = self.rule.targets.shape[1]
        per_step = {"feature_kernel": self.depth, "gradient_kernel": self.depth * outputs**2, "ntk": outputs**2}
        results = sum(per_step[name] for name in self.kernels) * rows * samples**2 * 8
        if self.two_time:
            results += 2 * self.depth * (rows * samples * outputs) ** 2 * 8
        if self.sharpness:
            blocks += curvature.bytes_needed(self.rule, self.form, self.depth, capacity, max(sizes), itemsize)
        return (kept + blocks) // max(len(self.devices), 1) + results, 4 * results

    def require_memory(self, capacity: int, limit: int | None, bar: Bar | None = None) -> None:
        """Show the estimate beside the bar; MemoryEstimateError if a run does not fit."""
        needed = self.bytes_needed(capacity)
        neurons = "exact linear forms" if self.particles is None else f"{self.particles} particles"
        memory.require(
            needed,
            limit=limit,
            available=available_bytes(self.device),
            what=f"the limit with {neurons} and {capacity} directions",
            ways_out=("" if self.particles is None else "lower particles, raise tolerance, ")
            + "record fewer save_steps, or use fewer samples"
            + (", or two_time=False" if self.two_time else ""),
        )
        if bar is not None:
            bar.set_postfix_str(f"about {memory.readable(needed)} of memory")

    @property
    def device(self) -> jax.Device:
        """The first of the devices."""
        return self.devices[0] if self.devices else jax.devices()[0]

    def bytes_needed(self, capacity: int) -> int:
        """By a run, of the memory that `available_bytes` counts: of one GPU, or of the host."""
        on_device, on_host = self.memory_estimate(capacity)
        if self.device.memory_stats():
            return on_device + GPU_WORKSPACE
        return on_device * max(len(self.devices), 1) + on_host


@partial(jax.jit, static_argnames=("form", "tolerance", "capacity"))
def _begun(
    rule: Rule, populations: list[Population], *, form: Form, tolerance: float, capacity: int
) -> tuple[Network, list[jax.Array]]:
    """A network at initialisation, without its populations, and the raw normals that each of them has spent: compiled
    as a whole, since compiling some forty operations one by one takes seconds."""
    network = loop.limit_network(rule, form, populations, tolerance, capacity=capacity)
    return replace(network, populations=()), [p.used for p in network.populations]


# compiled as a whole, as above
_empty_history = jax.jit(loop.empty_history, static_argnames=("form", "saved", "two_time"))


@contextmanager
def precision(dtype: str, device: jax.Device) -> Iterator[None]:
    """JAX with numbers of `dtype`, their products in full precision, on a device, whatever the host program has set;
    what is compiled is kept for the next process."""
    with (
        compiling.cached(),
        host.usual_jax(),
        jax.enable_x64(dtype == "float64"),
        jax.default_matmul_precision("highest"),
        jax.default_device(device),
    ):
        yield


def available_bytes(device: jax.Device) -> int:
    """Free memory of a GPU, or of the machine."""
    stats = device.memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else memory.available_on_host()


def find_devices(name: str, count: int = 1) -> tuple[jax.Device, ...]:
    """`count` JAX devices of the kind called "auto", "cpu", "gpu" or, as PyTorch has it, "cuda".

    Raises:
        ValueError, TypeError: another name, no such device, or fewer.
    """
    if name not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f'device={name!r} is unknown; use "auto", "cpu" or "gpu".')
    count = _check.integer("devices", count, minimum=1)
    present = _default_devices()
    try:
        found = present if name == "auto" else jax.devices(name)
    except RuntimeError as error:
        raise ValueError(f'device={name!r}: JAX has only {present[0].platform} devices; use "auto".') from error
    if count > len(found):
        raise ValueError(
            f"devices={count}, but JAX has {len(found)} of kind {found[0].platform}; use devices={len(found)} or fewer."
        )
    return tuple(found[:count])


def _default_devices() -> list[jax.Device]:
    """Those that JAX takes by itself.

    Raises:
        ValueError: it finds none, as where JAX_PLATFORMS names what is not there.
    """
    try:
        return jax.devices()
    except RuntimeError as error:
        platforms = getattr(jax.config, "jax_platforms", None)
        reason = str(error).splitlines()[0].rstrip(".")
        if platforms is None:
            raise ValueError(f"JAX finds no device to compute on: {reason}.") from error
        raise ValueError(
            f"JAX_PLATFORMS={platforms} asks JAX for a device that it does not find ({reason}); unset it, or set "
            "JAX_PLATFORMS=cpu."
        ) from error


def recorded_kernels(observables: Collection[str], two_time: bool) -> tuple[str, ...]:
    """The kernels that the engine records: those that are asked for, and the two of two-time results."""
    wanted = {*observables} | ({"feature_kernel", "gradient_kernel"} if two_time else set())
    return tuple(name for name in loop.KERNELS if name in wanted)


class Numerics(NamedTuple):
    """What every driver is asked for its particles, checked."""

    particles: int
    scrambles: int
    seed: int
    tolerance: float
    memory_limit: int | None


def check_numerics(particles: Any, scrambles: Any, seed: Any, tolerance: Any, memory_limit: Any) -> Numerics:
    """The arguments of a driver, or the error that says what is wrong with the first that is."""
    return Numerics(
        check_particles(particles),
        _check.integer("scrambles", scrambles, minimum=2),
        _check.integer("seed", seed, minimum=0),
        check_tolerance(tolerance),
        None if memory_limit is None else _check.integer("memory_limit", memory_limit, minimum=1),
    )


def check_particles(value: Any) -> int:
    """A number of particles, or the error that says why it is none."""
    count = _check.integer("particles", value, minimum=2)
    if count & (count - 1):
        lower = 1 << (count.bit_length() - 1)
        raise ValueError(f"particles={count} is not a power of two, as Sobol points need; use {lower} or {2 * lower}.")
    return count


def check_tolerance(value: Any, name: str = "tolerance") -> float:
    """A tolerance in its range, or the error that says why it is none."""
    tolerance = _check.positive(name, value)
    if not TOLERANCES[0] <= tolerance <= TOLERANCES[1]:
        raise ValueError(f"{name}={tolerance} must lie between {TOLERANCES[0]} and {TOLERANCES[1]}.")
    return tolerance


def few_particles(run: Run, directions: int) -> bool:
    """Whether the particles of a run are too few for the directions that its matrices have met."""
    return run.particles is not None and 2 * directions > run.particles


def warn_of_few_particles(run: Run, directions: int, besides: str = "") -> None:
    """Where they are; `besides` is a sentence on what follows."""
    if few_particles(run, directions):
        warnings.warn(
            f"the weight matrices met {directions} directions with {run.particles} particles only: standard errors do "
            f"not hold the bias of so few. {besides + ' ' if besides else ''}"
            f"Use particles={1 << (4 * directions - 1).bit_length()} or more.",
            stacklevel=5,
        )


def observed_loss(problem: Problem, prediction: Any) -> NDArray[np.float64]:
    """(..., step): the training loss, or the test loss where training samples are not observed."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is looked for
        losses = schema.losses(problem, np.asarray(prediction, np.float64))
    found: NDArray[np.float64] = losses["loss" if "loss" in losses else "test_loss"]
    return found


def _raise_if_diverged(problem: Problem, seen: Vitals, stop: int) -> None:
    """Name the first step below `stop` whose loss exploded or whose numbers are not finite, and the layer."""
    loss = np.asarray(seen.loss, np.float64)[:stop]
    sizes = np.asarray(seen.sizes)[:stop].max(axis=1)  # (step, layer): the larger of <h^2> and <g^2>
    bad = exploded(loss, loss[0]) | ~np.isfinite(sizes).all(axis=1)
    if bad.any():
        step = int(np.argmax(bad))
        growth = np.where(np.isfinite(sizes[step]), sizes[step] / np.maximum(sizes[0], 1e-300), np.inf)
        layer = int(np.argmax(growth)) + 1
        raise DivergenceError(
            f"the limit diverges at step {step}: loss {loss[step]:.3g} (initially {loss[0]:.3g}), fields of layer "
            f"{layer} grown {growth[layer - 1]:.3g} times. Lower {problem.training.largest_step}, or "
            f"gamma0={problem.network.gamma0}. {problem.task.unusual_size}".rstrip()
        )
