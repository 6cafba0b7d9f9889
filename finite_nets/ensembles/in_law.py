"""`sample_in_law`: networks of finite width without weight matrices (`dmft.drivers.in_law`), as an ensemble.

This is the one producer of ensembles that is computed by the theory; JAX is loaded when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.in_law import sampled
from dmft.drivers.machine import find_devices, precision
from dmft.errors import exploded
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from dmft.specs import Problem, _check
from finite_nets.ensembles.collection import Collection, check_members
from finite_nets.ensembles.recording import Plan


@usual_errors
def sample_in_law(
    problem: Problem,
    *,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    seed: int = 0,
    device: str = "auto",
    observables: Sequence[str | schema.Observable] | None = None,
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
        observables: what to record, among prediction, loss (with test_loss), feature_kernel, gradient_kernel, ntk,
            preactivation_kernel, participation_ratio, accuracy (where targets are classes), and those of a user's own
            (`dmft.observable`).
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

    Example:
        >>> dict(finite_nets.sample_in_law(problem, widths=[1024], seeds=2)["loss"].sizes)
        {'width': 1, 'seed': 2, 'step': 3}
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"sample_in_law expects a dmft.Problem, got {type(problem).__name__}.")
    members = check_members(widths, seeds, seed, problem)
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    names = schema.observables(observables, problem, "finite_nets.sample_in_law")
    plan = Plan(problem, schema.saved_steps(problem, save_steps), frozenset(names), two_time)
    (where,) = find_devices("gpu" if device == "cuda" else device)
    collection = Collection(plan, members, "float64", memory_limit)
    with (
        precision("float64", where),
        progress_bar(len(members.widths) * len(members.seeds), "networks", "net", progress) as bar,
    ):
        for width in members.widths:
            batches = sampled(
                problem,
                width,
                members.seeds,
                members.root,
                steps=plan.steps,
                observables=names,
                two_time=two_time,
                device=where,
                memory_limit=memory_limit,
            )
            for start, seen in batches:
                batch = {name: seen[name] for name in plan.recorded}
                collection.put(width, start, batch, _exploded_at(seen["every_loss"]))
                bar.update(len(seen["every_loss"]))
    diverged = collection.divergences.report()
    return collection.dataset(
        producer="finite_nets.sample_in_law",
        dtype="float64",
        device=f"{where.platform}: {where.device_kind}",
        diverged=diverged,
    )


def _exploded_at(loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """(member,): the step at which the loss (member, step) exploded, infinite for the healthy."""
    bad = exploded(loss, loss[:, :1])
    return np.where(bad.any(axis=1), bad.argmax(axis=1), np.inf)
