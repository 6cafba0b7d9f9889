"""What repetitions of a computation have found so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from dmft.running.moments import Arrays, Moments


@dataclass
class Estimates:
    """Moments of the repetitions that have ended, and what these have shown of the matrices.

    capacity: the room for directions that sufficed for the last; None before the first.
    directions: the most that a side of a matrix has met.
    """

    moments: Moments = field(default_factory=Moments)
    capacity: int | None = None
    directions: int = 0

    def add(self, values: Arrays, capacity: int, directions: int) -> None:
        """A repetition has ended with these values."""
        self.moments.add(values)
        self.capacity, self.directions = capacity, max(self.directions, directions)
