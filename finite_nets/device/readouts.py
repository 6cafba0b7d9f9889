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
        given = fused.given_of(w, x, y, scale=scale)
        self.launch(FORWARD, WARPS, len(x) * -(-given.rows // (WARPS * EACH)), given)
        return y

    def descend(
        self, w: Tensor, g: Tensor, x: Tensor, *, slope: Tensor, scale: float, keep: float, push: float
    ) -> Tensor:
        """slope (scale g W), and W = keep W + push sum_a g_a x_a^T, in place."""
        y, g = x.new_empty(x.shape), g.contiguous()
        given = fused.given_of(w, x, y, g=g, slope=slope, scale=scale, keep=keep, push=push)
        warps = min(4, -(-given.n_in // QUAD))
        self.launch(BACKWARD, warps, len(x) * -(-given.n_in // (QUAD * warps)), given)
        return y

    def launch(self, passes: int, warps: int, blocks: int, given: fused.Arguments) -> None:
        kernel = _kernel(passes, given.n_out, warps, nvrtc.numbered(self._device))
        kernel.launch(blocks, fused.LANES * warps, 0, given)


@lru_cache(maxsize=8)
def _available(device: torch.device) -> bool:
    """Whether the kernels can be had there; a warning says why not."""
    if not fused.available(device):
        return False
    index = nvrtc.numbered(device)
    return nvrtc.compiles(lambda: _kernel(BACKWARD, MOST_OUTPUTS, WARPS, index), "readouts are not fused")


@lru_cache(maxsize=64)
def _kernel(passes: int, outputs: int, warps: int, index: int) -> nvrtc.Kernel:
    return nvrtc.Kernel(SOURCE, "pass", defined(passes, outputs, warps), torch.device("cuda", index))


def defined(passes: int, outputs: int, warps: int) -> dict[str, int]:
    """What readouts.cu is compiled with."""
    return {"PASS": passes, "OUTPUTS": outputs, "WARPS": warps}
