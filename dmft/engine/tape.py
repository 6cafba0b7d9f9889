"""The interpreter of programs (`dmft.specs.networks.program`) over populations: forward on record, backward along it.

A cotangent is a gradient per neuron, g_i = gamma0 N_p df / dh_i for a population of N_p, which has a limit: what runs
backward through `activate`, `mix`, `+` and `*` is multiplied by their derivatives, and `apply` sends it through the
same matrix's transpose, which reveals itself further (`dmft.engine.matrix`).  A neuron's share in an average is its
weight omega_i in the measure, so that `local` needs it only where numbers enter or come out:

    average    n = <a b>              g_a = n' b,    n' the cotangent of the number
    local      h = fn(a, n)           omega_i g_i through the derivative of fn, divided by omega_i for what is a field

Components of one unit share its weight, so that a formula may use all of them together.

Cotangents have an axis of events after that of rows: outputs, where every one has its own pass, else one for the loss.

Many equal blocks are held together (`Sketch.stacked`), and are one compiled loop, forward and backward: every array of
their weights, uses and layers has an axis of blocks before its others.  Forward, it leaves what each block was given,
and the images of its matrices.  Backward, from the last block to the first, the block runs once more on these, which
needs no matrix (`_Replayed`), and its cotangents along that record, through transposes that reveal themselves further.
Raw normals are spent in the order in which blocks one by one spend them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from dmft.engine.activations import Function, differentiable
from dmft.engine.population import Population
from dmft.specs.activation import Activation
from dmft.specs.networks.blocks import Block, InTurn, Make
from dmft.specs.networks.population import Field, Formula, on_neurons, population_of
from dmft.specs.networks.sketch import Part, Sketch

T = TypeVar("T", bound="Tape")


@dataclass
class Use:
    """One use of weights in a pass.

    kind: "read", "matrix" or "vector", numbers among these; index: among those.
    met: what was multiplied, x (row, [position,] direction) or a field (row, [position,] component).
    weights: of positions, as the program gives them, or None; image: of a matrix, (row, [position,] component).
    inputs: coordinates of `met` at a matrix; outputs: of the cotangent (row, event, [position,] direction).
    gradient: the cotangent of the result (row, event, [position,] component).
    """

    kind: str
    index: int
    part: Part
    met: Any = None
    weights: Any = None
    image: jax.Array | None = None
    inputs: jax.Array | None = None
    outputs: jax.Array | None = None
    gradient: jax.Array | None = None

    @property
    def mix(self) -> jax.Array | None:
        """m (matrix, position of the result, position of what is multiplied)."""
        return None if self.weights is None else jnp.asarray(self.weights, self.met.dtype)


@dataclass
class Node:
    """An operation: what came in and out.

    back: (cotangent of what came out (row, event, ...), values of what came in) -> cotangents of what came in.
    of: values of what came in -> that of what came out, of as many rows; None where weights are used.
    use: that of weights, else None.
    gradient: the cotangent of what came out, in the last backward pass; None where nothing reached it.
    """

    given: tuple[Field, ...]
    made: Field
    back: Callable[..., tuple[jax.Array, ...]] = field(repr=False)
    of: Callable[..., jax.Array] | None = field(default=None, repr=False)
    use: Use | None = None
    gradient: jax.Array | None = None


class Tape(InTurn):
    """One pass over the rows `x`; `matrices` and `populations` are what the pass has made of them.

    layers: h and features of each of `sketch.groups`.
    """

    def __init__(
        self,
        sketch: Sketch,
        shape: tuple[int, ...],
        parameters: Any,
        matrices: tuple[Any, ...],
        populations: tuple[Population, ...],
        activation: Callable[[Activation], tuple[Function, Function]],
    ) -> None:
        self.shape, self.sketch, self.parameters, self.activation = shape, sketch, parameters, activation
        self.matrices, self.populations = list(matrices), list(populations)
        self.layers: list[tuple[Field, Field]] = []
        self.uses: list[Use] = []
        self.nodes: list[Node] = []
        self.gradients: dict[int, jax.Array] = {}  # by identity of the field

    # ---- what a program asks for -------------------------------------------------------------------------------------

    def read(self, name: str, x: jax.Array, *, to: Hashable) -> Field:
        use = self._use("read", name, self.sketch.reads, met=x)

        def back(g: jax.Array) -> tuple[jax.Array, ...]:
            use.gradient = g
            return ()

        return self._made((), x @ self.parameters.reads[use.index], to, back, use=use)

    def apply(self, name: str, v: Field, *, to: Hashable, mix: Any = None) -> Field:
        use = self._use("matrix", name, self.sketch.matrices, met=v.value)
        use.weights = mix
        use.image, use.inputs = self._shown(use)

        def back(g: jax.Array, _: jax.Array) -> tuple[jax.Array, ...]:
            use.gradient = g
            z, use.outputs = self.image(use, g, transposed=True)
            return (z,)

        return self._made((v,), use.image, to, back, use=use)

    def image(self, use: Use, v: jax.Array, *, transposed: bool = False) -> tuple[jax.Array, jax.Array]:
        """What the matrix of `use`, or its transpose, makes of v (row, [event,] [position,] component), and the
        coordinates of v."""
        i, blocks = use.index, () if use.mix is None else (use.mix,)
        matrix, (source, target) = self.matrices[i], self.sketch.ends[i][:: -1 if transposed else 1]
        lead = v.ndim - 1 - len(blocks)
        self.matrices[i], self.populations[target], *found = (matrix.apply_t if transposed else matrix.apply)(
            v.reshape(-1, *v.shape[lead:]), self.populations[source], self.populations[target], *blocks
        )
        image, coordinates = (a.reshape(*v.shape[:lead], *a.shape[1:]) for a in found)
        return image, coordinates

    def _shown(self, use: Use) -> tuple[jax.Array, jax.Array | None]:
        """What `image` makes of what has been met."""
        return self.image(use, use.met)

    def vector(self, name: str, *, of: Hashable | None) -> Field:
        use = self._use("vector", name, self.sketch.vectors)

        def back(g: jax.Array) -> tuple[jax.Array, ...]:
            use.gradient = g
            return ()

        return self._made((), self.parameters.vectors[use.index], of, back, use=use)

    def number(self, name: str, *, start: float = 1.0) -> Field:  # noqa: ARG002
        return self.vector(name, of=None)

    def activate(self, phi: Activation, h: Field) -> Field:
        value, slope = self.activation(phi)

        def back(g: jax.Array, h: jax.Array) -> tuple[jax.Array, ...]:
            return (slope(h[: len(g)])[:, None] * g,)

        return self._made((h,), value(h.value), h.population, back, of=differentiable(value, slope))

    def mix(self, h: Field, A: Any) -> Field:
        weights = jnp.asarray(A, h.value.dtype)

        def of(h: jax.Array) -> jax.Array:
            return weights @ h

        def back(g: jax.Array, _: jax.Array) -> tuple[jax.Array, ...]:
            if weights.ndim == 1:
                return (weights[:, None] * g[..., None, :],)
            return (weights.T @ g,)

        return self._made((h,), of(h.value), h.population, back, of=of)

    def local(self, formula: Formula, *values: Field) -> Field:
        of, population = on_neurons(formula, jnp, values), population_of(values)
        weighted = population is not None and any(v.population is None for v in values)
        omega = self._population(population).weights if weighted else 1.0
        axes = max(v.value.ndim for v in values)

        def back(g: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
            given = [self._of_rows(v, len(g), axes) for v in arrays]
            pulled = jax.vmap(jax.vjp(of, *given)[1], in_axes=1, out_axes=1)(omega * g)
            return tuple(d / omega if v.population is not None else d for v, d in zip(values, pulled, strict=True))

        return self._made(values, of(*(v.value for v in values)), population, back, of=of)

    def average(self, a: Field, b: Field) -> Field:
        population = self._population(a.population)

        def of(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.sum(population.weighted(a) * b, axis=-1, keepdims=True)

        def back(n: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(n * self._of_rows(other, len(n), other.ndim)[:, None] for other in (b, a))

        return self._made((a, b), of(a.value, b.value), None, back, of=of)

    def layer(self, h: Field, features: Field) -> Field:
        self.layers.append((h, features))
        return features

    def add(self, a: Field, b: Field) -> Field:
        return self._made((a, b), a.value + b.value, a.population, lambda g, *_: (g, g), of=jnp.add)

    def scale(self, factor: Any, h: Field) -> Field:
        def of(h: jax.Array) -> jax.Array:
            return factor * h  # type: ignore[no-any-return]

        return self._made((h,), of(h.value), h.population, lambda g, _: (factor * g,), of=of)

    # ---- equal blocks ------------------------------------------------------------------------------------------------

    def blocks(self, count: int, block: Make, h: Field) -> Field:
        number = self._blocks + 1
        if (number, count) not in self.sketch.blocks:
            return super().blocks(count, block, h)
        self._blocks += count
        held = self._held(number)
        met: list[Tape] = []  # the loop's body, when it was traced last

        def forward(state: _State, i: jax.Array) -> tuple[_State, _Kept]:
            inner, one = self._inside(Tape, state, held, i)
            end = block(Block(inner, number), Field(inner, state.value, h.population))
            met.append(inner)
            kept = _Kept(
                state.value,
                [use.image for use in inner.uses],
                [(use.met, use.inputs) for use in inner.uses],
                [(each.value, features.value) for each, features in inner.layers],
            )
            return inner._left(state, end.value, one, held, i), kept

        state, kept = lax.scan(forward, self._state(h.value, held), jnp.arange(count))
        self._take(state, held)
        uses = [replace(use, met=v, inputs=x) for use, (v, x) in zip(met[-1].uses, kept.met, strict=True)]
        layers = [
            (Field(self, a, each.population), Field(self, b, each.population))
            for (each, _), (a, b) in zip(met[-1].layers, kept.layers, strict=True)
        ]
        self.uses += uses
        self.layers += layers

        def backward(state: _State, step: tuple[jax.Array, _Kept]) -> tuple[_State, tuple[Any, Any]]:
            i, kept = step
            inner, one = self._inside(_Replayed, state, held, i)
            inner.images = iter(kept.images)
            start = Field(inner, kept.given, h.population)
            found = inner.backward(block(Block(inner, number), start), state.value)
            parts = [(use.gradient, use.outputs) for use in inner.uses]
            return inner._left(state, inner.gradients[id(start)], one, held, i), (parts, found)

        def back(g: jax.Array, _: jax.Array) -> tuple[jax.Array, ...]:
            rows = jax.tree.map(lambda a: a[:, : len(g)], kept._replace(met=[], layers=[]))
            state, (parts, found) = lax.scan(backward, self._state(g, held), (jnp.arange(count), rows), reverse=True)
            self._take(state, held)
            for use, part in zip(uses, parts, strict=True):
                use.gradient, use.outputs = part
            for (each, _), gradient in zip(layers, found, strict=True):
                self.gradients[id(each)] = gradient
            return (state.value,)

        return self._made((h,), state.value, h.population, back)

    def _held(self, number: int) -> _Held:
        """The weights of the blocks from this number on."""
        parts = self.sketch.matrices, self.sketch.vectors
        return _Held(*([i for i, p in enumerate(kind) if p.layers and p.place[0] == number] for kind in parts))

    def _state(self, value: jax.Array, held: _Held) -> _State:
        return _State(value, [p.used for p in self.populations], [self.matrices[i] for i in held.matrices])

    def _take(self, state: _State, held: _Held) -> None:
        self.populations = _with_used(self.populations, state.used)
        for i, matrix in zip(held.matrices, state.matrices, strict=True):
            self.matrices[i] = matrix

    def _inside(self, kind: type[T], state: _State, held: _Held, i: jax.Array) -> tuple[T, list[Any]]:
        """The interpreter of block `i`, and the matrices that it begins with."""

        def of_block(whole: Any) -> Any:
            return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), whole)

        one, matrices, vectors = of_block(state.matrices), list(self.matrices), list(self.parameters.vectors)
        for j, matrix in zip(held.matrices, one, strict=True):
            matrices[j] = matrix
        for j in held.vectors:
            vectors[j] = of_block(vectors[j])
        parameters = self.parameters._replace(vectors=tuple(vectors))
        populations = tuple(_with_used(self.populations, state.used))
        return kind(self.sketch, self.shape, parameters, tuple(matrices), populations, self.activation), one

    def _left(self, state: _State, value: jax.Array, begun: list[Any], held: _Held, i: jax.Array) -> _State:
        """The state of all blocks after this one, which is block `i`."""

        def put(whole: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
            return whole if new is old else lax.dynamic_update_index_in_dim(whole, new, i, 0)

        matrices = jax.tree.map(put, state.matrices, begun, [self.matrices[j] for j in held.matrices])
        return _State(value, [p.used for p in self.populations], matrices)

    # ---- the record --------------------------------------------------------------------------------------------------

    def backward(self, end: Field, start: jax.Array) -> list[jax.Array]:
        """g of `layers`, from the cotangent `start` (row, event, component) of `end`; of the first rows, as many as
        `start` has.  Uses of weights get theirs."""
        found = {id(end): start}
        named = {id(h) for h, _ in self.layers}
        for node in reversed(self.nodes):
            g = node.gradient = found.pop(id(node.made), None)
            if g is None:
                continue
            if id(node.made) in named:
                self.gradients[id(node.made)] = g
            for given, pulled in zip(node.given, node.back(g, *(v.value for v in node.given)), strict=True):
                before = found.get(id(given))
                found[id(given)] = pulled if before is None else before + pulled
        self.gradients |= found  # of what no operation has made
        return [self.gradients[id(h)] for h, _ in self.layers]

    def _made(
        self,
        given: tuple[Field, ...],
        value: jax.Array,
        population: Hashable,
        back: Callable[..., tuple[jax.Array, ...]],
        *,
        of: Callable[..., jax.Array] | None = None,
        use: Use | None = None,
    ) -> Field:
        made = Field(self, value, population)
        self.nodes.append(Node(given, made, back, of, use))
        return made

    def _use(self, kind: str, name: str, parts: tuple[Part, ...], met: Any = None) -> Use:
        index = next(i for i, part in enumerate(parts) if part.name == name)
        use = Use(kind, index, parts[index], met)
        self.uses.append(use)
        return use

    def _population(self, name: Hashable) -> Population:
        return self.populations[self.sketch.place(name)]

    @staticmethod
    def _of_rows(v: jax.Array, rows: int, axes: int) -> jax.Array:
        """Its first rows; a vector, which has none, for each of them, with so many axes in all."""
        if v.ndim > 1:
            return v[:rows]
        return jnp.broadcast_to(v, (rows, *[1] * (axes - 2), len(v)))


class _Replayed(Tape):
    """Matrices whose images are given: those of the uses of weights, in their order."""

    images: Iterator[jax.Array | None]

    def _shown(self, use: Use) -> tuple[jax.Array, jax.Array | None]:
        del use
        image = next(each for each in self.images if each is not None)
        return image, None


class _Held(NamedTuple):
    """Indices of the weights of equal blocks."""

    matrices: list[int]
    vectors: list[int]


class _State(NamedTuple):
    """What the loop over equal blocks carries: a field, or its cotangent; normals spent; the matrices of all blocks."""

    value: jax.Array
    used: list[jax.Array]
    matrices: list[Any]


class _Kept(NamedTuple):
    """Of a block: what it was given; of each use the image, what was met and its coordinates; of each layer h and
    features."""

    given: jax.Array
    images: list[jax.Array | None]
    met: list[tuple[Any, jax.Array | None]]
    layers: list[tuple[jax.Array, jax.Array]]


def _with_used(populations: Sequence[Population], used: list[jax.Array]) -> list[Population]:
    return [replace(p, used=n) for p, n in zip(populations, used, strict=True)]
