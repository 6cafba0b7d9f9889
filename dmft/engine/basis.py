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
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from dmft.engine import factors, tensor_units
from dmft.engine.population import Population
from dmft.engine.rows import Rows
from dmft.engine.tensor_units import Counted

State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
PANEL = 16  # pivots between two updates of the remainder
UNROLLED = 4  # of these, where all is large, without a loop around them
MANY = 256  # vectors of a block, from which on it is seen first whether all of them are new
LARGE = 2**29  # multiplications in a product from which on rows that hold nothing are left out
SHARES = (4, 1)  # of a block, the rows for which products of what is new are compiled, as a divisor


def rounding(a: Any) -> float:
    """Relative size of a square that is rounding only, in the precision of `a`."""
    return 100 * float(np.finfo(a.dtype).eps)


class Decomposition(NamedTuple):
    """v = known Q + R q; beyond `rank` columns of R are zero, and so are rows of q and of what is beside, or by kernels
    undefined, unless they are of an odd number (`dmft.engine.tensor_units.block`).

    known: (vector, direction); R: (vector, new); q: (new, component); beside: (new, ...), what else was made.
    """

    known: jax.Array
    R: jax.Array
    q: jax.Array
    rank: jax.Array
    beside: Any = None


def decompose(
    v: jax.Array,
    Q: Rows,
    population: Population,
    tolerance: jax.Array,
    *,
    beside: Callable[[int, jax.Array], Any] | None = None,
    leader: str | None = None,
    together: str | None = None,
) -> Decomposition:
    """Write the block `v` (vector, component) in the directions `Q` (direction, component) and new ones.

    Which vectors bring new directions is read off <v v> - x x^T; what is new in these alone is then orthogonalised
    twice (block Gram-Schmidt): once leaves overlaps of rounding / r where they are of relative size r, and overlaps
    feed on each other: after some hundred directions nothing orthonormal would be left.  `beside` makes what else is
    wanted of so many rows, of which `rank` are new.  `leader` names a mapped axis (`jax.vmap`) whose first member
    decides for all which directions are new; `together` one whose members decide for themselves, in products of one
    shape.
    """
    x = population.inner(v, Q)
    # of decisions and of a first guess, of which nothing depends that has a derivative
    products = lax.stop_gradient(population.inner(v, v))
    gram, squares = products - lax.stop_gradient(x @ x.T), products.diagonal()
    # below the rounding of x Q nothing is new, whatever the tolerance
    mean = jnp.mean(squares)
    floor = jnp.maximum(tolerance**2 * mean, rounding(v) * jnp.maximum(squares, mean))
    alone = leader is None and together is None
    by_kernels = isinstance(Q, Counted) and len(v) <= factors.MOST and alone
    if by_kernels:
        pivots, rank = factors.pivoted(gram, floor)
    else:
        pivots, rank = _decided(gram, floor, leader, together, unroll=1 if Q.count is None else UNROLLED)

    def orthonormal(rows: int) -> tuple[Any, ...]:
        taken = pivots[:rows]

        def normalising(gram: jax.Array) -> jax.Array:
            return factors.normalising(gram, rank) if by_kernels else _normalising(gram, jnp.arange(rows) < rank)

        first = normalising(gram[taken][:, taken])

        def rest(Q: Rows) -> jax.Array:
            q = first @ Q.mixed(-x[taken], v[taken])
            return Q.mixed(-population.inner(q, Q), q)

        q = Q.of_part(rest)
        triangle, more = normalising(population.inner(q, q)), beside and beside(rows, rank)
        if by_kernels:
            return tensor_units.block(q, rank).mixed(triangle, room=len(v)), more
        q = triangle @ q
        return q, more, population.inner(q, v)

    q, more, *found = of_new(orthonormal, rank, v, Q.array, together)
    R = found[0].T if found else population.inner(v, tensor_units.block(q, rank))
    return Decomposition(x, R, q, rank, more)


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
        return jax.tree.map(lambda a: jnp.pad(a, [(0, n - len(a))] + [(0, 0)] * (a.ndim - 1)), formula(rows))

    index = sum((most > rows).astype(jnp.int32) for rows in numbers[:-1])
    return lax.switch(index, [lambda rows=rows: padded(rows) for rows in numbers])


