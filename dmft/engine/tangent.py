"""Tangents of a pass on record (`dmft.engine.tape`): how its fields h and their cotangents g move with the weights.

    forward    read, vector    dh = [dW x], [db]          apply    dh = W dv / sqrt(N) + [dW v / sqrt(N)]
               of any other    dh = sum_i (d of / d a_i) da_i                              of its values a_i
    backward   apply           dz = W^T dg / sqrt(N) + [dW^T g / sqrt(N)]
               of any other    d back(g, a) = (d back / dg) dg + sum_i (d back / d a_i) da_i

where `back` has the cotangents of what came in: its derivatives in a_i hold phi'', and those of averages and formulas.
What is in brackets is given.  W moves none of these by itself, and meets da and dg as it meets other vectors: it
reveals itself further (`dmft.engine.matrix`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from dmft.engine.tape import Node, Tape, Use
from dmft.specs.networks.population import Field

Linear = Callable[..., jax.Array]


class Linearised(NamedTuple):
    """A node, and its derivatives where it has no weights."""

    node: Node
    forward: Linear | None
    backward: Callable[..., tuple[jax.Array, ...]] | None


class Tangents:
    """Of the first rows of a pass, as many as its last backward pass had, which has one event."""

    def __init__(self, tape: Tape, end: Field) -> None:
        self._tape, self._end = tape, end
        # what the end does not depend on has no cotangent
        self._nodes = [_linearised(node) for node in tape.nodes if node.gradient is not None]

    @property
    def uses(self) -> list[Use]:
        """Of weights, in the order of the program."""
        return [each.node.use for each in self._nodes if each.node.use is not None]

    def forward(self, moved: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        """dh of the end (row, component), and dv of what every matrix was given (row, [position,] component).  `moved`:
        what is in brackets, of every use."""
        found: dict[int, jax.Array] = {}
        met: list[jax.Array] = []
        parts = iter(moved)
        for each in self._nodes:
            node, given = each.node, [found[id(v)] for v in each.node.given]
            if each.forward is not None:
                tangent = each.forward(*given)
            else:
                assert node.use is not None
                tangent = next(parts)
                for v in given:
                    met.append(v)
                    tangent = tangent + self._tape.image(node.use, v)[0]
            found[id(node.made)] = tangent
        self._found = found
        return found[id(self._end)], met

    def backward(self, start: jax.Array, moved: list[jax.Array]) -> list[jax.Array]:
        """dg of what every use made (row, [position,] component), after `forward`; from dg of the end (row, component).
        `moved`: what is in brackets, of every use of a matrix."""
        found = {id(self._end): start[:, None]}
        made: list[jax.Array] = []
        parts = iter(reversed(moved))
        for each in reversed(self._nodes):
            node, g = each.node, found.pop(id(each.node.made))
            pulled: tuple[jax.Array, ...] = ()
            if each.backward is not None:
                pulled = each.backward(g, *(self._found[id(v)] for v in node.given))
            else:
                assert node.use is not None
                made.append(g[:, 0])
                if node.given:
                    pulled = (next(parts)[:, None] + self._tape.image(node.use, g, transposed=True)[0],)
            for given, tangent in zip(node.given, pulled, strict=True):
                before = found.get(id(given))
                found[id(given)] = tangent if before is None else before + tangent
        return made[::-1]


def _linearised(node: Node) -> Linearised:
    if node.of is None:
        return Linearised(node, None, None)
    assert node.gradient is not None
    rows = len(node.gradient)
    values = [v.value[:rows] if v.value.ndim > 1 else v.value for v in node.given]
    return Linearised(
        node,
        jax.linearize(node.of, *values)[1],
        jax.linearize(node.back, node.gradient, *values)[1],
    )
