"""Averages over two Gaussian fields: E phi(h) phi(h') and E phi'(h) phi'(h').

With (h, h') ~ N(0, [[a, c], [c, b]]), cos(theta) = c / sqrt(a b):

    linear   c                                                             1
    relu     sqrt(a b) (sin theta + (pi - theta) cos theta) / pi           (pi - theta) / pi          (1)
    erf      (2/pi) arcsin( 2 c / sqrt((1 + 2a)(1 + 2b)) )                 (4/pi) / sqrt((1 + 2a)(1 + 2b) - 4 c^2)   (2)
    others   trapezoidal rule over the disc |z| < 8.5 of the two normals of
             h = sqrt(a) z1,   h' = (c / sqrt a) z1 + sqrt(b - c^2 / a) z2                             (3)

Sources: (1) arc-cosine kernels, Cho & Saul 2009, for phi = sqrt(2) max(h, 0); (2) arcsine kernel, Williams 1997;
(3) Trefethen & Weideman 2014 for the rule, which with a Gaussian weight converges geometrically.

Assumptions and approximations
    Only (3) is approximate.  Its error falls like exp(-2 pi r nodes / 17), where r is how far from the real axis phi is
    analytic, in standard deviations of h: pi / (2 gain sd) for tanh, pi / (gain sd) for softplus.  (Gauss-Hermite nodes
    reach too far out: as many of them measured up to 1000 times worse.)  Largest errors measured with the default of 64
    nodes, relative to the diagonal, of E phi phi' and E phi' phi':

        gain sd     1/2              1                2                4
        tanh        rounding         1e-13   8e-12    7e-7   4e-5      1e-3   4e-2
        softplus    rounding         rounding         rounding         2e-9   3e-7
        gelu        rounding         rounding         6e-15  5e-13     3e-6   3e-4

    `diagonal_error` estimates it; `lazy_limit` reports that in its attributes, and warns where it matters.
"""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.specs import Activation, _check

Array = NDArray[np.float64]

NODES = 64
CLOSED_FORM = ("linear", "relu", "erf")
REACH = 8.5  # standard deviations; beyond it lies 2e-17 of a normal's weight, below rounding
CHUNK = 2**19  # values of phi held at a time
# a kernel that quadrature gave may be a covariance up to the error of quadrature only
EXCESS_CORRELATION = 1e-3


def gaussian_averages(activation: Activation, covariance: ArrayLike, *, nodes: int = NODES) -> tuple[Array, Array]:
    """E phi(h_mu) phi(h_a) and E phi'(h_mu) phi'(h_a), each (sample, sample_2).

    Args:
        activation: phi.
        covariance: (sample, sample_2), of the zero-mean Gaussian fields h.
        nodes: of the quadrature in each of two dimensions; not used for linear, relu and erf.

    Raises:
        ValueError, TypeError: not the covariance of anything; nodes below 2.
    """
    K, nodes = check_covariance(covariance), _check.integer("nodes", nodes, minimum=2)
    if activation.formula is not None or activation.name not in CLOSED_FORM:
        return quadrature(activation, K, nodes)
    a, b = activation.gain, activation.scale
    feature, slope = _closed_form(activation.name, K if a == 1 else a**2 * K)
    return (feature, slope) if a == b == 1 else ((b / a) ** 2 * feature, b**2 * slope)


def _closed_form(name: str, K: Array) -> tuple[Array, Array]:
    """Of the formulas without gain and scale."""
    if name == "linear":
        return K, np.ones_like(K)
    return _arc_cosine(K) if name == "relu" else _arcsine(K)


def evaluate(activation: Activation, h: Array) -> tuple[Array, Array]:
    """(phi(h), phi'(h)), coordinatewise; the derivative of ReLU at zero is zero."""
    return activation.both(np, h)


