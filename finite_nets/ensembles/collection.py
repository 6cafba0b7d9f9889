"""The ensemble while it is being made: which members, and room for what is recorded of them."""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.errors import DivergenceError
from dmft.running import memory
from dmft.specs import Problem, _check
from finite_nets.device.random import MEMBER_BITS, SEED_BITS
from finite_nets.ensembles.moments import BlockMoments
from finite_nets.ensembles.recording import Plan, Results
from finite_nets.ensembles.runner import indices
from finite_nets.training.state import NEVER


@dataclass(frozen=True)
class Members:
    """Networks of every width under every seed index; a member is a function of (root seed, width, seed index).

    A range stays one: so many members as no list would hold are refused by the estimate of memory, with the numbers.
    """

    widths: Sequence[int]
    seeds: Sequence[int]
    root: int


def check_members(widths: Sequence[int] | None, seeds: int | Sequence[int], seed: int, *problems: Problem) -> Members:
    """The arguments `widths`, `seeds` and `seed` of a producer, or the error that says what is wrong with them, or with
    the populations that networks of the problems would have."""
    different_widths = _distinct("widths", widths, minimum=1)
    for problem in problems:
        if not problem.sketch.plain:
            for width in different_widths:
                problem.sketch.sizes(width)
    if isinstance(seeds, Mapping):
        raise TypeError(f"seeds={reprlib.repr(seeds)} is a number for each width, as sweeps take; give one for all.")
    if not isinstance(seeds, Iterable):
        seeds = range(_check.integer("seeds", seeds, minimum=1))
    different_seeds = _distinct("seeds", seeds)
    seed = _check.integer("seed", seed, minimum=0)
    ends = (different_seeds[0], different_seeds[-1]) if isinstance(different_seeds, range) else different_seeds
    for name, largest, bits in (("seed", seed, SEED_BITS), ("seeds", max(ends), MEMBER_BITS)):
        if largest >= 2**bits:
            raise ValueError(f"{name}={largest} must be below 2^{bits}.")
    return Members(different_widths, different_seeds, seed)


def _distinct(name: str, values: Any, minimum: int = 0) -> Sequence[int]:
    """The values, different whole numbers: as a list, or the range that they are."""
    if isinstance(values, range) and values:
        _check.integer(f"the smallest of {name}", min(values[0], values[-1]), minimum=minimum)
        return values
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise TypeError(f"{name}={reprlib.repr(values)} is not a list; give e.g. {name}=[64, 128].")
    found = [_check.integer(f"{name}[{i}]", value, minimum=minimum) for i, value in enumerate(values)]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name}={reprlib.repr(found)} must hold different numbers, at least one.")
    return found


