"""Scrambles of the Sobol sequence: by NumPy, or on a GPU the same.

Direction numbers are SciPy's, and so is their scramble (Matousek 1998, lower triangular matrices and a shift, from the
same random bits), which takes its constructor most of a second for some thousand dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache, partial, reduce
from importlib.resources import files
from operator import xor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from dmft.engine import pcg64
from dmft.running.executables import kept

BITS = 30
DIMENSIONS = 21_201  # of the table of Joe and Kuo
AT_ONCE = 128  # dimensions, whose random bits NumPy holds together
PLACES = np.arange(BITS, dtype=np.uint32)[::-1]  # of bits, from the top
Seed = np.random.SeedSequence
# direction numbers (dimension, bit), shifts (dimension,), and the words of a key
Scrambled = tuple[Any, Any, Any]


def scrambled(draws: int, size: int, seed: Seed, room: int = 0) -> Scrambled:
    """For `draws` rows of a sequence of `size` points, as many dimensions as there are; in arrays with `room` for more,
    zeros."""
    dimensions, bits = min(draws, DIMENSIONS), size.bit_length() - 1
    own, key = _generators(seed)
    table, shift = np.zeros((_length(draws, room), bits), np.uint32), np.zeros(_length(draws, room), np.uint32)
    shift[:dimensions] = _integers(_bits(own, dimensions, BITS)[:, ::-1])
    for start in range(0, dimensions, AT_ONCE):
        v = _direction_numbers(dimensions, bits)[start : start + AT_ONCE]
        triangle = _triangle(_integers(_bits(own, len(v), BITS, BITS)))
        table[start : start + len(v)] = _integers(np.bitwise_count(triangle[:, None, :] & v[:, :, None]) & 1)
    return table, shift, key


def scrambled_of_each(
    draws: Sequence[int],
    size: int,
    seeds: Sequence[Sequence[Seed]],
    rooms: Sequence[int],
    *,
    on_gpu: bool,
    placed: jax.sharding.Sharding | None = None,
) -> list[Scrambled]:
    """As `scrambled`, of several sequences each with seeds of its own, which are an axis before all others, and may be
    `placed` on several devices."""
    if not on_gpu:
        each = zip(draws, rooms, seeds, strict=True)
        made = [[scrambled(n, size, seed, room) for seed in own] for n, room, own in each]
        return [tuple(map(np.stack, zip(*one, strict=True))) for one in made]  # type: ignore[misc]
    generators = [[_generators(seed) for seed in own] for own in seeds]
    lengths = [_length(n, room) for n, room in zip(draws, rooms, strict=True)]
    most = _direction_numbers(max(lengths), size.bit_length() - 1)
    dimensions = [np.int32(min(n, DIMENSIONS)) for n in draws]
    with jax.enable_x64(True):
        states = jax.device_put([np.stack([pcg64.state(own) for own, _ in one]) for one in generators], placed)
        found = _on_device(states, [most[:n] for n in lengths], dimensions)
    return [(*one, np.stack([key for _, key in own])) for one, own in zip(found, generators, strict=True)]


@kept()
def _on_device(
    states: list[jax.Array], numbers: list[jax.Array], dimensions: list[jax.Array]
) -> list[tuple[jax.Array, jax.Array]]:
    """In the lengths of `numbers`, of whose dimensions only the first are taken: as many as these may be, one code."""

    def of(v: jax.Array, count: jax.Array, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
        length, there = len(v), jnp.arange(len(v)) < count
        shift = _sum_of_bits(drawn[:length, None] >> PLACES, PLACES[::-1])
        triangle = _triangle(lax.dynamic_slice(drawn, (count,), (BITS * length,)).reshape(length, BITS))
        table = _sum_of_bits(lax.population_count(triangle[:, None, :] & v[:, :, None]), PLACES)
        return jnp.where(there[:, None], table, 0), jnp.where(there, shift, 0)

    # of all sequences at once, as many as the longest needs: what takes long to compile is there once
    drawn = jax.vmap(jax.vmap(partial(_drawn, (BITS + 1) * max(map(len, numbers)))))(jnp.stack(states))
    each = zip(numbers, dimensions, drawn, strict=True)
    return [jax.vmap(partial(of, v, count))(own) for v, count, own in each]


def _drawn(count: int, state: jax.Array) -> jax.Array:
    """(count,): integers of BITS random bits, the first on top: the upper bits of both halves of words, the lower half
    first."""
    half = BITS // 2
    words = pcg64.words(state, jnp.arange(count * half, dtype=jnp.uint32).reshape(count, half))
    bits = (words >> 31 & 1) << PLACES[::2].astype(np.uint64) | words >> 63 << PLACES[1::2].astype(np.uint64)
    return jnp.sum(bits, axis=-1).astype(jnp.uint32)


def _sum_of_bits(bits: jax.Array, places: NDArray[np.uint32]) -> jax.Array:
    """Of integers (..., bit) the last bits, at these places."""
    return jnp.sum((bits & 1) << places, axis=-1, dtype=jnp.uint32)


def _generators(seed: Seed) -> tuple[np.random.Generator, NDArray[np.uint32]]:
    """That of random bits, as SciPy spawns it, and the words of a key."""
    rng = np.random.default_rng(seed)
    (own,) = rng.spawn(1)
    return own, key_words(int(rng.integers(2**32)))


def _bits(generator: np.random.Generator, *shape: int) -> NDArray[np.bool_]:
    """What `integers(2, size=shape, dtype=np.uint32)` gives, for an even number of them: the upper bits of both halves
    of words."""
    words = generator.bit_generator.random_raw(int(np.prod(shape)) // 2)
    return words.astype("<u8", copy=False).view("<i4").reshape(shape) < 0


def _integers(bits: NDArray[np.bool_] | NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Of bits (..., bit), the first on top; by a product of floating-point numbers, which is fast, and exact."""
    found: NDArray[np.uint32] = (bits @ 2.0**PLACES).astype(np.uint32)
    return found


