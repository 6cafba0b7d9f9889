"""Reversal learning: a problem whose labels are flipped after a time, in one description for theory and networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dmft.specs import _check
from dmft.specs.problem import Problem
from dmft.specs.tasks.given import Task
from dmft.specs.training import GradientDescent


def reversal_problem(problem: Problem, *, after: int, steps: int) -> Problem:
    """The same problem whose labels are flipped after some steps: how fast is it relearned, with the readout kept?

    Args:
        problem: of two classes, -1 and +1, trained with `dmft.GradientDescent` of one rate on all samples.
        after: steps on the labels as they are.
        steps: steps on flipped labels, after these.

    Returns:
        A `Problem` whose task has every training sample twice, the second time with the other label, and whose training
        meets the first ones, then the second ones.  provenance["reversed_after"] is `after`; `comparisons.reversal`
        reads it.

    Raises:
        ValueError, TypeError: other targets, or another training.

    Example:
        >>> flipped = dmft.reversal_problem(problem, after=2, steps=3)
        >>> flipped.task.y_train.tolist(), flipped.training.batches[1:3]
        ([-1.0, 1.0, 1.0, -1.0], ((0, 1), (2, 3)))
    """
    after, steps = _check.integer("after", after, minimum=0), _check.integer("steps", steps, minimum=1)
    training, task = problem.training, problem.task
    if not isinstance(task, Task):
        raise TypeError(f"labels are flipped of a dmft.Task, and the problem has {type(task).__name__}.")
    plain = isinstance(training.learning_rate, float) and training.batches is None and training.observe == "all"
    if not isinstance(training, GradientDescent) or not plain:
        raise ValueError(
            f"training={training!r} cannot be continued on flipped labels; take dmft.GradientDescent with one "
            "learning_rate, all samples at every step."
        )
    if task.outputs or not set(np.unique(task.y)) <= {-1.0, 1.0}:
        raise ValueError("labels are flipped where targets are -1 and +1 of one output; these are others.")
    overlap = list(task.provenance.get("overlap", []))
    twice = {"overlap": overlap[: task.n_train] + overlap} if overlap else {}
    flipped = Task(
        np.concatenate([task.x_train, task.x_train]),
        np.concatenate([task.y_train, -task.y_train]),
        task.x_test,
        task.y_test,
        provenance={**task.provenance, **twice, "reversed_after": after},
    )
    first, second = tuple(range(task.n_train)), tuple(range(task.n_train, 2 * task.n_train))
    batches = (first,) * after + (second,) * steps
    return replace(problem, task=flipped, training=replace(training, steps=after + steps, batches=batches))
