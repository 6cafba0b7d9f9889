"""Populations of neurons that a program names, and the fields over them that it computes with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from dmft.specs import _check

Formula = Callable[..., Any]
LARGEST_RATIO = 1000  # of whole numbers that a relative width is
RATIO_ERROR = 1e-12


@dataclass(frozen=True)
class Population:
    """The neurons of one or several layers, for `to` and `of` of programs.

    Args:
        name: any hashable; a name alone is a population of width 1 whose neurons are units of their own.
        width: N_p / N, its neurons beside the width N of a network, a ratio of whole numbers; N_p has to be whole.
        group: N_k, how many neurons make one unit, such as an attention head: units are independent of each other and
            alike, components of one need not be.  N_p has to be a multiple of it.  Without it formulas of `local` see
            neurons, with it units and their components, be it one.

    Raises:
        ValueError, TypeError: a width that is not positive, or no ratio; a group below 1.

    >>> dmft.Population("heads", width=0.5, group=4).size(64)  # eight heads of four
    32
    """

    name: Hashable
    width: float = 1.0
    group: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", _check.positive("width", self.width))
        if self.group is not None:
            object.__setattr__(self, "group", _check.integer("group", self.group, minimum=1))
        if abs(float(self.ratio) - self.width) > RATIO_ERROR * self.width:
            raise ValueError(
                f"width={self.width} of the population {self.name!r} is no ratio of whole numbers up to "
                f"{LARGEST_RATIO}; give e.g. 2, 0.5 or 4 / 3."
            )

    @property
    def ratio(self) -> Fraction:
        """Its width, without rounding."""
        return Fraction(self.width).limit_denominator(LARGEST_RATIO)

    @property
    def components(self) -> int:
        """Neurons of a unit."""
        return self.group or 1

    @property
    def members(self) -> float:
        """Units per neuron of the width N."""
        return self.width / self.components

    @property
    def step(self) -> int:
        """What widths have to be multiples of."""
        return (self.ratio / self.components).denominator

    def size(self, width: int) -> int:
        """Neurons in a network of this width; ValueError if they are not whole units."""
        if width % self.step:
            raise ValueError(
                f"width={width} gives the population {self.name!r} {float(width * self.ratio):g} neurons, which are "
                f"not whole units of {self.components}; take a multiple of {self.step}."
            )
        return int(width * self.ratio)


def population(name: Hashable) -> Population:
    """What a program calls by this name."""
    return name if isinstance(name, Population) else Population(name)


class Field:
    """What a program computes with: the value belongs to the interpreter.

    population: its name, or, where that does not say all, the `Population`; None for numbers.
    """

    __slots__ = ("net", "population", "value")
    __array_ufunc__ = None  # an array times a field is for `__rmul__`, not for each of the array's entries

    def __init__(self, net: Any, value: Any, population: Hashable | None) -> None:
        self.net, self.value, self.population = net, value, named(population)

    def __add__(self, other: Field) -> Field:
        if not isinstance(other, Field):
            return NotImplemented
        if other.population != self.population:
            raise ValueError(f"fields of {self.population!r} and {other.population!r} cannot be added.")
        return self.net.add(self, other)  # type: ignore[no-any-return]

    def __mul__(self, factor: Any) -> Field:
        return NotImplemented if isinstance(factor, Field) else self.net.scale(factor, self)

    __rmul__ = __mul__


def named(given: Hashable | None) -> Hashable | None:
    """The name alone, where it says all."""
    return given.name if isinstance(given, Population) and given == Population(given.name) else given


def population_of(values: Sequence[Field]) -> Hashable | None:
    """That of the fields among them; None for numbers alone."""
    return next((v.population for v in values if v.population is not None), None)


def group_of(values: Sequence[Field]) -> int | None:
    """Neurons of a unit of the population of the fields among them; None where formulas see neurons, or numbers."""
    of = population_of(values)
    return None if of is None else population(of).group


def in_units(values: Sequence[Field], arrays: Sequence[Any], group: int) -> list[Any]:
    """Arrays in the place of `values` with their neurons as (unit, component); numbers are the same for all units."""
    return [
        a[..., None, :] if v.population is None else a.reshape(*a.shape[:-1], -1, group)
        for v, a in zip(values, arrays, strict=True)
    ]


def on_units(formula: Formula, xp: Any, values: Sequence[Field], arrays: Sequence[Any]) -> Any:
    """(..., unit): what `show` makes of the arrays in the place of `values`, a number of each unit."""
    group = group_of(values)
    return formula(xp, *arrays) if group is None else formula(xp, *in_units(values, arrays, group))[..., 0]


def on_neurons(formula: Formula, xp: Any, values: Sequence[Field]) -> Callable[..., Any]:
    """What `local` makes of arrays in the place of `values`, with the neurons of a population on one axis; those of a
    grouped one are the formula's (unit, component)."""
    of, group = population_of(values), group_of(values)
    if group is None:
        return partial(formula, xp)

    def made(*arrays: Any) -> Any:
        split = in_units(values, arrays, group)
        units, axes = max(a.shape[-2] for a in split), max(len(a.shape) for a in split)
        found = formula(xp, *split)
        if len(found.shape) < min(axes, 3) or found.shape[-1] not in (1, group) or found.shape[-2] not in (1, units):
            raise ValueError(
                f"a formula of net.local over the population {of.name!r} gives {tuple(found.shape)}, whose last axes "  # type: ignore[attr-defined]
                f"are not those of its {units} units and their {group} components."
            )
        return xp.broadcast_to(found, (*found.shape[:-2], units, group)).reshape(*found.shape[:-2], -1)

    return made
