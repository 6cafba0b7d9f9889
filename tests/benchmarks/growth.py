"""How measured numbers grow: slopes of logarithms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def slopes(name: str, values: Sequence[float], columns: Mapping[str, Sequence[float]]) -> str:
    """Of every column against the values, over all of them (and the last two); of layers L against the hidden matrices,
    L - 1, of which the first may be none."""
    x = np.array(values, float) - (name == "L")
    some = x > 0
    x, found = np.log(x[some]), []
    for column, numbers in columns.items():
        y = np.log(np.array(numbers, float)[some])
        found.append(f"{column} {np.polyfit(x, y, 1)[0]:.2f} ({(y[-1] - y[-2]) / (x[-1] - x[-2]):.2f})")
    return f"slopes in {name}{' - 1' if name == 'L' else ''}: " + ", ".join(found)
