"""Normal variables addressed by what they are for: a counter-based generator, vectorised over members.

The bits of entry j of parameter l of member s of width N are Philox-4x32-10 (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3") of the counter (j // 4, l, s, N) under the key `root seed`: the same on every device
and for every split of an ensemble into batches.  Normals come from pairs of 32-bit words by Box-Muller.  On a GPU, in
single precision, the kernel of `finite_nets.device.triton` makes the same numbers, up to rounding.
"""

from __future__ import annotations

import functools
import importlib.util
import math

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
LANES = 4
COUNTERS_AT_ONCE = {"cpu": 2**15, "cuda": 2**22}  # on a CPU what the cache of a core holds, on a GPU what fills it
THREADS = 16  # of a CPU that draw at once, at most
COUNTER_BYTES = 12 * 8  # words and temporaries
SEED_BITS = 64  # of the root seed, the key
MEMBER_BITS = 32  # of a seed index, one word of the counter


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (in int64) for each counter of four 32-bit words, under a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & MASK, key >> 32
    for _ in range(ROUNDS):
        # 64-bit products wrap in int64; their two halves come out right after masking, the lower one's at the end
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = ((p1 >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(MASK)
        c2 = ((p0 >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1 & MASK, c2, c3 & MASK


def counters_at_once(device: torch.device) -> int:
    """How many blocks of a parameter are drawn at once."""
    return COUNTERS_AT_ONCE[device.type] * (min(torch.get_num_threads(), THREADS) if device.type == "cpu" else 1)


def normals(
    shape: tuple[int, ...], *, root_seed: int, width: int, parameter: int, members: Tensor, dtype: torch.dtype
) -> Tensor:
    """(member, *shape): iid N(0,1) entries of one parameter, on the device of `members` (int64 seed indices)."""
    size = math.prod(shape)
    if dtype != torch.float64 and have_kernels(members.device):
        from finite_nets.device import triton

        out = torch.empty((len(members), size), dtype=dtype, device=members.device)
        triton.normals(out, members, root_seed=root_seed, width=width, parameter=parameter)
        return out.view(len(members), *shape)
    if dtype == torch.bfloat16:
        return normals(
            shape, root_seed=root_seed, width=width, parameter=parameter, members=members, dtype=torch.float32
        ).to(dtype)
    blocks = -(-size // LANES)
    out = torch.empty((len(members), blocks, LANES), dtype=dtype, device=members.device)
    at_once = counters_at_once(members.device)
    members_at_once = max(1, at_once // blocks)
    for m in range(0, len(members), members_at_once):
        for b in range(0, blocks, at_once):
            part = out[m : m + members_at_once, b : b + at_once]
            block = torch.arange(b, b + part.shape[1], device=members.device)[None, :]
            member = members[m : m + members_at_once, None]
            constant = torch.zeros_like(block)
            words = philox((block, constant + parameter, member, constant + width), root_seed)
            for lane in (0, 2):
                radius = torch.sqrt(-2 * torch.log(_uniform(words[lane], dtype)))
                angle = 2 * math.pi * _uniform(words[lane + 1], dtype)
                part[..., lane] = radius * torch.cos(angle)
                part[..., lane + 1] = radius * torch.sin(angle)
    return out.view(len(members), -1)[:, :size].reshape(len(members), *shape)


@functools.cache
def have_kernels(device: torch.device) -> bool:
    """Whether the kernels of `finite_nets.device.triton` run there: Triton, and matrix units that multiply TF32."""
    if device.type != "cuda" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    """(word + 1/2) / 2^32, in (0, 1]."""
    return (word.to(dtype) + 0.5) * 2.0**-32
