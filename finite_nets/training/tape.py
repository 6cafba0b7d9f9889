"""Programs of architectures (`dmft.specs.networks.program`) on the fields of a batch of networks, forward and backward.

    read     h = W x                                     apply    h = W v / sqrt(N)
    bank     h_y = [W^1 .. W^K] p_y / sqrt(N)            p_y = (m[k, y] . v)_k, what a mix makes of v at every position
    vector   h = b                                       local    h = formula(torch, a, b, ...)

Fields are (member, row, [position,] neuron), a bank is one matrix (member, N, K N) that sees K N inputs, numbers have a
last axis of length one.  N is that of the population, of what is multiplied under the root.  A pass notes every field
and how cotangents go back through it.  Those,

    g = (1 / output scale) df/dh,      per neuron of the population of the readout, whatever that of h,

are (member, row, start, [position,] neuron): a backward pass starts from every output or from the loss, and rows do not
mix, so one pass serves all of them.  Weights have no gradients of their own: a use of one leaves what it was given and
the cotangent of what it made, of which

    D = sum_use sum_a Delta_a sum_y g_ay v_ay^T          K_ab = sum_uses sum_yy' <g_ay g_by'> <v_ay v_by'>

are the direction of a step and its part of the NTK, for a read x . x' in place of < >, for a vector 1.  Formulas alone
are differentiated by PyTorch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmft.specs import Activation
from dmft.specs.networks.blocks import InTurn
from dmft.specs.networks.population import Field, Formula, on_neurons, population, population_of
from dmft.specs.networks.sketch import Part, Sketch
from dmft.specs.parameterization import hidden_scale, number_rate
from finite_nets.device.activations import differentiable
from finite_nets.device.products import Products
from finite_nets.device.rounding import NOTHING, Rounding
from finite_nets.training.traces import Index, Note, Trace, Use, side_by_side

MANY_POSITIONS = 48  # from which on moving them takes less time than a product (measured on a CPU: equal from 16 to 64)
IN_FORMULAS = 3  # numbers that a formula keeps for its derivatives, a number that it is given
Pull = Callable[[Tensor], Sequence[Tensor | None]]


@dataclass(frozen=True)
class Numbers:
    """Weights of a program by number: matrices in the order in which it meets them, the readout, vectors.

    names: of all but the readout; layers: of all; banks: how many matrices each is, 0 where it is no bank; reads:
    numbers of those that read inputs; ends: (source, target) of all, places of populations, None where there is none:
    what is trained as a number has neither.
    """

    names: dict[str, int]
    layers: tuple[int, ...]
    banks: tuple[int, ...]
    reads: tuple[int, ...]
    ends: tuple[tuple[int | None, int | None], ...]

    @classmethod
    def of(cls, sketch: Sketch) -> Numbers:
        matrices = sorted([*sketch.reads, *sketch.matrices], key=lambda part: part.layer)
        readout, vectors = len(matrices), sketch.vectors
        names = {part.name: i for i, part in enumerate(matrices)}
        names |= {part.name: readout + 1 + i for i, part in enumerate(vectors)}
        layers = [*range(readout + 1), *(part.layer for part in vectors)]
        banks = [*(part.bank for part in matrices), *[0] * (1 + len(vectors))]

        def ends(part: Part) -> tuple[int | None, int | None]:
            source, target = (None if end is None else sketch.place(end) for end in (part.source, part.target))
            return source, target

        top = sketch.place(sketch.readout)
        pairs = (*map(ends, matrices), (top, top), *map(ends, vectors))
        return cls(names, tuple(layers), tuple(banks), tuple(part.layer for part in sketch.reads), pairs)

    @property
    def readout(self) -> int:
        return max(self.layers)

    def rate(self, number: int, width: int) -> float:
        """Beside that of weights of neurons (`dmft.specs.parameterization.number_rate`)."""
        return number_rate(width) if self.ends[number][1] is None else 1.0


class Node:
    """A field of a pass: what it was made of, and how its cotangent becomes theirs.

    kept: whether its cotangent is kept.
    """

    __slots__ = ("kept", "parents", "pull", "value")

    def __init__(self, value: Tensor, parents: Sequence[Node] = (), pull: Pull | None = None) -> None:
        self.value, self.parents, self.pull = value, parents, pull
        self.kept = False


class Mixing:
    """A map of positions, (after, before): where each takes from one position at most, and there are many, by index."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self._index: Tensor | None = None
        if matrix.shape[1] >= MANY_POSITIONS and bool((matrix != 0).sum(1).le(1).all()):
            self._index = matrix.abs().argmax(1)
            self._weight = matrix.gather(1, self._index[:, None])

    def forward(self, v: Tensor) -> Tensor:
        """(..., after, N) from (..., before, N)."""
        if self._index is None:
            return self._matrix @ v
        return v.index_select(-2, self._index).mul_(self._weight)

    def backward(self, g: Tensor) -> Tensor:
        """(..., before, N) from (..., after, N), which may be overwritten."""
        if self._index is None:
            return self._matrix.mT @ g
        found = g.new_zeros((*g.shape[:-2], self._matrix.shape[1], g.shape[-1]))
        return found.index_add_(-2, self._index, g.mul_(self._weight))


