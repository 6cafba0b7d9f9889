"""Means over independent repetitions, with their standard errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = dict[str, Array]


class Moments:
    """Mean and sum of squared deviations of named arrays, updated one set at a time (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Arrays = {}
        self.squares: Arrays = {}

    def add(self, values: Arrays) -> None:
        self.count += 1
        for name, value in values.items():
            mean = self.mean.setdefault(name, np.zeros_like(value))
            deviation = value - mean
            self.mean[name] = mean + deviation / self.count
            self.squares[name] = self.squares.get(name, 0.0) + deviation * (value - self.mean[name])

    def mean_and_error(self, *, exact: bool = False) -> Arrays:
        """`<name>`, and `<name>_se`, the standard error of the mean; 0 if the values are `exact`."""
        n = self.count
        if exact:
            return self.mean | {f"{name}_se": np.zeros_like(mean) for name, mean in self.mean.items()}
        errors = {f"{name}_se": np.sqrt(square / (n * (n - 1))) for name, square in self.squares.items()}
        return self.mean | errors
