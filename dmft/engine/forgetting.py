"""What a stream leaves in its matrices: of all that the steps have shown, no more than k directions a side.

A matrix meets new directions with every batch, and its memory of a whole data set would be as large as a network.  Here
a step meets its batch in full, forward and backward, and thereafter each side keeps k directions: those in which the
vectors of all steps up to now are largest, as far as is known.  With x_ai the coordinates of the step's P vectors and
s_i what is remembered of earlier ones, for the P new directions and the P kept ones with the least s,

    sum_a x_ai x_aj + s_i delta_ij  =  U diag(s') U^T             q'_i = sum_j U_ji q_j,   images and C alike

and the directions q' with the smallest s' are forgotten until k are left: principal components, of which those that are
small compete with what is new.

What W shows to a vector is Gaussian given what it remembers, so that fields of any one step keep their law, and what
was forgotten is shown anew.  Lost are the correlation of fields between steps through these directions, and what was
learned along them: kernels between vectors of two steps lack the part

    <v_a v_b>_lost = sum_{i forgotten} x_ai x_bi

The vectors of a batch are as alike as those of two batches: its size between two samples of the batch, relative to that
of the kernel (`lost`, root mean squares over pairs, for each matrix and side), is the error of kernels of a step.

Assumptions and approximations: samples come in random order.  What was met in forgotten directions is in no s: one that
is met again begins anew.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dmft.engine.form import Form
from dmft.engine.matrix import Directions
from dmft.engine.network import Network, Pass, over_blocks


class Choice(NamedTuple):
    """Arguments of `Directions.turned`, and what was lost."""

    places: jax.Array
    turn: jax.Array
    left: jax.Array
    squares: jax.Array
    lost: jax.Array


def forgotten(before: Network, after: Network, seen: Pass, most: jax.Array, form: Form) -> tuple[Network, jax.Array]:
    """The state `after` a step that began with `before`, with no more than `most` directions on each side of its
    matrices; what was lost (matrix, side)."""
    matrices, lost = list(after.matrices), [jnp.zeros((0, 2))]
    learned = [list(slot.matrices) for slot in after.slots]
    for i, part in enumerate(form.sketch.matrices):
        uses = [use for use in seen.uses if use.kind == "matrix" and use.index == i]
        met = [use.inputs for use in uses], [use.outputs for use in uses]
        begun = tuple(side.count for side in before.matrices[i].sides)
        given = matrices[i], [slot[i] for slot in learned], begun, met
        matrices[i], slots, each = over_blocks(part, partial(_of_one, most), *given)
        lost.append(each.reshape(-1, 2))
        for slot, new in zip(learned, slots, strict=True):
            slot[i] = new
    slots = tuple(s._replace(matrices=tuple(new)) for s, new in zip(after.slots, learned, strict=True))
    return replace(after, matrices=tuple(matrices), slots=slots), jnp.concatenate(lost)


def _of_one(most: jax.Array, matrix: Any, slots: list[Any], begun: Any, met: Any) -> tuple[Any, list[Any], jax.Array]:
    """Of one matrix: itself, what the optimiser remembers of it, and what was lost (side,)."""
    sides = zip(matrix.sides, begun, met, strict=True)
    chosen = forward, backward = [_choice(most, side, start, uses) for side, start, uses in sides]
    turns = [(each.places, each.turn) for each in chosen]
    matrix = replace(
        matrix,
        forward=matrix.forward.turned(*forward[:4]),
        backward=matrix.backward.turned(*backward[:4]),
        trained=matrix.trained.turned(*turns),
    )
    return matrix, [slot.turned(*turns) for slot in slots], jnp.stack([each.lost for each in chosen])


def _choice(most: jax.Array, side: Directions, start: jax.Array, met: list[jax.Array]) -> Choice:
    """Of a side that had `start` directions before the step; met: coordinates of each use (..., direction)."""
    x = jnp.concatenate([each.reshape(-1, each.shape[-1]) for each in met])
    rows, capacity = x.shape  # no more directions are new than there were vectors
    assert side.squares is not None
    place = jnp.arange(capacity)
    kind = jnp.where(place < start, 0, jnp.where(place < start + rows, 1, 2))  # old, new, nothing
    # the new ones, and as many of the old ones, those with the smallest squares
    candidates = jnp.argsort(jnp.select([kind == 0, kind == 1], [side.squares, -1.0], jnp.inf))[: 2 * rows]
    places = candidates[jnp.argsort(kind[candidates], stable=True)]
    part = x[:, places]
    kept = jnp.where(kind[places] == 0, side.squares[places], 0.0)
    found, U = jnp.linalg.eigh(part.T @ part + jnp.diag(kept))
    found, U = found[::-1], U[:, ::-1]
    left = jnp.minimum(side.count, most)
    # the first of these places are those that were occupied before
    live = jnp.arange(2 * rows) < jnp.sum(kind[places] == 0) + left - start
    turn = jnp.where(live[:, None], U.T, 0.0)
    squares = (side.squares + jnp.sum(x**2, axis=0)).at[places].set(jnp.where(live, found, 0.0))
    rest = part @ jnp.where(live, 0.0, U)
    whole = _between(x)
    return Choice(places, turn, left, squares, jnp.sqrt(_between(rest) / jnp.where(whole > 0, whole, 1.0)))


def begun(network: Network) -> Network:
    """A network at initialisation, whose matrices count what they meet."""

    def counting(side: Directions) -> Directions:
        return replace(side, squares=jnp.zeros(side.met.shape[:-1]))

    matrices = (replace(m, forward=counting(m.forward), backward=counting(m.backward)) for m in network.matrices)
    return replace(network, matrices=tuple(matrices))


def _between(x: jax.Array) -> jax.Array:
    """The sum of squares of x_a . x_b over pairs of different vectors."""
    gram = x @ x.T
    return jnp.sum(jnp.where(jnp.eye(len(gram), dtype=bool), 0.0, gram) ** 2)