def largest(count: jax.Array, together: str | None) -> jax.Array:
    """Of all members of a mapped axis, if there is one: a number that they have in common."""
    return count if together is None else lax.pmax(count, together)  # type: ignore[no-untyped-call]


def _decided(
    gram: jax.Array, floor: jax.Array, leader: str | None, together: str | None, unroll: int
) -> tuple[jax.Array, jax.Array]:
    """`_pivots`, of the first member of a mapped axis `leader` if there is one."""
    if leader is not None:
        gram, floor = (lax.all_gather(a, leader)[0] for a in (gram, floor))
    pivots, rank = _pivots(gram, floor, unroll=unroll, together=together)
    return pivots, rank


def _normalising(gram: jax.Array, live: jax.Array) -> jax.Array:
    """The lower triangle that makes vectors with this Gram matrix orthonormal, one after another, those that are
    `live`; the others zero."""
    both = live[:, None] & live
    return jnp.where(both, _inverse(jnp.linalg.cholesky(jnp.where(both, gram, jnp.eye(len(gram))))), 0.0)


def _inverse(triangle: jax.Array) -> jax.Array:
    """Of a lower triangle: small, where solving for all components of the vectors would be large."""
    return solve_triangular(triangle, jnp.eye(len(triangle)), lower=True)


@partial(jax.jit, static_argnames=("unroll", "together"))
def _pivots(
    gram: jax.Array, floor: jax.Array, *, unroll: int = 1, together: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """The order in which a pivoted Cholesky factor takes vectors (all of them, the dropped ones last), and of how many
    the remainder exceeds their `floor` (vector,).  Of many vectors that are all new, as they come one after the other,
    that is their own order: pivots are a few operations each, of which a device is slow to begin thousands.  Of members
    of a mapped axis `together` all are sought where one has to: the others still have their own order."""
    n = len(gram)
    if n < MANY:
        return _one_by_one(gram, floor, unroll)
    left = jnp.linalg.cholesky(gram).diagonal() ** 2  # nan where it fails
    new = jnp.all(left > floor)
    some_are_not = largest((~new).astype(jnp.int32), together) > 0
    in_order = jnp.arange(n, dtype=jnp.int32), jnp.int32(n)

    def sought() -> tuple[jax.Array, jax.Array]:
        pivots, rank = _one_by_one(gram, floor, unroll)
        return jnp.where(new, in_order[0], pivots), jnp.where(new, in_order[1], rank)

    found: tuple[jax.Array, jax.Array] = lax.cond(some_are_not, sought, lambda: in_order)
    return found


def _one_by_one(gram: jax.Array, floor: jax.Array, unroll: int) -> tuple[jax.Array, jax.Array]:
    """`_pivots`, in panels."""
    n, width = len(gram), min(PANEL, len(gram))

    def going(state: State) -> jax.Array:
        return jnp.any(state[1] > floor)

    def column(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rest, R, left, place, rank = state
        p = jnp.argmax(jnp.where(left > floor, left, -jnp.inf))
        live = left[p] > floor[p]
        new = (rest[p] - jnp.sum(R * R[p], axis=1)) / jnp.sqrt(jnp.where(live, left[p], 1.0))
        new = jnp.where(live & jnp.isfinite(left), new, 0.0)
        taken = live & (jnp.arange(n) == p)
        left = jnp.where(taken, -jnp.inf, left - new**2)
        return rest, R.at[:, j].set(new), left, jnp.where(taken, rank, place), rank + live

    def panel(state: State) -> State:
        rest, left, place, rank = state
        begun = rest, jnp.zeros((n, width), gram.dtype), left, place, rank
        rest, R, left, place, rank = lax.fori_loop(0, width, column, begun, unroll=min(unroll, width))
        return rest - R @ R.T if width < n else rest, left, place, rank

    # left: squares of what is left, of those taken -inf; place: in the order of pivots, n before they are taken
    start: State = gram, gram.diagonal(), jnp.full(n, n, jnp.int32), jnp.zeros((), jnp.int32)
    _, _, place, rank = lax.while_loop(going, panel, start) if width < n else panel(start)
    return jnp.argsort(place).astype(jnp.int32), rank
