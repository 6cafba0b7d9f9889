"""Numbers and tables as text: what is printed anywhere of a value and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDEST = 100  # characters of a table
ROUNDING = 1e-12  # relative, below which digits of a value say nothing
LONGEST = 9  # digits of a number that is written without a power of ten


def with_error(value: float, error: float) -> str:
    """A value and its standard error, both down to the second digit of the error: "0.4860 +- 0.0027", "17640 +- 320",
    "(1.2346 +- 0.0012)e-07"; the value alone where it has none."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.6g}"
    if error < ROUNDING * abs(value):
        return f"{value:.6g} +- {error:.1e}"
    last = _power(error) - 1  # of ten, at the last digit that is written
    top = max(_power(value), last + 1)
    scaled = last < -LONGEST or top >= LONGEST or (top < -3 and last < -6)
    unit = top if scaled else 0
    decimals = max(unit - last, 0)
    # digits to the left of the point that the error leaves unknown are zeros
    shown, spread = (round(x / 10.0**unit, unit - last) for x in (value, error))
    text = f"{shown:.{decimals}f} +- {spread:.{decimals}f}"
    return f"({text})e{unit:+03d}" if scaled else text


def at_most(bound: float) -> str:
    """An upper end, with two digits: "< 0.0023", "< 0.040", "< 470", "< 2.3e-09"."""
    last = _power(bound) - 1
    if not math.isfinite(bound) or not -6 < last < LONGEST:
        return f"< {bound:.2g}"
    return f"< {round(bound, -last):.{max(-last, 0)}f}"


def _power(x: float) -> int:
    """Of ten, of the first of two significant digits."""
    return int(f"{abs(x):.1e}".partition("e")[2]) if x else -(10**6)


def table(columns: Sequence[Sequence[str]]) -> str:
    """Columns of cells side by side, right-aligned; those beyond `WIDEST` characters below, beside the first again."""
    sizes = [max(map(len, column)) for column in columns]
    first, parts = columns[0], list[list[int]]()
    for i in range(1, len(columns)):
        if not parts or sizes[0] + sum(sizes[j] + 2 for j in [*parts[-1], i]) > WIDEST:
            parts.append([])
        parts[-1].append(i)
    found = []
    for part in parts or [[]]:
        shown = [(first, sizes[0]), *((columns[i], sizes[i]) for i in part)]
        found.append("\n".join("  ".join(c[row].rjust(w) for c, w in shown) for row in range(len(first))))
    return "\n\n".join(found)
