"""The saddle point of `dmft.adaptive_kernels.bayes` by sampling one large population of neurons a layer.

With preactivations h^l = C_l^{1/2} e^l, e^l (sample, neuron), the saddle point is that of a law of e alone, and a
minimum over it, for the duals are gone: with Phi^l the averages over the populations themselves,

    F = (gamma0^2/2) tr y^T (v_L Phi^L + I/beta)^{-1} y + sum_l KL(law of e^l | N(0, 1))                             (1)
    p(e) ~ exp{ -N (gamma0^2/2) tr y^T (v_L Phi^L + I/beta)^{-1} y - |e|^2/2 }                                       (2)

(2) is the posterior of a network of N neurons a layer whose weights are integrated out (but for a factor that does not
grow with N): L N P numbers in the place of L N^2, at a cost of L N P^2 a move.  The force on a neuron is that of the
duals of the moment, (2) of `bayes` with averages over the populations as they are.  All neurons move at once, each by a
short Hamiltonian trajectory at the D and C^{1/2} of its beginning, and each accepted for itself.  Of an infinite
population that leaves the saddle point as it is, whatever the length of a step, and relaxes to it like the descent of F
that it follows, if trajectories are short: t sqrt(lambda) < 2, with lambda the largest eigenvalue of the response of
all forces to all e, which is measured.  (Duals that are iterated by themselves, and long trajectories, overshoot: what
they drive answers with a gain far above 1.  Accepting all neurons of ReLU together would take steps of N^{-1/2}.)

Beyond the saddle point there are terms of order 1/N: populations of N and of N/4 neurons are sampled, and extrapolated.
Populations go along gamma0 from 0 to that of the problem, the branch of small gamma0, and on their way the action is
integrated, for dS/d(gamma0^2) = tr y^T r / 2 at the saddle point.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dmft.errors import DivergenceError
from dmft.running.progress import Bar
from dmft.specs.activation import Activation

Array = NDArray[np.float64]
DRAWS, MOVES = 8, 4  # of a block, and between draws
STEP, COURANT = 0.3, 1.3  # the longest step; length of a move times the largest frequency, which is stable below 2
NODES = 6  # of gamma0, on the way
TURNS = 20  # power iterations
NEAR = 0.03  # displacement by which forces are compared, root mean square
JITTER = 1e-12  # relative, of covariances that are factored


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posterior:
    """What (2) is made of.

    root: R (sample, rank) of the training samples, h^1 = R e^1.
    means, spread: of test samples, h^1 = means e^1 + spread (test_sample, test_sample) times normal numbers.
    targets: y (sample, output); noise: P T; variances: v_1 .. v_L.
    """

    root: Any
    means: Any
    spread: Any
    targets: Any
    noise: Any
    variances: Any


def posterior(kernel: Array, targets: Array, noise: float, variances: tuple[float, ...]) -> Posterior:
    """Of samples with K^x (sample, sample_2), the training samples first, and their targets."""
    n = len(targets)
    covariance = variances[0] * kernel
    values, vectors = np.linalg.eigh(covariance[:n, :n])
    kept = values > JITTER * max(values[-1], 1e-300)
    root = vectors[:, kept] * np.sqrt(values[kept])
    means = covariance[n:, :n] @ (vectors[:, kept] / np.sqrt(values[kept]))
    spread = np.asarray(_root(np, covariance[n:, n:] - means @ means.T))
    return Posterior(root, means, spread, np.asarray(targets), noise, np.array(variances[1:]))


def _root(xp: Any, covariance: Any) -> Any:
    """A square root of a covariance that may lack rank."""
    values, vectors = xp.linalg.eigh(covariance)
    return vectors * xp.sqrt(xp.clip(values, 0, None))


def _moment(of: Posterior, activation: Activation, gamma0: Any, e: Any) -> tuple[Any, Any, Any, Any]:
    """Of populations as they are: features and factors of covariances of the layers, duals D by (2) of
    `dmft.adaptive_kernels.bayes`, and r."""
    neurons, factors, seen = e[0].shape[1], [of.root], []
    for layer, each in enumerate(e):
        seen.append(activation.both(jnp, factors[layer] @ each))
        covariance = of.variances[layer] * (seen[-1][0] @ seen[-1][0].T) / neurons
        last = layer + 1 == len(e)
        floor = of.noise if last else JITTER * jnp.trace(covariance) / len(covariance)
        factors.append(jnp.linalg.cholesky(covariance + floor * jnp.eye(len(covariance)), symmetrize_input=False))
    r = jax.scipy.linalg.cho_solve((factors.pop(), True), of.targets)
    duals = [-(gamma0**2) * of.variances[-1] * r @ r.T]
    for layer in range(len(e) - 1, 0, -1):
        phi, slope = seen[layer]
        response = e[layer] @ (slope * (duals[0] @ phi)).T / neurons  # <e (phi' o D phi)^T>, and C^-1 h = F^-T e
        response = jax.scipy.linalg.solve_triangular(factors[layer], response, trans="T", lower=True)
        duals.insert(0, of.variances[layer - 1] * (response + response.T) / 2)
    return [phi for phi, _ in seen], factors, duals, r


def _normal(key: Any, shape: tuple[int, ...]) -> Any:
    """Drawn in single precision, which costs a fourth."""
    return jax.random.normal(key, shape, jnp.float32).astype(jnp.float64)


def _force(activation: Activation, factor: Any, dual: Any, e: Any) -> tuple[Any, Any]:
    """Energy |e|^2/2 + phi^T D phi/2 of every neuron, and its gradient, at a dual that is held."""
    phi, slope = activation.both(jnp, factor @ e)
    driven = dual @ phi
    return (jnp.sum(e * e, 0) + jnp.sum(phi * driven, 0)) / 2, e + factor.T @ (slope * driven)


def _moved(activation: Activation, factor: Any, dual: Any, e: Any, normal: Any, step: Any, count: Any) -> Any:
    """The next draw of each neuron of a layer, at a dual that is held, from normal numbers (sample + 2, neuron); the
    share of those that were accepted."""
    p, chance = normal[:-2], -jnp.sum(normal[-2:] ** 2, 0) / 2  # the logarithm of a uniform number

    def leap(_: Any, state: Any) -> Any:
        q, p, _, slope = state
        p = p - step / 2 * slope
        q = q + step * p
        energy, slope = _force(activation, factor, dual, q)
        return q, p - step / 2 * slope, energy, slope

    start, slope = _force(activation, factor, dual, e)
    q, end_p, end, _ = jax.lax.fori_loop(0, count, leap, (e, p, start, slope))
    gained = start - end + jnp.sum(p * p - end_p * end_p, 0) / 2
    return jnp.where(chance < gained, q, e), jnp.minimum(1.0, jnp.exp(gained)).mean()


def _measured(of: Posterior, activation: Activation, gamma0: Any, e: Any, key: Any) -> dict[str, Any]:
    """Order parameters of the populations, of training samples and of test samples, which are drawn here."""
    n, tests = len(of.targets), len(of.means)
    trained, factors, duals, r = _moment(of, activation, gamma0, e)
    kernels: list[Any] = []
    normal = _normal(key, (len(e), tests, e[0].shape[1]))
    for layer in range(len(e)):
        means, spread = of.means, of.spread
        if layer:
            covariance = of.variances[layer - 1] * kernels[-1]
            means = jax.scipy.linalg.solve_triangular(factors[layer], covariance[:n, n:], lower=True).T
            spread = _root(jnp, covariance[n:, n:] - means @ means.T)
        test = means @ e[layer] + spread @ normal[layer]
        features = jnp.concatenate([trained[layer], activation.both(jnp, test)[0]])
        kernels.append(features @ features.T / features.shape[1])
    pad = [(0, 0), (0, tests), (0, tests)]
    return {
        "feature_kernel": jnp.stack(kernels),
        "feature_dual": jnp.pad(jnp.stack(duals), pad),
        "prediction": of.variances[-1] * kernels[-1][:, :n] @ r,
        "prediction_dual": jnp.pad(r, [(0, tests), (0, 0)]),
        "evidence": jnp.sum(of.targets * r),
    }


@functools.partial(jax.jit, static_argnames="activation")
def stiffness(of: Posterior, activation: Activation, gamma0: Any, e: Any, key: Any) -> Any:
    """Largest eigenvalue of the response of all forces to populations e (sample, neuron) of the layers."""

    def forces(e: Any) -> list[Any]:
        _, factors, duals, _ = _moment(of, activation, gamma0, e)
        return [_force(activation, *each)[1] for each in zip(factors, duals, e, strict=True)]

    def size(v: list[Any]) -> Any:
        return jnp.sqrt(sum(jnp.sum(each**2) for each in v))

    def turned(_: Any, state: Any) -> Any:
        v, _ = state
        there = forces([a + b for a, b in zip(e, v, strict=True)])
        change = [a - b for a, b in zip(there, here, strict=True)]
        found = size(change) / size(v)
        return [far / size(change) * each for each in change], found

    here, far = forces(e), NEAR * sum(a.size for a in e) ** 0.5
    rows = np.cumsum([len(a) for a in e])
    start = jnp.split(NEAR * _normal(key, (rows[-1], e[0].shape[1])), rows[:-1])
    return jax.lax.fori_loop(0, TURNS, turned, (start, jnp.zeros(())))[1]


@functools.partial(jax.jit, static_argnames="activation")
def block(
    of: Posterior, activation: Activation, gamma0: Any, e: Any, keys: Any, step: Any, count: Any
) -> tuple[Any, dict[str, Any], Any]:
    """Of every set `DRAWS` draws, between which its populations move `MOVES` times, by `count` steps `step`.

    e: (set, sample, neuron) of the layers, before and after; keys: (set, draw, move + 1).

    Returns:
        e; means over the draws (set, ...); shares of moves that were accepted (set,).
    """

    def one(e: Any, keys: Any) -> Any:
        def move(e: Any, key: Any) -> Any:
            _, factors, duals, _ = _moment(of, activation, gamma0, e)
            rows = np.cumsum([len(each) + 2 for each in e])
            normal = jnp.split(_normal(key, (rows[-1], e[0].shape[1])), rows[:-1])
            moved = [_moved(activation, *each, step, count) for each in zip(factors, duals, e, normal, strict=True)]
            return [q for q, _ in moved], sum(share for _, share in moved) / len(moved)

        def draw(carry: Any, keys: Any) -> Any:
            e, sums = carry
            e, shares = jax.lax.scan(move, e, keys[1:])
            found = _measured(of, activation, gamma0, e, keys[0])
            return (e, jax.tree.map(jnp.add, sums, found)), shares.mean()

        shapes = jax.eval_shape(lambda: _measured(of, activation, gamma0, e, keys[0, 0]))
        none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        (e, sums), shares = jax.lax.scan(draw, (e, none), keys)
        return e, jax.tree.map(lambda a: a / DRAWS, sums), shares.mean()

    return jax.vmap(one)(e, keys)  # type: ignore[no-any-return]


class Sets:
    """Independent sets of populations, on their way.

    Args:
        of, activation: what is sampled; neurons: N; depth: L; count: of sets; key: of random numbers.
    """

    def __init__(
        self, of: Posterior, activation: Activation, *, neurons: int, depth: int, count: int, key: jax.Array
    ) -> None:
        self.of, self.activation, self.count = of, activation, count
        self.key, *keys = jax.random.split(key, depth + 1)
        ranks = [of.root.shape[1]] + [len(of.targets)] * (depth - 1)
        self.e = [jax.random.normal(k, (count, n, neurons), jnp.float64) for k, n in zip(keys, ranks, strict=True)]
        self.length, self.accepted = 1.0, 1.0

    def pace(self, gamma0: float) -> None:
        """Choose how far populations move, by their stiffness now."""
        self.key, key = jax.random.split(self.key)
        first = [a[0] for a in self.e]
        eigenvalue = float(stiffness(self.of, self.activation, np.float64(gamma0), first, key))
        _require_finite(eigenvalue, gamma0)
        self.length = COURANT / max(eigenvalue, 1.0) ** 0.5

    def draw(self, gamma0: float, blocks: int, bar: Bar) -> dict[str, Array]:
        """Means over so many blocks (set, ...)."""
        steps = int(np.ceil(self.length / STEP))
        sums: dict[str, Array] = {}
        for _ in range(blocks):
            self.key, key = jax.random.split(self.key)
            keys = jax.random.split(key, (self.count, DRAWS, MOVES + 1))
            self.e, found, accepted = block(
                self.of, self.activation, np.float64(gamma0), self.e, keys, self.length / steps, steps
            )
            values = {name: np.asarray(value) / blocks for name, value in found.items()}
            _require_finite(values["evidence"], gamma0)
            sums = {name: sums[name] + value for name, value in values.items()} if sums else values
            self.accepted = float(np.mean(accepted))
            bar.update()
        return sums

    def arrive(self, gamma0: float, bar: Bar) -> Array:
        """Take the sets from gamma0 = 0 to this one; the action (set,)."""
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        action = np.zeros(self.count)
        for node, weight in zip(nodes, weights, strict=True):
            there = gamma0 * (1 + node) / 2
            self.pace(there)
            self.draw(there, 1, bar)
            self.pace(there)
            action += self.draw(there, 1, bar)["evidence"] * there * weight * gamma0 / 2
        self.pace(gamma0)
        self.draw(gamma0, 1, bar)
        self.pace(gamma0)
        return action


def _require_finite(values: Any, gamma0: float) -> None:
    if not np.isfinite(values).all():
        raise DivergenceError(
            f"populations left the finite numbers at gamma0={gamma0:.3g}. Leave out training samples that coincide, or "
            "raise the temperature."
        )