class Constants:
    """What a program's arrays become, in the order in which it gives them; the same in every pass."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._met: list[Any] = []

    def tensor(self, place: int, array: Any) -> Tensor:
        if place == len(self._met):
            self._met.append(self._made(array))
        found: Tensor = self._met[place]
        return found

    def mixing(self, place: int, mix: Any) -> Mixing:
        """Of (matrix, after, before), whose positions after are (after, matrix)."""
        if place == len(self._met):
            by_position = np.asarray(mix).transpose(1, 0, 2)
            self._met.append(Mixing(self._made(by_position.reshape(-1, by_position.shape[-1]))))
        found: Mixing = self._met[place]
        return found

    def _made(self, array: Any) -> Tensor:
        return torch.as_tensor(np.array(array)).to(self._like)


class Tape(InTurn):
    """The interpreter `net` of one pass.

    Args:
        numbers: of the weights.
        tensors: weights by number: (member, N, D) of reads, (member, N, K N) of matrices and banks (the first N that
            of their target, the second of their source), (member, output, N) of the readout, (member, N) of vectors,
            (member, 1) of numbers.
        shape: of one input, as the task has it.
        rows: how many samples pass.
        traced: whether a backward pass follows; if not, PyTorch can differentiate all that is done.
        rounding: of weights and of what they multiply.
    """

    def __init__(
        self,
        numbers: Numbers,
        tensors: Sequence[Tensor],
        products: Products,
        constants: Constants,
        shape: tuple[int, ...],
        rows: int,
        *,
        traced: bool,
        rounding: Rounding = NOTHING,
    ) -> None:
        self.shape, self._rows, self._rounding = shape, rows, rounding
        self._numbers, self._tensors, self._products, self._constants = numbers, tensors, products, constants
        self.members = len(tensors[numbers.readout])
        self._traced = traced
        self._nodes: list[Node] = []
        self._layers: list[tuple[Node, Node]] = []
        self._notes: list[Note] = []
        self._uses: list[tuple[int, Tensor | None, Node]] = []
        self._given = 0  # arrays so far
        self._met: Index = slice(None)  # rows of the backward pass
        self._extra = 0  # numbers that a pass keeps besides fields

    # ---- after a forward pass ----------------------------------------------------------------------------------------

    @property
    def features(self) -> list[Tensor]:
        """Of every layer, (member, row, N), with all positions side by side."""
        return [features.value.flatten(2) for _, features in self._layers]

    def trace(self, end: Field) -> Trace:
        """Of all rows, before a backward pass: without uses."""
        return Trace([h.value for h, _ in self._layers], end.value.value.flatten(2), [], list(self._notes))

    @property
    def kept(self) -> tuple[int, int]:
        """How many numbers a traced pass keeps, and how many a start of a backward pass takes at most."""
        sizes = [node.value.numel() for node in self._nodes]
        given = [given.numel() for _, given, _ in self._uses if given is not None]
        # what formulas make of pairs of positions on their way
        pairs = IN_FORMULAS * sum(note.units().numel() for note in self._notes)
        return sum(sizes) + self._extra + pairs, sum(node.value.numel() for node in self._nodes if node.kept) + 3 * max(
            *sizes, *given
        )

    @property
    def positions(self) -> int:
        """Of all uses of a weight together, the most."""
        counts: Counter[int] = Counter()
        for number, given, _ in self._uses:
            counts[number] += 1 if given is None else given.shape[2]
        return max(counts.values())

    def backward(self, end: Field, seed: Tensor, rows: Index) -> tuple[list[Tensor], Trace]:
        """Gradients of the layers, (member, row, start, N) with all positions side by side, and the trace, of some rows
        of a traced pass, from the cotangent (member, row or 1, start, N) of its end, with positions side by side."""
        self._met = rows
        gradients: dict[Node, Tensor] = {end.value: seed.reshape(*seed.shape[:-1], *end.value.value.shape[2:])}
        kept: dict[Node, Tensor] = {}
        for node in reversed(self._nodes):
            g = gradients.pop(node, None)
            if g is None:
                continue
            if node.kept:
                kept[node] = g
            if node.pull is None:
                continue
            for parent, part in zip(node.parents, node.pull(g), strict=True):
                if part is not None:
                    gradients[parent] = gradients[parent] + part if parent in gradients else part

        def gradient(node: Node) -> Tensor:
            """Zero for what has no part in the output."""
            value = node.value[:, rows][:, :, None]
            g = kept.get(node)
            whole = value.expand(-1, -1, seed.shape[2], *value.shape[3:])
            return torch.zeros_like(whole) if g is None else g.expand_as(whole)

        uses = [
            Use(number, given, gradient(node).flatten(3, -2) if node.value.ndim > 3 else gradient(node)[..., None, :])
            for number, given, node in ((n, None if v is None else v[:, rows], y) for n, v, y in self._uses)
        ]
        found = [gradient(h) for h, _ in self._layers]
        return [g.flatten(3) for g in found], self.trace(end).at(rows)._replace(uses=uses)

    def forget(self) -> None:
        """Let go of the pass: nodes refer to the tape, and would keep each other in memory."""
        for node in self._nodes:
            node.parents, node.pull = (), None
        for met in (self._nodes, self._layers, self._uses, self._notes):
            met.clear()

    # ---- weights -----------------------------------------------------------------------------------------------------

    def read(self, name: str, x: Any, *, to: Hashable) -> Field:
        number = self._numbers.names[name]
        weights = self._rounding.weights(number, self._tensors[number])
        inputs = self._rounding.given(number, torch.as_tensor(x).to(weights)[None])[0]
        flat = inputs.reshape(1, -1, inputs.shape[-1]).expand(self.members, -1, -1)
        h = self._products.image(flat, weights).reshape(self.members, *inputs.shape[:-1], weights.shape[1])
        return self._used(number, inputs.reshape(1, self._rows, -1, inputs.shape[-1]), Node(h), to)

    def apply(self, name: str, v: Field, *, to: Hashable, mix: Any = None) -> Field:
        number, source = self._numbers.names[name], v.value
        weights, products = self._rounding.weights(number, self._tensors[number]), self._products
        given, width = source.value, source.value.shape[-1]
        scale = hidden_scale(width)
        mixing = None
        if mix is not None:
            mixing = self._constants.mixing(self._next(), mix)
            given = mixing.forward(given).reshape(*given.shape[:2], mix.shape[1], -1)
            self._extra += given.numel()
        given = self._rounding.given(number, given)
        self._extra += given.numel() * self._rounding.copies
        shape = (*given.shape[:-1], weights.shape[1])
        h = products.image(given.flatten(1, -2), weights, scale=scale).reshape(shape)

        def pull(g: Tensor) -> list[Tensor]:
            back = products.pullback(g.flatten(1, -2).contiguous(), weights, scale=scale)
            back = back.reshape(*g.shape[:-1], -1)
            return [back if mixing is None else mixing.backward(back.reshape(*back.shape[:3], -1, width))]

        inputs = given.reshape(*given.shape[:2], -1, given.shape[-1])
        return self._used(number, inputs, Node(h, [source], pull), to)

    def read_out(self, end: Field) -> Field:
        """What the readout multiplies."""
        if not self._rounding.copies:
            return end
        value = self._rounding.given(self._numbers.readout, end.value.value)
        return self._field(Node(value, [end.value], lambda g: [g]), end.population)

    def vector(self, name: str, *, of: Hashable | None) -> Field:
        number = self._numbers.names[name]
        value = self._tensors[number][:, None].expand(-1, self._rows, -1)
        return self._used(number, None, Node(value), of)

    def number(self, name: str, *, start: float = 1.0) -> Field:  # noqa: ARG002
        return self.vector(name, of=None)

    def _used(self, number: int, given: Tensor | None, node: Node, population: Hashable | None) -> Field:
        if self._traced:
            self._uses.append((number, given, node))
        node.kept = True
        return self._field(node, population)

    def _next(self) -> int:
        """The place of an array among those that the program gives."""
        self._given += 1
        return self._given - 1

    # ---- fields ------------------------------------------------------------------------------------------------------

    def activate(self, phi: Activation, h: Field) -> Field:
        if not self._traced:
            return self._field(Node(differentiable(phi, h.value.value)), h.population)
        value, slope = phi.both(torch, h.value.value)
        self._extra += slope.numel()
        return self._field(Node(value, [h.value], lambda g: [g * self._of_met(slope)]), h.population)

    def mix(self, h: Field, A: Any) -> Field:
        matrix = self._constants.tensor(self._next(), A)

        def pull(g: Tensor) -> list[Tensor]:
            return [matrix[:, None] * g[..., None, :] if matrix.ndim == 1 else matrix.mT @ g]

        return self._field(Node(matrix @ h.value.value, [h.value], pull), h.population)

    def local(self, formula: Formula, *values: Field) -> Field:
        nodes = [v.value for v in values]
        of, population = on_neurons(formula, torch, values), population_of(values)
        given = _aligned([node.value for node in nodes])
        if not self._traced:
            return self._field(Node(of(*given)), population)
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [(v.clone() if v.is_inference() else v.detach()).requires_grad_() for v in given]
            result = of(*leaves)
        self._extra += IN_FORMULAS * sum(value.numel() for value in leaves)

        def pull(g: Tensor) -> list[Tensor | None]:
            if not result.requires_grad:
                return [None] * len(nodes)
            starts = [self._differentiated(result, leaves, g[:, :, s]) for s in range(g.shape[2])]
            joined = (side_by_side([part[:, :, None] for part in parts], 2) for parts in zip(*starts, strict=True))
            return [_summed(part, node.value) for part, node in zip(joined, nodes, strict=True)]

        return self._field(Node(result.detach(), nodes, pull), population)

    def average(self, a: Field, b: Field) -> Field:
        nodes = [a.value, b.value]
        first, second = _aligned([node.value for node in nodes])
        product = first * second
        width = product.shape[-1]

        def pull(g: Tensor) -> list[Tensor]:
            g = g / width
            parts = (g * self._of_met(second), g * self._of_met(first))
            return [_summed(part, node.value) for part, node in zip(parts, nodes, strict=True)]

        return self._field(Node(product.mean(-1, keepdim=True), nodes, pull), None)

    def overlaps(self, a: Field, b: Field) -> Field:
        nodes, group = [a.value, b.value], population(a.population).components
        first, second = (_in_units(node.value, group) for node in nodes)
        found = torch.einsum("...sun,...tun->...stn", first, second) / first.shape[-2]

        def pull(g: Tensor) -> list[Tensor]:
            pairs = g.reshape(*g.shape[:3], *found.shape[2:]) / first.shape[-2]
            back = (
                torch.einsum("mrestn,mrtun->mresun", pairs, second[:, self._met]),
                torch.einsum("mrestn,mrsun->mretun", pairs, first[:, self._met]),
            )
            return [part.flatten(-2) for part in back]

        return self._field(Node(found.flatten(2, 3), nodes, pull), None)

    def show(self, name: str, formula: Formula, *values: Field) -> None:
        fields = [Field(None, None, v.population) for v in values]  # which do not refer to the tape
        self._notes.append(Note(name, formula, fields, [v.value.value for v in values]))

    def flatten(self, h: Field) -> Field:
        return self.scale(h.value.value.shape[-2] ** -0.5, h)

    def layer(self, h: Field, features: Field) -> Field:
        h.value.kept = True
        self._layers.append((h.value, features.value))
        return features

    def add(self, a: Field, b: Field) -> Field:
        nodes = [a.value, b.value]
        first, second = _aligned([node.value for node in nodes])
        return self._field(
            Node(first + second, nodes, lambda g: [_summed(g, node.value) for node in nodes]), a.population
        )

    def scale(self, factor: Any, h: Field) -> Field:
        return self._field(Node(h.value.value * factor, [h.value], lambda g: [g * factor]), h.population)

    def _field(self, node: Node, population: Hashable) -> Field:
        if self._traced:
            self._nodes.append(node)
        else:
            node.parents, node.pull = (), None
        return Field(self, node, population)

    # ---- backward ----------------------------------------------------------------------------------------------------

    def _of_met(self, value: Tensor) -> Tensor:
        """(member, row, 1, ...): of the rows of the backward pass, for all starts."""
        return value[:, self._met][:, :, None]

    def _differentiated(self, result: Tensor, leaves: Sequence[Tensor], g: Tensor) -> list[Tensor]:
        """Cotangents of the leaves from that of the result, (member, row, ...) of the rows of the backward pass."""
        with torch.inference_mode(False), torch.enable_grad():
            if isinstance(self._met, slice) and g.shape == result.shape:  # all rows
                seed = g
            else:
                seed = torch.zeros_like(result)
                seed[:, self._met] = g
            found = torch.autograd.grad(result, leaves, seed, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, found, strict=True)]
        return [part[:, self._met] for part in parts]


def _in_units(value: Tensor, group: int) -> Tensor:
    """(..., unit, component) of (..., N)."""
    return value.reshape(*value.shape[:-1], -1, group)


def _aligned(values: Sequence[Tensor]) -> list[Tensor]:
    """(member, row, ...) with as many axes, counted from the last."""
    most = max(value.ndim for value in values)
    return [value[(slice(None), slice(None), *[None] * (most - value.ndim))] for value in values]


def _summed(g: Tensor, value: Tensor) -> Tensor:
    """A cotangent (member, row, start, ...) over the axes along which the value (member, row, ...) was repeated."""
    more = g.ndim - 1 - value.ndim
    if more:
        g = g.sum(tuple(range(3, 3 + more)))
    repeated = [i + 1 for i in range(2, value.ndim) if value.shape[i] == 1 != g.shape[i + 1]]
    return g.sum(repeated, keepdim=True) if repeated else g
