"""Averages of products of the fields that programs have at initialisation, at infinite width.

Fields are sums of Gaussian fields, and activations of sums of these; cotangents are sums of Gaussian fields that are
independent of those, times slopes (`dmft.limits.frozen`).  So products are taken apart until Gaussian ones are left:

    <(A h + ...) k^T>         A <h k^T> + ...                        maps of positions
    <phi(h) phi(k)>           E phi phi under <h h>, <h k>, <k k>
    <phi'(h) z  phi'(k) z'>   E phi' phi' under these, times <z z'>
    <h k>                     0 of Gaussian fields of different weights
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dmft.limits.gaussian import diagonal_error, gaussian_averages
from dmft.specs import Activation
from dmft.specs.networks.sketch import Part

Array = NDArray[np.float64]
Map = Array | float  # of positions (after, before), or a factor


class UnclosedError(ValueError):
    """A program whose kernels at initialisation do not follow from each other."""


@dataclass(eq=False)
class Node:
    """A field (sample, position) of neurons, or a cotangent.

    index: nodes are numbered as they are made; positions: how many, 1 for none.
    centred: whether its mean vanishes whatever else is given; sources: the Gaussian fields that it is made of.
    """

    index: int
    positions: int
    centred: bool
    sources: frozenset[Hashable]


@dataclass(eq=False)
class Source(Node):
    """A Gaussian field of weights that are used nowhere else.

    seen: its covariance for weights of variance 1 without biases (sample, position, sample_2, position_2).
    """

    covariance: Array
    seen: Array
    part: Part | None = None
    given: Node | None = None
    mix: Array | None = None


@dataclass(eq=False)
class Sum(Node):
    """sum_i A_i h_i."""

    parts: tuple[tuple[Map, Node], ...]


@dataclass(eq=False)
class Activated(Node):
    """phi(h), or, with `z`, phi'(h) z."""

    phi: Activation
    h: Node
    z: Node | None = None


@dataclass
class Averages:
    """Products <a b> of nodes, each made once."""

    name: str
    nodes: int
    error: float = 0.0
    _products: dict[tuple[Node, Node], Array | None] = field(default_factory=dict)
    _gaussian: dict[tuple[Activation, Node, Node], tuple[Array, Array]] = field(default_factory=dict)

    def product(self, a: Node, b: Node) -> Array | None:
        """(sample, position, sample_2, position_2); None if it vanishes."""
        if a.index < b.index:  # what was made later is taken apart first
            found = self.product(b, a)
            return None if found is None else found.transpose(2, 3, 0, 1)
        if (a, b) not in self._products:
            self._products[a, b] = self._made(a, b)
        return self._products[a, b]

    def _made(self, a: Node, b: Node) -> Array | None:
        if (a.centred or b.centred) and not a.sources & b.sources:
            return None
        if isinstance(a, Sum):
            others = a.parts if a is b else ((1.0, b),)
            each = ((A, B, self.product(h, k)) for A, h in a.parts for B, k in others)
            parts = [_mapped(A, B, found) for A, B, found in each if found is not None]
            return sum(parts[1:], parts[0]) if parts else None
        if isinstance(b, Sum):
            found = self._made(b, a)
            return None if found is None else found.transpose(2, 3, 0, 1)
        if isinstance(a, Source) and a is b:
            return a.covariance
        if isinstance(a, Activated) and isinstance(b, Activated) and a.phi == b.phi:
            feature, slope = self._of_gaussian(a.phi, a.h, b.h)
            if a.z is None or b.z is None:
                return feature
            inner = self.product(a.z, b.z)
            return None if inner is None else slope * inner
        raise UnclosedError(
            f"{self.name} adds a field and its activation, or two different activations, and multiplies them with each "
            "other"
        )

    def _of_gaussian(self, phi: Activation, a: Node, b: Node) -> tuple[Array, Array]:
        """E phi phi and E phi' phi' between two Gaussian fields."""
        if (phi, a, b) not in self._gaussian:
            fields = [a] if a is b else [a, b]
            ends = np.cumsum([0, *(len(self._flat(h, h)) for h in fields)])
            covariance = self._flat(a, a) if a is b else np.block([[self._flat(h, k) for k in fields] for h in fields])
            found = gaussian_averages(phi, covariance, nodes=self.nodes)
            self.error = max(self.error, diagonal_error(phi, covariance.diagonal(), self.nodes))
            part = slice(ends[0], ends[1]), slice(ends[-2], ends[-1])
            samples = ends[1] // a.positions
            shape = (samples, a.positions, samples, b.positions)
            feature, slope = (average[part].reshape(shape) for average in found)
            self._gaussian[phi, a, b] = feature, slope
        return self._gaussian[phi, a, b]

    def _flat(self, a: Node, b: Node) -> Array:
        """(row, row_2)."""
        found = self.product(a, b)
        if found is not None:
            return found.reshape(found.shape[0] * found.shape[1], -1)
        return np.zeros((len(self._flat(a, a)), len(self._flat(b, b))))


def _mapped(A: Map, B: Map, kernel: Array) -> Array:
    """A kernel B^T, on positions."""
    if isinstance(A, np.ndarray):
        return _mapped(1.0, B, np.einsum("yx,axbz->aybz", A, kernel))
    if isinstance(B, np.ndarray):
        return _mapped(A, 1.0, np.einsum("zx,aybx->aybz", B, kernel))
    return times(A * B, kernel)


def times(factor: float, kernel: Array) -> Array:
    return kernel if factor == 1 else factor * kernel


def over_equal(kernel: Array) -> Array:
    """The sum over equal positions."""
    return kernel[:, 0, :, 0] if kernel.shape[1] == 1 else np.einsum("ayby->ab", kernel)


def over_pairs(a: Array, b: Array) -> Array:
    """The sum over all pairs of positions of products of kernels."""
    return (a * b)[:, 0, :, 0] if a.shape[1] == 1 else np.einsum("aybz,aybz->ab", a, b)


def mixed(mix: Array | None, kernel: Array) -> Array:
    """sum_k m_k A m_k^T of A (sample, position, sample_2, position_2) and m (matrix, position, source)."""
    if mix is None:
        return kernel
    found = np.zeros((len(kernel), mix.shape[1]) * 2)
    for place in mix:
        found += np.einsum("yx,axbw,zw->aybz", place, kernel, place, optimize=True)
    return found
