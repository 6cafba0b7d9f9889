"""What the theory of a model of random data is: order parameters of any linear optimiser, from which the rest follows.

    descent     the order parameters at steps                    `march`, unless a model has a shorter way
    flow        by Runge-Kutta steps, which are an optimiser     `march` of ever finer ones, unless it has a closed form
    split       bias and variances                               only where a model has them

A model names its theory (`dmft.specs.random_data.models`); `dmft.random_data.solve` puts what it finds into the schema.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dmft.errors import DivergenceError
from dmft.random_data.ensembles import BiasVariance
from dmft.random_data.random_features import OnDiagonal
from dmft.specs import GradientDescent, GradientFlow, Problem, Training
from dmft.specs.random_data import RandomData
from dmft.specs.random_data.stages import TOLERANCE, refinements

Array = NDArray[np.float64]
Steps = NDArray[np.int64]
EVALUATIONS = 1024  # of a flow that is marched, at most: memory grows with their square, time with their cube
MARCHING = "causal marching, exact"
CORRELATIONS = ("error", "residual", "feature", "readout", "gradient", "forward", "backward")
RESPONSES = ("data_response", "feature_response", "forward_response", "backward_response")


@dataclass(frozen=True)
class Found:
    """test, train: excess test loss and mean square of training residuals (recorded step,).  between: order parameters
    by the names of `CORRELATIONS` and `RESPONSES`, (..., step, step_2).  method: in words."""

    test: Array
    train: Array
    between: Mapping[str, Array]
    method: str


class Theory(ABC):
    """The theory of one problem; one derived from it has `march`, and what it knows better."""

    def __init__(self, problem: Problem) -> None:
        self.model: Any = problem.network
        self.data = cast("RandomData", problem.task)
        self.training: Any = problem.training

    @abstractmethod
    def march(self, training: Training) -> OnDiagonal:
        """Order parameters at all steps of a linear optimiser, with fields among `CORRELATIONS` and `RESPONSES`."""

    def descent(self, steps: Steps) -> Found:
        """Those of the problem's optimiser, at recorded steps."""
        return at_steps(self.march(self.training), steps, MARCHING)

    def flow(self, steps: Steps, *, two_time: bool) -> Found:
        """Those of its gradient flow; correlations of two times on request.  Responses are densities, which steps do
        not have.

        Raises:
            ArithmeticError: `EVALUATIONS` do not resolve it.
        """
        coarse: Found | None = None
        for stages in refinements(self.training, int(steps[-1]), EVALUATIONS):
            try:
                found = at_steps(self.march(stages), stages.places(steps), f"{MARCHING}, of {stages.steps} evaluations")
            except DivergenceError:  # of steps that are too long
                continue
            if coarse is not None and _close(coarse, found, self.data):
                kept = {name: found.between[name] for name in CORRELATIONS if two_time and name in found.between}
                return Found(found.test, found.train, kept, found.method)
            coarse = found
        raise AssertionError  # refinements end with an error

    def split(self, steps: Steps) -> BiasVariance:
        """Bias and variances over features and data, at recorded steps."""
        del steps
        raise ValueError(
            f"ensembles are of RandomFeatures without a batch; {type(self.model).__name__} has no split into bias and "
            "variances."
        )

    @property
    def constant(self) -> bool:
        """Whether the optimiser is a heavy ball of one rate."""
        training = self.training
        if not isinstance(training, GradientDescent) or training.decays:
            return False
        return isinstance(training.learning_rate, float)

    @property
    def flows(self) -> bool:
        return isinstance(self.training, GradientFlow)


def at_steps(found: Any, steps: Steps, method: str) -> Found:
    """Losses and order parameters at some of the steps."""
    between = {
        name: getattr(found, name)[..., steps[:, None], steps]
        for name in (*CORRELATIONS, *RESPONSES)
        if hasattr(found, name)
    }
    return Found(found.test[steps], found.train[steps], between, method)


def _close(a: Found, b: Found, data: RandomData) -> bool:
    initial = data.spectrum.signal + data.noise  # whatever the recorded steps
    pairs = ((a.test, b.test), (a.train, b.train))
    return all(bool((np.abs(x - y) <= TOLERANCE * initial).all()) for x, y in pairs)
