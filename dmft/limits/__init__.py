"""Limits that are known in closed form; also independent checks of the solver.  NumPy and SciPy; JAX is loaded by
`by_paths` alone."""

import importlib
from typing import Any

from dmft.limits.depth import infinite_depth_kernels, linear_residual
from dmft.limits.distance import distance_from_lazy
from dmft.limits.frozen import frozen_kernels
from dmft.limits.gaussian import gaussian_averages
from dmft.limits.initial import InitialFluctuations, initial_fluctuations
from dmft.limits.lazy import lazy_limit
from dmft.limits.two_layer import two_layer_linear

__all__ = [
    "InitialFluctuations",
    "distance_from_lazy",
    "frozen_kernels",
    "gaussian_averages",
    "infinite_depth_kernels",
    "initial_fluctuations",
    "lazy_limit",
    "linear_residual",
    "two_layer_linear",
]


def __getattr__(name: str) -> Any:
    if name == "by_paths":
        return importlib.import_module("dmft.limits.by_paths")
    raise AttributeError(f"module 'dmft.limits' has no attribute {name!r}")
