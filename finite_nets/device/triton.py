"""GPU kernels, in Triton: products of fields with the weights of every member, and normal variables.

Fields are float32, (member, row, N), and few rows meet large matrices: each product is one pass over the weights.  What
happens to its result at once is done while it is in registers, so that fields are written once and read once a use:

    product      y = scale x W^T (or x W) + c R + add;  with an activation phi(y), phi'(y);  with a slope, slope y
    accumulate   W = keep W + scale sum_a c_a g_a x_a^T, in place
    normals      Philox-4x32-10 and Box-Muller, as `finite_nets.device.random`

Matrix units multiply TF32, which is float32 with a mantissa of 10 bits.  "tf32x3" splits each factor into two such
numbers and adds three products, x y = x1 y1 + x1 y2 + x2 y1, with the accuracy of float32.  Sizes of tiles depend on
the shapes of one member alone, so that its numbers do not depend on how many are trained at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.random import philox

from dmft.specs import Activation

# ---- products --------------------------------------------------------------------------------------------------------


@triton.jit
def _product(
    x_ptr,
    w_ptr,
    c_ptr,
    r_ptr,
    add_ptr,
    slope_ptr,
    y_ptr,
    phi_ptr,
    phi_slope_ptr,
    rows,
    n_out,
    n_in,
    n_pairs,
    x_member,
    w_member,
    r_member,
    add_member,
    add_row,
    slope_member,
    scale,
    gain,
    PULLBACK: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRS: tl.constexpr,
    ADD: tl.constexpr,
    SLOPE: tl.constexpr,
    STARTS: tl.constexpr,
    KEEP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """A tile (rows, out) of one member.  W is (out, in), or (in, out) for a pullback; R (pair, out); c (row, pair)."""
    tile = tl.program_id(0)
    tiles_out, tiles_rows = tl.cdiv(n_out, BLOCK_OUT), tl.cdiv(rows, BLOCK_ROWS)
    member = (tile // (tiles_out * tiles_rows)).to(tl.int64)
    out = tile % tiles_out * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    row = tile // tiles_out % tiles_rows * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    k = tl.arange(0, BLOCK_IN)
    is_row, is_out = row < rows, out < n_out

    shape: tl.constexpr = (BLOCK_OUT, BLOCK_ROWS) if WEIGHTS_FIRST else (BLOCK_ROWS, BLOCK_OUT)
    y = tl.zeros(shape, tl.float32)
    x = x_ptr + member * x_member + row[:, None] * n_in + k[None, :]
    if PULLBACK:
        w = w_ptr + member * w_member + k[:, None] * n_out + out[None, :]
    else:
        w = w_ptr + member * w_member + out[:, None] * n_in + k[None, :]
    for start in range(0, n_in, BLOCK_IN):
        is_in = start + k < n_in
        a = tl.load(x, mask=is_row[:, None] & is_in[None, :], other=0.0)
        if PULLBACK:
            b = tl.load(w, mask=is_in[:, None] & is_out[None, :], other=0.0)
            w += BLOCK_IN * n_out
        else:
            b = tl.trans(tl.load(w, mask=is_out[:, None] & is_in[None, :], other=0.0))
            w += BLOCK_IN
        y = _multiply(a, b, y, PRECISION, WEIGHTS_FIRST)
        x += BLOCK_IN
    y *= scale
    if PAIRS:
        c = c_ptr + member * rows * n_pairs + row[:, None] * n_pairs + k[None, :]
        r = r_ptr + member * r_member + k[:, None] * n_out + out[None, :]
        for start in range(0, n_pairs, BLOCK_IN):
            is_pair = start + k < n_pairs
            a = tl.load(c, mask=is_row[:, None] & is_pair[None, :], other=0.0)
            b = tl.load(r, mask=is_pair[:, None] & is_out[None, :], other=0.0)
            y = _multiply(a, b, y, "tf32" if PRECISION == "tf32" else "tf32x3", WEIGHTS_FIRST)
            c += BLOCK_IN
            r += BLOCK_IN * n_out
    if WEIGHTS_FIRST:
        y = tl.trans(y)

    inside = is_row[:, None] & is_out[None, :]
    at = member * rows * n_out + row[:, None] * n_out + out[None, :]
    if ADD:
        y += tl.load(add_ptr + member * add_member + row[:, None] * add_row + out[None, :], mask=inside, other=0.0)
    if SLOPE:
        slope = slope_ptr + member * slope_member + row[:, None] // STARTS * n_out + out[None, :]
        y *= tl.load(slope, mask=inside, other=0.0)
    if KEEP:
        tl.store(y_ptr + at, y, mask=inside)
    if ACTIVATION != "none":
        phi, phi_slope = _activated(y, gain, ACTIVATION)
        tl.store(phi_ptr + at, phi, mask=inside)
        tl.store(phi_slope_ptr + at, phi_slope, mask=inside)


@triton.jit
def _multiply(a, b, y, PRECISION: tl.constexpr, WEIGHTS_FIRST: tl.constexpr):
    """y + a b, or y + (a b)^T: the matrix units want the larger side first."""
    if PRECISION == "bf16":
        a = a.to(tl.bfloat16)
        b = b.to(tl.bfloat16)
    if PRECISION == "tf32":
        a = _tf32(a)
        b = _tf32(b)
    mode: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION  # of float32 factors alone
    if WEIGHTS_FIRST:
        y = tl.dot(tl.trans(b), tl.trans(a), y, input_precision=mode)
    else:
        y = tl.dot(a, b, y, input_precision=mode)
    return y


@triton.jit
def _tf32(a):
    """The nearest TF32 number.  Matrix units cut the last 13 bits off, which makes every product too small by 2^-11: a
    bias, of twenty standard errors of a mean over a million networks."""
    bits = a.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(a == a, rounded, a)  # what is not a number stays so


@triton.jit
def _accumulate(
    w_ptr,
    g_ptr,
    x_ptr,
    c_ptr,
    rows,
    n_out,
    n_in,
    w_member,
    g_member,
    x_member,
    keep,
    scale,
    PRECISION: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """A tile (out, in) of the matrix of one member; c (member, row)."""
    tile = tl.program_id(0)
    tiles_out, tiles_in = tl.cdiv(n_out, BLOCK_OUT), tl.cdiv(n_in, BLOCK_IN)
    member = (tile // (tiles_out * tiles_in)).to(tl.int64)
    column = tile % tiles_in * BLOCK_IN + tl.arange(0, BLOCK_IN)
    out = tile // tiles_in % tiles_out * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_out, is_in = out < n_out, column < n_in
    change = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    for start in range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        is_row = row < rows
        g = g_ptr + member * g_member + row[:, None] * n_out + out[None, :]
        x = x_ptr + member * x_member + row[:, None] * n_in + column[None, :]
        a = tl.load(g, mask=is_row[:, None] & is_out[None, :], other=0.0)
        if COEFFICIENTS:
            a *= tl.load(c_ptr + member * rows + row, mask=is_row, other=0.0)[:, None]
        b = tl.load(x, mask=is_row[:, None] & is_in[None, :], other=0.0)
        change = _multiply(tl.trans(a), b, change, PRECISION, False)
    w = w_ptr + member * w_member + out[:, None] * n_in + column[None, :]
    inside = is_out[:, None] & is_in[None, :]
    tl.store(w, keep * tl.load(w, mask=inside, other=0.0) + scale * change, mask=inside)


@triton.jit
def _activated(h, gain, ACTIVATION: tl.constexpr):
    """phi(h), phi'(h), as `finite_nets.device.activations`."""
    if ACTIVATION == "tanh":
        t = _tanh(gain * h)
        return t / gain, 1.0 - t * t
    elif ACTIVATION == "relu":  # noqa: RET505  # the compiler follows constant branches, not returns
        slope = tl.where(h > 0, 1.4142135623730951, 0.0)
        return slope * h, slope
    elif ACTIVATION == "erf":
        return tl.erf(h), 1.1283791670955126 * tl.exp(-h * h)
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(h * 0.7071067811865476))
        return h * cdf, cdf + h * tl.exp(-0.5 * h * h) * 0.3989422804014327
    elif ACTIVATION == "softplus":
        small = tl.exp(-tl.abs(gain * h))
        return (tl.maximum(gain * h, 0.0) + tl.log(1.0 + small)) / gain, tl.where(h > 0, 1.0, small) / (1.0 + small)
    else:
        return h, tl.full(h.shape, 1.0, tl.float32)


