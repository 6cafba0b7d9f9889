"""Formulas of one's own for an activation: where they are found again, and what is asked of them.

A formula is looked at on a grid, dense near the origin, sparse far out: it must act on every entry by itself, be
finite, and have the derivative that is given with it, but at the kinks that are named.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Formula = Callable[[Any, Any], Any]

NEAR, FAR = np.linspace(-6.0, 6.0, 1201) + 0.0013, np.array([-1e3, -1e2, -30.0, 30.0, 1e2, 1e3])
STEP = 1e-6  # of central differences: their error is 1e-10 of phi beside rounding, 1e-16 / STEP
AGREEMENT = 1e-5  # of derivative and differences, relative to the largest slope
JUMP = 0.05  # of the slope over two steps, relative to the largest, that is a kink: a smooth phi'' would be above 1e4


def path_of(function: Any) -> str:
    """Where a function is found again, "module:function"; TypeError if it is not."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not callable(function) or module is None or not name.isidentifier():
        raise TypeError(
            f"{name or function!r} cannot be found again by its name: an activation of one's own is made of functions "
            "that are defined in a module (or a notebook) under a name of their own, no lambda, not inside another one."
        )
    return f"{module}:{name}"


def function_at(path: str) -> Formula:
    module, _, name = path.partition(":")
    if module not in sys.modules:
        raise ValueError(
            f"the activation {path} is of a module that is not imported, and is never imported from a description; "
            f"`import {module}` first."
        )
    found = getattr(sys.modules[module], name, None)
    if not callable(found):
        raise ValueError(
            f"the module {module} has no function {name}, of which the activation was made; define it first."
        )
    function: Formula = found
    return function


def values_of(function: Formula) -> NDArray[np.float64]:
    """On NEAR and FAR; ValueError where they are no finite numbers of the same shape."""
    h = np.concatenate([NEAR, FAR])
    name = path_of(function)
    try:
        with np.errstate(all="ignore"):
            values = np.asarray(function(np, h), np.float64)
    except Exception as error:
        raise ValueError(
            f"{name}(numpy, h) fails for an array h: {type(error).__name__}: {error}. Write it for arrays of the "
            "module that is its first argument: numpy, jax.numpy, torch."
        ) from error
    if values.shape != h.shape:
        raise ValueError(f"{name} makes the shape {values.shape} of {h.shape}; it must act on every entry by itself.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name} is {values[bad[0]]} at h={h[bad[0]]:g}; it must be finite up to |h| = 1000.")
    return values


def require_entrywise(formula: Formula, values: NDArray[np.float64]) -> None:
    """ValueError where an entry depends on the others."""
    some = np.concatenate([NEAR, FAR])[::-3]
    with np.errstate(all="ignore"):
        alone = np.asarray(formula(np, some[:, None]), np.float64).ravel()
    if not np.allclose(alone, values[::-3], rtol=1e-9, atol=1e-12):
        raise ValueError(
            f"{path_of(formula)} gives an entry another value in another array; it must act on each by itself."
        )


def require_derivative(name: str, formula: Formula, slopes: NDArray[np.float64], kinks: tuple[float, ...]) -> None:
    """ValueError where the derivative is not that of the formula, or jumps where no kink is named."""
    near = slopes[: len(NEAR)]
    largest = max(float(abs(near).max()), 1e-3)
    away = np.ones(len(NEAR), bool)
    for kink in kinks:
        away &= abs(NEAR - kink) > 2 * STEP
    difference = (formula(np, NEAR + STEP) - formula(np, NEAR - STEP)) / (2 * STEP)
    wrong = away & (abs(difference - near) > AGREEMENT * largest)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"the derivative given for {name} is {near[i]:.6g} at h={NEAR[i]:.4g}, and its values rise by "
            f"{difference[i]:.6g}; give its derivative, and name its kinks with kinks=[...]."
        )
    # between neighbours of the grid: the mean of the slopes at both ends against what the values rise by
    rise = np.diff(formula(np, NEAR)) / np.diff(NEAR)
    between = [not any(a < k < b for k in kinks) for a, b in pairwise(NEAR.tolist())]
    jumps = np.asarray(between) & (abs(np.diff(near)) > JUMP * largest) & (abs(rise - near[:-1]) > 1e-3 * largest)
    steep = abs(np.diff(near)) > 20 * np.median(abs(np.diff(near)) + 1e-6 * largest)
    if (jumps & steep).any():
        i = int(np.flatnonzero(jumps & steep)[0])
        raise ValueError(
            f"the slope of {name} jumps from {near[i]:.4g} to {near[i + 1]:.4g} near h={NEAR[i]:.4g}; name its kinks "
            "with kinks=[...]: methods for smooth activations would be wrong there."
        )


@cache
def digest_of(formula: Formula, derivative: Formula) -> str:
    """Of the values, to eight digits, so that a formula that was edited is another one."""
    numbers = np.concatenate([values_of(formula), values_of(derivative)])
    return hashlib.sha256(",".join(f"{v + 0.0:.7e}" for v in numbers).encode()).hexdigest()[:16]
