"""How the sketch of a program is found: by running it once, on networks of two neurons that note what they are asked
for."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check
from dmft.specs.activation import Activation
from dmft.specs.networks.blocks import Block, Inside, Make
from dmft.specs.networks.population import Field, Formula, named, on_neurons, on_units, population, population_of
from dmft.specs.networks.sketch import Part, Sketch


def forget_other_sketches(bare: Any, shape: tuple[int, ...]) -> None:
    """Where functions that the program calls have been edited, which no cache knows of; `bare` is a `structure`."""
    if sketch_of.__wrapped__(bare, shape) != sketch_of(bare, shape):
        sketch_of.cache_clear()


def starts_of(network: Any, shape: tuple[int, ...]) -> tuple[float, ...]:
    """What the numbers of a program start from, in the order in which it meets them."""
    if all(part.target is not None for part in network.sketch(shape).vectors):
        return ()
    drawn = _Drawing(shape)
    with np.errstate(all="ignore"):
        network.program(drawn, network.inputs(np.ones((1, *shape))))
    return tuple(drawn.starts.values())


@lru_cache(maxsize=256)
def sketch_of(network: Any, shape: tuple[int, ...]) -> Sketch:
    """What the program of a `structure` is made of, for inputs of this shape."""
    drawn = _Drawing(shape)
    with np.errstate(all="ignore"):
        end = network.program(drawn, network.inputs(np.ones((1, *shape))))
    name = type(network).__name__
    flat = any(end is each for each in drawn.flattened)
    if (
        not isinstance(end, Field)
        or end.population is None
        or np.ndim(end.value) != 2 + (flat or network.every_position)
    ):
        if network.every_position:
            raise ValueError(f"the program of {name} must return a field with positions, each of which is read.")
        raise ValueError(
            f"the program of {name} must return a field without positions, which the readout averages; average over "
            "positions with net.mix(h, A), or return net.flatten(h), for a readout with weights of its own at each."
        )
    if not drawn.layers:
        raise ValueError(f"the program of {name} names no layer; call net.layer(h, features) for each.")
    if not drawn.reads:
        raise ValueError(f"the program of {name} reads nothing; begin with net.read(name, x, to=...).")
    if lost := drawn.lost(end):
        raise ValueError(
            f"{', '.join(lost)} of {name} does not reach what its program returns; nothing would train it."
        )
    return Sketch(
        tuple(drawn.populations),
        tuple(drawn.reads.values()),
        tuple(drawn.matrices.values()),
        tuple(drawn.vectors.values()),
        tuple(drawn.layers),
        tuple(drawn.activations),
        end.population,
        drawn.linear,
        max(drawn.uses.values(), default=1),
        tuple(drawn.shown),
        () if network.every_position else end.value.shape[1:-1],
        end.value.shape[1] if network.every_position else 0,
        tuple(drawn.runs),
        tuple(drawn.places),
        tuple((i,) for i in range(len(drawn.layers))),
    )


class _Drawing:
    """An interpreter of networks of two units, which notes what it is asked for."""

    UNITS = 2

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.populations: dict[Hashable, None] = {}
        self.reads: dict[str, Part] = {}
        self.matrices: dict[str, Part] = {}
        self.vectors: dict[str, Part] = {}
        self.starts: dict[str, float] = {}
        self.flattened: list[Field] = []
        self.layers: list[tuple[Hashable, int]] = []
        self._named: list[Field] = []
        self.activations: list[Activation] = []
        self.linear = True
        self.uses: dict[str, int] = {}
        self.shown: list[tuple[str, int, Hashable | None]] = []
        self._origins: list[tuple[Field, str, tuple[Field, ...]]] = []
        self.runs: list[tuple[int, int]] = []
        self.places: list[tuple[int, int] | None] = []
        self._block: Inside | None = None

    def blocks(self, count: int, block: Make, h: Field) -> Field:
        count, first = _check.integer("count", count, minimum=0), 1 + sum(met for _, met in self.runs)
        made: list[Inside] = []
        for number in range(first, first + count):
            self._block = inside = Inside(first, number, {id(h)})
            after = block(Block(self, number), h)
            self._block = None
            if not isinstance(after, Field) or (after.population, after.value.shape) != (h.population, h.value.shape):
                raise ValueError("a block of net.blocks returns a field of the population and positions of its h.")
            made.append(inside)
            if inside.form != made[0].form:
                raise ValueError("blocks of net.blocks differ from each other; give those of each form a call.")
            h = after
        if count:
            self.runs.append((first, count))
        return h

    def _field(self, value: Any, population: Hashable, *given: Field, name: str = "") -> Field:
        made = Field(self, value, population)
        if self._block is not None:
            if not all(id(each) in self._block.known for each in given):
                raise ValueError(
                    "a block of net.blocks uses a field from outside; it is made of its h and of weights of its own."
                )
            self._block.known.add(id(made))
            self._block.form.append((self._block.alone(name), made.population, np.shape(value), len(given)))
        if made.population is not None:
            self._met(made.population)
        self._origins.append((made, name, given))
        return made

    def _met(self, given: Hashable) -> None:
        """ValueError if another population has its name."""
        said = population(given)
        other = next((p for p in map(population, self.populations) if p.name == said.name and p != said), None)
        if other is not None:
            raise ValueError(
                f"the population {said.name!r} has width {other.width:g} and group {other.group} in one place, width "
                f"{said.width:g} and group {said.group} in another; give all places the same dmft.Population."
            )
        self.populations[given] = None

    def _neurons(self, given: Hashable) -> int:
        return self.UNITS * population(given).components

    def lost(self, end: Field) -> list[str]:
        """Weights and layers that `end` does not depend on."""
        needed, names = {id(end)}, dict[str, bool]()
        for made, name, given in reversed(self._origins):
            if id(made) in needed:
                needed |= {id(each) for each in given}
            if name:
                names[name] = names.get(name, False) or id(made) in needed
        layers = [f"layer {i}" for i, h in enumerate(self._named, start=1) if id(h) not in needed]
        return [name for name, reached in names.items() if not reached] + layers

    def _noted(self, kind: dict[str, Part], part: Part) -> None:
        if self._block is not None:
            part = replace(part, place=self._block.place(part.name))
        known = [p for parts in (self.reads, self.matrices, self.vectors) for p in parts.values()]
        before = next((p for p in known if p.name == part.name), None)
        if before is None:
            kind[part.name] = part
            return
        if kind.get(part.name) is None or (before.source, before.target, before.bank) != (
            part.source,
            part.target,
            part.bank,
        ):
            raise ValueError(f"{part.name!r} is used for two different weights; give each a name of its own.")
        after, below = (max(pair) for pair in zip(before.positions, part.positions, strict=True))
        kind[part.name] = replace(before, positions=(after, below))

    def read(self, name: str, x: NDArray[np.float64], *, to: Hashable) -> Field:
        positions = x.shape[1] if x.ndim == 3 else 0
        self._noted(
            self.reads, Part(name, len(self.reads) + len(self.matrices), None, named(to), 0, (positions, positions))
        )
        return self._field(np.ones((*x.shape[:-1], self._neurons(to))), to, name=name)

    def apply(self, name: str, v: Field, *, to: Hashable, mix: Any = None) -> Field:
        _require_rows("apply", v)
        shape = v.value.shape
        positions = shape[-2] if len(shape) == 3 else 0
        bank, after = 0, positions
        if mix is not None:
            bank, after, before = mix.shape
            if before != positions:
                raise ValueError(f"{name!r} mixes {before} positions, and its input has {positions}.")
        layer = len(self.reads) + len(self.matrices)
        self.uses[name] = self.uses.get(name, 0) + 1
        self._noted(self.matrices, Part(name, layer, v.population, named(to), bank, (after, positions)))
        return self._field(np.ones((shape[0], *([after] if after else []), self._neurons(to))), to, v, name=name)

    def vector(self, name: str, *, of: Hashable) -> Field:
        self._noted(self.vectors, Part(name, self._before, None, named(of)))
        return self._field(np.ones(self._neurons(of)), of, name=name)

    def number(self, name: str, *, start: float = 1.0) -> Field:
        if not isinstance(start, int | float | np.number) or not math.isfinite(start):
            raise ValueError(f"the number {name!r} starts at {start!r}; give a finite number.")
        if (known := self.starts.setdefault(name, float(start))) != start:
            raise ValueError(f"the number {name!r} starts at {known:g} in one place, at {start:g} in another.")
        self._noted(self.vectors, Part(name, self._before, None, None))
        return self._field(np.full(1, float(start)), None, name=name)

    @property
    def _before(self) -> int:
        """The layer of the last matrix so far."""
        return max(len(self.reads) + len(self.matrices) - 1, 0)

    def activate(self, phi: Activation, h: Field) -> Field:
        _require_rows("activate", h)
        self.activations.append(phi)
        if self._block is not None:
            self._block.form.append(phi)
        self.linear &= phi.name == "linear"
        return self._field(h.value, h.population, h)

    def mix(self, h: Field, A: Any) -> Field:
        _require_rows("mix", h)
        return self._field(np.asarray(A) @ h.value, h.population, h)

    def local(self, formula: Formula, *values: Field) -> Field:
        self.linear = False
        population = population_of(values)
        if any(v.population not in (None, population) for v in values):
            raise ValueError("local takes fields of one population: their neurons are the same ones.")
        _require_same_positions("used together", *(v for v in values if v.population is not None or population is None))
        return self._field(on_neurons(formula, np, values)(*(v.value for v in values)), population, *values)

    def average(self, a: Field, b: Field) -> Field:
        self.linear = False
        if a.population != b.population or a.population is None:
            raise ValueError(f"fields of {a.population!r} and {b.population!r} have no average of products.")
        _require_same_positions("averaged", a, b)
        return self._field((a.value * b.value).mean(-1, keepdims=True), None, a, b)

    def overlaps(self, a: Field, b: Field) -> Field:
        self.linear = False
        if a.population is None or a.population != b.population or {a.value.ndim, b.value.ndim} != {3}:
            raise ValueError(
                f"overlaps are of fields of one population with positions, not of {a.population!r} with "
                f"{_positions(a)} and {b.population!r} with {_positions(b)}."
            )
        pairs = a.value.shape[-2] * b.value.shape[-2]
        return self._field(np.ones((len(a.value), pairs, population(a.population).components)), None, a, b)

    def show(self, name: str, formula: Formula, *values: Field) -> None:
        found = np.shape(on_units(formula, np, values, [v.value for v in values]))
        self.shown.append((name, found[-2] if len(found) == 3 else 0, population_of(values)))
        if self._block is not None:
            self._block.form.append((name, found))

    def flatten(self, h: Field) -> Field:
        if h.value.ndim != 3:
            raise ValueError("flatten takes a field with positions, for the readout; others are returned as they are.")
        self.flattened.append(self._field(h.value, h.population, h))
        return self.flattened[-1]

    def layer(self, h: Field, features: Field) -> Field:
        if h.population is None or h.value.ndim == 1 or any(h is each for each in self._named):
            raise ValueError("layer takes a field of rows that no other layer has; not a number or a vector.")
        if (features.population, features.value.shape) != (h.population, h.value.shape):
            raise ValueError(
                f"the features of a layer are of its own population and positions: {h.population!r} with "
                f"{_positions(h)}, not {features.population!r} with {_positions(features)}."
            )
        self._named.append(h)
        self.layers.append((h.population, h.value.shape[-2] if h.value.ndim == 3 else 0))
        self.places.append(None if self._block is None else self._block.next_layer())
        return features

    def add(self, a: Field, b: Field) -> Field:
        _require_same_positions("added", a, b)
        return self._field(a.value + b.value, a.population, a, b)

    def scale(self, factor: Any, h: Field) -> Field:
        if np.ndim(factor):
            raise ValueError(
                f"a field is multiplied by a number, not by an array of shape {np.shape(factor)}; net.mix(h, A) is for "
                "positions, net.local for what differs between neurons."
            )
        return self._field(h.value, h.population, h)


def _require_rows(what: str, h: Field) -> None:
    """ValueError for vectors and numbers that are weights."""
    if h.value.ndim == 1:
        raise ValueError(f"{what} takes a field of rows, not a vector or a number; add the vector to one first.")


def _require_same_positions(what: str, *values: Field) -> None:
    """ValueError if fields or numbers of rows have other positions than each other."""
    first, *others = [h for h in values if h.value.ndim > 1] or values[:1]
    for h in others:
        if h.value.shape[:-1] != first.value.shape[:-1]:
            raise ValueError(
                f"fields of {_positions(first)} and {_positions(h)} positions cannot be {what}; net.mix(h, A) with A "
                "(position, source) gives a field other positions."
            )


def _positions(h: Field) -> str:
    return str(h.value.shape[-2]) if h.value.ndim == 3 else "no"
