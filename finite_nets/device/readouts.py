"""Readouts of every member, matrices of a few rows, for more samples than a few: `readouts.cu`.

    image       y = scale x W^T
    descend     phi' (scale g W), and with it W = keep W + push sum_a g_a x_a^T

Fields pass once forward and once backward, 4 N P bytes each: x; x, phi' and what is found.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from finite_nets.device import fused, nvrtc
from finite_nets.device.fields import Field, Layer

SOURCE = Path(__file__).with_name("readouts.cu")
FORWARD, BACKWARD = range(2)
MOST_OUTPUTS = 16
WARPS, EACH = 4, 4  # of a block forward, and rows of a warp, as in readouts.cu
QUAD = 4 * fused.LANES  # neurons of a warp backward


class Readouts:
    """Passes in float32, with sums in their order."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def serves(self, w: Tensor, *fields: Tensor) -> bool:
        """Whether the kernels are made for products of these, and can be had."""
        few = w.shape[1] <= MOST_OUTPUTS and fused.FEWEST_ROWS <= fields[0].shape[1] <= fused.MOST_ROWS
        return few and fused.by_four(w, *fields) and _available(self._device)

    def image(self, x: Tensor, w: Tensor, *, scale: float) -> Tensor:
        """scale x W^T."""
        y = x.new_empty((*x.shape[:2], w.shape[1]))
        given = given_of(w, x, scale=scale)
        given.y = y.data_ptr()
        self.launch(FORWARD, fused.AS_KEPT, WARPS, len(x) * -(-given.rows // (WARPS * EACH)), given)
        return y

    def descend(self, w: Tensor, g: Tensor, layer: Layer, *, scale: float, keep: float, push: float) -> Field:
        """slope (scale g W) of the layer below, and W = keep W + push sum_a g_a x_a^T with its x, in place."""
        x, slope, g = layer.phi.values, layer.slope, g.contiguous()
        y = fused.blank(x.shape, w)
        given = given_of(w, x, scale=scale)
        given.g, given.g_member, given.keep, given.push = g.data_ptr(), g.stride(0), keep, push
        given.set_slope(slope)
        given.y, given.sizes = y.values.data_ptr(), y.sizes.data_ptr()
        warps = min(4, -(-given.n_in // QUAD))
        self.launch(BACKWARD, fused.number_of(slope.of), warps, len(x) * -(-given.n_in // (QUAD * warps)), given)
        return Field(*y)

    def launch(self, passes: int, activation: int, warps: int, blocks: int, given: fused.Arguments) -> None:
        kernel = _kernel(passes, activation, given.n_out, warps, nvrtc.numbered(self._device))
        kernel.launch(blocks, fused.LANES * warps, 0, given)


def given_of(w: Tensor, x: Tensor, *, scale: float) -> fused.Arguments:
    """What both passes are given."""
    given = fused.Arguments(w=w.data_ptr(), x=x.data_ptr(), w_member=w.stride(0), x_member=x.stride(0))
    given.rows, given.n_out, given.n_in, given.scale = x.shape[1], *w.shape[1:], scale
    return given


@lru_cache(maxsize=8)
def _available(device: torch.device) -> bool:
    """Whether the kernels can be had there; a warning says why not."""
    if not fused.available(device):
        return False
    index = nvrtc.numbered(device)
    arguments = BACKWARD, fused.AS_KEPT, MOST_OUTPUTS, WARPS, index
    return nvrtc.compiles(lambda: _kernel(*arguments), "readouts are not fused")


@lru_cache(maxsize=64)
def _kernel(passes: int, activation: int, outputs: int, warps: int, index: int) -> nvrtc.Kernel:
    return nvrtc.Kernel(SOURCE, "pass", defined(passes, activation, outputs, warps), torch.device("cuda", index))


def defined(passes: int, activation: int, outputs: int, warps: int) -> dict[str, int]:
    """What readouts.cu is compiled with."""
    return {"PASS": passes, "ACT": activation, "OUTPUTS": outputs, "WARPS": warps}
