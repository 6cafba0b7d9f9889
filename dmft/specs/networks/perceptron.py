"""Perceptrons, with and without residual branches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from dmft.specs import _check
from dmft.specs.activation import Activation, tanh
from dmft.specs.networks.fields import check_fields, require_same_layers
from dmft.specs.networks.population import Field
from dmft.specs.networks.program import Architecture, traced
from dmft.specs.parameterization import MEAN_FIELD, STANDARD


@dataclass(frozen=True)
class MLP(Architecture):
    """Multilayer perceptron (`dmft.specs.parameterization` has every scale).

        h^1 = W^0 x / sqrt(D) + bias b^0     h^{l+1} = W^l phi(h^l) / sqrt(N) + bias b^l
        f = w . phi(h^L) / (gamma0 N)

    Args:
        depth: number L of hidden layers, at least 1.
        activation: phi, e.g. `dmft.tanh()`.
        gamma0: richness (feature-learning strength); gamma0 -> 0 is the lazy (NTK) limit.
        centered: subtract from the output its value at initialisation, f(t) - f(0).
        bias: scale of the biases b^l, N(0, 1) at initialisation and trained like weights; 0 for a network without.
        frozen: layers that stay at initialisation: 0 .. L-1 for W^0 .. W^{L-1} with their biases, L for the readout w.
            `range(L)` leaves random features with a trained readout.
        parameterization: "mean_field", the one that has a limit with feature learning; "ntk" and "standard" are there
            for contrast, for networks of finite width alone.
        weight_variance: of the weights at initialisation, one number or one for each of W^0 .. W^{L-1} and the readout
            w, whose may be 0: then f(0) = 0, and it is the first to learn.
        bias_variance: of the biases at initialisation; 0 for biases that start at zero, and are trained.

    Raises:
        ValueError, TypeError: for a depth below 1, gamma0 not positive, an activation that is not one, a negative bias,
            frozen layers that there are not, or all of them.

    Example:
        >>> dmft.MLP(depth=2, activation=dmft.relu(), gamma0=0.5, frozen=[0]).frozen
        (0,)
    """

    depth: int
    activation: Activation = field(default_factory=tanh)
    gamma0: float = 1.0
    centered: bool = True
    bias: float = traced(default=0.0)
    frozen: tuple[int, ...] = ()
    parameterization: str = MEAN_FIELD
    weight_variance: float | tuple[float, ...] = 1.0
    bias_variance: float = 1.0

    def __post_init__(self) -> None:
        _check_network(self)

    def program(self, net: Any, x: Any) -> Field:
        h = net.read("W0", x, to=0)
        for layer in range(1, self.depth):
            h = _image(self, net, layer, net.layer(h, net.activate(self.activation, h)), to=layer)
        return net.layer(h, net.activate(self.activation, h))  # type: ignore[no-any-return]

    @property
    def residual(self) -> bool:
        """Whether h^l is added to h^{l+1}."""
        return False

    @property
    def branch(self) -> float:
        """Factor of W^l phi(h^l) / sqrt(N) in h^{l+1}."""
        return 1.0


@dataclass(frozen=True)
class ResidualMLP(Architecture):
    """Residual perceptron: hidden layers share their neurons (`dmft.specs.parameterization` has every scale).

        h^1 = W^0 x / sqrt(D) + bias b^0     h^{l+1} = h^l + branch_scale (W^l phi(h^l) / sqrt(N) + bias b^l)
        f = w . phi(h^L) / (gamma0 N)

    Args:
        depth: number L of layers h^1 .. h^L, at least 1; L - 1 of them are residual blocks.
        activation: phi, e.g. `dmft.tanh()`.
        gamma0: richness (feature-learning strength); gamma0 -> 0 is the lazy (NTK) limit.
        branch_scale: beta0 / sqrt(L) has a limit of infinite depth; 1 / sqrt(depth) by default.
        centered: subtract from the output its value at initialisation, f(t) - f(0).
        bias, frozen, parameterization, weight_variance, bias_variance: as of `MLP`.

    Raises:
        ValueError, TypeError: as for `MLP`; a branch_scale that is not positive.

    Source: Bordelon et al. 2023 (depthwise scaling of residual networks), He et al. 2016.

    Example:
        >>> dmft.ResidualMLP(depth=4).branch_scale  # 1 / sqrt(depth)
        0.5
    """

    depth: int
    activation: Activation = field(default_factory=tanh)
    gamma0: float = 1.0
    branch_scale: float | None = traced(default=None)
    centered: bool = True
    bias: float = traced(default=0.0)
    frozen: tuple[int, ...] = ()
    parameterization: str = MEAN_FIELD
    weight_variance: float | tuple[float, ...] = 1.0
    bias_variance: float = 1.0

    def __post_init__(self) -> None:
        _check_network(self)
        scale = 1 / math.sqrt(self.depth) if self.branch_scale is None else self.branch_scale
        object.__setattr__(self, "branch_scale", _check.positive("branch_scale", scale))

    def program(self, net: Any, x: Any) -> Field:
        h = net.blocks(self.depth - 1, self._block, net.read("W0", x, to=0))
        return net.layer(h, net.activate(self.activation, h))  # type: ignore[no-any-return]

    def with_blocks(self, count: int) -> ResidualMLP:
        """With so many blocks L and branches 1 / sqrt(L): of the limit of branches 1 / sqrt(depth), the usual ones, and
        nearer to it."""
        require_same_layers(self, self.depth)
        if abs(self.branch * math.sqrt(self.depth) - 1) > 1e-12:
            raise ValueError(
                f"branch_scale={self.branch:g} is a number of its own, which has no limit of infinite depth: it has to "
                "fall with depth. Leave it out, 1 / sqrt(depth), or take a dmft.ResidualCNN of one position and "
                "kernel_size=1, a perceptron with branches branch_scale * blocks^-branch_exponent."
            )
        return replace(self, depth=count + 1, branch_scale=count**-0.5)

    def _block(self, net: Any, h: Field) -> Field:
        return h + self.branch * _image(self, net, "", net.layer(h, net.activate(self.activation, h)), to=0)

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


def _image(network: Network, net: Any, layer: int | str, features: Field, *, to: int) -> Field:
    """W^l features / sqrt(N) + bias b^l, of the weights of a layer of this name."""
    u: Field = net.apply(f"W{layer}", features, to=to)
    # a traced number is not asked whether it is zero
    biased = not isinstance(network.bias, int | float) or network.bias != 0
    return u + network.bias * net.vector(f"b{layer}", of=to) if biased else u


def _check_network(network: Network) -> None:
    check_fields(network)
    object.__setattr__(network, "bias", _check.nonnegative("bias", network.bias))
    object.__setattr__(network, "bias_variance", _check.nonnegative("bias_variance", network.bias_variance))
    if network.parameterization == STANDARD and network.bias:
        raise ValueError(
            f'bias={network.bias} with parameterization="{STANDARD}": its one rate, for weights of variance 1/N, would '
            "move biases at another. Leave bias out, or take another parameterization."
        )


def perceptron(network: Architecture, what: str, otherwise: str) -> Network:
    """The network, if it is one of these and not of a class that derives from them.

    Raises:
        ValueError: naming the class; `what`: is for perceptrons alone; `otherwise`: what to do.
    """
    if type(network) not in (MLP, ResidualMLP):
        raise ValueError(f"{what} is for dmft.MLP and dmft.ResidualMLP, got {type(network).__name__}; {otherwise}.")
    return network  # type: ignore[return-value]
