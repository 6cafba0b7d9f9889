"""How the repetitions of a run are laid out: how many at once, on which devices, and what of their room is multiplied.

Repetitions go over devices first, and over the devices that are left go the particles of each: all of them where one
run does not fit on a device.  On a GPU as many repetitions as fit go side by side: a few samples are hundreds of small
operations a step, whose number does not depend on how many runs they are for.  A CPU has no use for that.

Where products are large, they leave out room for directions that is empty, and runs go one after the other on a device:
one of them fills it.  Where there are kernels of our own for that (`dmft.engine.tensor_units`), and a run is on one
device, these make them; else products with parts of the room are compiled, which takes longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmft.drivers.machine import available_bytes
from dmft.drivers.room import bytes_of, memory_estimate, numbers_bytes
from dmft.drivers.run import Run
from dmft.drivers.supply import Supply, child
from dmft.engine import factors, loop, tensor_units, trial
from dmft.engine.form import Form, Rule
from dmft.engine.network import Network
from dmft.engine.population import Population
from dmft.engine.scrambles import Scrambled, scrambled_of_each
from dmft.engine.together import PARTICLES, RUNS
from dmft.running.executables import kept

Tree = TypeVar("Tree")
SIDE_BY_SIDE = ("gpu",)  # platforms of devices that take several runs at once
SHARE = 0.5  # of the free memory, the most that runs side by side may take
# operations with all room from which on some is left out.  Of one run on devices that take several at once: many that
# are small go side by side
PARTLY_FROM = 2.5e13  # a second or so
KERNELS_FROM = 1.5e12  # with kernels of our own, which are compiled once for all sizes
PARTLY_ELSEWHERE = 2e12  # of all runs


@dataclass(frozen=True)
class Layout:
    """together: runs at once, on all devices; mesh: of these, with axes RUNS and PARTICLES, or None for a single one;
    partly: whether products leave out room for directions that is empty; by_kernels: of our own."""

    together: int = 1
    mesh: Mesh | None = None
    partly: bool = False
    by_kernels: bool = False

    @property
    def groups(self) -> int:
        """Of devices, which have runs of their own."""
        return 1 if self.mesh is None else self.mesh.shape[RUNS]

    @property
    def share(self) -> int | None:
        """Of devices, those over which the particles of a run are spread; None: all that the run names."""
        return None if self.mesh is None else self.mesh.shape[PARTICLES]

    @property
    def plain(self) -> bool:
        """Whether runs go one after the other, their products with all room, their particles over all devices."""
        return not self.partly and self.together == 1

    def memory_estimate(self, run: Run, capacity: int) -> tuple[int, int]:
        """Bytes on each device, of all runs that are there at once, and on the host besides."""
        on_device, on_host = memory_estimate(run, capacity, self.share)
        return on_device * (self.together // self.groups) + numbers_bytes(run), on_host

    def bytes_needed(self, run: Run, capacity: int) -> int:
        """Of the memory that `available_bytes` counts: of one GPU, or of the host."""
        return bytes_of(run, *self.memory_estimate(run, capacity))

    def everywhere(self, rule: Rule) -> Rule:
        """On every device, to which each call of compiled code would have to bring it."""
        if self.mesh is None:
            return rule
        placed: Rule = jax.device_put(rule, NamedSharding(self.mesh, PartitionSpec()))  # type: ignore[no-untyped-call]
        return placed

    def begun(
        self, run: Run, rule: Rule, capacity: int, streams: Sequence[np.random.SeedSequence]
    ) -> tuple[Network, loop.History]:
        """Networks at initialisation, one for each of the streams, and room for what is seen of them; of the run's
        `rule`, which is `everywhere`."""
        supplies = run.supplies(capacity)
        along = frozenset(supply.size * group for supply in supplies for group in (1, supply.group))
        placed = {"mesh": self.mesh, "along": along}
        full = tuple(supply.full for supply in supplies)
        populations = _populations(self._drawn(run, supplies, streams), supplies=full, **placed)
        bare, used, histories = _begun(
            rule,
            populations,
            run.slots,
            form=run.form,
            tolerance=run.tolerance,
            capacity=run.room(capacity),
            rows=run.kept_rows,
            two_time=run.two_time,
            **placed,
        )
        spent = (replace(p, used=n) for p, n in zip(populations, used, strict=True))
        return replace(bare, populations=tuple(spent)), histories

    def _drawn(self, run: Run, supplies: list[Supply], streams: Sequence[np.random.SeedSequence]) -> list[Scrambled]:
        """Of every population the scrambles of all streams."""
        runs = PartitionSpec(RUNS)  # type: ignore[no-untyped-call]
        return scrambled_of_each(
            [one.rows for one in supplies],
            supplies[0].size,
            [[child(stream, i) for stream in streams] for i in range(len(supplies))],
            [one.room for one in supplies],
            on_gpu=run.device.platform == "gpu",
            placed=None if self.mesh is None else NamedSharding(self.mesh, runs),
        )


def choose(run: Run, capacity: int, count: int, limit: int | None) -> Layout:
    """For `count` repetitions with room for `capacity` directions; `limit` on the memory of a device, in bytes."""
    if run.particles is None or run.curvature or run.kept is not None:
        return Layout()
    devices, platform = len(run.where), run.device.platform
    needed, _ = memory_estimate(run, capacity, spread=1)
    most = min(*map(available_bytes, run.where), limit or np.inf)
    if not run.device.memory_stats():  # of the host, which devices have in common
        most //= devices
    most -= numbers_bytes(run)
    shares = [n for n in range(1, devices + 1) if devices % n == 0 and devices // n <= count]
    share = next((n for n in shares if needed <= most * n), devices)  # of devices, for a run
    groups = devices // share
    of_run, several = (run.last + 1) * run.operations(capacity), platform in SIDE_BY_SIDE
    by_kernels = share == 1 and of_run > KERNELS_FROM and _have_kernels(run, capacity)
    partly = by_kernels or (of_run > PARTLY_FROM if several else count * of_run > PARTLY_ELSEWHERE)
    side = max(1, int(SHARE * most * share // needed)) if several and not partly else 1
    rounds = -(-count // (groups * side))
    together = groups * -(-count // (groups * rounds))
    mesh = Mesh(np.array(run.devices).reshape(groups, share), (RUNS, PARTICLES)) if devices > 1 else None
    return Layout(together, mesh, partly, by_kernels)


def _have_kernels(run: Run, capacity: int) -> bool:
    """Whether kernels take the arrays of a run, on all of its devices."""
    # of more vectors libraries multiply as fast, and were measured
    room, fits = run.room(capacity), run.block <= factors.MOST
    fits = fits and all(tensor_units.take(run.dtype, room, size) for size in run.sizes(capacity))
    return fits and all(trial.passed(device) for device in run.where)


@kept(static=("supplies", "mesh", "along"))
def _populations(
    scrambles: list[Scrambled], *, supplies: tuple[Supply, ...], mesh: Mesh | None, along: frozenset[int]
) -> list[Population]:
    """Compiled apart from what they are used for, as those of a run that is alone: the same to the last bit."""
    made = [jax.vmap(supply.of)(scramble) for supply, scramble in zip(supplies, scrambles, strict=True)]
    return _spread(made, mesh, along)


@kept(static=("form", "tolerance", "capacity", "rows", "two_time", "mesh", "along"))
def _begun(
    rule: Rule,
    populations: list[Population],
    slots: jax.Array,
    *,
    form: Form,
    tolerance: float,
    capacity: int,
    rows: int,
    two_time: bool,
    mesh: Mesh | None,
    along: frozenset[int],
) -> tuple[Network, list[jax.Array], loop.History]:
    """Networks at initialisation, without their populations, the raw normals that these have spent, and histories."""

    def one(populations: list[Population]) -> tuple[Network, list[jax.Array], loop.History]:
        network = loop.limit_network(rule, form, populations, tolerance, capacity=capacity)
        history = loop.room_for(network, rule, form, slots, rows=rows, two_time=two_time)
        return replace(network, populations=()), [p.used for p in network.populations], history

    return _spread(jax.vmap(one)(populations), mesh, along)


def _spread(state: Tree, mesh: Mesh | None, along: frozenset[int]) -> Tree:
    """Arrays (run, ...): over RUNS, and over PARTICLES where their last axis is one of these."""

    def spread(a: jax.Array) -> jax.Array:
        over_particles = a.ndim > 1 and a.shape[-1] in along
        axes = (RUNS, *[None] * (a.ndim - 2), PARTICLES) if over_particles else (RUNS,)
        assert mesh is not None
        placed = NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]
        made: jax.Array = lax.with_sharding_constraint(a, placed)  # type: ignore[no-untyped-call]
        return made

    everywhere: Tree = state if mesh is None else jax.tree.map(spread, state)
    return everywhere


def member(networks: Network, place: int) -> Network:
    """Populations of one of several runs, their averages and draws; all that has an axis of particles stays as it is,
    with an axis of runs, since a copy would take as much memory as a run."""
    found = _at([(p.used, p.measure) for p in networks.populations], place)
    populations = zip(networks.populations, found, strict=True)
    return replace(networks, populations=tuple(replace(p, used=n, measure=m) for p, (n, m) in populations))


@jax.jit
def _at(arrays: Tree, place: jax.Array | int) -> Tree:
    """Of arrays (run, ...)."""
    found: Tree = jax.tree.map(lambda a: a[place], arrays)
    return found
