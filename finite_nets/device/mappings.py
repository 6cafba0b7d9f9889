"""How a perceptron lies on a block of threads, and which way is the fastest (`finite_nets.device.chip`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LANES = 32
TILE, EIGHT = 16, 8  # of neurons, and of samples, of products of tensor units
UNITS_SINCE = 8  # major compute capability that has them for TF32
SHARED = 228 * 1024  # bytes of a multiprocessor, of which every block takes RESERVED more than it asks for
RESERVED = 1024
Defined = tuple[tuple[str, int], ...]


def filled(count: int, by: int) -> int:
    """The next multiple."""
    return -(-count // by) * by


class Registers(NamedTuple):
    """Products by multiply-adds, matrices in registers.

    warps: of a block; row_lanes: that share a row of a matrix; blocks: that are to fit on a multiprocessor.
    """

    warps: int
    row_lanes: int
    blocks: int

    def together(self, padded: int) -> int:
        """Samples of a forward product."""
        return max(1, LANES * self.warps // padded)

    def places(self, samples: int) -> NDArray[np.int64]:
        """Of samples among rows."""
        return np.arange(samples)

    def defined(self) -> Defined:
        """For the preprocessor."""
        return (("UNITS", 0), ("WARPS", self.warps), ("BLOCKS", self.blocks), ("TX", self.row_lanes))

    def numbers(self, padded: int, layers: int, samples: int, trained: int) -> int:
        """In shared memory."""
        rows = filled(samples, self.together(padded))
        parts = 4 * self.warps * padded if self.warps > 1 else 0
        return (1 + 2 * layers) * rows * padded + padded + parts + rows + trained * samples


class Units(NamedTuple):
    """Products by tensor units, fields in registers, matrices in shared memory.

    eights: of samples, and parts of neurons: a warp of the block has two eights and a part; blocks: that are to fit on
    a multiprocessor.
    """

    eights: int
    parts: int
    blocks: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return -(-self.eights // 2) * self.parts

    def together(self, _: int) -> int:
        """Samples of a forward product."""
        return filled(EIGHT * self.eights, TILE)

    def places(self, samples: int) -> NDArray[np.int64]:
        """Of samples among rows: eight of sixteen in even places, then those between."""
        a = np.arange(samples)
        return a // TILE * TILE + a % EIGHT * 2 + a // EIGHT % 2

    def defined(self) -> Defined:
        """For the preprocessor."""
        return (("UNITS", 1), ("EIGHTS", self.eights), ("PARTS", self.parts), ("BLOCKS", self.blocks))

    def numbers(self, padded: int, layers: int, _samples: int, _trained: int) -> int:
        """In shared memory."""
        rows, stride = self.together(padded), filled(padded, 2 * TILE)
        fields = ((layers - 1) * (padded + rows) + rows) * stride
        return fields + (1 + rows // TILE) * padded


@dataclass(frozen=True)
class Shape:
    """Of networks on a chip: neurons, filled up, hidden layers, and how they lie on a block of threads."""

    padded: int
    layers: int
    mapping: Registers | Units

    def rows(self, samples: int) -> int:
        """Of fields."""
        return filled(samples, self.mapping.together(self.padded))

    def shared_bytes(self, samples: int, trained: int) -> int:
        """Of shared memory."""
        own = self.mapping.numbers(self.padded, self.layers, samples, trained)
        return 4 * (2 * filled(samples, TILE) + own)


# by padded neurons, and by the matrices that a thread has room for; what is fastest (tests/benchmarks/RESULTS.md)
REGISTERS = {
    32: (Registers(1, 4, 24), Registers(1, 4, 16), Registers(1, 4, 12)),
    64: (Registers(2, 8, 8), Registers(4, 8, 4), Registers(4, 8, 3)),
    128: (Registers(8, 16, 2), Registers(8, 16, 1)),
}
# above, layers in one pass or products are faster, or nothing was measured
MOST_BY_REGISTERS = {32: 16, 64: 60, 128: 32}
MOST_BY_UNITS, MOST_WITH_KERNELS = 64, 16
# nanoseconds a member and step of two hidden layers, by neurons: registers with MEASURED_AT samples, units by eights
MEASURED_AT = (3, 8, 16)
BY_REGISTERS = {32: (1.5, 3.2, 6.8), 64: (4.2, 8.9, 17.7), 128: (16.1, 32.5, 62.0)}
BY_UNITS = {32: (2.6, 3.5), 64: (6.9, 9.9), 128: (26.6, 34.8)}
WARPS = 12  # on a multiprocessor, that hide their waiting and have their fields in registers


def shape_of(
    width: int, layers: int, samples: int, trained: int, shared: int, *, kernels: bool, units: bool = True
) -> Shape | None:
    """The fastest way that networks lie on a chip, by measured times; None where there is no room, or products that
    pass over memory are faster, or not known to be slower.

    Args:
        shared: bytes of shared memory that a block may take.
        kernels: whether they are recorded.
        units: whether there are tensor units for TF32.
    """
    padded = next((each for each in REGISTERS if each >= width), 0)
    if not padded or width % 4:  # quads of normals would lie across rows
        return None
    if kernels and samples > MOST_WITH_KERNELS:
        return None
    if units and layers > 1 and samples <= MOST_BY_UNITS and _units_are_faster(padded, samples):
        shape = _by_units(width, layers, samples, trained)
        if shape.shared_bytes(samples, trained) <= shared:
            return shape
    room = max(layers - 2, 0)
    if samples > MOST_BY_REGISTERS[padded] or room >= len(REGISTERS[padded]):
        return None
    shape = Shape(padded, layers, REGISTERS[padded][room])
    return shape if shape.shared_bytes(samples, trained) <= shared else None


def _units_are_faster(padded: int, samples: int) -> bool:
    eights = -(-samples // EIGHT)
    if eights > len(BY_UNITS[padded]):
        return True
    return BY_UNITS[padded][eights - 1] < float(np.interp(samples, MEASURED_AT, BY_REGISTERS[padded]))


def _by_units(width: int, layers: int, samples: int, trained: int) -> Shape:
    """With two tiles of neurons a warp, or one where their number is odd."""
    eights, tiles = -(-samples // EIGHT), -(-width // TILE)
    if tiles == 7 and eights == 2:  # eight in pairs take less time
        tiles = 8
    parts = tiles if tiles % 2 else tiles // 2
    taken = Shape(tiles * TILE, layers, Units(eights, parts, 1)).shared_bytes(samples, trained)
    blocks = min(SHARED // (taken + RESERVED), round(2 * WARPS / (max(eights, 2) * parts)))
    return Shape(tiles * TILE, layers, Units(eights, parts, max(blocks, 1)))
