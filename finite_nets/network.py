"""A batch of MLPs of one width: initialisation, forward, hand-written backward, update.

    h^1 = W^0 x / sqrt(D)     h^{l+1} = W^l phi(h^l) / sqrt(N)     f = w . phi(h^L) / (gamma0 N)
    g^L = phi'(h^L) w         g^l = phi'(h^l) W^l^T g^{l+1} / sqrt(N)             (g^l = gamma0 N df/dh^l)
    W^l += c sum_a Delta_a g^{l+1}_a phi(h^l_a)^T / sqrt(N), and alike for W^0 and w     (`dmft.specs.parameterization`)

Every array has the member of the ensemble as its first axis; a layer's fields are (member, sample, neuron), so that all
products are batched matrix products.

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
from dmft.specs import Problem
from dmft.specs.parameterization import batch_scale, hidden_scale, input_scale, output_scale
from finite_nets.activations import functions
from finite_nets.random import normals


@dataclass
class Weights:
    """Parameters of a batch, updated in place.

    first: (member, N, D); hidden: L-1 of (member, N, N); readout: (member, N).
    """

    first: Tensor
    hidden: list[Tensor]
    readout: Tensor

    @property
    def width(self) -> int:
        return self.readout.shape[1]


NEVER = math.inf  # the step at which a healthy member explodes


class Fields(NamedTuple):
    """One step before its update.  output (member, sample); the others a list over layers of (member, sample, N)."""

    output: Tensor
    features: list[Tensor]
    gradients: list[Tensor]


def initialise(
    depth: int, dimension: int, width: int, members: Tensor, *, root_seed: int, dtype: torch.dtype
) -> Weights:
    """iid N(0,1) parameters of the members with the given seed indices (int64)."""

    def draw(parameter: int, *shape: int) -> Tensor:
        return normals(shape, root_seed=root_seed, width=width, parameter=parameter, members=members, dtype=dtype)

    return Weights(
        first=draw(0, width, dimension),
        hidden=[draw(layer, width, width) for layer in range(1, depth)],
        readout=draw(depth, width),
    )


def span_coordinates(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inputs (sample, feature) in an orthonormal basis of their span, when that has fewer dimensions.

    Gaussian weights look the same in every orthonormal basis and training leaves those across the span alone, so a
    network on these coordinates is, in law, the network on x; images of 784 pixels cost no more than P numbers.
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
        self.phi, self.dphi = functions(network.activation)
        self.x = torch.tensor(span_coordinates(task.x), device=device, dtype=dtype)
        self.y = torch.tensor(task.y, device=device, dtype=dtype)
        self.input_kernel = torch.tensor(task.input_kernel, device=device, dtype=dtype)
        self.n_train = task.n_train
        self.input_scale = input_scale(task.dimension)
        self.learning_rate = training.learning_rate
        self.c = training.learning_rate * batch_scale(network.gamma0, task.n_train)

    def fields(self, weights: Weights, samples: int) -> Fields:
        """Forward and backward through the first `samples` inputs; the output is not centered."""
        scale = hidden_scale(weights.width)
        h = [self.x[:samples] @ weights.first.mT * self.input_scale]
        features = [self.phi(h[0])]
        for matrix in weights.hidden:
            h.append(features[-1] @ matrix.mT * scale)
            features.append(self.phi(h[-1]))
        output = (features[-1] @ weights.readout[:, :, None])[..., 0] * output_scale(self.gamma0, weights.width)

        gradients = [self.dphi(h[-1]) * weights.readout[:, None, :]]
        for matrix, preactivation in zip(reversed(weights.hidden), reversed(h[:-1]), strict=True):
            gradients.insert(0, self.dphi(preactivation) * (gradients[0] @ matrix * scale))
        return Fields(output, features, gradients)

    def update(self, weights: Weights, fields: Fields, offset: Tensor) -> None:
        """One step of gradient descent, in place; `fields` may hold more than the training samples."""
        n = self.n_train
        change = self.c * (self.y[:n] - (fields.output - offset)[:, :n])  # (member, sample): c Delta
        features = [field[:, :n] for field in fields.features]
        pushed = [(field[:, :n] * change[:, :, None]).mT for field in fields.gradients]
        weights.first.baddbmm_(pushed[0], self.x[:n].expand(len(change), -1, -1), alpha=self.input_scale)
        for matrix, push, feature in zip(weights.hidden, pushed[1:], features[:-1], strict=True):
            matrix.baddbmm_(push, feature, alpha=hidden_scale(weights.width))
        weights.readout.add_((change[:, None, :] @ features[-1])[:, 0])

    def run(self, weights: Weights, save_steps: frozenset[int]) -> Iterator[Fields]:
        """Train to the last step of `save_steps`, yielding the fields of all samples before the update of each.

        Raises:
            DivergenceError: at the end, if the loss of members exploded (`dmft.errors`) at any step, saved or not.
        """
        n = self.n_train
        offset = torch.zeros_like(weights.readout[:, :1])
        initial_loss = torch.zeros_like(weights.readout[:, 0])
        exploded_at = torch.full_like(initial_loss, NEVER)
        for t in range(max(save_steps) + 1):
            everything = t in save_steps or (t == 0 and self.centered)
            fields = self.fields(weights, len(self.x) if everything else n)
            if t == 0 and self.centered:
                offset = fields.output
            loss = ((fields.output[:, :n] - offset[:, :n] - self.y[:n]) ** 2).mean(1) / 2
            initial_loss = loss if t == 0 else initial_loss
            exploded_at = torch.where(exploded(loss, initial_loss), exploded_at.clamp(max=t), exploded_at)
            if t in save_steps:
                yield fields._replace(output=fields.output - offset)
            if t < max(save_steps):
                self.update(weights, fields, offset[:, : fields.output.shape[1]])
        self._raise_if_exploded(exploded_at)

    def _raise_if_exploded(self, exploded_at: Tensor) -> None:
        bad = exploded_at < NEVER
        if bool(bad.any()):
            raise DivergenceError(
                f"{int(bad.sum())} of {len(bad)} networks trained together diverge, the first at step "
                f"{int(exploded_at.min())}. Lower learning_rate={self.learning_rate}, or gamma0={self.gamma0}."
            )
