"""Residual perceptrons of infinite depth at initialisation, and deep linear ones at any depth: equations of their own.

    h^1 = W^0 x / sqrt(D)      h^{l+1} = h^l + (beta0 / sqrt(L)) W^l phi(h^l) / sqrt(N)
    f = w . phi(h^{L+1}) / (gamma0 N)

**Lazy limit, L -> infinity**, with tau = l / L and Phi(H) = E phi phi, Phi'(H) = E phi' phi' under N(0, H):

    dH/dtau = beta0^2 Phi(H),  H(0) = K^x          -dG/dtau = beta0^2 Phi'(H) G,  G(1) = Phi'(H(1))
    K = Phi(H(1)) + beta0^2 int_0^1 G Phi(H) dtau + G(0) K^x

The recursion of a finite L (`dmft.limits.frozen`) is Euler's scheme of it: they differ by O(1/L).  With branches
beta0 / L (alpha = 1), whose weights learn L times as fast, H = K^x and G = Phi'(K^x) do not move, and
K = Phi + beta0^2 G Phi + G K^x.

**Linear residual networks with feature learning.**  With phi = 1 every field is a linear form in the Gaussian sources
u^1, w(0), u^{l+1}(t), r^l(t); g^l has no sample index.  With e = eta gamma0 / P and c = beta0 / sqrt(L)

    h^1(t) = u^1 + e sum_s K^x Delta(s) g^1(s)
    h^{l+1}(t) = h^l(t) + c u^{l+1}(t) + sum_{s<t} [ c A^l(t,s) + c^2 e sum_a Delta_a(s) H^l_a(t,s) ] g^{l+1}(s)
    g^l(t) = g^{l+1}(t) + c r^l(t) + sum_{s<t,a} [ c B^l_a(t,s) + c^2 e Delta_a(s) G^{l+1}(t,s) ] h^l_a(s)
    g^{L+1}(t) = w(0) + e sum_{s<t,a} Delta_a(s) h^{L+1}_a(s)      f = <g^{L+1} h^{L+1}> / gamma0

u^{l+1} and r^l have the covariances H^l and G^{l+1}; A^l and B^l are the coefficients of r^l in h^l, of u^{l+1} in
g^{l+1}.  One causal sweep closes them, without matrices that reveal themselves: a check of `dmft.solve`.

Source: Bordelon, Noci, Li, Hanin & Pehlevan 2023 (the setting).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp

from dmft.errors import DivergenceError, exploded
from dmft.limits.gaussian import NODES, check_covariance, gaussian_averages
from dmft.specs import Activation, _check

Array = NDArray[np.float64]
RTOL, ATOL = 1e-10, 1e-12  # of the differential equations
LARGEST = 1e100  # entry of a kernel


@dataclass(frozen=True)
class DeepKernels:
    """Kernels (sample, sample_2) of infinite depth: covariance H(1) of h at the end of the stream, ntk K."""

    covariance: Array
    ntk: Array


def infinite_depth_kernels(
    input_kernel: ArrayLike, activation: Activation, *, beta0: float = 1.0, exponent: float = 0.5, nodes: int = NODES
) -> DeepKernels:
    """Kernels of the lazy limit of infinitely deep residual perceptrons, as above.

    Args:
        input_kernel: K^x = x . x' / D (sample, sample_2).
        activation: phi.
        beta0: scale of branches, which are beta0 L^-exponent.
        exponent: 1/2 or 1.
        nodes: of quadratures, as of `frozen_kernels`.

    Raises:
        ValueError, TypeError: another exponent, for which there is no limit (below 1/2), or none that is computed here;
            a kernel that is no covariance.
        DivergenceError: kernels too large for the integration through depth.

    Example:
        >>> K = dmft.infinite_depth_kernels([[1.0]], dmft.relu()).ntk[0, 0]
        >>> bool(abs(K - 3 * np.exp(1)) < 1e-8)
        True
    """
    K, nodes = check_covariance(input_kernel), _check.integer("nodes", nodes, minimum=2)
    if not isinstance(activation, Activation):
        raise TypeError(f"activation={activation!r} is no Activation; give e.g. dmft.relu().")
    square = _check.positive("beta0", beta0) ** 2
    if exponent not in (0.5, 1):
        raise ValueError(
            f"exponent={exponent} has no kernels here, and below 1/2 those of many blocks grow without bound; take "
            "0.5 or 1."
        )

    def averages(H: Array) -> tuple[Array, Array]:
        feature, slope = gaussian_averages(activation, (H + H.T) / 2, nodes=nodes)
        return np.asarray(feature), np.asarray(slope)

    if exponent == 1:
        feature, slope = averages(K)
        return DeepKernels(K, feature + square * slope * feature + slope * K)
    count = K.size

    def forward(_: float, H: Array) -> Array:
        return square * averages(H.reshape(K.shape))[0].ravel()

    stream = _integrated(forward, K.ravel(), beta0).sol

    def backward(back: float, state: Array) -> Array:
        feature, slope = averages(stream(1 - back).reshape(K.shape))
        G = state[:count]
        return np.concatenate([square * slope.ravel() * G, square * G * feature.ravel()])

    feature, slope = averages(stream(1.0).reshape(K.shape))
    start = np.concatenate([slope.ravel(), np.zeros(count)])
    G, of_blocks = _integrated(backward, start, beta0).y[:, -1].reshape(2, *K.shape)
    return DeepKernels(stream(1.0).reshape(K.shape), feature + of_blocks + G * K)


def _integrated(slope: Callable[[float, Array], Array], start: Array, beta0: float) -> Any:
    """What SciPy finds from 0 to 1, if it gets there."""

    def bounded(at: float, state: Array) -> Array:
        if not abs(state).max() < LARGEST:
            raise DivergenceError(
                f"kernels of infinite depth reach {abs(state).max():.3g} with beta0={beta0:g}; lower it, or the size "
                "of input_kernel."
            )
        return slope(at, state)

    found = solve_ivp(bounded, (0, 1), start, rtol=RTOL, atol=ATOL, dense_output=True)
    if not found.success:
        raise DivergenceError(f"kernels of infinite depth with beta0={beta0:g} are not found: {found.message}")
    return found


def linear_residual(
    input_kernel: ArrayLike,
    targets: ArrayLike,
    *,
    blocks: int,
    gamma0: float,
    learning_rate: float,
    steps: int,
    beta0: float = 1.0,
    response: bool = True,
) -> Array:
    """f (step, sample) of linear residual networks under gradient descent, by the sweep above; O(L^2 P^2 T^3).

    Args:
        input_kernel: K^x (sample, sample_2), all of them trained on.
        targets: (sample,), with the squared error.
        blocks: L.
        gamma0: richness.
        learning_rate: eta.
        steps: T.
        beta0: scale of branches, which are beta0 / sqrt(L).
        response: False leaves A and B out: another network, for checks.

    Raises:
        ValueError, TypeError: arguments out of range, or of shapes that do not fit.
        DivergenceError: the loss explodes, naming the step.

    Example:
        >>> f = dmft.linear_residual([[1.0]], [1.0], blocks=2, gamma0=1.0, learning_rate=0.1, steps=3)
        >>> f.shape
        (4, 1)
    """
    K, y = check_covariance(input_kernel), _check.finite_array("targets", targets, ("sample",))
    if len(K) != len(y):
        raise ValueError(f"targets of {len(y)} samples do not fit input_kernel of {len(K)}; give one for each of them.")
    blocks, steps = _check.integer("blocks", blocks, minimum=1), _check.integer("steps", steps, minimum=0)
    gamma0, beta0 = _check.positive("gamma0", gamma0), _check.positive("beta0", beta0)
    learning_rate = _check.positive("learning_rate", learning_rate)
    P, L, T = len(y), blocks, steps + 1
    c, e = beta0 / np.sqrt(L), learning_rate * gamma0 / P
    sources = P + 1 + L * T * (P + 1)
    h, g = np.zeros((L + 2, P, T, sources)), np.zeros((L + 2, T, sources))
    H, G = np.zeros((L + 2, P, T, P, T)), np.zeros((L + 2, T, T))
    f, delta = np.zeros((T, P)), np.zeros((P, T))

    def of_u(layer: int, time: int) -> int:
        """Where u^{l+1}(t) begins among the sources."""
        return P + 1 + ((layer - 1) * T + time) * P

    def of_r(layer: int) -> int:
        return P + 1 + L * T * P + (layer - 1) * T

    def weighted(rows: Array, until: int) -> Array:
        """Times the covariance of the sources up to a time."""
        found = np.zeros_like(rows)
        found[..., :P], found[..., P] = rows[..., :P] @ K, rows[..., P]
        for layer in range(1, L + 1):
            part = slice(of_u(layer, 0), of_u(layer, until))
            covariance = H[layer, :, :until, :, :until].transpose(1, 0, 3, 2).reshape(until * P, until * P)
            found[..., part] = rows[..., part] @ covariance
            part = slice(of_r(layer), of_r(layer) + until)
            found[..., part] = rows[..., part] @ G[layer + 1, :until, :until]
        return found

    each = np.arange(P)
    for t in range(T):
        for layer in range(1, L + 2):
            if layer == 1:
                h[1, each, t, each] = 1
                pushed = e * K @ delta[:, :t]
            else:
                below = layer - 1
                h[layer, :, t] = h[below, :, t]
                h[layer, each, t, of_u(below, t) + each] += c
                pushed = c**2 * e * np.einsum("mas,as->ms", H[below, :, t, :, :t], delta[:, :t])
                pushed += c * response * h[below, :, t, of_r(below) : of_r(below) + t]
            h[layer, :, t] += pushed @ g[layer, :t]
            square = np.einsum("mi,asi->mas", weighted(h[layer, :, t], t + 1), h[layer, :, : t + 1])
            H[layer, :, t, :, : t + 1] = square
            H[layer, :, : t + 1, :, t] = square.transpose(1, 2, 0)
        for layer in range(L + 1, 0, -1):
            if layer == L + 1:
                g[layer, t, P] = 1
                pulled = e * delta[:, :t]
            else:
                g[layer, t] = g[layer + 1, t]
                g[layer, t, of_r(layer) + t] += c
                B = g[layer + 1, t, of_u(layer, 0) : of_u(layer, t)].reshape(t, P).T
                pulled = c * response * B + c**2 * e * G[layer + 1, t, :t] * delta[:, :t]
            g[layer, t] += np.einsum("as,asi->i", pulled, h[layer, :, :t])
            end = weighted(g[layer, t], t + 1)
            G[layer, t, : t + 1] = G[layer, : t + 1, t] = g[layer, : t + 1] @ end
            if layer == L + 1:
                f[t] = h[layer, :, t] @ end / gamma0
                delta[:, t] = y - f[t]
                loss, initial = (np.square(delta[:, s]).mean() / 2 for s in (t, 0))
                if exploded(loss, initial):
                    raise DivergenceError(
                        f"the loss explodes at step {t}: {loss:.3g} (initially {initial:.3g}). "
                        f"Lower learning_rate={learning_rate:g}."
                    )
    return f
