"""A two-layer linear model with feature learning in the span of its initial features, step by step.

    f = w^T A psi / sqrt N,  A_0 iid N(0,1),  w(0) = 0,   g = Psi^T (y - f) / B,   v3 = A_0 g,  v4 = A_0^T v3 / N
    w(t+1) = w + (eta/sqrt N) A g,     A(t+1) = A + eta G sqrt N w v4^T                  G the richness; 0: A stays
i.e. gradient descent on w, and on A projected with A_0^T A_0 / N.  Any linear optimiser without weight decay takes the
place of eta: c(t,s) is what the direction of step s is worth at step t (eta Theta(t > s) of gradient descent).

    (2) sqrt N w = Omega v3,   Omega = (1 - G c (c o C_3))^{-1} c                      o entry by entry
    (3) v0 = w* - D v4,        D = Omega + G c o C_w,   C_w = Omega C_3 Omega^T
    (4) H_k = (1 + lambda_k D R_3 R_1)^{-1},   E = D R_3,   R_02 = -(1/P) sum_k mu_k lambda_k H_k E,
        R_3 = (1 - R_24)^{-1},   R_24 = -(1/N) R_1 sum_k mu_k lambda_k H_k D;   R_1, U: `dmft.random_data.causal`
    (5) C_0 = sum_k H_k [ lambda_k w*_k^2 11^T + mu_k lambda_k D C_3 D^T/N + mu_k lambda_k^2 E U E^T ] H_k^T
    (6) C_3 = R_3 C_2 R_3^T,   C_2 = sum_k <g_k g_k>,   g_k = u2_k + lambda_k R_1 v0_k,  u2_k ~ GP(0, lambda_k U)

For G = 0 this is random features (`dmft.random_data.random_features`) in time, for schedules, SGD and any memory.

Population gradient flow, closed by A A^T - G N w w^T = const, for N features by what they see of the spectrum
(`dmft.random_data.seen`):

    (7) db/dt = [(1+q) 1 + q b b^T/|b|^2] Lambda (w* - b),   q = sqrt(1/4 + G |b|^2) - 1/2 = G |w|^2,   b = w* - v0

by implicit Euler in log t; its error is of first order in `resolution` and can be extrapolated.

    C_0 errors, C_3 of v3 in units of one feature, C_w of w (step, step_2);  D, E causal, D strictly
    R_1, R_3 responses of data and features;  mu_k multiplicity;  N, P, B features, samples, batch, None: no end

Cost: O(M T^3) and 8 M T^2 bytes;  (7): O(M) a step, `resolution` steps a factor e of time.

Assumptions and approximations: corrections 1/N, 1/P, 1/B relative; kurtosis of a dominating mode.

Source: B. Bordelon, A. Atanasov, C. Pehlevan, arXiv:2409.17858; fixed data, drawn batches, memory by the same cavity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmft.random_data.causal import DataSite, between, inverse_row, require_finite_loss, set_symmetric
from dmft.random_data.random_features import Losses, TwoTimes, size
from dmft.random_data.seen import Seen, seen_by_features
from dmft.running import memory
from dmft.specs import Training, _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]
FIRST = 0.05  # time up to which steps of the closed flow are equal, over that of the largest eigenvalue
PICARD = 3  # iterations of its nonlinear coefficients
RESOLUTION = 50.0


@dataclass(frozen=True)
class Marched(TwoTimes):
    """Order parameters (step, step_2); readout: C_w, products of readout weights."""

    readout: Array


def optimiser_memory(training: Training) -> Array:
    """c(t, s), (step, step_2) of steps 0 .. T."""
    c = training.memory.c
    return np.concatenate([c, np.zeros((len(c), 1))], axis=1)


def march(
    spectrum: Spectrum,
    training: Training,
    *,
    features: float | None = None,
    samples: float | None = None,
    batch: float | None = None,
    noise: float = 0.0,
    richness: float = 0.0,
) -> Marched:
    """Train, one row of all order parameters at a time.

    Args:
        spectrum: of data and target.
        training: `dmft.GradientDescent`, with a schedule or momentum if need be; results are at steps 0 .. T.
        features: N; None for infinitely many.
        samples: P of a fixed set, None for fresh data.
        batch: B; with samples, that many are drawn with replacement at each step; without, fresh ones; None for all of
            a fixed set, or for the population's gradient.
        noise: sigma^2.
        richness: G = gamma_0^2.

    Raises:
        DivergenceError: the loss explodes.
        MemoryEstimateError: modes times steps squared do not fit.
        ValueError, TypeError: arguments out of range; weight decay of a trained layer.

    Example:
        >>> from dmft.random_data import power_law
        >>> sgd = dmft.GradientDescent(0.2, steps=5)
        >>> march(power_law(20, 1.3, 1.4), sgd, features=10, batch=8, noise=0.05, richness=0.5).test.round(3)
        array([2.359, 1.931, 1.647, 1.448, 1.305, 1.2  ])
    """
    N, P, B = size("features", features), size("samples", samples), size("batch", batch)
    G, T = _check.nonnegative("richness", richness), training.steps + 1
    if G and training.decays:
        raise ValueError("weights of a trained layer that decay are not solved; use weight_decay=0, or richness=0.")
    lam, w2, mu = spectrum.eigenvalues, spectrum.power, spectrum.copies
    memory.require(
        8 * len(lam) * T * T,
        limit=None,
        available=memory.available_on_host(),
        what=f"{len(lam)} modes at {T} steps",
        ways_out="merge modes with Spectrum.coarse(100), take fewer steps, or one_pass_sgd, gradient_descent",
    )
    data = DataSite(T, P, B, _check.nonnegative("noise", noise))
    c = optimiser_memory(training)
    names = ("D", "E", "R31", "omega", "Cw", "C0", "C2", "C3", "Q", "X1", "X2", "S1", "S2", "G2", "cC3")
    (D, E, R31, omega, Cw, C0, C2, C3, Q, X1, X2, S1, S2, G2, cC3) = (np.zeros((T, T)) for _ in names)
    R1, R3, U = data.response, np.eye(T), data.gradient_noise
    H, h1 = np.zeros((len(lam), T, T)), np.zeros((len(lam), T))
    column = lam[:, None]
    for t in range(T):
        s, n = slice(0, t), slice(0, t + 1)
        omega[t, s] = c[t, s] + G * (c[t, s] @ cC3[s, s]) @ omega[s, s]
        set_symmetric(Cw, t, between(omega[t, n], C3, omega))
        D[t, s] = omega[t, s] + G * c[t, s] * Cw[t, s]
        E[t, s] = D[t, s] @ R3[s, s]
        H[:, t, s] = -column * np.matmul(D[t, s] @ R31[s, s], H[:, s, s])
        H[:, t, t] = 1.0
        row = H[:, t, n]
        h1[:, t], S1[t, n], S2[t, n] = row.sum(axis=1), (mu * lam) @ row, (mu * lam**2) @ row
        if N is not None:
            set_symmetric(X1, t, between(D[t, n], C3, D) / N)
        set_symmetric(X2, t, between(E[t, n], U, E))
        Y = mu[:, None] * column * (row @ X1[n, n] + column * (row @ X2[n, n]))
        spread = np.matmul(H[:, n, n], np.stack([Y, column * Y], axis=-1)).sum(axis=0)
        set_symmetric(C0, t, (lam * w2 * h1[:, t]) @ h1[:, n] + spread[:, 0])
        require_finite_loss(t, C0[t, t], C0[0, 0], f"Lower {training.largest_step}.")
        set_symmetric(Q, t, (lam**2 * w2 * h1[:, t]) @ h1[:, n] + spread[:, 1])
        data.append(t, C0[t, n], -(S1[t, n] @ E[n, s]) / (P or np.inf))
        if N is not None:
            R3[t, n] = inverse_row(-((R1[t, n] @ S1[n, n]) @ D[n, s]) / N, R3)
        R31[t, n] = R3[t, n] @ R1[n, n]
        G2[t, n] = (R1[t, n] @ S2[n, n]) @ E[n, n]
        cross = G2[t, n] @ U[n, n] + U[t, n] @ G2[n, n].T
        set_symmetric(C2, t, spectrum.trace * U[t, n] - cross + between(R1[t, n], Q, R1))
        set_symmetric(C3, t, between(R3[t, n], C2, R3))
        cC3[t, s] = c[t, s] * C3[t, s]
    return Marched(C0, data.residual, C3, R1, R3, Cw)


@dataclass(frozen=True)
class RichFlow(Losses):
    """Losses (time,) of the closed flow; kernel: q = G |w|^2, by how much the kernel has grown.

    error, feature: C_0 and C_3 of all pairs of times (time, time_2).
    """

    kernel: Array
    error: Array
    feature: Array


def rich_flow(
    spectrum: Spectrum,
    times: Sequence[float] | Array,
    *,
    richness: float,
    features: float | None = None,
    noise: float = 0.0,
    resolution: float = RESOLUTION,
) -> RichFlow:
    """The population gradient flow (7).

    Args:
        spectrum: of data and target; log-spaced modes reach k = 1e11.
        times: (time,), at least 0.
        richness: G; 0 is the lazy flow.
        features: N; None for infinitely many.
        noise: sigma^2, which adds to the train loss alone.
        resolution: steps a factor e of time.

    Example:
        >>> from dmft.random_data import power_law
        >>> rich_flow(power_law(1e9, 1.5, 1.75), [1e3, 1e6], richness=1.0).test.round(5)
        array([7.83e-03, 8.00e-05])
    """
    t = _check.finite_array("times", times, ("time",))
    if (t < 0).any():
        raise ValueError(f"times holds {t.min():g}; a flow starts at time 0.")
    G, resolution = _check.nonnegative("richness", richness), _check.positive("resolution", resolution)
    seen = Seen(spectrum, 0.0) if (N := size("features", features)) is None else seen_by_features(spectrum, N)
    lam, target = seen.spectrum.eigenvalues, np.sqrt(seen.spectrum.power)
    first = FIRST / (lam.max() * resolution)
    now, v, q = 0.0, target.copy(), 0.0
    errors, kernel = np.empty((len(t), len(lam))), np.empty(len(t))
    for i in np.argsort(t):
        while now < t[i] * (1 - 1e-12):
            h = min(max(first, now / resolution), t[i] - now)
            v, q = _implicit_step(v, target, lam, G, h)
            now += h
        errors[i], kernel[i] = v, q
    C0, C3 = seen.rest + (errors * lam) @ errors.T, (errors * lam**2) @ errors.T
    test = np.diagonal(C0).copy()
    return RichFlow(t, test, test + _check.nonnegative("noise", noise), kernel, C0, C3)


def _implicit_step(v: Array, target: Array, lam: Array, G: float, h: float) -> tuple[Array, float]:
    """v(t + h) and q there, by Picard iteration of the coefficients and a rank-one solve."""
    after = v
    for _ in range(PICARD):
        b = target - after
        norm = float(np.sqrt(b @ b)) or 1.0
        q = float(np.sqrt(0.25 + G * (b @ b)) - 0.5)
        b = b / norm
        d = 1 / (1 + h * (1 + q) * lam)
        x, y = d * v, d * b
        after = x - y * (h * q * ((lam * b) @ x) / (1 + h * q * ((lam * b) @ y)))
    return after, q
