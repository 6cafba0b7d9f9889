"""Validation of single values, with messages that name the value, what was expected and the way out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXACT_INTEGERS = 2**53  # up to which float64 holds all of them


def without_effect(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """ValueError for keyword arguments of a function that are not its defaults, and have no effect `where`.

    device="cpu" and progress=False are what holds where nothing is sampled.
    """
    usual, holds = inspect.signature(function).parameters, {"device": ("cpu",), "progress": (False,)}
    found = [name for name, value in given.items() if value not in (usual[name].default, *holds.get(name, ()))]
    if found:
        raise ValueError(
            f"{', '.join(f'{name}={given[name]!r}' for name in found)} {'is' if len(found) == 1 else 'are'} not for "
            f"{where}: leave {'it' if len(found) == 1 else 'them'} out."
        )


def integer(name: str, value: Any, *, minimum: int) -> int:
    """`value` as an int of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}={value!r} is not an integer; give a whole number of at least {minimum}.")
    if value < minimum:
        raise ValueError(f"{name}={value} is too small; it must be at least {minimum}.")
    return int(value)


def boolean(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r} is neither True nor False.")
    return bool(value)


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


def real_array(name: str, value: Any) -> NDArray[Any]:
    """`value` as an array of real numbers of its own type; what would lose something on the way is refused.

    Arrays of PyTorch, JAX, pandas and xarray are taken as they are, from their device and without their gradient.

    Raises:
        TypeError: complex numbers, text, dates, objects; what is no array.  ValueError: masked entries.
    """
    # PyTorch is not loaded here: whoever has a tensor has loaded it
    if type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value  # NumPy lacks bfloat16
    if isinstance(value, np.ma.MaskedArray) and (masked := int(np.sum(value.mask))):
        raise ValueError(
            f"{name} holds {masked} masked entries, which are no numbers. Fill or drop them first, e.g. with "
            ".filled(0) or np.ma.compress_rows."
        )
    if isinstance(value, (set, frozenset, Mapping, Iterator)):
        raise TypeError(f"{name} is a {type(value).__name__}, whose entries have no fixed place; give a list or array.")
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the library of the array raises
        raise TypeError(f"{name} cannot be read as an array of real numbers: {error}.") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} cannot be read as an array of real numbers: it has dtype {array.dtype}. {_way_out(array)}"
        )
    return array


def _way_out(array: NDArray[Any]) -> str:
    """From an array that holds no real numbers."""
    if array.dtype.kind == "c":
        return "Take its .real, .imag or absolute value."
    if array.dtype.kind == "O" and array.ndim == 0:
        return "Give an array (of a sparse matrix: its .toarray())."
    if array.dtype.kind in "mM":
        return "Say in which unit, e.g. (t - t[0]) / np.timedelta64(1, 's')."
    return "Convert it first, e.g. with .astype(float)."


def finite_array(name: str, value: ArrayLike, dims: tuple[str, ...]) -> NDArray[np.float64]:
    """`value` as a read-only float64 copy with one axis per name in `dims`, none of them empty."""
    given = real_array(name, value)
    with np.errstate(over="ignore"):  # of longer floats: not finite then
        array = np.array(given, dtype=np.float64, order="C")
    if given.dtype.kind in "iu" and given.size and max(-int(given.min()), int(given.max())) > EXACT_INTEGERS:
        raise ValueError(
            f"{name} holds integers of size {np.abs(array).max():.3g}; beyond 2^53 they lose their last digits as "
            "float64. Subtract an offset first, or leave out what is an identifier."
        )
    expected = "(" + ", ".join(dims) + ("," if len(dims) == 1 else "") + ")"
    if array.ndim != len(dims):
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}.")
    if array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape}: it is empty. Give at least one entry along each of {expected}."
        )
    require_finite(name, array)
    array.flags.writeable = False
    return array


def require_finite(name: str, array: NDArray[Any]) -> None:
    """ValueError that names the first entry that is not a finite number."""
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"{name} holds {len(bad)} non-finite number(s), the first at index {where} ({array[where]}). "
            "Remove or impute these entries first."
        )
