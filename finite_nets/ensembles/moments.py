"""Moments of an ensemble over its members, without keeping them.

For every block of members and every entry q of what is recorded: how many, their mean, and M2 = sum_e (q_e - mean)^2;
of predictions on request also the sums of products of deviations over all pairs of (step, sample).  All in float64,
each block in two passes over the members that are at hand; pieces of blocks are joined as in `dmft.running.moments`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.running.moments import Array, Arrays, pooled, pooled_products
from finite_nets.device.host import usual_torch


@dataclass(frozen=True)
class BlockMoments:
    """Of some blocks.

    count, diverged: (block,), the members that enter, and those that do not because they diverged.
    mean, m2: by quantity, (block, ...).
    products: (block, entry, entry_2) of predictions, flattened, or None.
    """

    count: NDArray[np.int64]
    diverged: NDArray[np.int64]
    mean: Arrays
    m2: Arrays
    products: Array | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By the names of `dmft.schema`, (block, ...); nan in blocks without members."""
        empty = self.count == 0
        found: dict[str, NDArray[Any]] = {"count": self.count, "diverged": self.diverged}
        for name in self.mean:
            found[f"{name}_mean"] = _without(self.mean[name], empty)
            found[f"{name}_m2"] = _without(self.m2[name], empty)
        if self.products is not None:
            shape = self.mean["prediction"].shape[1:]
            products = self.products.reshape(len(self.count), *shape, *shape)
            found["prediction_comoment"] = _without(products, empty)
        return found


def _without(values: Array, empty: NDArray[np.bool_]) -> Array:
    return np.where(empty.reshape(-1, *[1] * (values.ndim - 1)), np.nan, values)


def joined(pieces: Sequence[BlockMoments]) -> BlockMoments:
    """One block from its pieces, each a block of its own."""
    if len(pieces) == 1:
        return pieces[0]
    count = np.concatenate([piece.count for piece in pieces])
    means = {name: np.concatenate([piece.mean[name] for piece in pieces]) for name in pieces[0].mean}
    squares = {name: np.concatenate([piece.m2[name] for piece in pieces]) for name in pieces[0].m2}
    total = {name: pooled(count, means[name], squares[name]) for name in means}
    products = None
    if pieces[0].products is not None:
        each = np.concatenate([piece.products for piece in pieces if piece.products is not None])
        products = pooled_products(count, means["prediction"].reshape(len(count), -1), each)[None]
    return BlockMoments(
        count=count.sum(keepdims=True),
        diverged=np.concatenate([piece.diverged for piece in pieces]).sum(keepdims=True),
        mean={name: mean[None] for name, (mean, _) in total.items()},
        m2={name: m2[None] for name, (_, m2) in total.items()},
        products=products,
    )


def of_members(results: Mapping[str, NDArray[Any]], diverged: NDArray[np.bool_], *, covariance: bool) -> BlockMoments:
    """The moments of one block, from results (member, ...) of its members on the host."""
    with usual_torch(torch.device("cpu")):
        blocks = Blocks(torch.from_numpy(~diverged), 1)
        values = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in results.items()}
        found = {name: blocks.moments(value) for name, value in values.items()}
        return blocks.collected(found, blocks.products(values["prediction"]) if covariance else None)


class Blocks:
    """The members of a batch by blocks.  Each is reduced by itself: its rounding does not depend on the others.

    Args:
        healthy: (member,), those that count.
        blocks: how many equal blocks the members make.
    """

    def __init__(self, healthy: Tensor, blocks: int) -> None:
        self._healthy = healthy.view(blocks, -1)
        self._whole: list[bool] = self._healthy.all(1).tolist()

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(block, ...): mean and M2 of values (member, ...)."""
        found = [self._of_block(i, block) for i, block in enumerate(self._parts(values))]
        means, squares = zip(*found, strict=True)
        return torch.stack(means), torch.stack(squares)

    def products(self, values: Tensor) -> Tensor:
        """(block, entry, entry_2): sums of products of deviations, of values (member, ...) flattened."""
        found = []
        for i, block in enumerate(self._parts(values.flatten(1))):
            mean, _ = self._of_block(i, block)
            deviation = torch.where(self._healthy[i][:, None], block.double() - mean, 0.0)
            found.append(deviation.mT @ deviation)
        return torch.stack(found)

    def _parts(self, values: Tensor) -> tuple[Tensor, ...]:
        """The values (member, ...) of every block."""
        return torch.split(values, self._healthy.shape[1])

    def _of_block(self, i: int, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and M2 of the values (member, ...) of a block."""
        each = values.double()
        if self._whole[i]:
            variance, mean = torch.var_mean(each, dim=0, correction=0)
            return mean, variance * len(each)
        healthy = self._healthy[i].view(-1, *[1] * (each.ndim - 1))
        mean = torch.where(healthy, each, 0.0).sum(0) / healthy.sum().clamp(min=1)
        return mean, torch.where(healthy, each - mean, 0.0).square().sum(0)

    def collected(self, moments: Mapping[str, tuple[Tensor, Tensor]], products: Tensor | None) -> BlockMoments:
        """On the host, with the counts."""
        count = _numpy(self._healthy.sum(1))
        return BlockMoments(
            count=count,
            diverged=self._healthy.shape[1] - count,
            mean={name: _numpy(mean) for name, (mean, _) in moments.items()},
            m2={name: _numpy(m2) for name, (_, m2) in moments.items()},
            products=None if products is None else _numpy(products),
        )


def _numpy(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy()
    return array
