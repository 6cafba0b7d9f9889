"""A batch of networks of one width: initialisation, forward, hand-written backward, training.

    h^1 = W^0 x / sqrt(D)     h^{l+1} = [h^l +] b W^l phi(h^l) / sqrt(N)          f_c = w_c . phi(h^L) / (gamma0 N)
    g^L = phi'(h^L) w_c       g^l = [g^{l+1} +] b phi'(h^l) W^l^T g^{l+1} / sqrt(N)      (g^l = gamma0 N df_c/dh^l)
    W^l += c b sum_a Delta_a g^{l+1}_a phi(h^l_a)^T / sqrt(N), and alike for W^0 and w  (`dmft.specs.parameterization`)

In brackets what a residual network adds; b is 1 without.  Sums run over the samples and outputs of a batch.  With
momentum beta and weight decay lambda (`dmft.specs.training`), D the sum with gamma0 / P in place of c:

    v <- beta v + D - lambda theta;      theta <- theta + eta v                      (gradient flow: `finite_nets.flow`)

Every array has the member of the ensemble as its first axis; a layer's fields are (member, sample, neuron), so that all
products are batched matrix products.  The backward pass starts from every output, as kernels need it, or from the loss,
sum_c Delta_c w_c: then its cost does not grow with the outputs.

Cost of a step, a hidden layer and a member: weights of 4 N^2 bytes (float32) are read forward and backward and read
and written by the update; 2 N^2 P floating-point operations for each of the three products.
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

from dmft.errors import DivergenceError, exploded
from dmft.specs import GradientFlow, Problem, loss
from dmft.specs.parameterization import batch_scale, hidden_scale, input_kernel, input_scale, output_scale
from finite_nets import flow
from finite_nets.activations import functions
from finite_nets.random import normals

NEVER = math.inf  # the step at which a healthy member explodes
Index = slice | Tensor


@dataclass
class Weights:
    """Parameters of a batch, or what moves them, updated in place.

    first: (member, N, D); hidden: L-1 of (member, N, N); readout: (member, output, N).
    """

    first: Tensor
    hidden: list[Tensor]
    readout: Tensor

    @property
    def width(self) -> int:
        return self.readout.shape[-1]

    @property
    def all(self) -> list[Tensor]:
        return [self.first, *self.hidden, self.readout]

    def scale(self, factor: float) -> None:
        for parameter in self.all:
            parameter.mul_(factor)

    def add(self, other: Weights, factor: float) -> None:
        for parameter, change in zip(self.all, other.all, strict=True):
            parameter.add_(change, alpha=factor)

    def zeros(self) -> Weights:
        first, *hidden, readout = (torch.zeros_like(parameter) for parameter in self.all)
        return Weights(first, hidden, readout)


@dataclass
class State:
    """Networks in training.

    velocity: v, or None without momentum.
    offset: (member, sample, output), the output at initialisation, which a centered network subtracts; zero for others.
    carried: (member, sample, output), the output where it follows the NTK (`finite_nets.flow`), else None.
    """

    weights: Weights
    velocity: Weights | None = None
    offset: Tensor | None = None
    carried: Tensor | None = None


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
    dtype: torch.dtype,
    outputs: int = 1,
) -> Weights:
    """iid N(0,1) parameters of the members with the given seed indices (int64)."""

    def draw(parameter: int, *shape: int) -> Tensor:
        return normals(shape, root_seed=root_seed, width=width, parameter=parameter, members=members, dtype=dtype)

    return Weights(
        first=draw(0, width, dimension),
        hidden=[draw(layer, width, width) for layer in range(1, depth)],
        readout=draw(depth, outputs, width),
    )


def span_coordinates(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inputs (sample, feature) in an orthonormal basis of their span, when that has fewer dimensions.

    Gaussian weights look the same in every orthonormal basis and training leaves those across the span alone, so a
    network on these coordinates is, in law, the network on x; images of 784 pixels cost no more than P numbers.
    Weight decay is the same in every orthonormal basis, too.
    """
    samples, features = x.shape
    if samples >= features:
        return x
    _, r = np.linalg.qr(x.T)
    return np.asarray(r.T)


