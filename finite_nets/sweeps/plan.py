"""What a sweep is to do, before it is done: blocks, batches, memory, time."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from dmft import faces, schema
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.running.progress import readable_time
from dmft.specs import Problem, _check
from dmft.specs.variations import differences
from finite_nets.device.precision import precision
from finite_nets.device.random import MEMBER_BITS
from finite_nets.ensembles.collection import check_members
from finite_nets.ensembles.ensemble import default_block, find_device
from finite_nets.ensembles.recording import Plan
from finite_nets.ensembles.runner import Runner, memory_given_back
from finite_nets.sweeps.executors import Executor, check_executor, cores, threads_each
from finite_nets.sweeps.settings import Settings, formulas_of
from finite_nets.sweeps.store import Store

MANY_BLOCKS = 2000  # of a width: tens of thousands of files
MOST_BLOCKS = 10**6  # of a sweep: ten million files
PROBED = 2  # steps that are timed for an estimate
WRITTEN = 2**26  # bytes of members, at most
HEADER = ("problem", "width", "blocks", "there", "to do", "at once", "memory", "time")


@dataclass(frozen=True)
class Work:
    """The blocks of one width of a problem.

    size: networks in a block; wanted: how many blocks; there: how many of these the store has; todo: those to make.
    """

    problem: Problem
    settings: Settings
    width: int
    size: int
    wanted: int
    there: int
    todo: tuple[int, ...]

    @property
    def plan(self) -> Plan:
        return self.settings.plan(self.problem)

    @property
    def networks(self) -> int:
        """That are to be trained."""
        return len(self.todo) * self.size

    @property
    def bytes_to_store(self) -> int:
        """Of the blocks to make, before compression."""
        plan, members = self.plan, 0
        if self.settings.members:
            itemsize = np.dtype(precision(self.settings.dtype).results).itemsize
            members = self.size * plan.numbers(plan.quantities) * itemsize
        return len(self.todo) * (8 * plan.moment_numbers() + members)

    def runner(self, device: str, memory_limit: int | None) -> Runner:
        """Of this work on a device."""
        return self.settings.runner(self.problem, self.size, find_device(device), memory_limit)


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would do; its text is for reading.

    executor: "serial", "pool", or another, whose devices and memory are not known here.
    devices: of a pool, or the first.
    known: seconds of a network, and of writing its part of a block, by what they depend on.
    """

    store: Store
    works: tuple[Work, ...]
    executor: Executor
    devices: tuple[str, ...]
    memory_limit: int | None
    known: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def local(self) -> bool:
        """Whether networks are trained on the devices of this machine."""
        return isinstance(self.executor, str)

    @property
    def networks(self) -> int:
        """That are to be trained."""
        return sum(work.networks for work in self.works)

    @property
    def bytes_to_store(self) -> int:
        """Of the blocks to make, before compression."""
        return sum(work.bytes_to_store for work in self.works)

    @property
    def worker_memory(self) -> int | None:
        """Bytes for a batch of one worker: workers on one CPU share its memory."""
        if self.memory_limit is not None or len(self.devices) == 1 or "cpu" not in self.devices:
            return self.memory_limit
        return memory.available_on_host() // len(self.devices)

    def seconds(self, work: Work) -> float:
        """Estimated time for a width on all devices: a block is made on one of them, and written."""
        if not work.todo:
            return 0.0
        cost = _cost(work)
        if cost not in self.known:
            self.known[cost] = self._seconds_each(work) + _writing_seconds(work) / work.size
        return self.known[cost] * work.size * math.ceil(len(work.todo) / len(self.devices))

    def _seconds_each(self, work: Work) -> float:
        """Estimated time for a network, from a few steps of a batch on the first device."""
        threads = torch.get_num_threads()
        try:
            if self.executor == "pool":
                torch.set_num_threads(threads_each(self.devices))
            runner = work.runner(self.devices[0], self.worker_memory)
            with memory_given_back(runner.device):
                return runner.seconds(work.width, work.networks, PROBED) / work.networks
        finally:
            torch.set_num_threads(threads)

    def text(self, *, times: bool = True) -> str:
        """A table of the widths, and what it comes to; for devices of this machine with batches and their memory, and
        `times`, estimated by training a few steps.

        Raises:
            MemoryEstimateError: a single network does not fit.
        """
        rows, notes = self._shown(times and self.local)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*lines, "", *notes])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        (head, *rows), notes = self._shown(self.local)
        return faces.grid(head, rows, "Sweep") + faces.text("\n".join(notes))

    def _shown(self, times: bool) -> tuple[list[tuple[str, ...]], list[str]]:
        """The table, its heading first, and the lines below it."""
        seconds = [self.seconds(work) if times else 0.0 for work in self.works]
        rows = [HEADER, *(self._row(work, time) for work, time in zip(self.works, seconds, strict=True))]
        shown = len(HEADER) if times else HEADER.index("time") if self.local else HEADER.index("at once")
        rows = [row[:shown] for row in rows]
        kinds = ", ".join(f"{self.devices.count(d)} x {d}" for d in dict.fromkeys(self.devices))
        total = f"{self.networks:,} networks to train on {kinds if self.local else 'the workers of the executor'}"
        if there := sum(work.there * work.size for work in self.works):
            total = f"{there:,} networks are there; {total}"
        if times and self.networks:
            total += f", about {readable_time(sum(seconds))}"
        stored = f"{memory.readable(self.bytes_to_store)} to store in {self.store.path}, before compression"
        named = differences([work.problem for work in self.works])
        notes = [f"{problem_id}  {text}" for problem_id, text in named.items() if text]
        return rows, [*notes, *[""] * bool(notes), total, stored]

    def __str__(self) -> str:
        return self.text()

    def _row(self, work: Work, seconds: float) -> tuple[str, ...]:
        known = (
            work.problem.problem_id,
            str(work.width),
            f"{work.wanted} x {work.size}",
            str(work.there),
            str(len(work.todo)),
        )
        if not self.local or not work.todo:
            return (*known, "", "", "")
        runner = work.runner(self.devices[0], self.worker_memory)
        count = min(runner.at_once(work.width), work.networks)
        needed = memory.readable(runner.bytes_of(work.width, count))
        return (*known, str(count), needed, readable_time(seconds) if seconds else "")


