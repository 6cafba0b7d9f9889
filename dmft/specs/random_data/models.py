"""Linear models on random data, whose limit is that of all sizes together (`dmft.random_data`).

Their results are losses and order parameters of two times; fields of neurons, kernels between samples and what 1/N adds
to them are not theirs, so that other readings of a problem refuse them, in one place: `RandomModel.sketch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dmft.specs import _check
from dmft.specs.networks.program import Architecture
from dmft.specs.networks.sketch import Sketch
from dmft.specs.random_data.data import RandomData
from dmft.specs.training import GradientFlow, Training


class RandomModel(Architecture):
    """What models of random data derive from.

    solver: the module whose `solve` finds the limit.  simulator: that whose `ensemble` trains members.
    """

    solver = "dmft.random_data.solve"
    simulator = "finite_nets.random_data"
    centered = False
    depth: int = 1

    def sketch(self, shape: tuple[int, ...] = (1,)) -> Sketch:
        del shape
        raise ValueError(
            f"{type(self).__name__} is a model of random data, which has no program of neurons: there are dmft.solve, "
            "finite_nets.train_ensemble(problem, scales=[1, 2, 4, 8], seeds=...), comparisons.compare of these, and "
            "the functions of dmft.random_data."
        )

    def program(self, net: Any, x: Any) -> Any:
        del net, x
        return self.sketch()

    @property
    def dimensions(self) -> dict[str, int]:
        """Sizes of those that results have of it."""
        return {"layer": self.depth, "attention_layer": 0, "query": 0, "key": 0}

    def check(self, data: RandomData, training: Training) -> None:
        """ValueError for data and training that the theory of this model does not take."""
        if training.batches is not None or training.observe != "all":
            raise ValueError(
                "batches and observe are for tasks with samples of their own; of random data give RandomData(..., "
                "batch=B), with samples=P for batches that are drawn again."
            )
        training.require_linear("models of random data")
        if isinstance(training, GradientFlow):
            self.check_flow(data)
        elif training.decays and not isinstance(self, RandomFeatures):
            raise ValueError(
                f"{type(training).__name__} lets weights decay, which the theory of {type(self).__name__} does not "
                "take; use weight_decay=0."
            )

    def check_flow(self, data: RandomData) -> None:
        """ValueError where there is no gradient flow."""
        del data
        raise ValueError(
            f"{type(self).__name__} is solved step by step; take dmft.GradientDescent with a small learning_rate."
        )


@dataclass(frozen=True)
class RandomFeatures(RandomModel):
    """A linear readout of frozen random features, f = w . A psi / sqrt N, w(0) = 0.

    Args:
        features: N, at scale 1; None for infinitely many, kernel regression.

    Raises:
        ValueError, TypeError: no features.

    Example:
        >>> data = dmft.RandomData(dmft.random_data.power_law(60, 1.2, 1.5), samples=24)
        >>> problem = dmft.Problem(dmft.RandomFeatures(15), data, dmft.GradientDescent(0.3, steps=5))
        >>> dmft.solve(problem)["test_loss"].values.round(3)
        array([1.178, 0.867, 0.731, 0.66 , 0.616, 0.587])
    """

    features: int | None = None

    def __post_init__(self) -> None:
        _check_features(self)

    def check_flow(self, data: RandomData) -> None:
        if data.batch is not None:
            raise ValueError(f"batch={data.batch} has no gradient flow; leave it out, or take dmft.GradientDescent.")


@dataclass(frozen=True)
class ProjectedLinear(RandomModel):
    """A two-layer linear model whose features learn in the span of their initial ones.

    Args:
        features: N, at scale 1; None for infinitely many.
        richness: G = gamma_0^2 of the feature learning; 0 is `RandomFeatures`.

    Raises:
        ValueError, TypeError: no features, a negative richness.

    Example:
        >>> data = dmft.RandomData(dmft.random_data.power_law(20, 1.3, 1.4), batch=8, noise=0.05)
        >>> problem = dmft.Problem(dmft.ProjectedLinear(10, richness=0.5), data, dmft.GradientDescent(0.2, steps=3))
        >>> dmft.solve(problem)["test_loss"].values.round(3)
        array([1.204, 0.99 , 0.849, 0.749])
    """

    features: int | None = None
    richness: float = 1.0

    def __post_init__(self) -> None:
        _check_features(self)
        object.__setattr__(self, "richness", _check.nonnegative("richness", self.richness))

    def check_flow(self, data: RandomData) -> None:
        if self.features is not None or data.samples is not None or data.batch is not None:
            raise ValueError(
                "the flow of ProjectedLinear is closed for infinitely many features on the population alone "
                "(features=None, no samples, no batch); take dmft.GradientDescent with a small learning_rate."
            )


@dataclass(frozen=True)
class DeepLinear(RandomModel):
    """A deep linear network from random initialisation, its width proportional to the dimension of the data.

    Args:
        depth: L hidden layers.
        ratio: nu = N/D.
        gamma0: richness; 1/sqrt(ratio) is the NTK parameterization, at which width does not help.
        branch: beta0 of a residual network, whose branches have the scale beta0/sqrt(depth); None for a plain one.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> data = dmft.RandomData(dmft.random_data.isotropic(100), samples=150)
        >>> problem = dmft.Problem(dmft.DeepLinear(depth=1, ratio=1.0), data, dmft.GradientDescent(0.05, steps=3))
        >>> dmft.solve(problem)["test_loss"].values.round(3)
        array([1.   , 0.781, 0.652, 0.566])
    """

    depth: int = 1
    ratio: float = 1.0
    gamma0: float = 1.0
    branch: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", _check.integer("depth", self.depth, minimum=1))
        for name in ("ratio", "gamma0"):
            object.__setattr__(self, name, _check.positive(name, getattr(self, name)))
        if self.branch is not None:
            object.__setattr__(self, "branch", _check.positive("branch", self.branch))


def _check_features(model: Any) -> None:
    if model.features is not None:
        object.__setattr__(model, "features", _check.integer("features", model.features, minimum=1))
