"""Training of given members, as many at once as memory (on a CPU: the cache) takes.

A member is a function of (root seed, width, seed index) and the problem alone, whatever the batches, their order and
the device.  Members that diverge are left out and counted; a batch that does not fit in memory after all is halved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dmft.errors import MemoryEstimateError
from finite_nets.device.chip import Chip
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import Precision
from finite_nets.ensembles import batch, on_chip
from finite_nets.ensembles.budget import Budget
from finite_nets.ensembles.moments import BlockMoments, Blocks, joined
from finite_nets.ensembles.recording import Plan, Results
from finite_nets.training.programs import trainer_of
from finite_nets.training.state import NEVER, State
from finite_nets.training.trainer import Training

Found = TypeVar("Found")
CPU_PART = 4  # of a batch is timed there
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Networks that were trained together.

    first: position of the first of them; exploded_at: (member,) steps, infinite for the healthy.
    """

    first: int
    results: Results
    exploded_at: NDArray[np.float64]


class Runner:
    """Trains members of networks of one problem on one device.

    Args:
        plan: what is recorded.
        block: how many members the blocks have whose `moments` are asked for; None if `members` are.
        memory_limit: in bytes, for a batch; by default what is available.
    """

    def __init__(
        self,
        plan: Plan,
        precision: Precision,
        device: torch.device,
        root_seed: int,
        *,
        block: int | None,
        memory_limit: int | None = None,
    ) -> None:
        self.plan, self.precision, self.device, self.root_seed = plan, precision, device, root_seed
        self._budget = Budget(plan, precision, device, block, memory_limit)
        self._trainer: Training[Any] | None = None
        self._most: dict[int, int] = {}
        self._chips: dict[int, Chip | None] = {}

    @property
    def trainer(self) -> Training[Any]:
        if self._trainer is None:
            self._trainer = trainer_of(self.plan.problem, self.device, self.precision)
        return self._trainer

    def at_once(self, width: int) -> int:
        """How many networks of this width are trained together.

        Raises:
            MemoryEstimateError: if there is no room for one.
        """
        fits = self._budget.batch(width)
        return min(fits, self._most.get(width, fits))

    def bytes_of(self, width: int, count: int) -> int:
        """Memory of so many networks while they train together."""
        return self._budget.batch_bytes(width, count)

    def seconds(self, width: int, networks: int, steps: int) -> float:
        """Estimated time of so many networks, from the first `steps` steps of a batch of them; on a CPU, where time
        goes with their number, of a part of one."""
        part = 1 if self.device.type == "cuda" else CPU_PART
        while (
            taken := self._timed(width, count := math.ceil(min(self.at_once(width), networks) / part), steps)
        ) is None:
            pass  # with fewer
        return taken * networks / count

    def _timed(self, width: int, count: int, steps: int) -> float | None:
        """Estimated time of a batch; None if it does not fit in memory."""
        last = int(self.plan.steps[-1])
        probed = min(steps, last)
        recorded = [t for t in self.plan.steps.tolist() if t < probed] + [probed]
        plan = replace(self.plan, steps=np.array(recorded))
        probe, first = (
            Runner(each, self.precision, self.device, self.root_seed, block=count)
            for each in (plan, replace(plan, steps=np.array([0])))
        )

        def work() -> float:
            members = np.arange(count)
            # compiles, and warms up
            probe._train_moments(width, members if self.device.type == "cuda" else members[:1], 1)
            chip = probe._chip(width)
            if chip is not None:
                first._train_moments(width, members, 1)
            started = self._time()
            if chip is not None:  # where nothing is drawn that is not looked at
                first._train_moments(width, members, 1)
            else:
                with usual_torch(self.device, tf32=self.precision.name == "tf32"):
                    probe.begin(width, members)
            drawing = self._time() - started
            probe._train_moments(width, members, 1)
            trained = self._time() - started - drawing
            return drawing + max(trained - drawing, 0.0) * (last + 1) / (probed + 1)

        return self._attempt(width, count, work)

    def _time(self) -> float:
        """Now, with all work done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def members(self, width: int, seeds: Sequence[int] | Indices) -> Iterator[Batch]:
        """Results of every member with these seed indices, batch by batch."""
        for first, found in self.batches(width, seeds, partial(self._train_members, width)):
            yield Batch(first, *found)

    def batches(
        self, width: int, seeds: Sequence[int] | Indices, work: Callable[[Indices], Found]
    ) -> Iterator[tuple[int, Found]]:
        """What the work finds of members with these seed indices, as many at once as fit: position of the first, and
        that."""
        first = 0
        while first < len(seeds):
            count = min(self.at_once(width), len(seeds) - first)
            found = self._attempt(width, count, partial(work, indices(seeds[first : first + count])))
            if found is not None:
                yield first, found
                first += count

    def moments(self, width: int, blocks: Sequence[range]) -> Iterator[tuple[int, BlockMoments]]:
        """Moments of blocks of seed indices, of one size but for the last: position of the first block, and its moments
        with those of the blocks that were trained together with it."""
        first = 0
        while first < len(blocks):
            size, fits = len(blocks[first]), self.at_once(width)
            if fits < size:
                yield first, self._in_pieces(width, blocks[first])
                first += 1
                continue
            together = [block for block in blocks[first : first + fits // size] if len(block) == size]
            seeds = np.concatenate([indices(block) for block in together])
            found = self._attempt(width, len(seeds), partial(self._train_moments, width, seeds, len(together)))
            if found is not None:
                yield first, found
                first += len(together)

    def _in_pieces(self, width: int, block: range) -> BlockMoments:
        """The moments of a block that does not fit in one batch."""
        pieces: list[BlockMoments] = []
        done = 0
        while done < len(block):
            part = indices(block[done : done + self.at_once(width)])
            found = self._attempt(width, len(part), partial(self._train_moments, width, part, 1))
            if found is not None:
                pieces.append(found)
                done += len(part)
        return joined(pieces)

    def _attempt(self, width: int, count: int, work: Callable[[], Found]) -> Found | None:
        """The work on a batch; None if it ran out of memory and is to be tried with fewer members.

        Raises:
            MemoryEstimateError: with one member it ran out, too.
        """
        try:
            return work()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # after the handler: its traceback holds the memory of the batch
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if count == 1:
            raise MemoryEstimateError(f"one network of width {width} does not fit in memory: {reason}")
        self._most[width] = count // 2
        return None

    def _train_members(self, width: int, seeds: Indices) -> tuple[Results, NDArray[np.float64]]:
        with usual_torch(self.device, tf32=self.precision.name == "tf32"):
            run = self._run(width, seeds)
            results = batch.members(self.plan, run)
            return results, run.exploded_at.double().cpu().numpy()

    def _train_moments(self, width: int, seeds: Indices, blocks: int) -> BlockMoments:
        with usual_torch(self.device, tf32=self.precision.name == "tf32"):
            healthy = torch.ones(len(seeds), dtype=torch.bool, device=self.device)
            run, targets = self._run(width, seeds), self.trainer.targets[self.trainer.observed]
            found = batch.moments(self.plan, run, targets, Blocks(healthy, blocks))
            healthy = run.exploded_at == NEVER
            if not bool(healthy.all()):  # they have entered the moments of the steps before
                found = batch.moments(self.plan, run, targets, Blocks(healthy, blocks))
            return found

    def _run(self, width: int, seeds: Indices) -> batch.Run:
        """What trains these members: on chip, where that is served."""
        chip = self._chip(width)
        if chip is not None:
            members = torch.from_numpy(seeds).to(self.device)
            return on_chip.OnChip(self.plan, self.trainer, chip, members, self.root_seed)
        return batch.Stepped(self.plan, self.trainer, partial(self.begin, width, seeds))

    def _chip(self, width: int) -> Chip | None:
        if width not in self._chips:
            shape = on_chip.served(self.plan, self.precision, self.device, width)
            made = None if shape is None else Chip(on_chip.job(self.plan, self.trainer, width), shape, self.device)
            self._chips[width] = made
        return self._chips[width]

    def begin(self, width: int, seeds: Indices) -> State[Any]:
        """Training of these members."""
        members = torch.from_numpy(seeds).to(self.device)
        return self.trainer.start(width, members, self.root_seed, int(self.plan.steps[-1]))


def indices(seeds: Sequence[int] | Indices) -> Indices:
    """Seed indices as an array; of a range by NumPy, since there may be millions."""
    if isinstance(seeds, range):
        return np.arange(seeds.start, seeds.stop, seeds.step, dtype=np.int64)
    return np.asarray(seeds, np.int64)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, and a smaller batch may do."""
    if isinstance(error, MemoryEstimateError):
        return False
    # the allocator of PyTorch on a CPU raises a plain RuntimeError
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def memory_given_back(device: torch.device) -> Iterator[None]:
    """What PyTorch keeps of a GPU's memory for later batches, others may have after these: JAX in the same process.
    (After an error little of it: the traceback holds the batch.)"""
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
