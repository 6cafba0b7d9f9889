"""phi and phi' of every `dmft.specs.Activation`, in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dmft.specs import Activation

Function = Callable[[Tensor], Tensor]


def _gaussian_cdf(h: Tensor) -> Tensor:
    cdf: Tensor = torch.special.ndtr(h)
    return cdf


def _gaussian_pdf(h: Tensor) -> Tensor:
    return torch.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)


def functions(activation: Activation) -> tuple[Function, Function]:
    """(phi, phi'), coordinatewise; the derivative of ReLU at zero is zero."""
    a = activation.gain
    table: dict[str, tuple[Function, Function]] = {
        "tanh": (lambda h: torch.tanh(a * h) / a, lambda h: 1 - torch.tanh(a * h) ** 2),
        "relu": (lambda h: math.sqrt(2) * torch.relu(h), lambda h: math.sqrt(2) * (h > 0).to(h.dtype)),
        "erf": (torch.special.erf, lambda h: 2 / math.sqrt(math.pi) * torch.exp(-(h**2))),
        "gelu": (lambda h: h * _gaussian_cdf(h), lambda h: _gaussian_cdf(h) + h * _gaussian_pdf(h)),
        "softplus": (lambda h: torch.logaddexp(a * h, torch.zeros_like(h)) / a, lambda h: torch.sigmoid(a * h)),
        "linear": (lambda h: h, torch.ones_like),
    }
    return table[activation.name]
