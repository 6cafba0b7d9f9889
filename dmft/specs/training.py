"""How the parameters move.

theta(t+1) = theta(t) - eta gamma0^2 N dloss/dtheta        t = 0 .. T-1, full batch, the same eta for every layer
"""

from __future__ import annotations

from dataclasses import dataclass

from dmft.specs import _check


@dataclass(frozen=True)
class GradientDescent:
    """Exact discrete full-batch gradient descent.

    Args:
        learning_rate: eta, in units where one step changes f by about (eta/P) K Delta at any width and richness.
        steps: number T of updates; observables are recorded at steps 0..T, each before the update of that step.
    """

    learning_rate: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", _check.positive("learning_rate", self.learning_rate))
        object.__setattr__(self, "steps", _check.integer("steps", self.steps, minimum=1))
