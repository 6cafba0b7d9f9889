"""The curvature of the loss of a batch of networks of any architecture, by differentiating their program twice
(`dmft.specs.curvature`; of perceptrons, on their fields, `finite_nets.training.curvature`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmft.specs import loss
from dmft.specs.curvature import roots, start_coefficients
from finite_nets.device.products import Products
from finite_nets.training import curvature
from finite_nets.training.tape import Constants

if TYPE_CHECKING:
    from finite_nets.training.programs import Leaves, ProgramTrainer
    from finite_nets.training.state import State


class Hessian(curvature.Flat):
    """A of a batch of networks (`dmft.specs.curvature`), on all their weights: (member, number).

    Directions take as much memory as the weights, each: more than fields alone, which perceptrons get by with
    (`finite_nets.training.curvature`).
    """

    def __init__(self, trainer: ProgramTrainer, state: State[Leaves], P: Sequence[Tensor] | None = None) -> None:
        n, layers = trainer.n_train, state.weights.layers
        scales = trainer.scales(state.width, n)
        by_layer = roots(scales.update, scales.output, n)
        rates = (trainer.numbers.rate(number, state.width) for number in range(len(layers)))
        self._roots = [by_layer[layer] * math.sqrt(rate) for layer, rate in zip(layers, rates, strict=True)]
        if P is not None:  # of the metric of an adaptive optimiser
            self._roots = [root * each.flatten(1).sqrt() for root, each in zip(self._roots, P, strict=True)]
        self._a = torch.tensor(start_coefficients(n, trainer.outputs))
        with torch.inference_mode(False), torch.enable_grad():
            x, target = trainer.x[:n].clone(), trainer.targets[:n].clone()
            self._leaves = [tensor.clone().requires_grad_() for tensor in state.weights.tensors]
            products = Products(trainer.precision, x.device, kernels=False)
            tape = trainer.tape(self._leaves, products, Constants(x), n, traced=False)
            end, readout = trainer.network.program(tape, x).value.value, self._leaves[trainer.numbers.readout]
            self._output = trainer.output(end, readout, products, scales.output)
            beyond = trainer.counted(state, self._output, slice(0, n)) - self._output
            counted = self._output + beyond.detach()
            losses = loss.values(torch, trainer.loss, counted, target).mean(1).sum()
            self._slopes = torch.autograd.grad(losses, self._leaves, create_graph=True, materialize_grads=True)

    def start(self) -> Tensor:
        """M^(1/2) J^T a."""
        a = self._a.to(self._output).expand_as(self._output)
        return self._flat(self._pulled([self._output], [a]))

    def image(self, q: Tensor) -> Tensor:
        """q: directions are the weights themselves."""
        return q

    def product(self, image: Tensor) -> Tensor:
        """A q."""
        parts = torch.split(image, [tensor[0].numel() for tensor in self._leaves], dim=1)
        scaled = [root * part for root, part in zip(self._roots, parts, strict=True)]
        with torch.inference_mode(False):
            moved = [part.reshape_as(tensor).clone() for part, tensor in zip(scaled, self._leaves, strict=True)]
        # what the loss does not depend on, or linearly alone, has no slope that changes
        pairs = [(slope, part) for slope, part in zip(self._slopes, moved, strict=True) if slope.requires_grad]
        return self._flat(self._pulled(*zip(*pairs, strict=True)))

    def _pulled(self, ends: Sequence[Tensor], seeds: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(ends, self._leaves, seeds, retain_graph=True, materialize_grads=True)

    def _flat(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([root * part.flatten(1) for root, part in zip(self._roots, parts, strict=True)], dim=1)
