"""Training of a network, written once over populations and matrices.

    forward    h^1 = W^0 x / sqrt(D);     h^{l+1} = [h^l +] b (W^l phi(h^l) / sqrt(N) + sigma b^l)
               f_c = <w_c phi(h^L)> / gamma0
    backward   z^L = w;  g^L = phi'(h^L) z^L;     g^l = [g^{l+1} +] b phi'(h^l) W^l^T g^{l+1} / sqrt(N)
    direction  D W^0 = sum Delta_a g^1_a x_a^T / sqrt(D)       D w = sum Delta_a phi(h^L_a)
               D W^l = b sum Delta_a g^{l+1}_a phi(h^l_a)^T / sqrt(N)      D b^l = b sigma sum Delta_a g^{l+1}_a

In brackets what a residual network adds, whose layers share one population; b is 1 without.  Sums run over the samples
and outputs of a batch, with the factor gamma0 / P (`dmft.specs.parameterization`); directions of frozen layers are
zero.  Inputs enter by their coordinates in an orthonormal basis of their span, K^x = X X^T, in which W^0 is as Gaussian
as in any other; the bias of the first layer is one more of them, with the value sigma for every sample.

The direction is linear in g, and so is g in its start z^L: where no gradient kernels are asked for, one backward pass
from sum_c Delta_c w_c replaces those from every w_c ("events" are samples then, else samples times outputs).

Parameters move as one vector theta (W^0; d and C of every matrix, `dmft.engine.matrix`; w), in a linear space in which
an optimiser is three lines:

    v <- beta v + D - lambda theta;      theta <- theta + eta v            (`dmft.engine.flow` for gradient flow)

Observables, from the fields before the update, with Phi^0 = K^x, G^{L+1} = 1 in outputs, b_0 = b_L = 1, else b_l = b:

    Phi^l = <phi(h^l) phi(h^l)>    G^l = <g^l g^l>    K = sum_{l=0..L} b_l^2 G^{l+1} (Phi^l + sigma^2)

The sum runs over layers that are trained, and sigma^2 is absent from its last term: the readout has no bias.

A stream of data is observed on probes, which are not trained on: a pass of their own, at the recorded steps only.  What
a matrix shows to them is Gaussian given all that it has shown before, so that observables of any one step have the
right law whether the matrix remains what it has become (`joint`), or what it showed is forgotten, by working on a copy
with room for them.  Laws of several steps together (two-time kernels, trajectories of one network or one neuron,
covariances) need a matrix that remembers; the limit of single steps does not, and training then meets nothing but its
batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmft.engine.activations import Function, functions
from dmft.engine.population import Population
from dmft.engine.smoothing import smoothed
from dmft.specs import loss
from dmft.specs.activation import Activation
from dmft.specs.parameterization import output_scale


class Parameters(NamedTuple):
    """What training moves: first (input direction, component); what each matrix calls `trained`; biases, of
    (component,) for each matrix, or none; readout (output, component)."""

    first: jax.Array
    matrices: tuple[Any, ...]
    biases: tuple[jax.Array, ...]
    readout: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """The state of training.

    first: W^0; matrices: W^1 .. W^{L-1}; readout: w; populations: of the layers, or one for all (residual).
    offset: (sample, output), the output at initialisation, which a centered network subtracts.
    biases: b^1 .. b^{L-1}, or none.
    velocity: v, or None without momentum.
    carried: (sample, output), the output where it follows the NTK (`dmft.engine.flow`), else None.
    """

    first: jax.Array
    matrices: tuple[Any, ...]
    readout: jax.Array
    populations: tuple[Population, ...]
    offset: jax.Array
    biases: tuple[jax.Array, ...] = ()
    velocity: Parameters | None = None
    carried: jax.Array | None = None

    @property
    def parameters(self) -> Parameters:
        return Parameters(self.first, tuple(m.trained for m in self.matrices), self.biases, self.readout)

    def with_room(self, count: int, normals: int = 0) -> Network:
        """With matrices that have room for `count` more directions, over populations with so many more `normals`."""
        pairs = zip(self.matrices, pairwise(layers(self)), strict=True)
        return replace(self, matrices=tuple(m.with_room(count, *pair, normals) for m, pair in pairs))

    def moved(self, change: Parameters, rate: Any = 1.0) -> Network:
        """With theta + rate * change."""
        first, trained, biases, readout = jax.tree.map(lambda p, d: p + rate * d, self.parameters, change)
        matrices = tuple(replace(m, trained=t) for m, t in zip(self.matrices, trained, strict=True))
        return replace(self, first=first, matrices=matrices, biases=biases, readout=readout)


class Start(NamedTuple):
    """Standard deviations at initialisation (`dmft.specs.parameterization.Deviations`): weights (layer,); biases; along
    (input direction,) and extra, of the bias of the first layer."""

    weights: jax.Array
    biases: jax.Array
    along: jax.Array
    extra: jax.Array


class Rule(NamedTuple):
    """The numbers of a problem that a step needs.

    inputs: X (sample, input direction), the bias of the first layer among them; targets: (sample, output).
    rows: (step, row), the samples met at a step, those to train on first.
    probes: (probe,), the samples on which a stream is observed, or none; looked: (step,), whether it is.
    share: (step, trained row), gamma0 / P for the samples of the batch, else 0.
    rates: (step,), eta_t, 0 for the last; tau is rates * share / gamma0.
    branch, bias: b and sigma.
    start: how initial parameters are made of normals.
    kink_width: w, by which kinks are rounded where they are.
    """

    inputs: jax.Array
    targets: jax.Array
    rows: jax.Array
    probes: jax.Array
    looked: jax.Array
    share: jax.Array
    rates: jax.Array
    gamma0: jax.Array
    centered: jax.Array
    momentum: jax.Array
    weight_decay: jax.Array
    branch: jax.Array
    bias: jax.Array
    start: Start
    kink_width: jax.Array


@dataclass(frozen=True)
class Form:
    """What of a problem shapes the compiled code.

    scheme: "descent", "euler" or "rosenbrock".
    trained: how many of a step's rows are trained on.
    probes: how many a stream has; 0 where the rows themselves are observed.
    joint: whether observables of several steps are wanted together: matrices then remember what probes have met.
    kernels: names of those that are recorded.
    bias: whether layers have biases; frozen: layers that are not trained, of 0..L.
    single: whether targets have no axis of outputs; nor have observables then.
    smoothed: whether kinks of the activation are rounded (`dmft.engine.smoothing`).
    """

    activation: Activation
    loss: str
    residual: bool
    scheme: str
    momentum: bool
    trained: int
    probes: int
    joint: bool
    kernels: tuple[str, ...]
    bias: bool
    frozen: tuple[int, ...]
    single: bool
    smoothed: bool = False

    @property
    def per_output(self) -> bool:
        """Whether backward passes start from every output, not from the loss."""
        return self.scheme != "descent" or self.every_row

    @property
    def every_row(self) -> bool:
        """Whether backward passes start from all rows, not from those trained on."""
        return self.scheme == "euler" or (self.gradients and not self.probes)

    @property
    def gradients(self) -> bool:
        """Whether backward passes from every output are recorded."""
        return bool({"gradient_kernel", "ntk"} & {*self.kernels})

    @property
    def passes(self) -> int:
        """Forward and backward passes a step."""
        return 2 if self.scheme == "rosenbrock" else 1


class Pass(NamedTuple):
    """One forward and backward pass.

    x: (row, input direction); output: (row, output); h, features: tuples over layers of (row, component); gradients:
    of (event, component); inputs, outputs: tuples over matrices, coordinates of features and gradients.
    """

    x: jax.Array
    output: jax.Array
    h: tuple[jax.Array, ...]
    features: tuple[jax.Array, ...]
    gradients: tuple[jax.Array, ...]
    inputs: tuple[jax.Array, ...]
    outputs: tuple[jax.Array, ...]

    def squares(self, fields: tuple[jax.Array, ...], network: Network) -> jax.Array:
        """(layer,): mean squares of fields."""
        return jnp.stack([jnp.mean(p.squares(v)) for p, v in zip(layers(network), fields, strict=True)])


def layers(network: Network) -> tuple[Population, ...]:
    """The population of every layer."""
    depth = len(network.matrices) + 1
    return network.populations if len(network.populations) == depth else network.populations * depth


def evaluate(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass, jax.Array]:
    """Forward and backward through the rows of step `t`; the state with what its matrices have shown, the pass, and
    Delta (trained row, output) times share."""
    rows = rule.rows[t]
    x = rule.inputs[rows]
    network, output, h, features, inputs = _forward(network, rule, x, form)
    offset = jnp.where(t == 0, rule.centered * output, network.offset[rows])
    network = replace(network, offset=network.offset.at[rows].set(offset))
    output = output - offset
    if network.carried is not None:
        start = jnp.where(t == 0, output, network.carried[rows])
        network, output = replace(network, carried=network.carried.at[rows].set(start)), start

    trained = rows[: form.trained]
    descent = loss.descent(jnp, form.loss, output[: form.trained], rule.targets[trained])
    change = descent * rule.share[t][:, None]
    count = len(rows) if form.every_row else form.trained
    if form.per_output:
        starts = jnp.broadcast_to(network.readout, (count, *network.readout.shape))
    else:
        starts = (change @ network.readout)[:, None]
    network, gradients, outputs = _backward(network, rule, [a[:count] for a in h], starts, form)
    return network, Pass(x, output, tuple(h), tuple(features), gradients, tuple(inputs), outputs), change


def observe(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass]:
    """Forward and backward through the observed rows of step `t`; the state with what its matrices have shown (of a
    copy with more room, where what probes meet is not kept) and the pass.  Of probes, backward only where gradients are
    recorded, from every output."""
    if not form.probes:
        return evaluate(network, rule, t, form)[:2]
    if not form.joint:
        network = network.with_room(probe_block(rule, form))
    x = rule.inputs[rule.probes]
    network, output, h, features, inputs = _forward(network, rule, x, form)
    gradients: tuple[jax.Array, ...] = ()
    outputs: tuple[jax.Array, ...] = ()
    if form.gradients:
        starts = jnp.broadcast_to(network.readout, (form.probes, *network.readout.shape))
        network, gradients, outputs = _backward(network, rule, h, starts, form)
    return network, Pass(x, output, tuple(h), tuple(features), gradients, tuple(inputs), outputs)


def probe_block(rule: Rule, form: Form) -> int:
    """The most vectors of probes that a matrix meets at once."""
    return form.probes * (rule.targets.shape[1] if form.gradients else 1)


def _activation(rule: Rule, form: Form) -> tuple[Function, Function]:
    """(phi, phi')."""
    return smoothed(form.activation, rule.kink_width) if form.smoothed else functions(form.activation)


def _forward(
    network: Network, rule: Rule, x: jax.Array, form: Form
) -> tuple[Network, jax.Array, list[jax.Array], list[jax.Array], list[jax.Array]]:
    """The output (not centered), h and phi(h) of every layer, coordinates of phi(h) at every matrix."""
    phi, _ = _activation(rule, form)
    populations, matrices, inputs = list(network.populations), list(network.matrices), []
    h = [x @ network.first]
    features = [phi(h[0])]
    for i in range(len(matrices)):
        below, above = (0, 0) if form.residual else (i, i + 1)
        matrices[i], populations[above], image, coordinates = matrices[i].apply(
            features[i], populations[below], populations[above]
        )
        image = image + rule.bias * network.biases[i] if form.bias else image
        h.append(h[i] + rule.branch * image if form.residual else image)
        features.append(phi(h[-1]))
        inputs.append(coordinates)
    output = populations[-1].inner(features[-1], network.readout) * output_scale(rule.gamma0)
    network = replace(network, matrices=tuple(matrices), populations=tuple(populations))
    return network, output, h, features, inputs


def _backward(
    network: Network, rule: Rule, h: list[jax.Array], starts: jax.Array, form: Form
) -> tuple[Network, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """g of every layer and coordinates at every matrix, from z^L (row, start, component)."""
    _, dphi = _activation(rule, form)
    populations, matrices = list(network.populations), list(network.matrices)
    outputs: list[Any] = [None] * len(matrices)

    def through(slope: jax.Array, z: jax.Array) -> jax.Array:
        each = z.reshape(len(slope), -1, z.shape[-1])
        return (slope[:, None] * each).reshape(-1, z.shape[-1])

    gradients = [through(dphi(h[-1]), starts)]
    for i in reversed(range(len(matrices))):
        below, above = (0, 0) if form.residual else (i, i + 1)
        matrices[i], populations[below], z, outputs[i] = matrices[i].apply_t(
            gradients[0], populations[above], populations[below]
        )
        g = through(dphi(h[i]), z)
        gradients.insert(0, gradients[0] + rule.branch * g if form.residual else g)
    network = replace(network, matrices=tuple(matrices), populations=tuple(populations))
    return network, tuple(gradients), tuple(outputs)


def direction(network: Network, rule: Rule, seen: Pass, change: jax.Array, form: Form) -> Parameters:
    """D for the pass `seen` and coefficients `change` (trained row, output): share times Delta, or another in its place
    where passes are per output."""
    n = form.trained

    def pushed(events: jax.Array) -> jax.Array:
        """(trained row, ...): sum over outputs, with the coefficients unless the pass has started from them."""
        if not form.per_output:
            return events
        each = events.reshape(-1, change.shape[1], events.shape[-1])[:n]
        return jnp.einsum("ac,acn->an", change, each) if change.shape[1] > 1 else change * each[:, 0]

    b = rule.branch if form.residual else 1.0
    matrices = zip(network.matrices, seen.inputs, seen.outputs, strict=True)
    moved = Parameters(
        first=seen.x[:n].T @ pushed(seen.gradients[0]),
        matrices=tuple(m.outer(x[:n], b * pushed(y)) for m, x, y in matrices),
        biases=tuple(b * rule.bias * pushed(g).sum(axis=0) for g in seen.gradients[1:]) if form.bias else (),
        readout=change.T @ seen.features[-1][:n],
    )
    return trained_part(moved, form)


def trained_part(change: Parameters, form: Form) -> Parameters:
    """The change of parameters without that of frozen layers."""

    def kept(layer: int, part: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, part) if layer in form.frozen else part

    return Parameters(
        first=kept(0, change.first),
        matrices=tuple(kept(i, part) for i, part in enumerate(change.matrices, start=1)),
        biases=tuple(kept(i, part) for i, part in enumerate(change.biases, start=1)),
        readout=kept(len(change.matrices) + 1, change.readout),
    )


def descend(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass]:
    """Step `t` of gradient descent with momentum and weight decay."""
    network, seen, change = evaluate(network, rule, t, form)
    push = direction(network, rule, seen, change, form)
    push = jax.tree.map(lambda d, theta: d - rule.weight_decay * theta, push, network.parameters)
    push = trained_part(push, form)
    if network.velocity is not None:
        push = jax.tree.map(lambda v, d: rule.momentum * v + d, network.velocity, push)
        network = replace(network, velocity=push)
    return network.moved(push, rule.rates[t]), seen


# ---- observables -----------------------------------------------------------------------------------------------------


class Vitals(NamedTuple):
    """Numbers of every step: prediction (observed row[, output]), 0 where a stream is not looked at; loss, of the rows
    trained on, and sizes (2, layer), mean squares of h and g, which tell where training diverges; ranks (matrix, 2),
    directions met by either side."""

    prediction: jax.Array
    loss: jax.Array
    sizes: jax.Array
    ranks: jax.Array


class Kernels(NamedTuple):
    """Order parameters of a step, None where they are not recorded: feature_kernel (layer, row, row_2), gradient_kernel
    (layer, row[, output], row_2[, output_2]), ntk (row[, output], row_2[, output_2]); no axis for a single output."""

    feature_kernel: jax.Array | None
    gradient_kernel: jax.Array | None
    ntk: jax.Array | None


def predictions(seen: Pass, form: Form) -> jax.Array:
    """Of the pass over the observed rows, (row[, output])."""
    return seen.output[:, 0] if form.single else seen.output


def vitals(network: Network, rule: Rule, t: jax.Array | int, seen: Pass, prediction: jax.Array, form: Form) -> Vitals:
    """Of step `t`, from its pass `seen` over the rows trained on; `network` is the state after it."""
    ranks = [matrix.ranks for matrix in network.matrices]
    each = loss.values(jnp, form.loss, seen.output[: form.trained], rule.targets[rule.rows[t][: form.trained]])
    return Vitals(
        prediction=prediction,
        loss=jnp.mean(each),
        sizes=jnp.stack([seen.squares(seen.h, network), seen.squares(seen.gradients, network)]),
        ranks=jnp.stack(ranks) if ranks else jnp.zeros((0, 2), jnp.int32),
    )


def kernels(network: Network, rule: Rule, seen: Pass, form: Form) -> Kernels:
    """Of the pass over the observed rows; `network` is the state after it."""
    features, gradients, ntk = None, None, None
    if {"feature_kernel", "ntk"} & {*form.kernels}:
        features = feature_kernels(network, seen, seen)
    if form.gradients:
        gradients = gradient_kernels(network, seen, seen)
    if "ntk" in form.kernels:
        ntk = tangent_kernel(seen.x @ seen.x.T, features, gradients, rule, form)

    def without_outputs(kernel: jax.Array | None) -> jax.Array | None:
        return kernel[..., 0, :, 0] if form.single and kernel is not None else kernel

    return Kernels(
        features if "feature_kernel" in form.kernels else None,
        without_outputs(gradients) if "gradient_kernel" in form.kernels else None,
        without_outputs(ntk),
    )


def feature_kernels(network: Network, a: Pass, b: Pass, stop: int | None = None) -> jax.Array:
    """Phi (layer, row, row_2) between the rows of two passes, or those before `stop`."""
    each = zip(layers(network), a.features, b.features, strict=True)
    return jnp.stack([p.inner(v[:stop], w[:stop]) for p, v, w in each])


def gradient_kernels(network: Network, a: Pass, b: Pass, stop: int | None = None) -> jax.Array:
    """G (layer, row, output, row_2, output_2) between the rows of two passes, or those before `stop`, per output."""
    outputs = a.output.shape[1]
    events = slice(None if stop is None else stop * outputs)

    def kernel(p: Population, v: jax.Array, w: jax.Array) -> jax.Array:
        return p.inner(v[events], w[events]).reshape(-1, outputs, len(w[events]) // outputs, outputs)

    return jnp.stack([kernel(*each) for each in zip(layers(network), a.gradients, b.gradients, strict=True)])


def tangent_kernel(inputs: jax.Array, features: Any, gradients: Any, rule: Rule, form: Form) -> jax.Array:
    """K (row, output, row_2, output_2), from Phi^0 + sigma^2 (row, row_2), Phi and G of all layers."""
    depth, _, outputs = gradients.shape[:3]
    b = rule.branch**2 if form.residual else 1.0
    free = np.array([layer not in form.frozen for layer in range(depth + 1)], float)
    phi = features[:, :, None, :, None]
    first = free[0] * gradients[0] * inputs[:, None, :, None]
    inner = b * jnp.tensordot(free[1:-1], gradients[1:] * (phi[:-1] + rule.bias**2), axes=1)
    last = free[-1] * phi[-1] * jnp.eye(outputs)[:, None, :]
    total: jax.Array = first + inner + last
    return total
