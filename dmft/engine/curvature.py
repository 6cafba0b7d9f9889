"""Sharpness in the limit (`dmft.specs.curvature` says what it is): Lanczos' iteration on the populations.

A direction in parameter space moves weights that end in a population of N_p neurons by R q, R = (M / N_p)^(1/2): the
rate is that of all weights, and derivatives are cotangents over N_p.  It is kept by vectors over the populations.  All
that the iteration meets has the form

    of W in h_y = sum_k sum_x m[k, y, x] W^k v_x / sqrt(N)
        q^k = sum_use sum_a sum_yx m[k, y, x] (E_ay v_ax^T + g_ay F_ax^T) / sqrt(N)
    of thin matrices, vectors, w: numbers for each neuron

with sums over training samples: v and g are what the uses of W met in a pass, g the cotangent of minus the loss.  (A
matrix without a mix is a bank of one whose positions are samples.)  N is the width of the population of v, and N / r^2
that of h (`dmft.engine.matrix`).  A direction acts on these by

    E^_by' = sum_kx' m[k, y', x'] q^k v_bx' / sqrt(N)  = sum_use sum_ay Phi_{by', ay} E_ay + <v_b F_a>_{by', ay} g_ay
    F^_bx' = r^2 sum_ky' m[k, y', x'] q^kT g_by' / sqrt(N) = sum_use sum_ax G_{bx', ax} F_ax + <g_b E_a>_{bx', ax} v_ax

where averages between what two uses met are mixed, Phi_{by', ay} = sum_k sum_xx' m[k, y', x'] m[k, y, x] <v_bx' v_ax>,
and inner products are averages, q . q' = sum <E E'^> + <F F'^>, and of all other weights <q q'>.  A moves weights by
R q, follows what that does to fields and to cotangents (`dmft.engine.tangent`), and is by the product rule

    of W    E = -R dg     F = -R dv             of a thin matrix    -R sum_a dg_a x_a^T
    of b    -R sum_a dg_a                       of w                -R sum_a d(Delta_a features_a)

with dDelta = -H df, H the curvature of the loss in outputs.

The matrices meet new vectors here, dv and dg of all samples and positions, in each product.  They reveal themselves
further, in a copy that is thrown away: what a matrix shows is Gaussian given all that it has shown before, so that the
copy has the right law, and training, which never sees it, remains what it is.  The copy draws from the raw normals that
training has not used yet, and pseudo-random ones beyond (`dmft.engine.normals`).

Cost: ITERATIONS + 3 forward and backward passes; room for as many times P more directions (times positions and uses) in
every matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from dmft.engine.form import Form, Rule
from dmft.engine.network import Network, Pass, evaluate, most_vectors
from dmft.engine.tangent import Tangents
from dmft.engine.tape import Use
from dmft.specs import curvature, loss
from dmft.specs.parameterization import batch_scale, output_scale


class Direction(NamedTuple):
    """q, or its image; vectors are (vector, component).

    reads: of every thin matrix, (input direction, component), in an orthonormal basis of what it reads of training
    samples; vectors; outputs, inputs: E and F of every use of a matrix, rows and positions in one axis; readout:
    (output, component), outputs and positions in one axis.
    """

    reads: tuple[jax.Array, ...]
    vectors: tuple[jax.Array, ...]
    outputs: tuple[jax.Array, ...]
    inputs: tuple[jax.Array, ...]
    readout: jax.Array


Made = Callable[[Network, Network, Rule, Pass, jax.Array | int, Form], "Curvature"]


def plain(before: Network, network: Network, rule: Rule, seen: Pass, t: jax.Array | int, form: Form) -> Curvature:
    """A of gradient descent."""
    del before
    return Curvature(network, rule, seen, t, form)


def eigenvalues(network: Network, rule: Rule, t: int, *, form: Form, made: Made = plain) -> NDArray[np.float64]:
    """(iteration,), ascending, of the state before step `t`, all of whose training samples come first in the rows; nan
    if that is not finite.  `made` says in which metric, of the state as it is, and after a pass."""
    square, alpha, beta = (
        np.asarray(a, np.float64)
        for a in _iterations(network, rule, t, form=form, iterations=curvature.ITERATIONS, made=made)
    )
    if not 0 < float(square) < np.inf:
        return np.full(len(alpha), np.nan)
    return curvature.eigenvalues(alpha, beta)[0]


@partial(jax.jit, static_argnames=("form", "iterations", "made"))
def _iterations(
    before: Network, rule: Rule, t: jax.Array | int, *, form: Form, iterations: int, made: Made
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The square of the start; alpha and beta (iteration,)."""
    network, seen, _ = evaluate(extended(before, form), rule, t, form)
    A = made(before, network, rule, seen, t, form)
    q, image, square = curvature.begun(jnp, A)
    met = jax.tree.map(lambda a: jnp.zeros((iterations, *a.shape)), q)

    def iterated(carried: tuple[Any, ...], j: jax.Array) -> tuple[tuple[Any, ...], tuple[jax.Array, jax.Array]]:
        A.tape.matrices, A.tape.populations, A.met, q, image = carried
        q, image, alpha, beta = curvature.iterated(jnp, A, q, image, j)
        return (A.tape.matrices, A.tape.populations, A.met, q, image), (alpha, beta)

    begin = (A.tape.matrices, A.tape.populations, met, q, image)
    _, (alpha, beta) = lax.scan(iterated, begin, jnp.arange(iterations))
    return square, alpha, beta


