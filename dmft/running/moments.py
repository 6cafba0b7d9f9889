"""Means and squared deviations of repetitions, added one by one or set by set.

Of sets k of n_k values with means m_k and sums of squared deviations M_k from them (Chan, Golub & LeVeque 1979),
without cancellation and in any order:

    n = sum_k n_k      m = sum_k n_k m_k / n      M = sum_k M_k + sum_k n_k (m_k - m)^2
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = dict[str, Array]


class Moments:
    """Mean and sum of squared deviations of named arrays, updated one set at a time (Welford 1962)."""

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.mean: Arrays = {}
        self.squares: Arrays = {}

    def add(self, values: Arrays) -> None:
        self.count += 1
        for name, value in values.items():
            mean = self.mean.setdefault(name, np.zeros_like(value))
            deviation = value - mean
            self.mean[name] = mean + deviation / self.count
            self.squares[name] = self.squares.get(name, 0.0) + deviation * (value - self.mean[name])

    def mean_and_error(self, *, exact: bool = False) -> Arrays:
        """`<name>`, and `<name>_se`, the standard error of the mean; 0 if the values are `exact`."""
        n = self.count
        if exact:
            return self.mean | {f"{name}_se": np.zeros_like(mean) for name, mean in self.mean.items()}
        errors = {f"{name}_se": np.sqrt(square / (n * (n - 1))) for name, square in self.squares.items()}
        return self.mean | errors


def moments_of(repetitions: Iterable[Arrays]) -> Moments:
    """All of these."""
    found = Moments()
    for values in repetitions:
        found.add(values)
    return found


def pooled(count: NDArray[Any], mean: Array, squares: Array) -> tuple[Array, Array]:
    """Mean and sum of squared deviations of all values, from those of sets (set, ...) with `count` (set,) values; sets
    without values do not count, whatever they hold."""
    weights, total = _weights(count, mean.ndim)
    mean, squares = (np.where(weights > 0, a, 0.0) for a in (mean, squares))
    centre = (weights * mean).sum(axis=0) / total
    return centre, squares.sum(axis=0) + (weights * (mean - centre) ** 2).sum(axis=0)


def pooled_products(count: NDArray[Any], mean: Array, products: Array) -> Array:
    """Sum of products of deviations (entry, entry_2) of all values, from those of sets (set, entry, entry_2) with means
    (set, entry)."""
    weights, total = _weights(count, 2)
    mean, products = np.where(weights > 0, mean, 0.0), np.where(weights[..., None] > 0, products, 0.0)
    deviation = mean - (weights * mean).sum(axis=0) / total
    found: Array = products.sum(axis=0) + (weights * deviation).T @ deviation
    return found


def _weights(count: NDArray[Any], ndim: int) -> tuple[Array, float]:
    """The counts as (set, 1, ...), and their sum (1 where there is nothing)."""
    weights = np.asarray(count, np.float64).reshape(-1, *[1] * (ndim - 1))
    return weights, max(float(weights.sum()), 1.0)
