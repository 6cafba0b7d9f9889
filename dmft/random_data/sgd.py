"""Stochastic gradient descent of linear models as Volterra equations, and where it is stable.

    Shat     N features: A Lambda A^T/N;  P samples: Lambda^{1/2} X^T X Lambda^{1/2}/P, or both
    K(u)     Tr[ Shat^2 (1 - eta Shat)^{2u} ]                      K_te(u) = Tr[ Lambda Shat (1 - eta Shat)^{2u} ]

one pass     (9)  L(t) = F(t) + (eta^2/B) sum_{s<t} K(t-1-s) (L(s) + sigma^2)       N features, B fresh samples a step
replacement (10)  L(t) = F(t) + (eta^2/B) sum_{s<t} K_te(t-1-s) L_tr(s)             N = infinity, B of P samples
                  L_tr(t) = F_tr(t) + (eta^2/B) sum_{s<t} K(t-1-s) L_tr(s)          the noise follows the train loss
stability   (12)  (eta^2/B) sum_u K(u) = -df(kappa(-2/eta)) / B < 1                 and eta < 2 / largest eigenvalue

    F, F_tr  losses of gradient descent on the population, or on all samples (`dmft.random_data.random_features`)
    K, K_te  by one point: Tr[Shat^2 G(z)] = Tr Lambda - z df,  Tr[Lambda Shat G] = Tr Lambda - z S Tr[Lambda g]
    B        batch;  eta rate;  L, L_tr excess test loss and train loss of all samples

With features and samples both finite, momentum, schedules or feature learning: `dmft.random_data.projected.march`.

Cost: O(T M) for K, O(T^2 M) for F, O(T^2) for the equation.

Assumptions and approximations: relative corrections 1/B of single modes, by kurtosis of Gaussian data and by -g g^T/B.

Source: A. Atanasov, B. Bordelon, J. Zavatone-Veth, C. Paquette, C. Pehlevan, arXiv:2502.05074; C. Paquette et al. 2021.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from dmft.errors import DivergenceError
from dmft.random_data.equivalents import Wishart, degrees, effective_ridge, largest_eigenvalue
from dmft.random_data.random_features import Losses, gradient_descent, size
from dmft.random_data.transforms import Circle
from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]
NEAR = 1e-9  # of the edge: relative distance at which a rate is on it


def noise_kernels(
    spectrum: Spectrum, steps: int, rate: float, features: float | None, samples: float | None
) -> tuple[Array, Array]:
    """K(u) and K_te(u), (step,), for u = 0 .. steps - 1.

    Args:
        spectrum: of the data.
        steps: how many.
        rate: eta.
        features, samples: N or P; of both, K alone is meant.

    Example:
        >>> from dmft.random_data import isotropic
        >>> noise_kernels(isotropic(10), 2, 0.5, None, None)[0].round(6)
        array([10. ,  2.5])
    """
    circle = Circle(2 * steps)
    x = circle.points
    z = (1 - x) / (rate * x)
    kappa = effective_ridge(z, spectrum, Wishart(samples) * Wishart(features))
    df, _ = degrees(kappa, spectrum)
    each = (spectrum.trace - z * df, spectrum.trace - kappa * df)  # z S = kappa, Tr[Lambda g] = df
    K, K_te = (circle.sequence(f / (rate * x))[::2] for f in each)
    return K, K_te


def stability(
    spectrum: Spectrum, rate: float, batch: float, *, features: float | None = None, samples: float | None = None
) -> float:
    """The left-hand side of (12) over 1: SGD converges where it is below one; infinite beyond the edge.

    Args:
        spectrum: of the data.
        rate: eta.
        batch: B.
        features, samples: N, P.

    Example:
        >>> from dmft.random_data import isotropic
        >>> stability(isotropic(10), 1.0, 20)  # (1/B) D eta / (2 - eta)
        0.5
    """
    N, P, B = size("features", features), size("samples", samples), _check.positive("batch", batch)
    noise = Wishart(P) * Wishart(N)
    if not _check.positive("rate", rate) < 2 / largest_eigenvalue(spectrum, noise) * (1 - NEAR):
        return np.inf
    kappa = effective_ridge(np.array([-2 / rate]), spectrum, noise)
    return float(-degrees(kappa, spectrum)[0][0].real / B)


def largest_rate(
    spectrum: Spectrum, batch: float, *, features: float | None = None, samples: float | None = None
) -> float:
    """The threshold of eta: where (12) is one, or 2 over the largest eigenvalue if that comes first.

    Args:
        spectrum: of the data.
        batch: B.
        features, samples: N, P.

    Example:
        >>> from dmft.random_data import isotropic
        >>> round(largest_rate(isotropic(10), 20), 6)  # 2 / (1 + D/B)
        1.333333
    """
    noise = Wishart(size("samples", samples)) * Wishart(size("features", features))
    edge = 2 / largest_eigenvalue(spectrum, noise) * (1 - 2 * NEAR)

    def excess(rate: float) -> float:
        return stability(spectrum, rate, batch, features=features, samples=samples) - 1

    return edge if excess(edge) < 0 else float(brentq(excess, edge * 1e-12, edge, rtol=1e-10))


def require_stable_sgd(spectrum: Spectrum, rate: float, batch: float, N: float | None, P: float | None) -> None:
    """DivergenceError, with the threshold, for rates beyond it; features N, samples P of a fixed set."""
    found = stability(spectrum, rate, batch, features=N, samples=P)
    if not found < 1:
        threshold = largest_rate(spectrum, batch, features=N, samples=P)
        raise DivergenceError(
            f"learning_rate={rate:g} is beyond stability: stochastic gradient descent with batch={batch:g} on this "
            f"problem converges below {threshold:.4g}. Lower the rate, or take larger batches."
        )


def one_pass_sgd(
    spectrum: Spectrum,
    *,
    steps: int,
    learning_rate: float,
    batch: float,
    features: float | None = None,
    noise: float = 0.0,
) -> Losses:
    """SGD with fresh samples at each step, equation (9).

    Args:
        spectrum: of data and target.
        steps: number T of updates; results are at steps 0 .. T.
        learning_rate: eta.
        batch: B.
        features: N; None for infinitely many.
        noise: sigma^2.

    Returns:
        times: steps; test: excess loss; train: that of the batch to come, test + sigma^2.

    Raises:
        DivergenceError: a rate beyond stability, with the threshold.

    Example:
        >>> from dmft.random_data import power_law
        >>> one_pass_sgd(power_law(60, 1.2, 1.5), steps=3, learning_rate=0.2, batch=20, features=15).test.round(3)
        array([2.355, 1.911, 1.63 , 1.445])
    """
    require_stable_sgd(spectrum, _check.positive("learning_rate", learning_rate), batch, features, None)
    F = gradient_descent(spectrum, steps=steps, learning_rate=learning_rate, features=features).test
    K, _ = noise_kernels(spectrum, steps + 1, learning_rate, features, None)
    L, strength = np.zeros(steps + 1), learning_rate**2 / batch
    for t in range(steps + 1):
        L[t] = F[t] + strength * (K[:t][::-1] @ (L[:t] + noise))
    return Losses(np.arange(steps + 1.0), L, L + noise)


def sgd_with_replacement(
    spectrum: Spectrum, *, steps: int, learning_rate: float, batch: float, samples: float, noise: float = 0.0
) -> Losses:
    """SGD on P fixed samples, B of them drawn with replacement at each step, equation (10).

    Args:
        spectrum: of data and target.
        steps: number T of updates; results are at steps 0 .. T.
        learning_rate: eta.
        batch: B.
        samples: P.
        noise: sigma^2.

    Returns:
        times: steps; test: excess loss; train: that of all samples.

    Raises:
        DivergenceError: a rate beyond stability, with the threshold.

    Example:
        >>> from dmft.random_data import power_law
        >>> spectrum = power_law(60, 1.2, 1.5)
        >>> sgd_with_replacement(spectrum, steps=2, learning_rate=0.2, batch=20, samples=24).train.round(3)
        array([2.355, 1.787, 1.417])
    """
    P = _check.positive("samples", samples)
    require_stable_sgd(spectrum, _check.positive("learning_rate", learning_rate), batch, None, P)
    forcing = gradient_descent(spectrum, steps=steps, learning_rate=learning_rate, samples=P, noise=noise)
    F, F_tr = forcing.test, forcing.train
    K, K_te = noise_kernels(spectrum, steps + 1, learning_rate, None, P)
    L, L_tr, strength = np.zeros(steps + 1), np.zeros(steps + 1), learning_rate**2 / batch
    for t in range(steps + 1):
        L[t] = F[t] + strength * (K_te[:t][::-1] @ L_tr[:t])
        L_tr[t] = F_tr[t] + strength * (K[:t][::-1] @ L_tr[:t])
    return Losses(np.arange(steps + 1.0), L, L_tr)
