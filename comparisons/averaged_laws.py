"""Laws of width, averaged by how well they describe the means of some widths: the limit, and an error that covers.

    y(N) = a_0 + sum_k a_k N^-p_k        powers p: (1), (1, 2), a number, or (p) with p unknown
    w(law, cut) ~ exp(-(chi2 + 2 terms + 2 cut) / 2)      cut: how many of the narrowest widths are left out
    a_0 = sum w a_0(law, cut) = sum_i l_i y_i             as every fit is linear in the means
    se^2 = sum_i l_i^2 s_i^2  +  sum w (a_0(law, cut) - a_0)^2                 statistical, and of the choice of the law

A law with as many constants as widths passes through all of them: it is not tried.  Beside others it counts
nevertheless, as it says where else the limit may be, and pays no penalty for its last constant, which nothing tries.

The first part is the error of the average.  Averages over models with data of their own have the mean of the fits'
squared errors in its place: here they share the data, and differ by the same scatter once more.  A coefficient keeps
that mean: beyond its linear part it has what laws leave out, by which it is off by up to a third of its scatter.

An unknown exponent has a flat prior on `EXPONENTS`; its posterior is summed, so that a_0 has the error that comes of
not knowing it.  A coefficient of 1/N that is known with an error is one more measurement, of the laws that have it.

Errors of means over few networks are themselves uncertain.  A variance s_i^2 of nu_i degrees of freedom is taken
together with that of the other widths, near widths first, by the power of N with which it goes:

    s^2 <- (nu_i s_i^2 + nu_0 S_i^2) / (nu_i + nu_0)      S_i^2 = sum_j nu_j k_ij (N_i / N_j)^s s_j^2 / sum_j nu_j k_ij
    k_ij = 1 / (1 + log2(N_i / N_j)^2)

That power is the slope of log s^2 on log N, of variances of nu degrees of freedom by

    E log s^2 = log sigma^2 + psi(nu / 2) - log(nu / 2),    Var log s^2 = psi'(nu / 2)

within `FALLS`: not below -1, the law of networks that are alike, as errors of wide networks are better too large (and
skewed losses have small variances where their means are low), nor much above 0, however few networks say so.

Source: W. Jay, E. Neil 2021 (averages over models and cuts); G. Smyth 2004 (variances taken together).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, digamma, polygamma

from comparisons.errors import UnresolvedError

Array = NDArray[np.float64]
Law = str | float
LAWS: dict[str, tuple[float, ...] | None] = {"1/N": (1.0,), "1/N + 1/N^2": (1.0, 2.0), "N^-p": None}
EXPONENTS = np.linspace(0.25, 2.5, 46)
PRIOR = 8  # nu_0
FALLS = (-1.0, 0.5)  # s
NO_WEIGHT = 1e-6
EXACT = 1e-4  # of what is known without an error


class Averaged(NamedTuple):
    """What is found at every entry (...).

    limit, statistical, model: a_0 and the two parts of its error.  slope, slope_se: a_1 of the laws with 1/N; nan where
    none of them has a weight.  exponent, exponent_se: of the law with an unknown one; nan where it is not tried, or not
    known much better than before.  weights (law, ...): of all cuts together; nan of laws that are not tried,
    which have the rest; 0 of N^-p where 1/N is known.  chi2, dof, p_value: of the law and cut with the largest weight;
    p nan where it is not tried.
    """

    limit: Array
    statistical: Array
    model: Array
    slope: Array
    slope_se: Array
    exponent: Array
    exponent_se: Array
    weights: Array
    chi2: Array
    dof: NDArray[Any]
    p_value: Array

    @property
    def error(self) -> Array:
        return np.hypot(self.statistical, self.model)


class Fit(NamedTuple):
    """One law and cut: coefficients (term, entry), their errors, chi2 (entry,), number of terms, degrees of freedom;
    linear (row, entry), how a_0 depends on what was measured; apart (entry,), its variance over exponents, unless p is
    given."""

    values: Array
    errors: Array
    chi2: Array
    terms: int
    dof: int
    linear: Array
    apart: Array | float


def variances_together(width: Array, variance: Array, freedom: Array) -> Array:
    """Variances over networks (width, ...) taken together as the head of this file says; freedom: nu (width,)."""
    freedom = np.asarray(freedom, np.float64)
    known = np.where(freedom.reshape(-1, *[1] * (variance.ndim - 1)) > 0, variance, 0.0)
    near = freedom / (1 + np.log2(width[:, None] / width) ** 2)
    np.fill_diagonal(near, 0.0)
    # of a single width by itself
    near = np.where(near.sum(1, keepdims=True) > 0, near, np.diag(np.maximum(freedom, 1.0)))
    found = exponent_of_variances(width, variance, freedom)[0]
    power = np.clip(np.where(np.isfinite(found), found, FALLS[0]), *FALLS)
    size = (width / width.max()).reshape(-1, *[1] * (variance.ndim - 1)) ** power
    others = size * np.einsum("ij,j...->i...", near / near.sum(1, keepdims=True), known / size)
    nu = freedom.reshape(-1, *[1] * (variance.ndim - 1))
    return np.asarray((nu * known + PRIOR * others) / (nu + PRIOR))


def exponent_of_variances(
    width: Array, variance: Array, freedom: Array, spread: Array | float = 1.0
) -> tuple[Array, Array]:
    """s of variances over networks (width, ...) ~ N^s, and its error; nan where fewer than two widths have any.
    spread: (...), the variance of these variances over that of normal numbers."""
    half = np.asarray(freedom, np.float64)[freedom > 0] / 2
    shape = -1, *[1] * (variance.ndim - 1)
    weight = np.where(variance[freedom > 0] > 0, 1 / polygamma(1, half).reshape(shape), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.where(weight > 0, np.log(variance[freedom > 0]) - (digamma(half) - np.log(half)).reshape(shape), 0.0)
        x = np.log(width[freedom > 0]).reshape(shape)
        x = x - (weight * x).sum(0) / weight.sum(0)
        square = (weight * x**2).sum(0)
        square = np.where((weight > 0).sum(0) > 1, square, np.nan)
        return (weight * x * y).sum(0) / square, np.sqrt(spread / square)


def averaged(
    width: Array, y: Array, se: Array, laws: Sequence[Law] = tuple(LAWS), slope: tuple[Array, Array] | None = None
) -> Averaged:
    """The average over laws and cuts of every entry.

    Args:
        width: (width,), different; at least three, or two and a slope.
        y, se: (width, ...).  Entries whose errors vanish at all widths are taken with equal weights: their fit has no
            errors but that of the choice.
        laws: names of `LAWS`, or numbers p.
        slope: a_1 and its error (...), where known.

    Raises:
        UnresolvedError: no law has fewer constants than there are widths.
    """
    order = np.argsort(width)
    n, shape = np.asarray(width, np.float64)[order], y.shape[1:]
    y, se = (np.array(a, np.float64)[order].reshape(len(n), -1) for a in (y, se))
    exact = (se == 0).all(axis=0)
    size = np.abs(y).max(axis=0)
    se = np.where(exact, np.where(size > 0, size, 1.0) * 1e-9, np.where(se > 0, se, np.nan))
    known = None
    if slope is not None:
        b, b_se = (np.asarray(a, np.float64).reshape(1, -1) for a in slope)
        known = b, np.maximum(b_se, EXACT * np.maximum(np.abs(b), n.min() * se.min(axis=0)))  # exact ones, too
    entries = y.shape[1]
    found, criteria, of_law = [], [], []
    for i, law in enumerate(laws):
        powers = LAWS[law] if isinstance(law, str) else (law,)
        if powers is None and known is not None:
            continue  # 1/N is known then
        for cut in range(len(n)):
            measured = len(n) - cut + (known is not None and powers is not None and 1.0 in powers)
            terms = 3 if powers is None else 1 + len(powers)
            if measured < terms or (cut and measured == terms):
                break
            each = (n[cut:], y[cut:], se[cut:])
            fit = unknown(*each) if powers is None else fitted(*each, powers, known if 1.0 in powers else None)
            # of all that is measured: the widths, and a slope that is known
            behind = len(n) + (known is not None) - cut - len(fit.linear)
            found.append(fit._replace(linear=np.pad(fit.linear, ((cut, behind), (0, 0)))))
            criteria.append(fit.chi2 + 2 * min(terms, measured - 1) + 2 * cut)
            of_law.append(i)
    tried = {i for i, fit in zip(of_law, found, strict=True) if fit.dof}
    if not tried:
        raise UnresolvedError(
            f"{len(n)} widths do not test {', '.join(map(str, laws))}: as many constants, or 1/N is known; "
            "give more widths, or laws=['1/N']."
        )
    criterion = np.stack(criteria)
    best = criterion.argmin(axis=0)
    weight = np.exp((criterion.min(axis=0) - criterion) / 2)
    weight /= weight.sum(axis=0)
    limit = np.sum([w * fit.values[0] for w, fit in zip(weight, found, strict=True)], axis=0)
    linear = np.sum([w * fit.linear for w, fit in zip(weight, found, strict=True)], axis=0)
    variance = (linear**2 * np.concatenate([se, known[1]] if known else [se]) ** 2).sum(axis=0)
    apart = np.stack([fit.apart + (fit.values[0] - limit) ** 2 for fit in found])
    statistical, model = np.where(exact, 0.0, np.sqrt(variance)), np.sqrt((weight * apart).sum(axis=0))
    b, b_se = _mean_of(found, [k for k, i in enumerate(of_law) if (LAWS.get(str(laws[i])) or (0,))[0] == 1], 1, weight)
    exponent, exponent_se = _mean_of(
        found, [k for k, i in enumerate(of_law) if laws[i] == "N^-p" and i in tried], 2, weight
    )
    resolved = exponent_se < EXPONENTS.std() / 2
    exponent, exponent_se = (np.where(resolved, v, np.nan) for v in (exponent, exponent_se))
    rows = np.arange(entries)
    chi2, dof = np.stack([fit.chi2 for fit in found])[best, rows], np.array([fit.dof for fit in found])[best]
    chi2 = np.where(exact, 0.0, chi2)
    by_law = np.stack([weight[np.array(of_law) == i].sum(axis=0) for i in range(len(laws))])
    by_law[sorted(set(of_law) - tried)] = np.nan
    means = (limit, statistical, model, b, b_se, exponent, exponent_se)
    last = (
        by_law.reshape(-1, *shape),
        *(v.reshape(shape) for v in (chi2, dof, np.where(dof, chdtrc(dof, chi2), np.nan))),
    )
    return Averaged(*(v.reshape(shape) for v in means), *last)


def _mean_of(found: list[Fit], such: list[int], term: int, weight: Array) -> tuple[Array, Array]:
    """What some of the fits say of a coefficient, and its error; nan where none of them has a weight."""
    if not such:
        return np.full(weight.shape[1], np.nan), np.full(weight.shape[1], np.nan)
    w = weight[such]
    w = w / np.where((total := w.sum(axis=0)) > NO_WEIGHT, total, np.nan)
    b, b_se = (np.stack([getattr(found[k], name)[term] for k in such]) for name in ("values", "errors"))
    mean = (w * b).sum(axis=0)
    return mean, np.sqrt((w * (b_se**2 + (b - mean) ** 2)).sum(axis=0))


def fitted(n: Array, y: Array, se: Array, powers: Sequence[float], slope: tuple[Array, Array] | None = None) -> Fit:
    """y (width, entry) = a_0 + sum_k a_k n^-p_k, with errors se; slope: a_1 and its error (1, entry), where known."""
    scale = n.min()
    p = np.array([0.0, *powers])
    units = scale**p
    design = (scale / n[:, None]) ** p
    if slope is not None:
        design = np.concatenate([design, (p == 1.0)[None]])
        y, se = (np.concatenate([a, b / scale]) for a, b in zip((y, se), slope, strict=True))
    A = design / se.T[:, :, None]  # (entry, row, term)
    covariance = np.linalg.inv(np.einsum("eri,erj->eij", A, A))
    values = np.einsum("eij,erj,re->ie", covariance, A, y / se)
    chi2 = (((y - design @ values) / se) ** 2).sum(axis=0)
    errors = np.sqrt(np.einsum("eii->ie", covariance))
    linear = np.einsum("ej,erj->re", covariance[:, 0], A) / se
    if slope is not None:
        linear[-1] /= scale
    return Fit(values * units[:, None], errors * units[:, None], chi2, len(p), len(y) - len(p), linear, 0.0)


def unknown(n: Array, y: Array, se: Array) -> Fit:
    """y = a_0 + a_1 n^-p of unknown p: means and standard deviations of a_0, a_1 and p, chi2 of the best."""
    fits = [fitted(n, y, se, (p,)) for p in EXPONENTS]
    chi2 = np.stack([fit.chi2 for fit in fits])
    weight = np.exp((chi2.min(axis=0) - chi2) / 2)
    weight /= weight.sum(axis=0)
    values = np.stack(
        [np.concatenate([fit.values, np.full((1, y.shape[1]), p)]) for fit, p in zip(fits, EXPONENTS, strict=True)]
    )
    errors = np.stack([np.concatenate([fit.errors, np.zeros((1, y.shape[1]))]) for fit in fits])
    mean = (weight[:, None] * values).sum(axis=0)
    square = (weight[:, None] * (errors**2 + (values - mean) ** 2)).sum(axis=0)
    linear = np.sum([w * fit.linear for w, fit in zip(weight, fits, strict=True)], axis=0)
    apart = (weight * (values[:, 0] - mean[0]) ** 2).sum(axis=0)
    return Fit(mean, np.sqrt(square), chi2.min(axis=0), 3, len(n) - 3, linear, apart)