@triton.jit
def _tanh(x):
    """To a few units in the last place: the polynomial of Cephes near zero, exponentials beyond."""
    square = x * x
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.625, x + x * square * p, tl.where(x < 0, -far, far))


# ---- normal variables ------------------------------------------------------------------------------------------------


@triton.jit
def _normals(out_ptr, members_ptr, size, parameter, width, seed, BLOCK: tl.constexpr):
    """4 BLOCK entries of one member: four of each counter (j, parameter, member, width)."""
    tiles = tl.cdiv(size, 4 * BLOCK)
    i = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    j = tile * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.int32)
    member = tl.load(members_ptr + i).to(tl.int32)
    w0, w1, w2, w3 = philox(seed, j, zero + parameter, zero + member, zero + width)
    first, second = _box_muller(w0, w1), _box_muller(w2, w3)
    # (counter, radius or angle, lane) -> four consecutive entries
    z = tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (4 * BLOCK,))
    entry = tile * 4 * BLOCK + tl.arange(0, 4 * BLOCK)
    tl.store(out_ptr + i * size + entry, z, mask=entry < size)


@triton.jit
def _box_muller(u, v):
    """Two normals (counter, 2) from two words."""
    radius = tl.sqrt(-2.0 * tl.log(_uniform(u)))
    angle = 6.283185307179586 * _uniform(v)
    return tl.join(radius * tl.cos(angle), radius * tl.sin(angle))


