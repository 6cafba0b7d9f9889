"""The ensemble while it is being made: which members, and room for what is recorded of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import memory, schema
from dmft.specs import _check
from finite_nets.random import MEMBER_BITS, SEED_BITS
from finite_nets.recording import Plan


@dataclass(frozen=True)
class Members:
    """Networks of every width under every seed index; a member is a function of (root seed, width, seed index)."""

    widths: list[int]
    seeds: list[int]
    root: int


def check_members(widths: Sequence[int], seeds: int | Sequence[int], seed: int) -> Members:
    """The arguments `widths`, `seeds` and `seed` of a producer, or the error that says what is wrong with them."""
    width_list = _distinct("widths", widths, minimum=1)
    if not hasattr(seeds, "__iter__"):
        seeds = range(_check.integer("seeds", seeds, minimum=1))
    seed_list = _distinct("seeds", seeds)
    seed = _check.integer("seed", seed, minimum=0)
    for name, largest, bits in (("seed", seed, SEED_BITS), ("seeds", max(seed_list), MEMBER_BITS)):
        if largest >= 2**bits:
            raise ValueError(f"{name}={largest} must be below 2^{bits}.")
    return Members(width_list, seed_list, seed)


def _distinct(name: str, values: Any, minimum: int = 0) -> list[int]:
    """The values as a list of different whole numbers."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name}={values!r} is not a list; give e.g. {name}=[64, 128].")
    found = [_check.integer(f"{name}[{i}]", value, minimum=minimum) for i, value in enumerate(values)]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name}={found} must hold different numbers, at least one.")
    return found


class Collection:
    """Results of all members, filled batch by batch.

    Raises:
        MemoryEstimateError: if they will not fit.
    """

    def __init__(self, plan: Plan, members: Members, dtype: str, memory_limit: int | None) -> None:
        self.plan, self.members, self.dtype = plan, members, dtype
        leading = (len(members.widths), len(members.seeds))
        memory.require(
            plan.result_bytes(dtype) * leading[0] * leading[1],
            limit=memory_limit,
            available=memory.available_on_host(),
            what=f"the results of {leading[0]} widths with {leading[1]} networks each",
            ways_out="record fewer save_steps or observables, or train fewer seeds",
        )
        self._results = plan.allocate(leading, dtype)

    def put(self, width: int, first: int, batch: Mapping[str, NDArray[Any]]) -> None:
        """Members of one width, from position `first` in the list of seeds on: arrays (member, ...)."""
        i = self.members.widths.index(width)
        for name, value in batch.items():
            self._results[name][i, first : first + len(value)] = value

    def dataset(self, **attrs: Any) -> xr.Dataset:
        """The Dataset of kind "ensemble"."""
        results: dict[str, NDArray[Any]] = dict(self._results)
        if "loss" in self.plan.observables:
            prediction = results["prediction"].astype(np.float64)
            results |= schema.losses(self.plan.problem, prediction) | schema.accuracies(self.plan.problem, prediction)
        if "prediction" not in self.plan.observables:
            del results["prediction"]
        return schema.build(
            "ensemble",
            self.plan.problem,
            results,
            steps=self.plan.steps,
            coords={"width": np.array(self.members.widths), "seed": np.array(self.members.seeds)},
            attrs={"dtype": self.dtype, "seed": self.members.root, **attrs},
        )
