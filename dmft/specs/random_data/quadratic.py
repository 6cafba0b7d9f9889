"""A two-layer network with quadratic units and fixed readouts on Gaussian inputs: the exact model of grokking.

    h_i = w_i . x / sqrt D,   f = (1 / (gamma0 N)) sum_i (h_i + (curvature/2) h_i^2) [- f_0],   w_i ~ N(0, 1)
    y   = (b . x)^2 / (2 D),  |b|^2 = D,   x ~ N(0, 1)

Kumar et al. write alpha = 1/gamma0 for the laziness, epsilon for the curvature, and x / sqrt D for the inputs; their
rate N / alpha^2 of the mean square is `learning_rate` 2 here, where losses have a factor 1/2.

Source: T. Kumar, B. Bordelon, S. Gershman, C. Pehlevan, arXiv:2310.06110.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check
from dmft.specs.random_data.data import RandomSource
from dmft.specs.random_data.models import RandomModel
from dmft.specs.tasks.given import Task
from dmft.specs.training import GradientFlow, Training

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class QuadraticTeacher(RandomSource):
    """Gaussian inputs x ~ N(0, 1) and the square of a direction as the target, y = (b . x)^2 / (2 D), |b|^2 = D.

    Args:
        dimension: D.
        samples: P, drawn once; None for infinitely many, the exact gradient of the population.
        seed: of the direction and of the samples.  More samples of one seed hold fewer ones as their first.

    Test losses are those of the population, in closed form.

    Raises:
        ValueError, TypeError: no dimension, no samples, a negative seed.

    Example:
        >>> dmft.QuadraticTeacher(dimension=50, samples=450)
        QuadraticTeacher(dimension=50, samples=450, seed=0)
    """

    dimension: int
    samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimension", _check.integer("dimension", self.dimension, minimum=1))
        if self.samples is not None:
            object.__setattr__(self, "samples", _check.integer("samples", self.samples, minimum=1))
        object.__setattr__(self, "seed", _check.integer("seed", self.seed, minimum=0))

    @cached_property
    def direction(self) -> Array:
        """b (feature,)."""
        b = np.random.default_rng([self.seed, 0]).standard_normal(self.dimension)
        found: Array = b * (self.dimension**0.5 / np.linalg.norm(b))
        return found

    @cached_property
    def x(self) -> Array:
        """(sample, feature): the inputs that are trained on."""
        return np.random.default_rng([self.seed, 1]).standard_normal((self.samples or 0, self.dimension))

    def target(self, x: Array) -> Array:
        """y (sample,) of inputs (sample, feature)."""
        found: Array = (x @ self.direction) ** 2 / (2 * self.dimension)
        return found

    @property
    def arrays(self) -> dict[str, Array]:
        """What the seed draws."""
        return {"direction": self.direction, "x": self.x}

    @property
    def settings(self) -> dict[str, Any]:
        """What JSON holds beside the arrays."""
        sizes = {"dimension": self.dimension, "samples": self.samples, "seed": self.seed}
        return {"kind": "QuadraticTeacher", **sizes}

    @classmethod
    def stored(cls, arrays: Mapping[str, Array], described: Mapping[str, Any]) -> QuadraticTeacher:
        """The data that JSON describes, drawn again; their digest tells whether they are the same."""
        del arrays
        return cls(described["dimension"], described["samples"], described["seed"])


@dataclass(frozen=True)
class QuadraticPerceptron(RandomModel):
    """A two-layer network with quadratic units and readouts fixed at 1, solved exactly at any width.

        f = (1 / (gamma0 N)) sum_i (h_i + (curvature/2) h_i^2) [- f_0],   h_i = w_i . x / sqrt D,  w_i(0) ~ N(0, 1)

    Args:
        gamma0: richness, the inverse of the laziness alpha.
        curvature: epsilon: how well the initial NTK, 1 + epsilon^2 (x.x')/D times (x.x')/D, suits quadratic targets.
        centered: subtract from the output its value at initialisation, f(t) - f(0).

    Its data are a `dmft.QuadraticTeacher`, or a `dmft.Task` with one output.

    Raises:
        ValueError, TypeError: a richness or curvature that is not positive.

    Source: Kumar, Bordelon, Gershman, Pehlevan, arXiv:2310.06110.

    Example:
        >>> data = dmft.QuadraticTeacher(dimension=10, samples=40)
        >>> problem = dmft.Problem(dmft.QuadraticPerceptron(2.0, 0.5), data, dmft.GradientDescent(2.0, steps=200))
        >>> dmft.solve(problem, save_steps=[0, 100, 200])["test_loss"].values.round(3)
        array([0.375, 0.021, 0.013])
    """

    gamma0: float = 1.0
    curvature: float = 0.25
    centered: bool = True

    takes = (QuadraticTeacher, Task)
    such = "dmft.QuadraticTeacher(dimension=50, samples=450)"
    sizes = "widths=[100, 1000]"
    sized = "width"
    wilder = ("gamma0",)
    solver = "dmft.random_data.quadratic"
    simulator = "finite_nets.quadratic"

    def __post_init__(self) -> None:
        for name in ("gamma0", "curvature"):
            object.__setattr__(self, name, _check.positive(name, getattr(self, name)))
        if not isinstance(self.centered, bool):
            raise TypeError(f"centered={self.centered!r} must be True or False.")

    def check(self, data: Any, training: Training) -> None:
        if isinstance(training, GradientFlow):
            raise ValueError(
                "QuadraticPerceptron is solved step by step, exactly; take dmft.GradientDescent with a small "
                "learning_rate for a flow."
            )
        training.require_linear("quadratic perceptrons")
        if training.batches is not None or training.observe != "all":
            raise ValueError("QuadraticPerceptron is trained on all samples at every step; leave out batches, observe.")
        if data.outputs:
            raise ValueError(
                f"targets have {data.outputs[0]} outputs, and QuadraticPerceptron has one; give y (sample,)."
            )
