"""NumPy's default generator of random bits on a device: any of its words, each by itself.

Word n of PCG64 (O'Neill 2014, XSL-RR 128/64) is a permutation of state n + 1 of a linear congruential generator,

    s_n = A^n s_0 + (1 + A + ... + A^(n-1)) c      modulo 2^128

where a jump by n goes digit by digit of n.  Numbers of 128 bits are pairs of words of 64, the upper one first, so that
JAX has to have these (`jax.enable_x64`).
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

A = 0x2360ED051FC65DA44385DF649FCCF645
WORD = 2**64
DIGIT, DIGITS = 8, 3  # bits of a digit, and how many of them the number of a word has
Wide = tuple[jax.Array, jax.Array]


def state(generator: np.random.Generator) -> NDArray[np.uint64]:
    """(4,): s_0 and c of a generator that NumPy has made."""
    known = generator.bit_generator.state["state"]
    return _words(known["state"], known["inc"])


def words(state: jax.Array, n: jax.Array) -> jax.Array:
    """In the shape of n, uint64: the words with these numbers, below 2^24, that are still to come."""
    increment, s = (state[2], state[3]), (state[0], state[1])
    for i, table in enumerate(_jumps()):
        upper_power, power, upper_sum, summed = jnp.asarray(table)[:, n >> DIGIT * i & 2**DIGIT - 1]
        s = _sum(_product((upper_power, power), s), _product((upper_sum, summed), increment))
    upper, lower = _sum(_product(tuple(jnp.asarray(_words(A))), s), increment)
    mixed, by = upper ^ lower, upper >> 58
    return mixed >> by | mixed << (64 - by & 63)


@lru_cache(maxsize=1)
def _jumps() -> NDArray[np.uint64]:
    """(digit, 4, value of the digit): A^n and 1 + ... + A^(n-1) for n = value 2^(DIGIT digit)."""
    tables, power, summed = [], A, 1  # of a step with this digit
    for _ in range(DIGITS):
        jumps = [(1, 0)]
        for _ in range(2**DIGIT):
            jumps.append((jumps[-1][0] * power % WORD**2, (jumps[-1][1] * power + summed) % WORD**2))
        power, summed = jumps.pop()
        tables.append(np.transpose([_words(*jump) for jump in jumps]))
    return np.array(tables)


def _words(*numbers: int) -> NDArray[np.uint64]:
    """Of numbers of 128 bits."""
    return np.array([part for number in numbers for part in divmod(number, WORD)], np.uint64)


def _sum(a: Wide, b: Wide) -> Wide:
    lower = a[1] + b[1]
    return a[0] + b[0] + (lower < a[1]), lower


def _product(a: Wide, b: Wide) -> Wide:
    return _upper(a[1], b[1]) + a[0] * b[1] + a[1] * b[0], a[1] * b[1]


def _upper(a: jax.Array, b: jax.Array) -> jax.Array:
    """The upper word of a product, by halves of words."""
    (a1, a0), (b1, b0) = ((each >> 32, each & 0xFFFFFFFF) for each in (a, b))
    middle = a1 * b0 + (a0 * b0 >> 32)
    return a1 * b1 + (middle >> 32) + (a0 * b1 + (middle & 0xFFFFFFFF) >> 32)
