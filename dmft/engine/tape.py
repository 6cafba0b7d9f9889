"""The interpreter of programs (`dmft.specs.networks.program`) over populations: forward on record, backward along it.

A cotangent is a gradient per neuron, g_i = gamma0 N_p df / dh_i for a population of N_p, which has a limit: what runs
backward through `activate`, `mix`, `+` and `*` is multiplied by their derivatives, and `apply` sends it through the
same matrix's transpose, which reveals itself further (`dmft.engine.matrix`).  A neuron's share in an average is its
weight omega_i in the measure, so that `local` needs it only where numbers enter or come out:

    average    n = <a b>              g_a = n' b,    n' the cotangent of the number
    overlaps   n_st = <a_s b_t>       g_as = sum_t n'_st b_t, times the components of a unit, each of which has its own
    local      h = fn(a, n)           omega_i g_i through the derivative of fn, divided by omega_i for what is a field

Components of one unit share its weight, so that a formula may use all of them together.

Cotangents have an axis of events after that of rows: outputs, where every one has its own pass, else one for the loss.

Many equal blocks are one compiled loop (`dmft.engine.blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dmft.engine.activations import Function, differentiable
from dmft.engine.blocks import looped
from dmft.engine.population import Population
from dmft.specs.activation import Activation
from dmft.specs.networks.blocks import InTurn, Make
from dmft.specs.networks.population import Field, Formula, on_neurons, on_units, population_of
from dmft.specs.networks.sketch import Part, Sketch


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
        self._shown: list[tuple[str, Callable[[], jax.Array], Population | None]] = []
        self._images: Iterator[jax.Array] | None = None
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
        use.image, use.inputs = (next(self._images), None) if self._images else self.image(use, v.value)

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

    def overlaps(self, a: Field, b: Field) -> Field:
        population = self._population(a.population)
        group = population.group

        def split(v: jax.Array) -> jax.Array:
            return v.reshape(*v.shape[:-1], -1, group)

        def of(a: jax.Array, b: jax.Array) -> jax.Array:
            found = group * jnp.einsum("asun,atun->astn", split(population.weighted(a)), split(b))
            return found.reshape(len(found), -1, group)

        def back(n: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
            pairs = group * n.reshape(*n.shape[:2], a.shape[1], b.shape[1], group)
            found = (
                jnp.einsum("aestn,atun->aesun", pairs, split(b[: len(n)])),
                jnp.einsum("aestn,asun->aetun", pairs, split(a[: len(n)])),
            )
            return tuple(g.reshape(*g.shape[:3], -1) for g in found)

        return self._made((a, b), of(a.value, b.value), None, back, of=of)

    def show(self, name: str, formula: Formula, *values: Field) -> None:
        of, arrays = population_of(values), [v.value for v in values]
        self.show_made(
            name, partial(on_units, formula, jnp, values, arrays), None if of is None else self._population(of)
        )

    def show_made(self, name: str, made: Callable[[], jax.Array], population: Population | None) -> None:
        """What `shown` has."""
        self._shown.append((name, made, population))

    def shown(self, name: str) -> list[tuple[jax.Array, Population | None]]:
        """What the program shows by this name, (row, [position,] unit), and whose units these are; components of
        numbers, which are alike, are of no population."""
        return [(made(), population) for called, made, population in self._shown if called == name]

    def flatten(self, h: Field) -> Field:
        return self.scale(h.value.shape[-2] ** -0.5, h)

    def layer(self, h: Field, features: Field) -> Field:
        self.layers.append((h, features))
        return features

    def add(self, a: Field, b: Field) -> Field:
        return self._made((a, b), a.value + b.value, a.population, lambda g, *_: (g, g), of=jnp.add)

    def scale(self, factor: Any, h: Field) -> Field:
        def of(h: jax.Array) -> jax.Array:
            return factor * h  # type: ignore[no-any-return]

        return self._made((h,), of(h.value), h.population, lambda g, _: (factor * g,), of=of)

    def blocks(self, count: int, block: Make, h: Field) -> Field:
        number = self._blocks + 1
        if (number, count) not in self.sketch.blocks:
            return super().blocks(count, block, h)
        self._blocks += count
        return looped(self, number, count, block, h)

    # ---- as one of equal blocks (`dmft.engine.blocks`) ---------------------------------------------------------------

    def inside(
        self,
        matrices: Mapping[int, Any],
        vectors: Mapping[int, jax.Array],
        populations: Sequence[Population],
        images: Iterator[jax.Array] | None = None,
    ) -> Tape:
        """For a single block, with its own matrices and vectors by their index; with the images of its matrices, if it
        has run before."""
        whole = self.parameters._replace(vectors=_with(self.parameters.vectors, vectors))
        made = Tape(self.sketch, self.shape, whole, _with(self.matrices, matrices), tuple(populations), self.activation)
        made._images = images
        return made

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


def _with(parts: Sequence[Any], others: Mapping[int, Any]) -> tuple[Any, ...]:
    """Others in the place of some."""
    return tuple(others.get(i, part) for i, part in enumerate(parts))
