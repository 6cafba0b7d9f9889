"""Random features that stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

from dmft.specs.random_data.models import RandomModel, check_features


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

    theory = "dmft.random_data.systems.features:Features"
    simulation = "finite_nets.random_data.features:Features"
    decays = True
    features: int | None = None

    def __post_init__(self) -> None:
        check_features(self)
