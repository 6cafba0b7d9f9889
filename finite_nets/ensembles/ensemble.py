"""`train_ensemble`: from a Problem to the Dataset of networks of several widths.

Networks of one width are trained side by side as batched matrix products (`finite_nets.ensembles.runner`).  Either
every member is kept, or moments over blocks of members alone: then a million networks take no more
memory than a thousand.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import xarray as xr

from dmft import schema
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from dmft.specs import Problem, _check
from dmft.specs.random_data import RandomModel
from dmft.specs.training.entrywise import ENTRYWISE
from dmft.specs.training.recurrence import RECURRENCE
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import Precision, precision
from finite_nets.device.rounding import Quantisation
from finite_nets.ensembles.collection import Collection, Members, MomentCollection, check_members
from finite_nets.ensembles.recording import Plan
from finite_nets.ensembles.runner import Runner, memory_given_back

KEEP = ("members", "moments")
BLOCKS = (32, 64)  # how many blocks of moments a width has, if it is not said: enough for errors from their scatter
FEWEST_BLOCKS, SMALLEST_BLOCK = 8, 16  # of few seeds, which may become more: blocks not too small, if they are enough


@usual_errors
def train_ensemble(
    problem: Problem,
    *,
    widths: Sequence[int] | None = None,
    scales: Sequence[int] | None = None,
    seeds: int | Sequence[int],
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    observables: Sequence[str | schema.Observable] | None = None,
    two_time: bool = False,
    save_steps: Iterable[int] | None = None,
    keep: str = "members",
    block: int | None = None,
    covariance: bool = False,
    quantisation: Quantisation | None = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train networks of the given widths on `problem`, `seeds` of each.

    Args:
        problem: network, task, training: the same that the theory solves.
        widths: N, different whole numbers.
        scales: of models of random data, in the place of widths: by what all of their sizes are multiplied.
        seeds: how many members a width, or the seed indices themselves.
        seed: the root seed; a member depends on it, its width and its seed index only.
        device: "cpu", "gpu", "cuda:1", ...; "auto" takes a GPU if there is one.
        dtype: "float32", "float64", "tf32" or "bf16" (`finite_nets.device.precision` says what each is).
        observables: what to record, among prediction, loss (with test_loss, and accuracies of classes), feature_kernel,
            gradient_kernel, ntk, preactivation_kernel, participation_ratio, those of a user's own
            (`dmft.observable`), sharpness (some 18 passes a recorded step), accuracy (where
            targets are classes; the losses for classes bring it); by default the first five for a single output,
            the first three for several (kernels between outputs are as many times larger as outputs squared).
        two_time: add `feature_kernel_two_time` and `gradient_kernel_two_time`, between all saved steps.
        save_steps: the steps to record; all of 0..T by default.  Training ends with the last of them.
        keep: "members": results of every network.  "moments": their number, means and squared deviations over blocks of
            networks, from which `comparisons` finds means, variances and errors; `seeds` is a number then.
        block: of moments, how many networks a block has; by default so that there are 32 to 64 blocks.
        covariance: of moments, add the products of deviations of predictions over all (step, sample).
        quantisation: a `finite_nets.Quantisation`: train with weights, activations or both rounded to few bits.
        memory_limit: in bytes, for the results and a batch; by default what is available.
        progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "ensemble" with leading dimensions width and seed, or of kind "moments" with width and block
        (`dmft.schema`).  Networks whose loss explodes or is not finite are masked and counted: nan in an ensemble,
        where `diverged` marks them; left out of moments.  A warning says how many.

    Raises:
        DivergenceError: all networks of a width diverge.
        MemoryEstimateError: when results or a single network do not fit, with the numbers.
        ValueError, TypeError: arguments out of range.

    Example:
        >>> nets = finite_nets.train_ensemble(problem, widths=[8, 16], seeds=4)
        >>> dict(nets["loss"].sizes)
        {'width': 2, 'seed': 4, 'step': 3}
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"train_ensemble expects a dmft.Problem, got {type(problem).__name__}.")
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    numbers = precision(dtype)
    if isinstance(problem.network, RandomModel):
        if covariance or two_time or observables is not None or quantisation is not None:
            raise ValueError(
                f"{type(problem.network).__name__} records losses; leave out covariance, two_time, observables and "
                "quantisation."
            )
        members = check_members(scales if widths is None else widths, seeds, seed)
        block = _check_keep(keep, block, covariance, seeds)
        return _of_random_data(problem, members, save_steps, device, numbers, memory_limit, progress, block)
    if scales is not None:
        raise ValueError(f"scales={scales!r} are of models of random data; give widths of networks.")
    members = check_members(widths, seeds, seed, problem)
    plan = Plan(
        problem,
        schema.saved_steps(problem, save_steps),
        frozenset(schema.observables(observables, problem, "finite_nets.train_ensemble")),
        two_time,
        covariance,
    )
    if quantisation is not None:
        numbers = with_quantisation(numbers, quantisation, plan)
    block = _check_keep(keep, block, covariance, seeds)
    where = find_device(device)
    runner = Runner(plan, numbers, where, members.root, block=block, memory_limit=memory_limit)
    attrs = {"producer": "finite_nets.train_ensemble", "dtype": dtype, "device": device_name(where)}
    if quantisation is not None:
        attrs["quantisation"] = quantisation.text
    total = len(members.widths) * len(members.seeds)
    with memory_given_back(where), progress_bar(total, "networks", "net", progress) as bar:
        if keep == "members":
            collection = Collection(plan, members, numbers.results, memory_limit)
            for width in members.widths:
                for batch in runner.members(width, members.seeds):
                    collection.put(width, batch.first, batch.results, batch.exploded_at)
                    bar.update(len(batch.exploded_at))
            return collection.dataset(**attrs, diverged=collection.divergences.report())
        assert block is not None  # of moments
        moments = MomentCollection(plan, members, block, memory_limit)
        for width in members.widths:
            for first, found in runner.moments(width, moments.blocks):
                moments.put(width, first, found)
                bar.update(int((found.count + found.diverged).sum()))
        return moments.dataset(**attrs, diverged=moments.divergences.report())


def with_quantisation(numbers: Precision, quantisation: Any, plan: Plan) -> Precision:
    """The same with what is rounded, if networks can be trained so; TypeError, ValueError for what it is not for."""
    if not isinstance(quantisation, Quantisation):
        raise TypeError(
            f"quantisation={quantisation!r} is no finite_nets.Quantisation, such as Quantisation(weights=4)."
        )
    if plan.problem.training.stepping not in (RECURRENCE, ENTRYWISE):
        name = type(plan.problem.training).__name__
        raise ValueError(f"quantisation is for steps of an optimiser, such as dmft.GradientDescent, not {name}.")
    if plan.of_hessian:
        raise ValueError(
            f"{plan.of_hessian[0]} is not defined for rounded networks, whose slopes are straight through."
        )
    if plan.problem.changing and quantisation.activations is not None:
        raise ValueError(
            f"{plan.problem.training.batches} change images, which samples observed do not share: their activations "
            "would be rounded by a scale of their own.  Leave flip and crop out, or round weights alone."
        )
    return replace(numbers, quantisation=quantisation)


def _of_random_data(
    problem: Problem,
    members: Members,
    save_steps: Iterable[int] | None,
    device: str,
    numbers: Precision,
    memory_limit: int | None,
    progress: bool | None,
    block: int | None,
) -> xr.Dataset:
    """What the simulator that the model names makes of the problem."""
    model: Any = problem.network
    where, simulator = find_device(device), importlib.import_module(model.simulator)
    total = len(members.widths) * len(members.seeds)
    settings = usual_torch(where, tf32=numbers.name == "tf32")
    with memory_given_back(where), settings, progress_bar(total, "networks", "net", progress) as bar:
        found: xr.Dataset = simulator.ensemble(
            problem,
            members,
            steps=schema.saved_steps(problem, save_steps),
            device=where,
            dtype=numbers.fields,
            memory_limit=memory_limit,
            finished=bar.update,
            attrs={"producer": "finite_nets.train_ensemble", "dtype": numbers.name, "device": device_name(where)},
            block=block,
        )
    return found


def _check_keep(keep: str, block: int | None, covariance: bool, seeds: int | Sequence[int]) -> int | None:
    """The size of a block of moments, None for members; ValueError, TypeError for arguments that do not go together."""
    if keep not in KEEP:
        raise ValueError(f"keep={keep!r} is unknown; choose one of {', '.join(KEEP)}.")
    if keep == "members":
        if block is not None or covariance:
            raise ValueError("block and covariance are for keep='moments'; give that, or leave them out.")
        return None
    if isinstance(seeds, Iterable):
        raise TypeError("keep='moments' takes a number of seeds, whose indices are 0, 1, ...; give seeds=1000, say.")
    return default_block(seeds) if block is None else _check.integer("block", block, minimum=1)


def default_block(seeds: int) -> int:
    """A size of blocks that divides the seeds into 32 to 64 blocks, or nearly; of few seeds, into 8 or more."""
    fewest, most = BLOCKS
    if seeds < fewest * SMALLEST_BLOCK:
        size = max(1, min(SMALLEST_BLOCK, seeds // FEWEST_BLOCKS))
        return next((s for s in range(size, size // 2, -1) if seeds % s == 0), size)
    whole = [count for count in range(fewest, most + 1) if seeds % count == 0]
    return seeds // whole[0] if whole else math.ceil(seeds / fewest)


def find_device(name: str) -> torch.device:
    """The device of this name, as PyTorch calls it, or "gpu".

    Raises:
        ValueError: an unknown name, or no such device.
    """
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {"auto": usual, "gpu": "cuda"}.get(str(name), str(name))
    if not re.fullmatch(r"cpu|cuda(:\d+)?", kind):
        raise ValueError(f'device={name!r} is unknown; use "auto", "cpu", "gpu" or "cuda:1".')
    device = torch.device(kind)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device={name!r}: PyTorch sees {torch.cuda.device_count()} CUDA device(s); use device="cpu".')
    return device


def device_name(device: torch.device) -> str:
    """For attributes of results."""
    return "cpu" if device.type == "cpu" else f"cuda: {torch.cuda.get_device_name(device)}"
