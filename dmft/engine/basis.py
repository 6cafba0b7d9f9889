"""Orthonormal directions of a population, grown only by what is new.

A block of vectors v (vector, component) is written in the directions Q met before, <Q Q> = 1, and in new ones q:

    v = x Q + R q        x = <v Q>        <q q> = 1, <q Q> = 0        R R^T = <v v> - x x^T

R is a pivoted Cholesky factor of the Gram matrix of what is new.  A direction whose squared size has fallen below
tolerance^2 of the block's mean square is not added: what it would carry of v is dropped.  Trained networks revisit few
directions (the kernels are numerically of low rank, and the rank saturates in time), so the basis stays small while the
number of vectors grows with every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from dmft.engine.population import Population

State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
PANEL = 32  # pivots between two updates of the remainder
LARGE = 2**29  # multiplications in a product from which on rows that hold nothing are left out
SHARES = (8, 2, 1)  # of a block, the rows for which products of what is new are compiled, as a divisor


def rounding(a: Any) -> float:
    """Relative size of a square that is rounding only, in the precision of `a`."""
    return 100 * float(np.finfo(a.dtype).eps)


class Decomposition(NamedTuple):
    """v = known Q + R q; the rows of q beyond `rank`, and the columns of R, are zero.

    known: (vector, direction); R: (vector, new); q: (new, component).
    """

    known: jax.Array
    R: jax.Array
    q: jax.Array
    rank: jax.Array


def decompose(
    v: jax.Array,
    Q: jax.Array,
    population: Population,
    tolerance: jax.Array,
    *,
    leader: str | None = None,
    together: str | None = None,
) -> Decomposition:
    """Write the block `v` (vector, component) in the directions `Q` (direction, component) and new ones.

    New directions are orthogonalised twice (block Gram-Schmidt): once leaves overlaps of rounding / r where they are of
    relative size r, and overlaps feed on each other: after some hundred directions nothing orthonormal would be left.
    `leader` names a mapped axis (`jax.vmap`) whose first member decides for all which directions are new; `together`
    one whose members decide for themselves, in products of one shape.
    """
    x = population.inner(v, Q)
    residual = v - x @ Q
    # below the rounding of x Q a residual has no direction, whatever the tolerance
    floor = jnp.maximum(tolerance**2, rounding(v)) * jnp.mean(population.squares(v))
    R, inverse, rank = pivoted_cholesky(population.inner(residual, residual), floor, leader=leader)

    def orthonormal(rows: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        q = inverse[:rows] @ residual
        rest = population.inner(q, Q)
        q = q - rest @ Q
        live = jnp.arange(rows) < rank
        again = jnp.linalg.cholesky(population.inner(q, q) + jnp.diag(jnp.where(live, 0.0, 1.0)))
        return _inverse(again) @ q, rest, ((R[:, :rows] @ again) * live).T

    q, rest, R_T = of_new(orthonormal, rank, v, Q, together)
    return Decomposition(x + R @ rest, R_T.T, q, rank)


def of_new(
    formula: Callable[[int], Any], rank: jax.Array, v: jax.Array, Q: jax.Array, together: str | None = None
) -> Any:
    """What `formula` makes of the first rows of a block, (row, ...) in every array: of all, as many as `v`; where its
    products with `Q` are large, of no more than hold the `rank` that are new, and zeros.

    `together` names a mapped axis (`jax.vmap`) all of whose members take as many rows.
    """
    n = len(v)
    if v.size * len(Q) < LARGE:
        return formula(n)
    numbers = sorted({-(-n // share) for share in SHARES})
    most = largest(rank, together)

    def padded(rows: int) -> Any:
        return jax.tree.map(lambda a: jnp.pad(a, [(0, n - rows)] + [(0, 0)] * (a.ndim - 1)), formula(rows))

    index = sum((most > rows).astype(jnp.int32) for rows in numbers[:-1])
    return lax.switch(index, [lambda rows=rows: padded(rows) for rows in numbers])


def largest(count: jax.Array, together: str | None) -> jax.Array:
    """Of all members of a mapped axis, if there is one: a number that they have in common."""
    return count if together is None else lax.pmax(count, together)  # type: ignore[no-untyped-call]


def pivoted_cholesky(
    gram: jax.Array, floor: jax.Array | float, *, leader: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """R, its inverse and rank: gram = R R^T up to remainders of diagonal at most `floor`.

    R: (vector, new), <v q>; inverse: (new, vector), with q = inverse v.  Both are zero beyond `rank`.  Which vectors
    are taken, and in which order, is a decision; derivatives are those of the numbers, given the decisions.
    """
    deciding = (lax.stop_gradient(gram), lax.stop_gradient(jnp.asarray(floor)))
    if leader is not None:
        deciding = jax.tree.map(lambda a: lax.all_gather(a, leader)[0], deciding)
    pivots, rank = _pivots(*deciding)
    live = jnp.arange(len(gram)) < rank
    block = jnp.where(live[:, None] & live, gram[pivots][:, pivots], jnp.eye(len(gram)))
    inverse = live[:, None] * _inverse(jnp.linalg.cholesky(block))[:, jnp.argsort(pivots)]
    return gram @ inverse.T, inverse, rank


def _inverse(triangle: jax.Array) -> jax.Array:
    """Of a lower triangle: small, where solving for all components of the vectors would be large."""
    return solve_triangular(triangle, jnp.eye(len(triangle)), lower=True)


@jax.jit
def _pivots(gram: jax.Array, floor: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """The order in which vectors are taken (all of them, the dropped ones last), and how many exceed `floor`."""
    n, width = len(gram), min(PANEL, len(gram))

    def going(state: State) -> jax.Array:
        return jnp.max(state[1]) > floor

    def column(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rest, R, left, place, rank = state
        p = jnp.argmax(left)
        live = left[p] > floor
        new = (rest[p] - R @ R[p]) / jnp.sqrt(jnp.where(live, left[p], 1.0))
        new = jnp.where(live & jnp.isfinite(left), new, 0.0)
        taken = live & (jnp.arange(n) == p)
        left = jnp.where(taken, -jnp.inf, left - new**2)
        return rest, R.at[:, j].set(new), left, jnp.where(taken, rank, place), rank + live

    def panel(state: State) -> State:
        rest, left, place, rank = state
        begun = rest, jnp.zeros((n, width), gram.dtype), left, place, rank
        rest, R, left, place, rank = lax.fori_loop(0, width, column, begun)
        return rest - R @ R.T if width < n else rest, left, place, rank

    # left: squares of what is left, of those taken -inf; place: in the order of pivots, n before they are taken
    start: State = gram, gram.diagonal(), jnp.full(n, n, jnp.int32), jnp.zeros((), jnp.int32)
    _, _, place, rank = lax.while_loop(going, panel, start) if width < n else panel(start)
    return jnp.argsort(place).astype(jnp.int32), rank
