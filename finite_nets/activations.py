"""phi, phi' and phi'' of every `dmft.specs.Activation`, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmft.specs import Activation

Pair = tuple[Tensor, Tensor]


def function(activation: Activation) -> Callable[[Tensor], Pair]:
    """h -> phi(h), phi'(h), coordinatewise; the derivative of ReLU at zero is zero."""
    return lambda h: activation.both(torch, h)


def bend(activation: Activation) -> Callable[[Tensor], Tensor]:
    """h -> phi''(h), coordinatewise, without what jumps of phi' add to it."""
    if activation.formula is None:
        return lambda h: activation.bend(torch, h)

    def differentiated(h: Tensor) -> Tensor:
        # out of the inference that networks are trained in, which keeps no graph
        with torch.inference_mode(False), torch.enable_grad():
            own = h.clone().requires_grad_()
            slope = activation.both(torch, own)[1]
            if not slope.requires_grad:  # constant
                return torch.zeros_like(own).detach()
            return torch.autograd.grad(slope.sum(), own)[0]

    return differentiated
