"""A step of an optimiser that moves each entry by its own rule (`dmft.specs.training.entrywise`).

    G_ij = (1/P) sum_a Delta_a u_ia v_ja       u the cotangent of W v, v what W has met: a sum of few outer products
    (state, Q) = rule(state, G)                E <- (1 - eta lambda) E + eta gamma0 Q       d <- (1 - eta lambda) d

for W = d W(0) + s E (`dmft.engine.matrix.Entries`) between particles i and j.  The rule never sees W(0), and so E is a
function of what the matrix has shown: a run over S particles remains, in law, a network of width S, and averages <E v>
are what the limit has in the place of kernels, E_j[Q(paths of i and j) v_j].  Weights of particles stand in averages
alone.  Thin matrices, vectors and the readout move alike, from their directions; thin ones in the real coordinates of
inputs, in which the rule sees them, though they are drawn in those of their span.

G is formed where it is used: few outer products in one loop with the rule, which reads and writes E and the states and
nothing else; of many, a product of matrices, some rows of G at a time where it is large.  A rule is computed in the
precision in which E and states are kept.  Cost of a step: 2 + 2 slots arrays of S^2 numbers that are read or
written, and E twice more in passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dmft.engine.form import Form, Rule
from dmft.engine.matrix import Entries, Learned
from dmft.engine.network import Network, Parameters, Pass, direction, evaluate, over_blocks, pushed, unless_frozen
from dmft.engine.norms import normalized
from dmft.engine.tape import Use
from dmft.specs.parameterization import entry_step, hidden_scale, matrix_step, position_scale

States = tuple[jax.Array, ...]

UNROLLED = 16  # outer products, of which no array of entries is made besides
BLOCK = 2**26  # entries of G that are made at once of more


def descend(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass]:
    """Step `t`; the pass is that before the update."""
    network, seen, change = evaluate(network, rule, t, form)
    assert rule.factors is not None  # of entrywise optimisers
    push, sketch = direction(network, seen, change, form, matrices=form.rule.by_matrix), form.sketch
    if form.rule.divided_by:
        push = normalized(network, push, rule, form)
    fading, rate = rule.recurrence.change[t, 0, 0], rule.recurrence.b[t, 0]
    time, columns_of_inputs = t * 1.0, rule.factors[:, None]  # a number that leaves arrays in their precision

    def entries(theta: jax.Array, state: States, G: jax.Array, step: Any) -> tuple[jax.Array, States]:
        """Weights and states after the step."""
        kept, Q = form.rule.stepped(jnp, time, state, G)
        keep, factor = (a.astype(theta.dtype) for a in (1 + fading, rate * step))
        return keep * theta + factor * Q, kept

    def array(s: Any, theta: jax.Array, moved: jax.Array, *state: jax.Array) -> tuple[jax.Array, States]:
        step = entry_step(rule.gamma0, s)
        return entries(theta, state, moved / step, step)

    def whole_matrix(theta: Any, moved: Any, state: Any) -> tuple[Any, Any]:
        """Of C in bases, or of weights themselves."""
        low_rank = isinstance(theta, Learned)
        weights, moved, *memory = (each.change if low_rank else each for each in (theta, moved, *state))
        # a bank (output, matrix, input) in bases, (matrix, output, input) itself, is one matrix of all its inputs
        axes = (0, 1, 2) if low_rank else (1, 0, 2)

        def flat(a: jax.Array) -> jax.Array:
            return a if a.ndim == 2 else a.transpose(axes).reshape(a.shape[axes[0]], -1)

        def back(a: jax.Array) -> jax.Array:
            if weights.ndim == 2:
                return a
            return a.reshape([weights.shape[axis] for axis in axes]).transpose(axes)

        step = matrix_step(rule.gamma0, 1 if low_rank else weights.shape[-2])
        kept, X = form.rule.matrix(jnp, tuple(map(flat, memory)), flat(moved) / step)
        after = (1 + fading) * weights + rate * step * back(X)
        states = tuple(map(back, kept))
        if not low_rank:
            return after, states
        still = jnp.zeros_like(theta.initial)
        return Learned((1 + fading) * theta.initial, after), tuple(Learned(still, each) for each in states)

    def matrix(index: int, theta: Any, moved: Any, *state: Any) -> tuple[Any, Any]:
        part = sketch.matrices[index]
        found: tuple[Any, Any]
        if form.rule.by_matrix:
            found = over_blocks(part, whole_matrix, theta, moved, state)
            return found
        uses = [use for use in seen.uses if (use.kind, use.index) == ("matrix", index)]
        share, bank = rule.gamma0 * sketch.share(part.target), part.bank or 1

        def of_block(theta: Any, state: Any, met: Any, gradients: Any) -> tuple[Any, Any]:
            pairs = [_factors(use, v, pushed(g, change, form)) for use, v, g in zip(uses, met, gradients, strict=True)]
            u, v = (jnp.concatenate(each) for each in zip(*pairs, strict=True))
            u = u * (math.sqrt(bank) / share)
            if not isinstance(theta, Entries):
                step = entry_step(rule.gamma0, hidden_scale(bank * theta.shape[-1]))
                return _over_rows(partial(entries, step=step), theta, state, u, v)
            moved = partial(entries, step=rule.gamma0)
            after, kept = _over_rows(moved, theta.entries, tuple(each.entries for each in state), u, v)
            still = jnp.zeros_like(theta.initial)
            return Entries((1 + fading) * theta.initial, after), tuple(Entries(still, each) for each in kept)

        given = [use.met for use in uses], [use.gradient for use in uses]
        found = over_blocks(part, of_block, theta, state, *given)
        return found

    def columns(of: Parameters) -> tuple[Sequence[Any], ...]:
        return of.reads, of.matrices, of.vectors, (of.readout,)

    given = zip(*map(columns, (network.parameters, push, *network.slots)), strict=True)
    reads, matrices, vectors, readouts = (list(zip(*each, strict=True)) for each in given)
    found = (
        [array(columns_of_inputs, *each) for each in reads],
        [matrix(i, *each) for i, each in enumerate(matrices)],
        [array(1.0, *each) for each in vectors],
        [array(position_scale(sketch.flattened), *each) for each in readouts],
    )

    def parameters(pick: Callable[[Any], Any]) -> Parameters:
        reads, matrices, vectors, (readout,) = (tuple(map(pick, each)) for each in found)
        return Parameters(reads, matrices, vectors, readout)

    slots = tuple(parameters(lambda each: each[1][i]) for i in range(len(network.slots)))  # noqa: B023
    after = unless_frozen(parameters(lambda each: each[0]), network.parameters, form)
    return replace(network, slots=slots).with_parameters(after), seen


def _factors(use: Use, v: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u (product, output) and v (product, [matrix,] input), for what was met (row, [position,] component) and pushed
    (trained row, [position,] component)."""
    v = v[: len(u)]
    if use.mix is not None:
        v = jnp.einsum("kyx,axi->ayki", use.mix, v)
    return u.reshape(-1, u.shape[-1]), v.reshape(-1, *v.shape[u.ndim - 1 :])


