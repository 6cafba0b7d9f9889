"""Products with rows of which only the first are there, as of the directions that a matrix has met: with a part of the
array that holds these, so that room which nothing has filled costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# in 32nds of an array, the parts with which products are compiled
PARTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 24, 32)
# on a GPU, sums over components are made in pieces of at least so many, and products of few vectors and rows, which
# alone have too few blocks to fill the device, as so many numbers in all pieces
PIECE, NUMBERS = 2**12, 2**21
BLOCKS = 4  # in which rows are placed


@dataclass(frozen=True)
class Rows:
    """array: (row, component), zero beyond `count` rows; no count: products are with the whole."""

    array: jax.Array
    count: jax.Array | None = None

    def across(self, v: jax.Array) -> jax.Array:
        """v A^T, (vector, row), for v (vector, component)."""
        if self.count is None:
            return _products(v, self.array)
        room = len(self.array)
        return self._of_part(lambda rows: jnp.pad(_products(v, rows), [(0, 0), (0, room - len(rows))]))

    def mixed(
        self,
        x: jax.Array,
        onto: jax.Array | None = None,
        *,
        beside: tuple[jax.Array, Rows] | None = None,
        room: int | None = None,  # noqa: ARG002
    ) -> jax.Array:
        """x A, (vector, component), for x (vector, row); added to what it comes `onto`, and to y B of what is
        `beside`.  Kernels may put it in an array with `room` for so many vectors."""
        if beside is not None:
            onto = beside[1].mixed(beside[0], onto)

        def formula(rows: jax.Array) -> jax.Array:
            made = x[:, : len(rows)] @ rows
            return made if onto is None else onto + made

        return self._of_part(formula)

    def of_part(self, formula: Callable[[Rows], jax.Array]) -> jax.Array:
        """What `formula` makes of the first rows, those that are there among them."""
        return self._of_part(lambda rows: formula(Rows(rows)))

    def _of_part(self, formula: Callable[[jax.Array], jax.Array]) -> jax.Array:
        if self.count is None:
            return formula(self.array)
        room = len(self.array)
        sizes = sorted({-(-room * part // PARTS[-1]) for part in PARTS})
        place = jnp.sum(self.count > jnp.asarray(sizes[:-1]))
        made: jax.Array = lax.switch(place, [partial(self._first, formula, n) for n in sizes])
        return made

    def _first(self, formula: Callable[[jax.Array], jax.Array], n: int) -> jax.Array:
        return formula(self.array[:n])


def placed(array: jax.Array, new: jax.Array, start: jax.Array, count: jax.Array | None = None) -> jax.Array:
    """The array with `new` rows from row `start` on: all of them, or blocks that hold the first `count`."""
    if count is None:
        return lax.dynamic_update_slice_in_dim(array, new, start, axis=0)
    size = -(-len(new) // BLOCKS)

    def block(i: jax.Array, array: jax.Array) -> jax.Array:
        first = jnp.minimum(i * size, len(new) - size)
        rows = lax.dynamic_slice_in_dim(new, first, size)
        return lax.dynamic_update_slice_in_dim(array, rows, start + first, axis=0)

    found: jax.Array = lax.fori_loop(0, (count + size - 1) // size, block, array)
    return found


def _products(v: jax.Array, rows: jax.Array) -> jax.Array:
    """v A^T."""
    most = min(v.shape[1] // PIECE, NUMBERS // max(len(v) * len(rows), 1))
    pieces = 2 ** (max(most, 1).bit_length() - 1)
    if pieces == 1 or v.shape[1] % pieces:
        return v @ rows.T
    made: jax.Array = lax.platform_dependent(
        v, rows, cuda=partial(_in_pieces, count=pieces), default=lambda v, rows: v @ rows.T
    )
    return made


def _in_pieces(v: jax.Array, rows: jax.Array, count: int) -> jax.Array:
    """v A^T, as a sum over so many pieces of the components."""
    v, rows = (a.reshape(len(a), count, -1) for a in (v, rows))
    return jnp.einsum("vpi,rpi->pvr", v, rows).sum(axis=0)