# ---- room ------------------------------------------------------------------------------------------------------------


def room_needed(form: Form, rows: int, outputs: int) -> int:
    """Directions that either side of a matrix may meet: in a pass from every output, in two more backward passes, of g
    and of the start, and in the products."""
    samples = form.trained
    once = most_vectors(form, rows, rows * outputs) + (curvature.ITERATIONS + 2) * most_vectors(form, samples, samples)
    return form.sketch.uses * once


def draws_needed(form: Form, room: int) -> int:
    """Raw normals that matrices with so much more room ask of a population, the most."""
    sketch = form.sketch
    ends = [end for part, pair in zip(sketch.matrices, sketch.ends, strict=True) for end in pair * max(part.bank, 1)]
    return room * max((ends.count(place) for place in ends), default=0)


def bytes_needed(rule: Rule, form: Form, capacity: int, size: int, itemsize: int) -> int:
    """Of the copy of the state, for vectors of `size` components, and of the directions of the iteration."""
    samples, outputs, sketch = form.trained, rule.targets.shape[1], form.sketch
    room = room_needed(form, rule.rows.shape[1], outputs)
    if sketch.linear:
        size += draws_needed(form, room)
    directions = capacity + room
    # met and images of either side, as they were and as they become
    matrices = sum(
        2 * (1 + max(part.bank, 1)) * directions * size + max(part.bank, 1) * directions**2 for part in sketch.matrices
    )
    factors = sum(max(after, 1) + max(before, 1) for after, before in (part.positions for part in sketch.matrices))
    read = sum(min(samples * max(part.positions[0], 1), rule.inputs.shape[-1]) for part in sketch.reads)
    direction = samples * sketch.uses * factors + read + len(sketch.vectors)
    direction += outputs * math.prod(sketch.flattened)
    fields = samples * sum(max(positions, 1) for _, positions in sketch.layers)
    kernels = sum(
        (samples * sketch.uses) ** 2 * (max(after, 1) ** 2 + max(before, 1) ** 2)
        for after, before in (part.positions for part in sketch.matrices)
    )
    vectors = (curvature.ITERATIONS + 5) * direction + 8 * fields
    return (matrices + vectors * size + kernels) * itemsize


