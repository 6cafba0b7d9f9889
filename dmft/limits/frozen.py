"""Kernels of any program at initialisation, at infinite width, where its recursion closes.

A field of such a program (`dmft.specs.networks.program`) is a sum of Gaussian fields, and of activations of sums of
these; a cotangent g = gamma0 N_p df/dh is a sum of Gaussian fields that are independent of those, times slopes.  Rows
are samples a and positions y, weights have the variances v (`dmft.specs.parameterization`):

    read       h = W x                             <h h'> = v (x . x') + v_b sigma^2          sigma: scale of biases
    apply      h = sum_k m_k W^k v / sqrt(N)       <h h'> = v sum_k m_k <v v'> m_k^T          m = 1 for one matrix
    vector     h = b                               <h h'> = v_b
    activate   phi(h)                              E phi phi' under <h h>
    +, *, mix  linear maps of positions            A <h h'> A^T

    readout    w                                   <w w> = v_L
    apply      z = r^2 sum_k m_k^T W^k^T g / sqrt(N)       <z z'> = v r^2 sum_k m_k^T <g g'> m_k      r^2 = N_in / N_out
    activate   phi'(h) z                           E phi' phi' under <h h>, times <z z'>

    K = sum over weights of (N / N_p) sum_yy' <g g'> times what <h h'> is without its variance, and <features features'>

For perceptrons, with b = 1 and no identity branch for an MLP, b = branch_scale for a residual network, this is

    K^{h,1}   = v_0 K^x + v_b sigma^2                        covariance of preactivations h^l
    K^{h,l+1} = [K^{h,l}] + b^2 (v_l Phi^l + v_b sigma^2)    [ ] in residual networks only
    Phi^l     = E phi phi        under K^{h,l}               feature kernel
    G^L       = v_L E phi' phi'  under K^{h,L}               gradient kernel
    G^l       = G^{l+1} ([1] + b^2 v_l E phi' phi')          under K^{h,l}
    K         = G^1 (K^x + sigma^2) + b^2 sum_{l=1}^{L-1} G^{l+1} (Phi^l + sigma^2) + Phi^L    frozen layers left out

Sources: Neal 1996, Lee et al. 2018, Jacot et al. 2018; Novak et al. 2019, Garriga-Alonso et al. 2019, Arora et al. 2019
(positions); Yang 2020 (programs).

Assumptions and approximations
    W^T g is independent of all that W has shown: their response to each other is linear in the readout, whose mean
    vanishes, where no matrix is used twice.  Averages over Gaussian fields are exact for linear, relu and erf, and
    quadratures for others (`dmft.limits.gaussian`; 1000 rows take 5 s a layer on one core).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.limits.gaussian import NODES
from dmft.limits.gaussian_fields import (
    Activated,
    Averages,
    Map,
    Node,
    Source,
    Sum,
    UnclosedError,
    mixed,
    over_equal,
    over_pairs,
    times,
)
from dmft.limits.result import FrozenKernels
from dmft.running.host import usual_errors
from dmft.specs import MLP, Activation, ResidualMLP, _check
from dmft.specs.networks.blocks import InTurn
from dmft.specs.networks.population import Field, Formula
from dmft.specs.networks.program import Architecture
from dmft.specs.networks.sketch import Part
from dmft.specs.parameterization import layer_variances, trained_layers

Array = NDArray[np.float64]
FORWARD, BACKWARD = "forward", "backward"
FEW_NODES = 4  # where numbers do not matter


@usual_errors
def frozen_kernels(
    network: Architecture, input_kernel: ArrayLike | None = None, *, x: ArrayLike | None = None, nodes: int = NODES
) -> FrozenKernels:
    """The kernels above; feature kernels are means over equal positions, gradient kernels their sums.

    Args:
        network: any architecture whose recursion closes; gamma0 does not matter.
        input_kernel: K^x = x.x'/D, (sample, sample_2), of an MLP or a ResidualMLP, which need no more of inputs.
        x: inputs as a task has them, (sample, ...), in its place.
        nodes: of the quadrature in each of two dimensions, for activations without a closed form.

    Raises:
        UnclosedError (a ValueError): a program with formulas, averages over neurons, matrices that are used more than
            once, or activations of what is not Gaussian.
        ValueError, TypeError: an input kernel that is not a covariance, or of networks that need inputs; nodes below 2.
    """
    nodes = _check.integer("nodes", nodes, minimum=2)
    if (input_kernel is None) == (x is None):
        raise ValueError("frozen_kernels takes input_kernel or x, one of them.")
    if x is not None:
        inputs = np.asarray(x, np.float64)
        return _Frozen(network, inputs.shape[1:], nodes).kernels(network.inputs(inputs))
    if type(network) not in (MLP, ResidualMLP):
        raise ValueError(
            f"{type(network).__name__} may need more of inputs than their products input_kernel; give x=, inputs as a "
            "task has them."
        )
    return _Frozen(network, (1,), nodes).kernels(_Products(np.asarray(input_kernel, np.float64)))


def why_unclosed(network: Architecture, shape: tuple[int, ...]) -> str:
    """Why the kernels of a network on inputs of this shape are not frozen ones; nothing if they are."""
    try:
        _Frozen(network, shape, nodes=FEW_NODES).kernels(network.inputs(np.ones((1, *shape))))
    except UnclosedError as reason:
        return str(reason)
    return ""


@dataclass(frozen=True)
class _Products:
    """Inputs of which the products (sample, sample_2) are known."""

    of: Array


class _Frozen(InTurn):
    """The interpreter `net`: values of fields are nodes."""

    def __init__(self, network: Architecture, shape: tuple[int, ...], nodes: int) -> None:
        self.shape, self._network, self._sketch = shape, network, network.sketch(shape)
        self._name = f"the program of {type(network).__name__}"
        layers = self._sketch.readout_layer + 1
        self._variances, self._trained = layer_variances(network, layers), trained_layers(network, layers)
        self._bias = network.bias_variance
        self._averages = Averages(self._name, nodes)
        self._samples = 0
        self._nodes: list[Node] = []
        self._vectors: dict[str, Source] = {}
        self._used: set[str] = set()
        self._layers: list[tuple[Node, Node]] = []

    def kernels(self, x: Any) -> FrozenKernels:
        """Of all samples of what the program reads."""
        self._samples = len(x.of if isinstance(x, _Products) else x)
        if self._sketch.read:
            raise UnclosedError(f"{self._name} has outputs at every position")
        end = self._network.program(self, x).value
        forward = list(self._nodes)
        features = [times(1 / h.positions, over_equal(self._product(h))) for _, h in self._layers]
        top = over_equal(self._product(end)) / self._sketch.share(self._sketch.readout)
        ntk, gradients = self._backward(forward, end)
        per_layer = [over_equal(gradients[h]) if h in gradients else self._nothing() for h, _ in self._layers]
        ntk = ntk + self._trained[-1] * top
        return FrozenKernels(np.array(features), np.array(per_layer), ntk, self._averages.error)

    def _backward(self, forward: list[Node], end: Node) -> tuple[Array, dict[Node, Array]]:
        """The NTK of all weights but the readout, and <g g> of every node that has one."""
        positions, samples = np.eye(end.positions), self._samples
        seen = np.broadcast_to(positions[:, None], (samples, end.positions, samples, end.positions))
        readout = self._source(BACKWARD, "readout", self._variances[-1] * seen, seen)
        cotangents: dict[Node, list[tuple[Map, Node]]] = {end: [(1.0, readout)]}
        ntk, found = self._nothing(), dict[Node, Array]()
        for node in reversed(forward):
            if node not in cotangents:
                continue
            g = self._sum(cotangents.pop(node))
            found[node] = G = self._product(g)
            back: list[tuple[Map, Node]] = []
            given: tuple[Node, ...] = ()
            if isinstance(node, Sum):
                given = tuple(h for _, h in node.parts)
                back = [(A.T if isinstance(A, np.ndarray) else A, g) for A, _ in node.parts]
            elif isinstance(node, Activated):
                given, back = (node.h,), [(1.0, self._activated(node.phi, node.h, g))]
            elif isinstance(node, Source) and node.part is not None:
                share = self._sketch.share(node.part.target)
                ntk += self._trained[node.part.layer] / share * over_pairs(G, node.seen)
                if node.given is not None:
                    seen = mixed(None if node.mix is None else node.mix.transpose(0, 2, 1), G)
                    ratio = self._sketch.share(node.part.source) / share
                    covariance = times(self._variances[node.part.layer] * ratio, seen)
                    z = self._source(BACKWARD, node.part.name, covariance, seen)
                    given, back = (node.given,), [(1.0, z)]
            for h, each in zip(given, back, strict=True):
                cotangents.setdefault(h, []).append(each)
        return ntk, found

    def _product(self, a: Node) -> Array:
        found = self._averages.product(a, a)
        return np.zeros((self._samples, a.positions) * 2) if found is None else found

    def _nothing(self) -> Array:
        return np.zeros((self._samples,) * 2)

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def _noted(self, make: Callable[..., Node], *given: Any, **options: Any) -> Any:
        made = make(len(self._nodes), *given, **options)
        self._nodes.append(made)
        return made

    def _source(self, way: str, name: str, covariance: Array, seen: Array, **options: Any) -> Source:
        sources = frozenset({(way, name)})
        found: Source = self._noted(Source, covariance.shape[1], True, sources, covariance, seen, **options)
        return found

    def _sum(self, parts: list[tuple[Map, Node]]) -> Node:
        if len(parts) == 1 and isinstance(parts[0][0], float) and parts[0][0] == 1:
            return parts[0][1]
        A, h = parts[0]
        positions = len(A) if isinstance(A, np.ndarray) else h.positions
        centred, sources = all(h.centred for _, h in parts), frozenset[Hashable]().union(*(h.sources for _, h in parts))
        found: Node = self._noted(Sum, positions, centred, sources, tuple(parts))
        return found

    def _activated(self, phi: Activation, h: Node, z: Node | None = None) -> Node:
        sources = h.sources if z is None else z.sources
        found: Node = self._noted(Activated, h.positions, z is not None, sources, phi, h, z)
        return found

    def _drawn(self, name: str, parts: tuple[Part, ...], seen: Array, *, bias: float = 0.0, **options: Any) -> Source:
        """The field of weights that the program asks for."""
        part = next(each for each in parts if each.name == name)
        if name in self._used:
            raise UnclosedError(f"{self._name} uses the matrix {name!r} more than once")
        self._used.add(name)
        covariance = times(self._variances[part.layer], seen)
        if bias:
            covariance, seen = covariance + self._bias * bias**2, seen + bias**2
        return self._source(FORWARD, name, covariance, seen, part=part, **options)

    # ---- what a program asks for -------------------------------------------------------------------------------------

    def read(self, name: str, x: Any, *, to: Hashable) -> Field:
        if isinstance(x, _Products):
            seen = x.of[:, None, :, None]
        else:
            rows = x.reshape(len(x), -1, x.shape[-1])
            seen = np.einsum("ayi,bzi->aybz", rows, rows)
        return Field(self, self._drawn(name, self._sketch.reads, seen, bias=float(self._network.bias)), to)

    def apply(self, name: str, v: Field, *, to: Hashable, mix: Any = None) -> Field:
        weights = None if mix is None else np.asarray(mix, np.float64)
        seen = mixed(weights, self._product(v.value))
        return Field(self, self._drawn(name, self._sketch.matrices, seen, given=v.value, mix=weights), to)

    def vector(self, name: str, *, of: Hashable) -> Field:
        if name not in self._vectors:
            part = next(each for each in self._sketch.vectors if each.name == name)
            ones = np.ones((self._samples, 1, self._samples, 1))
            self._vectors[name] = self._source(FORWARD, name, self._bias * ones, ones, part=part)
        return Field(self, self._vectors[name], of)

    def number(self, name: str, *, start: float = 1.0) -> Field:
        raise UnclosedError(f"{self._name} trains the number {name!r}, from {start:g} on")

    def activate(self, phi: Activation, h: Field) -> Field:
        if not h.value.centred:
            raise UnclosedError(f"{self._name} takes an activation of a field that is not Gaussian at initialisation")
        return Field(self, self._activated(phi, h.value), h.population)

    def mix(self, h: Field, A: Any) -> Field:
        return Field(self, self._sum([(np.atleast_2d(np.asarray(A, np.float64)), h.value)]), h.population)

    def local(self, formula: Formula, *values: Field) -> Field:
        del values
        name = getattr(getattr(formula, "func", formula), "__name__", "of its own")  # `func` of one with options
        raise UnclosedError(
            f"{self._name} has the formula {name} in net.local; a function of one field can be a dmft.activation in "
            "net.activate"
        )

    def average(self, a: Field, b: Field) -> Field:
        del a, b
        raise UnclosedError(f"{self._name} uses averages over neurons (net.average)")

    def overlaps(self, a: Field, b: Field) -> Field:
        del a, b
        raise UnclosedError(f"{self._name} uses overlaps of positions (net.overlaps)")

    def show(self, name: str, formula: Formula, *values: Field) -> None:
        """Nothing: observables of passes are not those of kernels."""

    def flatten(self, h: Field) -> Field:
        return self.scale(h.value.positions**-0.5, h)

    def layer(self, h: Field, features: Field) -> Field:
        self._layers.append((h.value, features.value))
        return features

    def add(self, a: Field, b: Field) -> Field:
        most = max(a.value.positions, b.value.positions)
        parts = [(1.0 if h.positions == most else np.ones((most, 1)), h) for h in (a.value, b.value)]
        return Field(self, self._sum(parts), a.population)

    def scale(self, factor: Any, h: Field) -> Field:
        return Field(self, self._sum([(float(factor), h.value)]), h.population)
