"""What width N adds to the kernels of a multilayer perceptron at initialisation, at leading order in 1/N.

For one pair of samples, h^l ~ N(0, Phi^{l-1}), A^l = E phi'(h^l) phi'(h^l), zeta^l ~ N(0, G^{l+1}), Phi^0 = K^x and
G^{L+1} = 1, a layer of N neurons has

    Phi^l = <phi phi>         g^l = phi'(h^l) z^l         z^l = zeta^l + (X^{l+1} - Y^l) (Phi^l)^-1 phi(h^l)
    G^l = <g^l g^l>           Y^l = <zeta^l phi(h^l)>     X^l = <g^l h^l>            NTK = sum_l G^{l+1} Phi^l

where < > is the mean over its neurons, which are independent given Phi^{l-1} and G^{l+1}, and z^l = W^T g^{l+1} is
conditioned on what the same matrix has shown going forward (`dmft.engine.matrix`).  X and Y vanish in the limit.  With
the fluctuations dq of size N^-1/2 and b = lim N (E q - q) this gives, entry by entry of a and b,

    dPhi^l = Phi' dPhi^{l-1} + epsilon^l         bPhi^l = Phi' bPhi^{l-1} + Phi'' Cov(Phi^{l-1}, Phi^{l-1}) / 2
    dA^l   = A' dPhi^{l-1} + alpha^l             bA^l   = A' bPhi^{l-1} + A'' Cov(Phi^{l-1}, Phi^{l-1}) / 2
    dG^l   = A dG^{l+1} + G dA^l + eta^l         bG^l   = A bG^{l+1} + G bA^l + Cov(A^l, G^{l+1})
                                                          + F_abcd [(Phi^-1 V^{l+1} Phi^-1)_acbd - G_ab Phi^-1_cd]

    Cov(epsilon, alpha)   of (phi phi, phi' phi') of one neuron
    Cov(eta, eta)         E phi'_a phi'_b phi'_c phi'_d (G_ac G_bd + G_ad G_bc)
    F                     E phi'_a phi'_b phi_c phi_d
    V^l_acbd              N Cov(X_ac, X_bd) = G_ab E u_ac u_bd + k_ac,e k_bd,f V^{l+1}_aebf
    u, k                  u_ac = phi'_a h_c - phi_e k_ac,e      k_ac,e = Phi^-1_ef E phi'_a h_c phi_f

where G is that of the layer above, and V^{L+1} = 0, F = 0, k = 0 for l = L: no matrix is above.

Derivatives in a covariance are averages with Hermite polynomials of h, so that phi may have kinks:

    dE f / dK = E f (K^-1 h h^T K^-1 - K^-1) / 2

Assumptions and approximations
    Leading order in 1/N.  Averages are quadratures of Gauss and Legendre between the kinks of phi: error below 1e-8 of
    the largest term.  Perceptrons without biases; samples that are not parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.limits.gaussian import check_covariance, evaluate
from dmft.specs import MLP, Activation
from dmft.specs.parameterization import trained_layers

Array = NDArray[np.float64]

NODES = 48  # of Gauss and Legendre between two kinks, in each dimension
REACH = 11.0  # standard deviations; z^8 exp(-z^2 / 2) is below rounding there
PARALLEL = 1e-6  # relative size of what two samples differ in, below which their kernel is taken for singular


@dataclass(frozen=True)
class InitialFluctuations:
    """lim N Var and lim N (E q - q) of kernels at initialisation.

    feature_*, gradient_*: (layer, sample, sample_2); ntk_*: (sample, sample_2).
    """

    feature_variance: Array
    feature_bias: Array
    gradient_variance: Array
    gradient_bias: Array
    ntk_variance: Array
    ntk_bias: Array


def initial_fluctuations(network: MLP, input_kernel: ArrayLike, *, nodes: int = NODES) -> InitialFluctuations:
    """The recursions above, pair by pair.

    Args:
        network: a perceptron without biases, of one output; gamma0 does not matter.
        input_kernel: K^x = x.x'/D, (sample, sample_2).
        nodes: of the quadrature between two kinks, in each of two dimensions.

    Returns:
        `InitialFluctuations`: N Var and N bias of the feature and gradient kernels, (layer, sample, sample_2), and of
        the NTK, (sample, sample_2).

    Raises:
        ValueError, TypeError: another network; an input kernel that is not a covariance, or of parallel samples.

    Example:
        >>> network = dmft.MLP(depth=2, activation=dmft.relu())
        >>> dmft.initial_fluctuations(network, [[1.0]]).feature_variance.ravel().round(6)
        array([ 5., 10.])
    """
    if type(network) is not MLP or network.bias or network.weight_variance != 1.0:
        raise ValueError(
            f"initial_fluctuations is for dmft.MLP without biases and with weights of variance one, got {network}; "
            "dmft.fluctuations is for any."
        )
    K = check_covariance(input_kernel)
    samples, depth = len(K), network.depth
    found = InitialFluctuations(
        *(np.zeros((depth, samples, samples)) for _ in range(4)), *(np.zeros((samples, samples)) for _ in range(2))
    )
    for a, b in combinations_with_replacement(range(samples), 2):
        pair = [a] if a == b else [a, b]
        values = _of_pair(network, K[np.ix_(pair, pair)], nodes)
        for room, value in zip(vars(found).values(), values, strict=True):
            room[..., a, b] = room[..., b, a] = value[..., 0, -1]
    return found


def _of_pair(network: MLP, K: Array, nodes: int) -> tuple[Array, ...]:
    """As `InitialFluctuations`, for all entries between one sample or two.

    A fluctuation is a matrix (entry, noise): it is linear in noise that all layers share, of covariance `noise`.
    """
    if np.linalg.det(K) <= PARALLEL**2 * K.diagonal().prod():
        raise ValueError(f"input_kernel: the samples of {K.tolist()} are parallel, or zero; give others.")
    depth, n = network.depth, len(K)
    size = n * n
    noise = np.zeros((3 * depth * size,) * 2)  # of epsilon, alpha, eta of every layer
    places = np.arange(3 * depth * size).reshape(depth, 3, size)
    unit = np.eye(len(noise))[places]  # (layer, kind, entry, noise)

    def covariance(p: Array, q: Array) -> Array:
        return p @ noise @ q.T

    Phi, dPhi, bPhi = K, np.zeros((size, len(noise))), np.zeros(size)
    forward = []
    for layer in range(depth):
        average = _Averages(network.activation, Phi, nodes)
        epsilon, alpha = places[layer, :2]
        inner = np.concatenate([epsilon, alpha])
        noise[np.ix_(inner, inner)] = average.covariance
        spread = covariance(dPhi, dPhi)
        features, slopes = (
            (slope @ dPhi + unit[layer, kind], slope @ bPhi + np.einsum("qij,ij->q", bend, spread) / 2)
            for kind, (slope, bend) in enumerate(average.derivatives)
        )
        (dPhi, bPhi), Phi = features, average.features
        forward.append((average, *features, *slopes))

    ones = np.ones((n, n))
    G, dG, bG, V = ones, np.zeros_like(dPhi), np.zeros(size), np.zeros((n,) * 4)
    d_ntk, b_ntk = np.zeros_like(dPhi), np.zeros(size)
    gradients: list[tuple[Array, Array]] = []
    free = trained_layers(network)
    for layer in reversed(range(depth)):
        average, dPhi, bPhi, dA, bA = forward[layer]
        Phi, A, g = average.features.ravel(), average.slopes.ravel(), G.ravel()
        d_ntk = d_ntk + free[layer + 1] * (g[:, None] * dPhi + Phi[:, None] * dG)
        b_ntk = b_ntk + free[layer + 1] * (g * bPhi + Phi * bG + np.diagonal(covariance(dPhi, dG)))
        direct, V = average.response(G, V, last=layer == depth - 1)
        eta = places[layer, 2]
        noise[np.ix_(eta, eta)] = average.scatter(G)
        bG = A * bG + g * bA + np.diagonal(covariance(dA, dG)) + direct.ravel()
        dG = A[:, None] * dG + g[:, None] * dA + unit[layer, 2]
        G = average.slopes * G
        gradients.insert(0, (dG, bG))
    d_ntk = d_ntk + free[0] * K.ravel()[:, None] * dG
    b_ntk = b_ntk + free[0] * K.ravel() * bG

    def variances(parts: list[Array]) -> Array:
        return np.stack([np.diagonal(covariance(d, d)).reshape(n, n) for d in parts])

    return (
        variances([each[1] for each in forward]),
        np.stack([each[2].reshape(n, n) for each in forward]),
        variances([d for d, _ in gradients]),
        np.stack([b.reshape(n, n) for _, b in gradients]),
        variances([d_ntk])[0],
        b_ntk.reshape(n, n),
    )


class _Averages:
    """Averages over h ~ N(0, K) of what the recursions ask for; entries (a, b) of kernels are flat."""

    def __init__(self, activation: Activation, K: Array, nodes: int) -> None:
        h, self._weights = _rule(activation, K, nodes)
        self._h, self._M = h, np.linalg.inv(K)
        self._phi, self._slope = evaluate(activation, h)
        self._n = len(K)
        self._pairs = [np.einsum("ai,bi->abi", v, v).reshape(-1, h.shape[1]) for v in (self._phi, self._slope)]
        self.features, self.slopes = (self._mean(pairs).reshape(K.shape) for pairs in self._pairs)

    def _mean(self, values: Array) -> Array:
        averages: Array = values @ self._weights
        return averages

    @property
    def covariance(self) -> Array:
        """Of one neuron's (phi phi, phi' phi')."""
        both = np.concatenate(self._pairs)
        mean = self._mean(both)
        found: Array = (both * self._weights) @ both.T - np.outer(mean, mean)
        return found

    @property
    def derivatives(self) -> list[tuple[Array, Array]]:
        """First and second, (entry, K) and (entry, K, K_2), of E phi phi and of E phi' phi'."""
        M, s, n = self._M, self._M @ self._h, self._n
        first = np.einsum("ix,jx->ijx", s, s) - M[:, :, None]
        second = np.einsum("ix,jx,kx,lx->ijklx", s, s, s, s)
        for order in ("ijkl", "ikjl", "iljk", "jkil", "jlik", "klij"):
            second -= np.einsum(f"{order[:2]},{order[2]}x,{order[3]}x->ijklx", M, s, s)
        for order in ("ijkl", "ikjl", "iljk"):
            second += np.einsum(f"{order[:2]},{order[2:]}->ijkl", M, M)[..., None]
        first, second = (a.reshape(n * n, *[n * n] * (a.ndim // 4), -1) for a in (first / 2, second / 4))
        weighted = (pairs * self._weights for pairs in self._pairs)
        return [(pairs @ first.T, np.einsum("px,ijx->pij", pairs, second)) for pairs in weighted]

    def scatter(self, G: Array) -> Array:
        """Cov(eta, eta), for G of the layer above."""
        four = ((self._pairs[1] * self._weights) @ self._pairs[1].T).reshape([self._n] * 4)
        both = np.einsum("ac,bd->abcd", G, G) + np.einsum("ad,bc->abcd", G, G)
        found: Array = (four * both).reshape(self._n**2, -1)
        return found

    def response(self, G: Array, V: Array, *, last: bool) -> tuple[Array, Array]:
        """The last term of bG, and V^l, for G and V of the layer above."""
        phi, slope, h, w = self._phi, self._slope, self._h, self._weights
        u = np.einsum("ax,cx->acx", slope, h)
        if last:
            return np.zeros_like(G), np.einsum("ab,acx,bdx,x->acbd", G, u, u, w)
        inverse = np.linalg.inv(self.features)
        k = np.einsum("acx,fx,x,fe->ace", u, phi, w, inverse)
        u = u - np.einsum("ace,ex->acx", k, phi)
        F = np.einsum("ax,bx,cx,dx,x->abcd", slope, slope, phi, phi, w)
        bracket = np.einsum("ce,aebf,fd->acbd", inverse, V, inverse) - np.einsum("ab,cd->acbd", G, inverse)
        below = np.einsum("ab,acx,bdx,x->acbd", G, u, u, w) + np.einsum("ace,bdf,aebf->acbd", k, k, V)
        return np.einsum("abcd,acbd->ab", F, bracket), below


def _rule(activation: Activation, K: Array, nodes: int) -> tuple[Array, Array]:
    """Points h (sample, point) and weights of averages over N(0, K), for one sample or two."""
    kinks = np.array(activation.kinks)
    sd = np.sqrt(K[0, 0])
    z, weight = _between(kinks / sd, nodes)
    if len(K) == 1:
        return sd * z[None], weight
    along = K[0, 1] / sd
    across = np.sqrt(K[1, 1] - along**2)
    second, inner = _between((kinks - along * z[:, None]) / across, nodes)
    h = np.stack(np.broadcast_arrays(sd * z[:, None], along * z[:, None] + across * second))
    return h.reshape(2, -1), (weight[:, None] * inner).ravel()


def _between(kinks: Array, nodes: int) -> tuple[Array, Array]:
    """Points and weights (..., point) of averages over N(0, 1), for functions smooth between `kinks` (..., kink)."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    shape = (*kinks.shape[:-1], 1)
    inside = np.clip(kinks, -REACH, REACH)
    ends = np.concatenate([np.full(shape, -REACH), np.zeros(shape), inside, np.full(shape, REACH)], axis=-1)
    ends = np.sort(ends, axis=-1)[..., None]
    middle, half = (ends[..., 1:, :] + ends[..., :-1, :]) / 2, np.diff(ends, axis=-2) / 2
    z = (middle + half * points).reshape(*shape[:-1], -1)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return z, (half * weights).reshape(z.shape) * density
