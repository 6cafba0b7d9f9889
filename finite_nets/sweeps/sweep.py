"""`sweep`: ensembles of many problems and widths, block by block, into a store that is never lost.

    finite_nets.sweep(problems, [64, 128, 256], 10**5, store="runs/richness")
    nets = finite_nets.open_store("runs/richness", problem=problems[0])

A sweep is a list of blocks; those that the store has are left out.  So a sweep that was killed goes on when it is run
again, more widths or seeds extend it, and several jobs may share it.  `plan_sweep` says beforehand what there is to do.
"""

from __future__ import annotations

import functools
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar, readable_time
from dmft.specs import Problem
from finite_nets.ensembles.ensemble import device_name, find_device
from finite_nets.ensembles.moments import of_members
from finite_nets.ensembles.recording import Results
from finite_nets.ensembles.runner import Batch, Runner, indices, memory_given_back
from finite_nets.sweeps.executors import Executor, Outcome, end_if_begun_anew, is_dask, portions, run_all, worker_device
from finite_nets.sweeps.plan import SweepPlan, plan_sweep
from finite_nets.sweeps.settings import Settings
from finite_nets.sweeps.store import COUNT, Store
from finite_nets.training.state import NEVER

MEMBER_COPIES = 4  # of the members of a block on the host, as numbers of 8 bytes


@dataclass(frozen=True)
class Portion:
    """Blocks of one width for a worker, small enough to send anywhere: the problem is in the store.

    size: networks in a block; device: of a serial run, None where workers have their own.
    """

    store: str
    problem_id: str
    settings: Settings
    width: int
    size: int
    blocks: tuple[int, ...]
    device: str | None
    memory_limit: int | None
    threads: int | None


@dataclass(frozen=True)
class Summary:
    """What a sweep did: blocks and networks made, with those that diverged and do not count; blocks left to others, or
    there already."""

    store: Path
    made: Outcome
    skipped: int
    seconds: float

    def __str__(self) -> str:
        made = self.made
        lost = f", of which {made.diverged:,} diverged and do not count" if made.diverged else ""
        rate = f" ({made.networks / self.seconds:,.0f} a second)" if made.networks else ""
        return (
            f"{made.networks:,} networks{lost} in {made.blocks} blocks, {readable_time(self.seconds)}{rate}; "
            f"{self.skipped} blocks were there, or are another shard's. Results: {self.store}"
        )


