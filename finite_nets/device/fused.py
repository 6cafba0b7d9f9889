"""Layers by one pass over their matrices, for more samples than a few: `fused.cu`.

    forward     h = scale x W^T + add,  phi(h), phi'(h)
    backward    phi' (scale g W), and with it
    update      W = keep W + push sum_a g_a x_a^T, and that of the layer below with it where there is nothing else left

Fields of up to `TILE` samples are in the shared memory of a multiprocessor, part of a sum at a time; entries of W
pass through the registers of the threads that multiply them.  More samples pass by tiles, and back apart from the
update.  Every sample is scaled by its largest number, which the pass that writes a field notes beside it (`Field`):
what is lost of it forward and back is 2^-39 of that, whatever other samples are.  An update is a sum over samples,
whose products share a power of two: each is off by 2^-38 of the largest max|g_b| max|x_b| of all samples b, so that
entries that small samples alone move lose digits where products are more than 10^4 apart (tests/benchmarks/RESULTS.md).
Of a member and step, with P samples,

    bytes         4 N^2 of weights forward, 8 N^2 backward; 4 N P of each field, two forward and three or four backward,
                  one more each where phi' is no function of phi
    operations    6 N^2 P, three products of halves each (`halves.cuh`)

of which libraries and `finite_nets.device.triton`, where a pass is one product, move 16 N^2 and some 12 fields.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dmft.specs import Activation
from finite_nets.device import nvrtc
from finite_nets.device.fields import SLOPES, Field, Layer, Sized, Slope

SOURCE = Path(__file__).with_name("fused.cu")
ACTIVATIONS = ("tanh", "relu", "erf", "gelu", "softplus", "linear")
AS_KEPT = len(ACTIVATIONS)  # of slopes that are not made of phi
BY = 4  # numbers of a row are read at once
LANES, DEEP, STRIDE = 32, 16, 20  # as in the kernels: neurons of a warp, and of a sum at a time, and as they lie
FORWARD, BACKWARD, UPDATE, PULLBACK, BOTH = range(5)
FEWEST_ROWS = 17
MOST_ROWS = 512  # as far as was measured
TILE, ALONE = 64, 112  # most rows of a tile, and of one that is pulled back alone
CHUNKS = 208, 112, 64  # of an update at once, as many as shared memory has room for
NARROWEST = 128  # matrices: below, tiles are mostly empty
SINCE = 8  # major compute capability that multiplies TF32


class Arguments(ctypes.Structure):
    """`Args` of layers.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("w", "x", "g", "add", "slope", "y", "phi", "phi_slope")),
        *((name, ctypes.c_void_p) for name in ("below", "z", "x_sizes", "g_sizes", "z_sizes", "sizes")),
        *((name, ctypes.c_longlong) for name in ("x_sizes_member", "g_sizes_member", "z_sizes_member")),
        *((name, ctypes.c_longlong) for name in ("w_member", "x_member", "g_member")),
        *((name, ctypes.c_longlong) for name in ("add_member", "add_row", "slope_member", "below_member", "z_member")),
        *((name, ctypes.c_int) for name in ("rows", "n_out", "n_in", "n_below")),
        *((name, ctypes.c_float) for name in ("scale", "keep", "push", "gain", "keep_below", "push_below")),
    ]

    def set_field(self, name: str, x: Sized) -> None:
        for suffix, tensor in (("", x.values), ("_sizes", x.sizes)):
            setattr(self, name + suffix, tensor.data_ptr())
            setattr(self, f"{name}{suffix}_member", tensor.stride(0))

    def set_slope(self, slope: Slope) -> None:
        self.slope, self.slope_member = slope.kept.data_ptr(), slope.kept.stride(0)
        self.gain = 1.0 if slope.of is None else slope.of.gain


class Below(NamedTuple):
    """The update of the layer below, w = keep w + push sum_a g'_a x_a^T."""

    w: Tensor
    x: Field
    keep: float
    push: float