def quadrature(activation: Activation, covariance: Array, nodes: int) -> tuple[Array, Array]:
    """Equation (3), for any activation; where h' is a multiple of h (a = 0 included), z2 has no weight in it."""
    z, w = _rule(nodes)
    first, second = np.nonzero(np.hypot.outer(z, z) <= REACH)
    weight = w[first] * w[second]
    n, variance = len(covariance), covariance.diagonal()
    sd = np.sqrt(variance)
    left = [value * weight for value in (u[:, first] for u in evaluate(activation, sd[:, None] * z))]
    averages = np.empty((n, n)), np.empty((n, n))
    for i in range(n):
        size = max(CHUNK // len(weight), 1)
        for start in range(i, n, size):
            others = slice(start, start + size)
            along = covariance[i, others] / sd[i] if sd[i] > 0 else np.zeros(n)[others]
            across = np.sqrt(np.maximum(variance[others] - along**2, 0))
            right = evaluate(activation, along[:, None] * z[first] + across[:, None] * z[second])
            for average, ours, theirs in zip(averages, left, right, strict=True):
                average[i, others] = average[others, i] = theirs @ ours[i]
    return averages


def diagonal_error(activation: Activation, variance: Array, nodes: int) -> float:
    """Largest relative change of E phi^2 and E phi'^2 between `nodes` and twice as many; 0 for closed forms.

    Measured: errors off the diagonal are not larger.
    """
    if activation.formula is None and activation.name in CLOSED_FORM:
        return 0.0
    coarse, fine = (
        np.array([value**2 @ w for value in evaluate(activation, np.sqrt(variance)[:, None] * z)])
        for z, w in (_rule(nodes), _rule(2 * nodes))
    )
    return float((abs(coarse - fine) / np.where(fine > 0, fine, 1)).max())


def warn_of_few_nodes(error: float, nodes: int, *, threshold: float = 1e-4) -> None:
    """Say that `diagonal_error` is above what plots and comparisons forgive."""
    if error > threshold:
        warnings.warn(
            f"{nodes} quadrature nodes give averages over Gaussian fields to {error:.1g} only: the activation is steep "
            f"on the scale of its fields. Give nodes={4 * nodes}.",
            stacklevel=4,
        )


@cache
def _rule(nodes: int) -> tuple[Array, Array]:
    """Nodes and weights of E F(z), z ~ N(0, 1)."""
    z = np.linspace(-REACH, REACH, nodes)
    w = np.exp(-(z**2) / 2)
    return z, w / w.sum()


def _arc_cosine(K: Array) -> tuple[Array, Array]:
    sd = np.sqrt(K.diagonal())
    norm = np.outer(sd, sd)
    cosine = np.clip(K / np.where(norm > 0, norm, 1), -1, 1)
    np.fill_diagonal(cosine, 1)  # arccos turns a rounding error e into sqrt(2 e)
    angle = np.arccos(cosine)
    slopes = np.where(norm > 0, (np.pi - angle) / np.pi, 0)  # phi'(0) = 0
    return norm * (np.sin(angle) + (np.pi - angle) * cosine) / np.pi, slopes


def _arcsine(K: Array) -> tuple[Array, Array]:
    scale = 1 + 2 * K.diagonal()
    outer = np.outer(scale, scale)
    return 2 / np.pi * np.arcsin(2 * K / np.sqrt(outer)), 4 / np.pi / np.sqrt(outer - 4 * K**2)


def check_covariance(value: ArrayLike) -> Array:
    """The covariance (sample, sample_2), or the error that says why it is none."""
    K = _check.finite_array("covariance", value, ("sample", "sample_2"))
    if K.shape[0] != K.shape[1]:
        raise ValueError(f"covariance has shape {K.shape}; expected as many rows as columns, (sample, sample_2).")
    if K.diagonal().min() < 0:
        raise ValueError(f"covariance has the variance {K.diagonal().min():g} on its diagonal; give non-negative ones.")
    sd = np.sqrt(K.diagonal())
    excess = abs(K) - np.outer(sd, sd) * (1 + EXCESS_CORRELATION)
    if excess.max() > 0 or not np.allclose(K, K.T, rtol=0, atol=1e-9 * K.diagonal().max()):
        where = tuple(int(i) for i in np.unravel_index(np.argmax(excess), K.shape))
        raise ValueError(
            f"covariance is not one: entry {where} is {K[where]:g}, its mirror {K.T[where]:g}, for variances "
            f"{K[where[0], where[0]]:g} and {K[where[1], where[1]]:g}. Give a symmetric positive semidefinite matrix."
        )
    return K
