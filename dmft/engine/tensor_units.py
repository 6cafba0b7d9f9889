"""Products with the first rows of a long array in float64, by the tensor units of a GPU: kernels of our own
(`tensor_units.cu`), called from compiled code.

Vendors' libraries multiply whole arrays: how many rows hold something is known on the device alone, so that compiled
code has the products of many sizes and chooses one, and 200 vectors are padded to 256.  A kernel reads the number of
rows where it lies, and multiplies vectors by eights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmft.engine import rows
from dmft.engine.kernels import called
from dmft.engine.rows import Rows
from dmft.running import effort

WIDE, CHUNK, THREADS = 64, 16, 128  # of the long side in a block; of a sum in a stage of copies
MOST = 26  # eights of vectors in a block
FEW = 8  # with which blocks have more company, to wait for memory


@dataclass(frozen=True)
class Blocks:
    """Of a kernel for so many vectors: eights in a block, blocks over vectors, stages of copies, blocks on a
    multiprocessor; warps along the long side and along vectors, and how often 16 of the long side a warp takes."""

    eights: int
    count: int
    stages: int
    resident: int
    warps: tuple[int, int]
    times: int

    @classmethod
    def of(cls, vectors: int) -> Blocks:
        eights = -(-vectors // 8)
        count = -(-eights // MOST)
        eights = -(-eights // count)
        return cls(eights, count, *((4, 3, (4, 1), 1) if eights <= FEW else (3, 2, (2, 2), 2)))

    @property
    def shared(self) -> int:
        """Numbers in shared memory."""
        return self.stages * CHUNK * (8 * self.eights + WIDE + 2)


@dataclass(frozen=True)
class Counted(Rows):
    """Rows of which kernels multiply those that are there."""

    count: jax.Array

    def across(self, v: jax.Array) -> jax.Array:
        room, blocks = len(self.array), Blocks.of(len(v))
        tiles, defined = -(-room // WIDE), _defined(len(v), self.array, blocks)
        columns = max(defined["SLOTS"], tiles)
        sizes: Any = {"grid": (columns, blocks.count), "shared": blocks.shared}
        parts = (columns, len(v), WIDE), v.dtype
        pieces = _called("across", defined, parts, v, self.array, self.count, **sizes)
        made, grid = ((len(v), room), v.dtype), (tiles, -(-len(v) // (THREADS // WIDE)))
        return _called("gathered", defined, made, pieces, self.count, grid=grid)

    def mixed(
        self,
        x: jax.Array,
        onto: jax.Array | None = None,
        *,
        beside: tuple[jax.Array, Rows] | None = None,
        room: int | None = None,
    ) -> jax.Array:
        """As of `Rows`; what there is room for beyond the vectors is undefined, or zero if the room is odd, as products
        with that are with all of it (`block`)."""
        given: list[Any] = [x, self.array, self.count]
        if beside is not None and beside[1].array.shape == self.array.shape:
            given += [beside[0], beside[1].array, beside[1].count]
        elif beside is not None:
            onto = beside[1].mixed(beside[0], onto)
        size, blocks = self.array.shape[1], Blocks.of(len(x))
        defined = _defined(len(x), self.array, blocks) | {"ONTO": int(onto is not None), "SECOND": int(len(given) > 3)}
        given += [] if onto is None else [onto]
        sizes: Any = {"grid": (size // WIDE, blocks.count), "shared": blocks.shared}
        even = len(x) if room is None or room % 2 else room
        made = _called("mixed", defined, ((even, size), x.dtype), *given, **sizes)
        return made if room is None or room == even else jnp.pad(made, [(0, room - even), (0, 0)])

    def of_part(self, formula: Callable[[Rows], jax.Array]) -> jax.Array:
        return formula(self)


def counted(array: jax.Array, count: jax.Array) -> Rows:
    """Rows by kernels, if these take an array of this shape and type; else by parts."""
    return Counted(array, count) if take(array.dtype, *array.shape) else Rows(array, count)


def block(array: jax.Array, count: jax.Array) -> Rows:
    """Rows by kernels, if these take them; else all, which are zero beyond `count`: too few to be worth parts."""
    return Counted(array, count) if take(array.dtype, *array.shape) else Rows(array)


def take(dtype: Any, room: int, size: int) -> bool:
    """Whether kernels take an array of this type and shape."""
    return np.dtype(dtype) == np.float64 and room % 2 == 0 and size % WIDE == 0


def placed(array: jax.Array, new: jax.Array, start: jax.Array, count: jax.Array) -> jax.Array:
    """The array, in its place, with the first `count` of `new` rows from row `start` on."""
    if not isinstance(counted(array, count), Counted):
        return rows.placed(array, new, start, count)
    grid = -(-array.shape[1] // (2 * THREADS)), 8
    defined = _defined(len(new), array, Blocks.of(1)) | {"BLOCKS": grid[1]}
    return _called("placed", defined, (array.shape, array.dtype), array, new, start, count, grid=grid, in_place=True)


def _defined(vectors: int, array: jax.Array, blocks: Blocks) -> dict[str, int]:
    """What kernels know; SLOTS: blocks that the device takes at once, of those over rows."""
    slots = max(multiprocessors() * blocks.resident // blocks.count, 1)
    known = {"COUNT": vectors, "ROOM": len(array), "SIZE": array.shape[1], "TILES": blocks.eights, "SLOTS": slots}
    known |= {"WM": blocks.warps[0], "WN": blocks.warps[1], "MT": blocks.times}
    known |= {"WIDE": WIDE, "K": CHUNK, "THREADS": THREADS}
    return known | {"STAGES": blocks.stages, "RESIDENT": blocks.resident}


def multiprocessors() -> int:
    """Of the device that computes."""
    return int(effort.device().core_count)


def _called(name: str, defined: dict[str, int], made: Any, *given: jax.Array, **sizes: Any) -> jax.Array:
    return called("tensor_units.cu", name, defined, [made], *given, threads=THREADS, **sizes)[0]
