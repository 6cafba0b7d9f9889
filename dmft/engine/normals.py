"""Sources of raw iid N(0,1) variables, (draw, component), handed out by rows.

    Stored    an array
    Sobol     dimension d of one scrambled Sobol sequence is row d; made anew whenever it is asked for
    Tailed    an array, and pseudo-random rows beyond its end

Point n of dimension d is the XOR of a shift and of those direction numbers v_{d,b} whose bit b is set in the Gray code
n ^ (n >> 1); the normal quantile of its middle is the variable.  Rows beyond SciPy's last dimension are pseudo-random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, reduce
from importlib.resources import files
from operator import xor

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtri
from numpy.typing import NDArray

from dmft.running.executables import kept

BITS = 30
DIMENSIONS = 21_201  # of the table of Joe and Kuo


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

    def with_tail(self) -> Tailed:
        """With rows beyond the last."""
        assert self.key is not None
        return Tailed(self.values, self.key)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tailed:
    """values: (draw, component); key: of the rows beyond them."""

    values: jax.Array
    key: jax.Array

    @property
    def size(self) -> int:
        """Components of a row."""
        return self.values.shape[1]

    def rows(self, start: jax.Array, count: int) -> jax.Array:
        """(count, component): the rows from `start` on; pseudo-random if any of them is beyond the end."""
        at = start + jnp.arange(count)
        if count > len(self.values):
            return _pseudo_random(self.key, at, self.size)
        made: jax.Array = lax.cond(
            start + count > len(self.values),
            lambda: _pseudo_random(self.key, at, self.size),
            lambda: lax.dynamic_slice_in_dim(self.values, start, count, axis=0),
        )
        return made


def _pseudo_random(key: jax.Array, rows: jax.Array, size: int) -> jax.Array:
    """(row, component): of each row the same, whatever the others."""
    return jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), (size,), dtype=float))(rows)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sobol:
    """directions: (draw, bit), v; shift: (draw,); index: (component,), n; all uint32.  key: of the rows beyond them."""

    directions: jax.Array
    shift: jax.Array
    index: jax.Array
    key: jax.Array

    @property
    def size(self) -> int:
        """Components of a row."""
        return len(self.index)

    def with_tail(self) -> Sobol:
        """With rows beyond the last: this has them."""
        return self

    def doubled(self) -> Sobol:
        """With the first half of the points in place of the second, too."""
        return replace(self, index=self.index % (self.size // 2))

    def rows(self, start: jax.Array | int, count: int) -> jax.Array:
        """(count, component): the rows from `start` on."""
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


def sobol(draws: int, size: int, seed: np.random.SeedSequence) -> Sobol:
    """`draws` rows of one scrambled Sobol sequence of `size` points (a power of two): the points of
    `scipy.stats.qmc.Sobol`, scrambled by a triangle of bits and a shift (Matousek 1998), for the same generator."""
    rng = np.random.default_rng(seed)
    own = rng.spawn(1)[0]
    dimensions, columns = min(draws, DIMENSIONS), size.bit_length() - 1
    each = own.integers(2, size=(dimensions, BITS), dtype=np.uint32)
    shift = each @ (2 ** np.arange(BITS, dtype=np.uint32))
    triangle = np.tril(own.integers(2, size=(dimensions, BITS, BITS), dtype=np.uint32), -1) | np.eye(
        BITS, dtype=np.uint32
    )
    # the highest bit first; a product with bits is the parity of those that a row has in common
    high = 2 ** np.arange(BITS, dtype=np.uint32)[::-1]
    parity = np.bitwise_count((triangle @ high)[:, :, None] & _direction_numbers(dimensions, columns)[:, None]) & 1
    table = np.einsum("dpb,p->db", parity, high)
    key = random_key(int(rng.integers(2**32)))
    return Sobol(jnp.asarray(table), jnp.asarray(shift), jnp.arange(size, dtype=jnp.uint32), key)


@cache
def _tables() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of Joe and Kuo (2008), as SciPy has them in a file: primitive polynomials (dimension,), as bits, and the first
    direction numbers (dimension, number).  (To import scipy.stats, which reads it, takes the better part of a
    second.)"""
    with np.load(files("scipy") / "stats" / "_sobol_direction_numbers.npz") as found:  # type: ignore[arg-type]
        return found["poly"], found["vinit"]


def _direction_numbers(dimensions: int, columns: int) -> NDArray[np.uint32]:
    """v (dimension, bit), not scrambled, as integers of BITS bits: m_b 2^(BITS - 1 - b) with the recurrence of the
    polynomial x^s + a_1 x^(s-1) + ... + 1

        m_b = 2 a_1 m_(b-1) ^ ... ^ 2^(s-1) a_(s-1) m_(b-s+1) ^ 2^s m_(b-s) ^ m_(b-s)
    """
    poly, first = (table[:dimensions] for table in _tables())
    degree = np.frexp(poly)[1] - 1
    m = np.zeros((dimensions, max(columns, first.shape[1])), np.int64)
    m[:, : first.shape[1]] = first
    m[0] = 1  # the first dimension is the van der Corput sequence
    for s in range(1, int(degree.max(initial=0)) + 1):
        of = np.flatnonzero(degree == s)
        a = poly[of, None] >> np.arange(s)[::-1] & 1  # a_1 .. a_s
        for b in range(s, columns):
            terms = (a[:, k - 1] * m[of, b - k] << k for k in range(1, s + 1))
            m[of, b] = reduce(xor, terms, m[of, b - s])
    return (m[:, :columns] << (BITS - 1 - np.arange(columns))).astype(np.uint32)


def blank(draws: int, size: int) -> Sobol:
    """Zeros in the shapes of `sobol`, at no cost where `jax.eval_shape` asks."""
    dimensions = min(draws, DIMENSIONS)
    table = jnp.zeros((dimensions, size.bit_length() - 1), jnp.uint32)
    key = random_key(0)
    return Sobol(table, jnp.zeros(dimensions, jnp.uint32), jnp.arange(size, dtype=jnp.uint32), key)


def random_key(seed: int) -> jax.Array:
    """That of `jax.random.key`, whatever generator and offset of seeds a host program has given JAX."""
    words = np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
    key: jax.Array = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    return key
