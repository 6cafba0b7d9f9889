"""Limits that are known in closed form; also independent checks of the solver.  NumPy and SciPy, no JAX."""

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
    "initial_fluctuations",
    "lazy_limit",
    "two_layer_linear",
]
