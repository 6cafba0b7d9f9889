"""Architectures of one's own: what they have to be, how they are described, and how they are found again
(`dmft.specs._own`).

Their digest is that of the features and layers of a network of a few neurons, whose weights are numbers in general
position.  The same network with its neurons in another order shows whether all of them are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check, _own
from dmft.specs.activation import Activation
from dmft.specs.networks.blocks import InTurn
from dmft.specs.networks.drawing import forget_other_sketches
from dmft.specs.networks.fields import frozen_layers, require_movement, variances
from dmft.specs.networks.population import Field, Formula, on_neurons, on_units, population, population_of
from dmft.specs.networks.program import BESIDE, Architecture, numbers, structure, with_numbers
from dmft.specs.networks.sketch import Sketch
from dmft.specs.parameterization import MEAN_FIELD, PARAMETERIZATIONS, STANDARD

Array = NDArray[np.float64]

SORT = _own.Sort(Architecture, "network", "architecture", "program")
SAMPLES, WIDTH = 3, 4
ALIKE = 1e-9  # relative difference between orders of the neurons


# ---- what they have to be --------------------------------------------------------------------------------------------


def sketched(network: Any, shape: tuple[int, ...]) -> tuple[Sketch, str]:
    """The sketch of an architecture of one's own for inputs of this shape, and the digest, after all checks.

    Raises:
        TypeError: not a frozen dataclass, not found again by its name; fields that JSON does not hold.
        ValueError: no program; one that fails, or returns something else; one that does not treat neurons alike; values
            of what engines read beside the program.
    """
    name = type(network).__name__
    _own.require_frozen_dataclass(network)
    _own.path(type(network), SORT)
    _own.written(network)
    if type(network).program is Architecture.program:
        raise ValueError(
            f"{name} has no program; give it a method program(self, net, x) (dmft.specs.networks.program)."
        )
    try:
        forget_other_sketches(structure(network), shape)
        found: Sketch = network.sketch(shape)
    except Exception as error:
        raise ValueError(f"{_failure(name, shape)}: {type(error).__name__}: {error}") from error
    _check_beside(network, found)
    return found, digest(network, shape)


def _failure(name: str, shape: tuple[int, ...]) -> str:
    return f"the program of {name} fails for inputs of shape {shape}"


def _check_beside(network: Any, found: Sketch) -> None:
    """ValueError, TypeError for what engines read from a network beside its program."""
    _check.positive("gamma0", network.gamma0, hint="The lazy limit is that of gamma0 -> 0.")
    if not isinstance(network.centered, bool):
        raise TypeError(f"centered={network.centered!r} must be True or False.")
    for each in ("frozen", "weight_variance"):
        if isinstance(value := getattr(network, each), Iterable) and not isinstance(value, tuple):
            raise TypeError(f"{each}={value!r} is not a tuple; write {each} = {tuple(value)}.")
    frozen_layers(network.frozen, found.readout_layer)
    variances(network.weight_variance, found.readout_layer)
    require_movement(network, found.readout_layer)
    _check.nonnegative("bias", network.bias)
    _check.nonnegative("bias_variance", network.bias_variance)
    if network.parameterization not in PARAMETERIZATIONS or network.parameterization == STANDARD:
        raise ValueError(
            f"parameterization={network.parameterization!r} is not for architectures of one's own; take "
            f'"{MEAN_FIELD}", or "ntk".'
        )


# ---- how they are described, and found again -------------------------------------------------------------------------


def described(network: Any, digest: str) -> dict[str, Any]:
    """For JSON; with the digest of `sketched`."""
    return _own.described(network, SORT, digest)


def from_described(content: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """What `described` gave.

    Raises:
        ValueError: a module that is not imported, or has no such architecture; fields that it does not have; a program
            that makes other numbers.
    """
    network = _own.made(content, SORT)
    _own.require_digest(content, sketched(network, shape)[1], SORT)
    return network


# ---- what their programs make ----------------------------------------------------------------------------------------


def digest(network: Any, shape: tuple[int, ...]) -> str:
    """Of what the program makes of inputs of this shape, and of what engines read beside it.

    Raises:
        ValueError: a program that fails, makes numbers that are not finite, or does not treat all neurons alike.
    """
    name, sketch = type(network).__name__, network.sketch(shape)
    straight, turned = (_made(network, shape, turn) for turn in (0, 1))
    size = max(float(abs(values).max()) for values, _ in straight)
    if not all(np.isfinite(values).all() for values, _ in straight):
        raise ValueError(f"{_failure(name, shape)}: it makes numbers that are not finite.")
    for (a, of), (b, _) in zip(straight, turned, strict=True):
        if abs(np.roll(a, population(of).components, axis=-1) - b).max() > ALIKE * size:
            raise ValueError(
                f"the program of {name} does not treat all neurons alike: in another order those of the population "
                f"{of!r} hold other numbers. Formulas of net.local act on the last axis, that of the neurons, entry by "
                "entry; means over it are net.average."
            )
    bare = _made(with_numbers(structure(network), numbers(network)), shape)
    if any(
        a.shape != b.shape or abs(a - b).max() > ALIKE * size for (a, _), (b, _) in zip(straight, bare, strict=True)
    ):
        raise ValueError(
            f"the program of {name} reads one of {', '.join(BESIDE)}, which engines apply beside it; give it a field "
            "of another name."
        )
    beside = {each: repr(getattr(network, each)) for each in BESIDE}
    beside_it = repr(sorted(beside.items()))
    relative = network.relative_variances(sketch.readout_layer + 1)
    if set(relative) != {1.0}:
        beside_it += repr(relative)
    if not sketch.plain:
        beside_it += repr([(each.width, each.group) for each in sketch.described])
    return _own.digest_of(beside_it, (values for values, _ in straight), size)


def _made(network: Any, shape: tuple[int, ...], turn: int = 0) -> list[tuple[Array, Hashable]]:
    """Every layer with its features, and what the readout averages, with their populations."""
    net = _Values(shape, turn, network.sketch(shape).whole_width(WIDTH))
    try:
        with np.errstate(all="ignore"):
            end = network.program(net, network.inputs(_own.in_general_position("inputs", (SAMPLES, *shape))))
    except Exception as error:
        name = type(network).__name__
        raise ValueError(f"{_failure(name, shape)}: {type(error).__name__}: {error}") from error
    return [(net.whole(each), each.population) for each in (*net.seen, end)]


class _Values(InTurn):
    """An interpreter of networks of a small width, whose units are turned by so many."""

    def __init__(self, shape: tuple[int, ...], turn: int = 0, width: int = WIDTH) -> None:
        self.shape, self._turn, self._width = shape, turn, width
        self.seen: list[Field] = []

    def _order(self, of: Hashable) -> NDArray[np.int64]:
        """The neurons of a population, in theirs."""
        said = population(of)
        return np.roll(np.arange(said.size(self._width)), self._turn * said.components)

    def whole(self, h: Field) -> Array:
        """With an axis of neurons: what lacks one would be no field."""
        return np.broadcast_to(h.value, (*h.value.shape[:-1], population(h.population).size(self._width)))

    def read(self, name: str, x: Array, *, to: Hashable) -> Field:
        order = self._order(to)
        return Field(self, x @ _own.in_general_position(name, (len(order), x.shape[-1]))[order].T, to)

    def apply(self, name: str, v: Field, *, to: Hashable, mix: Any = None) -> Field:
        bank, after, before = (1 if mix is None else len(mix),), self._order(to), self._order(v.population)
        W = _own.in_general_position(name, (*bank, len(after), len(before)))[:, after][:, :, before] / math.sqrt(
            len(before)
        )
        if mix is None:
            return Field(self, v.value @ W[0].T, to)
        return Field(self, sum(np.asarray(m) @ v.value @ w.T for m, w in zip(mix, W, strict=True)), to)

    def vector(self, name: str, *, of: Hashable) -> Field:
        order = self._order(of)
        return Field(self, _own.in_general_position(name, (len(order),))[order], of)

    def number(self, name: str, *, start: float = 1.0) -> Field:
        # near its start, where formulas are defined; not at it, where what it multiplies may vanish
        turned = 0.1 * _own.in_general_position(name, (1,))
        return Field(self, start * (1 + turned) if start else turned, None)

    def activate(self, phi: Activation, h: Field) -> Field:
        return Field(self, phi.both(np, h.value)[0], h.population)

    def mix(self, h: Field, A: Any) -> Field:
        return Field(self, np.asarray(A) @ h.value, h.population)

    def local(self, formula: Formula, *values: Field) -> Field:
        of, call = population_of(values), on_neurons(formula, np, values)
        made = Field(self, call(*(v.value for v in values)), of)
        if of is not None:
            group = population(of).components
            alone = call(*(v.value if v.population is None else self.whole(v)[..., :group] for v in values))
            if not np.allclose(self.whole(made)[..., :group], alone, rtol=ALIKE, atol=ALIKE):
                what = "a neuron" if group == 1 else f"a unit of {group} neurons"
                raise ValueError(
                    f"a formula of net.local over the population {of!r} gives {what} another number beside others than "
                    "alone; sums, means and orders over neurons are for net.average."
                )
        return made

    def average(self, a: Field, b: Field) -> Field:
        return Field(self, (a.value * b.value).mean(-1, keepdims=True), None)

    def overlaps(self, a: Field, b: Field) -> Field:
        group = population(a.population).components
        units = [h.value.reshape(*h.value.shape[:-1], -1, group) for h in (a, b)]
        found = np.einsum("asun,atun->astn", *units) / units[0].shape[-2]
        return Field(self, found.reshape(len(found), -1, group), None)

    def show(self, name: str, formula: Formula, *values: Field) -> None:
        del name
        found = on_units(formula, np, values, [v.value for v in values])
        self.seen.append(Field(self, found.mean(-1, keepdims=True), None))

    def flatten(self, h: Field) -> Field:
        return self.scale(h.value.shape[-2] ** -0.5, h)

    def layer(self, h: Field, features: Field) -> Field:
        self.seen += [h, features]
        return features

    def add(self, a: Field, b: Field) -> Field:
        return Field(self, a.value + b.value, a.population)

    def scale(self, factor: Any, h: Field) -> Field:
        return Field(self, factor * h.value, h.population)
