"""Sources of raw iid N(0,1) variables, (draw, component), handed out by rows.

    Stored    an array
    Sobol     dimension d of one scrambled Sobol sequence is row d; made anew whenever it is asked for
    Tailed    an array, and pseudo-random rows beyond its end

Point n of dimension d is the XOR of a shift and of those direction numbers v_{d,b} whose bit b is set in the Gray code
n ^ (n >> 1); the normal quantile of its middle is the variable.  Rows beyond SciPy's last dimension are pseudo-random.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from operator import xor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtri

from dmft.engine.scrambles import BITS, DIMENSIONS, Scrambled, key_words, scrambled
from dmft.running.executables import kept


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stored:
    """The variables themselves, (draw, component).  key: of rows beyond them, or None."""

    values: jax.Array
    key: jax.Array | None = None

    @property
    def size(self) -> int:
        """Components of a row."""
        return self.values.shape[1]

    def rows(self, start: jax.Array, count: int) -> jax.Array:
        """(count, component): the rows from `start` on."""
        return lax.dynamic_slice_in_dim(self.values, start, count, axis=0)

    def with_tail(self, index: jax.Array | None = None) -> Tailed:
        """With rows beyond the last; `index`: of the point that each component is, there, by default its own."""
        assert self.key is not None
        return Tailed(self.values, self.key, jnp.arange(self.size) if index is None else index)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tailed:
    """values: (draw, component); key: of the rows beyond them; index: (component,), of what they take of these."""

    values: jax.Array
    key: jax.Array
    index: jax.Array

    @property
    def size(self) -> int:
        """Components of a row."""
        return self.values.shape[1]

    def rows(self, start: jax.Array, count: int) -> jax.Array:
        """(count, component): the rows from `start` on; pseudo-random if any of them is beyond the end."""
        at = start + jnp.arange(count)
        if count > len(self.values):
            return self._beyond(at)
        made: jax.Array = lax.cond(
            start + count > len(self.values),
            lambda: self._beyond(at),
            lambda: lax.dynamic_slice_in_dim(self.values, start, count, axis=0),
        )
        return made

    def _beyond(self, rows: jax.Array) -> jax.Array:
        return _pseudo_random(self.key, rows, self.size)[:, self.index]


def _pseudo_random(key: jax.Array, rows: jax.Array, size: int) -> jax.Array:
    """(row, component): of each row the same, whatever the others."""
    return jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), (size,), dtype=float))(rows)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sobol:
    """directions: (draw, bit), v; shift: (draw,); index: (component,), n; all uint32.  key: of the rows beyond them;
    tailed: whether these are asked for."""

    directions: jax.Array
    shift: jax.Array
    index: jax.Array
    key: jax.Array
    tailed: bool = field(default=False, metadata={"static": True})

    @property
    def size(self) -> int:
        """Components of a row."""
        return len(self.index)

    def with_tail(self) -> Sobol:
        """With rows beyond the last."""
        return replace(self, tailed=True)

    def doubled(self) -> Sobol:
        """With the first half of the points in place of the second, too."""
        return replace(self, index=self.index % (self.size // 2))

    def rows(self, start: jax.Array | int, count: int) -> jax.Array:
        """(count, component): the rows from `start` on."""
        if not self.tailed:
            return self._from_table(start, jnp.arange(count))
        made: jax.Array = lax.cond(
            start + count > len(self.shift), self._with_tail, self._from_table, start, jnp.arange(count)
        )
        return made

    def _from_table(self, start: jax.Array | int, rows: jax.Array) -> jax.Array:
        count = len(rows)
        v = lax.dynamic_slice_in_dim(self.directions, start, min(count, len(self.shift)), axis=0)
        shift = lax.dynamic_slice_in_dim(self.shift, start, min(count, len(self.shift)))
        gray = self.index ^ (self.index >> 1)
        terms = (jnp.where((gray >> b) & 1, v[:, b, None], jnp.uint32(0)) for b in range(v.shape[1]))
        points = reduce(xor, terms, shift[:, None])
        normals = _quantile(points)
        return jnp.pad(normals, [(0, count - len(normals)), (0, 0)])

    def _with_tail(self, start: jax.Array, rows: jax.Array) -> jax.Array:
        last = len(self.shift) - min(len(rows), len(self.shift))
        beginning = jnp.roll(self._from_table(jnp.minimum(start, last), rows), last - start, axis=0)
        at = start + rows
        tail = _pseudo_random(self.key, at, self.size)[:, self.index]
        return jnp.where((at < len(self.shift))[:, None], beginning, tail)


def _quantile(points: jax.Array) -> jax.Array:
    """Of (n + 1/2) 2^-BITS for integers n; from the nearer end, where floating-point numbers are dense."""
    upper = points >> (BITS - 1)
    distance = jnp.where(upper, (2**BITS - 1) - points, points)
    return jnp.where(upper, -1.0, 1.0) * ndtri((distance.astype(float) + 0.5) * 0.5**BITS)


@kept()
def stored(source: Sobol) -> jax.Array:
    """All rows of the source."""
    return source._from_table(0, jnp.arange(len(source.shift)))  # `rows`, without the code for rows beyond the last


def sobol(draws: int, size: int, seed: np.random.SeedSequence, room: int = 0) -> Sobol:
    """`draws` rows of one scrambled Sobol sequence of `size` points (a power of two); in arrays with `room` for more,
    which are not to be asked for."""
    # on the device without a compilation
    scramble, index = jax.device_put((scrambled(draws, size, seed, room), np.arange(size, dtype=np.uint32)))
    return _of(scramble, index, draws)


def sobol_of(scramble: Scrambled, draws: int, size: int) -> Sobol:
    """As `sobol`, of what is drawn; to be compiled."""
    return _of(scramble, jnp.arange(size, dtype=jnp.uint32), draws)


def blank(draws: int, size: int) -> Sobol:
    """Zeros in the shapes of `sobol`, at no cost where `jax.eval_shape` asks."""
    dimensions = min(draws, DIMENSIONS)
    table, shift = jnp.zeros((dimensions, size.bit_length() - 1), jnp.uint32), jnp.zeros(dimensions, jnp.uint32)
    return sobol_of((table, shift, key_words(0)), draws, size)


def _of(scramble: Scrambled, index: jax.Array, draws: int) -> Sobol:
    table, shift, key = scramble
    return Sobol(table, shift, index, _wrapped(key), tailed=draws > DIMENSIONS)


def random_key(seed: int) -> jax.Array:
    """That of `jax.random.key`, whatever generator and offset of seeds a host program has given JAX."""
    return _wrapped(jax.device_put(key_words(seed)))


def _wrapped(words: Any) -> jax.Array:
    key: jax.Array = jax.random.wrap_key_data(words, impl="threefry2x32")
    return key
