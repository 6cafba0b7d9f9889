"""`sample_in_law`: networks of finite width without weight matrices.

A Gaussian matrix that is sampled only where training looks at it (`dmft.engine.matrix`) makes, with N neurons and
pseudo-random normals, a network that has exactly the law of a trained network of width N: conditioning the weights on
their past images is no approximation.  Cost of a member: O(N (P T)^2) operations and O(N P T) memory a layer, P samples
and T steps, where training takes O(N^2 P T) and O(N^2): the way to widths of 10^4 to 10^6.

This is the one engine of the theory with N particles; JAX is loaded when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.run import (
    TOLERANCES,
    Run,
    available_bytes,
    find_devices,
    precision,
    recorded_kernels,
)
from dmft.engine import loop
from dmft.engine.network import Form, Rule, layers
from dmft.engine.normals import random_key
from dmft.engine.population import particles
from dmft.errors import exploded
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from dmft.specs import Problem, _check
from finite_nets.ensembles.budget import CPU_BATCH, GPU_SHARE
from finite_nets.ensembles.collection import Collection, check_members
from finite_nets.ensembles.recording import Plan

COPIES = 3  # of the state of a member, that the compiled loop takes


@usual_errors
def sample_in_law(
    problem: Problem,
    *,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    seed: int = 0,
    device: str = "auto",
    observables: Sequence[str] | None = None,
    two_time: bool = False,
    save_steps: Iterable[int] | None = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Networks of the given widths on `problem`, equal in law to trained ones.

    Args:
        problem: network, task, training.
        widths: N, different whole numbers; worth it where N is above P (T+1), samples times steps.
        seeds: how many members a width, or the seed indices themselves.
        seed: the root seed; a member depends on it, its width and its seed index only (of a stream of data on
            `save_steps`, too: its matrices reveal themselves to the probes at recorded steps).
        device: "cpu" or "gpu"; "auto" takes a GPU if JAX has one.
        observables: what to record, among prediction, loss (with test_loss), feature_kernel, gradient_kernel, ntk.
        two_time: add `feature_kernel_two_time` and `gradient_kernel_two_time`, between all saved steps.
        save_steps: the steps to record; all of 0..T by default.  Training ends with the last of them.
        memory_limit: in bytes, for the results and a batch; by default what is available.
        progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "ensemble" (`dmft.schema`) with leading dimensions width and seed, as from `train_ensemble`, in
        float64.

    Raises:
        DivergenceError: all networks of a width diverge; where some do, they are masked, counted and warned of.
        MemoryEstimateError: when results or a single network do not fit, with the numbers.
        ValueError, TypeError: arguments out of range.

    Source: Bolthausen 2014 for the conditioning.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"sample_in_law expects a dmft.Problem, got {type(problem).__name__}.")
    members = check_members(widths, seeds, seed, problem)
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    names = schema.observables(observables, problem)
    plan = Plan(problem, schema.saved_steps(problem, save_steps), frozenset(names), two_time)
    (where,) = find_devices("gpu" if device == "cuda" else device)
    kernels = recorded_kernels(names, two_time)
    collection = Collection(plan, members, "float64", memory_limit)
    with (
        precision("float64", where),
        progress_bar(len(members.widths) * len(members.seeds), "networks", "net", progress) as bar,
    ):
        for width in members.widths:
            run = Run(
                problem,
                plan.steps,
                width,
                TOLERANCES[0],
                problem.network.centered,
                two_time=two_time,
                kernels=kernels,
                in_law=True,
            )
            size = min(_batch_size(run, where, memory_limit), len(members.seeds))
            for start in range(0, len(members.seeds), size):
                indices = members.seeds[start : start + size]
                # always the same shape, compiled once; the copies at the end are dropped
                padded = np.resize(indices, size) if len(indices) < size else np.array(indices)
                keys = _keys(random_key(members.root), width, jnp.asarray(padded, jnp.uint32))
                seen = {name: np.asarray(value)[: len(indices)] for name, value in _sample(run, keys).items()}
                # vectors are split into samples and outputs
                batch = {name: seen[name].reshape(-1, *plan.shape(name)) for name in plan.recorded}
                collection.put(width, start, batch, _exploded_at(seen["every_loss"]))
                bar.update(len(indices))
    diverged = collection.divergences.report()
    return collection.dataset(
        producer="finite_nets.sample_in_law",
        dtype="float64",
        device=f"{where.platform}: {where.device_kind}",
        diverged=diverged,
    )


@jax.jit
def _keys(root: jax.Array, width: int, indices: jax.Array) -> jax.Array:
    """One random key a member, whatever the batch."""
    key = jax.random.fold_in(root, width)
    return jax.vmap(partial(jax.random.fold_in, key))(indices)


def _capacity(run: Run) -> int:
    """Directions that are all of a network, or all that it can meet; a bank's are shared by many positions."""
    banked = any(part.bank for part in run.form.sketch.matrices)
    return min(run.full_capacity, max(run.sizes(0)) + run.block) if banked else run.full_capacity


def _sample(run: Run, keys: jax.Array) -> dict[str, Any]:
    """Observables (member, ...) of the recorded steps, by name, and the losses of all steps."""
    found: dict[str, Any] = _sampled(
        keys,
        run.rule,
        sizes=tuple(run.sizes(0)),
        capacity=_capacity(run),
        steps=tuple(run.steps.tolist()),
        form=run.form,
        two_time=run.two_time,
    )
    return found


@partial(jax.jit, static_argnames=("sizes", "capacity", "steps", "form", "two_time"))
def _sampled(
    keys: jax.Array,
    rule: Rule,
    *,
    sizes: tuple[int, ...],
    capacity: int,
    steps: tuple[int, ...],
    form: Form,
    two_time: bool,
) -> dict[str, jax.Array]:
    def member(key: jax.Array) -> dict[str, jax.Array]:
        crowd = []
        for i, (draws, size) in enumerate(zip(loop.draws_needed(rule, form, capacity), sizes, strict=True)):
            group = form.sketch.described[i].components
            shape = draws * group, size // group
            crowd.append(particles(jax.random.normal(jax.random.fold_in(key, i), shape), group))
        start = loop.limit_network(rule, form, crowd, TOLERANCES[0], capacity=capacity)
        room = loop.empty_history(start, rule, form, steps, two_time=two_time)
        end, history = loop.advance(start, room, rule, 0, max(steps) + 1, form=form)
        found = {
            name: kernel if name == "ntk" else jnp.moveaxis(kernel, 0, 1)
            for name, kernel in history.kernels._asdict().items()
            if kernel is not None
        }
        found["every_loss"] = history.vitals.loss
        found["prediction"] = history.vitals.prediction[jnp.asarray(steps)]
        for name, vectors in (("feature", history.features), ("gradient", history.gradients)):
            if vectors is not None:
                found[f"{name}_kernel_two_time"] = loop.two_time_kernels(vectors, layers(end), mean=name == "feature")
        return found

    return jax.vmap(member)(keys)


def _batch_size(run: Run, device: jax.Device, memory_limit: int | None) -> int:
    """How many members to sample at once.

    Raises:
        MemoryEstimateError: if there is no room for one.
    """
    needed = COPIES * run.memory_estimate(_capacity(run))[0]
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


def _exploded_at(loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """(member,): the step at which the loss (member, step) exploded, infinite for the healthy."""
    bad = exploded(loss, loss[:, :1])
    return np.where(bad.any(axis=1), bad.argmax(axis=1), np.inf)
