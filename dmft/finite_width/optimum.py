"""Where a curve along a grid of values is lowest, and what noise and bias do to that place.  NumPy.

Curves L(u) are the cubic splines through their values on the grid (not-a-knot; through three values a parabola), linear
in these: no window moves along, so that curves that differ little have optima that differ little.  With u* the lowest
point, kappa = L''(u*), and small changes dL of the curve,

    du* = -dL'(u*) / kappa            L(u) - L(u*) = kappa (u - u*)^2 / 2
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Array = NDArray[np.float64]
FEWEST = 3  # values of a grid
SCALES = ("log", "linear")


class Lowest(NamedTuple):
    """The lowest point of each curve; nan where that is an end of the grid.  at: u*; value; curvature: kappa."""

    at: Array
    value: Array
    curvature: Array


def coordinate(values: Array, scale: str) -> Array:
    """u of values: their logarithm, or themselves."""
    return np.log(values) if scale == "log" else values


def value_at(u: Any, scale: str) -> Any:
    """The values of u."""
    return np.exp(u) if scale == "log" else u


def spline(u: Array, curves: Array) -> CubicSpline:
    """Through curves (..., value)."""
    return CubicSpline(u, curves, axis=-1)


def lowest(u: Array, curves: Array) -> Lowest:
    """Of curves (..., value) on the grid u, ascending: the lowest among the minima of all pieces and the ends."""
    c = spline(u, curves).c  # (power, piece, ...)
    a, b, slope, start = (np.moveaxis(each, 0, -1) for each in c)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = b**2 - 3 * a * slope
        step = -slope / (b + np.sqrt(root))  # of the two roots that with positive curvature, also where a = 0
        inside = (root > 0) & (step >= 0) & (step <= np.diff(u))
        value = np.where(inside, ((a * step + b) * step + slope) * step + start, np.inf)
    piece = value.argmin(-1)[..., None]
    found = np.take_along_axis(value, piece, -1)[..., 0]
    ends = np.minimum(curves[..., 0], curves[..., -1])
    curvature = np.take_along_axis(2 * np.sqrt(np.maximum(root, 0.0)), piece, -1)[..., 0]
    at = u[:-1][piece[..., 0]] + np.take_along_axis(step, piece, -1)[..., 0]
    there = found < ends
    return Lowest(*(np.where(there, each, np.nan) for each in (at, found, curvature)))


def off_parabola(u: Array, curve: Array) -> float:
    """How far the lowest point of a curve (value,) is from that of the parabola through the three values around it, in
    steps of the grid: what the choice of values may err by."""
    i = int(np.clip(np.argmin(curve), 1, len(u) - 2))
    near = slice(i - 1, i + 2)
    apart = lowest(u, curve).at - lowest(u[near], curve[near]).at
    return float(abs(apart) / (u[i + 1] - u[i - 1]) * 2)


def slope_weights(u: Array, at: Any) -> Array:
    """w (value, ...) of points (...): the slope there of any curve y (value,) on the grid is w . y."""
    return slopes(u, np.eye(len(u)), at)


def slopes(u: Array, curve: Array, points: Array) -> Array:
    """Of a curve (value,) at points; nan where these are."""
    return np.asarray(spline(u, curve)(points, 1), np.float64)


def at_points(u: Array, curve: Array, points: Array) -> Array:
    """A curve (value,) at points; nan where these are."""
    return np.asarray(spline(u, curve)(points), np.float64)


def regrets(u: Array, curves: Array, sources: Array) -> Array:
    """(source, curve): what each curve (curve, value) has at the points `sources`, above its lowest value."""
    best = lowest(u, curves).value
    return np.stack([at_points(u, curve, sources) for curve in curves], axis=-1) - best


def in_steps(u: Array, at: Array, origin: Any) -> Array:
    """Distance from `origin` in steps of the grid, fractions in between."""
    index = np.arange(len(u), dtype=float)
    return np.asarray(np.interp(at, u, index) - np.interp(origin, u, index))
