"""Random features: a linear readout of N frozen random projections, trained on P samples drawn once.

    f = w . A psi / sqrt N,   A (N x M) iid N(0,1) frozen,  w(0) = 0,   y = w* . psi + eps,   v0 = w* - A^T w / sqrt N
    v1 = Psi v0 + eps    v2 = Psi^T v1 / P    v3 = A v2    v4 = A^T v3 / N    d v0/dt = - v4

For P, N, M -> infinity together single sites are Gaussian, and responses depend on t - s alone.  With z the symbol of
d/dt (flow: the Laplace variable; heavy ball in x: z = (1-x)(1-mu x)/(eta x)), c that of w* and n that of the noise:

    (6) kappa(z) = z / (R_1 R_3),   H_k = 1 / (z + lambda_k R_1 R_3)
    (7) R_1 = 1 - df(kappa)/P,   R_3 = 1 - df(kappa)/N
    (8) C_0 = c c' S[lambda w*^2] + S[lambda] C_3/N + R_3 R_3' S[lambda^2] C_1/P
    (9) C_1 = R_1 R_1' (C_0 + sigma^2 n n')
   (10) C_3 = R_3 R_3' { z z' S[lambda] C_1/P + R_1 R_1' ( c c' S[lambda^2 w*^2] + S[lambda^2] C_3/N ) }

    S[f] = sum_k f_k H_k(z) H_k(z'), each eigenvalue mu_k times            ' second frequency
    C_0  excess test loss (step, step_2): L = C_0(t,t)                      C_1  of residuals; train loss C_1(t,t)
    C_3  of v3, in units of one feature: N <v3 v3>                          R_1, R_3  responses of data, of features
    N, P features and samples, None for infinitely many                     sigma^2 variance of the noise eps

Checks: C_0 + sigma^2 11^T = (1 - R_02) C_1 (1 - R_02)^T with 1 - R_02 = R_1^{-1}: the gap of test and train.

Errors: 1e-8 relative to the initial loss for steps (`dmft.random_data.transforms`), and for flows the difference of two
contours, which is an error where it is too large.

Cost: O(T M) for (7), O(T^2 M) for S; a flow O(n^2 M) a time, whatever the time, in chunks of modes.

Assumptions and approximations: corrections of relative order 1/N, 1/P; those of a single mode that carries the loss are
larger.

Source: B. Bordelon, A. Atanasov, C. Pehlevan, arXiv:2402.01092; exponent of N as in arXiv:2409.17858.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import toeplitz

from dmft.errors import DivergenceError
from dmft.random_data.equivalents import Noise, Wishart, degrees, effective_ridge, largest_eigenvalue
from dmft.random_data.transforms import NODES, Circle, Talbot
from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
CHUNK = 2**17  # numbers of an array (point, mode) that is held at once
SHARED = {"both": (1.0, 1.0), "data": (0.0, 1.0), "features": (1.0, 0.0), "neither": (0.0, 0.0)}  # of two models
COARSER = 4  # nodes less, of the contour that checks another
EARLY = 1e-9  # of the first time, that stands for 0 where pairs of times are asked for
MERGED = 1000  # modes a decade where contours are compared
CONTOUR, CONTOUR_FLOOR = 1e-4, 1e-8  # what two contours may differ by, relative and of the initial loss


class ContourError(ArithmeticError):
    """Two contours of an inverse Laplace transform disagree."""


class OnDiagonal:
    """Losses, the diagonals of two correlations: C_0 of errors and C_1 of residuals, (step, step_2)."""

    error: Array
    residual: Array

    @property
    def test(self) -> Array:
        """Excess test loss L (step,): mean square, without the variance of the noise."""
        return np.diagonal(self.error).copy()

    @property
    def train(self) -> Array:
        """Mean square of the training residuals (step,)."""
        return np.diagonal(self.residual).copy()


@dataclass(frozen=True)
class TwoTimes(OnDiagonal):
    """Order parameters of a linear model at steps 0 .. T, (step, step_2) each.

    error: C_0, of test errors, without the noise of labels.  residual: C_1, of training residuals.
    feature: C_3.  data_response, feature_response: R_1, R_3, lower triangular.
    """

    error: Array
    residual: Array
    feature: Array
    data_response: Array
    feature_response: Array


@dataclass(frozen=True)
class Sums:
    """What (8) to (10) are made of at all pairs of points, (point, point_2), or (point,)."""

    z: Complex
    R1: Complex
    R3: Complex
    of_lam: Complex
    of_lam2: Complex
    target: Complex
    target2: Complex
    noise: Complex


def size(name: str, value: float | None) -> float | None:
    """A number of features or samples, a positive one; None for infinitely many."""
    if value is None:
        return None
    return _check.positive(name, value, hint=f"For infinitely many leave {name} out (None).")


def responses(z: Complex, spectrum: Spectrum, features: float | None, samples: float | None) -> tuple[Complex, ...]:
    """kappa, R_1 and R_3 of (6) and (7), (point,)."""
    kappa = effective_ridge(z, spectrum, Wishart(samples) * Wishart(features))
    df, _ = degrees(kappa, spectrum)
    R1 = 1 - df / samples if samples else np.ones_like(kappa)
    R3 = 1 - df / features if features else np.ones_like(kappa)
    # the smaller one, a difference of nearly equal numbers at late times, follows from the other
    of_data = np.abs(R1) < np.abs(R3)
    R1, R3 = np.where(of_data, z / (kappa * R3), R1), np.where(of_data, R3, z / (kappa * R1))
    return kappa, R1, R3


def sums_at(
    z: Complex, mirror: NDArray[np.int64], c: Complex, n: Complex, spectrum: Spectrum, N: float | None, P: float | None
) -> Sums:
    """At points of which `mirror` says where the conjugate of each is."""
    _, R1, R3 = responses(z, spectrum, N, P)
    upper = np.flatnonzero(np.arange(len(z)) <= mirror)
    found = np.zeros((4, len(z), len(z)), complex)
    at_once = max(CHUNK // len(z), 16)
    for start in range(0, len(spectrum.eigenvalues), at_once):
        part = slice(start, start + at_once)
        lam, w2, copies = spectrum.eigenvalues[part], spectrum.power[part], spectrum.copies[part]
        H = np.empty((len(z), len(lam)), complex)
        H[upper] = 1 / (z[upper, None] + lam * (R1 * R3)[upper, None])
        H[mirror[upper]] = H[upper].conj()
        for total, f in zip(found, (copies * lam, copies * lam**2, lam * w2, lam**2 * w2), strict=True):
            total[upper] += (H[upper] * f) @ H.T
    for total in found:
        total[mirror[upper]] = total[upper][:, mirror].conj()
    cc = np.outer(c, c)
    return Sums(z, R1, R3, found[0], found[1], found[2] * cc, found[3] * cc, np.outer(n, n))


def correlations(
    s: Sums, N: float | None, P: float | None, sigma2: float, shared: str = "both"
) -> tuple[Complex, Complex, Complex]:
    """C_0, C_1, C_3 of (8) to (10) for two models that share this much: a linear system of two at every pair."""
    by_features, by_data = SHARED[shared]
    by_features, by_data = by_features / N if N else 0.0, by_data / P if P else 0.0
    R11, R33, zz = np.outer(s.R1, s.R1), np.outer(s.R3, s.R3), np.outer(s.z, s.z)
    a, b = by_data * R11 * R33 * s.of_lam2, by_features * R11 * R33 * s.of_lam2
    k03, k30 = by_features * s.of_lam, by_data * R33 * R11 * zz * s.of_lam
    s0 = s.target + a * sigma2 * s.noise
    s3 = R33 * R11 * s.target2 + k30 * sigma2 * s.noise
    det = (1 - a) * (1 - b) - k03 * k30
    C0, C3 = (s0 * (1 - b) + k03 * s3) / det, (s3 * (1 - a) + k30 * s0) / det
    return C0, R11 * (C0 + sigma2 * s.noise), C3


def require_stable(rate: float, momentum: float, spectrum: Spectrum, noise: Noise) -> None:
    """DivergenceError, with the threshold 2 (1 + momentum) / (edge of the spectrum), for rates beyond it."""
    threshold = 2 * (1 + momentum) / largest_eigenvalue(spectrum, noise)
    if not rate < threshold:
        raise DivergenceError(
            f"learning_rate={rate:g} is beyond stability: gradient descent with momentum={momentum:g} on this problem "
            f"converges below {threshold:.4g}. Lower the rate."
        )


def on_circle(
    spectrum: Spectrum, steps: int, eta: float, mu: float, N: float | None, P: float | None
) -> tuple[Circle, Sums]:
    """Sums at all pairs of points of the circle, for steps 0 .. T."""
    circle = Circle(steps + 1)
    x = circle.points
    z, c = (1 - x) * (1 - mu * x) / (eta * x), (1 - mu * x) / (eta * x)
    mirror = (-np.arange(len(x))) % len(x)
    return circle, sums_at(z, mirror, c, 1 / (1 - x), spectrum, N, P)


def checked(
    features: float | None, samples: float | None, noise: float, rate: float, momentum: float
) -> tuple[float | None, float | None]:
    """N and P, after all of these are checked."""
    _check.positive("learning_rate", rate)
    _check.nonnegative("momentum", momentum, below=1.0)
    _check.nonnegative("noise", noise)
    return size("features", features), size("samples", samples)


def gradient_descent(
    spectrum: Spectrum,
    *,
    steps: int,
    learning_rate: float,
    momentum: float = 0.0,
    features: float | None = None,
    samples: float | None = None,
    noise: float = 0.0,
) -> TwoTimes:
    """Full-batch gradient descent with heavy-ball momentum, at all pairs of steps.

    Args:
        spectrum: of data and target.
        steps: number T of updates; results are at steps 0 .. T.
        learning_rate: eta.
        momentum: mu, v0(t+1) = v0(t) - eta v4(t) + mu (v0(t) - v0(t-1)).
        features, samples: N, P; None for infinitely many.
        noise: sigma^2, variance of the labels' noise.

    Raises:
        DivergenceError: a rate beyond stability, with the threshold.
        BranchError: (7) is not solved on its branch.
        ValueError, TypeError: arguments out of range.

    Example:
        >>> from dmft.random_data import power_law
        >>> found = gradient_descent(power_law(60, 1.2, 1.5), steps=5, learning_rate=0.2, features=15, samples=24)
        >>> found.test.round(3)
        array([2.355, 1.909, 1.648, 1.484, 1.375, 1.299])
    """
    N, P = checked(features, samples, noise, learning_rate, momentum)
    steps = _check.integer("steps", steps, minimum=1)
    require_stable(learning_rate, momentum, spectrum, Wishart(P) * Wishart(N))
    circle, sums = on_circle(spectrum, steps, learning_rate, momentum, N, P)
    C0, C1, C3 = (circle.two_times(C) for C in correlations(sums, N, P, noise))
    R1, R3 = (toeplitz(circle.sequence(R), np.zeros(steps + 1)) for R in (sums.R1, sums.R3))
    return TwoTimes(C0, C1, C3, R1, R3)


@dataclass(frozen=True)
class Losses:
    """Losses at given times: excess test loss, and mean square of the training residuals; each (time,)."""

    times: Array
    test: Array
    train: Array


def gradient_flow(
    spectrum: Spectrum,
    times: Sequence[float] | Array,
    *,
    features: float | None = None,
    samples: float | None = None,
    noise: float = 0.0,
    nodes: int = NODES,
) -> Losses:
    """Gradient flow at any times, up to 1e10 and beyond, each by itself.

    Args:
        spectrum: of data and target, of up to millions of modes; log-spaced ones reach k = 1e11.
        times: (time,), at least 0, in units of the flow: learning rate times time.
        features, samples: N, P; None for infinitely many.
        noise: sigma^2.
        nodes: of the contour in each of two variables.

    Raises:
        ContourError: contours with `nodes` and `COARSER` fewer nodes disagree.
        BranchError, ValueError, TypeError: as `gradient_descent`.

    Example:
        >>> from dmft.random_data import power_law
        >>> found = gradient_flow(power_law(1e6, 1.5, 1.75), [1.0, 1e10], features=40)
        >>> found.test.round(4)
        array([0.8914, 0.2405])
    """
    N, P = checked(features, samples, noise, 1.0, 0.0)
    nodes = _check.integer("nodes", nodes, minimum=COARSER + 4)
    t = _check.finite_array("times", times, ("time",))
    if (t < 0).any():
        raise ValueError(f"times holds {t.min():g}; a flow starts at time 0.")
    found = np.array([[spectrum.signal, spectrum.signal + noise] for _ in t])
    initial = spectrum.signal + noise
    merged = spectrum.coarse(MERGED) if len(spectrum.eigenvalues) > 8 * MERGED else spectrum
    for i in np.flatnonzero(t):
        fine, coarse = (flow_at(t[i], merged, N, P, noise, Talbot(nodes - less), "both") for less in (0, COARSER))
        exact = fine if merged is spectrum else flow_at(t[i], spectrum, N, P, noise, Talbot(nodes), "both")
        found[i] = np.maximum(exact, 0.0)
        error, allowed = np.abs(np.subtract(fine, coarse)), CONTOUR * np.abs(fine) + CONTOUR_FLOOR * initial
        if not (error <= allowed).all():
            raise ContourError(
                f"the inverse Laplace transform at time {t[i]:g} does not converge: contours of {nodes} and "
                f"{nodes - COARSER} nodes give losses {fine[0]:.6g} and {coarse[0]:.6g}. Take nodes between 24 and 36: "
                "fewer do not resolve the contour, and more lose digits to rounding."
            )
    return Losses(t, found[:, 0], found[:, 1])


def flow_at(
    time: float, spectrum: Spectrum, N: float | None, P: float | None, sigma2: float, rule: Talbot, shared: str
) -> tuple[float, float]:
    """Excess test loss and train loss of a flow at one time."""
    z, w = rule.at(time)
    mirror = (np.arange(len(z)) + len(z) // 2) % len(z)
    sums = sums_at(z, mirror, np.ones_like(z), 1 / z, spectrum, N, P)
    C0, C1, _ = correlations(sums, N, P, sigma2, shared)
    return float(np.real(w @ C0 @ w)), float(np.real(w @ C1 @ w))


def flow_between(
    spectrum: Spectrum,
    times: Sequence[float] | Array,
    *,
    features: float | None = None,
    samples: float | None = None,
    noise: float = 0.0,
) -> dict[str, Array]:
    """C_0, C_1 and C_3 of a gradient flow between all pairs of times, "error", "residual", "feature", (time, time_2).

    Args:
        spectrum, features, samples, noise: as of `gradient_flow`.
        times: (time,), at least 0, of which 0 counts as the smallest of the others times 1e-9.

    Example:
        >>> from dmft.random_data import power_law
        >>> found = flow_between(power_law(60, 1.2, 1.5), [1.0, 4.0], features=15, samples=24)
        >>> found["error"].shape, bool(abs(found["error"] - found["error"].T).max() < 1e-9)
        ((2, 2), True)
    """
    N, P = checked(features, samples, noise, 1.0, 0.0)
    t = _check.finite_array("times", times, ("time",))
    after = np.where(t > 0, t, EARLY * (t[t > 0].min() if (t > 0).any() else 1.0))
    z_unit, w_unit = Talbot().unit
    nodes = len(z_unit)
    z = (z_unit / after[:, None]).ravel()
    mirror = (np.arange(len(z)) // nodes) * nodes + (np.arange(len(z)) + nodes // 2) % nodes
    sums = sums_at(z, mirror, np.ones_like(z), 1 / z, spectrum, N, P)
    weights = w_unit / after[:, None]
    found = {}
    for name, C in zip(("error", "residual", "feature"), correlations(sums, N, P, noise), strict=True):
        each = C.reshape(len(t), nodes, len(t), nodes)
        found[name] = np.einsum("an,anbm,bm->ab", weights, each, weights).real
    return found
