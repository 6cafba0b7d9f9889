"""Deterministic equivalents, one and two points, of sample covariances with any free multiplicative noise.

    Shat = Sigma^{1/2} B Sigma^{1/2},   B free of Sigma, E tr B / D = 1
    G(l) = (Shat + l)^{-1},   g(kappa) = (Sigma + kappa)^{-1}

one point     (1)  kappa = l S(df),   df(kappa) = Tr Sigma g
              (2)  G ~ S g,   l G ~ kappa g,   Shat G ~ Sigma g,   Tr Shat G = df
two points    (3)  E[G M G'] ~ S S' g M g' + c g Sigma g' Tr[Sigma g M g']         M any matrix
                   c = (S - S')(kappa - kappa') / ((l - l')(df - df')),   l' -> l:  c = dS/ddf dkappa/dl
noise         white Wishart X^T X / P     1/S = 1 - df/P
              Haar projection of rank q D, divided by q     1/S = (q - u) / (q (1 - u)),   u = df / D
              product of free noises      S = S_1 S_2

    l       point of the resolvent, complex, off the spectrum of -Shat      ' second point
    kappa   the point that it is seen at through the noise                  D    dimension, traces are not divided by it
    S       S-transform of the noise as a function of df                    M    middle matrix

(1) is solved by Newton's method, continued from |l| = infinity, where kappa ~ l; plain iteration finds other branches.
What is found satisfies (1), lies in the half plane of l and has |arg kappa| <= |arg l|, as only the right branch does
(Belinschi & Bercovici 2007), or BranchError says that it does not.

Assumptions and approximations: D -> infinity with Sigma spread over many modes; corrections of relative order 1/D.

Source: A. Atanasov, B. Bordelon, J. Zavatone-Veth, C. Paquette, C. Pehlevan, arXiv:2502.05074; (3) for general noise
from the resolvent identity at M = 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
START = 1e3  # times the trace of the covariance: where kappa ~ l
STEP = 1.0  # decades of |l| between two solutions
SMALLEST_STEP = 1e-4
NEWTON = 12  # iterations
ANGLE, IMAGINARY = 1e-6, 1e-12  # by which rounding may take kappa off the sector of l, and off its half plane
JUMP = 0.3  # of log kappa, off its prediction, that is another branch
RESIDUAL = 1e-10  # of (1), relative to l
ROUNDING = 1e-13  # of kappa / S, relative to kappa
COARSE = 200  # modes a decade while the solution is continued
CHUNK = 2**16  # numbers of an array that is held at once
CONFLUENT = 1e-5  # |l' - l| / |l| below which the two points are one


class BranchError(ArithmeticError):
    """The self-consistent equation was not solved on its physical branch; the message says where."""


class Noise(ABC):
    """Free multiplicative noise, by its S-transform; products by *.

    Example:
        >>> both = Wishart(100) * Projection(0.5)
        >>> float(both.inverse(20.0, 100))  # 1/S
        0.6
    """

    @abstractmethod
    def inverse(self, df: Any, dimension: float) -> Any:
        """1/S at df."""

    @abstractmethod
    def slope(self, df: Any, dimension: float) -> Any:
        """d(1/S)/d df."""

    def __mul__(self, other: Noise) -> Noise:
        return Product(self, other)


@dataclass(frozen=True)
class Wishart(Noise):
    """X^T X / P of P white samples; None for infinitely many, which is no noise.

    Example:
        >>> Wishart(100).inverse(25.0, 50)
        0.75
    """

    samples: float | None

    def __post_init__(self) -> None:
        if self.samples is not None:
            _check.positive("samples", self.samples, hint="Without noise leave it out, samples=None.")

    def inverse(self, df: Any, dimension: float) -> Any:
        del dimension
        return 1.0 - df / self.samples if self.samples else 1.0 + 0.0 * df

    def slope(self, df: Any, dimension: float) -> Any:
        del dimension
        return 0.0 * df - (1.0 / self.samples if self.samples else 0.0)


@dataclass(frozen=True)
class Projection(Noise):
    """U U^T / q, U an orthonormal basis of a random subspace of dimension q D.

    Example:
        >>> round(Projection(0.5).inverse(20.0, 100), 12)
        0.75
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < _check.positive("fraction", self.fraction) <= 1:
            raise ValueError(f"fraction={self.fraction} of the dimension must be at most 1.")

    def inverse(self, df: Any, dimension: float) -> Any:
        q, u = self.fraction, df / dimension
        return (q - u) / (q * (1 - u))

    def slope(self, df: Any, dimension: float) -> Any:
        q, u = self.fraction, df / dimension
        return (q - 1) / (q * (1 - u) ** 2) / dimension


