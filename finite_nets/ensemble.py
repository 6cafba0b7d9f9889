"""`train_ensemble`: from a Problem to the Dataset of networks of several widths.

Networks of one width are trained side by side as batched matrix products, as many at once as memory (on a CPU: the
cache) takes.  A member is a function of (root seed, width, seed index) and the problem alone, whatever the batches
and the device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import xarray as xr

from dmft import schema
from dmft.errors import DivergenceError
from dmft.progress import progress_bar
from dmft.specs import Problem, _check
from finite_nets.collection import Collection, check_members
from finite_nets.network import Trainer, initialise
from finite_nets.recording import Plan

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def train_ensemble(
    problem: Problem,
    *,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    observables: Sequence[str] | None = None,
    two_time: bool = False,
    save_steps: Iterable[int] | None = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train networks of the given widths on `problem`, `seeds` of each.

    Args:
        problem: network, task, training: the same that the theory solves.
        widths: N, different whole numbers.
        seeds: how many members a width, or the seed indices themselves.
        seed: the root seed; a member depends on it, its width and its seed index only.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU if there is one.
        dtype: "float32" or "float64", of weights and results (losses are float64).
        observables: what to record, among prediction, loss (with test_loss, and accuracies of classes), feature_kernel,
            gradient_kernel, ntk; by default all of them for a single output, the first three for several (kernels
            between outputs are as many times larger as outputs squared).
        two_time: add `feature_kernel_two_time` and `gradient_kernel_two_time`, between all saved steps.
        save_steps: the steps to record; all of 0..T by default.  Training ends with the last of them.
        memory_limit: in bytes, for the results and a batch; by default what is available.
        progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "ensemble" (`dmft.schema`) with leading dimensions width and seed.

    Raises:
        DivergenceError: networks whose loss explodes or is not finite, with their width, step and number.
        MemoryEstimateError: when results or a single network do not fit, with the numbers.
        ValueError, TypeError: arguments out of range.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"train_ensemble expects a dmft.Problem, got {type(problem).__name__}.")
    members = check_members(widths, seeds, seed)
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not offered; choose one of {', '.join(DTYPES)}.")
    plan = Plan(
        problem, schema.saved_steps(problem, save_steps), frozenset(schema.observables(observables, problem)), two_time
    )
    where = _device(device)
    trainer = Trainer(problem, where, DTYPES[dtype])
    collection = Collection(plan, members, dtype, memory_limit)
    with (
        progress_bar(len(members.widths) * len(members.seeds), "networks", "net", progress) as bar,
        _full_precision(),
        torch.inference_mode(),
    ):
        for width in members.widths:
            size = plan.batch_size(width, where, dtype, memory_limit)
            for start in range(0, len(members.seeds), size):
                indices = torch.tensor(members.seeds[start : start + size], device=where)
                weights = initialise(
                    trainer.depth,
                    trainer.x.shape[1],
                    width,
                    indices,
                    root_seed=members.root,
                    dtype=DTYPES[dtype],
                    outputs=trainer.outputs,
                )
                training = trainer.run(weights, frozenset(plan.steps.tolist()), gradients=plan.gradients)
                try:
                    collection.put(width, start, plan.record(trainer, training))
                except DivergenceError as error:
                    raise DivergenceError(f"width {width}, seed indices from {int(indices[0])}: {error}") from error
                bar.update(len(indices))
    return collection.dataset(
        producer="finite_nets.train_ensemble",
        device="cpu" if where.type == "cpu" else f"cuda: {torch.cuda.get_device_name(where)}",
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(name)):
        raise ValueError(f'device={name!r} is unknown; use "auto", "cpu", "cuda" or "cuda:1".')
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device={name!r}: PyTorch sees {torch.cuda.device_count()} CUDA device(s); use device="cpu".')
    return device


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in float32: no TF32, whatever the caller has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
