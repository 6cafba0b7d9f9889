"""Architectures, without their width (width is a coordinate of results, not part of a problem)."""

from __future__ import annotations

import math
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
        _check_network(self)

    @property
    def residual(self) -> bool:
        """Whether h^l is added to h^{l+1}."""
        return False

    @property
    def branch(self) -> float:
        """Factor of W^l phi(h^l) / sqrt(N) in h^{l+1}."""
        return 1.0


@dataclass(frozen=True)
class ResidualMLP:
    """Residual perceptron in the mean-field parameterization: hidden layers share their neurons.

        h^1 = W^0 x / sqrt(D)     h^{l+1} = h^l + branch_scale W^l phi(h^l) / sqrt(N)     f = w . phi(h^L) / (gamma0 N)

    Args:
        depth: number L of layers h^1 .. h^L, at least 1; L - 1 of them are residual blocks.
        activation: phi, e.g. `dmft.tanh()`.
        gamma0: richness (feature-learning strength); gamma0 -> 0 is the lazy (NTK) limit.
        branch_scale: beta0 / sqrt(L) has a limit of infinite depth; 1 / sqrt(depth) by default.
        centered: subtract from the output its value at initialisation, f(t) - f(0).

    Raises:
        ValueError, TypeError: as for `MLP`; a branch_scale that is not positive.

    Source: Bordelon et al. 2023 (depthwise scaling of residual networks), He et al. 2016.
    """

    depth: int
    activation: Activation = field(default_factory=tanh)
    gamma0: float = 1.0
    branch_scale: float | None = None
    centered: bool = True

    def __post_init__(self) -> None:
        _check_network(self)
        scale = 1 / math.sqrt(self.depth) if self.branch_scale is None else self.branch_scale
        object.__setattr__(self, "branch_scale", _check.positive("branch_scale", scale))

    @property
    def residual(self) -> bool:
        """Whether h^l is added to h^{l+1}."""
        return True

    @property
    def branch(self) -> float:
        """Factor of W^l phi(h^l) / sqrt(N) in h^{l+1}."""
        assert self.branch_scale is not None  # set on construction
        return self.branch_scale


Network = MLP | ResidualMLP


def _check_network(network: Network) -> None:
    object.__setattr__(network, "depth", _check.integer("depth", network.depth, minimum=1))
    hint = "For the lazy limit take it small, e.g. 1e-3."
    object.__setattr__(network, "gamma0", _check.positive("gamma0", network.gamma0, hint=hint))
    activation: object = network.activation
    if not isinstance(activation, Activation):
        choices = ", ".join(f"dmft.{name}()" for name in NAMES)
        raise TypeError(f"activation={network.activation!r} is not an activation; choose one of {choices}.")
    centered: object = network.centered
    if not isinstance(centered, bool):
        raise TypeError(f"centered={network.centered!r} must be True or False.")