@dataclass(frozen=True)
class Product(Noise):
    """The product of two free noises.

    Example:
        >>> Product(Wishart(100), Wishart(50)).inverse(25.0, 60)
        0.375
    """

    first: Noise
    second: Noise

    def inverse(self, df: Any, dimension: float) -> Any:
        return self.first.inverse(df, dimension) * self.second.inverse(df, dimension)

    def slope(self, df: Any, dimension: float) -> Any:
        a, b = self.first, self.second
        return a.slope(df, dimension) * b.inverse(df, dimension) + a.inverse(df, dimension) * b.slope(df, dimension)


def degrees(kappa: Complex, spectrum: Spectrum) -> tuple[Complex, Complex]:
    """df = sum_k mu_k lambda_k / (lambda_k + kappa) and its derivative in kappa, (point,), by chunks of modes."""
    re, im = kappa.real[:, None], kappa.imag[:, None]
    df, slope = np.zeros(len(kappa), complex), np.zeros(len(kappa), complex)
    at_once = max(CHUNK // len(kappa), 64)
    for start in range(0, len(spectrum.eigenvalues), at_once):
        lam = spectrum.eigenvalues[start : start + at_once]
        weight = spectrum.copies[start : start + at_once] * lam
        a = lam + re
        inverse = 1.0 / (a * a + im * im)  # |lambda + kappa|^-2
        zero = inverse @ weight
        a *= inverse
        df += a @ weight - 1j * kappa.imag * zero
        a *= inverse
        inverse *= inverse
        slope -= zero - 2 * kappa.imag**2 * (inverse @ weight) - 2j * kappa.imag * (a @ weight)
    return df, slope


def effective_ridge(l: ArrayLike, spectrum: Spectrum, noise: Noise) -> Complex:  # noqa: E741
    """kappa(l) of equation (1).

    Args:
        l: points, any shape, complex; not on the spectrum of -Shat.
        spectrum: eigenvalues of Sigma with their multiplicities.
        noise: B.

    Raises:
        BranchError: no solution on the physical branch, as on the spectrum itself.

    Example:
        >>> from dmft.random_data import isotropic
        >>> round(effective_ridge(0.5, isotropic(100), Wishart(200)).item().real, 9)  # kappa^2 = 1/2
        0.707106781
    """
    given = np.asarray(l, dtype=np.complex128)
    flat = given.ravel()
    if not (np.isfinite(flat).all() and (flat != 0).all()):
        raise ValueError("l must hold finite numbers other than zero; take a small l for the limit without a ridge.")
    z, back = np.unique(np.where(flat.imag < 0, flat.conj(), flat), return_inverse=True)
    coarse = spectrum.coarse(COARSE) if len(spectrum.eigenvalues) > 4 * COARSE else spectrum
    kappa = _continued(z, coarse, noise)
    if coarse is not spectrum:
        near = kappa
        kappa, good = _newton(near, z, spectrum, noise)
        _require(good & (np.abs(np.log(kappa / near)) < JUMP), z, kappa)
    found = kappa[back]
    return np.where(flat.imag < 0, found.conj(), found).reshape(given.shape)


def _require(good: NDArray[np.bool_], z: Complex, kappa: Complex) -> None:
    if not good.all():
        at = int(np.argmin(good))
        raise BranchError(
            f"kappa(l) was not found on its physical branch at l={z[at]:.6g} (reached {kappa[at]:.6g}): l is on, or "
            "next to, the spectrum of -Shat. Take l off the negative axis, or beyond the largest eigenvalue."
        )


def _continued(z: Complex, spectrum: Spectrum, noise: Noise) -> Complex:
    """Newton's method from |l| = infinity along rays; every point has its own length of way."""
    top = np.log(np.maximum(START * spectrum.trace / np.abs(z), 2.0))
    kappa, good = _newton(z * np.exp(top), z * np.exp(top), spectrum, noise)
    _require(good, z, kappa)
    left, step = 1.0, STEP * np.log(10) / top.max()
    while left > 0:
        step = min(step, left)
        now, target = z * np.exp(top * left), z * np.exp(top * (left - step))
        _, slope = _residual(kappa, now, spectrum, noise)
        guess = kappa * np.exp(-top * step * now / (kappa * slope))
        found, good = _newton(guess, target, spectrum, noise)
        with np.errstate(all="ignore"):
            good &= np.abs(np.log(found / guess)) < JUMP
        if good.all():
            kappa, left, step = found, (left - step if left - step > 1e-12 else 0.0), 1.3 * step
        elif step * top.max() < SMALLEST_STEP:
            _require(good, target, found)
        else:
            step /= 2
    return kappa


def _residual(kappa: Complex, z: Complex, spectrum: Spectrum, noise: Noise) -> tuple[Complex, Complex]:
    """kappa / S - l and its derivative in kappa."""
    df, ddf = degrees(kappa, spectrum)
    inverse = noise.inverse(df, spectrum.modes)
    return kappa * inverse - z, inverse + kappa * noise.slope(df, spectrum.modes) * ddf


def _newton(kappa: Complex, z: Complex, spectrum: Spectrum, noise: Noise) -> tuple[Complex, NDArray[np.bool_]]:
    """The solution next to `kappa`, and where there is one on the physical branch."""
    with np.errstate(all="ignore"):
        for _ in range(NEWTON):
            residual, slope = _residual(kappa, z, spectrum, noise)
            good = np.abs(residual) <= RESIDUAL * np.abs(z) + ROUNDING * np.abs(kappa)
            kappa = np.where(good & (np.abs(residual) == 0), kappa, kappa - residual / slope)
            if good.all():
                break
        angle = np.abs(np.angle(kappa)) <= np.abs(np.angle(z)) + ANGLE
        upper = np.where(
            z.imag > 0, kappa.imag >= -IMAGINARY * np.abs(kappa), slope.real > 0
        )  # kappa grows with real l
    return kappa, np.asarray(good & angle & upper & np.isfinite(kappa))


def largest_eigenvalue(spectrum: Spectrum, noise: Noise) -> float:
    """The upper edge of the spectrum of Shat: where -l(kappa), kappa < -lambda_1, has its minimum.

    Example:
        >>> from dmft.random_data import isotropic
        >>> round(largest_eigenvalue(isotropic(100), Wishart(400)), 6)  # (1 + sqrt(D/P))^2
        2.25
    """
    top = float(spectrum.eigenvalues.max())

    def slope(excess: float) -> tuple[float, float]:
        kappa = np.array([-(top * (1 + excess)) + 0j])
        residual, derivative = _residual(kappa, np.zeros(1, complex), spectrum, noise)
        return float(residual[0].real), float(derivative[0].real)

    low, high = 1e-9, 1.0
    while slope(high)[1] < 0:
        high *= 4
        if high > 1e12:
            raise BranchError("the spectrum has no upper edge; give a summable one.")
    for _ in range(200):  # bisection: dl/dkappa < 0 next to lambda_1, > 0 far off
        middle = np.sqrt(low * high)
        low, high = (middle, high) if slope(middle)[1] < 0 else (low, middle)
    return -slope(high)[0]


def _decomposed(covariance: ArrayLike) -> tuple[Array, Spectrum]:
    """Sigma as a matrix, of a matrix or of eigenvalues, and its spectrum."""
    given = _check.real_array("covariance", covariance)
    sigma = _check.finite_array("covariance", given, ("mode",) if given.ndim == 1 else ("mode", "mode_2"))
    if sigma.ndim == 1:
        return np.diag(sigma), Spectrum(sigma, np.zeros(len(sigma)))
    if sigma.shape[0] != sigma.shape[1] or not np.allclose(sigma, sigma.T):
        raise ValueError(f"covariance has shape {sigma.shape} and must be a symmetric matrix, or its eigenvalues.")
    return sigma, Spectrum(np.asarray(np.linalg.eigvalsh(sigma), np.float64), np.zeros(len(sigma)))


def one_point(l: complex, covariance: ArrayLike, noise: Noise) -> Complex:  # noqa: E741
    """E (Shat + l)^{-1} ~ S g, equation (2).

    Args:
        l: the point.
        covariance: Sigma (mode, mode_2), or its eigenvalues (mode,).
        noise: B.

    Returns:
        (mode, mode_2).

    Example:
        >>> one_point(0.5, np.ones(4), Wishart(None)).real.diagonal().round(6)
        array([0.666667, 0.666667, 0.666667, 0.666667])
    """
    sigma, spectrum = _decomposed(covariance)
    kappa = complex(effective_ridge(l, spectrum, noise))
    return np.asarray(kappa / l * np.linalg.inv(sigma + kappa * np.eye(len(sigma))))


def two_point(
    l: complex,  # noqa: E741
    l_2: complex,
    covariance: ArrayLike,
    middle: ArrayLike,
    noise: Noise,
) -> Complex:
    """E (Shat + l)^{-1} M (Shat + l_2)^{-1}, equation (3), the same Shat on both sides.

    Args:
        l, l_2: the points, which may be the same.
        covariance: Sigma (mode, mode_2), or its eigenvalues (mode,).
        middle: M (mode, mode_2), any deterministic matrix; it need not commute with Sigma.
        noise: B.

    Returns:
        (mode, mode_2).

    Raises:
        BranchError, ValueError: as `effective_ridge`; shapes that do not fit.

    Example:
        >>> found = two_point(0.5, 0.5, np.ones(4), np.eye(4), Wishart(None))
        >>> found.real.diagonal().round(6)
        array([0.444444, 0.444444, 0.444444, 0.444444])
    """
    sigma, spectrum = _decomposed(covariance)
    M = np.asarray(middle)
    if M.shape != sigma.shape:
        raise ValueError(f"middle has shape {M.shape}; expected that of the covariance, {sigma.shape}.")
    D = spectrum.modes
    one = abs(l - l_2) < CONFLUENT * abs(l)
    points = np.array([(l + l_2) / 2] * 2 if one else [l, l_2], complex)
    kappa = effective_ridge(points, spectrum, noise)
    df, _ = degrees(kappa, spectrum)
    S = kappa / points
    if one:
        _, slope = _residual(kappa, points, spectrum, noise)
        c = -noise.slope(df, D)[0] * S[0] ** 2 / slope[0]
    else:
        c = (S[0] - S[1]) * (kappa[0] - kappa[1]) / ((points[0] - points[1]) * (df[0] - df[1]))
    g, g_2 = (np.linalg.inv(sigma + k * np.eye(len(sigma))) for k in kappa)
    return np.asarray(S[0] * S[1] * g @ M @ g_2 + c * (g @ sigma @ g_2) * np.trace(sigma @ g @ M @ g_2))
