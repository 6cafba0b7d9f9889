"""How a quantity falls with width: weighted fits of power laws.

    y(N) = A (N / N_0)^s        N_0 the geometric mean of the widths

by least squares in y itself (not in its logarithm: an unbiased estimate of a small square may be negative, and
still counts).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import curve_fit

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
