"""phi, phi' and phi'' of every `dmft.specs.Activation`, in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dmft.specs import Activation

Pair = tuple[Tensor, Tensor]


def function(activation: Activation) -> Callable[[Tensor], Pair]:
    """h -> phi(h), phi'(h), coordinatewise; the derivative of ReLU at zero is zero."""
    a = activation.gain

    def tanh(h: Tensor) -> Pair:
        t = torch.tanh(a * h)
        return t / a, 1 - t * t

    def relu(h: Tensor) -> Pair:
        slope = math.sqrt(2) * (h > 0).to(h.dtype)
        return math.sqrt(2) * torch.relu(h), slope

    def erf(h: Tensor) -> Pair:
        return torch.special.erf(h), 2 / math.sqrt(math.pi) * torch.exp(-(h**2))

    def gelu(h: Tensor) -> Pair:
        cdf = torch.special.ndtr(h)
        return h * cdf, cdf + h * torch.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)

    def softplus(h: Tensor) -> Pair:
        return torch.logaddexp(a * h, torch.zeros_like(h)) / a, torch.sigmoid(a * h)

    def linear(h: Tensor) -> Pair:
        return h, torch.ones_like(h)

    table: dict[str, Callable[[Tensor], Pair]] = {
        "tanh": tanh,
        "relu": relu,
        "erf": erf,
        "gelu": gelu,
        "softplus": softplus,
        "linear": linear,
    }
    return table[activation.name]


def bend(activation: Activation) -> Callable[[Tensor], Tensor]:
    """h -> phi''(h), coordinatewise; that of ReLU is 0, without its jump at the kink."""
    a = activation.gain

    def tanh(h: Tensor) -> Tensor:
        t = torch.tanh(a * h)
        return -2 * a * t * (1 - t * t)

    def erf(h: Tensor) -> Tensor:
        return -4 / math.sqrt(math.pi) * h * torch.exp(-(h**2))

    def gelu(h: Tensor) -> Tensor:
        return (2 - h**2) * torch.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)

    def softplus(h: Tensor) -> Tensor:
        return a * torch.sigmoid(a * h) * torch.sigmoid(-a * h)

    table: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": tanh,
        "relu": torch.zeros_like,
        "erf": erf,
        "gelu": gelu,
        "softplus": softplus,
        "linear": torch.zeros_like,
    }
    return table[activation.name]