def sweep(
    problems: Problem | Iterable[Problem],
    widths: Sequence[int],
    seeds: int | Mapping[int, int],
    *,
    store: str | os.PathLike[str],
    executor: Executor = "serial",
    devices: str | Sequence[str] = "auto",
    threads: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Summary:
    """Train networks of every problem and width, and store moments of them (and the networks, on request).

    Args:
        problems: one, or several; each has its own place in the store.
        widths: N, different whole numbers.
        seeds: how many networks a width, or a number for each width; rounded up to whole blocks.
        store: the folder of the store; made if it is not there.  What it holds already is not trained again.
        executor: "serial"; "pool", spawned processes, one a device (on a CPU one a core); a
            `concurrent.futures.Executor`; or a `dask.distributed.Client`, whose workers see the store under the same
            path.
        devices: "auto" (all GPUs, or the CPU), or a list such as ["cuda:0", "cuda:1"].  A serial run takes the first of
            them; workers of Dask and of other executors choose by themselves.
        threads: of PyTorch, in a worker; by default what the workers of a pool leave each other, and one of Dask's.
        progress: show a bar with rate and time left; by default on a terminal only.
        options: block, seed, dtype, observables, two_time, save_steps, every, covariance, members, shard,
            memory_limit: further arguments of `plan_sweep`.

    Returns:
        What was done.  `finite_nets.open_store` reads the results.

    Raises:
        StoreError: the store is of another kind, or holds networks of other settings; the message names the difference.
        OSError: it cannot be written to; what was there is kept.
        MemoryEstimateError: a single network does not fit.
        RuntimeError: worker processes die, are forked, or begin a script without guard anew; the message says which.
        ValueError, TypeError: arguments out of range.

    A script that calls it with processes (executor="pool", or an executor of one's own, which must spawn them: one that
    forks is refused) needs the guard `if __name__ == "__main__":`.

    Example:
        >>> print(finite_nets.sweep(problem, [8], 64, store=folder / "swept", observables=["loss"]))
        64 networks...
    """
    end_if_begun_anew(executor)
    plan = plan_sweep(problems, widths, seeds, store=store, executor=executor, devices=devices, **options)
    return run(plan, threads=threads, progress=progress)


@usual_errors
def run(plan: SweepPlan, *, threads: int | None = None, progress: bool | None = None) -> Summary:
    """Do what is planned; arguments and errors as of `sweep`."""
    end_if_begun_anew(plan.executor)
    if progress or (progress is None and sys.stderr.isatty()):
        print(plan.text(), file=sys.stderr)
    plan.store.prepare()
    device = device_name(find_device(plan.devices[0])) if plan.local else "workers"
    for work in plan.works:
        plan.store.add_problem(work.problem, work.settings)
        plan.store.add_width(work.plan, work.settings, work.width, work.size, work.wanted, device)
    started, made = time.perf_counter(), Outcome()
    with progress_bar(plan.networks, "networks", "net", progress) as bar:

        def report(outcome: Outcome) -> None:
            nonlocal made
            made = made + outcome
            bar.update(outcome.networks)

        run_all(run_portion, portions_of(plan, threads), plan.executor, plan.devices, report)
    skipped = sum(work.wanted for work in plan.works) - made.blocks
    return Summary(plan.store.path, made, skipped, time.perf_counter() - started)


def portions_of(plan: SweepPlan, threads: int | None) -> list[Portion]:
    """The blocks to make, as work for the executor."""
    if threads is None and is_dask(plan.executor):
        threads = 1  # its workers share a machine without telling
    found = []
    for work in plan.works:
        count = math.ceil(len(work.todo) / portions(plan.executor, plan.devices))
        for first in range(0, len(work.todo), max(count, 1)):
            blocks = work.todo[first : first + count]
            found.append(
                Portion(
                    store=str(plan.store.path),
                    problem_id=work.problem.problem_id,
                    settings=work.settings,
                    width=work.width,
                    size=work.size,
                    blocks=blocks,
                    device=plan.devices[0] if plan.executor == "serial" else None,
                    memory_limit=plan.worker_memory if plan.local else plan.memory_limit,
                    threads=threads,
                )
            )
    return found


@usual_errors
def run_portion(portion: Portion, report: Callable[[Outcome], None] | None = None) -> Outcome:
    """Make the blocks that nobody has made meanwhile; `report` what is done as it is.

    It begins anywhere among them: so writers that have the same to do share it, rather than follow each other.

    Raises:
        MemoryEstimateError: a single network, or the members of a block, do not fit.
    """
    if portion.threads is not None:
        torch.set_num_threads(portion.threads)
    store, device = Store(portion.store), portion.device or worker_device() or "auto"
    size = portion.size
    runner = _prepared(portion.store, portion.problem_id, portion.settings, size, device, portion.memory_limit)
    if portion.settings.members:
        memory.require(
            MEMBER_COPIES * 8 * size * runner.plan.numbers(runner.plan.quantities),
            limit=None,
            available=memory.available_on_host(),
            what=f"a block of {size} members of width {portion.width}",
            ways_out="take a smaller block, record fewer save_steps or observables, or members=False",
        )
    start = random.Random().randrange(len(portion.blocks))
    left, total = [*portion.blocks[start:], *portion.blocks[:start]], Outcome()
    with memory_given_back(runner.device):
        while left:
            there = store.finished(portion.problem_id, portion.width)
            left = [block for block in left if block not in there]
            together = max(1, runner.at_once(portion.width) // size)
            for block, arrays in _made(portion, runner, left[:together]):
                if store.has_block(portion.problem_id, portion.width, block):
                    continue
                store.write(portion.problem_id, portion.width, block, size, arrays)
                done = Outcome(1, size, size - int(arrays[COUNT]))
                total = total + done
                if report is not None:
                    report(done)
            left = left[together:]
    return total


@functools.lru_cache(maxsize=8)
def _prepared(
    path: str, problem_id: str, settings: Settings, size: int, device: str, memory_limit: int | None
) -> Runner:
    """What a process needs for a problem; kept from one portion to the next."""
    problem = Store(path).problem(problem_id)
    settings.require_formulas(problem)
    return settings.runner(problem, size, find_device(device), memory_limit)


def _made(portion: Portion, runner: Runner, blocks: Sequence[int]) -> Iterator[tuple[int, Results]]:
    """Blocks and their arrays, as they are finished."""
    size, settings, plan = portion.size, portion.settings, runner.plan
    ranges = [range(block * size, (block + 1) * size) for block in blocks]
    if not settings.members:
        for first, found in runner.moments(portion.width, ranges):
            arrays = found.arrays()
            for i in range(len(found.count)):
                yield blocks[first + i], {name: values[i] for name, values in arrays.items()}
        return
    seeds = np.concatenate([indices(part) for part in ranges])
    whole = _regrouped(runner.members(portion.width, seeds), size)
    for block, (recorded, exploded_at) in zip(blocks, whole, strict=True):
        diverged = exploded_at < NEVER
        for values in recorded.values():
            values[diverged] = np.nan
        results = plan.with_losses(recorded, diverged)
        moments = of_members(results, diverged, covariance=settings.covariance)
        members = {f"member_{name}": value for name, value in results.items()} | {"member_diverged": diverged}
        yield block, {name: values[0] for name, values in moments.arrays().items()} | members


def _regrouped(batches: Iterable[Batch], size: int) -> Iterator[tuple[Results, NDArray[np.float64]]]:
    """Results of `size` members each, from batches of any size."""
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(part.exploded_at) for part in waiting) < size:
            continue
        results = {name: np.concatenate([part.results[name] for part in waiting]) for name in batch.results}
        exploded_at = np.concatenate([part.exploded_at for part in waiting])
        whole = len(exploded_at) // size * size
        for first in range(0, whole, size):
            part = slice(first, first + size)
            yield {name: values[part] for name, values in results.items()}, exploded_at[part]
        waiting = [Batch(0, {name: values[whole:] for name, values in results.items()}, exploded_at[whole:])]
