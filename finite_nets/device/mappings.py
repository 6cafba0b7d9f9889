"""How a perceptron lies on a block of threads, and which way is the fastest (`finite_nets.device.chip`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LANES = 32
TILE, EIGHT = 16, 8  # of neurons, and of samples, of products of tensor units
UNITS_SINCE = 8  # major compute capability that has them for TF32
SHARED = 228 * 1024  # bytes of a multiprocessor, where a device does not say
RESERVED = 1024  # of which every block takes more than it asks for
SCHEDULERS, FILE, MOST_A_LANE = 4, 2**16, 255  # of a multiprocessor; registers of it, and of a lane
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

    def numbers(self, padded: int, layers: int, samples: int, trained: int, *, kernels: bool) -> int:  # noqa: ARG002
        """In shared memory."""
        rows = filled(samples, self.together(padded))
        parts = 4 * self.warps * padded if self.warps > 1 else 0
        return (1 + 2 * layers) * rows * padded + padded + parts + rows + trained * samples


class Units(NamedTuple):
    """Products by tensor units, fields in registers, matrices in shared memory.

    eights: of samples, two of which are a band, and parts of neurons: a warp of the block has `held` bands and a part;
    blocks: that are to fit on a multiprocessor.
    """

    eights: int
    held: int
    parts: int
    blocks: int

    @property
    def bands(self) -> int:
        """Of samples."""
        return -(-self.eights // 2)

    @property
    def groups(self) -> int:
        """Of bands that a warp holds."""
        return -(-self.bands // self.held)

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.groups * self.parts

    def together(self, _: int) -> int:
        """Samples of a forward product."""
        return TILE * self.bands

    def places(self, samples: int) -> NDArray[np.int64]:
        """Of samples among rows: eight of sixteen in even places, then those between."""
        a = np.arange(samples)
        return a // TILE * TILE + a % EIGHT * 2 + a // EIGHT % 2

    def defined(self) -> Defined:
        """For the preprocessor."""
        return (
            ("UNITS", 1),
            ("EIGHTS", self.eights),
            ("HELD", self.held),
            ("PARTS", self.parts),
            ("BLOCKS", self.blocks),
        )

    def numbers(self, padded: int, layers: int, _samples: int, _trained: int, *, kernels: bool) -> int:
        """In shared memory: matrices, phi of all layers but the last, whose kernels alone ask for it, and g of one."""
        rows, stride = TILE * self.bands, filled(padded, 2 * TILE)
        fields = (layers - 1) * padded + (layers + kernels) * rows
        return fields * stride + max(padded * (1 + self.groups), padded + self.parts * rows)


@dataclass(frozen=True)
class Shape:
    """Of networks on a chip: neurons, filled up, hidden layers, how they lie on a block; are kernels recorded?"""

    padded: int
    layers: int
    mapping: Registers | Units
    kernels: bool = False

    def rows(self, samples: int) -> int:
        """Of fields."""
        return filled(samples, self.mapping.together(self.padded))

    def shared_bytes(self, samples: int, trained: int) -> int:
        """Of shared memory."""
        own = self.mapping.numbers(self.padded, self.layers, samples, trained, kernels=self.kernels)
        return 4 * (2 * filled(samples, TILE) + own)


# by padded neurons, and by the matrices that a thread has room for; what is fastest (tests/benchmarks/RESULTS.md)
REGISTERS = {
    32: (Registers(1, 4, 24), Registers(1, 4, 16), Registers(1, 4, 12)),
    64: (Registers(2, 8, 8), Registers(4, 8, 4), Registers(4, 8, 3)),
    128: (Registers(8, 16, 2), Registers(8, 16, 1)),
}
# above, layers in one pass or products are faster, or nothing was measured
MOST_BY_REGISTERS, MOST_BY_UNITS = {32: 16, 64: 60, 128: 32}, 64
# nanoseconds a member and step of two hidden layers by registers, by neurons, with MEASURED_AT samples
MEASURED_AT = (3, 8, 16)
BY_REGISTERS = {32: (1.33, 3.12, 6.66), 64: (3.99, 8.95, 18.0), 128: (15.7, 32.0, 62.4)}
MOST_WARPS = 20  # of a multiprocessor, that were measured
SLOTS = 188.0  # in a nanosecond, of one scheduler of all multiprocessors, that many warps use


def shape_of(
    width: int,
    layers: int,
    samples: int,
    trained: int,
    shared: int,
    *,
    kernels: bool,
    units: bool = True,
    resident: int = SHARED,
) -> Shape | None:
    """The fastest way that networks lie on a chip, by measured times; None where there is no room, or products that
    pass over memory are faster, or not known to be slower.

    Args:
        shared: bytes of shared memory that a block may take.
        kernels: whether they are recorded.
        units: whether there are tensor units for TF32.
        resident: bytes of shared memory of a multiprocessor.
    """
    padded = next((each for each in REGISTERS if each >= width), 0)
    if not padded or width % 4:  # quads of normals would lie across rows
        return None
    room = shared, resident
    by_units = _by_units(width, layers, samples, room, kernels=kernels) if units and layers > 1 else None
    by_registers = _by_registers(padded, layers, samples, trained, shared, kernels=kernels)
    if by_units is None or by_registers is None or samples > MEASURED_AT[-1]:
        return by_units or by_registers
    two_layers = _by_units(width, 2, samples, room, kernels=False)
    measured = float(np.interp(samples, MEASURED_AT, BY_REGISTERS[padded]))
    return by_units if two_layers and nanoseconds(two_layers) < measured else by_registers


def _by_registers(padded: int, layers: int, samples: int, trained: int, shared: int, *, kernels: bool) -> Shape | None:
    room = max(layers - 2, 0)
    if samples > MOST_BY_REGISTERS[padded] or room >= len(REGISTERS[padded]) or (kernels and samples > TILE):
        return None
    shape = Shape(padded, layers, REGISTERS[padded][room], kernels)
    return shape if shape.shared_bytes(samples, trained) <= shared else None


def _by_units(width: int, layers: int, samples: int, room: tuple[int, int], *, kernels: bool) -> Shape | None:
    """What is foreseen to take the least time, with `room` for a block and of a multiprocessor."""
    shared, resident = room
    if samples > MOST_BY_UNITS:
        return None
    eights, tiles = -(-samples // EIGHT), -(-width // TILE)
    found = []
    for held, parts in product(range(1, -(-eights // 2) + 1), range(1, tiles + 1)):
        one = Shape(tiles * TILE, layers, Units(eights, held, parts, 1), kernels)
        taken = one.shared_bytes(samples, samples)
        if tiles % parts == 0 and taken <= shared:
            most = min(resident // (taken + RESERVED), MOST_WARPS // one.mapping.warps)
            found += [replace(one, mapping=one.mapping._replace(blocks=n)) for n in range(1, most + 1)]
    return min(found, key=nanoseconds, default=None)


def nanoseconds(shape: Shape) -> float:
    """A step of a member by units, as foreseen to some 10 %: issue slots of a warp, as counted in machine code, and how
    many warps share those of a scheduler.

    Fields for which a lane has no registers are spilled.  Slots wait the more, the fewer warps there are to use them,
    and at barriers where there is one block.  What multiplies these was fitted to measured times.
    """
    its, tiles, layers = shape.mapping, shape.padded // TILE, shape.layers
    assert isinstance(its, Units)
    own, wide, warps = min(its.eights, 2 * its.held), tiles // its.parts, its.warps * its.blocks
    times_split = 1 if its.groups == 1 else 2  # of phi, in an update
    passes = tiles * (12 + 9 * own + wide * (20 + 10 * own))
    update = tiles / its.groups * (12 + 14 * its.eights + wide * (20 + 10 * times_split * its.eights))
    first = its.eights * (7 * own + wide * (10 + 5 * own))
    fields = 112 * layers * wide * own
    on_scheduler = filled(warps, SCHEDULERS) // SCHEDULERS
    registers = min(FILE // (LANES * SCHEDULERS * on_scheduler) // 8 * 8, MOST_A_LANE)
    spilled = max(0, 28 + 4 * (7 + layers) * wide * own - registers)
    slots = (layers - 1) * (2 * passes + update) + first + fields + 150 + 0.16 * spilled**2
    return slots * on_scheduler / its.blocks / SLOTS * (1 + 4 / warps + 0.3 / its.blocks)
