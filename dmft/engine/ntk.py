"""The tangent kernel between the rows of two passes: over all weights, of gradients times what they multiplied.

K = sum over uses of a weight <g g'> <v v'>,      of the readout <phi phi'>
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dmft.engine.form import Form
from dmft.engine.network import Network, Pass, per_neuron, rows_read, trained_blocks
from dmft.engine.tape import Use


def tangent_kernel(network: Network, a: Pass, b: Pass, form: Form, stop: int | None = None) -> jax.Array:
    """K (row, output, row_2, output_2) between the rows of two passes that started from every output, or those before
    `stop`."""
    sketch, total = form.sketch, jnp.zeros(())
    for use in a.uses:
        trained = trained_blocks(use.part, form)
        if not any(trained):
            continue
        for other in b.uses:
            if (use.kind, use.index) == (other.kind, other.index):
                alone = partial(_tangents, network, use, other, stop)
                given = use.gradient, use.met, other.gradient, other.met
                blocks = jax.vmap(alone)(*given) if use.part.layers else alone(*given)[None]
                part = jnp.tensordot(jnp.asarray(trained), blocks, 1)
                total = total + per_neuron(part, sketch.share(use.part.target))
    if sketch.readout_layer not in form.frozen:
        top = network.over(sketch.readout)
        met = (rows_read(v[:stop], sketch.read) for v in (a.top, b.top))
        phi = per_neuron(top.along(*met), sketch.share(sketch.readout))
        rows, columns, places = len(a.top[:stop]), len(b.top[:stop]), sketch.read or 1
        same = jnp.eye(sketch.rows_of_readout(a.output.shape[1]))[:, None, None, :]
        each = phi.reshape(rows, places, 1, columns, places, 1) * same
        total = total + each.reshape(rows, a.output.shape[1], columns, b.output.shape[1])
    return total


def _tangents(network: Network, a: Use, b: Use, stop: int | None, g: Any, v: Any, h: Any, w: Any) -> jax.Array:
    """(row, output, row_2, output_2), of one weight in two uses: of its cotangents g and h, and of v and w, which it
    met."""
    target = network.over(a.part.target)
    g, h = g[:stop], h[:stop]
    if a.kind == "vector":
        g, h = (each.sum(axis=2) if each.ndim == 4 else each for each in (g, h))
    G = target.inner(*(each.reshape(-1, each.shape[-1]) for each in (g, h))).reshape(*g.shape[:-1], *h.shape[:-1])
    if a.kind == "vector":
        return G
    v, w = v[:stop], w[:stop]
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
