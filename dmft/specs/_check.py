"""Validation of single values, with messages that name the value, what was expected and the way out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def integer(name: str, value: Any, *, minimum: int) -> int:
    """`value` as an int of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}={value!r} is not an integer; give a whole number of at least {minimum}.")
    if value < minimum:
        raise ValueError(f"{name}={value} is too small; it must be at least {minimum}.")
    return int(value)


def positive(name: str, value: Any, *, hint: str = "") -> float:
    """`value` as a finite float above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}={value!r} is not a number; give a positive one.{hint and ' ' + hint}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value} must be positive and finite.{hint and ' ' + hint}")
    return float(value)


def nonnegative(name: str, value: Any, *, below: float = math.inf) -> float:
    """`value` as a float of at least zero and less than `below`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}={value!r} is not a number; give one of at least 0.")
    if not 0 <= value < below:
        raise ValueError(
            f"{name}={value} must be at least 0 and " + (f"below {below:g}." if below < math.inf else "finite.")
        )
    return float(value)


def finite_array(name: str, value: ArrayLike, dims: tuple[str, ...]) -> NDArray[np.float64]:
    """`value` as a read-only float64 copy with one axis per name in `dims`, none of them empty."""
    try:
        array = np.array(value, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be read as an array of real numbers: {error}.") from error
    expected = "(" + ", ".join(dims) + ("," if len(dims) == 1 else "") + ")"
    if array.ndim != len(dims):
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}.")
    if array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape}: it is empty. Give at least one entry along each of {expected}."
        )
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"{name} holds {len(bad)} non-finite number(s), the first at index {where} ({array[where]}). "
            "Remove or impute these entries first."
        )
    array.flags.writeable = False
    return array
