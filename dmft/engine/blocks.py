"""Many equal blocks of a program as one compiled loop over them, forward and backward.

Their weights are held together (`Sketch.stacked`): every array of these, of their uses and of their layers has an axis
of blocks before its others.  Forward, the loop leaves what each block was given, and the images of its matrices.
Backward, from the last block to the first, the block runs once more on these, which needs no matrix, and its cotangents
along that record, through transposes that reveal themselves further.  Raw normals are spent in the order in which
blocks one by one spend them, so that results are the same but for rounding.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dmft.specs.networks.blocks import Block, Make
from dmft.specs.networks.population import Field

if TYPE_CHECKING:
    from dmft.engine.tape import Tape


class _State(NamedTuple):
    """What the loop carries: a field or its cotangent; raw normals spent; the matrices of all blocks by index."""

    value: jax.Array
    used: list[jax.Array]
    matrices: dict[int, Any]


class _Kept(NamedTuple):
    """Of a block: what it was given; images of matrices; what was met of all uses, and its coordinates; h and features
    of layers; what was shown."""

    given: jax.Array
    images: list[jax.Array]
    met: list[tuple[Any, jax.Array | None]]
    layers: list[tuple[jax.Array, jax.Array]]
    shown: list[jax.Array]


def looped(tape: Tape, number: int, count: int, block: Make, h: Field) -> Field:
    """What so many blocks make of h, the first of them with this number."""
    stack = _Stack(tape, number)
    met: list[Tape] = []  # as the last trace of the loop has left it

    def forward(state: _State, i: jax.Array) -> tuple[_State, _Kept]:
        inner, begun = stack.inside(state, i)
        end = block(Block(inner, number), Field(inner, state.value, h.population))
        met.append(inner)
        kept = _Kept(
            state.value,
            [use.image for use in inner.uses if use.image is not None],
            [(use.met, use.inputs) for use in inner.uses],
            [(each.value, features.value) for each, features in inner.layers],
            [made() for _, made, _ in inner._shown],
        )
        return stack.left(inner, state, begun, i, end.value), kept

    state, kept = lax.scan(forward, stack.state(h.value), jnp.arange(count))
    stack.take(state)
    last = met[-1]
    uses = [replace(use, met=v, inputs=x) for use, (v, x) in zip(last.uses, kept.met, strict=True)]
    layers = [
        (Field(tape, a, each.population), Field(tape, b, each.population))
        for (each, _), (a, b) in zip(last.layers, kept.layers, strict=True)
    ]
    tape.uses += uses
    tape.layers += layers
    for i in range(count if last._shown else 0):
        for (name, _, population), arrays in zip(last._shown, kept.shown, strict=True):
            tape.show_made(name, partial(lax.index_in_dim, arrays, i, keepdims=False), population)

    def backward(state: _State, step: tuple[jax.Array, _Kept]) -> tuple[_State, tuple[Any, Any]]:
        i, kept = step
        inner, begun = stack.inside(state, i, iter(kept.images))
        start = Field(inner, kept.given, h.population)
        found = inner.backward(block(Block(inner, number), start), state.value)
        parts = [(use.gradient, use.outputs) for use in inner.uses]
        return stack.left(inner, state, begun, i, inner.gradients[id(start)]), (parts, found)

    def back(g: jax.Array, given: jax.Array) -> tuple[jax.Array, ...]:
        del given  # which `kept` has
        rows = jax.tree.map(lambda a: a[:, : len(g)], kept._replace(met=[], layers=[], shown=[]))
        state, (parts, found) = lax.scan(backward, stack.state(g), (jnp.arange(count), rows), reverse=True)
        stack.take(state)
        for use, (gradient, outputs) in zip(uses, parts, strict=True):
            use.gradient, use.outputs = gradient, outputs
        for (layer, _), each in zip(layers, found, strict=True):
            tape.gradients[id(layer)] = each
        return (state.value,)

    return tape._made((h,), state.value, h.population, back)


class _Stack:
    """The weights of the blocks from a number on, on the tape of the whole program."""

    def __init__(self, tape: Tape, number: int) -> None:
        self._tape = tape
        self._matrices, self._vectors = (
            [i for i, p in enumerate(parts) if p.layers and p.place is not None and p.place[0] == number]
            for parts in (tape.sketch.matrices, tape.sketch.vectors)
        )

    def state(self, value: jax.Array) -> _State:
        """That the loop begins with."""
        tape = self._tape
        return _State(value, [p.used for p in tape.populations], {i: tape.matrices[i] for i in self._matrices})

    def take(self, state: _State) -> None:
        """What the loop has left."""
        tape = self._tape
        tape.populations = [replace(p, used=n) for p, n in zip(tape.populations, state.used, strict=True)]
        for i, matrix in state.matrices.items():
            tape.matrices[i] = matrix

    def inside(self, state: _State, i: jax.Array, images: Any = None) -> tuple[Tape, dict[int, Any]]:
        """The tape of block `i`, and the matrices that it begins with."""

        def of_block(whole: Any) -> Any:
            return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), whole)

        tape, begun = self._tape, of_block(state.matrices)
        vectors = {j: of_block(tape.parameters.vectors[j]) for j in self._vectors}
        populations = [replace(p, used=n) for p, n in zip(tape.populations, state.used, strict=True)]
        return tape.inside(begun, vectors, populations, images), begun

    def left(self, inner: Tape, state: _State, begun: dict[int, Any], i: jax.Array, value: jax.Array) -> _State:
        """The state after block `i`, which has made `value`; arrays that it has left as they are stay untouched."""

        def put(whole: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
            return whole if new is old else lax.dynamic_update_index_in_dim(whole, new, i, 0)

        after = {j: inner.matrices[j] for j in self._matrices}
        return _State(value, [p.used for p in inner.populations], jax.tree.map(put, state.matrices, begun, after))
