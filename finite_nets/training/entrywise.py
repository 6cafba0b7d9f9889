"""A step of an optimiser that moves each entry by its own rule (`dmft.specs.training.entrywise`), in place:

    G = D / (gamma0 s)      (state, Q) = rule(state, G)      theta <- (1 - eta lambda) theta + eta gamma0 s Q

of every weight of a program, where D is the direction of a pass, and the last slot has the room for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmft.specs.parameterization import matrix_step

if TYPE_CHECKING:
    from finite_nets.training.programs import Leaves, ProgramTrainer
    from finite_nets.training.state import Fields, State

WORKING = 8  # arrays of the size of the largest weight that a rule makes, at once: measured 6.3 of Adam, 8 of Muon


def copies(training: Any) -> int:
    """How many arrays of the size of the parameters are held at once, the parameters among them; besides, a rule makes
    `WORKING` of the largest weight."""
    slots: int = training.slots
    return 2 + slots


def numbers(training: Any, t: int) -> tuple[float, float, float]:
    """What of step t depends on the time: t itself, 1 - eta lambda, eta."""
    ((keep,),), (rate,) = training.recurrence(t)
    return float(t), keep, rate


def descend(trainer: ProgramTrainer, state: State[Leaves], _: Fields, trained: Fields, t: int) -> None:
    """Step t, in place, from the fields trained on; on a GPU recorded steps go on from the tensors that are there."""
    step(trainer, state, trained, *numbers(trainer.training, t), replace=trainer.x.device.type != "cuda")


def step(
    trainer: ProgramTrainer, state: State[Leaves], trained: Fields, t: Any, keep: Any, rate: Any, *, replace: bool
) -> None:
    """A step with these numbers, or tensors of one; `replace`: whether states may be other tensors after it, which
    takes less time."""
    rule: Any = trainer.training
    *memory, _ = state.slots
    for number, unit, G, before in gradients(trainer, state, trained):
        whole = rule.by_matrix and number in trainer.between_neurons
        kept, Q = rule.matrix(torch, before, G) if whole else rule.stepped(torch, t, before, G)
        for slot, new in zip(memory, kept, strict=True):
            if replace:
                slot.tensors[number] = new
            else:
                slot.tensors[number].copy_(new)
        state.weights.tensors[number].mul_(keep).add_(Q * (rate * unit))


def gradients(
    trainer: ProgramTrainer, state: State[Leaves], trained: Fields
) -> Iterator[tuple[int, Any, Tensor, tuple[Tensor, ...]]]:
    """Of the weights that are trained: their numbers, gamma0 s, G, in the room of the last slot, and states."""
    rule: Any = trainer.training
    *memory, direction = state.slots
    for part in direction.parts():
        part.zero_()
    trainer.push(state, direction, trained, trained.delta, 1.0)
    if rule.divided_by:
        _normalize(trainer, state, direction)
    steps, weights = trainer.entry_steps(state.width), state.weights
    for number, (theta, layer) in enumerate(zip(weights.tensors, weights.layers, strict=True)):
        if weights.trained[layer]:
            whole = rule.by_matrix and number in trainer.between_neurons
            unit = matrix_step(trainer.network.gamma0, theta.shape[-2]) if whole else steps[number]
            yield number, unit, direction.tensors[number].div_(unit), tuple(slot.tensors[number] for slot in memory)


def _normalize(trainer: ProgramTrainer, state: State[Leaves], direction: Leaves) -> None:
    """Divide D by the norm that the optimiser says, of each weight or of all (`dmft.specs.training.normalized`)."""
    rule: Any = trainer.training
    moved = [n for n, layer in enumerate(direction.layers) if direction.trained[layer]]
    neurons = trainer.neurons_reached(state.width)
    squares = {n: direction.tensors[n].flatten(1).square().sum(1) / trainer.network.gamma0**2 for n in moved}
    if rule.divided_by == "all":
        each = [square / (1 if neurons[n] is None else state.width) for n, square in squares.items()]
        squares = dict.fromkeys(moved, torch.stack(each).sum(0))
    else:
        squares = {n: square / (neurons[n] or 1) for n, square in squares.items()}
    for n, square in squares.items():
        D = direction.tensors[n]
        D.mul_(rule.factor(torch, square).reshape(-1, *[1] * (D.ndim - 1)))
