"""Estimates from an ensemble of independent networks, each with its standard error.  NumPy arrays; members on axis 0.

    mean            m = (1/E) sum_e x_e                      se^2 = s^2 / E
    variance        s^2, unbiased                            se^2 = (2 E s^4 + (E-1) k_4) / (E (E+1)), k-statistic k_4
    squared bias    |m - limit|^2 - sum_k (s_k^2 / E + limit_se_k^2), unbiased: its expectation is |E x - limit|^2
    variance ratio  N sum_k s_k^2 / sum_k V_k, V the predicted N Var
    bias ratio      N sum_k (m - limit)_k b_k / sum_k (b_k^2 - b_se_k^2), b the predicted N bias: the slope of a line
    distance        root mean square over members of |x_e - limit|

Errors of what is summed over entries k come from the jackknife over groups of members: entries are correlated,
members are not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
GROUPS = 20  # of members in the jackknife


def mean(x: Array) -> tuple[Array, Array]:
    """Mean over members and its standard error."""
    return x.mean(axis=0), x.std(axis=0, ddof=1) / np.sqrt(len(x))


def variance(x: Array) -> tuple[Array, Array]:
    """Unbiased variance over at least four members and its standard error, without assuming normality.

    The square of the error is unbiased too (Kenney & Keeping 1951), for any distribution with four moments.
    """
    n = len(x)
    squares = (x - x.mean(axis=0)) ** 2
    m2 = squares.mean(axis=0)
    m4 = np.einsum("e...,e...->...", squares, squares) / n
    s2 = m2 * n / (n - 1)
    k4 = n**2 * ((n + 1) * m4 - 3 * (n - 1) * m2**2) / ((n - 1) * (n - 2) * (n - 3))
    return s2, np.sqrt(np.maximum(2 * n * s2**2 + (n - 1) * k4, 0.0) / (n * (n + 1)))


def jackknife(statistic: Callable[[Array, Array, int], Array], x: Array) -> tuple[Array, Array]:
    """`statistic(mean, unbiased variance, count)` of the members, and its standard error.

    One group of members after another is left out; sums of groups serve all of these subsets.
    """
    centre = x.mean(axis=0)
    groups = np.array_split(x - centre, min(GROUPS, len(x)))
    sums = np.stack([group.sum(axis=0) for group in groups])
    squares = np.stack([np.einsum("e...,e...->...", group, group) for group in groups])

    def of(total: Array, square: Array, n: int) -> Array:
        return statistic(centre + total / n, np.maximum(square - total**2 / n, 0.0) / max(n - 1, 1), n)

    all_sums, all_squares = sums.sum(axis=0), squares.sum(axis=0)
    left_out = np.stack(
        [of(all_sums - s, all_squares - q, len(x) - len(g)) for s, q, g in zip(sums, squares, groups, strict=True)]
    )
    k = len(groups)
    se = np.sqrt((k - 1) / k * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    return of(all_sums, all_squares, len(x)), se


def squared_bias(x: Array, limit: Array, limit_se: Array, axis: tuple[int, ...]) -> tuple[Array, Array]:
    """Squared distance of the members' expectation from the limit, summed over `axis` of `limit`, and its error.

    Unbiased, so it may come out negative where the distance is not resolved.  The limit's own errors enter the error as
    if all entries along `axis` erred together (the cautious bound: their correlation is not known).
    """

    def squared(mean: Array, variance: Array, n: int) -> Array:
        excess: Array = (mean - limit) ** 2 - variance / n - limit_se**2
        return np.asarray(excess.sum(axis=axis))

    estimate, se = jackknife(squared, x)
    from_limit = 2 * (np.abs(x.mean(axis=0) - limit) * limit_se).sum(axis=axis)
    return estimate, np.hypot(se, from_limit)


def mean_variance(x: Array) -> tuple[Array, Array]:
    """Unbiased variance over members, averaged over all entries, and its error."""
    return jackknife(lambda _mean, variance, _n: variance.mean(), x)


def variance_ratio(
    x: Array, width: int, limit: Array, limit_se: Array, V: Array, V_se: Array, axis: tuple[int, ...]
) -> tuple[Array, Array]:
    """N times the members' variance over the predicted V, both summed over `axis`, and its error; nan where V = 0."""
    del limit, limit_se
    estimate, se = jackknife(lambda _mean, variance, _n: np.asarray(variance.sum(axis=axis)), x)
    total, total_se = V.sum(axis=axis), V_se.sum(axis=axis)
    total = np.where(total > 0, total, np.nan)
    ratio = width * estimate / total
    return ratio, np.hypot(width * se / total, ratio * total_se / total)


def bias_ratio(
    x: Array, width: int, limit: Array, limit_se: Array, b: Array, b_se: Array, axis: tuple[int, ...]
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


def distance(x: Array, limit: Array, axis: tuple[int, ...]) -> tuple[Array, Array]:
    """Root mean square over members of |x_e - limit|, the norm over `axis` of `limit`, and its error."""
    square, se = mean(((x - limit) ** 2).sum(axis=tuple(a + 1 for a in axis)))
    return root(square, se)


def root(square: Array, se: Array) -> tuple[Array, Array]:
    """Square root and its error.  An estimate below its error gives max(root, 0) +- the root of that error."""
    value = np.sqrt(np.maximum(square, 0.0))
    slope = np.divide(se, 2 * value, out=np.zeros_like(se), where=value > 0)
    return value, np.where(square > se, slope, np.sqrt(se))


def z_score(deviation: Array, se: Array) -> Array:
    """deviation / se, and 0 where both vanish (a quantity that is the same in every network and in the limit)."""
    return np.divide(deviation, se, out=np.where(deviation == 0, 0.0, np.inf), where=se > 0)