def _over_rows(
    moved: Callable[..., tuple[jax.Array, States]], theta: jax.Array, state: States, u: jax.Array, v: jax.Array
) -> tuple[jax.Array, States]:
    """What `moved` makes of weights and states ([matrix,] output, input) and G = sum_c u_c v_c^T, of which there are
    never more rows than `BLOCK` allows where it is made of many products."""
    u, v = u.astype(theta.dtype), v.astype(theta.dtype)
    rows = theta.shape[-2]
    count = next(n for n in range(1, rows + 1) if rows % n == 0 and (theta.size <= n * BLOCK or n == rows))
    if len(u) <= UNROLLED or count == 1:
        return moved(theta, state, _sum_of_products(u, v))
    size = rows // count

    def block(i: jax.Array, carried: tuple[jax.Array, States]) -> tuple[jax.Array, States]:
        def taken(a: jax.Array, axis: int = -2) -> jax.Array:
            return lax.dynamic_slice_in_dim(a, i * size, size, axis % a.ndim)

        def put(whole: jax.Array, part: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(whole, part, i * size, whole.ndim - 2)

        theta, state = carried
        found = moved(taken(theta), tuple(map(taken, state)), _sum_of_products(taken(u, -1), v))
        after: tuple[jax.Array, States] = jax.tree.map(put, carried, found)
        return after

    found: tuple[jax.Array, States] = lax.fori_loop(0, count, block, (theta, state))
    return found


def _sum_of_products(u: jax.Array, v: jax.Array) -> jax.Array:
    """([matrix,] output, input): sum_c u_c v_c^T."""
    if len(u) > UNROLLED:
        return jnp.einsum("co,c...i->...oi", u, v, precision=lax.Precision.HIGHEST)
    total: Any = 0.0
    for one, other in zip(u, v, strict=True):
        total = total + one[:, None] * other[..., None, :]
    found: jax.Array = total
    return found
