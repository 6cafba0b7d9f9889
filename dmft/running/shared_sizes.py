"""Sizes of arrays that neighbouring problems share, and compiled code with them; what is beyond a problem's own is not
used."""

from __future__ import annotations

FEW = 32  # directions, products with which take no time


def steps(count: int) -> int:
    """Room for at least so many steps: 1, 2, 3, 4, 6, 8, 12, 16, ..., two in an octave."""
    return _up(count, _octave(count) // 2)


def directions(count: int) -> int:
    """Room for at least so many directions, products with all of which take time: multiples of `FEW`, eight in an
    octave."""
    return _up(count, max(_octave(count) // 8, FEW))


def _octave(count: int) -> int:
    """The largest power of two below so many."""
    return 1 << max((count - 1).bit_length() - 1, 0)


def _up(count: int, unit: int) -> int:
    return -(-count // max(unit, 1)) * max(unit, 1)
