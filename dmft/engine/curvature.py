"""Sharpness in the limit (`dmft.specs.curvature` says what it is): Lanczos' iteration on the populations.

A direction q in parameter space, in units of M^(1/2), is kept by vectors over the populations.  All that the iteration
meets has the form

    W^0: E^0 x^T / sqrt(D)      W^l: b (E^l phi^T + g F^T) / sqrt(N)      b^l: b sigma E^l 1      w: q^w

with sums over training samples; phi(h^l), g^{l+1} are the fields of a pass, g those that start from the loss, z^L =
sum_c Delta_c w_c.  It moves layer l by s_l q, s_l^2 = gamma0 / P where the layer is trained, else 0.  With the kernels
Phi and G of these fields a direction acts on them by

    (E^0)^ = K^x E^0            (E^l)^ = b^2 ((Phi^l + sigma^2) E^l + <phi F^l> g)       its forward image of phi(h^l)
    (q^w)^ = q^w                (F^l)^ = b^2 (<g E^l> phi + G^{l+1} F^l)                 its backward image of g^{l+1}

and inner products over N are averages, q . q' = sum_a <E_a (E'_a)^> + <F_a (F'_a)^> + <q^w q'^w>.  A q by the tangents
of a pass, phi' and phi'' at h, H the curvature of the loss in outputs:

    forward    dh^1 = s_0 (E^0)^             dh^{l+1} = [dh^l +] s_l (E^l)^ + b W^l (phi' dh^l) / sqrt(N)
               df = (<s_L q^w phi(h^L)> + <w phi' dh^L>) / gamma0
               dDelta = -H df
    backward   dz^L = w dDelta + s_L q^w Delta       dg^L = phi' dz^L + phi'' z^L dh^L
               dz^l = s_l (F^l)^ + b W^l^T dg^{l+1} / sqrt(N)       dg^l = [dg^{l+1} +] phi' dz^l + phi'' z^l dh^l
    A q        E^l = -s_l dg^{l+1}      F^l = -s_l phi' dh^l      q^w = -s_L (dDelta phi(h^L) + Delta phi' dh^L)

(z^l with its factor b; in brackets what a residual network adds.)  These are the formulas of
`finite_nets.training.curvature`.

The matrices meet new vectors here, phi' dh and dg, P in each product.  They reveal themselves further, in a copy that
is thrown away: what a matrix shows is Gaussian given all that it has shown before, so that the copy has the right law,
and training, which never sees it, remains what it is.  The copy draws from the raw normals that training has not used
yet, and pseudo-random ones beyond (`dmft.engine.normals`).

Cost: ITERATIONS + 3 forward and backward passes; room for as many times P more directions in every matrix.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from dmft.engine.activations import bend, functions
from dmft.engine.network import Form, Network, Rule, evaluate, layers
from dmft.specs import loss
from dmft.specs.curvature import ITERATIONS, start_coefficients
from dmft.specs.parameterization import batch_scale, output_scale


class Direction(NamedTuple):
    """q, or its image: E^0 (sample, component); E^l and F^l of the hidden matrices; q^w (output, component)."""

    first: jax.Array
    outputs: tuple[jax.Array, ...]
    inputs: tuple[jax.Array, ...]
    readout: jax.Array


class _Fields(NamedTuple):
    """Of a pass over the training samples, tuples over layers of (sample, component): phi, phi', phi'' z, g; Delta
    (sample, output), H (sample, output, output_2); kernels K^x, b^2 (Phi^l + sigma^2), b^2 G^{l+1} of every matrix; s
    (layer,)."""

    features: tuple[jax.Array, ...]
    slopes: tuple[jax.Array, ...]
    bends: tuple[jax.Array, ...]
    gradients: tuple[jax.Array, ...]
    delta: jax.Array
    hessian: jax.Array
    inputs: jax.Array
    feature_kernels: tuple[jax.Array, ...]
    gradient_kernels: tuple[jax.Array, ...]
    steps: tuple[jax.Array, ...]


def sharpness(network: Network, rule: Rule, t: int, *, form: Form) -> float:
    """Of the state before step `t`, all of whose training samples come first in the rows; nan if that is not finite."""
    network, fields, q, image, square = _begun(network, rule, t, form=form)
    if not 0 < float(square) < np.inf:
        return float("nan")
    met = jax.tree.map(lambda a: jnp.zeros((ITERATIONS, *a.shape)), q)
    found = []
    for j in range(ITERATIONS):
        network, met, q, image, *coefficients = _iterated(network, rule, fields, met, q, image, j, form=form)
        found.append(coefficients)
    alpha, beta = np.array(found, np.float64).T
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        return float("nan")
    return float(eigvalsh_tridiagonal(alpha, beta[:-1])[-1])


@partial(jax.jit, static_argnames=("form",))
def _begun(
    network: Network, rule: Rule, t: jax.Array | int, *, form: Form
) -> tuple[Network, _Fields, Direction, Direction, jax.Array]:
    """A copy of the state before step `t`, its fields, the start q_1, its image, and the square that it had."""
    network = extended(network, form.trained, form)
    network, seen, _ = evaluate(network, rule, t, form)
    network, fields, start = _fields(network, rule, seen, t, form)
    image = _image(start, fields, network, rule, form)
    square = _dot(start, image, network)
    q, image, _ = _normalised(start, image, square, network)
    return network, fields, q, image, square


@partial(jax.jit, static_argnames=("form",), donate_argnames=("network", "met"))
def _iterated(
    network: Network,
    rule: Rule,
    fields: _Fields,
    met: Direction,
    q: Direction,
    image: Direction,
    j: jax.Array | int,
    *,
    form: Form,
) -> tuple[Network, Direction, Direction, Direction, jax.Array, jax.Array]:
    """Step j of the iteration: the state, q_1 .. q_j (leading axis), q_{j+1} and its image, alpha_j and beta_j."""
    met = jax.tree.map(lambda room, a: room.at[j].set(a), met, q)
    network, u = _product(network, rule, fields, image, form)
    image = _image(u, fields, network, rule, form)
    before, alpha = _dot(u, image, network), jnp.zeros(())
    for _ in range(2):
        on_met = _dot(met, image, network)
        u = jax.tree.map(partial(_without, on_met), u, met)
        image = _image(u, fields, network, rule, form)
        alpha = alpha + on_met[j]
    q, image, length = _normalised(u, image, before, network)
    return network, met, q, image, alpha, length


def room_needed(rows: int, outputs: int, samples: int) -> int:
    """Directions that either side of a matrix may meet: in a pass from every output, in two more backward passes, of g
    and of the start, and in the products."""
    return rows * outputs + (ITERATIONS + 2) * samples


def bytes_needed(rule: Rule, form: Form, depth: int, capacity: int, size: int, itemsize: int) -> int:
    """Of the copy of the state, for vectors of `size` components, and of the directions of the iteration."""
    samples, outputs = form.trained, rule.targets.shape[1]
    room = room_needed(rule.rows.shape[1], outputs, samples)
    if form.sketch.linear:
        size += 2 * room * (depth - 1 if form.network.residual else 1)
    directions = capacity + room
    matrices = (depth - 1) * (4 * directions * size + directions**2)
    vectors = (ITERATIONS + 5) * (samples * (2 * depth - 1) + outputs) + 8 * depth * samples
    return (matrices + vectors * size) * itemsize


def extended(network: Network, samples: int, form: Form) -> Network:
    """A copy whose matrices and populations have room for the vectors of the iteration."""
    rows, outputs = network.offset.shape
    room = room_needed(rows, outputs, samples)
    draws = 2 * room * (len(network.matrices) if form.network.residual else 1)
    per_layer = layers(network)
    return replace(
        network.with_room(room, draws),
        reads=tuple(per_layer[0].widened(w, draws) for w in network.reads),
        readout=per_layer[-1].widened(network.readout, draws),
        vectors=tuple(p.widened(b, draws) for p, b in zip(per_layer[1:], network.vectors, strict=False)),
        populations=tuple(p.with_more(draws) for p in network.populations),
        slots=(),
    )


def _fields(
    network: Network, rule: Rule, seen: Any, t: jax.Array | int, form: Form
) -> tuple[Network, _Fields, Direction]:
    """The state with what its matrices have shown, the fields of the pass `seen`, and the start."""
    n = form.trained
    _, dphi = functions(form.network.activation)
    h, features = (tuple(v[:n] for v in each) for each in (seen.h, seen.features))
    slopes = tuple(dphi(each) for each in h)
    output, target = seen.output[:n], rule.targets[rule.rows[t][:n]]
    delta = loss.descent(jnp, form.loss, output, target)
    network, z, g = _backward(network, rule, slopes, delta @ network.readout, form)
    a = jnp.asarray(start_coefficients(*delta.shape), delta.dtype)
    network, _, start_g = _backward(network, rule, slopes, a @ network.readout, form)

    branch, per_layer, depth = _branch(rule, form), layers(network), len(h)
    x, sigma = seen.uses[0].met[:n], rule.numbers.get("bias", jnp.zeros(()))
    update = batch_scale(rule.gamma0, n)
    steps = tuple(jnp.sqrt(update) * (layer not in form.frozen) for layer in range(depth + 1))
    fields = _Fields(
        features=features,
        slopes=slopes,
        bends=tuple(bend(form.network.activation, v) * each for v, each in zip(h, z, strict=True)),
        gradients=g,
        delta=delta,
        hessian=loss.curvature(jnp, form.loss, output, target),
        inputs=x @ x.T,
        feature_kernels=tuple(
            branch**2 * (p.inner(phi, phi) + sigma**2) for p, phi in zip(per_layer[:-1], features[:-1], strict=True)
        ),
        gradient_kernels=tuple(branch**2 * p.inner(v, v) for p, v in zip(per_layer[1:], g[1:], strict=True)),
        steps=steps,
    )
    start = Direction(
        first=steps[0] * start_g[0],
        outputs=tuple(s * v for s, v in zip(steps[1:-1], start_g[1:], strict=True)),
        inputs=tuple(jnp.zeros_like(v) for v in features[:-1]),
        readout=steps[-1] * (a.T @ features[-1]),
    )
    return network, fields, start


def _branch(rule: Rule, form: Form) -> jax.Array | float:
    """b."""
    return rule.numbers["branch_scale"] if form.network.residual else 1.0


def _backward(
    network: Network, rule: Rule, slopes: tuple[jax.Array, ...], start: jax.Array, form: Form
) -> tuple[Network, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """z and g of every layer (sample, component), from z^L."""
    z, g = [start], [slopes[-1] * start]
    for i in reversed(range(len(network.matrices))):
        network, image = _pulled(network, i, g[0], form)
        z.insert(0, _branch(rule, form) * image)
        below = slopes[i] * z[0]
        g.insert(0, g[0] + below if form.network.residual else below)
    return network, tuple(z), tuple(g)


def _pushed(network: Network, i: int, v: jax.Array, form: Form) -> tuple[Network, jax.Array]:
    """W^{i+1} v / sqrt(N)."""
    below, above = form.sketch.ends[i]
    populations, matrices = list(network.populations), list(network.matrices)
    matrices[i], populations[above], image, _ = matrices[i].apply(v, populations[below], populations[above])
    return replace(network, matrices=tuple(matrices), populations=tuple(populations)), image


def _pulled(network: Network, i: int, u: jax.Array, form: Form) -> tuple[Network, jax.Array]:
    """W^{i+1}^T u / sqrt(N)."""
    below, above = form.sketch.ends[i]
    populations, matrices = list(network.populations), list(network.matrices)
    matrices[i], populations[below], image, _ = matrices[i].apply_t(u, populations[above], populations[below])
    return replace(network, matrices=tuple(matrices), populations=tuple(populations)), image


def _image(q: Direction, fields: _Fields, network: Network, rule: Rule, form: Form) -> Direction:
    """What the inner product with q is a sum over; what q does to fields."""
    per_layer, branch = layers(network), _branch(rule, form)
    forward, backward = [], []
    for i, (E, F) in enumerate(zip(q.outputs, q.inputs, strict=True)):
        phi, g = fields.features[i], fields.gradients[i + 1]
        forward.append(fields.feature_kernels[i] @ E + branch**2 * per_layer[i].inner(phi, F) @ g)
        backward.append(fields.gradient_kernels[i] @ F + branch**2 * per_layer[i + 1].inner(g, E) @ phi)
    return Direction(fields.inputs @ q.first, tuple(forward), tuple(backward), q.readout)


def _product(network: Network, rule: Rule, fields: _Fields, image: Direction, form: Form) -> tuple[Network, Direction]:
    """A q, from the image of q."""
    s, depth, branch = fields.steps, len(fields.features), _branch(rule, form)
    dh = [s[0] * image.first]
    dphi = [fields.slopes[0] * dh[0]]
    for i in range(depth - 1):
        network, above = _pushed(network, i, dphi[i], form)
        above = s[i + 1] * image.outputs[i] + branch * above
        dh.append(dh[i] + above if form.network.residual else above)
        dphi.append(fields.slopes[i + 1] * dh[-1])
    top, readout = layers(network)[-1], s[-1] * image.readout
    df = top.inner(fields.features[-1], readout) + top.inner(dphi[-1], network.readout)
    ddelta = -output_scale(rule.gamma0) * jnp.einsum("acd,ad->ac", fields.hessian, df)
    dz = ddelta @ network.readout + fields.delta @ readout
    dg = [fields.bends[-1] * dh[-1] + fields.slopes[-1] * dz]
    for i in reversed(range(depth - 1)):
        network, below = _pulled(network, i, dg[0], form)
        dz = s[i + 1] * image.inputs[i] + branch * below
        below = fields.bends[i] * dh[i] + fields.slopes[i] * dz
        dg.insert(0, dg[0] + below if form.network.residual else below)
    product = Direction(
        first=-s[0] * dg[0],
        outputs=tuple(-c * v for c, v in zip(s[1:-1], dg[1:], strict=True)),
        inputs=tuple(-c * v for c, v in zip(s[1:-1], dphi[:-1], strict=True)),
        readout=-s[-1] * (ddelta.T @ fields.features[-1] + fields.delta.T @ dphi[-1]),
    )
    return network, product


def _dot(q: Direction, image: Direction, network: Network) -> jax.Array:
    """(...,), for q with further axes."""
    per_layer = layers(network)
    of_parts = (per_layer[0], *per_layer[1:], *per_layer[:-1], per_layer[-1])
    parts = zip(of_parts, jax.tree.leaves(q), jax.tree.leaves(image), strict=True)
    return sum((p.overlap(a, b) for p, a, b in parts), jnp.zeros(()))


def _normalised(
    q: Direction, image: Direction, before: jax.Array, network: Network
) -> tuple[Direction, Direction, jax.Array]:
    """Of unit length, with its image, and the length that it had: 0 where only rounding is left of the square
    `before`."""
    square = _dot(q, image, network)
    length = jnp.sqrt(jnp.where(square <= float(np.finfo(square.dtype).eps) * before, 0.0, square))
    factor = jnp.where(length == 0, 0.0, 1 / length)
    q, image = jax.tree.map(lambda a: factor * a, (q, image))
    return q, image, length


def _without(coefficients: jax.Array, a: jax.Array, met: jax.Array) -> jax.Array:
    """a - sum_i c_i met_i."""
    return a - jnp.tensordot(coefficients, met, axes=1)
