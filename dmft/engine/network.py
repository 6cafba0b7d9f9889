"""One step of training an MLP, written once over populations and matrices.

    forward    h^1 given;   h^{l+1} = W^l phi(h^l) / sqrt(N);   f = <w phi(h^L)> / gamma0
    backward   z^L = w;     g^l = phi'(h^l) z^l;                z^{l-1} = W^{l-1}^T g^l / sqrt(N)
    update     h^1 += c_a Delta_a K^x_{mu a} g^1_a
               W^l += c_a Delta_a g^{l+1}_a phi(h^l_a)^T / sqrt(N);   w += c_a Delta_a phi(h^L_a)

with c = eta gamma0 / P for training samples a and 0 for test samples (`dmft.specs.parameterization`).  The input
layer appears through its preactivations h^1 alone: whatever W^0 is, training moves them through K^x.

Observables, from the fields before the update:

    Phi^l = <phi(h^l) phi(h^l)>    G^l = <g^l g^l>    K = sum_{l=0..L} G^{l+1} Phi^l,   Phi^0 = K^x,  G^{L+1} = 1
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dmft.engine.activations import functions
from dmft.engine.population import Population
from dmft.specs.activation import Activation
from dmft.specs.parameterization import output_scale


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """The state of training.

    h1: (sample, component), preactivations of the first layer.
    matrices: W^1 .. W^{L-1}; populations: 1 .. L; readout: w (component,).
    offset: (sample,), the output at initialisation, which a centered network subtracts.
    """

    h1: jax.Array
    matrices: tuple[Any, ...]
    readout: jax.Array
    populations: tuple[Population, ...]
    offset: jax.Array


class Rule(NamedTuple):
    """What a step needs to know of the problem.

    input_kernel: K^x (sample, sample_2); targets: (sample,); c: (sample,), eta gamma0 / P where the sample is
    trained on; centered: 1 to subtract the output at initialisation, 0 not to.
    """

    input_kernel: jax.Array
    targets: jax.Array
    c: jax.Array
    gamma0: jax.Array
    centered: jax.Array


class Fields(NamedTuple):
    """Fields of every layer at one step, before its update: tuples over layers of (sample, component)."""

    output: jax.Array
    h: tuple[jax.Array, ...]
    features: tuple[jax.Array, ...]
    gradients: tuple[jax.Array, ...]


def step(network: Network, rule: Rule, t: jax.Array | int, activation: Activation) -> tuple[Network, Fields]:
    """Step `t`: forward, backward, update of all parameters at once."""
    phi, dphi = functions(activation)
    depth = len(network.populations)
    populations, matrices = list(network.populations), list(network.matrices)
    inputs, outputs = [None] * (depth - 1), [None] * (depth - 1)

    h = [network.h1]
    features = [phi(network.h1)]
    for i in range(depth - 1):
        matrices[i], populations[i + 1], image, inputs[i] = matrices[i].apply(
            features[i], populations[i], populations[i + 1]
        )
        h.append(image)
        features.append(phi(image))
    output = populations[-1].inner(features[-1], network.readout[None])[:, 0] * output_scale(rule.gamma0)
    offset = jnp.where(t == 0, rule.centered * output, network.offset)
    output = output - offset

    gradients = [dphi(h[-1]) * network.readout]
    for i in reversed(range(depth - 1)):
        matrices[i], populations[i], z, outputs[i] = matrices[i].apply_t(
            gradients[0], populations[i + 1], populations[i]
        )
        gradients.insert(0, dphi(h[i]) * z)

    change = rule.c * (rule.targets - output)
    network = replace(
        network,
        h1=network.h1 + (rule.input_kernel * change) @ gradients[0],
        matrices=tuple(matrix.learn(change, inputs[i], outputs[i]) for i, matrix in enumerate(matrices)),
        readout=network.readout + change @ features[-1],
        populations=tuple(populations),
        offset=offset,
    )
    return network, Fields(output, tuple(h), tuple(features), tuple(gradients))


class Vitals(NamedTuple):
    """Numbers of every step: prediction (sample,); sizes (2, layer), mean squares of h and g, which tell where training
    diverges; ranks (matrix, 2), directions met by either side."""

    prediction: jax.Array
    sizes: jax.Array
    ranks: jax.Array


class Kernels(NamedTuple):
    """Order parameters of a step: feature_kernel, gradient_kernel (layer, sample, sample_2); ntk (sample, sample_2)."""

    feature_kernel: jax.Array
    gradient_kernel: jax.Array
    ntk: jax.Array


def vitals(network: Network, fields: Fields) -> Vitals:
    """Of the fields of a step; `network` is the state after it."""

    def sizes(vectors: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.stack([jnp.mean(p.squares(v)) for p, v in zip(network.populations, vectors, strict=True)])

    ranks = [matrix.ranks for matrix in network.matrices]
    return Vitals(
        prediction=fields.output,
        sizes=jnp.stack([sizes(fields.h), sizes(fields.gradients)]),
        ranks=jnp.stack(ranks) if ranks else jnp.zeros((0, 2), jnp.int32),
    )


def kernels(network: Network, rule: Rule, fields: Fields) -> Kernels:
    """Of the fields of a step; `network` is the state after it."""

    def kernel(vectors: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.stack([p.inner(v, v) for p, v in zip(network.populations, vectors, strict=True)])

    feature_kernel, gradient_kernel = kernel(fields.features), kernel(fields.gradients)
    before = jnp.concatenate([rule.input_kernel[None], feature_kernel])
    after = jnp.concatenate([gradient_kernel, jnp.ones_like(rule.input_kernel)[None]])
    return Kernels(feature_kernel, gradient_kernel, ntk=jnp.sum(before * after, axis=0))
