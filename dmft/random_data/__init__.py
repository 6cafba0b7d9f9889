"""Theories of training on high-dimensional random data: scaling laws, deep linear networks, deterministic equivalents.

    from dmft import random_data as rd
    spectrum = rd.power_law(1e11, capacity=1.5, source=1.75)         or rd.isotropic(D), rd.measured(kernel, targets)
    rd.gradient_flow(spectrum, [1e3, 1e10], features=1000)           random features at any time
    rd.gradient_descent, rd.bias_variance                            ... step by step, of ensembles
    rd.one_pass_sgd, rd.sgd_with_replacement, rd.largest_rate        stochastic gradients
    rd.march, rd.rich_flow                                           feature learning; any schedule and batch
    rd.march_deep                                                    deep linear and residual networks
    rd.march_quadratic, rd.moments                                   quadratic perceptrons of any width: grokking
    rd.one_point, rd.two_point, rd.Wishart, rd.Projection            deterministic equivalents
    rd.learning_curves                                               kernels of real data, beside regression on them
    rd.exponents, rd.compute_frontier, rd.optimal_schedule           laws
    rd.seen_by_features                                              what N features see: a spectrum of their own

Linear models whose features, widths, samples and dimension grow together: single sites are Gaussian, and what is left
are correlations and responses of two times.  Sizes are part of such a problem; its scale, by which all of them are
multiplied, takes the place of the width, and corrections are of relative order 1/scale.  (The quadratic perceptron is
closed at any size and width.)  Losses of this package are mean squares, without the 1/2 of `dmft.Problem`.

NumPy and SciPy; JAX is loaded by `optimal_schedule` alone, PyTorch never.
"""

from dmft.random_data.deep_linear import DeepTimes, march_deep
from dmft.random_data.ensembles import BiasVariance, bias_variance
from dmft.random_data.equivalents import (
    BranchError,
    Noise,
    Product,
    Projection,
    Wishart,
    effective_ridge,
    largest_eigenvalue,
    one_point,
    two_point,
)
from dmft.random_data.frontier import Frontier, compute_frontier
from dmft.random_data.laws import (
    Exponents,
    exponents,
    kappa_of_rank,
    local_slopes,
    residual_of_features,
    residual_of_samples,
)
from dmft.random_data.projected import Marched, RichFlow, march, rich_flow
from dmft.random_data.quadratic import Course, Moments, march_quadratic, moments
from dmft.random_data.random_features import ContourError, Losses, TwoTimes, gradient_descent, gradient_flow
from dmft.random_data.real_data import learning_curves
from dmft.random_data.schedule import Schedule, optimal_schedule, scheduled_loss
from dmft.random_data.seen import Seen, seen_by_features
from dmft.random_data.sgd import largest_rate, noise_kernels, one_pass_sgd, sgd_with_replacement, stability
from dmft.specs.random_data import Spectrum, isotropic, measured, power_law

__all__ = [
    "BiasVariance",
    "BranchError",
    "ContourError",
    "Course",
    "DeepTimes",
    "Exponents",
    "Frontier",
    "Losses",
    "Marched",
    "Moments",
    "Noise",
    "Product",
    "Projection",
    "RichFlow",
    "Schedule",
    "Seen",
    "Spectrum",
    "TwoTimes",
    "Wishart",
    "bias_variance",
    "compute_frontier",
    "effective_ridge",
    "exponents",
    "gradient_descent",
    "gradient_flow",
    "isotropic",
    "kappa_of_rank",
    "largest_eigenvalue",
    "largest_rate",
    "learning_curves",
    "local_slopes",
    "march",
    "march_deep",
    "march_quadratic",
    "measured",
    "moments",
    "noise_kernels",
    "one_pass_sgd",
    "one_point",
    "optimal_schedule",
    "power_law",
    "residual_of_features",
    "residual_of_samples",
    "rich_flow",
    "scheduled_loss",
    "seen_by_features",
    "sgd_with_replacement",
    "stability",
    "two_point",
]
