"""What is recorded of a batch of networks at a step, with a leading axis `member`.

Phi^l = phi(h^l) . phi(h^l)' / N    G^l = g^l . g^l' / N    K = sum_{l=0..L} G^{l+1} Phi^l,  Phi^0 = K^x, G^{L+1} = 1
"""

from __future__ import annotations

import torch
from torch import Tensor


def kernels(fields: list[Tensor]) -> Tensor:
    """(member, layer, sample, sample_2): averages over neurons of products of the fields (member, sample, N)."""
    return torch.stack([field @ field.mT / field.shape[-1] for field in fields], dim=1)


def two_time_kernels(fields: list[Tensor]) -> Tensor:
    """(member, layer, step, sample, step_2, sample_2) from fields (step, member, sample, N) a layer."""
    flat = [field.movedim(0, 1).flatten(1, 2) for field in fields]
    steps, _, samples, _ = fields[0].shape
    return kernels(flat).reshape(fields[0].shape[1], len(fields), steps, samples, steps, samples)


def ntk(input_kernel: Tensor, feature_kernel: Tensor, gradient_kernel: Tensor) -> Tensor:
    """(member, sample, sample_2), from kernels (member, layer, sample, sample_2)."""
    inner = (gradient_kernel[:, 1:] * feature_kernel[:, :-1]).sum(1)
    return gradient_kernel[:, 0] * input_kernel + inner + feature_kernel[:, -1]
