"""The language of architectures.

An architecture is a frozen dataclass with one method, its forward pass, written over the operations of an interpreter
`net`.  Everything else is read from it: the limit, what 1/N adds, networks of finite width, sizes.

    read(name, x, to=p)             W x                 a thin matrix, from input directions to the neurons of p
    apply(name, v, to=p)            W v / sqrt(N)       a square Gaussian matrix, the only place where one enters
    apply(name, v, to=p, mix=m)     sum_k sum_x m[k, y, x] W^k v_x / sqrt(N)       a bank of them, over positions
    vector(name, of=p)              b                   a number for each neuron of p: a bias, of weight N(0, 1)
    activate(phi, h)                phi(h)              entry by entry
    mix(h, A)                       sum_x A[y, x] h_x   a map of positions that nothing trains; A (x,) leaves none
    local(formula, a, b, ...)       formula(xp, a, b, ...)       of what alike neurons hold: treats all neurons alike
    average(a, b)                   <a b>               over a population: a number, which `local` may use
    layer(h, features)              names h^l and what it shows the next layer, of which results hold kernels
    h + g,  c * h

What `read`, `apply`, `vector` and these return are fields: (row, [position,] neuron) of one population, whose neurons
come last; numbers have a last axis of length one.  Rows, and in networks members of an ensemble, are leading axes that
belong to the interpreter: formulas count axes from the end.  Populations are named by the program with any hashable
(`to`); layers of one population share their neurons, as those of a residual network do.  A `Population` in the place of
a name says more of it: how wide it is beside others, and which neurons belong to one unit,

    net.apply("U", v, to=dmft.Population("branch", width=2))            2 N neurons; sums over them / sqrt(2 N)
    net.apply("K", v, to=dmft.Population("heads", group=4))             N / 4 heads of four neurons each

where `local` sees (..., unit, component) in the place of neurons, and may use all components of a unit together
(softmax within a head, averages within a head); numbers are (..., 1, 1) there.  Averages, `activate`, `mix` and
matrices are over units and components alike.  `program` returns the field that the readout averages, without positions:

    f_c = <w_c features> / gamma0

`net.shape` is the shape of one input as the task has it.  Weights and their layers are numbered 0, 1, ... in the order
in which `read` and `apply` meet them; the readout is the last.  Vectors belong to the layer of the matrix before them.

Fields of a dataclass marked `traced` enter compiled code as numbers, so that a sweep over them compiles once; a
program must not decide by them.  Zero stays the number 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check
from dmft.specs.activation import Activation
from dmft.specs.parameterization import MEAN_FIELD, input_scale

TRACED = "traced"
# what engines read from a network beside its program
BESIDE = ("gamma0", "centered", "frozen", "parameterization", "weight_variance", "bias_variance")
Formula = Callable[..., Any]
LARGEST_RATIO = 1000  # of whole numbers that a relative width is
RATIO_ERROR = 1e-12


def traced(**options: Any) -> Any:
    """A dataclass field that is a number of compiled code."""
    return field(metadata={TRACED: True}, **options)


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
        self.net, self.value, self.population = net, value, _named(population)

    def __add__(self, other: Field) -> Field:
        if not isinstance(other, Field):
            return NotImplemented
        if other.population != self.population:
            raise ValueError(f"fields of {self.population!r} and {other.population!r} cannot be added.")
        return self.net.add(self, other)  # type: ignore[no-any-return]

    def __mul__(self, factor: Any) -> Field:
        return NotImplemented if isinstance(factor, Field) else self.net.scale(factor, self)

    __rmul__ = __mul__


def _named(given: Hashable | None) -> Hashable | None:
    """The name alone, where it says all."""
    return given.name if isinstance(given, Population) and given == Population(given.name) else given


def population_of(values: Sequence[Field]) -> Hashable | None:
    """That of the fields among them; None for numbers alone."""
    return next((v.population for v in values if v.population is not None), None)


def on_neurons(formula: Formula, xp: Any, values: Sequence[Field]) -> Callable[..., Any]:
    """What `local` makes of arrays in the place of `values`, with the neurons of a population on one axis; those of a
    grouped one are the formula's (unit, component)."""
    of = population_of(values)
    group = None if of is None else population(of).group
    if group is None:
        return partial(formula, xp)

    def made(*arrays: Any) -> Any:
        split = [
            a[..., None] if v.population is None else a.reshape(*a.shape[:-1], -1, group)
            for v, a in zip(values, arrays, strict=True)
        ]
        units, axes = max(a.shape[-2] for a in split), max(len(a.shape) for a in split)
        found = formula(xp, *split)
        if len(found.shape) < min(axes, 3) or found.shape[-1] not in (1, group) or found.shape[-2] not in (1, units):
            raise ValueError(
                f"a formula of net.local over the population {of.name!r} gives {tuple(found.shape)}, whose last axes "  # type: ignore[attr-defined]
                f"are not those of its {units} units and their {group} components."
            )
        return xp.broadcast_to(found, (*found.shape[:-2], units, group)).reshape(*found.shape[:-2], -1)

    return made


