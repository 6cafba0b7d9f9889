"""The metric in which adaptive optimisers descend, of a batch of networks (`dmft.schema.observed.preconditioned_ntk`):

    K_ab = sum over weights of (N / N_w^2) <J^a_ij P_ij J^b_ij>     J^a_ij = sum_uses sum_y g_ayi v_ayj of one event

with the scales of `finite_nets.training.programs`; its curvature is that of `finite_nets.training.hessian`, with P.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from finite_nets.training import entrywise
from finite_nets.training.traces import Trace, Use, joined

if TYPE_CHECKING:
    from finite_nets.training.programs import Leaves, ProgramTrainer
    from finite_nets.training.state import Fields, State


def of_step(trainer: ProgramTrainer, state: State[Leaves], trained: Fields, t: int) -> list[Tensor]:
    """P of the weights by number, in the step that follows a pass, which it does not take."""
    rule: Any = trainer.training
    time = float(t)
    P = [torch.ones_like(theta) for theta in state.weights.tensors]
    for number, _, G, before in entrywise.gradients(trainer, state, trained):
        kept, _ = rule.stepped(torch, time, before, G)
        P[number] = rule.preconditioner(torch, time, kept)
    return P


def tangent_kernel(
    trace: Trace, P: Sequence[Tensor], factors: Sequence[float], inputs: Sequence[float]
) -> Tensor | float:
    """(member, event, event_2): the part of all weights but the readout, of a pass that started from every output;
    factors, inputs: as of `finite_nets.training.traces.tangent_kernel`."""
    total: Tensor | float = 0.0
    for number in dict.fromkeys(use.number for use in trace.uses):
        if factors[number]:
            use = joined([use for use in trace.uses if use.number == number])
            total = total + factors[number] * inputs[number] * _part(use, P[number])
    return total


def _part(use: Use, P: Tensor) -> Tensor:
    """Averages over neurons, sums over what is given."""
    starts, width = use.gradient.shape[2], use.gradient.shape[-1]
    g = use.gradient.flatten(1, 2)  # (member, event, position, N)
    if use.given is None:
        P, v = P[..., None], g.new_ones((1, g.shape[1], g.shape[2], 1))
    else:
        v = use.given.repeat_interleave(starts, 1)
    found = []
    for event in range(g.shape[1]):
        X = P * (g[:, event].mT @ v[:, event])
        found.append((g * (v @ X.mT[:, None])).sum((2, 3)) / width)
    return torch.stack(found, 1)
