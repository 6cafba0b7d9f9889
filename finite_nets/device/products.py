"""Products of fields with the weights of every member of a batch, and what is done with them at once.

    image       y = scale x W^T + c R + add          forward; phi(y) and phi'(y) with it, where an activation is given
    pullback    y = slope (scale g W + c R + add)    backward
    accumulate  W = keep W + scale sum_a c_a g_a x_a^T
    descend     both, of the same W

Fields are (member, row, N), weights (member, N_out, N_in).  c (member, row, pair) and R (member, pair, N) are what low
rank adds (`finite_nets.device.matrices`).

On a GPU more samples than a few pass by layers in one pass where no low rank is added (`finite_nets.device.fused`) and
by readouts of few outputs (`finite_nets.device.readouts`), and others by the kernels of `finite_nets.device.triton`
(Triton, which comes with PyTorch's builds for CUDA), for fields in float32; elsewhere, in float64, and in TF32 where
many rows meet large matrices, PyTorch's batched products: there what the kernels fuse is little beside the product, and
libraries take a third of the time (RESULTS.md).
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from dmft.specs import Activation
from finite_nets.device import fused, readouts
from finite_nets.device.activations import function
from finite_nets.device.fields import Field, Layer, Slope, field
from finite_nets.device.fused import Below
from finite_nets.device.precision import Precision
from finite_nets.device.random import have_kernels

MODES = {"float32": "tf32x3", "tf32": "tf32", "bf16": "bf16"}  # of the matrix units, in the kernels
FACTORS = {"float32": 3, "tf32": 1}  # products of TF32 numbers, in fused layers
MANY_ROWS, LARGE = 64, 512  # from where on libraries are faster in TF32: rows, and the smaller side of a matrix
Pairs = tuple[Tensor, Tensor]


def layer_of(y: Tensor, activation: Activation, keep: bool) -> Layer:
    """What is made of y."""
    phi, slope = function(activation)(y)
    return Layer(y if keep else None, Field(phi), Slope(slope))


class Products:
    """The three products, at one precision on one device.

    Args:
        kernels: whether to take the kernels; by default where they are made for.
    """

    def __init__(self, precision: Precision, device: torch.device, kernels: bool | None = None) -> None:
        self.precision = precision
        if kernels is None:
            kernels = precision.name in MODES and have_kernels(device)
        self.kernels: Any = importlib.import_module("finite_nets.device.triton") if kernels else None
        self._mode = MODES.get(precision.name, "")
        self.readouts = readouts.Readouts(device) if kernels and precision.name in FACTORS else None
        self.fused = fused.Fused(FACTORS[precision.name], device) if kernels and precision.name in FACTORS else None

    @property
    def plain(self) -> bool:
        """Whether all are those of PyTorch: passes may be had without the kernels of Triton."""
        return self.kernels is None and self.readouts is None and self.fused is None

    def image(self, x: Tensor, w: Tensor, *, scale: float = 1.0, pairs: Pairs | None = None) -> Tensor:
        """scale x W^T + c R."""
        if pairs is None and self.readouts is not None and self.readouts.serves(w, x):
            return self.readouts.image(x, w, scale=scale)
        if self._by_kernels(w, x):
            mode = self._mode_of(w)
            y: Tensor = self.kernels.product(x, w, pullback=False, precision=mode, scale=scale, pairs=pairs)[0]
            return y
        return self._linear(x, w.mT, scale, pairs, None)

    def activated(
        self,
        below: Tensor | Field,
        w: Tensor,
        activation: Activation,
        *,
        scale: float,
        pairs: Pairs | None = None,
        add: Tensor | None = None,
        keep: bool = False,
    ) -> Layer:
        """phi and phi' of y = scale x W^T + c R + add, and y if it is to be kept.  `add` is (member, row or 1, N)."""
        x = field(below).values
        if add is not None:
            add = add.expand(-1, x.shape[1], -1)
        if pairs is None and activation.plain and self.fused is not None and self.fused.serves(w, x):
            return self.fused.forward(field(below), w, activation, scale=scale, add=add, keep=keep)
        if self._by_kernels(w, x):
            mode = self._mode_of(w)
            if not activation.plain:  # kernels have the built-in formulas
                y = self.kernels.product(x, w, pullback=False, precision=mode, scale=scale, pairs=pairs, add=add)[0]
                return layer_of(y, activation, keep)
            y, phi, slope = self.kernels.product(
                x,
                w,
                pullback=False,
                precision=mode,
                scale=scale,
                pairs=pairs,
                add=add,
                activation=activation,
                keep=keep,
            )
            return Layer(y, Field(phi), Slope(slope))
        return layer_of(self._linear(x, w.mT, scale, pairs, add), activation, keep)

    def pullback(
        self, g: Tensor, w: Tensor, *, scale: float = 1.0, pairs: Pairs | None = None, slope: Slope | None = None
    ) -> Tensor:
        """scale g W + c R, times the slopes (member, sample, N) where several rows of g belong to a sample."""
        values = None if slope is None else slope.values()
        if self._by_kernels(w, g):
            y: Tensor = self.kernels.product(
                g, w, pullback=True, precision=self._mode_of(w), scale=scale, pairs=pairs, slope=values
            )[0]
            return y
        y = self._linear(g, w, scale, pairs, None)
        if values is not None:
            y.view(len(y), values.shape[1], -1, y.shape[2]).mul_(values[:, :, None])
        return y

    def accumulate(
        self,
        w: Tensor,
        g: Tensor | Field,
        x: Tensor | Field,
        coefficients: Tensor | None,
        *,
        keep: float = 1.0,
        scale: float = 1.0,
    ) -> None:
        """W = keep W + scale sum_a c_a g_a x_a^T, in place; coefficients c (member, row), or ones."""
        from_above, met = field(g), field(x)
        if self.fused is not None and self.fused.serves(w, from_above.values, met.values):
            if coefficients is not None:
                from_above = Field(from_above.values * coefficients[..., None])
            self.fused.update(w, from_above, met, keep=keep, push=scale)
            return
        left, right = from_above.values, met.values
        if self._by_kernels(w, right):
            if coefficients is not None:
                coefficients = coefficients.expand(len(left), -1).contiguous()
            self.kernels.accumulate(w, left, right, coefficients, precision=self._mode_of(w), keep=keep, scale=scale)
            return
        if coefficients is not None:
            left = left * coefficients[..., None]
        w.baddbmm_(left.mT, right, beta=keep, alpha=scale)

    def descend(
        self, w: Tensor, above: Tensor | Field, layer: Layer, *, scale: float, keep: float, push: float
    ) -> Field:
        """slope (scale g W) of the layer below, and then W = keep W + push sum_a g_a x_a^T with its x, in place."""
        g, x, slope = field(above), layer.phi, layer.slope
        if self.readouts is not None and self.readouts.serves(w, x.values, slope.kept):
            return self.readouts.descend(w, g.values, layer, scale=scale, keep=keep, push=push)
        if self.fused is not None and self.fused.serves(w, g.values, x.values, slope.kept):
            return self.fused.backward(w, g, layer, scale=scale, keep=keep, push=push)
        found = self.pullback(g.values, w, scale=scale, slope=slope)
        self.accumulate(w, g, x, None, keep=keep, scale=push)
        return Field(found)

    def descend_both(
        self, w: Tensor, above: Tensor | Field, layer: Layer, *, scale: float, keep: float, push: float, below: Below
    ) -> None:
        """`descend`, and with what it finds the update of the layer below."""
        g, moved = field(above), {"scale": scale, "keep": keep, "push": push}
        served = self.fused is not None and self.fused.serves(w, g.values, layer.phi.values, layer.slope.kept)
        if self.fused is not None and served and self.fused.serves_both(below):
            self.fused.backward_both(w, g, layer, **moved, below=below)
            return
        found = self.descend(w, g, layer, **moved)
        self.accumulate(below.w, found, below.x, None, keep=below.keep, scale=below.push)

    def _by_kernels(self, w: Tensor, rows: Tensor) -> bool:
        """Kernels count the entries of a matrix in 32 bits."""
        many = self._mode == "tf32" and rows.shape[1] >= MANY_ROWS and min(w.shape[1:]) >= LARGE
        return self.kernels is not None and not many and w.shape[1] * w.shape[2] < 2**31

    def _mode_of(self, w: Tensor) -> str:
        """bfloat16 is for the matrices that are kept so."""
        return "tf32x3" if self._mode == "bf16" and w.dtype != torch.bfloat16 else self._mode

    @staticmethod
    def _linear(x: Tensor, w: Tensor, scale: float, pairs: Pairs | None, add: Tensor | None) -> Tensor:
        """scale x w + c R + add, of w (member, N_in, N_out)."""
        if w.dtype == torch.bfloat16:
            x, w = x.bfloat16().to(x.dtype), w.to(x.dtype)
        if pairs is not None:
            c, r = pairs
            add = torch.bmm(c, r) if add is None else torch.baddbmm(add.expand(-1, c.shape[1], -1), c, r)
        if add is None:
            return torch.bmm(x, w).mul_(scale)
        return torch.baddbmm(add, x, w, alpha=scale)
