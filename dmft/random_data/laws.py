"""Scaling laws: closed residuals, predicted exponents, and local slopes of exact curves.

    lambda_k ~ k^-b,   lambda_k w*_k^2 ~ k^-a,   beta = (a - 1)/b
    hard: beta < 1; easy: beta < 2 - 1/b; else super-easy

late, P = infinity   (1)  df(kappa) = N,   L_N = kappa sum lambda w*^2/(lambda + kappa)                of the projection
late, N = infinity   (2)  df(kappa) = P,   L_P = [kappa^2 sum lambda w*^2/(lambda+kappa)^2 + sigma^2 gam] / (1 - gam)
                          gam = (1/P) sum lambda^2/(lambda+kappa)^2                                    ridgeless

                              lazy                                rich
    time        L ~ t^-       beta                                beta max(1, 2/(1+beta))
    features    L ~ N^-       b min(1, beta)                      the same: the projection on A_0 does not learn
    samples     L ~ P^-       b min(2, beta)                      -
    compute C = N t:  hard    b beta/(b+1),  N ~ C^{1/(b+1)}      2 b beta/(2 + b(1+beta)),  N ~ C^{2/(2 + b(1+beta))}
                      easy    b beta/(b beta+1), N ~ C^{(b beta-b+1)/(b beta+1)}               the same
         super-easy, one pass 1 - 1/(2b),  N ~ C^{1/2}            the same: noise of SGD sets it, and not without SGD

    b capacity, a source as of `power_law`;  N features, P samples, t time, kappa, df: `dmft.random_data.equivalents`

Frontiers that follow these: `dmft.random_data.frontier`.  Early corrections are (1/N) t^{-(1-1/b)}, which balance
t^-beta in the easy regimes, and (eta/B) t^{-(2-1/b)} of SGD.

Source: B. Bordelon, A. Atanasov, C. Pehlevan, arXiv:2402.01092 and 2409.17858.  The exponent of N is that of (1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from dmft.random_data.equivalents import degrees
from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Exponents:
    """Powers with which the loss falls, and of the optimal number of features in compute."""

    regime: str
    time: float
    features: float
    samples: float
    compute: float
    allocation: float


def exponents(capacity: float, source: float, *, rich: bool = False, one_pass: bool = False) -> Exponents:
    """What is predicted for a power law.

    Args:
        capacity, source: b and a, above 1, as of `power_law`.
        rich: with feature learning, at infinite time much richness as well as little.
        one_pass: SGD, whose noise limits super-easy tasks; the exact gradient otherwise.

    Example:
        >>> exponents(1.5, 1.75).time, round(exponents(1.5, 1.75, rich=True).time, 4)
        (0.5, 0.6667)
    """
    b, a = _check.positive("capacity", capacity), _check.positive("source", source)
    for name, value in (("capacity", b), ("source", a)):
        if value <= 1:
            raise ValueError(f"{name}={value:g} must be above 1: the spectrum would not be summable.")
    beta = (a - 1) / b
    regime = "hard" if beta < 1 else "easy" if beta < 2 - 1 / b else "super-easy"
    gain = max(1.0, 2 / (1 + beta)) if rich else 1.0
    if regime == "hard":
        allocation = gain / (b + gain)  # N^b = t^gain, C = N t
        compute = b * beta * allocation
    elif regime == "super-easy" and one_pass:
        allocation, compute = 0.5, 1 - 1 / (2 * b)
    else:
        allocation, compute = (b * beta - b + 1) / (b * beta + 1), b * beta / (b * beta + 1)
    return Exponents(regime, beta * gain, b * min(1.0, beta), b * min(2.0, beta), compute, allocation)


def local_slopes(x: ArrayLike, y: ArrayLike) -> Array:
    """d log y / d log x between neighbours, (point - 1,).

    Args:
        x: increasing and positive (point,).
        y: positive (point,).

    Example:
        >>> local_slopes([1, 10, 100], [1.0, 0.1, 0.001])
        array([-1., -2.])
    """
    found = [_check.finite_array(name, value, ("point",)) for name, value in (("x", x), ("y", y))]
    if len(found[0]) != len(found[1]) or not all((each > 0).all() for each in found):
        raise ValueError("x and y must be positive and of one length; subtract no offset that makes them negative.")
    return np.asarray(np.diff(np.log(found[1])) / np.diff(np.log(found[0])))


def kappa_of_rank(spectrum: Spectrum, rank: float) -> float:
    """kappa with df(kappa) = rank, the resolution of so many features or samples.

    Args:
        spectrum: of the data.
        rank: below the number of modes.

    Example:
        >>> from dmft.random_data import isotropic
        >>> round(kappa_of_rank(isotropic(100), 25), 9)
        3.0
    """
    rank = _check.positive("rank", rank)
    if rank >= spectrum.modes:
        raise ValueError(f"rank={rank:g} reaches all {spectrum.modes:g} modes: nothing is left over at late times.")
    lam = spectrum.eigenvalues

    def excess(log_kappa: float) -> float:
        return float(degrees(np.array([np.exp(log_kappa)], complex), spectrum)[0][0].real) - rank

    low, high = np.log(lam.min()) - 40, np.log(spectrum.trace / rank) + 1
    return float(np.exp(brentq(excess, low, high, xtol=1e-14, rtol=1e-14)))


def residual_of_features(spectrum: Spectrum, features: float) -> float:
    """L_N, equation (1): what N random features leave over at t = infinity of the population's loss.

    Args:
        spectrum: of data and target.
        features: N.

    Example:
        >>> from dmft.random_data import isotropic
        >>> round(residual_of_features(isotropic(100), 25), 9)  # 1 - N/D
        0.75
    """
    kappa = kappa_of_rank(spectrum, features)
    lam = spectrum.eigenvalues
    return float(kappa * np.sum(lam * spectrum.power / (lam + kappa)))


def residual_of_samples(spectrum: Spectrum, samples: float, *, noise: float = 0.0) -> float:
    """L_P, equation (2): the excess loss of ridgeless regression on P samples.

    Args:
        spectrum: of data and target.
        samples: P.
        noise: sigma^2.

    Example:
        >>> from dmft.random_data import isotropic
        >>> round(residual_of_samples(isotropic(100), 25), 9)
        0.75
    """
    kappa = kappa_of_rank(spectrum, samples)
    lam, noise = spectrum.eigenvalues, _check.nonnegative("noise", noise)
    gam = np.sum(spectrum.copies * (lam / (lam + kappa)) ** 2) / samples
    bias = kappa**2 * np.sum(lam * spectrum.power / (lam + kappa) ** 2)
    return float((bias + noise * gam) / (1 - gam))
