"""Gradient descent, t = 0 .. T-1, the same rate for every layer, heavy-ball momentum beta, weight decay lambda:

    v(t+1)     = beta v(t) + D(t) - lambda theta(t)
    theta(t+1) = theta(t) + eta_t v(t+1)

This is `torch.optim.SGD` with lr = eta gamma0^2 N and weight_decay = lambda / (gamma0^2 N).  As a recurrence of
(theta, v), or of theta alone without momentum (`dmft.specs.training.recurrence`):

    A = [[1 - eta lambda, eta beta], [-lambda, beta]]      b = [eta, 1]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dmft.specs import _check
from dmft.specs.training.batches import Batches
from dmft.specs.training.recurrence import Training


@dataclass(frozen=True)
class GradientDescent(Training):
    """Exact discrete gradient descent, full batch or with a given sequence of batches.

    Args:
        learning_rate: eta, in units where one step changes f by about (eta/P) K Delta at any width and richness; one
            number, or one for each step (a schedule, which may hold zeros: a warm-up from 0).
        steps: number T of updates; observables are recorded at steps 0..T, each before the update of that step.
        momentum: beta of the heavy ball, 0 <= beta < 1.
        weight_decay: lambda, a rate like the inverse of `learning_rate`: without data, theta shrinks by 1 - eta lambda
            a step.
        batches: (step, position) indices of the training samples of each step, e.g. from `dmft.random_batches` or
            `dmft.one_pass`; or `dmft.Epochs`, which names them in a word; all samples at every step by default.
        observe: "all": results hold training and test samples.  "test": test samples only, and a training sample is
            met in its own batches alone, as a stream of data demands (cost does not grow with the training set).

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> warmed_up = dmft.GradientDescent((0.1, 0.2, 0.4), steps=3, momentum=0.9)
        >>> warmed_up.times.round(1).tolist()
        [0.0, 0.1, 0.3, 0.7]
        >>> warmed_up.memory.c[3].round(3).tolist()  # heavy balls go on with what they were given
        [0.604, 0.56, 0.4]
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    batches: Batches | None = None
    observe: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, below in (("momentum", 1.0), ("weight_decay", np.inf)):
            object.__setattr__(self, name, _check.nonnegative(name, getattr(self, name), below=below))

    def recurrence(self, t: int) -> tuple[ArrayLike, ArrayLike]:
        eta, beta, decay = self.rates[t], self.momentum, self.weight_decay
        if not beta:
            return [[1 - eta * decay]], [eta]
        return [[1 - eta * decay, eta * beta], [-decay, beta]], [eta, 1.0]
