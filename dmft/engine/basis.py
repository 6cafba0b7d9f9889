"""Orthonormal directions of a population, grown only by what is new.

A block of vectors v (vector, particle) is written in the directions Q met before, <Q Q> = 1, and in new ones q:

    v = x Q + R q        x = <v Q>        <q q> = 1, <q Q> = 0        R R^T = <v v> - x x^T

R is a pivoted Cholesky factor.  A direction whose squared size has fallen below tolerance^2 of the block's mean
square is not added: what it would carry of v is dropped.  Trained networks revisit few directions (the kernels are
numerically of low rank, and the rank saturates in time), so the basis stays small while the number of vectors grows
with every step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from dmft.engine.population import Particles


def rounding(a: jax.Array) -> float:
    """Relative size of a square that is rounding only, in the precision of `a`."""
    return 100 * float(np.finfo(a.dtype).eps)


class Decomposition(NamedTuple):
    """v = known Q + R q; the rows of q beyond `rank`, and the columns of R, are zero.

    known: (vector, direction); R: (vector, new); q: (new, particle).
    """

    known: jax.Array
    R: jax.Array
    q: jax.Array
    rank: jax.Array


def decompose(v: jax.Array, Q: jax.Array, population: Particles, tolerance: jax.Array) -> Decomposition:
    """Write the block `v` (vector, particle) in the directions `Q` (direction, particle) and new ones.

    Orthogonalised twice (block Gram-Schmidt), since one pass loses half of the digits.
    """
    x = population.inner(v, Q)
    residual = v - x @ Q
    # below the rounding of x Q a residual has no direction, whatever the tolerance
    floor = jnp.maximum(tolerance**2, rounding(v)) * jnp.mean(population.squares(v))
    R, pivots, rank = pivoted_cholesky(population.inner(residual, residual), floor)
    live = jnp.arange(len(v)) < rank
    triangle = R[pivots] + jnp.diag(jnp.where(live, 0.0, 1.0))
    q = live[:, None] * solve_triangular(triangle, residual[pivots], lower=True)

    rest = population.inner(q, Q)
    q = q - rest @ Q
    again = jnp.linalg.cholesky(population.inner(q, q) + jnp.diag(jnp.where(live, 0.0, 1.0)))
    q = live[:, None] * solve_triangular(again, q, lower=True)
    return Decomposition(x + R @ rest, (R @ again) * live, q, rank)


@jax.jit
def pivoted_cholesky(gram: jax.Array, floor: jax.Array | float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """R, pivots, rank with gram = R R^T up to remainders of diagonal at most `floor`.

    R: (vector, new) with zero columns beyond `rank`; R[pivots] is lower triangular.
    """
    n = len(gram)

    def column(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        R, left, pivots, rank = state
        p = jnp.argmax(left)
        live = left[p] > floor
        open_rows = jnp.isfinite(left)
        new = (gram[:, p] - R @ R[p]) / jnp.sqrt(jnp.where(live, left[p], 1.0))
        new = jnp.where(live & open_rows, new, 0.0)
        left = (left - new**2).at[p].set(-jnp.inf)
        return R.at[:, j].set(new), left, pivots.at[j].set(p.astype(jnp.int32)), rank + live

    start = (jnp.zeros_like(gram), gram.diagonal(), jnp.zeros(n, jnp.int32), jnp.zeros((), jnp.int32))
    R, _, pivots, rank = lax.fori_loop(0, n, column, start)
    return R, pivots, rank
