"""The tangent kernel between the rows of two passes: over all weights, of gradients times what they multiplied.

K = sum over uses of a weight <g g'> <v v'>,      of the readout <phi phi'>
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dmft.engine.form import Form
from dmft.engine.network import Network, Pass, per_neuron, rows_read
from dmft.engine.population import Population
from dmft.engine.tape import Use


def tangent_kernel(network: Network, a: Pass, b: Pass, form: Form, stop: int | None = None) -> jax.Array:
    """K (row, output, row_2, output_2) between the rows of two passes that started from every output, or those before
    `stop`."""
    sketch, total = form.sketch, jnp.zeros(())
    for use in a.uses:
        if use.part.layer in form.frozen:
            continue
        target = network.over(use.part.target)
        for other in b.uses:
            if (use.kind, use.index) == (other.kind, other.index):
                total = total + per_neuron(_tangents(network, target, use, other, stop), sketch.share(use.part.target))
    if sketch.readout_layer not in form.frozen:
        top = network.over(sketch.readout)
        met = (rows_read(v[:stop], sketch.read) for v in (a.top, b.top))
        phi = per_neuron(top.along(*met), sketch.share(sketch.readout))
        rows, columns, places = len(a.top[:stop]), len(b.top[:stop]), sketch.read or 1
        same = jnp.eye(sketch.rows_of_readout(a.output.shape[1]))[:, None, None, :]
        each = phi.reshape(rows, places, 1, columns, places, 1) * same
        total = total + each.reshape(rows, a.output.shape[1], columns, b.output.shape[1])
    return total


def _tangents(network: Network, target: Population, a: Use, b: Use, stop: int | None) -> jax.Array:
    """(row, output, row_2, output_2), of one weight in two uses."""
    assert a.gradient is not None
    assert b.gradient is not None
    g, h = a.gradient[:stop], b.gradient[:stop]
    if a.kind == "vector":
        g, h = (v.sum(axis=2) if v.ndim == 4 else v for v in (g, h))
    G = target.inner(*(v.reshape(-1, v.shape[-1]) for v in (g, h))).reshape(*g.shape[:-1], *h.shape[:-1])
    if a.kind == "vector":
        return G
    v, w = a.met[:stop], b.met[:stop]
    if a.kind == "read":
        phi = jnp.tensordot(v, w, axes=(-1, -1))
    else:
        source = network.populations[network.sketch.ends[a.index][0]]
        phi = source.inner(*(each.reshape(-1, each.shape[-1]) for each in (v, w)))
        phi = phi.reshape(*v.shape[:-1], *w.shape[:-1])
    if v.ndim == 2:
        return G * phi[:, None, :, None]
    if a.mix is None:
        return jnp.einsum("acxbdy,axby->acbd", G, phi)
    return jnp.einsum("acybdz,kyu,kzv,aubv->acbd", G, a.mix, b.mix, phi, optimize=True)
