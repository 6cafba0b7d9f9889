"""Moments of an ensemble over its members, without keeping them.

For every block of members and every entry q of what is recorded: how many, their mean, and M2 = sum_e (q_e - mean)^2;
of predictions on request also the sums of products of deviations over all pairs of (step, sample).  All in float64,
each block in two passes over the members that are at hand; pieces of blocks are joined as in `dmft.moments`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.moments import Array, Arrays, pooled, pooled_products


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
    """The moments of one block, from results (member, ...) of its members."""
    healthy = {name: values[~diverged].astype(np.float64) for name, values in results.items()}
    count = int((~diverged).sum())
    mean = {name: values.sum(axis=0) / max(count, 1) for name, values in healthy.items()}
    m2 = {name: ((values - mean[name]) ** 2).sum(axis=0) for name, values in healthy.items()}
    products = None
    if covariance:
        deviation = (healthy["prediction"] - mean["prediction"]).reshape(count, -1)
        products = (deviation.T @ deviation)[None]
    return BlockMoments(
        count=np.array([count]),
        diverged=np.array([len(diverged) - count]),
        mean={name: values[None] for name, values in mean.items()},
        m2={name: values[None] for name, values in m2.items()},
        products=products,
    )


class Blocks:
    """The members of a batch by blocks.

    Args:
        healthy: (member,), those that count.
        blocks: how many equal blocks the members make.
    """

    def __init__(self, healthy: Tensor, blocks: int) -> None:
        self._healthy = healthy.view(blocks, -1)
        self._all = bool(healthy.all())
        self._count = self._healthy.sum(1)

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(block, ...): mean and M2 of values (member, ...)."""
        # block by block: its rounding does not depend on what it is trained with
        blocks = values.reshape(*self._healthy.shape, *values.shape[1:])
        moments = [self._of_block(block, healthy) for block, healthy in zip(blocks, self._healthy, strict=True)]
        means, squares = zip(*moments, strict=True)
        return torch.stack(means), torch.stack(squares)

    def _of_block(self, values: Tensor, healthy: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and M2 of the values (member, ...) of one block."""
        each = values.double()
        if self._all:
            variance, mean = torch.var_mean(each, dim=0, correction=0)
            return mean, variance * len(each)
        healthy = healthy.view(-1, *[1] * (each.ndim - 1))
        mean = torch.where(healthy, each, 0.0).sum(0) / healthy.sum().clamp(min=1)
        return mean, torch.where(healthy, each - mean, 0.0).square().sum(0)

    def products(self, values: Tensor) -> Tensor:
        """(block, entry, entry_2): sums of products of deviations, of values (member, ...) flattened."""
        mean, _ = self.moments(values.flatten(1))
        found = []
        for i, healthy in enumerate(self._healthy):
            each = values.flatten(1)[i * len(healthy) : (i + 1) * len(healthy)].double()
            deviation = torch.where(healthy[:, None], each - mean[i], 0.0)
            found.append(deviation.mT @ deviation)
        return torch.stack(found)

    def collected(self, moments: Mapping[str, tuple[Tensor, Tensor]], products: Tensor | None) -> BlockMoments:
        """On the host, with the counts."""
        count = _numpy(self._count)
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
