"""A batch of perceptrons of one width: initialisation, forward, hand-written backward, updates.

    h^1 = W^0 x / sqrt(D)     h^{l+1} = [h^l +] b (W^l phi(h^l) / sqrt(N) + sigma b^l)
    f_c = w_c . phi(h^L) / (gamma0 N)
    g^L = phi'(h^L) w_c       g^l = [g^{l+1} +] b phi'(h^l) W^l^T g^{l+1} / sqrt(N)      (g^l = gamma0 N df_c/dh^l)
    W^l += c b sum_a Delta_a g^{l+1}_a phi(h^l_a)^T / sqrt(N), and alike for W^0 and w  (`dmft.specs.parameterization`)

In brackets what a residual network adds; b is 1 without.  Sums run over the samples and outputs of a batch.  The bias
sigma b^0 of the first layer is an input of value sigma sqrt(D).  What training makes of these sums:
`finite_nets.training.trainer`.

Every array has the member of the ensemble as its first axis; a layer's fields are (member, sample, neuron), so that all
products are batched matrix products (`finite_nets.device.products`).  The backward pass starts from every output, as
kernels need it, or from the loss, sum_c Delta_c w_c: then its cost does not grow with the outputs.

Cost of a step, a hidden layer and a member: the weights, N^2 numbers, are read forward and backward and read and
written by the update, or only twice where updates are delayed (`finite_nets.device.matrices`); 2 N^2 P floating-point
operations for each of the three products.  Fields of P samples, P N numbers each, are read or written some ten times.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from dmft.specs import Problem, loss
from dmft.specs.networks.perceptron import perceptron
from dmft.specs.parameterization import (
    Deviations,
    hidden_scale,
    initial_deviations,
    input_kernel,
    input_scale,
    scales,
    trained_layers,
    with_bias,
)
from finite_nets.device.fields import Field, Layer
from finite_nets.device.fused import BY, Below
from finite_nets.device.matrices import Matrix, Phase, Store, room
from finite_nets.device.precision import Precision
from finite_nets.device.random import normals
from finite_nets.training import curvature
from finite_nets.training.linear import moves_weights_alone
from finite_nets.training.observables import Shown, kernels, ntk
from finite_nets.training.state import NEVER, Fields, Met, Moved, State
from finite_nets.training.traces import Index
from finite_nets.training.trainer import Training


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
class Parameters(Moved):
    """What training moves: by layer 0..L, its weights and, for hidden matrices of a network with biases, b^l."""

    first: Tensor
    hidden: list[Matrix]
    readout: Tensor
    biases: list[Tensor]
    trained: tuple[float, ...]

    def parts(self) -> list[Tensor | Matrix]:
        weights: list[Tensor | Matrix] = [self.first, *self.hidden, self.readout]
        by_layer = [*zip(range(len(weights)), weights, strict=True), *enumerate(self.biases, start=1)]
        return [part for layer, part in by_layer if self.trained[layer]]

    def tensors_moved(self) -> list[Tensor]:
        stored = [t for matrix in self.hidden for t in (matrix.start, matrix.store.left, matrix.store.right)]
        return [self.first, self.readout, *self.biases, *stored]

    @property
    def phase(self) -> Hashable:
        return tuple(matrix.phase for matrix in self.hidden)

    def enter(self, phase: Sequence[Phase]) -> None:
        for matrix, its in zip(self.hidden, phase, strict=True):
            matrix.enter(its)

    def zeros(self) -> Parameters:
        first, readout, *biases = (torch.zeros_like(part) for part in (self.first, self.readout, *self.biases))
        return Parameters(first, [matrix.zeros() for matrix in self.hidden], readout, biases, self.trained)

    def copy(self) -> Parameters:
        first, readout, *biases = (part.clone() for part in (self.first, self.readout, *self.biases))
        return Parameters(first, [matrix.copy() for matrix in self.hidden], readout, biases, self.trained)


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
    scale_first(drawn.first, start)
    for tensors, deviation in (
        *zip(([hidden] for hidden in drawn.hidden), start.weights[1:-1], strict=True),
        ([drawn.readout], start.weights[-1]),
        (drawn.biases, start.biases),
    ):
        for tensor in tensors:
            if deviation != 1:
                tensor.mul_(deviation)


def scale_first(weights: Tensor, start: Deviations) -> None:
    """Standard normals made what the matrix that reads inputs starts from, in place."""
    if start.extra:
        along = torch.as_tensor(start.along, dtype=weights.dtype, device=weights.device)
        towards = (weights * along).sum(-1, keepdim=True) * along
        weights.mul_(start.weights[0]).add_(towards, alpha=start.extra)
    elif start.weights[0] != 1:
        weights.mul_(start.weights[0])


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
    if samples >= features or problem.changing:
        return x
    _, r = np.linalg.qr(x.T)
    return np.asarray(r.T)


class Trainer(Training[Parameters]):
    """Trains batches of perceptrons.  `x` is in the coordinates of `input_coordinates`, the first `features` of its
    columns; zeros follow, and zeros in W^0, where passes read rows by four (`finite_nets.device.fused`) and updates are
    made in the backward pass; other rules meet inputs as they are, by products where rows are not read by four."""

    def __init__(self, problem: Problem, device: torch.device, precision: Precision) -> None:
        inputs = input_coordinates(problem)
        super().__init__(problem, device, precision, inputs)
        task, network = problem.task, perceptron(problem.network, "this trainer", "take ProgramTrainer")
        self.perceptron = network
        self.depth, self.dimension = network.depth, task.dimension
        self.residual, self.branch, self.bias = network.residual, network.branch, network.bias
        self.deviations = initial_deviations(network, inputs, network.bias / input_scale(task.dimension))
        self._observed_inputs = task.x[self.observed]
        self.input_scale = input_scale(task.dimension)
        # updates are made in the backward pass; but that of a single output by PyTorch is also the one that is recorded
        self._in_pass = moves_weights_alone(self.training) and not (self.outputs == 1 and self.products.plain)
        self.features = self.x.shape[1]
        if self._in_pass and self.products.fused is not None and not problem.changing:
            self.x = pad(self.x, (0, -self.features % BY))

    def start(self, width: int, members: Tensor, root_seed: int, steps: int | None = None) -> State[Parameters]:
        return self.begin(self.draw(width, members, root_seed), steps)

    def draw(self, width: int, members: Tensor, root_seed: int) -> Weights:
        """The members' parameters at initialisation."""
        drawn = initialise(
            self.depth,
            self.features,
            width,
            members,
            root_seed=root_seed,
            precision=self.precision,
            outputs=self.outputs,
            biases=self.bias > 0,
            start=self.deviations,
        )
        zeros = self.x.shape[1] - self.features
        return drawn._replace(first=pad(drawn.first, (0, zeros))) if zeros else drawn

    @cached_property
    def input_kernel(self) -> Tensor:
        """K^x + sigma^2 of the observed samples, made when the NTK is asked for."""
        found = input_kernel(self._observed_inputs) + self.network.bias**2
        return torch.tensor(found, device=self.x.device, dtype=self.x.dtype)

    # ---- one pass, one update ----------------------------------------------------------------------------------------

    def outputs_at(self, state: State[Parameters], rows: Index) -> Tensor:
        return self._forward(state, self.x[rows])[0]

    def evaluate(self, state: State[Parameters], met: Met, *, gradients: bool) -> tuple[Fields, Fields]:
        x = self.inputs(met)
        output, layers = self._forward(state, x)
        output = self.counted(state, output, met.rows)
        target = self.targets[met.rows]
        delta = loss.descent(torch, self.loss, output, target)
        seen = Fields(x, target, output, delta, [layer.phi.values for layer in layers], [])
        every_output = state.weights.readout[:, None]
        if gradients:
            seen = seen._replace(gradients=self._backward(state, layers, every_output))
        if gradients and self.from_outputs and not self._in_pass:
            return seen, seen.at(met.trained)
        trained = seen._replace(gradients=[]).at(met.trained)
        layers = [layer.at(met.trained) for layer in layers]
        if self._in_pass:
            return seen, trained._replace(layers=layers)
        from_loss = not self.from_outputs
        starts = self.products.pullback(trained.delta, state.weights.readout)[:, :, None] if from_loss else every_output
        return seen, trained._replace(gradients=self._backward(state, layers, starts))

    def _forward(self, state: State[Parameters], x: Tensor) -> tuple[Tensor, list[Layer]]:
        """The output (member, sample, output), not centered; every layer."""
        weights, phi = state.weights, self.perceptron.activation
        scale = self.branch * hidden_scale(state.width)
        x = x.expand(len(weights.first), -1, -1)
        layer = self.products.activated(x, weights.first, phi, scale=self.input_scale, keep=self.residual)
        layers = [layer]
        for i, matrix in enumerate(weights.hidden):
            add = self.added(weights, i, layer.y)
            layer = matrix.activated(self.products, layer.phi, phi, scale=scale, add=add, keep=self.residual)
            layers.append(layer)
        return self.products.image(layer.phi.values, weights.readout, scale=state.scales.output), layers

    def added(self, weights: Parameters, i: int, below: Tensor | None) -> Tensor | None:
        """What h of the layer above hidden matrix `i` has besides its image: the bias, and h `below` in a residual
        network."""
        bias = self.branch * self.bias * weights.biases[i][:, None] if weights.biases else None
        if not self.residual or below is None:
            return bias
        return below if bias is None else below + bias

    def _backward(self, state: State[Parameters], layers: list[Layer], starts: Tensor) -> list[Tensor]:
        """g of every layer, (member, sample, start, N), from z^L (member, sample or 1, start, N)."""
        scale = self.branch * hidden_scale(state.width)
        gradients = [layers[-1].slope.values()[:, :, None] * starts]
        for matrix, layer in zip(reversed(state.weights.hidden), reversed(layers[:-1]), strict=True):
            above = gradients[0]
            g = matrix.pullback(self.products, above.flatten(1, 2), scale=scale, slope=layer.slope).reshape_as(above)
            gradients.insert(0, g.add_(above) if self.residual else g)
        return gradients

    def descend(self, state: State[Parameters], seen: Fields, keep: float, factor: float) -> None:
        """Layer by layer, each pulled back through as it was before its update."""
        if not self._in_pass:
            super().descend(state, seen, keep, factor)
            return
        weights, layers, x = state.weights, seen.layers, Field(seen.x.expand(len(seen.delta), -1, -1))
        forward, update = self.branch * hidden_scale(state.width), [factor * each for each in state.scales.update]
        if weights.trained[-1]:
            g = self.products.descend(  # from the loss
                weights.readout, seen.delta, layers[-1], scale=1.0, keep=keep, push=update[-1]
            )
        else:
            g = Field(self.products.pullback(seen.delta, weights.readout, slope=layers[-1].slope))
        first = Below(weights.first, x, keep, update[0] * self.input_scale)
        for i in reversed(range(len(weights.hidden))):
            matrix, layer, above = weights.hidden[i], layers[i], g
            moved = {"scale": forward, "keep": keep, "push": update[i + 1] * forward}
            if weights.biases and weights.trained[i + 1]:
                weights.biases[i].mul_(keep).add_(above.values.sum(1), alpha=update[i + 1] * self.branch * self.bias)
            if i == 0 and weights.trained[1] and weights.trained[0] and not self.residual:
                matrix.descend_both(self.products, above, layer, below=first, **moved)
                return
            if weights.trained[i + 1]:
                g = matrix.descend(self.products, above, layer, **moved)
            else:
                g = Field(matrix.pullback(self.products, above.values, scale=forward, slope=layer.slope))
            if self.residual:
                g = Field(g.values.add_(above.values))
        if weights.trained[0]:
            self.products.accumulate(first.w, g, first.x, None, keep=first.keep, scale=first.push)

    def push(
        self, state: State[Parameters], target: Parameters, seen: Fields, coefficients: Tensor, factor: float
    ) -> None:
        update, forward = state.scales.update, self.branch * hidden_scale(state.width)
        each: Tensor | None = None  # (member, sample), of the pushed fields
        if not self.from_outputs:
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

    # ---- all steps ---------------------------------------------------------------------------------------------------

    def begin(self, drawn: Weights, steps: int | None = None) -> State[Parameters]:
        """Training from these weights, which it moves, for so many steps; by default all of the problem."""
        width, members = drawn.readout.shape[-1], len(drawn.readout)
        pushes = self.stepping.pushes * (self.training.steps if steps is None else steps)
        pairs = room(width, self.batch, pushes, self.precision.start, drawn.first.device)
        weights = Parameters(
            drawn.first,
            [Matrix(start, Store(start, pairs, self.precision.fields)) for start in drawn.hidden],
            drawn.readout,
            drawn.biases,
            trained_layers(self.perceptron),
        )
        exploded_at = drawn.readout.new_full((members,), NEVER)
        found = scales(self.perceptron, width, self.dimension, self.batch)
        return State(weights, found, exploded_at, self.slots(weights))

    # ---- what is recorded --------------------------------------------------------------------------------------------

    def neurons(self, state: State[Parameters]) -> list[int]:
        return [state.width] * self.depth

    def tangent_kernel(self, state: State[Parameters], a: Fields, b: Fields, shown: Shown | None = None) -> Tensor:
        if shown is None:
            phi, g = kernels(self.products, a.features, b.features), kernels(self.products, a.gradients, b.gradients)
        else:
            phi, g = shown["feature_kernel"], shown["gradient_kernel"]
        return ntk(self.input_kernel[: len(a.x), : len(b.x)], phi, g, state.scales.tangent, self.bias)

    def preactivations(self, state: State[Parameters], seen: Fields, rows: Sequence[int]) -> list[Tensor]:
        """With one more product of each matrix: training keeps phi(h) and phi'(h) alone."""
        weights, phi, products = state.weights, self.perceptron.activation, self.products
        index = list(rows)
        x = seen.x[index].expand(len(weights.first), -1, -1)
        h = [_kept(products.activated(x, weights.first, phi, scale=self.input_scale, keep=True).y)]
        scale = self.branch * hidden_scale(state.width)
        for i, matrix in enumerate(weights.hidden):
            add = self.added(weights, i, h[-1])
            below = seen.features[i][:, index]
            h.append(_kept(matrix.activated(products, below, phi, scale=scale, add=add, keep=True).y))
        return h

    def eigenvalues(self, state: State[Parameters], *, preconditioned: bool = False) -> Tensor:  # noqa: ARG002
        return curvature.eigenvalues(curvature.Curvature(self, state))


def _kept(y: Tensor | None) -> Tensor:
    assert y is not None  # keep=True
    return y