class Shape(NamedTuple):
    """Of a kernel: which pass; rows of its tiles, warps and stages of a block, blocks that are to fit on a
    multiprocessor."""

    passes: int
    rows: int
    warps: int
    stages: int
    blocks: int

    def shared_bytes(self, products: int) -> int:
        neurons = LANES * self.warps
        numbers = self.stages * (DEEP * neurons + self.rows * STRIDE) + 3 * self.rows
        if self.passes in (BACKWARD, UPDATE, BOTH):
            numbers += (2 if products == 3 else 1) * self.rows * neurons // 2
        return 4 * numbers

    def tiles(self, neurons: int) -> int:
        return -(-neurons // (LANES * self.warps))


def shape_of(passes: int, rows: int, most: int | None = None) -> Shape:
    """What was measured to be the fastest (tests/benchmarks/RESULTS.md), of tiles of so many rows at most."""
    most = (ALONE if passes == PULLBACK else TILE) if most is None else most
    rows = 16 * -(-rows // (16 * -(-rows // most)))
    at_once = passes in (BACKWARD, BOTH)
    stages = 4 if passes == FORWARD or at_once else 3
    blocks = 3 if rows <= TILE and not at_once else 2 if rows <= ALONE else 1
    return Shape(passes, rows, 4, stages, blocks)


class Fused:
    """Passes at one precision: `products`, three or one of each."""

    def __init__(self, products: int, device: torch.device) -> None:
        self._products, self._device = products, device

    def serves(self, w: Tensor, *fields: Tensor) -> bool:
        """Whether the kernels are made for products of these, and can be had."""
        if not FEWEST_ROWS <= fields[0].shape[1] <= MOST_ROWS or max(w.shape[1:]) < NARROWEST or w.shape[1] % BY:
            return False
        return by_four(w, *fields) and available(self._device)

    def forward(
        self, x: Field, w: Tensor, activation: Activation, *, scale: float, add: Tensor | None, keep: bool
    ) -> Layer:
        """The layer of y = scale x W^T + add, which is (member, row, N)."""
        met = x.sized()
        members, rows, _ = met.values.shape
        n_out = w.shape[1]
        y = w.new_empty((members, rows, n_out)) if keep else None
        phi = blank((members, rows, n_out), w)
        slope = Slope(phi.values, activation) if activation.name in SLOPES else Slope(torch.empty_like(phi.values))
        shape = shape_of(FORWARD, rows)
        given = given_of(w, met, scale=scale)
        given.y = 0 if y is None else y.data_ptr()
        given.phi, given.sizes, given.phi_slope = (each.data_ptr() for each in (*phi, slope.kept))
        given.gain = activation.gain
        if add is not None:
            given.add, given.add_member, given.add_row = add.data_ptr(), add.stride(0), add.stride(1)
        blocks = members * shape.tiles(n_out) * -(-rows // shape.rows)
        self.launch(shape, ACTIVATIONS.index(activation.name), blocks, given)
        return Layer(y, Field(*phi), slope)

    def backward(self, w: Tensor, g: Field, layer: Layer, *, scale: float, keep: float, push: float) -> Field:
        """slope (scale g W) of the layer below, and W = keep W + push sum_a g_a x_a^T with its x, in place."""
        from_above, x = g.sized(), layer.phi.sized()
        y = blank(x.values.shape, w)
        given = given_of(w, x, from_above, scale=scale, keep=keep, push=push)
        given.set_slope(layer.slope)
        given.y, given.sizes = y.values.data_ptr(), y.sizes.data_ptr()
        at_once = given.rows <= TILE
        shape = shape_of(BACKWARD if at_once else PULLBACK, given.rows)
        blocks = len(w) * shape.tiles(given.n_in) * -(-given.rows // shape.rows)
        self.launch(shape, number_of(layer.slope.of), blocks, given)
        if not at_once:
            self._update(w, from_above, x, keep=keep, push=push)
        return Field(*y)

    def serves_both(self, below: Below) -> bool:
        """Whether the update below may be made with a pass that is served."""
        return below.x.values.shape[1] <= TILE and by_four(below.w, below.x.values)

    def backward_both(
        self, w: Tensor, g: Field, layer: Layer, *, scale: float, keep: float, push: float, below: Below
    ) -> None:
        """`backward`, and with what it finds the update below."""
        from_above, x, z = g.sized(), layer.phi.sized(), below.x.sized()
        given = given_of(w, x, from_above, scale=scale, keep=keep, push=push)
        given.set_slope(layer.slope)
        given.set_field("z", z)
        given.below, given.below_member, given.n_below = below.w.data_ptr(), below.w.stride(0), below.w.shape[2]
        given.keep_below, given.push_below = below.keep, below.push
        shape = shape_of(BOTH, given.rows)
        self.launch(shape, number_of(layer.slope.of), len(w) * shape.tiles(given.n_in), given)

    def update(self, w: Tensor, g: Field, x: Field, *, keep: float, push: float) -> None:
        """W = keep W + push sum_a g_a x_a^T, in place."""
        self._update(w, g.sized(), x.sized(), keep=keep, push=push)

    def _update(self, w: Tensor, g: Sized, x: Sized, *, keep: float, push: float) -> None:
        rows = x.values.shape[1]
        shapes = (shape_of(UPDATE, rows, most) for most in CHUNKS)
        shape = next(each for each in shapes if each.shared_bytes(self._products) <= _shared_memory(self._device))
        for first in range(0, rows, shape.rows):
            some = slice(first, first + shape.rows)
            given = given_of(w, x.at(some), g.at(some), keep=keep if first == 0 else 1.0, push=push)
            self.launch(shape, AS_KEPT, len(w) * shape.tiles(given.n_in), given)

    def launch(self, shape: Shape, activation: int, blocks: int, given: Arguments) -> None:
        kernel = _kernel(shape, self._products, activation, nvrtc.numbered(self._device))
        kernel.launch(blocks, LANES * shape.warps, shape.shared_bytes(self._products), given)


def given_of(
    w: Tensor, x: Sized, g: Sized | None = None, *, scale: float = 1.0, keep: float = 1.0, push: float = 0.0
) -> Arguments:
    """What all passes are given."""
    given = Arguments(w=w.data_ptr(), w_member=w.stride(0), scale=scale, keep=keep, push=push)
    given.rows, given.n_out, given.n_in = x.values.shape[1], *w.shape[1:]
    given.set_field("x", x)
    if g is not None:
        given.set_field("g", g)
    return given


def blank(shape: tuple[int, ...], like: Tensor) -> Sized:
    """Room for a field, and for sizes, which are zero."""
    return Sized(like.new_empty(shape), like.new_zeros(shape[:2]))


def number_of(activation: Activation | None) -> int:
    """What kernels call the activation of a slope."""
    return AS_KEPT if activation is None else ACTIVATIONS.index(activation.name)


def by_four(*fields: Tensor) -> bool:
    """Whether rows are of consecutive numbers, one after the other, and may be read four at a time."""
    in_order = (each.stride(2) == 1 and each.stride(1) == each.shape[2] for each in fields)
    return all(in_order) and all(not (each.shape[2] | each.stride(0)) % BY for each in fields)


@lru_cache(maxsize=64)
def _kernel(shape: Shape, products: int, activation: int, index: int) -> nvrtc.Kernel:
    return nvrtc.Kernel(SOURCE, "pass", defined(shape, products, activation), torch.device("cuda", index))


@lru_cache(maxsize=8)
def _shared_memory(device: torch.device) -> int:
    """Bytes that a block may have; where kernels run on a CPU, more than they ask for."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return getattr(properties, "shared_memory_per_block_optin", 2**18)


def defined(shape: Shape, products: int, activation: int) -> dict[str, int]:
    """What fused.cu is compiled with."""
    return {
        "ROWS": shape.rows,
        "WARPS": shape.warps,
        "STAGES": shape.stages,
        "BLOCKS": shape.blocks,
        "PRODUCTS": products,
        "ACT": activation,
        "SLOPE_KEPT": int(activation < AS_KEPT and ACTIVATIONS[activation] not in SLOPES),
        "PASS": shape.passes,
    }


@lru_cache(maxsize=8)
def available(device: torch.device) -> bool:
    """Whether the kernels can be had there; a warning says why not."""
    if device.type != "cuda" or not nvrtc.available() or torch.cuda.get_device_capability(device)[0] < SINCE:
        return False
    index = nvrtc.numbered(device)
    tried = (shape_of(FORWARD, TILE), ACTIVATIONS.index("tanh")), (shape_of(BACKWARD, TILE), AS_KEPT)
    made = (partial(_kernel, shape, 3, activation, index) for shape, activation in tried)
    return all(nvrtc.compiles(make, "layers are not fused") for make in made)
