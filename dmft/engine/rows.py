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
PIECES = 16  # of a sum over components, on a GPU: of few rows it has too few blocks of its own to fill the device


@dataclass(frozen=True)
class Rows:
    """array: (row, component), zero beyond `count` rows; no count: products are with the whole."""

    array: jax.Array
    count: jax.Array | None = None

    def across(self, v: jax.Array) -> jax.Array:
        """v A^T, (vector, row), for v (vector, component)."""
        if self.count is None:
            return v @ self.array.T
        room = len(self.array)

        def formula(rows: jax.Array) -> jax.Array:
            made = lax.platform_dependent(v, rows, cuda=_in_pieces, default=lambda v, rows: v @ rows.T)
            return jnp.pad(made, [(0, 0), (0, room - len(rows))])

        return self.of_part(formula)

    def mixed(self, x: jax.Array, onto: jax.Array | None = None) -> jax.Array:
        """x A, (vector, component), for x (vector, row); added to what it comes `onto`."""

        def formula(rows: jax.Array) -> jax.Array:
            made = x[:, : len(rows)] @ rows
            return made if onto is None else onto + made

        return self.of_part(formula)

    def of_part(self, formula: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """What `formula` makes of the first rows, those that are there among them."""
        if self.count is None:
            return formula(self.array)
        room = len(self.array)
        sizes = sorted({-(-room * part // PARTS[-1]) for part in PARTS})
        place = jnp.sum(self.count > jnp.asarray(sizes[:-1]))
        made: jax.Array = lax.switch(place, [partial(self._first, formula, n) for n in sizes])
        return made

    def _first(self, formula: Callable[[jax.Array], jax.Array], n: int) -> jax.Array:
        return formula(self.array[:n])


def _in_pieces(v: jax.Array, rows: jax.Array) -> jax.Array:
    """v A^T, as a sum over pieces of the components."""
    size = v.shape[1]
    count = PIECES if size % PIECES == 0 else 1
    each = jnp.einsum("vpi,rpi->pvr", v.reshape(-1, count, size // count), rows.reshape(-1, count, size // count))
    return each.sum(axis=0)
