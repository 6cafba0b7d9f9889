"""A batch of networks of one width: initialisation, forward, hand-written backward, training.

    h^1 = W^0 x / sqrt(D)     h^{l+1} = [h^l +] b (W^l phi(h^l) / sqrt(N) + sigma b^l)
    f_c = w_c . phi(h^L) / (gamma0 N)
    g^L = phi'(h^L) w_c       g^l = [g^{l+1} +] b phi'(h^l) W^l^T g^{l+1} / sqrt(N)      (g^l = gamma0 N df_c/dh^l)
    W^l += c b sum_a Delta_a g^{l+1}_a phi(h^l_a)^T / sqrt(N), and alike for W^0 and w  (`dmft.specs.parameterization`)

In brackets what a residual network adds; b is 1 without.  Sums run over the samples and outputs of a batch.  The bias
sigma b^0 of the first layer is an input of value sigma sqrt(D).  With momentum beta and weight decay lambda
(`dmft.specs.training`), D the sum with gamma0 / P in place of c:

    v <- beta v + D - lambda theta;      theta <- theta + eta v                      (gradient flow: `finite_nets.flow`)

Every array has the member of the ensemble as its first axis; a layer's fields are (member, sample, neuron), so that all
products are batched matrix products (`finite_nets.products`).  The backward pass starts from every output, as kernels
need it, or from the loss, sum_c Delta_c w_c: then its cost does not grow with the outputs.

Cost of a step, a hidden layer and a member: the weights, N^2 numbers, are read forward and backward and read and
written by the update, or only twice where updates are delayed (`finite_nets.matrices`); 2 N^2 P floating-point
operations for each of the three products.  Fields of P samples, P N numbers each, are read or written some ten times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.errors import exploded
from dmft.specs import Problem, loss
from dmft.specs.parameterization import (
    Deviations,
    Scales,
    hidden_scale,
    initial_deviations,
    input_kernel,
    input_scale,
    scales,
    trained_layers,
    with_bias,
)
from finite_nets import flow
from finite_nets.matrices import Matrix, Store, room
from finite_nets.precision import Precision
from finite_nets.products import Products
from finite_nets.random import normals

NEVER = math.inf  # the step at which a healthy member explodes
PUSHES = {"descent": 1, "euler": 1, "rosenbrock": 3}  # of a step
Index = slice | Tensor


class Weights(NamedTuple):
    """Parameters of a batch at initialisation.

    first: (member, N, D); hidden: L-1 of (member, N, N); readout: (member, output, N); biases: L-1 of (member, N), or
    none.
    """

    first: Tensor
    hidden: list[Tensor]
    readout: Tensor
    biases: list[Tensor]

    @property
    def all(self) -> list[Tensor]:
        return [self.first, *self.hidden, self.readout, *self.biases]


@dataclass
class Parameters:
    """What training moves: by layer 0..L, its weights and, for hidden matrices of a network with biases, b^l."""

    first: Tensor
    hidden: list[Matrix]
    readout: Tensor
    biases: list[Tensor]
    trained: tuple[float, ...]

    def parts(self) -> list[Tensor | Matrix]:
        """Of trained layers."""
        weights: list[Tensor | Matrix] = [self.first, *self.hidden, self.readout]
        by_layer = [*zip(range(len(weights)), weights, strict=True), *enumerate(self.biases, start=1)]
        return [part for layer, part in by_layer if self.trained[layer]]

    def scale(self, factor: float) -> None:
        for part in self.parts():
            part.mul_(factor)

    def add(self, other: Parameters, factor: float) -> None:
        for part, change in zip(self.parts(), other.parts(), strict=True):
            part.add_(change, alpha=factor)  # type: ignore[arg-type]  # of the same kind

    def zeros(self) -> Parameters:
        first, readout, *biases = (torch.zeros_like(part) for part in (self.first, self.readout, *self.biases))
        return Parameters(first, [matrix.zeros() for matrix in self.hidden], readout, biases, self.trained)


@dataclass
class State:
    """Networks in training.

    velocity: v, or None without momentum.
    offset: (member, sample, output), the output at initialisation, which a centered network subtracts; zero for others.
    carried: (member, sample, output), the output where it follows the NTK (`finite_nets.flow`), else None.
    exploded_at: (member,), the step at which the loss of its batch exploded (`dmft.errors`); infinite for the healthy.
    """

    weights: Parameters
    scales: Scales
    exploded_at: Tensor
    velocity: Parameters | None = None
    offset: Tensor | None = None
    carried: Tensor | None = None

    @property
    def width(self) -> int:
        return self.weights.readout.shape[-1]


class Met(NamedTuple):
    """The samples of a step: `rows` of the task, and which of these are trained on and which are observed."""

    rows: Index
    trained: Index
    observed: slice


class Fields(NamedTuple):
    """A forward and backward pass before the update, over some samples.

    target: (sample, output); output, delta: (member, sample, output), f as the network counts it and Delta.
    features: a list over layers of (member, sample, N); gradients: of (member, sample, start, N), where starts are
    the outputs or, alone, the loss; no layers where there was no backward pass.
    """

    x: Tensor
    target: Tensor
    output: Tensor
    delta: Tensor
    features: list[Tensor]
    gradients: list[Tensor]

    def at(self, index: Index) -> Fields:
        """Of a part of the samples."""
        by_member = (self.output[:, index], self.delta[:, index])
        layers = ([field[:, index] for field in fields] for fields in (self.features, self.gradients))
        return Fields(self.x[index], self.target[index], *by_member, *layers)


def initialise(
    depth: int,
    dimension: int,
    width: int,
    members: Tensor,
    *,
    root_seed: int,
    precision: Precision,
    outputs: int = 1,
    biases: bool = False,
    start: Deviations | None = None,
) -> Weights:
    """Gaussian parameters of the members with the given seed indices (int64), iid N(0,1) or as `start` says."""

    def draw(parameter: int, *shape: int, dtype: torch.dtype = precision.fields) -> Tensor:
        return normals(shape, root_seed=root_seed, width=width, parameter=parameter, members=members, dtype=dtype)

    drawn = Weights(
        first=draw(0, width, dimension),
        hidden=[draw(layer, width, width, dtype=precision.start) for layer in range(1, depth)],
        readout=draw(depth, outputs, width),
        biases=[draw(depth + layer, width) for layer in range(1, depth)] if biases else [],
    )
    if start is not None:
        _scale(drawn, start)
    return drawn


def _scale(drawn: Weights, start: Deviations) -> None:
    """Standard normals made what a network starts from, in place."""
    if start.extra:
        along = torch.as_tensor(start.along, dtype=drawn.first.dtype, device=drawn.first.device)
        towards = (drawn.first * along).sum(-1, keepdim=True) * along
        drawn.first.mul_(start.weights[0]).add_(towards, alpha=start.extra)
    elif start.weights[0] != 1:
        drawn.first.mul_(start.weights[0])
    for tensors, deviation in (
        *zip(([hidden] for hidden in drawn.hidden), start.weights[1:-1], strict=True),
        ([drawn.readout], start.weights[-1]),
        (drawn.biases, start.biases),
    ):
        for tensor in tensors:
            if deviation != 1:
                tensor.mul_(deviation)


def input_coordinates(problem: Problem) -> NDArray[np.float64]:
    """Inputs (sample, feature), with that of the first layer's bias, in an orthonormal basis of their span when that
    has fewer dimensions.

    Gaussian weights look the same in every orthonormal basis and training leaves those across the span alone, so a
    network on these coordinates is, in law, the network on x; images of 784 pixels cost no more than P numbers.
    Weight decay is the same in every orthonormal basis, too.
    """
    task = problem.task
    x = with_bias(task.x, problem.network.bias / input_scale(task.dimension))
    samples, features = x.shape
    if samples >= features:
        return x
    _, r = np.linalg.qr(x.T)
    return np.asarray(r.T)


class Trainer:
    """Trains batches of networks on one problem.  `x` is in the coordinates of `input_coordinates`."""

    def __init__(self, problem: Problem, device: torch.device, precision: Precision) -> None:
        task, network, training = problem.task, problem.network, problem.training
        dtype = precision.fields
        self.network, self.depth, self.centered = network, network.depth, network.centered
        self.residual, self.branch, self.bias = network.residual, network.branch, network.bias
        self.loss, self.dimension, self.precision = problem.loss, task.dimension, precision
        self.products = Products(precision, device)
        inputs = input_coordinates(problem)
        self.start = initial_deviations(network, inputs, network.bias / input_scale(task.dimension))
        self.x = torch.tensor(inputs, device=device, dtype=dtype).contiguous()
        self.targets = torch.tensor(task.targets, device=device, dtype=dtype)
        self.n_train, self.outputs = task.n_train, task.targets.shape[1]
        self.observed = problem.observed
        first_kernel = input_kernel(task.x[self.observed]) + network.bias**2
        self.input_kernel = torch.tensor(first_kernel, device=device, dtype=dtype)
        self.input_scale = input_scale(task.dimension)
        self.training, self.rates = training, training.rates.tolist()
        self.scheme = training.scheme
        self.batches = None if training.batches is None else torch.tensor(problem.batches, device=device)
        self.batch = problem.batches.shape[1]

    def draw(self, width: int, members: Tensor, root_seed: int) -> Weights:
        """The members' parameters at initialisation."""
        return initialise(
            self.depth,
            self.x.shape[1],
            width,
            members,
            root_seed=root_seed,
            precision=self.precision,
            outputs=self.outputs,
            biases=self.bias > 0,
            start=self.start,
        )

    # ---- one pass, one update ----------------------------------------------------------------------------------------

    def evaluate(self, state: State, met: Met, *, gradients: bool) -> tuple[Fields, Fields]:
        """Forward through the samples met and backward: their fields, and the fields of those trained on.

        With `gradients` the backward pass is that of all outputs of all samples met.  Else it is left out for the
        samples met, and starts for those trained on from the loss, unless there is a single output or a flow.
        """
        output, slopes, features = self._forward(state, self.x[met.rows])
        output = self.counted(state, output, met.rows)
        target = self.targets[met.rows]
        delta = loss.descent(torch, self.loss, output, target)
        met_fields = Fields(self.x[met.rows], target, output, delta, features, [])
        every_output = state.weights.readout[:, None]
        if gradients:
            met_fields = met_fields._replace(gradients=self._backward(state, slopes, every_output))
            return met_fields, met_fields.at(met.trained)
        trained = met_fields.at(met.trained)
        each = self.outputs == 1 or self.scheme != "descent"
        starts = every_output if each else self.products.pullback(trained.delta, state.weights.readout)[:, :, None]
        gradient = self._backward(state, [slope[:, met.trained] for slope in slopes], starts)
        return met_fields, trained._replace(gradients=gradient)

    def _forward(self, state: State, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The output (member, sample, output), not centered; phi'(h) and phi(h) of every layer."""
        weights, phi = state.weights, self.network.activation
        scale = self.branch * hidden_scale(state.width)
        x = x.expand(len(weights.first), -1, -1)
        layer = self.products.activated(x, weights.first, phi, scale=self.input_scale, keep=self.residual)
        slopes, features = [layer.slope], [layer.phi]
        for i, matrix in enumerate(weights.hidden):
            add = self.added(weights, i, layer.y)
            layer = matrix.activated(self.products, layer.phi, phi, scale=scale, add=add, keep=self.residual)
            slopes.append(layer.slope)
            features.append(layer.phi)
        output = self.products.image(features[-1], weights.readout, scale=state.scales.output)
        return output, slopes, features

    def added(self, weights: Parameters, i: int, below: Tensor | None) -> Tensor | None:
        """What h of the layer above hidden matrix `i` has besides its image: the bias, and h `below` in a residual
        network."""
        bias = self.branch * self.bias * weights.biases[i][:, None] if weights.biases else None
        if not self.residual or below is None:
            return bias
        return below if bias is None else below + bias

    def _backward(self, state: State, slopes: list[Tensor], starts: Tensor) -> list[Tensor]:
        """g of every layer, (member, sample, start, N), from z^L (member, sample or 1, start, N)."""
        scale = self.branch * hidden_scale(state.width)
        gradients = [slopes[-1][:, :, None] * starts]
        for matrix, slope in zip(reversed(state.weights.hidden), reversed(slopes[:-1]), strict=True):
            above = gradients[0]
            g = matrix.pullback(self.products, above.flatten(1, 2), scale=scale, slope=slope).reshape_as(above)
            gradients.insert(0, g.add_(above) if self.residual else g)
        return gradients

    def counted(self, state: State, output: Tensor, rows: Index) -> Tensor:
        """f as the network counts it: minus that at initialisation, or carried.  The first call sets both."""
        if state.offset is None:
            # a centered network meets all samples first
            state.offset = output if self.centered else torch.zeros_like(output[:, :1]).expand(-1, len(self.x), -1)
        output = output - state.offset[:, rows]
        if self.scheme != "euler":
            return output
        if state.carried is None:
            state.carried = output
        return state.carried[:, rows]

    def push(self, state: State, target: Parameters, seen: Fields, coefficients: Tensor, factor: float) -> None:
        """Add to `target` the direction of the pass: `factor` times its sum over samples and outputs.

        `coefficients` (member, sample, output) are Delta, or stand in its place where passes start from outputs.
        """
        update, forward = state.scales.update, self.branch * hidden_scale(state.width)
        from_outputs = seen.gradients[0].shape[2] == self.outputs
        each: Tensor | None = None  # (member, sample), of the pushed fields
        if not from_outputs:  # they started from the loss
            pushed = [g[:, :, 0] for g in seen.gradients]
        elif self.outputs == 1:
            pushed, each = [g[:, :, 0] for g in seen.gradients], coefficients[..., 0]
        else:
            pushed = [torch.einsum("msc,mscn->msn", coefficients, g) for g in seen.gradients]
        if target.trained[0]:
            x = seen.x.expand(len(coefficients), -1, -1)
            scale = factor * update[0] * self.input_scale
            self.products.accumulate(target.first, pushed[0], x, each, scale=scale)
        for i, matrix in enumerate(target.hidden, start=1):
            scale = factor * update[i]
            if not target.trained[i]:
                continue
            matrix.push(self.products, pushed[i], seen.features[i - 1], each, scale * forward)
            if target.biases:
                total = pushed[i].sum(1) if each is None else (each[:, None] @ pushed[i])[:, 0]
                target.biases[i - 1].add_(total, alpha=scale * self.branch * self.bias)
        if target.trained[-1]:
            scale = factor * update[-1]
            self.products.accumulate(target.readout, coefficients, seen.features[-1], None, scale=scale)

    def descend(self, state: State, seen: Fields, rate: float) -> None:
        """A step of gradient descent, in place, from the fields trained on."""
        weights, velocity, decay = state.weights, state.velocity, self.training.weight_decay
        if velocity is None:
            if decay:
                weights.scale(1 - rate * decay)
            self.push(state, weights, seen, seen.delta, rate)
            return
        velocity.scale(self.training.momentum)
        if decay:
            velocity.add(weights, -decay)
        self.push(state, velocity, seen, seen.delta, 1.0)
        weights.add(velocity, rate)

    # ---- all steps ---------------------------------------------------------------------------------------------------

    def begin(self, drawn: Weights, steps: int | None = None) -> State:
        """Training from these weights, which it moves, for so many steps; by default all of the problem."""
        width, members = drawn.readout.shape[-1], len(drawn.readout)
        pushes = PUSHES[self.scheme] * (self.training.steps if steps is None else steps)
        pairs = room(width, self.batch, pushes, self.precision.start, drawn.first.device)
        weights = Parameters(
            drawn.first,
            [Matrix(start, Store(start, pairs, self.precision.fields)) for start in drawn.hidden],
            drawn.readout,
            drawn.biases,
            trained_layers(self.network),
        )
        exploded_at = drawn.readout.new_full((members,), NEVER)
        state = State(weights, scales(self.network, width, self.dimension, self.batch), exploded_at)
        state.velocity = weights.zeros() if self.training.momentum else None
        return state

    def meet(self, t: int, *, everything: bool) -> Met:
        """The samples of step t: its batch, and with `everything` those observed, too."""
        samples, n = len(self.x), self.n_train
        if self.batches is None:
            return Met(slice(0, samples if everything else n), slice(0, n), self.observed)
        batch = self.batches[min(t, len(self.batches) - 1)]  # nothing is learned at T: its loss is that of the last one
        alone = slice(0, len(batch))
        if not everything:
            return Met(batch, alone, slice(0, 0))
        if self.observed.start == 0:
            return Met(self.observed, batch, self.observed)
        rest = torch.arange(self.observed.start, samples, device=batch.device)
        return Met(torch.cat([batch, rest]), alone, slice(len(batch), None))

    def advance(self, state: State, t: int, seen: Fields, trained: Fields) -> None:
        """Step t of training, in place, from the fields met and those trained on."""
        rate = self.rates[t]
        if self.scheme == "descent":
            self.descend(state, trained, rate)
        elif self.scheme == "euler":
            flow.euler(self, state, seen, trained, rate)
        else:
            flow.rosenbrock(self, state, trained, rate)

    def run(self, state: State, save_steps: frozenset[int], *, gradients: bool = True) -> Iterator[Fields]:
        """Train to the last step of `save_steps`, yielding the fields of observed samples before the update of each.

        Without `gradients` their backward fields are left out.  Members that explode go on; at the end,
        `state.exploded_at` says which did at any step, saved or not, by the loss of its batch.
        """
        last = max(save_steps)
        initial_loss = torch.zeros_like(state.exploded_at)
        for t in range(last + 1):
            saved, euler = t in save_steps, self.scheme == "euler"  # whose output changes everywhere
            met = self.meet(t, everything=saved or euler or (t == 0 and self.centered))
            seen, trained = self.evaluate(state, met, gradients=(saved and gradients) or euler)
            batch_loss = loss.values(torch, self.loss, trained.output, trained.target).mean(1)
            initial_loss = batch_loss if t == 0 else initial_loss
            now = exploded(batch_loss, initial_loss)
            state.exploded_at = torch.where(now, state.exploded_at.clamp(max=t), state.exploded_at)
            if saved:
                yield seen.at(met.observed)
            if t < last:
                self.advance(state, t, seen, trained)
