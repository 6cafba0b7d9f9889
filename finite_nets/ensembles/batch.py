"""A batch of networks, trained to its end: what was recorded of every member, or moments over blocks of members."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from dmft import schema
from finite_nets.ensembles.moments import BlockMoments, Blocks
from finite_nets.ensembles.recording import Plan, Results
from finite_nets.training.state import State
from finite_nets.training.trainer import Training


class Run(Protocol):
    """Networks in training, all of one batch.

    exploded_at: (member,), steps, infinite for the healthy; known at the end.
    """

    exploded_at: Tensor

    def recorded(self) -> Iterator[tuple[str, Tensor]]:
        """Train to the end, from the start at every call; what is recorded, one saved step after the other, and of all
        of them at the end."""
        ...


class Stepped:
    """Networks that are trained step by step.

    Args:
        start: begins their training.
    """

    exploded_at: Tensor

    def __init__(self, plan: Plan, trainer: Training[Any], start: Callable[[], State[Any]]) -> None:
        self._plan, self._trainer, self._start = plan, trainer, start

    def recorded(self) -> Iterator[tuple[str, Tensor]]:
        plan, trainer, state = self._plan, self._trainer, self._start()
        recorder, self.exploded_at = plan.recorder(trainer, state), state.exploded_at
        steps = frozenset(plan.steps.tolist())
        for fields in trainer.run(state, steps, gradients=plan.gradients, fields=plan.fields):
            yield from recorder.step(fields)
            del fields  # the next pass takes their memory
        yield from recorder.between_steps()


def members(plan: Plan, run: Run) -> Results:
    """Train a batch to its end; the recorded variables (member, ...), whatever became of the members."""
    seen: dict[str, list[Tensor]] = {}
    for name, value in run.recorded():
        seen.setdefault(name, []).append(value)
    return {name: _over_steps(plan, name, values).cpu().numpy() for name, values in seen.items()}


def moments(plan: Plan, run: Run, targets: Tensor, blocks: Blocks) -> BlockMoments:
    """Train a batch to its end; the moments of its blocks.  Targets are those observed, (sample, output)."""
    predictions: list[Tensor] = []
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, value in run.recorded():
        if name == "prediction":
            predictions.append(value)
        else:
            seen.setdefault(name, []).append(blocks.moments(value))
    prediction = _over_steps(plan, "prediction", predictions)
    found = {}
    for name, values in seen.items():
        means, squares = zip(*values, strict=True)
        found[name] = _over_steps(plan, name, list(means)), _over_steps(plan, name, list(squares))
    of = {"xp": torch, "targets": targets.double()}
    following = schema.of_predictions(plan.problem, prediction.double(), plan.observables, **of)
    for name, value in {"prediction": prediction, **following}.items():
        found[name] = blocks.moments(value)
    found = {name: found[name] for name in plan.quantities}
    return blocks.collected(found, blocks.products(prediction) if plan.covariance else None)


def _over_steps(plan: Plan, name: str, values: list[Tensor]) -> Tensor:
    """The values of all steps as one array (member or block, ...)."""
    if "step_2" in plan.dims(name):
        return values[0]
    return torch.stack(values, dim=1 + plan.step_axis(name))