def extended(network: Network, form: Form) -> Network:
    """A copy whose matrices and populations have room for the vectors of the iteration."""
    room = room_needed(form, *network.offset.shape)
    draws = draws_needed(form, room)

    def widened(parts: Any, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(network.over(p.target).widened(a, draws) for p, a in zip(parts, values, strict=True))

    return replace(
        network.with_room(room, draws),
        reads=widened(form.sketch.reads, network.reads),
        vectors=widened(form.sketch.vectors, network.vectors),
        readout=network.over(form.sketch.readout).widened(network.readout, draws),
        populations=tuple(p.with_more(draws) for p in network.populations),
        slots=(),
    )


# ---- A ---------------------------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    """Of two uses of one matrix: the place of the other one among uses of matrices; Phi and G between them."""

    other: int
    features: jax.Array
    gradients: jax.Array


class Curvature:
    """A of the pass `seen` (`dmft.specs.curvature.Operator`).

    It lives while one trace does, as the tape whose matrices reveal themselves in `product`.  met: q_1 .. q_j, and
    zeros beyond.
    """

    met: Direction

    def __init__(self, network: Network, rule: Rule, seen: Pass, t: jax.Array | int, form: Form) -> None:
        n, sketch = form.trained, form.sketch
        self.tape, self._end, self._readout = seen.tape, seen.end, network.readout
        self._features = seen.top[:n]
        output, target = seen.output[:n], rule.targets[rule.rows[t][:n]]
        scale = output_scale(rule.gamma0)
        self._delta = scale / n * loss.descent(jnp, form.loss, output, target)
        self._bend = -(scale**2) / n * loss.curvature(jnp, form.loss, output, target)
        updates = [batch_scale(rule.gamma0, n) * (i not in form.frozen) for i in range(sketch.readout_layer + 1)]
        self._sketch, self._layer_roots = sketch, curvature.roots(updates, scale, n)
        self._readout_root = self._root(sketch.readout_layer, sketch.readout)

        self._backward(self._delta)
        self._tangents = Tangents(self.tape, self._end)
        self._uses = self._tangents.uses
        self._x = _in_their_span([use.met[:n] for use in self._uses if use.kind == "read"])
        self._matrices = [use for use in self._uses if use.kind == "matrix"]
        self._v = [use.met[:n] for use in self._matrices]
        self._g = [_cotangent(use) for use in self._matrices]
        self._ends = [tuple(network.populations[i] for i in sketch.ends[use.index]) for use in self._matrices]
        self._pairs = [self._paired(i) for i in range(len(self._matrices))]
        self._top = network.over(sketch.readout)
        sources, targets = zip(*self._ends, strict=True) if self._ends else ((), ())
        thin = [network.over(part.target) for part in (*sketch.reads, *sketch.vectors)]
        self._populations = (*thin, *targets, *sources, self._top)

    def _root(self, layer: int, target: Hashable) -> Any:
        """R of a layer's weights that end in this population."""
        return self._layer_roots[layer] / self._sketch.share(target) ** 0.5

    def _backward(self, coefficients: jax.Array) -> None:
        """From sum_c coefficients_c w_c, for coefficients (sample, output)."""
        self.tape.backward(self._end, jnp.tensordot(coefficients, self._readout, 1)[:, None])

    def _paired(self, i: int) -> list[_Pair]:
        found, (source, target) = [], self._ends[i]
        for j, use in enumerate(self._matrices):
            if use.index == self._matrices[i].index:
                features = source.inner(flat(self._v[i]), flat(self._v[j]))
                gradients = target.inner(flat(self._g[i]), flat(self._g[j]))
                found.append(_Pair(j, self._mixed(features, i, j), self._mixed(gradients, i, j, transposed=True)))
        return found

    def _mixed(self, averages: jax.Array, i: int, j: int, *, transposed: bool = False) -> jax.Array:
        """(row and position, row and position) of two uses, from averages between what their matrix, or its transpose,
        was given."""
        a, b = self._matrices[i].mix, self._matrices[j].mix
        if a is None or b is None:
            return averages
        if transposed:
            a, b = a.swapaxes(1, 2), b.swapaxes(1, 2)
        by_position = averages.reshape(-1, a.shape[2], len(averages) // b.shape[2], b.shape[2])
        mixed = jnp.einsum("kyx,axbz,kwz->aybw", a, by_position, b, optimize=True)
        return mixed.reshape(mixed.shape[0] * mixed.shape[1], -1)

    def start(self) -> Direction:
        """R J^T a, up to a factor."""
        a = jnp.asarray(curvature.start_coefficients(*self._delta.shape), self._delta.dtype)
        self._backward(a)
        nothing = [jnp.zeros_like(v) for v in self._v]
        return self._direction([_cotangent(use) for use in self._uses], nothing, jnp.tensordot(a.T, self._features, 1))

    def image(self, q: Direction) -> Direction:
        """What the inner product with q is a sum over; what q does to what matrices met."""
        forward, backward = [], []
        for i, (pairs, (source, target)) in enumerate(zip(self._pairs, self._ends, strict=True)):
            E, F = jnp.zeros(()), jnp.zeros(())
            for j, Phi, G in pairs:
                on_inputs = self._mixed(source.inner(flat(self._v[i]), q.inputs[j]), i, j)
                on_outputs = self._mixed(target.inner(flat(self._g[i]), q.outputs[j]), i, j, transposed=True)
                E = E + Phi @ q.outputs[j] + on_inputs @ flat(self._g[j])
                F = F + G @ q.inputs[j] + on_outputs @ flat(self._v[j])
            forward.append(E)
            backward.append(F)
        return q._replace(outputs=tuple(forward), inputs=tuple(backward))

    def product(self, image: Direction) -> Direction:
        """A q, from the image of q."""
        moved: list[jax.Array] = []
        back: list[jax.Array] = []
        reads = iter(self._x)
        for use in self._uses:
            root, i = self._root(use.part.layer, use.part.target), use.index
            if use.kind == "read":
                moved.append(root * (next(reads) @ image.reads[i]))
            elif use.kind == "vector":
                moved.append(root * image.vectors[i][0])
            else:
                j = len(back)
                moved.append(root * image.outputs[j].reshape(self._g[j].shape))
                back.append(root * image.inputs[j].reshape(self._v[j].shape))
        end, dv = self._tangents.forward(moved)
        readout = self._readout_root * image.readout.reshape(self._readout.shape)
        df = self._top.along(self._features, readout) + self._top.along(end, self._readout)
        ddelta = jnp.einsum("acd,ad->ac", self._bend, df)
        start = jnp.tensordot(ddelta, self._readout, 1) + jnp.tensordot(self._delta, readout, 1)
        dg = self._tangents.backward(start, back)
        moved_readout = jnp.tensordot(ddelta.T, self._features, 1) + jnp.tensordot(self._delta.T, end, 1)
        found = self._direction(dg, dv, moved_readout)
        return jax.tree.map(jnp.negative, found)  # type: ignore[no-any-return]

    def _direction(self, outputs: list[jax.Array], inputs: list[jax.Array], readout: jax.Array) -> Direction:
        """R times the sum of what every use gives: `outputs` of all in the place of g, `inputs` of matrices in
        that of v."""
        found: dict[tuple[str, int], jax.Array] = {}
        E: list[jax.Array] = []
        reads = iter(self._x)
        for use, g in zip(self._uses, outputs, strict=True):
            key, g = (use.kind, use.index), self._root(use.part.layer, use.part.target) * flat(g)
            if use.kind == "matrix":
                E.append(g)
                continue
            part = flat(next(reads)).T @ g if use.kind == "read" else g.sum(axis=0, keepdims=True)
            found[key] = found[key] + part if key in found else part
        F = [
            self._root(use.part.layer, use.part.target) * flat(v) for use, v in zip(self._matrices, inputs, strict=True)
        ]
        r, v = (tuple(found[key] for key in sorted(found) if key[0] == kind) for kind in ("read", "vector"))
        return Direction(r, v, tuple(E), tuple(F), self._readout_root * flat(readout))

    def kept(self, q: Direction, j: Any) -> Direction:
        """q_1 .. q_j on an axis before the others, and zeros beyond."""
        self.met = jax.tree.map(lambda room, a: room.at[j].set(a), self.met, q)
        return self.met

    def overlap(self, q: Direction, image: Direction) -> jax.Array:
        """(...,), for q with further axes."""
        parts = zip(self._populations, jax.tree.leaves(q), jax.tree.leaves(image), strict=True)
        return sum((p.overlap(a, b) for p, a, b in parts), jnp.zeros(()))

    def less(self, q: Direction, met: Direction, coefficients: jax.Array) -> Direction:
        """q - sum_i coefficients_i met_i."""
        return jax.tree.map(lambda a, each: a - jnp.tensordot(coefficients, each, axes=1), q, met)  # type: ignore[no-any-return]

    def times(self, q: Direction, factor: jax.Array) -> Direction:
        """Of a direction, or of an image."""
        return jax.tree.map(lambda a: factor * a, q)  # type: ignore[no-any-return]


def flat(a: jax.Array) -> jax.Array:
    """(vector, component)."""
    return a.reshape(-1, a.shape[-1])


def _cotangent(use: Use) -> jax.Array:
    """Of a pass with one event, (row, [position,] component)."""
    assert use.gradient is not None
    return use.gradient[:, 0]


def _in_their_span(inputs: list[jax.Array]) -> list[jax.Array]:
    """The same vectors (..., input direction), in an orthonormal basis of their span if that has fewer directions."""
    joined = jnp.concatenate([flat(x) for x in inputs])
    if len(joined) < joined.shape[1]:
        joined = jnp.linalg.qr(joined.T, mode="r").T
    ends = np.cumsum([x[..., 0].size for x in inputs])[:-1]
    parts = jnp.split(joined, ends)
    return [part.reshape(*x.shape[:-1], -1) for part, x in zip(parts, inputs, strict=True)]
