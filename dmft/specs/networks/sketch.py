"""What a program is made of, as data: weights, populations and layers (`dmft.specs.networks.drawing` finds them)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dmft.specs.activation import Activation
from dmft.specs.networks.population import Population, named, population

ATTENTION = "attention"  # what programs show by this name are matrices (query, key) of heads, row by row


@dataclass(frozen=True)
class Part:
    """Weights of a program.

    layer: its number; source: population that is multiplied, None for inputs and vectors; target: population of the
    result, None for a number; bank: matrices that share their ends, 0 for a single one; positions: (of the result, of
    what is multiplied), 0 for none, the most of all its uses.
    place: in the blocks that follow each other, which and under what name; of all others None.
    layers: of one part in the place of those of all equal blocks (`Sketch.stacked`), theirs.
    """

    name: str
    layer: int
    source: Hashable | None
    target: Hashable | None
    bank: int = 0
    positions: tuple[int, int] = (0, 0)
    place: tuple[int, str] | None = None
    layers: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many blocks it stands for."""
        return len(self.layers) or 1


@dataclass(frozen=True)
class Sketch:
    """Parts in the order in which a program meets them.

    vectors: numbers are among them, those of no population.
    layers: (population, positions) of every named layer.
    readout: the population that is averaged; linear: whether the output is linear in every matrix.
    uses: of one matrix in a pass, the most.
    shown: (name, positions, population) of everything that observables may take averages of; None for numbers.
    flattened: (positions,) that the readout has weights of its own for; () where what it averages has none.
    read: positions, each of which one readout gives outputs of its own; 0 where it reads a sample as a whole.
    blocks: (number of the first, how many) of blocks that follow each other.
    places: of every layer, as of a `Part`.
    groups: layers by number, those together that are held together: all alone, unless `stacked`.
    """

    populations: tuple[Hashable, ...]
    reads: tuple[Part, ...]
    matrices: tuple[Part, ...]
    vectors: tuple[Part, ...]
    layers: tuple[tuple[Hashable, int], ...]
    activations: tuple[Activation, ...]
    readout: Hashable
    linear: bool
    uses: int = 1
    shown: tuple[tuple[str, int, Hashable | None], ...] = ()
    flattened: tuple[int, ...] = ()
    read: int = 0
    blocks: tuple[tuple[int, int], ...] = ()
    places: tuple[tuple[int, int] | None, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def depth(self) -> int:
        """Layers that results hold."""
        return len(self.layers)

    @property
    def dimensions(self) -> dict[str, int]:
        """Sizes of those that results have of it."""
        positions = self.reads[0].positions[0]
        heads = sum(name == ATTENTION for name, *_ in self.shown)
        sizes = {"layer": self.depth, "attention_layer": heads, "query": positions, "key": positions}
        return sizes | {"position": self.read}  # of those that have outputs of their own

    def rows_of_readout(self, outputs: int) -> int:
        """Of all outputs, those of a position."""
        return outputs // (self.read or 1)

    def pairs(self, sizes: Sequence[int]) -> int:
        """Numbers of a row that attention makes for each of its positions, the most: one a key and unit of populations
        of these sizes."""
        each = (
            math.isqrt(positions) * sizes[self.place(of)] // population(of).components
            for name, positions, of in self.shown
            if name == ATTENTION and of is not None
        )
        return max(each, default=0)

    @property
    def readout_layer(self) -> int:
        """The number of the readout among weights."""
        return len(self.reads) + sum(part.count for part in self.matrices)

    def stacked(self, least: float) -> Sketch:
        """With one part for those in one place of at least so many equal blocks; the others, and `blocks`, are left."""
        long = tuple((first, count) for first, count in self.blocks if count >= least)
        firsts = {first for first, _ in long}

        def together(places: Iterable[tuple[int, Any] | None]) -> list[list[int]]:
            found: dict[Hashable, list[int]] = {}
            for i, place in enumerate(places):
                found.setdefault(place if place is not None and place[0] in firsts else i, []).append(i)
            return list(found.values())

        def merged(parts: tuple[Part, ...]) -> tuple[Part, ...]:
            groups = ([parts[i] for i in group] for group in together(part.place for part in parts))
            return tuple(
                replace(group[0], layers=tuple(part.layer for part in group))
                if group[0].place is not None and group[0].place[0] in firsts
                else group[0]
                for group in groups
            )

        return replace(
            self,
            matrices=merged(self.matrices),
            vectors=merged(self.vectors),
            blocks=long,
            groups=tuple(tuple(group) for group in together(self.places)),
        )

    def place(self, population: Hashable) -> int:
        return self.populations.index(named(population))

    @property
    def described(self) -> tuple[Population, ...]:
        """The populations, with all that is said of them."""
        return tuple(population(each) for each in self.populations)

    @property
    def plain(self) -> bool:
        """Whether all neurons are units of their own, and all populations as wide as the network."""
        return not any(isinstance(each, Population) for each in self.populations)

    def sizes(self, width: int) -> tuple[int, ...]:
        """Neurons of every population in a network of this width; ValueError if they are not whole units."""
        return tuple(each.size(width) for each in self.described)

    def whole_width(self, least: int) -> int:
        """The smallest width from `least` on in which every population has two whole units, or more."""
        step = math.lcm(*(each.step for each in self.described))
        needed = max(least, *(math.ceil(2 * each.components / each.ratio) for each in self.described))
        return -(-needed // step) * step

    def share(self, population: Hashable | None) -> float:
        """N_p / N of a population; 1 of none, a number."""
        return 1.0 if population is None else self.described[self.place(population)].width

    @property
    def ends(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of every matrix, as places of populations."""
        return tuple((self.place(part.source), self.place(part.target)) for part in self.matrices)
