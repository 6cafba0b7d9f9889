"""What N random features see of a spectrum: a spectrum of their own, and a rest that they do not see.

    K = A Lambda A^T / N = sum_i h_i u_i u_i^T,   r = A Lambda w* / sqrt N,   signal of mode i: (u_i . r)^2 / h_i

On the population, features that train are a linear model on K, whose target is the projection of w*; what is left over,
L_N, acts as noise of the labels.  So every theory of infinitely many features is one of N: gradient flow, feature
learning in the span of A (which is all that the projection of A_0 leaves), SGD with fresh samples, schedules.

The measures of h come from one point (`dmft.random_data.equivalents`), taken on the spectrum itself:

    (13)  kappa = -x + i y  with  sum_k mu_k lambda_k^2 / ((lambda_k - x)^2 + y^2) = N,   h = -kappa (1 - df(kappa)/N)
    (14)  densities  Im[(df - N)/h] / pi  of eigenvalues,   -Im[sum_k lambda_k^2 w*_k^2/(lambda_k + kappa)] / pi  of r

(13) says that h is real: for each x there is one y, or none, where h is not in the spectrum.  x runs from the lower
edge (x < 0) through zero and on in log x; sums over cells of this grid stand for the measures, at the middle of each.
Losses of flows by it are those of contours to 1e-3.

    x, y   coordinates of kappa         h   eigenvalues seen       A, N, df, kappa: `dmft.random_data.random_features`

Assumptions and approximations: N large; the grid resolves bumps of relative width 1/sqrt N around single modes.

Source: the map of Marchenko and Pastur as of J. Silverstein and S. Choi, J. Multivar. Anal. 54, 295 (1995).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from dmft.random_data.equivalents import degrees
from dmft.random_data.laws import residual_of_features
from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]
PER_DECADE = 200  # points of the grid
NEAR_ZERO = 100  # of the grid next to x = 0
ON_BUMP = 64  # around a mode whose eigenvalues are apart from those of others
COARSE, KEPT = 100, 200  # modes a decade, of what is given and of what is seen
NEWTON, PRECISION, ROUNDING = 100, 1e-12, 1e-24


@dataclass(frozen=True)
class Seen:
    """spectrum: what is seen; rest: L_N, the part of the target's variance that is not."""

    spectrum: Spectrum
    rest: float


def seen_by_features(spectrum: Spectrum, features: float) -> Seen:
    """The spectrum of N random features.

    Args:
        spectrum: of data and target.
        features: N, fewer than there are modes.

    Example:
        >>> from dmft.random_data import isotropic
        >>> seen = seen_by_features(isotropic(400), 100)  # Marchenko and Pastur: (1 +- sqrt(D/N))^2 = 1 and 9
        >>> seen.spectrum.eigenvalues[[0, -1]].round(1), round(seen.spectrum.modes), round(seen.rest, 6)
        (array([1., 9.]), 100, 0.75)
    """
    N = _check.positive("features", features)
    rest = residual_of_features(spectrum, N)
    merged = spectrum.coarse(COARSE) if len(spectrum.eigenvalues) > 4 * COARSE else spectrum
    lam, mu = merged.eigenvalues, merged.copies

    def excess(log_kappa: float) -> float:  # of the lower edge, at kappa > 0
        return float(mu @ (lam / (lam + np.exp(log_kappa))) ** 2) - N

    edge = np.exp(brentq(excess, np.log(lam.min()) - 40, np.log(lam.max() * merged.modes / N) + 40))
    top = 2 * lam.max() * (1 + (mu.sum() / N) ** 0.5) ** 2
    far = np.geomspace(edge, top, int(PER_DECADE * np.log10(top / edge)) + 2)
    x = np.concatenate([np.linspace(-edge, edge, NEAR_ZERO, endpoint=False), far, _bumps(lam, mu, N)])
    x = np.unique(x[x <= top])
    kappa = -x + 1j * _height(x, merged, N)
    df = degrees(kappa, merged)[0]
    h, inside = -(kappa * (1 - df / N)).real, kappa.imag > 0
    density = np.where(inside, (N - df).imag / -h, 0.0) / -np.pi
    of_target = np.array([(lam**2 * merged.power / (lam + each)).sum().imag for each in kappa]) / -np.pi
    of_target = np.where(inside, of_target, 0.0)
    widths, middle = np.diff(h), (h[1:] + h[:-1]) / 2
    copies, power = (widths * (each[1:] + each[:-1]) / 2 for each in (density, of_target))
    kept = (copies > 0) & (power > 0)
    middle, copies, power = middle[kept], copies[kept], (power / middle**2)[kept]
    captured = (spectrum.signal - rest) / (middle @ power)
    return Seen(Spectrum(middle, power * captured, copies * N / copies.sum()).coarse(KEPT), rest)


def _bumps(lam: Array, mu: Array, N: float) -> Array:
    """x next to modes that are apart, closest at the ends of their bumps, whose densities are semicircles."""
    width = lam * np.sqrt(mu / N)
    order = np.argsort(lam)[::-1]
    gaps = np.diff(lam[order], append=0.0)
    apart = order[np.abs(gaps) > width[order]]
    return np.asarray(lam[apart, None] + 1.1 * width[apart, None] * np.cos(np.linspace(0, np.pi, ON_BUMP))).ravel()


def _height(x: Array, spectrum: Spectrum, N: float) -> Array:
    """y of (13), 0 where there is none: Newton's method for the inverse of the sum, which is concave in y^2."""
    lam, weight = spectrum.eigenvalues, spectrum.copies * spectrum.eigenvalues**2
    away = (lam - x[:, None]) ** 2
    u = np.full(len(x), ROUNDING * x[-1] ** 2)
    inside = (weight / (away + u[:, None])).sum(axis=1) > N
    for _ in range(NEWTON):
        terms = weight / (away[inside] + u[inside, None])
        f, slope = terms.sum(axis=1), -(terms / (away[inside] + u[inside, None])).sum(axis=1)
        step = (f - f**2 / N) / slope
        u[inside] += step
        if (np.abs(step) < PRECISION * u[inside]).all():
            break
    return np.where(inside, np.sqrt(u), 0.0)
