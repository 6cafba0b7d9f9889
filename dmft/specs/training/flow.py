"""Gradient flow, d theta / dt = eta D, on a grid of times with steps dt:

    "rosenbrock"   second order, also where dt is far above the fastest time scale, as long as the kernels change little
                   in a step: the curvature of f is left out of its linear systems (`dmft.engine.flow`).  `hinge` has no
                   curvature of its own, and the scheme is an explicit one for it.
    "euler"        theta(t+1) = theta(t) + eta dt D(t), and of the output f(t+1) = f(t) + (eta dt / P) K(t) Delta(t)

A scheme says what direction takes the place of D in theta(t+1) = theta(t) + eta dt D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.specs import _check
from dmft.specs.training.batches import checked_rates
from dmft.specs.training.recurrence import Stepping, Training

ROSENBROCK = Stepping("rosenbrock", order=2, passes=2, pushes=3, by_output=True, approximates=True)
EULER = Stepping("euler", order=1, by_output=True, follows_output=True)
SCHEMES = {each.name: each for each in (ROSENBROCK, EULER)}


@dataclass(frozen=True)
class GradientFlow(Training):
    """Gradient flow d theta / dt = eta D, on a grid of times; it takes all samples at every step.

    Args:
        learning_rate: eta.
        step_size: dt, one number or one for each step (a non-uniform grid; `dmft.adaptive_flow` chooses one).
        steps: number T of steps; may be left out where `step_size` gives one for each.
        scheme: "rosenbrock" (second order, stable for steps far above the fastest time scale) or "euler" (first order;
            the output follows the NTK, as in published solvers).

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> flow = dmft.GradientFlow(learning_rate=1.0, step_size=(0.1, 0.2, 0.4))
        >>> flow.steps, flow.times.round(1).tolist()
        (3, [0.0, 0.1, 0.3, 0.7])
    """

    learning_rate: float
    step_size: float | tuple[float, ...]
    steps: int = 0
    scheme: str = "rosenbrock"

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", _check.positive("learning_rate", self.learning_rate))
        given = self.steps
        if not given and isinstance(self.step_size, (Sequence, np.ndarray)):
            given = len(self.step_size)
        steps = _check.integer("steps", given, minimum=1)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "step_size", checked_rates("step_size", self.step_size, steps))
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme={self.scheme!r} is unknown; choose one of {', '.join(SCHEMES)}.")

    @property
    def stepping(self) -> Stepping:  # type: ignore[override]
        return SCHEMES[self.scheme]

    @cached_property
    def rates(self) -> NDArray[np.float64]:
        """eta dt, (step,) for steps 0..T-1."""
        rates: NDArray[np.float64] = self.learning_rate * np.full(self.steps, self.step_size, dtype=np.float64)
        rates.flags.writeable = False
        return rates

    def recurrence(self, t: int) -> tuple[ArrayLike, ArrayLike]:
        return [[1.0]], [self.rates[t]]

    @property
    def largest_step(self) -> str:
        """The argument to lower where training diverges, with its value."""
        return f"step_size={np.max(self.step_size):g}"

    @property
    def times(self) -> NDArray[np.float64]:
        """eta t, (step,) for steps 0..T."""
        if isinstance(self.step_size, float):
            return np.arange(self.steps + 1, dtype=np.float64) * (self.learning_rate * self.step_size)
        times: NDArray[np.float64] = np.concatenate([np.zeros(1), np.cumsum(self.rates)])
        return times
