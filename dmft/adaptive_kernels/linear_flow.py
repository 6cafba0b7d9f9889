"""Deep linear networks under gradient flow with weight decay, t -> infinity: closed form.

Weights balance and align: every matrix has rank one and the same square rho a neuron, and all neurons of a layer see
one function v of the inputs:

    f = k^x(x)^T r      r = (K^x + mu)^-1 y      mu = lambda / (c^2 rho)^L                                           (1)
    rho^((L+1)/2) = c^-L gamma0 (r^T K^x r)^(1/2)                                                                    (2)
    v = f / (r^T K^x r)^(1/2)    Phi^l = (c^2 rho)^l v v^T    G^l = (c^2 rho)^(L+1-l)    K = (c^2 rho)^L (K^x + L v v^T)
    E = |y - f|^2 / 2 + (L+1) lambda rho / (2 gamma0^2)                                                              (3)

    K^x = x.x'/D   y targets (training sample)   lambda weight decay times P   c: phi(h) = c h   L hidden layers
    E: the loss with its decay, least for a given rho; (2) is its stationarity in rho

L = 1 has one root of (2), if gamma0 c (y^T K^x y)^(1/2) > lambda, and f = 0 else.  For L >= 2 roots come in pairs, and
f = 0 is always stable besides: a root is stable where E has a minimum in rho.  Which of them is reached is decided by
the weights at initialisation: from small ones f = 0.

Source: fixed points of the flow; for L = 1 the nuclear norm of Srebro, Rennie & Jaakkola 2004.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Array = NDArray[np.float64]
SCAN = 4001  # places between the bounds of rho at which a change of sign is looked for
ROUNDING = 1e-13  # relative, of eigenvalues of K^x


class Roots(NamedTuple):
    """Of (2), ascending: rho, energy E and whether it is stable, (root,) each; energy of f = 0."""

    rho: Array
    energy: Array
    stable: NDArray[np.bool_]
    energy_of_zero: float


class LinearState(NamedTuple):
    """prediction (sample,); feature, gradient (layer, sample, sample_2); ntk (sample, sample_2)."""

    prediction: Array
    feature: Array
    gradient: Array
    ntk: Array


def roots(input_kernel: Array, y: Array, *, depth: int, gamma0: float, decay: float, scale: float = 1.0) -> Roots:
    """All solutions of (2) but rho = 0.

    Args:
        input_kernel: K^x of the training samples.
        y: their targets.
        decay: lambda.
        scale: c.

    Example:
        >>> roots(np.eye(1), np.ones(1), depth=1, gamma0=1.0, decay=0.3).rho.round(6)
        array([0.7])
    """
    L, gamma, lam = depth, gamma0 / scale**depth, decay / scale ** (2 * depth)
    k, vectors = np.linalg.eigh(input_kernel)
    power = (vectors.T @ y) ** 2
    k, power = k[k > ROUNDING * k[-1]], power[k > ROUNDING * k[-1]]
    first = gamma * np.sqrt(k @ power)

    def excess(x: float) -> float:
        """ln of the right side of (2) over the left one, at rho = exp x."""
        return float(np.log(gamma) + (L - 1) / 2 * x + np.log(k @ (power / (k * np.exp(L * x) + lam) ** 2)) / 2)

    def energy(rho: Array) -> Array:
        mu = lam / rho[:, None] ** L
        residual = (power * (mu / (k + mu)) ** 2).sum(1) + y @ y - power.sum()
        found: Array = residual / 2 + (L + 1) * decay * rho / (2 * gamma0**2)
        return found

    nothing = Roots(np.zeros(0), np.zeros(0), np.zeros(0, bool), float(y @ y / 2))
    if not first or (L == 1 and first <= lam):
        return nothing
    least = (first - lam) / k[-1] if L == 1 else (lam / first) ** (2 / (L - 1))  # from 0 <= k e^{Lx} <= k_max e^{Lx}
    most = gamma**2 * (y @ y) / (4 * lam)  # from k / (k + mu)^2 <= 1 / (4 mu)
    places = np.linspace(np.log(least) - 0.01, np.log(max(most, least)) + 0.01, SCAN)
    values = np.array([excess(x) for x in places])
    crossings = np.flatnonzero(values[:-1] * values[1:] < 0)
    rho = np.exp([brentq(excess, places[i], places[i + 1], xtol=1e-14, rtol=1e-14) for i in crossings])
    return Roots(rho, energy(rho), values[crossings] > 0, nothing.energy_of_zero) if len(rho) else nothing


def state(input_kernel: Array, y: Array, rho: float, *, depth: int, decay: float, scale: float = 1.0) -> LinearState:
    """Of a root of (2), or of rho = 0, for all samples of `input_kernel`, of which the first have the targets y."""
    n, square, samples = len(y), scale**2 * rho, len(input_kernel)
    layers = np.arange(1, depth + 1)[:, None, None]
    if not rho:
        zero = np.zeros((depth, samples, samples))
        return LinearState(np.zeros(samples), zero, zero.copy(), np.zeros((samples, samples)))
    r = np.linalg.solve(input_kernel[:n, :n] + decay / square**depth * np.eye(n), y)
    f = input_kernel[:, :n] @ r
    spike = np.outer(f, f) / (r @ f[:n])
    gradient = np.broadcast_to(square ** (depth + 1.0 - layers), (depth, samples, samples))
    return LinearState(f, square**layers * spike, gradient.copy(), square**depth * (input_kernel + depth * spike))
