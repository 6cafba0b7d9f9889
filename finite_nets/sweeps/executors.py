"""Where the tasks of a sweep run.

    "serial"                      here, one after the other
    "pool"                        spawned processes, one a device; the work of one that dies is given to others
    concurrent.futures.Executor   wherever it runs them
    dask.distributed.Client       on its workers, a cluster if need be; Dask gives the work of lost workers to others

A task is a small object that can be pickled, with its results in the store: what comes back are counts.

Processes are spawned.  One that is forked has the locks of the threads of PyTorch and JAX, without the threads: it
waits for ever.  A worker that finds itself forked from the process that sent it work says so instead.  A spawned
process imports the script that started it: one without a guard begins the sweep anew there, and ends.
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from finite_nets.device.forks import forked

ATTEMPTS = 3  # of a pool whose workers die before they have finished a single task
PATIENCE = 1.0  # seconds for a process that is ending to end
SHARE, MANY = 8, 256  # tasks of a worker, or of a cluster, at least, where there are as many blocks
Executor = Any
UNGUARDED = 78  # exit code of a worker that was about to begin its own sweep
GUARD = (
    'every process that is started imports the script again. Put what it does under `if __name__ == "__main__":`, or '
    'use executor="serial".'
)
_device: str | None = None  # of a spawned worker


@dataclass(frozen=True)
class Outcome:
    """Blocks made and networks in them, with those that diverged."""

    blocks: int = 0
    networks: int = 0
    diverged: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.blocks + other.blocks, self.networks + other.networks, self.diverged + other.diverged)


Job = Callable[[Any], Outcome]
Report = Callable[[Outcome], None]


def check_executor(executor: Executor) -> None:
    """TypeError, ValueError for what is none."""
    if isinstance(executor, str):
        if executor not in ("serial", "pool"):
            raise ValueError(f'executor={executor!r} is unknown; use "serial", "pool", an Executor or a dask Client.')
    elif not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f'executor={executor!r} has no method submit; use "serial", "pool", a concurrent.futures.Executor or a '
            "dask.distributed.Client."
        )


def portions(executor: Executor, devices: Sequence[str]) -> int:
    """Into how many tasks to cut the blocks of a width, at least."""
    if executor == "serial":
        return 1
    if executor == "pool":
        return SHARE * len(devices)
    if is_dask(executor):
        return MANY  # its workers come and go
    return SHARE * int(getattr(executor, "_max_workers", 1))


def worker_device() -> str | None:
    """The device that a pool gave this process."""
    return _device


def run_all(
    work: Callable[..., Outcome], tasks: Sequence[Any], executor: Executor, devices: Sequence[str], report: Report
) -> None:
    """Run `work` on every task and report each outcome as it comes.

    Raises:
        RuntimeError: workers die again and again, cannot start because a script lacks its guard, or are forked.
        Exception: what a task raises; the others are cancelled.
    """
    if executor == "serial":
        for task in tasks:
            work(task, report)
    elif executor == "pool":
        _run_pool(work, tasks, devices, report)
    elif is_dask(executor):
        from distributed import as_completed

        futures = [executor.submit(work, task, pure=False) for task in tasks]
        _gather(futures, as_completed(futures), report, executor.cancel)  # type: ignore[no-untyped-call]
    else:
        unforked, workers = functools.partial(_unforked, work, os.getpid()), list[Any]()
        try:
            futures = [executor.submit(unforked, task) for task in tasks]
            workers = multiprocessing.active_children()
            _gather(futures, concurrent.futures.as_completed(futures), report, _cancel)
        except BrokenProcessPool as error:
            raise RuntimeError(_death(workers)) from error


def _unforked(work: Job, sender: int, task: Any) -> Outcome:
    """The work of a task, unless this process was forked from the one that sent it.

    Raises:
        RuntimeError: it was.
    """
    if forked(sender):
        raise RuntimeError(
            "the executor forks its processes: with the locks of PyTorch's threads and without the threads, they would "
            'wait for ever. Use executor="pool", or start them by "spawn": '
            'ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")), in a script under '
            '`if __name__ == "__main__":`.'
        )
    return work(task)


def end_if_begun_anew(executor: Executor) -> None:
    """End a process that was spawned and is importing the script that started it, before it starts others: without a
    word, since the process that started it says it, once."""
    if executor != "serial" and any(
        frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__"
        for frame, _ in traceback.walk_stack(None)
    ):
        raise SystemExit(UNGUARDED)


def _death(workers: Iterable[Any]) -> str:
    """Why workers died, as far as their exit codes say."""
    codes = set()
    for worker in workers:
        worker.join(PATIENCE)
        codes.add(worker.exitcode)
    if UNGUARDED in codes:
        return f"processes of the executor began the sweep anew: {GUARD}"
    if any(code and code > 0 for code in codes):
        return f"processes of the executor ended as they started; what they wrote stands above. Mind that {GUARD}"
    return (
        'processes of the executor were killed, as when memory runs out. Lower memory_limit, or use executor="serial".'
    )


def is_dask(executor: Executor) -> bool:
    """Whether it is a client of Dask."""
    return type(executor).__module__.split(".")[0] == "distributed"


def _gather(futures: list[Any], completed: Iterable[Any], report: Report, cancel: Callable[[list[Any]], None]) -> None:
    try:
        for future in completed:
            report(future.result())
    except BaseException:
        cancel(futures)
        raise


def _cancel(futures: list[Any]) -> None:
    for future in futures:
        future.cancel()


def _run_pool(work: Job, tasks: Sequence[Any], devices: Sequence[str], report: Report) -> None:
    """One process a device; a pool that breaks is made anew for what it left."""
    left, failures = list(tasks), 0
    while left:
        before, workers = len(left), list[Any]()
        try:
            _one_pool(work, left, devices, report, workers)
        except BrokenProcessPool as error:
            failures = failures + 1 if len(left) == before else 0
            if failures and any(worker.exitcode and worker.exitcode > 0 for worker in workers):  # not killed
                raise RuntimeError(_death(workers)) from error
            if failures >= ATTEMPTS:
                raise RuntimeError(
                    f"the workers of {failures} pools died before they finished a task, as when memory runs out; "
                    f'{len(left)} tasks are left. Lower memory_limit, or use executor="serial" to see why.'
                ) from error


def _one_pool(work: Job, left: list[Any], devices: Sequence[str], report: Report, workers: list[Any]) -> None:
    """Take finished tasks out of `left`; BrokenProcessPool if a worker dies.  `workers` gets the processes."""
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for device in devices:
        free.put(device)
    pool = concurrent.futures.ProcessPoolExecutor(len(devices), context, _start_worker, (free, threads_each(devices)))
    try:
        futures = {pool.submit(work, task): task for task in left}
        workers += [process for process in multiprocessing.active_children() if process not in others]
        for future in concurrent.futures.as_completed(futures):
            report(future.result())
            left.remove(futures[future])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def threads_each(devices: Sequence[str]) -> int:
    """Of PyTorch in each worker of a pool."""
    return max(1, cores() // len(devices))


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(free: Any, threads: int) -> None:
    global _device
    import torch

    _device = free.get()
    torch.set_num_threads(threads)
    if _device != "cpu":
        torch.cuda.set_device(_device)
