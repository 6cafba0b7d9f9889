"""Least squares with bounds, from a start near the solution.

    min_t |A t - b|,   lower <= t <= upper

Stark & Parker 1995: some variables rest at a bound, the others are free; the least squares of the free ones are taken
as far as bounds allow, and then the variable whose bound costs most is set free.  (`scipy.optimize.lsq_linear` has no
start, and `nnls` no upper bounds.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROUNDING = 1e-13  # relative, of the gain of a variable
MOST = 10  # times the number of variables, that some are set free


def bounded(A: Array, b: Array, lower: float, upper: float, start: Array) -> Array:
    """The t above.

    Args:
        A: (row, variable); b: (row,); upper may be infinite.
        start: within the bounds.

    Example:
        >>> bounded(np.eye(2), np.array([0.5, 3.0]), 0.0, 1.0, np.zeros(2))
        array([0.5, 1. ])
    """
    t = np.clip(start, lower, upper)
    free = (t > lower) & (t < upper)
    scale = ROUNDING * np.linalg.norm(A, axis=0) * np.linalg.norm(b)
    cost = np.inf
    for _ in range(MOST * len(t) + 1):
        t, free = _of_free(A, b, lower, upper, t, free)
        r = b - A @ t
        if (now := float(r @ r)) >= cost:
            break  # nothing but rounding is left
        cost, gain = now, A.T @ r
        gain = np.where(free, 0.0, np.where(t <= lower, gain, -gain)) - scale
        best = int(np.argmax(gain)) if len(gain) else 0
        if not len(gain) or gain[best] <= 0:
            break
        free[best] = True
    return t


def _of_free(
    A: Array, b: Array, lower: float, upper: float, t: Array, free: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """The least squares of the free variables, those that meet a bound on the way being free no more."""
    t, free = t.copy(), free.copy()
    while free.any():
        z = t.copy()
        z[free] = np.linalg.lstsq(A[:, free], b - A[:, ~free] @ t[~free], rcond=None)[0]
        outside = free & ((z < lower) | (z > upper))
        if not outside.any():
            return z, free
        bound = np.where(z < lower, lower, upper)
        ahead = np.full(len(t), np.inf)
        ahead[outside] = (bound[outside] - t[outside]) / (z[outside] - t[outside])
        step = ahead.min()
        t += step * (z - t)
        met = ahead <= step
        t[met] = bound[met]
        free &= ~met
    return t, free
