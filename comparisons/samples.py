"""What estimators ask of the networks of one width, whether these are all at hand or moments over blocks of them.

    mean        m and its standard error
    variance    s^2, unbiased, and its standard error
    square      mean over members of |x - limit|^2, summed over some entries, and its standard error
    groups      for a jackknife: how many members a group has, their sums and sums of squares about the common mean

Of members the errors follow from the members themselves; of blocks, from their scatter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft.running.moments import pooled, pooled_products

Array = NDArray[np.float64]
Pair = tuple[Array, Array]
GROUPS = 20  # of members in the jackknife, at most
FEWEST = 8  # networks, or blocks of them, of a width, for errors of what follows from them


class Groups(NamedTuple):
    """members (group,), their number; sums, squares (group, ...) of deviations from the common mean `centre` (...)."""

    members: Array
    sums: Array
    squares: Array
    centre: Array


@dataclass(frozen=True)
class Members:
    """Every network: x (member, ...)."""

    x: Array

    @property
    def count(self) -> int:
        return len(self.x)

    def reshaped(self, shape: tuple[int, ...]) -> Members:
        """With members of this shape."""
        return Members(self.x.reshape(len(self.x), *shape))

    def mean(self) -> Pair:
        return self.x.mean(axis=0), self.x.std(axis=0, ddof=1) / np.sqrt(len(self.x))

    def variance(self) -> Pair:
        """Of at least four members, the error without assuming normality: its square is unbiased for any distribution
        with four moments, se^2 = (2 n s^4 + (n-1) k_4) / (n (n+1)) with the k-statistic k_4 (Kenney & Keeping 1951)."""
        n = len(self.x)
        squares = (self.x - self.x.mean(axis=0)) ** 2
        m2 = squares.mean(axis=0)
        m4 = np.einsum("e...,e...->...", squares, squares) / n
        s2 = m2 * n / (n - 1)
        k4 = n**2 * ((n + 1) * m4 - 3 * (n - 1) * m2**2) / ((n - 1) * (n - 2) * (n - 3))
        return s2, np.sqrt(np.maximum(2 * n * s2**2 + (n - 1) * k4, 0.0) / (n * (n + 1)))

    def square(self, limit: Array, axis: tuple[int, ...]) -> Pair:
        return Members(((self.x - limit) ** 2).sum(axis=tuple(a + 1 for a in axis))).mean()

    def groups(self) -> Groups:
        centre = self.x.mean(axis=0)
        parts = np.array_split(self.x - centre, min(GROUPS, len(self.x)))
        return Groups(
            np.array([len(part) for part in parts], np.float64),
            np.stack([part.sum(axis=0) for part in parts]),
            np.stack([np.einsum("e...,e...->...", part, part) for part in parts]),
            centre,
        )


@dataclass(frozen=True)
class Blocks:
    """Moments of blocks: counts (block,), means and sums of squared deviations from them, m2, (block, ...).

    Blocks without members are not among them.
    """

    counts: NDArray[np.int64]
    means: Array
    m2: Array

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def reshaped(self, shape: tuple[int, ...]) -> Blocks:
        """With members of this shape."""
        each = (len(self.counts), *shape)
        return Blocks(self.counts, self.means.reshape(each), self.m2.reshape(each))

    def mean(self) -> Pair:
        mean, squares = pooled(self.counts, self.means, self.m2)
        return mean, np.sqrt(squares / (max(self.count - 1, 1) * self.count))

    def variance(self) -> Pair:
        return jackknife(lambda _mean, variance, _n: variance, self)

    def square(self, limit: Array, axis: tuple[int, ...]) -> Pair:
        def distance(mean: Array, variance: Array, n: float) -> Array:
            return np.asarray(((mean - limit) ** 2 + variance * (n - 1) / n).sum(axis=axis))

        return jackknife(distance, self)

    def groups(self) -> Groups:
        centre, _ = pooled(self.counts, self.means, self.m2)
        weights = self.counts.reshape(-1, *[1] * (self.means.ndim - 1)).astype(np.float64)
        deviation = self.means - centre
        sums, squares = weights * deviation, self.m2 + weights * deviation**2
        parts = np.array_split(np.arange(len(self.counts)), min(GROUPS, len(self.counts)))
        return Groups(
            np.array([self.counts[part].sum() for part in parts], np.float64),
            np.stack([sums[part].sum(axis=0) for part in parts]),
            np.stack([squares[part].sum(axis=0) for part in parts]),
            centre,
        )


Sample = Members | Blocks
Statistic = Callable[[Array, Array, float], Array]


def as_sample(x: Sample | Array) -> Sample:
    """Arrays (member, ...) as members."""
    return Members(x) if isinstance(x, np.ndarray) else x


def jackknife(statistic: Statistic, x: Sample | Array) -> Pair:
    """`statistic(mean, unbiased variance, count)` of the members, and its standard error.

    One group of members after another is left out; sums of groups serve all of these subsets.
    """
    value, left_out = _with_groups_left_out(statistic, x)
    return value, error_of(left_out)


def error_of(left_out: Array) -> Array:
    """The standard error of a statistic, from its values (group, ...) without one group after another."""
    k = len(left_out)
    return np.asarray(np.sqrt((k - 1) / k * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)))


def pseudo_values(statistic: Statistic, x: Sample | Array) -> Array:
    """(group, ...): k theta - (k - 1) theta without a group, of k groups.  Their mean is theta without its bias of
    order 1 / members; their scatter gives its error (`mean_of`)."""
    value, left_out = _with_groups_left_out(statistic, x)
    k = len(left_out)
    return np.asarray(k * value - (k - 1) * left_out)


def mean_of(pseudo: Array) -> Pair:
    """The mean of pseudo-values (group, ...) and its standard error."""
    return pseudo.mean(axis=0), pseudo.std(axis=0, ddof=1) / np.sqrt(len(pseudo))


def _with_groups_left_out(statistic: Statistic, x: Sample | Array) -> Pair:
    """The statistic of all members, and (group, ...) without each group."""
    members, sums, squares, centre = as_sample(x).groups()

    def of(total: Array, square: Array, n: float) -> Array:
        return statistic(centre + total / n, np.maximum(square - total**2 / n, 0.0) / max(n - 1, 1), n)

    n, all_sums, all_squares = members.sum(), sums.sum(axis=0), squares.sum(axis=0)
    left_out = np.stack(
        [of(all_sums - s, all_squares - q, n - g) for g, s, q in zip(members, sums, squares, strict=True)]
    )
    return of(all_sums, all_squares, n), left_out


def samples(nets: xr.Dataset, name: str, i: int) -> Sample:
    """The healthy networks of the i-th width, of a result of kind "ensemble" or "moments"."""
    if nets.attrs["kind"] == "ensemble":
        x = nets[name].values[i].astype(np.float64)
        return Members(x[~nets["diverged"].values[i]] if "diverged" in nets else x)
    there = nets["count"].values[i] > 0
    return Blocks(
        nets["count"].values[i][there], nets[f"{name}_mean"].values[i][there], nets[f"{name}_m2"].values[i][there]
    )


def members(nets: xr.Dataset, name: str, i: int) -> Array:
    """The same of kind "ensemble", (member, ...)."""
    found = samples(nets, name, i)
    assert isinstance(found, Members)
    return found.x


def prediction_covariance(nets: xr.Dataset, i: int) -> Array:
    """Unbiased covariance of predictions over all entries, (entry, entry_2), of the networks of the i-th width."""
    if nets.attrs["kind"] == "ensemble":
        x = members(nets, "prediction", i)
        return np.cov(x.reshape(len(x), -1), rowvar=False)
    there = nets["count"].values[i] > 0
    counts = nets["count"].values[i][there]
    means = nets["prediction_mean"].values[i][there].reshape(len(counts), -1)
    products = nets["prediction_comoment"].values[i][there].reshape(len(counts), means.shape[1], -1)
    return pooled_products(counts, means, products) / max(int(counts.sum()) - 1, 1)


def held(nets: xr.Dataset, name: str) -> bool:
    """Whether a result of kind "ensemble" or "moments" holds a quantity."""
    return (name if nets.attrs["kind"] == "ensemble" else f"{name}_mean") in nets


def require_enough(nets: xr.Dataset, fewest: int = FEWEST) -> list[int]:
    """How many healthy networks each width has.

    Raises:
        ValueError: fewer networks of a width, or blocks of them, than variances and their errors need.
    """
    if nets.attrs["kind"] == "ensemble":
        missing = nets["diverged"].values.sum(axis=1) if "diverged" in nets else np.zeros(nets.sizes["width"], int)
        counts, units, kind = nets.sizes["seed"] - missing, nets.sizes["seed"] - missing, "network(s)"
    else:
        counts, units, kind = nets["count"].values.sum(axis=1), (nets["count"].values > 0).sum(axis=1), "block(s)"
    for width, unit in zip(nets["width"].values, units, strict=True):
        if unit < fewest:
            way_out = "train more seeds" if kind == "network(s)" else "train more of them, or in smaller blocks"
            raise ValueError(
                f"the ensemble has {unit} {kind} of width {width}; variances and their errors need at least {fewest} "
                f"a width: {way_out}."
            )
    return [int(count) for count in counts]
