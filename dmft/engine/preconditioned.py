"""The metric in which an adaptive optimiser descends: its tangent kernel, and the curvature of the loss.

    theta <- theta - eta M dloss/dtheta      M = gamma0^2 N P_ij      P_ij = 1 / (sqrt(v) + eps), the preconditioner

of the step that follows, but for the momentum (`dmft.specs.training.entrywise`).  P is an array of entries, like E:

    K_ab = sum over weights of <J^a_ij P_ij J^b_ij>      J^a_ij = sum_uses sum_y g_ayi v_ayj, a = (row, output)

(`dmft.engine.ntk` has the sums without P).  A of `dmft.specs.curvature`, with P^(1/2) beside the roots of layers, has
directions out of the span of what matrices met: arrays of entries, too,

    q_ij = P_ij^(1/2) sum_a (E_ai v_aj + g_ai F_aj)
    E^_ai = <P_ij^(1/2) q_ij v_aj>_j      F^_aj = <P_ij^(1/2) q_ij g_ai>_i

with inner products <q_ij q'_ij>; what they do to fields is as in `dmft.engine.curvature`.  Inputs are in their real
coordinates.  Memory: an array of entries for each vector of the iteration.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dmft.engine import entrywise
from dmft.engine.curvature import Curvature, Direction, flat
from dmft.engine.form import Form, Rule
from dmft.engine.matrix import Entries
from dmft.engine.network import Network, Parameters, Pass, over_blocks, per_neuron, rows_read, trained_blocks
from dmft.engine.population import Population
from dmft.engine.tape import Use
from dmft.specs.curvature import ITERATIONS


def preconditioners(network: Network, t: jax.Array | int, form: Form) -> Parameters:
    """P, of the state after step t."""

    def of(*state: Any) -> jax.Array:
        arrays = tuple(each.entries if isinstance(each, Entries) else each for each in state)
        found: jax.Array = form.rule.preconditioner(jnp, t * 1.0, arrays)
        return found.astype(float)

    reads, matrices, vectors = (
        tuple(of(*each) for each in zip(*parts, strict=True))
        for parts in zip(*((slot.reads, slot.matrices, slot.vectors) for slot in network.slots), strict=True)
    )
    return Parameters(reads, matrices, vectors, of(*(slot.readout for slot in network.slots)))


# ---- the tangent kernel ----------------------------------------------------------------------------------------------


def tangent_kernel(network: Network, seen: Pass, P: Parameters, form: Form) -> jax.Array:
    """K (row, output, row_2, output_2) of a pass that started from every output."""
    sketch, total = form.sketch, jnp.zeros(())
    together: dict[tuple[str, int], list[Use]] = {}
    for use in seen.uses:
        together.setdefault((use.kind, use.index), []).append(use)
    for (kind, index), uses in together.items():
        part = uses[0].part
        given = {"read": P.reads, "matrix": P.matrices, "vector": P.vectors}[kind][index]
        source = network.populations[sketch.ends[index][0]] if kind == "matrix" else None
        alone = partial(_tangents, network.over(part.target), source, uses)
        met = [use.met for use in uses], [use.gradient for use in uses]
        blocks = over_blocks(part, alone, given, *met)
        found = jnp.tensordot(jnp.asarray(trained_blocks(part, form)), blocks if part.layers else blocks[None], 1)
        total = total + per_neuron(found, sketch.share(part.target))
    if sketch.readout_layer in form.frozen:
        return total
    top, places = network.over(sketch.readout), sketch.read or 1
    v = rows_read(seen.top, sketch.read)
    weighted = v[None] * (P.readout * top.weights).reshape(len(P.readout), *v.shape[1:])[:, None]
    phi = per_neuron(jnp.einsum("ca...,b...->cab", weighted, v), sketch.share(sketch.readout))
    rows, outputs = len(seen.top), seen.output.shape[1]
    # (output of a position, row, position, row_2, position_2)
    each = jnp.einsum("caxbz,cd->axcbzd", phi.reshape(len(phi), rows, places, rows, places), jnp.eye(len(phi)))
    return total + each.reshape(rows, outputs, rows, outputs)


def _tangents(
    target: Population, source: Population | None, uses: list[Use], P: jax.Array, met: Any, gradients: Any
) -> jax.Array:
    """(row, output, row_2, output_2), of all uses of one weight."""
    pairs = [_products(use, v, g) for use, v, g in zip(uses, met, gradients, strict=True)]
    u, v = (jnp.concatenate(each, axis=axis) for each, axis in zip(zip(*pairs, strict=True), (2, 1), strict=True))
    if uses[0].kind != "matrix":
        P = P.T if uses[0].kind == "read" else P[:, None]
    P = P.reshape(-1, *P.shape[-2:])  # (matrix, output, input)
    weights = 1.0 if source is None else source.weights
    rows, starts = u.shape[:2]

    def row(event: jax.Array) -> jax.Array:
        a, c = event // starts, event % starts
        J = jnp.einsum("yo,yki->koi", target.weights * u[a, c], weights * v[a])
        return jnp.einsum("bdyo,byo->bd", u, jnp.einsum("koi,byki->byo", P * J, v))

    found: jax.Array = lax.map(row, jnp.arange(rows * starts))
    return found.reshape(rows, starts, rows, starts)


def _products(use: Use, v: Any, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u (row, start, product, output) and v (row, product, matrix, input) of one use."""
    u = u.reshape(*u.shape[:2], -1, u.shape[-1])
    if use.kind == "vector":
        return u, jnp.ones((len(u), u.shape[2], 1, 1))
    if use.mix is not None:
        return u, jnp.einsum("kyx,axi->ayki", use.mix, v)
    return u, v.reshape(len(v), -1, 1, v.shape[-1])


