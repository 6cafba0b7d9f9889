"""Gradient flows step by step: the classical Runge-Kutta scheme of fourth order, as an optimiser of its own.

    k_1 = D(theta_n),  k_2 = D(theta_n + h k_1/2),  k_3 = D(theta_n + h k_2/2),  k_4 = D(theta_n + h k_3)
    theta_{n+1} = theta_n + h (k_1 + 2 k_2 + 2 k_3 + k_4)/6

Its evaluations are the steps of a recurrence (`dmft.specs.training.recurrence`) with x = (theta where it is evaluated,
its distance from theta_n, what the k so far are worth), so that theories and networks that follow any linear optimiser
follow a flow, in the same evaluations.  Steps are halved until nothing changes: `refinements`.

Stable for h below 2.78 over the largest eigenvalue of what acts on theta.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.specs.training import GradientFlow, Training

STAGES = 4
REACH = (0.5, 0.5, 1.0, 0.0)  # from theta_n to the next evaluation, along the last k
WORTH = (1 / 6, 1 / 3, 1 / 3, 1 / 6)  # of each k in the end
TOLERANCE = 1.5e-4  # of the initial loss: by how much halved steps may change losses, whose error is then 15 times less


@dataclass(frozen=True)
class Stages(Training):
    """The evaluations of Runge-Kutta steps.

    learning_rate: h of the step to which an evaluation belongs.  steps: how many evaluations.  begun: at which of them
    a step of the grid begins.
    """

    learning_rate: tuple[float, ...]
    steps: int
    begun: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Nothing to check of what `refinements` makes."""

    def recurrence(self, t: int) -> tuple[ArrayLike, ArrayLike]:
        stage, h = t % STAGES, self.learning_rate[t]
        reach, worth = h * REACH[stage], h * WORTH[stage]
        if stage < STAGES - 1:
            return [[1, -1, 0], [0, 0, 0], [0, 0, 1]], [reach, reach, worth]
        return [[1, -1, 1], [0, 0, 0], [0, 0, 0]], [worth, 0, 0]

    def places(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """The evaluations at which steps of the grid begin."""
        return np.array(self.begun, np.int64)[steps]


def refinements(flow: GradientFlow, last: int, most: int) -> Iterator[Stages]:
    """Steps up to the `last` one of the grid, none of which is longer than its longest, half of that, and so on.

    Raises:
        ArithmeticError: once more than `most` evaluations would be needed.
    """
    rates = flow.rates[: max(last, 1)]
    longest = rates.max()
    while True:
        counts = np.ceil(rates / longest * (1 - 1e-12)).astype(np.int64)
        begun = np.concatenate([[0], STAGES * np.cumsum(counts)])
        if begun[-1] > most:
            break
        each = np.repeat(rates / counts, STAGES * counts)
        yield Stages(tuple(each.tolist()), len(each), tuple(begun.tolist()))
        longest /= 2
    raise ArithmeticError(
        f"the flow to time {rates.sum():g} is not resolved by {most} evaluations of its gradient: steps of "
        f"{2 * longest:.2g} still change losses by more than {TOLERANCE:g} of the initial one. End it earlier (smaller "
        "step_size, or save_steps), or take dmft.RandomFeatures, whose flows reach any time."
    )