class Architecture:
    """What architectures derive from: frozen dataclasses with `program`.

    Those of one's own need no more than

        @dataclass(frozen=True)
        class Perceptron(dmft.Architecture):
            gamma0: float = 1.0

            def program(self, net, x):
                h = net.read("W0", x, to="neurons")
                return net.layer(h, net.activate(dmft.tanh(), h))

    and have a limit, fluctuations and networks as the built-in ones do.  They are described by their module and name,
    which has to be importable where a description is read.

    Example:
        >>> issubclass(dmft.CNN, dmft.Architecture)
        True
    """

    gamma0: float = 1.0
    centered: bool = True
    bias: float = 0.0  # of the first layer: one more input of this value
    frozen: tuple[int, ...] = ()
    parameterization: str = MEAN_FIELD
    weight_variance: float | tuple[float, ...] = 1.0
    bias_variance: float = 1.0

    def program(self, net: Any, x: Any) -> Field:
        """The field that the readout averages."""
        raise NotImplementedError(f"{type(self).__name__} has no program; see dmft.specs.networks.program.")

    def inputs(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """What `program` reads: (sample, [position,] direction), scaled so that W x of weights N(0, 1) is h."""
        flat = x.reshape(len(x), -1)
        scaled: NDArray[np.float64] = flat * input_scale(flat.shape[1])
        return scaled

    def sketch(self, shape: tuple[int, ...] = (1,)) -> Sketch:
        """What the program is made of, for inputs of this shape."""
        return _sketch(structure(self), shape)


# ---- numbers and structure -------------------------------------------------------------------------------------------


def structure(network: Any) -> Any:
    """The network with all that does not shape its program at one value: equal for networks of one compiled code."""
    cls = type(network)
    found = object.__new__(cls)
    for each in fields(network):
        value = getattr(network, each.name)
        if each.name in BESIDE:
            value = () if each.name == "frozen" else getattr(Architecture, each.name)
        elif each.metadata.get(TRACED) and value != 0:
            value = 1.0
        object.__setattr__(found, each.name, value)
    return found


def numbers(network: Any) -> dict[str, float]:
    """The traced fields that are not zero."""
    values = {each.name: getattr(network, each.name) for each in fields(network) if each.metadata.get(TRACED)}
    return {name: value for name, value in values.items() if value != 0}


def with_numbers(network: Any, values: dict[str, Any]) -> Any:
    """A `structure` with numbers in it, of any array library."""
    found = object.__new__(type(network))
    for each in fields(network):
        object.__setattr__(found, each.name, values.get(each.name, getattr(network, each.name)))
    return found


# ---- what a program is made of ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Weights of a program.

    layer: its number; source: population that is multiplied, None for inputs and vectors; target: population of the
    result; bank: matrices that share their ends, 0 for a single one; positions: (of the result, of what is multiplied),
    0 for none, the most of all its uses.
    """

    name: str
    layer: int
    source: Hashable | None
    target: Hashable
    bank: int = 0
    positions: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Sketch:
    """Parts in the order in which a program meets them.

    layers: (population, positions) of every named layer.
    readout: the population that is averaged; linear: whether the output is linear in every matrix.
    uses: of one matrix in a pass, the most.
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

    @property
    def depth(self) -> int:
        """Layers that results hold."""
        return len(self.layers)

    @property
    def readout_layer(self) -> int:
        """The number of the readout among weights."""
        return len(self.reads) + len(self.matrices)

    def place(self, population: Hashable) -> int:
        return self.populations.index(_named(population))

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

    def share(self, population: Hashable) -> float:
        """N_p / N of a population."""
        return self.described[self.place(population)].width

    @property
    def ends(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of every matrix, as places of populations."""
        return tuple((self.place(part.source), self.place(part.target)) for part in self.matrices)


def forget_other_sketches(network: Any, shape: tuple[int, ...]) -> None:
    """Where functions that the program calls have been edited, which no cache knows of."""
    if _sketch.__wrapped__(structure(network), shape) != network.sketch(shape):
        _sketch.cache_clear()


@lru_cache(maxsize=256)
def _sketch(network: Any, shape: tuple[int, ...]) -> Sketch:
    drawn = _Drawing(shape)
    with np.errstate(all="ignore"):
        end = network.program(drawn, network.inputs(np.ones((1, *shape))))
    name = type(network).__name__
    if not isinstance(end, Field) or end.population is None or np.ndim(end.value) != 2:
        raise ValueError(
            f"the program of {name} must return a field without positions, which the readout averages; average over "
            "positions with net.mix(h, A)."
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
        self.layers: list[tuple[Hashable, int]] = []
        self._named: list[Field] = []
        self.activations: list[Activation] = []
        self.linear = True
        self.uses: dict[str, int] = {}
        self._origins: list[tuple[Field, str, tuple[Field, ...]]] = []

    def _field(self, value: Any, population: Hashable, *given: Field, name: str = "") -> Field:
        made = Field(self, value, population)
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
            self.reads, Part(name, len(self.reads) + len(self.matrices), None, _named(to), 0, (positions, positions))
        )
        return self._field(np.ones((*x.shape[:-1], self._neurons(to))), to, name=name)

    def apply(self, name: str, v: Field, *, to: Hashable, mix: Any = None) -> Field:
        shape = v.value.shape
        positions = shape[-2] if len(shape) == 3 else 0
        bank, after = 0, positions
        if mix is not None:
            bank, after, before = mix.shape
            if before != positions:
                raise ValueError(f"{name!r} mixes {before} positions, and its input has {positions}.")
        layer = len(self.reads) + len(self.matrices)
        self.uses[name] = self.uses.get(name, 0) + 1
        self._noted(self.matrices, Part(name, layer, v.population, _named(to), bank, (after, positions)))
        return self._field(np.ones((shape[0], *([after] if after else []), self._neurons(to))), to, v, name=name)

    def vector(self, name: str, *, of: Hashable) -> Field:
        self._noted(self.vectors, Part(name, max(len(self.reads) + len(self.matrices) - 1, 0), None, _named(of)))
        return self._field(np.ones(self._neurons(of)), of, name=name)

    def activate(self, phi: Activation, h: Field) -> Field:
        if h.value.ndim == 1:
            raise ValueError("activate takes a field of rows, not a vector; add the vector to one first.")
        self.activations.append(phi)
        self.linear &= phi.name == "linear"
        return self._field(h.value, h.population, h)

    def mix(self, h: Field, A: Any) -> Field:
        return self._field(np.asarray(A) @ h.value, h.population, h)

    def local(self, formula: Formula, *values: Field) -> Field:
        self.linear = False
        population = population_of(values)
        if any(v.population not in (None, population) for v in values):
            raise ValueError("local takes fields of one population: their neurons are the same ones.")
        _require_same_positions("used together", *values)
        return self._field(on_neurons(formula, np, values)(*(v.value for v in values)), population, *values)

    def average(self, a: Field, b: Field) -> Field:
        self.linear = False
        if a.population != b.population:
            raise ValueError(f"fields of {a.population!r} and {b.population!r} have no average of products.")
        _require_same_positions("averaged", a, b)
        return self._field((a.value * b.value).mean(-1, keepdims=True), None, a, b)

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
