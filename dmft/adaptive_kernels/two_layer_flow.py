"""Two-layer networks under gradient flow with weight decay, t -> infinity: a convex problem.

The mean-field flow of one hidden layer with a homogeneous activation goes to the global minimum of its loss with decay,
which is convex in the measure a of neurons over directions n, |n| = 1:

    min_a  |y - sum_n a_n phi_n|^2 / 2 + tau sum_n |a_n|      phi_n = phi(X n / sqrt(D))      tau = lambda / gamma0  (1)

    f = sum_n a_n phi_n       Phi = gamma0 sum_n |a_n| phi_n phi_n^T       G = gamma0 sum_n |a_n| s_n s_n^T
    K = Phi + G o K^x

Its dual is a projection: Delta = y - f is the point nearest to y with |c(n)| <= tau for all n, c(n) = Delta . phi_n,
so that for any u with |c| <= tau

    gap = (1) - (|y|^2 - |y - u|^2) / 2  >=  (1) - its minimum  >=  |f - f_min|^2 / 2                                (2)

Columns n are generated: (1) over those that are there, by non-negative least squares, then those with the largest
sigma c(n), sigma = +-1.  With phi(h) = s h, of slopes s in {a_-, a_+}, and C the samples with sigma Delta_mu (a_+ -
a_-) > 0, where sigma Delta_mu phi is the larger of its two branches,

    max_n sigma c(n) = max_{s of C, in {a_-, a_+}} min_{t of others, between a_- and a_+} |v|
    v = (sum_{mu in C} sigma Delta_mu s_mu x_mu + sum_{mu not in C} sigma Delta_mu t_mu x_mu) / sqrt(D)              (3)

bounded least squares, whose residual is the direction n.  Alternating s <- slopes at n, n <- residual never lowers c.
With few samples all s are tried, which makes the gap a certificate; with many, alternations from many starts find the
largest c that is known, and the gap holds as far as these have found it.

Neurons come to rest exactly at h_mu = 0 for some samples, where slopes jump for ever: the t of (3) are what they are on
average, s_n.  With these f = K (K + 2 lambda)^-1 y holds exactly.

    X inputs   y targets   lambda weight decay times P   Delta_mu = y_mu - f_mu   K^x = X X^T / D   o entrywise

Assumptions: directions of neurons at initialisation cover all of the sphere, as Gaussian weights do at infinite width.

Source: Bach 2017, Chizat & Bach 2018 (global minimum, measures over directions); Pilanci & Ergen 2020 (ReLU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmft.adaptive_kernels.homogeneous import slopes_at
from dmft.adaptive_kernels.least_squares import bounded

Array = NDArray[np.float64]
PATTERNS = 4096  # most patterns s that are all tried
STARTS = 64  # random directions from which c is raised first
FURTHER = 8  # and in each iteration from then on
ALTERNATIONS = 50
NEAR = 1e-3  # relative: local maxima of c so little below tau are columns, too
SAME = 1e-6  # distance between directions that are one
ROUNDING = 1e-14  # relative, of c
GONE = 1e-12  # relative weight of a neuron that is none


class Neurons(NamedTuple):
    """weights a (neuron,); directions n (neuron, direction of inputs), unit vectors; slopes: s_n (neuron, sample), at
    the training samples."""

    weights: Array
    directions: Array
    slopes: Array

    def at(self, index: NDArray[np.intp] | NDArray[np.bool_] | list[int]) -> Neurons:
        return Neurons(*(each[index] for each in self))

    def joined(self, other: Neurons) -> Neurons:
        return Neurons(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class Minimum(NamedTuple):
    """Of (1): its neurons; gap (2) over |y|^2; certified: whether all patterns were tried; iterations: of columns."""

    neurons: Neurons
    gap: float
    certified: bool
    iterations: int


def minimum(
    X: Array,
    y: Array,
    slopes: tuple[float, float],
    tau: float,
    *,
    tolerance: float,
    most: int,
    seed: int,
    finished: Callable[[int], Any] = int,
) -> Minimum:
    """Generate columns until the gap is at most `tolerance` times |y|^2, or `most` times.

    Args:
        X: inputs / sqrt(D), in coordinates of their span (sample, direction of inputs).
        slopes: a_-, a_+.
        seed: of the random starts.
        finished: is told of each iteration.

    Example:
        >>> found = minimum(np.eye(1), np.ones(1), (0.0, 1.0), 0.3, tolerance=1e-12, most=9, seed=0)
        >>> found.neurons.weights.round(6), found.certified
        (array([0.7]), True)
    """
    search, size = _Search(X, y, slopes, tau), float(y @ y)
    random = np.random.default_rng(seed).standard_normal((STARTS + FURTHER * most, X.shape[1]))
    held = Neurons(np.zeros(0), np.zeros((0, X.shape[1])), np.zeros((0, len(y))))
    gap, certified, iteration = np.inf, False, 0
    for iteration in range(1, most + 1):
        starts, random = np.split(random, [STARTS if iteration == 1 else FURTHER])
        gap, certified, found = search.certificate(held, [*held.directions, *starts], tolerance * size)
        if gap <= tolerance * size:
            break
        held = search.fitted(held.joined(found))
        finished(1)
    fewer = search.fitted(search.distinct(search.raised(search.residual(held), held.directions)))
    again, certified_again, _ = search.certificate(fewer, fewer.directions, tolerance * size)
    if again <= max(gap, tolerance * size):
        held, gap, certified = fewer, again, certified_again
    return Minimum(held, gap / size if size else 0.0, certified, iteration)


class _Search:
    """Columns of one problem (1)."""

    def __init__(self, X: Array, y: Array, slopes: tuple[float, float], tau: float) -> None:
        self.X, self.y, self.slopes, self.tau = X, y, slopes, tau
        self.lowest, self.highest = min(slopes), max(slopes)

    def features(self, directions: Array) -> Array:
        """phi_n (neuron, sample)."""
        h = directions @ self.X.T
        return slopes_at(h, self.slopes) * h

    def residual(self, neurons: Neurons) -> Array:
        """Delta."""
        return self.y - neurons.weights @ self.features(neurons.directions)

    def fitted(self, neurons: Neurons) -> Neurons:
        """(1) over these directions, with the signs that their weights have; those that are left.

        Its dual is the least distance |Delta - y| with B^T Delta <= tau, which non-negative least squares solve (Lawson
        & Hanson 1974, ch. 23) however alike the columns B are.
        """
        signs = np.sign(neurons.weights)
        columns = signs[:, None] * self.features(neurons.directions)
        above = columns @ self.y - self.tau
        problem = np.vstack([-columns.T, above]), np.append(np.zeros_like(self.y), 1.0)
        u = bounded(*problem, 0.0, np.inf, np.zeros(len(columns)))
        weights = u / (1 - above @ u)
        left = weights > GONE * weights.max(initial=0.0)
        return neurons._replace(weights=signs * weights).at(left)

    def certificate(self, held: Neurons, starts: Iterable[Array], enough: float) -> tuple[float, bool, Neurons]:
        """The gap, whether all patterns were tried for it, and columns that lower it; all are tried where others find
        none."""
        delta = self.residual(held)
        found, certified = self.raised(delta, starts), False
        if self.gap(held, delta, found) <= enough and self.patterns(delta) <= PATTERNS:
            found, certified = found.joined(self.every(delta)), True
        return self.gap(held, delta, found), certified, self.distinct(found)

    def gap(self, held: Neurons, delta: Array, found: Neurons) -> float:
        """(2), with u = Delta scaled into the dual; the values of c that are known are the weights of `found`."""
        u = delta / max(1.0, abs(found.weights).max(initial=0.0) / self.tau)
        primal = delta @ delta / 2 + self.tau * abs(held.weights).sum()
        return max(float(primal - (self.y @ self.y - (self.y - u) @ (self.y - u)) / 2), 0.0)

    def distinct(self, found: Neurons) -> Neurons:
        """Of columns with c not far below tau, one of those that are the same."""
        chosen: list[int] = []
        for i in np.argsort(-abs(found.weights)):
            if abs(found.weights[i]) < self.tau * (1 - NEAR):
                break
            same = np.sign(found.weights[chosen]) == np.sign(found.weights[i])
            if not (same & (abs(found.directions[chosen] - found.directions[i]).max(1, initial=0.0) < SAME)).any():
                chosen.append(int(i))
        return found.at(chosen)

    # ---- (3); in the place of weights are sigma c --------------------------------------------------------------------

    def patterns(self, delta: Array) -> int:
        """How many there are."""
        return sum(2 ** int(self.branching(sign * delta).sum()) for sign in (1, -1))

    def branching(self, e: Array) -> NDArray[np.bool_]:
        """C (sample,), e = sigma Delta."""
        return e * (self.slopes[1] - self.slopes[0]) > 0

    def every(self, delta: Array) -> Neurons:
        """Of all patterns."""
        found = []
        for sign in (1, -1):
            branching, s = self.branching(sign * delta), np.full(len(delta), self.lowest)
            for pattern in product(self.slopes, repeat=int(branching.sum())):
                s[branching] = pattern
                v, s = self.least(sign * delta, s)
                found.append((sign, v, s))
        return self.collected(found)

    def raised(self, delta: Array, starts: Iterable[Array]) -> Neurons:
        """Local maxima of c and of -c that alternations find."""
        return self.collected((sign, *self.alternated(sign * delta, n)) for n in starts for sign in (1, -1))

    def collected(self, found: Iterable[tuple[int, Array, Array]]) -> Neurons:
        rows = [(sign, v, s) for sign, v, s in found if v.any()]
        directions = np.array([v for _, v, _ in rows]).reshape(-1, self.X.shape[1])
        values = np.linalg.norm(directions, axis=1)
        slopes = np.array([s for _, _, s in rows]).reshape(-1, len(self.y))
        return Neurons(np.array([sign for sign, _, _ in rows]) * values, directions / values[:, None], slopes)

    def alternated(self, e: Array, n: Array) -> tuple[Array, Array]:
        """The residual and the slopes of the last of some alternations."""
        branching, value, s = self.branching(e), 0.0, self.inclines(n)
        for _ in range(ALTERNATIONS):
            v, s = self.least(e, s)
            if np.linalg.norm(v) <= value * (1 + ROUNDING):
                break
            value = float(np.linalg.norm(v))
            s = np.where(branching, self.inclines(v), s)
        return v, s

    def inclines(self, n: Array) -> Array:
        """phi' at all samples, of a direction n of any size."""
        return slopes_at(self.X @ n, self.slopes)

    def least(self, e: Array, s: Array) -> tuple[Array, Array]:
        """The smallest residual for the slopes `s` of C, those of others being the first guess, and all slopes."""
        branching, slopes = self.branching(e), np.array(s, np.float64)
        rows = self.X[~branching] * e[~branching, None]
        if len(rows) and self.lowest < self.highest:
            fixed = (e[branching] * slopes[branching]) @ self.X[branching]
            slopes[~branching] = bounded(rows.T, -fixed, self.lowest, self.highest, slopes[~branching])
        return (e * slopes) @ self.X, slopes