class Divergences:
    """Members that diverged, by width: how many of how many, and the first step."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._found: dict[int, tuple[int, int, float]] = {}

    def add(self, width: int, bad: int, of: int, first: float = NEVER) -> None:
        """`bad` of `of` networks of a width, the first at a step, if it is known."""
        known = self._found.get(width, (0, 0, NEVER))
        self._found[width] = (known[0] + bad, known[1] + of, min(known[2], first))

    @property
    def way_out(self) -> str:
        """What to do."""
        problem, model = self._problem, cast("Any", self._problem.network)
        lower = [problem.training.largest_step, *(f"{name}={getattr(model, name)}" for name in model.wilder)]
        return f"Lower {', or '.join(lower)}. {problem.task.unusual_size}".rstrip()

    def report(self) -> int:
        """Warn of members that diverged, and return their number.

        Raises:
            DivergenceError: all of a width did.
        """
        found = {width: entry for width, entry in self._found.items() if entry[0]}
        if not found:
            return 0
        model: Any = self._problem.network
        rows = [
            f"{bad} of {of} networks of {model.sized} {width} diverge"
            + (f", the first at step {first:.0f}" if first < NEVER else "")
            for width, (bad, of, first) in found.items()
        ]
        if any(bad == of for bad, of, _ in found.values()):
            raise DivergenceError(f"{'; '.join(rows)}. {self.way_out}")
        warnings.warn(
            f"{'; '.join(rows)}: results are those of the others, and say nothing of these. {self.way_out}",
            stacklevel=4,
        )
        return sum(bad for bad, _, _ in found.values())


class Collection:
    """Results of all members, filled batch by batch.

    Raises:
        MemoryEstimateError: if they will not fit.
    """

    def __init__(self, plan: Plan, members: Members, dtype: str, memory_limit: int | None) -> None:
        self.plan, self.members = plan, members
        leading = (len(members.widths), len(members.seeds))
        memory.require(
            leading[0] * leading[1] * plan.member_bytes(dtype),
            limit=memory_limit,
            available=memory.available_on_host(),
            what=f"the results of {leading[0]} widths with {leading[1]} networks each",
            ways_out="record fewer save_steps or observables, train fewer seeds, or take keep='moments'",
        )
        self._results = {name: np.full(leading + plan.shape(name), np.nan, dtype) for name in plan.recorded}
        self._diverged = np.zeros(leading, bool)
        self.divergences = Divergences(plan.problem)

    def put(self, width: int, first: int, batch: Mapping[str, NDArray[Any]], exploded_at: NDArray[np.float64]) -> None:
        """Members of one width, from position `first` in the list of seeds on: arrays (member, ...)."""
        i, bad = self.members.widths.index(width), exploded_at < NEVER
        self.divergences.add(width, int(bad.sum()), len(bad), float(exploded_at.min()))
        self._diverged[i, first : first + len(bad)] = bad
        for name, value in batch.items():
            self._results[name][i, first : first + len(bad)][~bad] = value[~bad]

    def dataset(self, **attrs: Any) -> xr.Dataset:
        """The Dataset of kind "ensemble"."""
        results = self.plan.with_losses(self._results, self._diverged)
        if self._diverged.any():
            results["diverged"] = self._diverged
        return _dataset("ensemble", self.plan, self.members, results, {"seed": indices(self.members.seeds)}, attrs)


class MomentCollection:
    """Moments of blocks of members, filled batch by batch; arguments and errors as of `Collection`."""

    def __init__(self, plan: Plan, members: Members, block: int, memory_limit: int | None) -> None:
        self.plan, self.members = plan, members
        count = len(members.seeds)
        blocks = math.ceil(count / block)
        memory.require(
            plan.moment_numbers() * 8 * len(members.widths) * blocks,
            limit=memory_limit,
            available=memory.available_on_host(),
            what=f"the moments of {len(members.widths)} widths with {blocks} blocks each",
            ways_out="record fewer save_steps or observables, or take a larger block",
        )
        self.blocks = [range(first, min(first + block, count)) for first in range(0, count, block)]
        self._results: list[dict[int, Results]] = [{} for _ in members.widths]
        self.divergences = Divergences(plan.problem)

    def put(self, width: int, first: int, found: BlockMoments) -> None:
        """Blocks of one width, from position `first` on."""
        self._results[self.members.widths.index(width)][first] = found.arrays()
        self.divergences.add(width, int(found.diverged.sum()), int((found.count + found.diverged).sum()))

    def dataset(self, **attrs: Any) -> xr.Dataset:
        """The Dataset of kind "moments"."""
        rows = [[by_first[first] for first in sorted(by_first)] for by_first in self._results]
        results = {
            name: np.stack([np.concatenate([part[name] for part in row]) for row in rows]) for name in rows[0][0]
        }
        coords = {"block": np.arange(len(self.blocks))}
        return _dataset("moments", self.plan, self.members, results, coords, attrs)


def _dataset(
    kind: str, plan: Plan, members: Members, results: Results, coords: dict[str, Any], attrs: dict[str, Any]
) -> xr.Dataset:
    return schema.build(
        kind,
        plan.problem,
        results,
        steps=plan.steps,
        coords={"width": np.array(members.widths), **coords},
        attrs={"seed": members.root, **attrs},
    )
