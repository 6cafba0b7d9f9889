"""`plan_modules`: what `train_modules` would cost, from a few steps of each width."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.running.progress import readable_time
from finite_nets.ensembles.runner import memory_given_back
from finite_nets.modules.rates import MakeModule
from finite_nets.modules.run import Run, prepared
from finite_nets.modules.store import UnderWay
from finite_nets.modules.train import train_together

PROBED = 3  # steps that are timed
HEADER = ("width", "parameters", "networks", "at once", "memory", "time")


@dataclass(frozen=True)
class ModuleCost:
    """Of one width: its parameters, how many networks train at once, bytes of these, estimated seconds for all."""

    width: int
    parameters: int
    networks: int
    at_once: int
    needed: int
    seconds: float


@dataclass(frozen=True)
class ModulePlan:
    """The cost of every width.  Print it."""

    costs: tuple[ModuleCost, ...]

    @property
    def seconds(self) -> float:
        """Estimated, of all widths."""
        return sum(cost.seconds for cost in self.costs)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [HEADER]
        for cost in self.costs:
            numbers = (cost.width, cost.parameters, cost.networks, cost.at_once)
            rows.append((*(f"{n:,}" for n in numbers), memory.readable(cost.needed), readable_time(cost.seconds)))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(n) for cell, n in zip(row, sizes, strict=True)) for row in rows]
        return "\n".join([*lines, f"about {readable_time(self.seconds)} in all"])


@usual_errors
def plan_modules(
    make_module: MakeModule, task: Any, training: Any, widths: Sequence[int], seeds: int | Sequence[int], **options: Any
) -> ModulePlan:
    """Estimate what `train_modules` with these arguments takes; a few steps of each width are trained for that.

    Args:
        make_module, task, training, widths, seeds: as of `train_modules`.
        options: its further arguments, but store and progress.

    Raises:
        ValueError, TypeError, MemoryEstimateError: as `train_modules`.

    Example:
        >>> import torch
        >>> make = lambda N: torch.nn.Sequential(torch.nn.Linear(3, N), torch.nn.Tanh(), torch.nn.Linear(N, 1))
        >>> training = finite_nets.ModuleTraining(0.5, steps=100)
        >>> print(finite_nets.plan_modules(make, problem.task, training, [8, 16], seeds=4))
        width  parameters  networks  at once ...
    """
    run = prepared(make_module, task, training, widths, seeds, **options)
    with memory_given_back(run.device):
        return ModulePlan(tuple(_cost(run, width) for width in run.members.widths))


def _cost(run: Run, width: int) -> ModuleCost:
    module = run.module(width)
    most, each = run.at_once(module, width)
    seeds = list(run.members.seeds)
    together = seeds[: min(most, len(seeds))]
    last, recorded = int(run.steps[-1]), len(run.steps)
    probed = min(PROBED, last)

    def seconds(steps: Sequence[int]) -> float:
        begun = time.perf_counter()
        train_together(replace(run, steps=np.array(steps)), module, width, together, UnderWay(None), lambda _: None)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        return time.perf_counter() - begun

    seconds([0, min(1, last)])  # warms up
    start, whole = seconds([0]), seconds([0, probed])
    step = max(whole - 2 * start, 0.0) / max(probed, 1)  # a record takes about as long as the start
    batches = math.ceil(len(seeds) / len(together))
    count = sum(p.numel() for p in module.parameters())
    total = batches * (start * recorded + step * last)
    return ModuleCost(width, count, len(seeds), len(together), each * len(together), total)
