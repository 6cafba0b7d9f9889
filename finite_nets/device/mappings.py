"""How a perceptron lies on a block of threads, and which way is the fastest (`finite_nets.device.chip`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LANES = 32
ROWS, SAMPLES = 16, 8  # of a product of tensor units
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

    def defined(self) -> Defined:
        """For the preprocessor."""
        return (("UNITS", 0), ("WARPS", self.warps), ("BLOCKS", self.blocks), ("TX", self.row_lanes), ("FOLDED", 0))

    def numbers(self, padded: int, layers: int, samples: int, trained: int) -> int:
        """In shared memory."""
        rows = filled(samples, self.together(padded))
        parts = 4 * self.warps * padded if self.warps > 1 else 0
        return (1 + 2 * layers) * rows * padded + padded + parts + 3 * rows + trained * samples


class Units(NamedTuple):
    """Products by tensor units, matrices in shared memory.

    warps: of a block, each with 16 neurons or a multiple of them, or several with the same 16; group: tiles of eight
    samples that are met together; folded: whether g^1 takes the place of phi^1; blocks: that are to fit on a
    multiprocessor.
    """

    warps: int
    group: int
    folded: bool
    blocks: int

    def together(self, _: int) -> int:
        """Samples of a forward product."""
        return SAMPLES * self.group

    def defined(self) -> Defined:
        """For the preprocessor."""
        its = ("WARPS", self.warps), ("BLOCKS", self.blocks), ("GROUP", self.group), ("FOLDED", int(self.folded))
        return ("UNITS", 1), *its

    def numbers(self, padded: int, layers: int, samples: int, trained: int) -> int:
        """In shared memory; rows of fields and matrices are an odd multiple of eight apart."""
        rows = filled(samples, SAMPLES * self.group)
        fields = (1 + 2 * layers - self.folded) * rows
        overlaps = filled(trained, 8) * (filled(rows - 8, 16) + 8)
        return (fields + (layers - 1) * padded) * (padded + 8) + padded + 3 * rows + overlaps


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
        return 4 * self.mapping.numbers(self.padded, self.layers, samples, trained)


# by padded neurons, and by the matrices that a thread has room for; what is fastest (tests/benchmarks/RESULTS.md)
REGISTERS = {
    32: (Registers(1, 4, 24), Registers(1, 4, 16), Registers(1, 4, 12)),
    64: (Registers(2, 8, 8), Registers(4, 8, 4), Registers(4, 8, 3)),
    128: (Registers(8, 16, 2), Registers(8, 16, 1)),
}
# above, products that pass over memory are faster, or nothing was measured
MOST_BY_REGISTERS = {32: 16, 64: 60, 128: 60}
MOST_BY_UNITS, MOST_WITH_KERNELS = 64, 16
# nanoseconds a member and step of two hidden layers, by neurons: registers with MEASURED_AT samples, units by tiles
MEASURED_AT = (3, 8, 16, 24)
BY_REGISTERS = {32: (1.5, 3.2, 6.8, 12.3), 64: (4.2, 8.9, 17.7, 29.5), 128: (16.1, 32.5, 62.0, 95.0)}
BY_UNITS = {32: (3.6, 6.0, 8.2), 64: (9.2, 14.4, 19.3), 128: (30.0, 45.0, 77.0)}
MOST_WARPS, ENOUGH_WARPS = 16, 12  # on a multiprocessor: with 128 registers a thread; that hide their waiting
MOST_TOGETHER, SHARED_FROM = 4, 4  # tiles of samples in the registers of a warp; from which on two warps share neurons


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
        shape = _by_units(filled(width, ROWS), layers, samples, trained, shared, kernels=kernels)
        if shape is not None:
            return shape
    room = max(layers - 2, 0)
    if samples > MOST_BY_REGISTERS[padded] or room >= len(REGISTERS[padded]):
        return None
    shape = Shape(padded, layers, REGISTERS[padded][room])
    return shape if shape.shared_bytes(samples, trained) <= shared else None


def _units_are_faster(padded: int, samples: int) -> bool:
    tiles = -(-samples // SAMPLES)
    if tiles > len(BY_UNITS[padded]):
        return True
    return BY_UNITS[padded][tiles - 1] < float(np.interp(samples, MEASURED_AT, BY_REGISTERS[padded]))


def _by_units(padded: int, layers: int, samples: int, trained: int, shared: int, *, kernels: bool) -> Shape | None:
    """With as many warps on a multiprocessor as it takes to hide their waiting, then by one warp for the same neurons,
    then with fields apart."""
    tiles, found = -(-samples // SAMPLES), {}
    for share in (1, 2) if tiles >= SHARED_FROM else (1,):
        each = -(-tiles // share)
        warps, group = share * padded // ROWS, -(-each // -(-each // MOST_TOGETHER))
        for folded in (False,) if kernels else (False, True):
            taken = Shape(padded, layers, Units(warps, group, folded, 1)).shared_bytes(samples, trained)
            if taken <= shared:
                blocks = min(SHARED // (taken + RESERVED), MOST_WARPS // warps)
                shape = Shape(padded, layers, Units(warps, group, folded, blocks))
                found[min(blocks * warps, ENOUGH_WARPS), -share, not folded] = shape
    return found[max(found)] if found else None
