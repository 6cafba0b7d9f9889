"""How a quantity falls with width: weighted least squares with known errors.

    power law     y(N) = A (N / N_0)^s                  N_0 the geometric mean of the widths
    series        y(N) = a_0 + a_1 / N + a_2 / N^2      to the order that the data ask for

All in y itself (not in its logarithm: an unbiased estimate of a small square may be negative, and still counts).  The
order of a series is that of the smallest Akaike criterion for known errors, chi^2 + 2 k for k terms (Akaike 1974), mean
over entries, among those that leave a width to check with.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import curve_fit
from scipy.special import chdtrc

from comparisons.errors import UnresolvedError

Array = NDArray[np.float64]

CLEAR = 2.0  # standard errors that make a value resolved


class PowerLaw(NamedTuple):
    """Slope s and its error, and chi^2 per degree of freedom (nan for two widths).

    The error is larger by the root of chi^2 per degree of freedom where that exceeds one.  It is the error of the slope
    of a pure power law: corrections of relative order 1/N shift slopes over narrow widths.
    """

    slope: float
    slope_se: float
    chi2_per_dof: float


UNRESOLVED = PowerLaw(np.nan, np.nan, np.nan)


def fit_power_law(width: ArrayLike, y: ArrayLike, se: ArrayLike) -> PowerLaw:
    """Fit y = A (N/N_0)^s with errors `se`; `UNRESOLVED` if fewer than two values exceed two of theirs, or
    the slope comes out with an error above 1.

    Args:
        width, y, se: (width,), at least two.
    """
    width, y, se = (np.asarray(a, np.float64) for a in (width, y, se))
    clear = (y > CLEAR * se) & (se > 0)
    if clear.sum() < 2:
        return UNRESOLVED
    reference = float(np.exp(np.log(width).mean()))
    scale = np.log(width / reference)
    slope, intercept = np.polyfit(scale[clear], np.log(y[clear]), 1, w=y[clear] / se[clear])
    try:
        (log_a, slope), covariance = curve_fit(
            lambda x, log_a, s: np.exp(log_a + s * x), scale, y, p0=(intercept, slope), sigma=se, absolute_sigma=True
        )
    except RuntimeError:  # no convergence: nothing to report
        return UNRESOLVED
    residual = (y - np.exp(log_a + slope * scale)) / se
    dof = len(width) - 2
    chi2_per_dof = float((residual**2).sum() / dof) if dof else np.nan
    slope_se = float(np.sqrt(covariance[1, 1] * np.fmax(chi2_per_dof, 1.0)))
    return PowerLaw(float(slope), slope_se, chi2_per_dof) if slope_se <= 1 else UNRESOLVED


class Series(NamedTuple):
    """y = sum_i a_i / N^i for each entry of y.

    coefficients (term, ...), covariance (term, term_2, ...) of the errors as given, chi2 (...), dof; p_value (...), the
    probability of a larger chi2.
    """

    coefficients: Array
    covariance: Array
    chi2: Array
    dof: int
    p_value: Array

    @property
    def order(self) -> int:
        return len(self.coefficients) - 1

    @property
    def errors(self) -> Array:
        """Of the coefficients, (term, ...)."""
        return np.asarray(np.sqrt(np.einsum("ii...->i...", self.covariance)))

    def at(self, width: ArrayLike) -> tuple[Array, Array]:
        """Values and errors (width, ...); infinite widths are the limit."""
        powers = (1.0 / np.asarray(width, float).reshape(-1, 1)) ** np.arange(len(self.coefficients))
        value = np.einsum("wi,i...->w...", powers, self.coefficients)
        square = np.einsum("wi,wj,ij...->w...", powers, powers, self.covariance)
        return value, np.sqrt(np.maximum(square, 0.0))


ORDERS = (1, 2)


def fit_series(width: ArrayLike, y: ArrayLike, se: ArrayLike, *, order: int | str = "auto") -> Series:
    """Fit y = sum_i a_i / N^i, every entry by itself and all to the same order.

    Args:
        width: (width,), different.
        y, se: (width, ...), errors of the widths independent; entries without errors (se = 0 at every width) are taken
            with equal weights and have no errors; entries that lack a value or an error at some width
            come out nan.
        order: 1 or 2, or "auto": the smallest criterion, averaged over entries.

    Raises:
        ValueError: another order, or widths that are equal.
        UnresolvedError: not more widths than terms; the fit through them, which nothing checks, is attached.
    """
    n, y, se = (np.asarray(a, np.float64) for a in (width, y, se))
    if order not in (*ORDERS, "auto"):
        raise ValueError(f"order={order!r} is unknown; choose 1, 2 or 'auto'.")
    if len(np.unique(n)) < len(n):
        raise ValueError(f"widths {n.tolist()} are not all different.")
    if order != "auto" and len(n) > int(order) + 1:
        return _series(n, y, se, int(order))
    orders = [k for k in ORDERS if len(n) > k + 1] if order == "auto" else []
    if not orders:
        terms = 2 if order == "auto" else int(order) + 1
        estimate = _series(n, y, se, min(terms, len(n)) - 1)
        raise UnresolvedError(
            f"{len(n)} width(s) for a law of {terms} terms leave none to check it with; take at least {terms + 1}.",
            estimate,
        )
    fits = [_series(n, y, se, k) for k in orders]
    uncertain = (se > 0).any(axis=0) & np.isfinite(fits[0].chi2)  # entries that can choose
    return min(fits, key=lambda fit: float(fit.chi2[uncertain].mean() if uncertain.any() else 0) + 2 * fit.order)


def _series(n: Array, y: Array, se: Array, order: int) -> Series:
    shape, terms, reference = y.shape[1:], order + 1, float(n.min())
    flat, error = y.reshape(len(n), -1), se.reshape(len(n), -1)
    exact = (error == 0).all(axis=0)
    known = np.isfinite(flat).all(axis=0) & (exact | (error > 0).all(axis=0)) & np.isfinite(error).all(axis=0)
    if not known.any():
        raise ValueError("no entry has a finite value and error at every width; leave out the widths that lack them.")
    weight = 1.0 / np.where(known & ~exact, error, 1.0)
    flat = np.where(known, flat, np.nan)
    design = (reference / n[:, None]) ** np.arange(terms)  # of order one
    A = weight.T[:, :, None] * design  # (entry, width, term)
    normal = np.linalg.inv(np.einsum("ewi,ewj->eij", A, A))
    coefficients = np.einsum("eij,ewj,we->ei", normal, A, weight * flat)
    residual = weight * (flat - design @ coefficients.T)
    chi2, dof = np.where(exact, 0.0, (residual**2).sum(axis=0)), len(n) - terms
    scale = reference ** np.arange(terms)
    covariance = np.where(exact[:, None, None], 0.0, normal * np.outer(scale, scale))
    p_value = chdtrc(dof, chi2) if dof else np.full_like(chi2, np.nan)
    return Series(
        (coefficients * scale).T.reshape(terms, *shape),
        np.moveaxis(covariance, 0, -1).reshape(terms, terms, *shape),
        chi2.reshape(shape),
        dof,
        np.asarray(p_value).reshape(shape),
    )
