"""Networks of finite width without weight matrices: samples of their law.

A Gaussian matrix that is sampled only where training looks at it (`dmft.engine.matrix`) makes, with N neurons and
pseudo-random normals, a network that has exactly the law of a trained network of width N: conditioning the weights on
their past images is no approximation.  Cost of a member: O(N (P T)^2) operations and O(N P T) memory a layer, P samples
and T steps, where training takes O(N^2 P T) and O(N^2): the way to widths of 10^4 to 10^6.

That is the law of one network.  Two runs of the same normals, at two learning rates, say, are not one network trained
twice: the directions to which normals answer differ.  With `whole` matrices, ordinary ones, they are, at the cost of
training.

Source: Bolthausen 2014 for the conditioning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dmft.drivers.machine import available_bytes
from dmft.drivers.numerics import DTYPES, TOLERANCES
from dmft.drivers.room import memory_estimate
from dmft.drivers.run import Run, of_passes
from dmft.engine import loop
from dmft.engine.bank import ExplicitBank
from dmft.engine.form import Form, Rule
from dmft.engine.matrix import Explicit
from dmft.engine.network import Network
from dmft.engine.normals import random_key
from dmft.engine.population import particles
from dmft.errors import MemoryEstimateError
from dmft.running import memory
from dmft.specs import Problem

COPIES = 3  # of the state of a member, that the compiled loop takes
CPU_BATCH = 64 * 2**20  # bytes sampled at once: beyond the caches a larger batch gains nothing
GPU_SHARE = 0.5  # of the free memory, the most for a batch


def sampled(
    problem: Problem,
    width: int,
    seeds: Sequence[int],
    root: int,
    *,
    steps: NDArray[np.int64],
    observables: Sequence[str],
    two_time: bool,
    device: jax.Device,
    memory_limit: int | None,
    whole: bool = False,
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Batches of networks, each with the position of its first member among `seeds`; with `whole` matrices, a member is
    the same network whatever it is trained on, and how.

    A batch holds the observables (member, ...) of the recorded steps by name, and `every_loss` (member, step).
    Wants `dmft.drivers.machine.precision`.

    Raises:
        MemoryEstimateError: if there is no room for one network.
    """
    run = Run(
        problem,
        steps,
        width,
        TOLERANCES[0],
        problem.network.centered,
        two_time=two_time,
        observables=of_passes(observables, two_time),
        in_law=True,
        alone=whole,
    )
    size, start = _batch_size(run, device, memory_limit, whole), 0
    size = -(-len(seeds) // -(-len(seeds) // size))  # of as many batches, all alike
    while start < len(seeds):
        indices = seeds[start : start + size]
        # always the same shape, compiled once; the copies at the end are dropped
        padded = np.resize(indices, size) if len(indices) < size else np.array(indices)
        try:
            keys = _keys(random_key(root), width, jnp.asarray(padded, jnp.uint32))
            found = {name: np.asarray(value)[: len(indices)] for name, value in _sample(run, keys, whole).items()}
        except jax.errors.JaxRuntimeError as error:
            reason, *_ = str(error).splitlines() or [""]
            if not reason.startswith("RESOURCE_EXHAUSTED"):
                raise
            if size == 1:
                raise MemoryEstimateError(f"one network of width {width} does not fit in memory: {reason}") from error
            size //= 2  # others may have taken what was free
            continue
        yield start, found
        start += len(indices)


@jax.jit
def _keys(root: jax.Array, width: int, indices: jax.Array) -> jax.Array:
    """One random key a member, whatever the batch."""
    key = jax.random.fold_in(root, width)
    return jax.vmap(partial(jax.random.fold_in, key))(indices)


def _capacity(run: Run, whole: bool) -> int:
    """Directions that are all of a network, or all that it can meet; a bank's are shared by many positions.  Of whole
    matrices nothing is revealed."""
    if whole:
        return 1
    banked = any(part.bank for part in run.form.sketch.matrices)
    return min(run.full_capacity, max(run.sizes(0)) + run.block) if banked else run.full_capacity


def _sample(run: Run, keys: jax.Array, whole: bool) -> dict[str, Any]:
    """Observables (member, ...) of the recorded steps, by name, and the losses of all steps."""
    found: dict[str, Any] = _sampled(
        keys,
        run.rule,
        sizes=tuple(run.sizes(0)),
        capacity=_capacity(run, whole),
        steps=tuple(run.steps.tolist()),
        form=run.form,
        two_time=run.two_time,
        whole=whole,
    )
    return found


@partial(jax.jit, static_argnames=("sizes", "capacity", "steps", "form", "two_time", "whole"))
def _sampled(
    keys: jax.Array,
    rule: Rule,
    *,
    sizes: tuple[int, ...],
    capacity: int,
    steps: tuple[int, ...],
    form: Form,
    two_time: bool,
    whole: bool,
) -> dict[str, jax.Array]:
    def member(key: jax.Array) -> dict[str, jax.Array]:
        crowd = []
        for i, (draws, size) in enumerate(zip(loop.draws_needed(rule, form, capacity), sizes, strict=True)):
            group = form.sketch.described[i].components
            shape = draws * group, size // group
            crowd.append(particles(jax.random.normal(jax.random.fold_in(key, i), shape), group))
        start = loop.limit_network(rule, form, crowd, TOLERANCES[0], capacity=capacity)
        if whole:
            start = _with_whole_matrices(start, rule, form, jax.random.fold_in(key, len(crowd)))
        room = loop.empty_history(start, rule, form, steps, two_time=two_time)
        end, history = loop.advance(start, room, rule, 0, max(steps) + 1, form=form)
        found = loop.recorded(end, history, rule, form)
        found["every_loss"] = history.vitals.loss
        found["prediction"] = history.vitals.prediction[jnp.asarray(steps)]
        return found

    return jax.vmap(member)(keys)


def _with_whole_matrices(start: Network, rule: Rule, form: Form, key: jax.Array) -> Network:
    """The network at initialisation with ordinary matrices in the place of those that are revealed."""
    matrices: list[Explicit | ExplicitBank] = []
    for i, (part, (source, target)) in enumerate(zip(form.sketch.matrices, form.sketch.ends, strict=True)):
        ends = start.populations[target].size, start.populations[source].size
        bank = (part.bank,) if part.bank else ()
        drawn = rule.start.weights[part.layer] * jax.random.normal(jax.random.fold_in(key, i), (*bank, *ends))
        matrices.append(ExplicitBank(drawn) if part.bank else Explicit(drawn))
    network: Network = replace(start, matrices=tuple(matrices))
    return replace(network, slots=tuple(jax.tree.map(jnp.zeros_like, network.parameters) for _ in range(form.slots)))


def _batch_size(run: Run, device: jax.Device, memory_limit: int | None, whole: bool) -> int:
    """How many members to sample at once.

    Raises:
        MemoryEstimateError: if there is no room for one.
    """
    needed = memory_estimate(run, _capacity(run, whole))[0]
    if whole:
        sizes = run.sizes(1)
        ends = zip(run.form.sketch.matrices, run.form.sketch.ends, strict=True)
        entries = sum(max(part.bank, 1) * sizes[source] * sizes[target] for part, (source, target) in ends)
        needed += (2 + run.form.slots) * entries * DTYPES[run.dtype]
    needed *= COPIES
    available = available_bytes(device)
    memory.require(
        needed,
        limit=memory_limit,
        available=available,
        what=f"one network of width {run.particles}",
        ways_out="lower the width, record fewer save_steps, or use fewer samples",
    )
    target = CPU_BATCH if device.platform == "cpu" else int(GPU_SHARE * available)
    return max(1, min(target, memory_limit or target) // needed)