def _triangle(rows: Any) -> Any:
    """Rows (..., row) of a triangle as integers: with ones on the diagonal and zeros right of it."""
    place = np.uint32(1) << PLACES
    return rows & ~(2 * place - 1) | place


def _length(draws: int, room: int) -> int:
    """Of tables: dimensions, and those that there is room for beside them."""
    return max(draws, min(room, DIMENSIONS)) if draws <= DIMENSIONS else DIMENSIONS


@lru_cache(maxsize=8)
def _direction_numbers(dimensions: int, bits: int) -> NDArray[np.uint32]:
    """v (dimension, bit), the first of them, not scrambled, as integers of BITS bits: m_b 2^(BITS - 1 - b), with the
    recurrence of the dimension's primitive polynomial x^s + a_1 x^(s-1) + ... + 1,

        m_b = 2 a_1 m_(b-1) ^ ... ^ 2^(s-1) a_(s-1) m_(b-s+1) ^ 2^s m_(b-s) ^ m_(b-s)

    from the numbers of Joe and Kuo (2008)."""
    polynomials, first = (each[:dimensions] for each in _joe_and_kuo())
    degrees = np.frexp(polynomials)[1] - 1
    m = np.pad(first, [(0, 0), (0, BITS - first.shape[1])])
    m[0] = 1  # the first dimension is the van der Corput sequence
    for s in range(1, int(degrees.max(initial=0)) + 1):
        of = np.flatnonzero(degrees == s)
        a = polynomials[of, None] >> np.arange(s)[::-1] & 1  # a_1 .. a_s, the last of which is 1
        for b in range(s, BITS):
            terms = (a[:, k - 1] * m[of, b - k] << k for k in range(1, s + 1))
            m[of, b] = reduce(xor, terms, m[of, b - s])
    return (m << PLACES)[:, :bits].astype(np.uint32)


@cache
def _joe_and_kuo() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Primitive polynomials (dimension,) and first m (dimension, degree), which SciPy has in a file (and to import
    scipy.stats, which reads it, takes the better part of a second)."""
    with np.load(files("scipy") / "stats" / "_sobol_direction_numbers.npz") as found:  # type: ignore[arg-type]
        return found["poly"], found["vinit"]


def key_words(seed: int) -> NDArray[np.uint32]:
    """Of the key that a seed gives (`dmft.engine.normals.random_key`)."""
    return np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