@triton.jit
def _uniform(word):
    return (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10


# ---- calls -----------------------------------------------------------------------------------------------------------

FEW_ROWS = 16  # up to here a tile of rows is the small side of the matrix units
NARROW, WIDE = 32, 512  # neurons
DRAWN = 512  # counters a program


def product(
    x: Tensor,
    w: Tensor,
    *,
    pullback: bool,
    precision: str,
    scale: float = 1.0,
    pairs: tuple[Tensor, Tensor] | None = None,
    add: Tensor | None = None,
    slope: Tensor | None = None,
    activation: Activation | None = None,
    keep: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """y, phi(y), phi'(y), those that are asked for (`finite_nets.device.products` has the shapes)."""
    x, w = _by_rows(x), _by_rows(w)
    slope = None if slope is None else _by_rows(slope)
    c, r = (None, None) if pairs is None else (_by_rows(pairs[0]), _by_rows(pairs[1]))
    members, rows, n_in = x.shape
    n_out = w.shape[2] if pullback else w.shape[1]
    shape = (members, rows, n_out)
    tiles = _tiles(rows, n_out, pullback=pullback, precision=precision)
    y = torch.empty(shape, device=x.device) if keep else None
    phi, phi_slope = (torch.empty(shape, device=x.device) if activation else None for _ in range(2))
    grid = (members * triton.cdiv(rows, tiles["BLOCK_ROWS"]) * triton.cdiv(n_out, tiles["BLOCK_OUT"]),)
    _product[grid](
        x,
        w,
        c,
        r,
        add,
        slope,
        y,
        phi,
        phi_slope,
        rows,
        n_out,
        n_in,
        0 if r is None else r.shape[1],
        x.stride(0),
        w.stride(0),
        0 if r is None else r.stride(0),
        0 if add is None else add.stride(0),
        0 if add is None else add.stride(1),
        0 if slope is None else slope.stride(0),
        scale,
        activation.gain if activation else 1.0,
        PULLBACK=pullback,
        PRECISION=precision,
        PAIRS=pairs is not None,
        ADD=add is not None,
        SLOPE=slope is not None,
        STARTS=1 if slope is None else rows // slope.shape[1],
        KEEP=keep,
        ACTIVATION=activation.name if activation else "none",
        **tiles,
    )
    return y, phi, phi_slope


def _by_rows(a: Tensor) -> Tensor:
    """The array (member, row, N) with rows of consecutive numbers, one after the other, as the kernels read them."""
    return a if a.stride(2) == 1 and a.stride(1) == a.shape[2] else a.contiguous()


def _tiles(rows: int, n_out: int, *, pullback: bool, precision: str) -> dict[str, Any]:
    """Sizes of tiles, measured to be the fastest for one member's shapes (tests/benchmarks/RESULTS.md)."""
    if rows <= FEW_ROWS:
        block_rows, block_out, first, stages = 16, 128, False, 4
    elif precision == "tf32x3" and (pullback or n_out >= WIDE):
        block_rows, block_out, first, stages = 64, 128, True, 3
    elif pullback:
        block_rows, block_out, first, stages = 32, 128, False, 3
    else:
        block_rows, block_out, first, stages = 64, 64, False, 4
    return {
        "WEIGHTS_FIRST": first,
        "BLOCK_ROWS": min(block_rows, max(16, triton.next_power_of_2(rows))),
        "BLOCK_OUT": min(block_out, max(64 if first else 16, triton.next_power_of_2(n_out))),
        "BLOCK_IN": 32,
        "num_warps": 4,
        "num_stages": stages,
    }


def accumulate(
    w: Tensor, g: Tensor, x: Tensor, coefficients: Tensor | None, *, precision: str, keep: float, scale: float
) -> None:
    """W = keep W + scale sum_a c_a g_a x_a^T, in place."""
    if _by_rows(w) is not w:
        raise ValueError(f"a matrix that is updated in place must have rows one after the other; strides {w.stride()}.")
    g, x = _by_rows(g), _by_rows(x)
    members, n_out, n_in = w.shape
    rows = x.shape[1]
    tiles = _update_tiles(rows, n_in)
    grid = (members * triton.cdiv(n_out, tiles["BLOCK_OUT"]) * triton.cdiv(n_in, tiles["BLOCK_IN"]),)
    _accumulate[grid](
        w,
        g,
        x,
        coefficients,
        rows,
        n_out,
        n_in,
        w.stride(0),
        g.stride(0),
        x.stride(0),
        keep,
        scale,
        PRECISION=precision,
        COEFFICIENTS=coefficients is not None,
        **tiles,
    )


def _update_tiles(rows: int, n_in: int) -> dict[str, Any]:
    """As `_tiles`, of an update."""
    if n_in <= NARROW:
        block_out, block_in, warps, stages = 128, max(16, triton.next_power_of_2(n_in)), 4, 1
    elif rows <= FEW_ROWS:
        block_out, block_in, warps, stages = 16, 128, 2, 1
    else:
        block_out, block_in, warps, stages = 32, 128, 4, 2
    return {
        "BLOCK_ROWS": 16,
        "BLOCK_OUT": block_out,
        "BLOCK_IN": block_in,
        "num_warps": warps,
        "num_stages": stages,
    }


def normals(out: Tensor, members: Tensor, *, root_seed: int, width: int, parameter: int) -> None:
    """Fill out (member, entry), float32 or bfloat16."""
    size = out.shape[1]
    # the key is taken as 64 bits, whatever their sign
    key = root_seed - 2**64 if root_seed >= 2**63 else root_seed
    grid = (len(members) * triton.cdiv(size, 4 * DRAWN),)
    _normals[grid](out, members, size, parameter, width, key, BLOCK=DRAWN)
