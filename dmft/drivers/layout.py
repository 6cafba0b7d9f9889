"""How the repetitions of a run are laid out: how many at once, on which devices, and what of their room is multiplied.

Repetitions go over devices first, and over the devices that are left go the particles of each: all of them where one
run does not fit on a device.  On a GPU as many repetitions as fit go side by side: a few samples are hundreds of small
operations a step, whose number does not depend on how many runs they are for.  A CPU has no use for that.

Where products are large, they leave out room for directions that is empty, and runs go one after the other on a device:
one of them fills it.  Where there are kernels of our own for that (`dmft.engine.kernels`), and a run is on one device,
these make them; else products with parts of the room are compiled, which takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmft.drivers.machine import available_bytes
from dmft.drivers.room import bytes_of, memory_estimate, numbers_bytes
from dmft.drivers.run import Drawn, Run
from dmft.engine import factors, kernels, loop
from dmft.engine.form import Form, Rule
from dmft.engine.network import Network
from dmft.engine.population import Population
from dmft.engine.together import PARTICLES, RUNS
from dmft.running.executables import kept

SIDE_BY_SIDE = ("gpu",)  # platforms of devices that take several runs at once
SHARE = 0.5  # of the free memory, the most that runs side by side may take
PARTLY_FROM = {"gpu": 5e13}  # operations of all runs with all room: a second or two
PARTLY_ELSEWHERE = 2e12
KERNELS_FROM = 3e12  # with kernels of our own, which are compiled once for all sizes


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

    def begun(self, run: Run, capacity: int, drawn: Drawn) -> tuple[Network, loop.History]:
        """Networks at initialisation, of what was `drawn` for each, and room for what is seen of them."""
        along = {run.particles * group for group in (1, *run.groups)} if run.particles else set()
        placed = partial(_specs, mesh=self.mesh, along=frozenset(along))
        populations = run.populations_of_each(capacity, drawn)
        if self.mesh is not None:
            populations = jax.tree.map(jax.device_put, populations, placed(populations))
        bare, used, histories = _begun(
            run.rule,
            populations,
            form=run.form,
            tolerance=run.tolerance,
            slots=run.slots,
            capacity=run.room(capacity),
            rows=run.kept_rows,
            two_time=run.two_time,
            mesh=self.mesh,
            along=frozenset(along),
        )
        spent = (replace(p, used=n) for p, n in zip(populations, used, strict=True))
        return replace(bare, populations=tuple(spent)), histories


def choose(run: Run, capacity: int, count: int, limit: int | None) -> Layout:
    """For `count` repetitions with room for `capacity` directions; `limit` on the memory of a device, in bytes."""
    if run.particles is None or run.curvature or run.kept is not None:
        return Layout()
    devices, platform = len(run.devices) or 1, run.device.platform
    needed, _ = memory_estimate(run, capacity, spread=1)
    most = min(available_bytes(run.device), limit or np.inf)
    if not run.device.memory_stats():  # of the host, which devices have in common
        most //= devices
    most -= numbers_bytes(run)
    shares = [n for n in range(1, devices + 1) if devices % n == 0 and devices // n <= count]
    share = next((n for n in shares if needed <= most * n), devices)  # of devices, for a run
    groups = devices // share
    operations = _operations(run, capacity) * count
    # of more vectors libraries multiply as fast, and were measured
    by_kernels = share == 1 and run.block <= factors.MOST and operations > KERNELS_FROM and kernels.known(run.device)
    partly = by_kernels or operations > PARTLY_FROM.get(platform, PARTLY_ELSEWHERE)
    side = max(1, int(SHARE * most * share // needed)) if platform in SIDE_BY_SIDE and not partly else 1
    rounds = -(-count // (groups * side))
    together = groups * -(-count // (groups * rounds))
    mesh = Mesh(np.array(run.devices).reshape(groups, share), (RUNS, PARTICLES)) if devices > 1 else None
    return Layout(together, mesh, partly, by_kernels)


def _operations(run: Run, capacity: int) -> float:
    """Of a run whose products are with all room."""
    assert run.particles is not None
    matrices = sum(part.count for part in run.form.sketch.matrices)
    return 36.0 * run.particles * run.block * capacity * matrices * (run.last + 1)


def _specs(state: Any, *, mesh: Mesh | None, along: frozenset[int]) -> Any:
    """Of arrays (run, ...): over RUNS, and over PARTICLES where their last axis is one of these."""

    def of(a: Any) -> Any:
        over_particles = a.ndim > 1 and a.shape[-1] in along
        axes = (RUNS, *[None] * (a.ndim - 2), PARTICLES) if over_particles else (RUNS,)
        assert mesh is not None
        return NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]

    return jax.tree.map(of, state)


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

    begun = jax.vmap(one)(populations)
    if mesh is None:
        return begun
    made: tuple[Network, list[jax.Array], loop.History]
    made = jax.tree.map(lax.with_sharding_constraint, begun, _specs(begun, mesh=mesh, along=along))
    return made


@jax.jit
def member(networks: Network, place: jax.Array | int) -> Network:
    """One of several runs."""
    found: Network = jax.tree.map(lambda a: jnp.asarray(a)[place], networks)
    return found
