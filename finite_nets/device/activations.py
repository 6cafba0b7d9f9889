"""phi, phi' and phi'' of every `dmft.specs.Activation`, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def differentiable(activation: Activation, h: Tensor) -> Tensor:
    """phi(h), whose derivatives by PyTorch are phi'(h) and those of phi'."""
    return _Differentiable.apply(h, activation)  # type: ignore[no-any-return, no-untyped-call]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(h)
        ctx.activation = activation
        phi: Tensor = activation.both(torch, h)[0]
        return phi

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        return g * ctx.activation.both(torch, h)[1], None
