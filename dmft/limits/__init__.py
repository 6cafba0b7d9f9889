"""Limits that are known in closed form; also independent checks of the solver.  NumPy and SciPy, no JAX."""

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
