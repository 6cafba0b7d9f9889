"""accuracy(step), test_accuracy(step): share of the training, or test, samples that is classified correctly.

It comes with the losses for classes, and on request where targets are classes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dmft.schema.observable import PREDICTIONS
from dmft.schema.registry import observable
from dmft.specs import Problem
from dmft.specs.loss import LOSSES, correct, of_classes


def _refusal(problem: Problem) -> str:
    if of_classes(problem.sample_loss, problem.task.targets):
        return ""
    return (
        "accuracy is for targets that are classes, signs of a single output or one-hot rows of several; these are none"
    )


def _brought(problem: Problem, names: Collection[str]) -> bool:
    return "loss" in names and LOSSES[problem.loss].for_classes


@observable(dims=("step",), needs=PREDICTIONS, smooth=False, refusal=_refusal, brought=_brought)
def accuracy(xp: Any, loss: str, f: Any, y: Any) -> Any:
    return correct(xp, loss, f, y)