class Trainer:
    """Trains batches of networks on one problem.  `x` is in the coordinates of `span_coordinates`."""

    def __init__(self, problem: Problem, device: torch.device, dtype: torch.dtype) -> None:
        task, network, training = problem.task, problem.network, problem.training
        self.depth, self.gamma0, self.centered = network.depth, network.gamma0, network.centered
        self.residual, self.branch = network.residual, network.branch
        self.phi, self.dphi = functions(network.activation)
        self.loss = problem.loss
        self.x = torch.tensor(span_coordinates(task.x), device=device, dtype=dtype)
        self.targets = torch.tensor(task.targets, device=device, dtype=dtype)
        self.n_train, self.outputs = task.n_train, task.targets.shape[1]
        self.observed = problem.observed
        self.input_kernel = torch.tensor(input_kernel(task.x[self.observed]), device=device, dtype=dtype)
        self.input_scale = input_scale(task.dimension)
        self.training, self.rates = training, training.rates.tolist()
        self.scheme = training.scheme if isinstance(training, GradientFlow) else "descent"
        self.batches = None if training.batches is None else torch.tensor(problem.batches, device=device)
        self.batch_scale = batch_scale(network.gamma0, problem.batches.shape[1])

    # ---- one pass, one update ----------------------------------------------------------------------------------------

    def evaluate(self, state: State, met: Met, *, gradients: bool) -> tuple[Fields, Fields]:
        """Forward through the samples met and backward: their fields, and the fields of those trained on.

        With `gradients` the backward pass is that of all outputs of all samples met.  Else it is left out for the
        samples met, and starts for those trained on from the loss, unless there is a single output or a flow.
        """
        weights = state.weights
        output, h, features = self._forward(weights, self.x[met.rows])
        output = self._counted(state, output, met.rows)
        target = self.targets[met.rows]
        delta = loss.descent(torch, self.loss, output, target)
        met_fields = Fields(self.x[met.rows], target, output, delta, features, [])
        every_output = weights.readout[:, None]
        if gradients:
            met_fields = met_fields._replace(gradients=self._backward(weights, h, every_output))
            return met_fields, met_fields.at(met.trained)
        trained = met_fields.at(met.trained)
        each = self.outputs == 1 or self.scheme != "descent"
        starts = every_output if each else (trained.delta @ weights.readout)[:, :, None]
        return met_fields, trained._replace(
            gradients=self._backward(weights, [field[:, met.trained] for field in h], starts)
        )

    def _forward(self, weights: Weights, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The output (member, sample, output), not centered; h and phi(h) of every layer."""
        scale = self.branch * hidden_scale(weights.width)
        h = [x @ weights.first.mT * self.input_scale]
        features = [self.phi(h[0])]
        for matrix in weights.hidden:
            image = features[-1] @ matrix.mT * scale
            h.append(h[-1] + image if self.residual else image)
            features.append(self.phi(h[-1]))
        output = torch.einsum("msn,mcn->msc", features[-1], weights.readout) * output_scale(self.gamma0, weights.width)
        return output, h, features

    def _backward(self, weights: Weights, h: list[Tensor], starts: Tensor) -> list[Tensor]:
        """g of every layer, (member, sample, start, N), from z^L (member, sample or 1, start, N)."""
        scale = self.branch * hidden_scale(weights.width)
        gradients = [self.dphi(h[-1])[:, :, None] * starts]
        for matrix, preactivation in zip(reversed(weights.hidden), reversed(h[:-1]), strict=True):
            z = gradients[0].flatten(1, 2) @ matrix * scale
            g = self.dphi(preactivation)[:, :, None] * z.reshape_as(gradients[0])
            gradients.insert(0, gradients[0] + g if self.residual else g)
        return gradients

    def _counted(self, state: State, output: Tensor, rows: Index) -> Tensor:
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

    def push(self, target: Weights, seen: Fields, coefficients: Tensor, factor: float) -> None:
        """Add to `target` the direction of the pass: `factor` times its sum over samples and outputs.

        `coefficients` (member, sample, output) are Delta, or stand in its place where passes start from outputs.
        """
        change = factor * coefficients
        from_outputs = seen.gradients[0].shape[2] == self.outputs
        pushed = [g * (change[..., None] if from_outputs else factor) for g in seen.gradients]
        pushed = [(p[:, :, 0] if p.shape[2] == 1 else p.sum(2)).mT for p in pushed]
        target.first.baddbmm_(pushed[0], seen.x.expand(len(change), -1, -1), alpha=self.input_scale)
        scale = self.branch * hidden_scale(target.width)
        for matrix, push, feature in zip(target.hidden, pushed[1:], seen.features[:-1], strict=True):
            matrix.baddbmm_(push, feature, alpha=scale)
        target.readout.add_(change.mT @ seen.features[-1])

    def descend(self, state: State, seen: Fields, rate: float) -> None:
        """A step of gradient descent, in place, from the fields trained on."""
        weights, velocity, decay = state.weights, state.velocity, self.training.weight_decay
        if velocity is None:
            if decay:
                weights.scale(1 - rate * decay)
            self.push(weights, seen, seen.delta, rate * self.batch_scale)
            return
        velocity.scale(self.training.momentum)
        if decay:
            velocity.add(weights, -decay)
        self.push(velocity, seen, seen.delta, self.batch_scale)
        weights.add(velocity, rate)

    # ---- all steps ---------------------------------------------------------------------------------------------------

    def begin(self, weights: Weights) -> State:
        """Training from these weights, which it moves."""
        return State(weights, weights.zeros() if self.training.momentum else None)

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

    def run(self, weights: Weights, save_steps: frozenset[int], *, gradients: bool = True) -> Iterator[Fields]:
        """Train to the last step of `save_steps`, yielding the fields of observed samples before the update of each.

        Without `gradients` their backward fields are left out.

        Raises:
            DivergenceError: at the end, if members exploded (`dmft.errors`) at any step, saved or not, by the loss of
                its batch.
        """
        state, last = self.begin(weights), max(save_steps)
        initial_loss = torch.zeros_like(weights.readout[:, 0, 0])
        exploded_at = torch.full_like(initial_loss, NEVER)
        for t in range(last + 1):
            saved, euler = t in save_steps, self.scheme == "euler"  # whose output changes everywhere
            met = self.meet(t, everything=saved or euler or (t == 0 and self.centered))
            seen, trained = self.evaluate(state, met, gradients=(saved and gradients) or euler)
            batch_loss = loss.values(torch, self.loss, trained.output, trained.target).mean(1)
            initial_loss = batch_loss if t == 0 else initial_loss
            exploded_at = torch.where(exploded(batch_loss, initial_loss), exploded_at.clamp(max=t), exploded_at)
            if saved:
                yield seen.at(met.observed)
            if t < last:
                self.advance(state, t, seen, trained)
        self._raise_if_exploded(exploded_at)

    def _raise_if_exploded(self, exploded_at: Tensor) -> None:
        bad = exploded_at < NEVER
        if bool(bad.any()):
            raise DivergenceError(
                f"{int(bad.sum())} of {len(bad)} networks trained together diverge, the first at step "
                f"{int(exploded_at.min())}. Lower {self.training.largest_step}, or gamma0={self.gamma0}."
            )
