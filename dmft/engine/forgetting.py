"""What a stream leaves in its matrices: of all that the steps have shown, no more than k directions a side.

A matrix meets new directions with every batch, and its memory of a whole data set would be as large as a network.  Here
a step meets its batch in full, forward and backward, and thereafter each side keeps k directions: principal components
of all vectors up to now, as far as they are remembered.  With x_a the coordinates of the step's P vectors, and M the
second moment of earlier ones,

    M' = M + sum_a x_a x_a^T,    V = the P directions in which M' is least    (vector a: v_a = sum_i x_ai q_i)

and a rotation H with H^T V = the last P places turns everything that is written in these directions:

    q' = H^T q,   images and C alike,   M'' = H^T M' H,   of which the last P are forgotten.

V comes from two inverse iterations with M', which begin with the P places E where it has the least on its diagonal; k
directions are nearly principal components all the time, so that few are needed, and a decomposition into eigenvectors
is not.  Its span is that of A over the unit matrix, R the other places:

    V ~ [A; 1],    first A_1 = -M_RR^-1 M_RE,    then A = A_1 + M_RR^-1 A_1 (1 + A_1^T A_1)^-1 (M_EE + M_ER A_1)

which is what M'^-1 makes of it, with (M'^-1 [A; 1])_E taken out: one Cholesky factor of M' gives all, whatever the
sizes of moments.  Where places of R are nearly parallel A is large: A_1 up to 1 / sqrt(rounding), since E has the least
of the diagonal, A without a bound.  Beyond that bound rounding decides it, and A_1 is taken.  With
L L^T = 1 + A^T A, V = [A; 1] L^-T is orthonormal (made so twice: once leaves an error of rounding times A^2), and on E
a triangle U, so that the product of reflections that takes it to E is known without one after the other:

    V = [B; U],    H = I - Y T Y^T,    T = 1 + U,    Y = [B (1 + U)^-1; 1]

What W shows to a vector is Gaussian given what it remembers, so that fields of any one step keep their law, and what
was forgotten is shown anew.  Lost are the correlation of fields between steps through these directions, and what was
learned along them: kernels between vectors of two steps lack the part

    <v_a v_b>_lost = sum_{i forgotten} x_ai x_bi

The vectors of a batch are as alike as those of two batches: its size between two samples of the batch, relative to that
of the kernel (`lost`, root mean squares over pairs, for each matrix and side), is the error of kernels of a step.

Assumptions and approximations: samples come in random order.  What was met in forgotten directions is not in M: one
that is met again begins anew.  Relative to its diagonal M' is known to `dmft.engine.basis.rounding`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

from dmft.engine.basis import rounding
from dmft.engine.form import Form
from dmft.engine.matrix import Directions, Turn
from dmft.engine.network import Network, Pass, over_blocks


def forgotten(network: Network, seen: Pass, most: jax.Array, form: Form) -> tuple[Network, jax.Array]:
    """The state after a step, with no more than `most` directions on each side of its matrices; what was lost (matrix,
    side)."""
    matrices, lost = list(network.matrices), [jnp.zeros((0, 2))]
    learned = [list(slot.matrices) for slot in network.slots]
    for i, part in enumerate(form.sketch.matrices):
        uses = [use for use in seen.uses if use.kind == "matrix" and use.index == i]
        met = [use.inputs for use in uses], [use.outputs for use in uses]
        given = matrices[i], [slot[i] for slot in learned], met
        matrices[i], slots, each = over_blocks(part, partial(_of_one, most), *given)
        lost.append(each.reshape(-1, 2))
        for slot, new in zip(learned, slots, strict=True):
            slot[i] = new
    slots = tuple(s._replace(matrices=tuple(new)) for s, new in zip(network.slots, learned, strict=True))
    return replace(network, matrices=tuple(matrices), slots=slots), jnp.concatenate(lost)


def _of_one(most: jax.Array, matrix: Any, slots: list[Any], met: Any) -> tuple[Any, list[Any], jax.Array]:
    """Of one matrix: itself, what the optimiser remembers of it, and what was lost (side,)."""
    forward, backward = (_shortened(most, side, uses) for side, uses in zip(matrix.sides, met, strict=True))
    turns = forward[1], backward[1]
    matrix = replace(matrix, forward=forward[0], backward=backward[0], trained=matrix.trained.turned(*turns))
    return matrix, [slot.turned(*turns) for slot in slots], jnp.stack([forward[2], backward[2]])


def _shortened(most: jax.Array, side: Directions, met: list[jax.Array]) -> tuple[Directions, Turn, jax.Array]:
    """A side with no more than `most` directions, how the others were turned, and what was lost; met: coordinates of
    each use (..., direction)."""
    x = jnp.concatenate([each.reshape(-1, each.shape[-1]) for each in met])
    rows = len(x)  # no more directions are new than there were vectors
    assert side.moment is not None
    moment = side.moment + x.T @ x
    turn = rotation(moment, side.count, most, rows)
    rest = turn.whole(x, 1)[:, -rows:]
    whole = _between(x)
    lost = jnp.sqrt(_between(rest) / jnp.where(whole > 0, whole, 1.0))
    return side.turned(turn, turn(turn(moment, 0), 1)), turn, lost


def rotation(moment: jax.Array, count: jax.Array, most: jax.Array, rows: int) -> Turn:
    """H that takes to the last places the `rows` directions in which this second moment of `count` is least, of which
    those are forgotten that the first `most` places do not hold: among them those of the places behind that are
    empty."""
    place = jnp.arange(len(moment))
    occupied = place < count
    diagonal = moment.diagonal()
    behind = (place >= most) & (place < most + rows)
    begun = jnp.argsort(jnp.where(occupied, diagonal, jnp.where(behind, -1.0, jnp.inf)))[:rows]
    order = jnp.argsort(jnp.zeros(len(moment), bool).at[begun].set(True), stable=True)
    shifted = moment + jnp.diag(jnp.where(diagonal > 0, rounding(moment) * diagonal, 1.0))
    A = least(jnp.linalg.cholesky(shifted[order][:, order]), rows)
    eye = U = jnp.eye(rows)
    for _ in range(2):
        L = jnp.linalg.cholesky(U.T @ U + A.T @ A)
        A, U = (solve_triangular(L, a.T, lower=True).T for a in (A, U))
    Y = jnp.concatenate([solve_triangular(eye + U.T, A.T, lower=True).T, eye])
    return Turn(jnp.zeros_like(Y).at[order].set(Y), eye + U, order, most)


def least(factor: jax.Array, rows: int) -> jax.Array:
    """A (direction, vector): over the unit matrix, about the directions in which a second moment with this Cholesky
    factor is least, where it has the least of its diagonal last."""
    n = len(factor) - rows
    R, across, E = factor[:n, :n], factor[n:, :n], factor[n:, n:]
    first = -solve_triangular(R, across.T, lower=True, trans=1)
    metric = jnp.linalg.cholesky(jnp.eye(rows) + first.T @ first)
    second = first + cho_solve((R, True), first @ cho_solve((metric, True), E @ E.T))
    return jnp.where(jnp.max(jnp.abs(second)) ** 2 * rounding(factor) < 1, second, first)


def begun(network: Network) -> Network:
    """A network at initialisation, whose matrices count what they meet."""

    def counting(side: Directions) -> Directions:
        shape = side.met.shape[:-1]
        return replace(side, moment=jnp.zeros((*shape, shape[-1])))

    matrices = (replace(m, forward=counting(m.forward), backward=counting(m.backward)) for m in network.matrices)
    return replace(network, matrices=tuple(matrices))


def _between(x: jax.Array) -> jax.Array:
    """The sum of squares of x_a . x_b over pairs of different vectors."""
    gram = x @ x.T
    return jnp.sum(jnp.where(jnp.eye(len(gram), dtype=bool), 0.0, gram) ** 2)
