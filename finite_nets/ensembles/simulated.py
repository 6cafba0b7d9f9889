"""Ensembles of models that have a training of their own: batches of members, healthy or not, as a Dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from dmft import schema
from dmft.errors import exploded
from dmft.running import memory
from dmft.specs import Problem
from finite_nets.device.free_memory import free_memory
from finite_nets.device.random import normals
from finite_nets.ensembles.collection import Divergences, Members
from finite_nets.ensembles.moments import of_members

Array = NDArray[np.float64]
SHARE = 0.4  # of the memory that is there, for a batch of members
AT_ONCE = {"cpu": 2**23, "cuda": 2**31}  # numbers of a batch of members: what a cache, or a GPU, takes


class Draws:
    """Normals of a batch of members (member, ...), by the number of a parameter."""

    def __init__(self, members: Tensor, root: int, width: int, dtype: torch.dtype) -> None:
        self.members, self._given = members, {"root_seed": root, "width": width, "members": members, "dtype": dtype}

    def __call__(self, parameter: int, *shape: int) -> Tensor:
        return normals(shape, parameter=parameter, **self._given)  # type: ignore[arg-type]


def at_once(numbers: int, *, device: torch.device, dtype: torch.dtype, limit: int | None, **of: str) -> int:
    """How many members, of so many numbers each, are trained together.

    limit: in bytes, of a batch; None for a share of what is available.  of: `what` and `ways_out` of the error.

    Raises:
        MemoryEstimateError: a single one does not fit.
    """
    available = free_memory(device)
    memory.require(numbers * dtype.itemsize, limit=limit, available=available, **of)
    fits = int((limit or SHARE * available) // (numbers * dtype.itemsize))
    return max(1, min(fits, AT_ONCE[device.type] // numbers))


def simulated(
    problem: Problem,
    members: Members,
    train: Callable[[int, Draws, NDArray[np.int64]], Mapping[str, Array]],
    at_once: Callable[[int], int],
    *,
    steps: NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
    finished: Callable[[int], Any],
    attrs: dict[str, Any],
    block: int | None,
) -> xr.Dataset:
    """Train all members, as many at once as fit.

    Args:
        problem: what they are of.
        members: widths, seed indices and the root seed.
        train: (width, draws of some members, steps to record) -> arrays (member, step, ...) by variable, `loss` and
            `test_loss`, if there is one, among them.
        at_once: (width) -> how many members are trained together.
        steps: the recorded steps.
        device, dtype: where, and in which numbers.
        finished: called with the number of members of each batch.
        attrs: what the producer says of itself.
        block: of moments, how many members a block has; None to keep all members.

    Returns:
        Dataset of kind "ensemble" (`dmft.schema`): variables (width, seed, step, ...), nan where `diverged`; or of kind
        "moments", (width, block, step, ...), for which a block of members is held at a time.

    Raises:
        DivergenceError: all members of a width diverge.
    """
    seeds = np.asarray(members.seeds, np.int64)
    seen = np.union1d([0], steps)  # networks are judged by where they began, recorded or not
    size, divergences, rows = block or len(seeds), Divergences(problem), []
    for width in members.widths:
        most, blocks = at_once(width), []
        for of_block in (seeds[start : start + size] for start in range(0, len(seeds), size)):
            parts = []
            for first in range(0, len(of_block), most):
                part = of_block[first : first + most]
                draws = Draws(torch.as_tensor(part, device=device), members.root, width, dtype)
                parts.append(train(width, draws, seen))
                finished(len(part))
            found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            losses = [found[name] for name in ("loss", "test_loss") if name in found]
            gone = np.any([exploded(one, one[:, :1]) for one in losses], axis=(0, -1))
            divergences.add(width, int(gone.sum()), gone.size)
            recorded = {name: value[:, np.isin(seen, steps)] for name, value in found.items()}
            blocks.append(
                _kept(recorded, gone) if block is None else of_members(recorded, gone, covariance=False).arrays()
            )
        rows.append({name: np.concatenate([each[name] for each in blocks]) for name in blocks[0]})
    values = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    coords = {"width": np.array(members.widths)}
    coords |= {"seed": seeds} if block is None else {"block": np.arange(values["count"].shape[1])}
    if block is None and not values["diverged"].any():
        del values["diverged"]
    attrs = {**attrs, "seed": members.root, "diverged": divergences.report()}
    return schema.build(
        "ensemble" if block is None else "moments", problem, values, steps=steps, coords=coords, attrs=attrs
    )


def _kept(found: Mapping[str, Array], gone: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Results of all members, nan of those that are gone."""
    masked = {name: np.where(gone.reshape(-1, *[1] * (value.ndim - 1)), np.nan, value) for name, value in found.items()}
    return {**masked, "diverged": gone}
