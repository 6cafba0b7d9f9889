"""A step of an optimiser that moves each entry by its own rule (`dmft.specs.training.entrywise`), in place:

    G = D / (gamma0 s)      (state, Q) = rule(state, G)      theta <- (1 - eta lambda) theta + eta gamma0 s Q

of every weight of a program, where D is the direction of a pass, and the last slot has the room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dmft.specs.parameterization import matrix_step

if TYPE_CHECKING:
    from finite_nets.training.programs import Leaves, ProgramTrainer
    from finite_nets.training.trainer import Fields, State

WORKING = 8  # arrays of the size of the largest weight that a rule makes, at once: measured 6.3 of Adam, 8 of Muon


def copies(training: Any) -> int:
    """How many arrays of the size of the parameters are held at once, the parameters among them; besides, a rule makes
    `WORKING` of the largest weight."""
    slots: int = training.slots
    return 2 + slots


def descend(trainer: ProgramTrainer, state: State[Leaves], _: Fields, trained: Fields, t: int) -> None:
    """Step t, in place, from the fields trained on."""
    rule: Any = trainer.training
    *memory, direction = state.slots
    ((keep,),), (rate,) = rule.recurrence(t)
    for part in direction.parts():
        part.zero_()
    trainer.push(state, direction, trained, trained.delta, 1.0)
    steps, weights = trainer.entry_steps(state.width), state.weights
    for number, (theta, layer) in enumerate(zip(weights.tensors, weights.layers, strict=True)):
        if not weights.trained[layer]:
            continue
        G, state_of = direction.tensors[number].div_(steps[number]), tuple(slot.tensors[number] for slot in memory)
        step = steps[number]
        if rule.by_matrix and number in trainer.between_neurons:
            kept, Q = rule.matrix(torch, state_of, G)
            step = matrix_step(trainer.network.gamma0, theta.shape[-2])
        else:
            kept, Q = rule.stepped(torch, t, state_of, G)
        for slot, new in zip(memory, kept, strict=True):
            slot.tensors[number] = new
        theta.mul_(keep).add_(Q * (rate * step))
