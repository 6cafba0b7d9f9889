"""The memory that a run takes, known before it begins."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax

from dmft.drivers.machine import available_bytes
from dmft.drivers.numerics import DTYPES
from dmft.drivers.run import Run
from dmft.engine import curvature, entrywise, loop, preconditioned, shown
from dmft.engine.form import Form, Rule
from dmft.engine.network import Network
from dmft.engine.population import Population
from dmft.running import memory
from dmft.running.progress import Bar

GPU_WORKSPACE = 2**26  # bytes that matrix products take for themselves


def memory_estimate(run: Run, capacity: int, spread: int | None = None) -> tuple[int, int]:
    """Bytes on each device for one run (state, and blocks (vector, component) of a step) whose particles are `spread`
    over so many, all by default; and on the host besides (results of one run and their moments)."""
    rows, itemsize = len(run.steps), DTYPES[run.dtype]
    sizes, normals = run.sizes(capacity), run.rows(capacity)

    at_once = max(run.block, run.probe_block)
    blocks = (8 * run.depth + 16) * at_once * max(sizes) * itemsize
    # raw normals that are not kept are made when they are asked for
    blocks += sum(not run.keeps(n) for n in normals) * at_once * max(sizes) * itemsize
    # of a bank: normals and images; coordinates and responses; what C is moved by
    each = 4 * at_once * max(sizes) + 4 * at_once * capacity + 2 * capacity**2
    blocks += run.banks * each * itemsize
    entries = max((max(part.bank, 1) for part in run.form.sketch.matrices), default=0) * max(sizes) ** 2
    if run.form.entry_matrices:  # gradients of some of them, where few products do not make them in place
        blocks += min(entries, entrywise.BLOCK) * 8
    if any(one.preconditioned for one in run.observables):  # gradients of a sample, and what is made of them
        blocks += 4 * entries * itemsize
    # of attention: scores, what softmax keeps of them, and their cotangents
    blocks += 6 * at_once * run.form.sketch.pairs(sizes) * itemsize
    known = shown.sizes(run.rule, run.form) | {"step": rows}
    held = [*run.observables, *(one.between_steps() for one in run.observables if run.two_time and one.fields)]
    results = 8 * sum(math.prod(one.shape(known, outputs=True, step=True)) for one in held)
    if run.curvature:
        blocks += curvature.bytes_needed(run.rule, run.form, capacity, max(sizes), itemsize)
        blocks += any(run.curvature) * preconditioned.bytes_needed(run.form, max(sizes), itemsize)
    return (state_bytes(run, capacity) + blocks) // (spread or max(len(run.devices), 1)) + results, 4 * results


def state_bytes(run: Run, capacity: int) -> int:
    """Of a network, of all that is seen of it, and of the copy that meets probes; counted once."""
    if capacity not in run.counted:
        shapes = _state.eval_shape(  # type: ignore[no-untyped-call]
            run.rule,
            run.blank_populations(capacity),
            run.slots,
            form=run.form,
            tolerance=run.tolerance,
            capacity=run.room(capacity),
            rows=run.kept_rows,
            two_time=run.two_time,
            probed=None if run.form.joint or run.form.peeks else run.probe_block,
        )
        run.counted[capacity] = int(sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes)))
    return run.counted[capacity]


@partial(jax.jit, static_argnames=("form", "tolerance", "capacity", "rows", "two_time", "probed"))
def _state(
    rule: Rule,
    populations: list[Population],
    slots: jax.Array,
    *,
    form: Form,
    tolerance: float,
    capacity: int,
    rows: int,
    two_time: bool,
    probed: int | None,
) -> tuple[Network, loop.History, Any]:
    """What is there at the beginning; asked for its shapes alone, which are traced once."""
    network = loop.limit_network(rule, form, populations, tolerance, capacity=capacity)
    copied = None if probed is None else network.with_room(probed).matrices
    return network, loop.room_for(network, rule, form, slots, rows=rows, two_time=two_time), copied


def numbers_bytes(run: Run) -> int:
    """On each device, of what all its runs have in common: samples, and the batches and rates of all steps.  A
    stream that forgets has its first samples beside those that it computes with, and those that arrive."""
    arriving = 0 if run.kept is None else 2 * int(run.rule.inputs.nbytes)
    return arriving + sum(int(a.nbytes) for a in jax.tree.leaves(run.rule))


def require_memory(run: Run, capacity: int, limit: int | None, bar: Bar | None = None) -> None:
    """Show the estimate beside the bar; MemoryEstimateError if a run does not fit on the device that has least left."""
    needed = bytes_needed(run, capacity)
    neurons = "exact linear forms" if run.particles is None else f"{run.particles} particles"
    memory.require(
        needed,
        limit=limit,
        available=min(map(available_bytes, run.where)),
        what=f"the limit with {neurons} and {capacity} directions",
        ways_out=("" if run.particles is None else "lower particles, raise tolerance, ")
        + "record fewer save_steps, or use fewer samples"
        + (", or two_time=False" if run.two_time else ""),
    )
    if bar is not None:
        bar.set_postfix_str(f"about {memory.readable(needed)} of memory")


def bytes_needed(run: Run, capacity: int) -> int:
    """By a run, of the memory that `available_bytes` counts: of one GPU, or of the host."""
    on_device, on_host = memory_estimate(run, capacity)
    return bytes_of(run, on_device + numbers_bytes(run), on_host)


def bytes_of(run: Run, on_device: int, on_host: int) -> int:
    """What an estimate comes to, of the memory that `available_bytes` counts."""
    if run.device.memory_stats():
        return on_device + GPU_WORKSPACE
    return on_device * max(len(run.devices), 1) + on_host
