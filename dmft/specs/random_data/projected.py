"""Features that learn in the span of their initial ones."""

from __future__ import annotations

from dataclasses import dataclass

from dmft.specs import _check
from dmft.specs.random_data.models import RandomModel, check_features


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

    theory = "dmft.random_data.systems.projected:Projected"
    simulation = "finite_nets.random_data.projected:Projected"
    wilder = ("richness",)
    features: int | None = None
    richness: float = 1.0

    def __post_init__(self) -> None:
        check_features(self)
        object.__setattr__(self, "richness", _check.nonnegative("richness", self.richness))
