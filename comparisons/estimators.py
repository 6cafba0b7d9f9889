"""Estimates from an ensemble of independent networks, each with its standard error.  NumPy.

`x` is a `comparisons.samples.Sample`, or an array with members on axis 0.

    mean            m = (1/E) sum_e x_e                      se^2 = s^2 / E
    variance        s^2, unbiased                            se^2 = (2 E s^4 + (E-1) k_4) / (E (E+1)), k-statistic k_4
    squared bias    |m - limit|^2 - sum_k (s_k^2 / E + limit_se_k^2), unbiased: its expectation is |E x - limit|^2
    variance ratio  N sum_k s_k^2 / sum_k V_k, V the predicted N Var
    bias ratio      N sum_k (m - limit)_k b_k / sum_k (b_k^2 - b_se_k^2), b the predicted N bias: the slope of a line
    distance        root mean square over members of |x_e - limit|

Errors of what is summed over entries k come from the jackknife over groups of members: entries are correlated,
members are not.  Where networks are known by moments of blocks, so do those of variances and distances.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparisons.samples import Sample, as_sample, jackknife

Array = NDArray[np.float64]


def mean(x: Sample | Array) -> tuple[Array, Array]:
    """Mean over members and its standard error."""
    return as_sample(x).mean()


def variance(x: Sample | Array) -> tuple[Array, Array]:
    """Unbiased variance over members and its standard error, without assuming normality."""
    return as_sample(x).variance()


def squared_bias(x: Sample | Array, limit: Array, limit_se: Array, axis: tuple[int, ...]) -> tuple[Array, Array]:
    """Squared distance of the members' expectation from the limit, summed over `axis` of `limit`, and its error.

    Unbiased, so it may come out negative where the distance is not resolved.  The limit's own errors enter the error as
    if all entries along `axis` erred together (the cautious bound: their correlation is not known).
    """

    def squared(mean: Array, variance: Array, n: float) -> Array:
        excess: Array = (mean - limit) ** 2 - variance / n - limit_se**2
        return np.asarray(excess.sum(axis=axis))

    estimate, se = jackknife(squared, x)
    from_limit = 2 * (np.abs(mean(x)[0] - limit) * limit_se).sum(axis=axis)
    return estimate, np.hypot(se, from_limit)


def mean_variance(x: Sample | Array) -> tuple[Array, Array]:
    """Unbiased variance over members, averaged over all entries, and its error."""
    return jackknife(lambda _mean, variance, _n: variance.mean(), x)


def variance_ratio(
    x: Sample | Array, width: int, limit: Array, limit_se: Array, V: Array, V_se: Array, axis: tuple[int, ...]
) -> tuple[Array, Array]:
    """N times the members' variance over the predicted V, both summed over `axis`, and its error; nan where V = 0."""
    del limit, limit_se
    estimate, se = jackknife(lambda _mean, variance, _n: np.asarray(variance.sum(axis=axis)), x)
    total, total_se = V.sum(axis=axis), V_se.sum(axis=axis)
    total = np.where(total > 0, total, np.nan)
    ratio = width * estimate / total
    return ratio, np.hypot(width * se / total, ratio * total_se / total)


def bias_ratio(
    x: Sample | Array, width: int, limit: Array, limit_se: Array, b: Array, b_se: Array, axis: tuple[int, ...]
) -> tuple[Array, Array]:
    """Slope of N (mean - limit) over the predicted b, entries along `axis` together, and its error.

    Unbiased by the errors of b; nan where they leave no b to speak of.
    """
    square = (b**2 - b_se**2).sum(axis=axis)
    square = np.where(square > (b**2).sum(axis=axis) / 2, square, np.nan)
    slope, se = jackknife(
        lambda mean, _variance, _n: np.asarray(width * ((mean - limit) * b).sum(axis=axis) / square), x
    )
    from_limit = width * (limit_se * abs(b)).sum(axis=axis) / square
    # b enters twice, in the product and in the square: to first order its errors change the slope by -slope db.b / b.b
    from_b = abs(slope) * (b_se * abs(b)).sum(axis=axis) / square
    return slope, np.sqrt(se**2 + from_limit**2 + from_b**2)


def distance(x: Sample | Array, limit: Array, axis: tuple[int, ...]) -> tuple[Array, Array]:
    """Root mean square over members of |x_e - limit|, the norm over `axis` of `limit`, and its error."""
    return root(*as_sample(x).square(limit, axis))


def root(square: Array, se: Array) -> tuple[Array, Array]:
    """Square root and its error.  An estimate below its error gives max(root, 0) +- the root of that error."""
    value = np.sqrt(np.maximum(square, 0.0))
    slope = np.divide(se, 2 * value, out=np.zeros_like(se), where=value > 0)
    return value, np.where(square > se, slope, np.sqrt(se))


def upper_end(value: Array | float, se: Array | float) -> Any:
    """Of a value that may not be negative and is below its error: two errors above it.  With the errors that `root`
    gives, of a square two of its own above zero, or more."""
    return np.maximum(value, 0.0) + 2 * se


def z_score(deviation: Array, se: Array) -> Array:
    """deviation / se, and 0 where both vanish (a quantity that is the same in every network and in the limit)."""
    return np.divide(deviation, se, out=np.where(deviation == 0, 0.0, np.inf), where=se > 0)


def first_above(x: Array, curve: Array, level: float) -> float:
    """Where a curve (point,) first exceeds a level, on the line between two points of x; nan if never."""
    above = np.flatnonzero(curve > level)
    if len(above) == 0:
        return np.nan
    i = int(above[0])
    if i == 0:
        return float(x[0])
    share = (level - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))
