"""Convolutional networks, over one axis of positions or two.

    h^1_y = sum_k W^{0k} x_{y+k} / sqrt(K C)     h^{l+1}_y = sum_k W^{lk} phi(h^l_{y+k}) / sqrt(K N)
    f = w . mean_y phi(h^L_y) / (gamma0 N),      or sum_y w_y . phi(h^L_y) / (gamma0 N sqrt(Y))

The k are the K places of a kernel, `kernel_size` of them along each axis of positions, with the middle at k = 0, and C
are the channels of the input.  With a stride s, y + k stands for s y + k.  What lies outside is zero, or, circular, the
other side.  Positions of images are numbered row by row, in one axis; so are the places of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check
from dmft.specs.activation import Activation, tanh
from dmft.specs.networks.fields import check_fields
from dmft.specs.networks.population import Field
from dmft.specs.networks.program import Architecture
from dmft.specs.parameterization import MEAN_FIELD, STANDARD

PADDINGS = ("zero", "circular")
POOLINGS = ("mean", "flatten")
OUTSIDE = -1


@dataclass(frozen=True)
class CNN(Architecture):
    """Convolutional network (`dmft.specs.parameterization` has every scale).

    Its task has positions: inputs (sample, position, channel), or (sample, row, column, channel).

    Args:
        depth: number L of hidden layers, all of them convolutions, at least 1.
        kernel_size: places of a kernel along each axis of positions, an odd number.
        activation: phi, e.g. `dmft.tanh()`.
        gamma0: richness (feature-learning strength); gamma0 -> 0 is the lazy (NTK) limit.
        stride: of every layer: of n positions along an axis ceil(n / stride) are left.
        padding: "zero", what lies outside is zero; "circular", it is the other side.
        pooling: "mean", the readout averages over positions; "flatten", it has weights of its own for each of them,
            sum_y w_y . phi(h^L_y) / (gamma0 N sqrt(Y)) of Y positions.
        centered, frozen, parameterization, weight_variance: as of `MLP`; "standard" is not offered.

    Raises:
        ValueError, TypeError: as for `MLP`; an even kernel; an unknown padding or pooling.  By a `Problem`: inputs
            without positions, circular kernels that are larger than what they move over.

    Source: Novak et al. 2019, Garriga-Alonso et al. 2019 (infinitely many channels), Bordelon & Pehlevan 2022 (feature
    learning).

    Example:
        >>> images = np.random.default_rng(0).standard_normal((2, 5, 4, 1))  # of 5 x 4 pixels and one channel
        >>> problem = dmft.Problem(dmft.CNN(2, 3, stride=2), dmft.Task(images, [-1, 1]), dmft.GradientDescent(0.5, 3))
        >>> problem.network.grids((5, 4, 1))
        [(5, 4), (3, 2), (2, 1)]
    """

    depth: int
    kernel_size: int
    activation: Activation = field(default_factory=tanh)
    gamma0: float = 1.0
    stride: int = 1
    padding: str = "zero"
    pooling: str = "mean"
    centered: bool = True
    frozen: tuple[int, ...] = ()
    parameterization: str = MEAN_FIELD
    weight_variance: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_convolution(self)

    def program(self, net: Any, x: Any) -> Field:
        h = net.read("W0", x, to=0)
        *grids, last = self.grids(net.shape)
        for n in range(1, self.depth):
            features = net.layer(h, net.activate(self.activation, h))
            h = net.apply(f"W{n}", features, to=n, mix=mixing(grids[n], self.kernel_size, self.stride, self.padding))
        return pooled(net, net.layer(h, net.activate(self.activation, h)), math.prod(last), self.pooling)

    def inputs(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Patches (sample, position, place of the kernel and channel) / sqrt(K C)."""
        return patches(x, self.grids(x.shape[1:])[0], self.kernel_size, self.stride, self.padding)

    def grids(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The sizes of the axes of positions, of inputs of this shape and of h^1 .. h^L.

        Raises:
            ValueError: no positions; circular kernels that are larger than these.
        """
        return grids_of(shape, [self.stride] * self.depth, self.kernel_size, self.padding)


# ---- what convolutional networks share -------------------------------------------------------------------------------


def check_convolution(network: Any) -> None:
    """Check kernel_size, stride, padding, pooling and parameterization of a frozen dataclass, and set them.

    Raises:
        ValueError, TypeError: naming the field.
    """
    for name in ("kernel_size", "stride"):
        object.__setattr__(network, name, _check.integer(name, getattr(network, name), minimum=1))
    if network.kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size={network.kernel_size} is even: such a kernel has no middle; take {network.kernel_size + 1}."
        )
    if network.pooling == "max":
        raise ValueError(
            'pooling="max" is not offered: where two positions are equal it has a kink, which what 1/N adds does not '
            'see. Take "mean" or "flatten", or a program of your own with a formula of net.local.'
        )
    for name, known in (("padding", PADDINGS), ("pooling", POOLINGS)):
        if getattr(network, name) not in known:
            raise ValueError(f"{name}={getattr(network, name)!r} is unknown; choose one of {', '.join(known)}.")
    if network.parameterization == STANDARD:
        raise ValueError(
            f'parameterization="{STANDARD}" is for perceptrons: its rates are the inputs of their layers. Take '
            f'"{MEAN_FIELD}", or "ntk".'
        )


def grids_of(shape: tuple[int, ...], strides: Sequence[int], kernel_size: int, padding: str) -> list[tuple[int, ...]]:
    """The sizes of the axes of positions, of inputs of this shape and after convolutions of these strides; ValueError
    for no positions, or circular kernels that are larger than these."""
    if len(shape) not in (2, 3):
        raise ValueError(
            f"a convolutional network needs positions, and an input of shape {shape} has none; give inputs "
            "(sample, position, channel) or (sample, row, column, channel): x[:, :, None] for one channel, or "
            "dmft.load_task(..., flatten=False)."
        )
    found = [shape[:-1]]
    for stride in strides:
        if padding == "circular" and kernel_size > min(found[-1]):
            where = f"h^{len(found) - 1}" if len(found) > 1 else "the input"
            raise ValueError(
                f"kernel_size={kernel_size} is larger than the {' x '.join(map(str, found[-1]))} positions of "
                f'{where}, around which padding="circular" goes; take a smaller kernel or stride, or '
                'padding="zero".'
            )
        found.append(tuple(-(-size // stride) for size in found[-1]))
    return found


def pooled(net: Any, features: Field, count: int, pooling: str) -> Field:
    """What the readout averages, of so many positions."""
    if pooling == "flatten":
        return net.flatten(features)  # type: ignore[no-any-return]
    return net.mix(features, np.full(count, 1 / count))  # type: ignore[no-any-return]


def patches(
    x: NDArray[np.float64], grid: tuple[int, ...], kernel_size: int, stride: int, padding: str
) -> NDArray[np.float64]:
    """(sample, position, place of the kernel and channel) / sqrt(K C) of inputs with positions on this grid."""
    channels, seen = x.shape[-1], sources(grid, kernel_size, stride, padding)
    outside = np.zeros((len(x), 1, channels))  # which OUTSIDE, the last one, finds
    places = np.concatenate([x.reshape(len(x), -1, channels), outside], axis=1)[:, seen]
    found: NDArray[np.float64] = np.moveaxis(places, 1, 2).reshape(len(x), seen.shape[1], -1)
    return found / math.sqrt(found.shape[2])


@lru_cache(maxsize=8)
def mixing(grid: tuple[int, ...], kernel_size: int, stride: int, padding: str) -> NDArray[np.float64]:
    """m (place of the kernel, position, source) / sqrt(K): 1 where the position sees the source at this place."""
    seen = sources(grid, kernel_size, stride, padding)
    mix: NDArray[np.float64] = (seen[..., None] == np.arange(math.prod(grid))) / math.sqrt(len(seen))
    mix.flags.writeable = False
    return mix


def sources(grid: tuple[int, ...], kernel_size: int, stride: int, padding: str) -> NDArray[np.int64]:
    """(place of the kernel, position): which position of the grid is seen there; OUTSIDE where none is."""
    found = np.zeros((1, 1), np.int64)
    for size in grid:
        along = _along(size, kernel_size, stride, padding)
        joined = found[:, None, :, None] * size + along[:, None, :]
        joined = np.where((found[:, None, :, None] < 0) | (along[:, None, :] < 0), OUTSIDE, joined)
        found = joined.reshape(len(found) * len(along), -1)
    return found


def _along(size: int, kernel_size: int, stride: int, padding: str) -> NDArray[np.int64]:
    """`sources` of a single axis."""
    seen = np.arange(0, size, stride) + np.arange(kernel_size)[:, None] - kernel_size // 2
    if padding == "circular":
        return seen % size
    return np.where((seen >= 0) & (seen < size), seen, OUTSIDE)
