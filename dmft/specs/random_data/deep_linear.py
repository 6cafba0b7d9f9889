"""Deep linear networks, plain and residual, in the proportional limit."""

from __future__ import annotations

from dataclasses import dataclass

from dmft.specs import _check
from dmft.specs.random_data.models import RandomModel


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

    theory = "dmft.random_data.systems.deep_linear:Deep"
    simulation = "finite_nets.random_data.deep_linear:Deep"
    wilder = ("gamma0",)
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
