"""Sources of raw iid N(0,1) variables, (draw, component), handed out by rows.

    Stored    an array
    Sobol     dimension d of one scrambled Sobol sequence is row d; made anew whenever it is asked for
    Tailed    an array, and pseudo-random rows beyond its end

Point n of dimension d is the XOR of a shift and of those direction numbers v_{d,b} whose bit b is set in the Gray code
n ^ (n >> 1); the normal quantile of its middle is the variable.  Rows beyond SciPy's last dimension are pseudo-random.

Direction numbers are SciPy's, and so is their scramble (Matousek 1998, lower triangular matrices and a shift, from the
same random bits), which takes its constructor most of a second for some thousand dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
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
Scrambled = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]


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
    return _placed(*scrambled(draws, size, seed), draws, size, room)


def sobol_of_each(scrambles: Sequence[Scrambled], draws: int, size: int, room: int = 0) -> Sobol:
    """As `sobol`, of all of these: with an axis of them before all others."""
    tables, shifts, keys = (np.stack(each) for each in zip(*scrambles, strict=True))
    return _placed(tables, shifts, keys, draws, size, room)


def _placed(
    table: NDArray[np.uint32], shift: NDArray[np.uint32], key: NDArray[np.uint32], draws: int, size: int, room: int
) -> Sobol:
    """On the device."""
    index = np.broadcast_to(np.arange(size, dtype=np.uint32), (*shift.shape[:-1], size))
    if draws <= DIMENSIONS:
        more = [(0, 0)] * (shift.ndim - 1) + [(0, max(min(room, DIMENSIONS) - draws, 0))]
        table, shift = np.pad(table, [*more, (0, 0)]), np.pad(shift, more)
    put = jax.device_put
    return Sobol(put(table), put(shift), put(index), _wrapped(key), tailed=draws > DIMENSIONS)


def scrambled(draws: int, size: int, seed: np.random.SeedSequence) -> Scrambled:
    """What `sobol` places on the device: direction numbers (dimension, bit), shifts (dimension,), and the words of a
    key."""
    dimensions, bits = min(draws, DIMENSIONS), size.bit_length() - 1
    rng = np.random.default_rng(seed)
    (own,) = rng.spawn(1)  # as SciPy does
    powers = np.uint32(2) ** np.arange(BITS, dtype=np.uint32)
    shift = own.integers(2, size=(dimensions, BITS), dtype=np.uint32) @ powers
    # row p of a triangle, as an integer with its first entry on top: the diagonal is one, what is right of it zero
    triangle, place = own.integers(2, size=(dimensions, BITS, BITS), dtype=np.uint32) @ powers[::-1], powers[::-1]
    triangle = triangle & ~(2 * place - 1) | place
    met = np.bitwise_count(triangle[:, None, :] & _direction_numbers(dimensions)[:, :bits, None]) & 1
    return met @ place, shift, _words(int(rng.integers(2**32)))


@lru_cache(maxsize=8)
def _direction_numbers(dimensions: int) -> NDArray[np.uint32]:
    """v (dimension, bit), not scrambled, as integers of BITS bits: m_b 2^(BITS - 1 - b), with the recurrence of the
    dimension's primitive polynomial x^s + a_1 x^(s-1) + ... + 1,

        m_b = 2 a_1 m_(b-1) ^ ... ^ 2^(s-1) a_(s-1) m_(b-s+1) ^ 2^s m_(b-s) ^ m_(b-s)

    from the numbers of Joe and Kuo (2008), which SciPy has in a file (and to import scipy.stats, which reads it, takes
    the better part of a second)."""
    with np.load(files("scipy") / "stats" / "_sobol_direction_numbers.npz") as found:  # type: ignore[arg-type]
        polynomials, first = found["poly"][:dimensions], found["vinit"][:dimensions]
    degrees = np.frexp(polynomials)[1] - 1
    m = np.pad(first, [(0, 0), (0, BITS - first.shape[1])])
    m[0] = 1  # the first dimension is the van der Corput sequence
    for s in range(1, int(degrees.max(initial=0)) + 1):
        of = np.flatnonzero(degrees == s)
        a = polynomials[of, None] >> np.arange(s)[::-1] & 1  # a_1 .. a_s, the last of which is 1
        for b in range(s, BITS):
            terms = (a[:, k - 1] * m[of, b - k] << k for k in range(1, s + 1))
            m[of, b] = reduce(xor, terms, m[of, b - s])
    return (m << (BITS - 1 - np.arange(BITS))).astype(np.uint32)


def blank(draws: int, size: int) -> Sobol:
    """Zeros in the shapes of `sobol`, at no cost where `jax.eval_shape` asks."""
    dimensions = min(draws, DIMENSIONS)
    table = jnp.zeros((dimensions, size.bit_length() - 1), jnp.uint32)
    shift, index = jnp.zeros(dimensions, jnp.uint32), jnp.arange(size, dtype=jnp.uint32)
    return Sobol(table, shift, index, random_key(0), tailed=draws > DIMENSIONS)


def random_key(seed: int) -> jax.Array:
    """That of `jax.random.key`, whatever generator and offset of seeds a host program has given JAX."""
    return _wrapped(_words(seed))


def _words(seed: int) -> NDArray[np.uint32]:
    return np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


def _wrapped(words: NDArray[np.uint32]) -> jax.Array:
    key: jax.Array = jax.random.wrap_key_data(jax.device_put(words), impl="threefry2x32")
    return key
