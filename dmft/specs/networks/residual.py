"""Residual convolutional networks, with or without a normalisation before what is activated.

    h^1_y = sum_k W^{0k} x_{y+k} / sqrt(K C)              phi_n(h) = phi(norm(h)), phi(h) without a normalisation
    h^{l+1} = h^l + beta0 L^-alpha B^l(h^l)               l = 1 .. L, on one stream of N neurons
    B_y = sum_k W^k phi_n(h)_{y+k} / sqrt(K N)            branches of one layer
    B_y = sum_k V^k phi_n(u)_{y+k} / sqrt(K N)            of two, with u_y = sum_k U^k phi_n(h)_{y+k} / sqrt(K N)
    f = w . mean_y phi_n(h^{L+1}_y) / (gamma0 N),      or sum_y w_y . phi_n(h^{L+1}_y) / (gamma0 N sqrt(Y))

Weights of branches, and gains of normalisations in them, learn at L^{2 alpha - 1} times the rate of all others
(`dmft.specs.parameterization`), so that depth has a limit for every alpha in [1/2, 1].  Blocks have the same form.

Sources: He et al. 2016 (normalisation and activation before convolutions); Bordelon et al. 2023 (alpha = 1/2);
Bordelon, Chaudhry & Pehlevan 2024 (alpha).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check
from dmft.specs.activation import Activation, tanh
from dmft.specs.networks.convolution import check_convolution, grids_of, mixing, patches, pooled
from dmft.specs.networks.fields import check_branches, check_fields, require_same_layers
from dmft.specs.networks.normalization import normalized, require_normalization
from dmft.specs.networks.population import Field
from dmft.specs.networks.program import Architecture, traced
from dmft.specs.parameterization import MEAN_FIELD, branch_factor, learned

STREAM, INNER = "stream", "inner"


@dataclass(frozen=True)
class ResidualCNN(Architecture):
    """Residual convolutional network (`dmft.specs.parameterization` has every scale).

    Its task has positions: inputs (sample, position, channel), or (sample, row, column, channel).  With one position
    and `kernel_size=1` it is a residual perceptron.

    Args:
        blocks: number L of residual blocks, at least 1.
        kernel_size: places of a kernel along each axis of positions, an odd number.
        activation: phi, e.g. `dmft.tanh()`.
        gamma0: richness (feature-learning strength).
        branch_layers: convolutions in a branch, 1 or 2.
        normalization: before every activation, "layer_norm", "rms_norm" (`dmft.LayerNorm`, `dmft.RMSNorm`: over the
            neurons, at each position), or None.
        trained_gain: whether each normalisation trains a gain, one number, from 1 on.
        branch_scale: beta0; branch_exponent: alpha in [1/2, 1], branches are added beta0 L^-alpha times.
        stride: of the first convolution: of n positions along an axis ceil(n / stride) are left.
        padding, pooling: as of `CNN`.
        centered: subtract from the output its value at initialisation.
        frozen: numbers of layers that stay at initialisation: 0 for the first convolution, 1, 2, .. for those of
            branches in their order, the last for the readout; a gain by the convolution before it.
        parameterization, weight_variance: as of `MLP`; "standard" is not offered.

    Raises:
        ValueError, TypeError: as for `CNN`; branches of other than one or two layers; an unknown normalisation, or a
            gain without one; a branch_exponent outside [1/2, 1].

    Example:
        >>> images = np.random.default_rng(0).standard_normal((2, 4, 4, 3))
        >>> network = dmft.ResidualCNN(blocks=2, kernel_size=3, normalization="layer_norm", branch_exponent=1)
        >>> problem = dmft.Problem(network, dmft.Task(images, [-1, 1]), dmft.GradientDescent(0.5, 3))
        >>> problem.sketch.depth, problem.sketch.populations
        (3, ('stream',))
    """

    blocks: int
    kernel_size: int
    activation: Activation = field(default_factory=tanh)
    gamma0: float = 1.0
    branch_layers: int = 1
    normalization: str | None = None
    trained_gain: bool = False
    branch_scale: float = traced(default=1.0)
    branch_exponent: float = traced(default=0.5)
    stride: int = 1
    padding: str = "zero"
    pooling: str = "mean"
    centered: bool = True
    frozen: tuple[int, ...] = ()
    parameterization: str = MEAN_FIELD
    weight_variance: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        if _check.integer("branch_layers", self.branch_layers, minimum=1) > 2:
            raise ValueError(f"branch_layers={self.branch_layers} is not 1 or 2.")
        check_fields(self, counted="blocks")
        check_convolution(self)
        require_normalization(self.normalization, self.trained_gain)
        check_branches(self)

    @property
    def depth(self) -> int:
        """Number of the readout: convolutions, the first one and those of branches."""
        return 1 + self.blocks * self.branch_layers

    def with_blocks(self, count: int) -> ResidualCNN:
        require_same_layers(self, self.depth)
        return replace(self, blocks=count)

    def program(self, net: Any, x: Any) -> Field:
        *_, grid = self.grids(net.shape)
        h = net.blocks(self.blocks, partial(self._block, grid=grid), net.read("W0", x, to=STREAM))
        return pooled(net, self._shown(net, h), math.prod(grid), self.pooling)

    def _block(self, net: Any, h: Field, grid: tuple[int, ...]) -> Field:
        c, mix = learned(self.blocks, self.branch_exponent), mixing(grid, self.kernel_size, 1, self.padding)
        shown = self._shown(net, h, gain_factor=c)
        if self.branch_layers == 2:
            u = c * net.apply("U", shown, to=INNER, mix=mix)
            shown = self._shown(net, u, "inner gain", c)
        scale = branch_factor(self.blocks, self.branch_scale, self.branch_exponent)
        branch: Field = scale * net.apply("V", shown, to=STREAM, mix=mix)
        return h + branch

    def _shown(self, net: Any, h: Field, gain: str = "gain", gain_factor: Any = 1.0) -> Field:
        """phi_n(h), with a gain of this name."""
        scaled = normalized(self.normalization, net, h, gain if self.trained_gain else None, gain_factor)
        return net.layer(h, net.activate(self.activation, scaled))  # type: ignore[no-any-return]

    def inputs(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Patches (sample, position, place of the kernel and channel) / sqrt(K C)."""
        return patches(x, self.grids(x.shape[1:])[0], self.kernel_size, self.stride, self.padding)

    def grids(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The sizes of the axes of positions, of inputs of this shape and of the stream; ValueError as of `CNN`."""
        return grids_of(shape, [self.stride, 1], self.kernel_size, self.padding)[:2]

    def relative_variances(self, layers: int) -> tuple[float, ...]:
        of_block = learned(self.blocks, self.branch_exponent) ** -2
        return (1.0, *[of_block] * (layers - 2), 1.0)