def _cost(work: Work) -> str:
    """What the time of a network depends on: the same for problems that differ in the values of real numbers alone."""
    problem = work.problem
    described = json.loads(problem.to_json(arrays=False))
    described["task"] = described["task"]["shapes"]
    described["training"]["batches"] = problem.drawn.shape
    settings = work.settings.as_json() | {"seed": 0}
    return json.dumps([_without_values(described), settings, work.width, work.size, work.networks])


def _without_values(described: Any) -> Any:
    """A description in which real numbers are replaced by whether they are 0."""
    if isinstance(described, dict):
        return {name: _without_values(value) for name, value in described.items()}
    if isinstance(described, list):
        return [_without_values(value) for value in described]
    return described != 0 if isinstance(described, float) else described


def _writing_seconds(work: Work) -> float:
    """Time for writing a block: measured in a folder for temporary files, of many members on some."""
    plan, settings = work.plan, work.settings
    arrays = {name: ("float64", dims) for name, dims in Store.block_arrays(plan, settings).items()}
    members = Store.member_arrays(plan, settings)
    each = sum(np.dtype(dtype).itemsize * math.prod(map(plan.size, dims[1:])) for dtype, dims in members.values())
    size = max(1, min(work.size, WRITTEN // max(each, 1)))
    rng = np.random.default_rng(0)
    values = {
        name: rng.standard_normal([size] * (name in members) + [plan.size(dim) for dim in dims[1:]]).astype(dtype)
        for name, (dtype, dims) in (arrays | members).items()
    }
    with suppress(OSError), tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.add_width(plan, settings, work.width, size, 1, "probe")
        started = time.perf_counter()
        store.write(plan.problem.problem_id, work.width, 0, size, values)
        return (time.perf_counter() - started) * (work.size / size if members else 1)
    return 0.0  # no room for temporary files: the time is that of training


@usual_errors
def plan_sweep(
    problems: Problem | Iterable[Problem],
    widths: Sequence[int],
    seeds: int | Mapping[int, int],
    *,
    store: str | os.PathLike[str],
    block: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    observables: Sequence[str | schema.Observable] | None = None,
    two_time: bool = False,
    save_steps: Iterable[int] | None = None,
    every: int | None = None,
    covariance: bool = False,
    members: bool = False,
    executor: Executor = "serial",
    devices: str | Sequence[str] = "auto",
    shard: tuple[int, int] = (0, 1),
    memory_limit: int | None = None,
) -> SweepPlan:
    """What `sweep` would do with these arguments.  Nothing is written; print it to see.

    Args:
        problems, widths, seeds, store, executor, devices: as of `sweep`.
        block: how many networks a block has, the unit that is stored, or lost; by default that of the store, or one
            that makes 32 to 64 blocks a width.
        seed: the root seed; a network depends on it, its width and its seed index only.
        dtype, observables, two_time, save_steps: as of `train_ensemble`.
        every: in place of save_steps, every so many steps, and the last.
        covariance: store the products of deviations of predictions over all (step, sample), too.
        members: keep every network, too.
        shard: (i, n): of all blocks every n-th, from the i-th on, for n jobs side by side.
        memory_limit: in bytes, for a batch; by default what is available.

    Raises:
        StoreError, ValueError, TypeError: as `sweep`.

    Example:
        >>> plan = finite_nets.plan_sweep(problem, [8], 64, store=folder / "planned", observables=["loss"])
        >>> plan.networks
        64
    """
    described = [problems] if isinstance(problems, Problem) else list(problems)
    if not described or not all(isinstance(problem, Problem) for problem in described):
        raise TypeError(f"problems={problems!r} must be a dmft.Problem, or a list of them.")
    if len({problem.problem_id for problem in described}) < len(described):
        raise ValueError("problems holds a problem twice; give each once.")
    members_of = check_members(widths, 1, seed, *described)
    _require_few_blocks(len(described) * len(members_of.widths))
    root, counts = members_of.root, _seeds_by_width(members_of.widths, seeds)
    block = None if block is None else _check.integer("block", block, minimum=1)
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    if every is not None and save_steps is not None:
        raise ValueError("every and save_steps both choose the steps to record; give one of them.")
    precision(dtype)
    where = Store(store)
    if where.exists():
        where.check()
    works, blocks = [], 0
    for problem in described:
        names = schema.observables(observables, problem, "finite_nets.train_ensemble")
        settings = Settings(
            seed=root,
            dtype=dtype,
            observables=names,
            save_steps=_steps(problem, save_steps, every),
            two_time=two_time,
            covariance=covariance,
            members=members,
            formulas=formulas_of(names, problem),
        )
        if where.has(problem.problem_id):
            where.require_settings(problem.problem_id, settings)
        for width, count in counts.items():
            size = _block_size(where, problem, width, count, block)
            blocks += math.ceil(count / size)
            _require_few_blocks(blocks)
            works.append(_work(where, problem, settings, width, math.ceil(count / size), size))
    return SweepPlan(where, _of_shard(works, shard), executor, _devices(devices, executor), memory_limit)


def _require_few_blocks(count: int) -> None:
    """ValueError for more blocks than a disk holds files, before there is a list of them."""
    if count > MOST_BLOCKS:
        raise ValueError(
            f"this sweep has {count:,} blocks or more, each with its own files; {MOST_BLOCKS:,} are possible. Give "
            "block= a larger number of networks, leave it out, or sweep over fewer widths."
        )


def _block_size(store: Store, problem: Problem, width: int, seeds: int, block: int | None) -> int:
    """How many networks a block of a width has, or is to have."""
    problem_id = problem.problem_id
    known = store.block_size(problem_id, width)
    if block is not None:
        store.require_block(problem_id, width, block)
    size = known or block or default_block(seeds)
    if block is None and (wanted := math.ceil(seeds / size)) > MANY_BLOCKS:
        warnings.warn(
            f"width {width} is stored in blocks of {size} networks: {wanted} blocks, each with its own files, are slow "
            "to write and read. Begin a new store for so many networks, with larger blocks.",
            stacklevel=5,
        )
    return size


def _work(store: Store, problem: Problem, settings: Settings, width: int, wanted: int, size: int) -> Work:
    """All blocks of a width that the store lacks."""
    finished = store.finished(problem.problem_id, width)
    todo = tuple(index for index in range(wanted) if index not in finished)
    return Work(problem, settings, width, size, wanted, wanted - len(todo), todo)


def _steps(problem: Problem, save_steps: Iterable[int] | None, every: int | None) -> tuple[int, ...]:
    """The recorded steps."""
    if every is None:
        return tuple(schema.saved_steps(problem, save_steps).tolist())
    last = problem.training.steps
    return tuple(sorted({*range(0, last + 1, _check.integer("every", every, minimum=1)), last}))


def _of_shard(works: list[Work], shard: tuple[int, int]) -> tuple[Work, ...]:
    """The blocks of one of n jobs: which these are does not depend on what is done already."""
    try:
        index, count = (_check.integer("shard", part, minimum=0) for part in shard)
    except (TypeError, ValueError) as error:
        raise ValueError(f"shard={shard!r} is no pair (i, n) of whole numbers; give e.g. shard=(0, 4).") from error
    if not index < count:
        raise ValueError(f"shard={shard} must be (i, n) with 0 <= i < n.")
    found, first = [], 0
    for work in works:
        mine = tuple(block for block in work.todo if (first + block) % count == index)
        found.append(replace(work, todo=mine))
        first += work.wanted
    return tuple(found)


def _seeds_by_width(widths: Sequence[int], seeds: Any) -> dict[int, int]:
    """How many networks each width is to have."""
    if not isinstance(seeds, Mapping):
        seeds = dict.fromkeys(widths, seeds)
    if set(seeds) != set(widths):
        raise ValueError(f"seeds names the widths {list(seeds)}, not {list(widths)}; give a number for each width.")
    found = {width: _check.integer(f"seeds of width {width}", seeds[width], minimum=1) for width in widths}
    for width, count in found.items():
        if count > 2**MEMBER_BITS:
            raise ValueError(f"seeds of width {width}={count} must be at most 2^{MEMBER_BITS}.")
    return found


def _devices(devices: str | Sequence[str], executor: Executor) -> tuple[str, ...]:
    """The devices that the executor uses, by name; of others than "pool" the first is the one that is estimated on."""
    check_executor(executor)
    if devices == "auto":
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        names = gpus or ["cpu"] * (cores() if executor == "pool" else 1)
    else:
        names = [devices] if isinstance(devices, str) else list(devices)
    if not names:
        raise ValueError('devices is empty; use "auto", or a list such as ["cuda:0", "cuda:1"].')
    for name in names:
        find_device(name)
    return tuple(names) if executor == "pool" else (names[0],)
