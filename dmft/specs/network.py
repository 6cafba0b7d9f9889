"""Architectures, without their width (width is a coordinate of results, not part of a problem)."""

from __future__ import annotations

from dataclasses import dataclass, field

from dmft.specs import _check
from dmft.specs.activation import NAMES, Activation, tanh


@dataclass(frozen=True)
class MLP:
    """Multilayer perceptron in the mean-field parameterization (`dmft.specs.parameterization`).

    Args:
        depth: number L of hidden layers, at least 1.
        activation: phi, e.g. `dmft.tanh()`.
        gamma0: richness (feature-learning strength); gamma0 -> 0 is the lazy (NTK) limit.
        centered: subtract from the output its value at initialisation, f(t) - f(0).

    Raises:
        ValueError, TypeError: for a depth below 1, gamma0 not positive, an activation that is not one.
    """

    depth: int
    activation: Activation = field(default_factory=tanh)
    gamma0: float = 1.0
    centered: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", _check.integer("depth", self.depth, minimum=1))
        object.__setattr__(
            self, "gamma0", _check.positive("gamma0", self.gamma0, hint="For the lazy limit take it small, e.g. 1e-3.")
        )
        activation: object = self.activation
        if not isinstance(activation, Activation):
            choices = ", ".join(f"dmft.{name}()" for name in NAMES)
            raise TypeError(f"activation={self.activation!r} is not an activation; choose one of {choices}.")
        centered: object = self.centered
        if not isinstance(centered, bool):
            raise TypeError(f"centered={self.centered!r} must be True or False.")