# ---- the curvature ---------------------------------------------------------------------------------------------------


def of_descent(
    before: Network, network: Network, rule: Rule, seen: Pass, t: jax.Array | int, form: Form
) -> PreconditionedCurvature:
    """A in the metric of step t (`dmft.engine.curvature.Made`)."""
    after, _ = entrywise.descend(before, rule, t, form)
    return PreconditionedCurvature(network, rule, seen, t, form, preconditioners(after, t, form))


def bytes_needed(form: Form, size: int, itemsize: int) -> int:
    """Of directions, besides those of `dmft.engine.curvature`, for vectors of `size` components."""
    arrays = sum(max(part.bank, 1) for part in form.sketch.matrices)
    return (ITERATIONS + 8) * arrays * size**2 * itemsize


class Image(NamedTuple):
    """Of a direction: itself, for inner products; what it does to fields."""

    itself: Direction
    fields: Direction


class PreconditionedCurvature(Curvature):
    """A with P; directions hold an array of entries (matrix, output, input) of every matrix in `outputs`."""

    def __init__(self, network: Network, rule: Rule, seen: Pass, t: jax.Array | int, form: Form, P: Parameters) -> None:
        super().__init__(network, rule, seen, t, form)
        n, sketch = form.trained, form.sketch
        self._x = [use.met[:n] for use in self._uses if use.kind == "read"]
        matrices = tuple(each.reshape(-1, *each.shape[-2:]) for each in P.matrices)
        readout = flat(P.readout)
        self._P = jax.tree.map(jnp.sqrt, Direction(P.reads, tuple(b[None] for b in P.vectors), matrices, (), readout))
        self._sides = [tuple(network.populations[i].weights for i in ends) for ends in sketch.ends]
        self._thin = [network.over(part.target) for part in (*sketch.reads, *sketch.vectors)]

    def image(self, q: Direction) -> Image:  # type: ignore[override]
        moved = jax.tree.map(jnp.multiply, self._P, q)
        forward, backward = [], []
        for use, v, g in zip(self._matrices, self._v, self._g, strict=True):
            (inputs, outputs), array = self._sides[use.index], moved.outputs[use.index]
            E = jnp.einsum("koi,ayki->ayo", array, self._mixed_inputs(use, v) * inputs)
            F = jnp.einsum("koi,ayo->ayki", array, g.reshape(len(g), -1, g.shape[-1]) * outputs)
            mix = jnp.eye(F.shape[1])[None] if use.mix is None else use.mix
            forward.append(flat(E))
            backward.append(flat(jnp.einsum("kyx,ayki->axi", mix, F)))
        return Image(q, moved._replace(outputs=tuple(forward), inputs=tuple(backward)))

    def product(self, image: Image) -> Direction:  # type: ignore[override]
        return super().product(image.fields)

    def overlap(self, q: Direction, image: Image) -> jax.Array:  # type: ignore[override]
        to, total = image.itself, jnp.zeros(())
        for population, a, b in zip(self._thin, [*q.reads, *q.vectors], [*to.reads, *to.vectors], strict=True):
            total = total + population.overlap(a, b)
        for (inputs, outputs), a, b in zip(self._sides, q.outputs, to.outputs, strict=True):
            total = total + jnp.einsum("...koi,koi->...", a, b * inputs * jnp.reshape(outputs, (-1, 1)))
        return total + self._top.overlap(q.readout, to.readout)

    def _direction(self, outputs: list[jax.Array], inputs: list[jax.Array], readout: jax.Array) -> Direction:
        found = super()._direction(outputs, [jnp.zeros_like(v) for v in inputs], readout)
        arrays = [jnp.zeros_like(P) for P in self._P.outputs]
        du = [each for use, each in zip(self._uses, outputs, strict=True) if use.kind == "matrix"]
        for use, v, g, dv, dg in zip(self._matrices, self._v, self._g, inputs, du, strict=True):
            root = self._root(use.part.layer, use.part.target)
            for one, other in ((dg, v), (g, dv)):
                u = one.reshape(len(one), -1, one.shape[-1])
                added = root * jnp.einsum("ayo,ayki->koi", u, self._mixed_inputs(use, other))
                arrays[use.index] = arrays[use.index] + added
        found = found._replace(outputs=tuple(arrays), inputs=())
        return jax.tree.map(jnp.multiply, self._P, found)  # type: ignore[no-any-return]

    @staticmethod
    def _mixed_inputs(use: Use, v: jax.Array) -> jax.Array:
        """(row, product, matrix, input)."""
        if use.mix is None:
            return v.reshape(len(v), -1, 1, v.shape[-1])
        return jnp.einsum("kyx,axi->ayki", use.mix, v)
