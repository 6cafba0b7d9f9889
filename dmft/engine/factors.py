"""Factors of the Gram matrix of a block of vectors, each by one kernel on a GPU (`factors.cu`).

Compiled code makes them in hundreds of operations one after the other, of which a device takes longer to begin each
than to do it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dmft.engine.kernels import called

MOST = 239  # vectors, whose triangle has room in shared memory, 227 KiB


def pivoted(gram: jax.Array, floor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `dmft.engine.basis._pivots`."""
    n = len(gram)
    made = [((n, n), gram.dtype), ((n,), jnp.int32), ((), jnp.int32)]
    _, order, rank = _called("pivoted", n, n + 64, made, gram, floor)
    return order, rank


def normalising(gram: jax.Array, rank: jax.Array) -> jax.Array:
    """As `dmft.engine.basis._normalising`, of the first `rank` vectors."""
    n = len(gram)
    return _called("normalising", n, n + n * (n + 1) // 2, [((n, n), gram.dtype)], gram, rank)[0]


def _called(name: str, n: int, shared: int, made: list[Any], *given: jax.Array) -> list[jax.Array]:
    threads = -(-n // 32) * 32
    return called("factors.cu", name, {"N": n, "THREADS": threads}, made, *given, threads=threads, shared=shared)
