"""What the members of a model are while they train.

One of one's own derives from `Network`: its errors, and its step along the gradient of the data; how many numbers a
member takes.  Gradient flows follow, by Runge-Kutta steps (`dmft.specs.random_data.stages`): a member has the results
of the first halving that changes none of its losses any more, whatever others are trained beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.specs import GradientFlow, Training
from dmft.specs.random_data.stages import TOLERANCE, refinements
from finite_nets.ensembles.simulated import Draws
from finite_nets.random_data.data import Data, Sizes

EVALUATIONS = 2**11  # of a flow, at most


class Network(ABC):
    """Members of a model, at the start of a training."""

    def __init__(self, model: Any, sizes: Sizes, training: Training, draw: Draws) -> None:
        self.model, self.sizes, self.training, self.data = model, sizes, training, Data(sizes, draw)

    @staticmethod
    @abstractmethod
    def numbers(model: Any, sizes: Sizes, evaluations: int) -> int:
        """How many numbers a member holds, beside its samples, while so many gradients are taken.

        Raises:
            ValueError: sizes that are not whole at this scale.
        """

    @abstractmethod
    def errors(self) -> Tensor:
        """v (member, mode), in units in which y = w* . psi."""

    @abstractmethod
    def step(self, g: Tensor) -> None:
        """The update along the gradient g (member, mode) of those units."""

    def course(self, steps: NDArray[np.int64]) -> Tensor:
        """Train and test mean squares (2, member, step)."""
        found, place = [], set(steps.tolist())
        for t in range(int(steps[-1]) + 1):
            v = self.errors()
            g, loss = self.data.gradient(t, v)
            if t in place:
                found.append(torch.stack([loss, self.data.test(v)]))
            if t < steps[-1]:
                self.step(g)
        return torch.stack(found, -1).double()

    @classmethod
    def flow(cls, model: Any, sizes: Sizes, training: GradientFlow, draw: Draws, steps: NDArray[np.int64]) -> Tensor:
        """The same of a gradient flow; the first step, 0, has the losses that errors are relative to.

        Raises:
            ArithmeticError: `EVALUATIONS` do not resolve it.
        """
        before: Tensor | None = None
        done = draw.members < 0  # none
        found = torch.empty(0)
        for stages in refinements(training, int(steps[-1]), EVALUATIONS):
            now = cls(model, sizes, stages, draw).course(stages.places(steps))
            found = now if before is None else torch.where(done[:, None], found, now)
            if before is not None:
                done = done | ((now - before).abs() <= TOLERANCE * now[..., :1]).all(-1).all(0)
            if done.all():
                break
            before = now
        return found
