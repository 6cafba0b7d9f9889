"""Architectures of one's own: what they have to be, how they are described, and how they are found again
(`dmft.specs._own`).

Their digest is that of the features and layers of a network of a few neurons, whose weights are numbers in general
position.  The same network with its neurons in another order shows whether all of them are treated alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check, _own
from dmft.specs.activation import Activation
from dmft.specs.networks.fields import frozen_layers, require_movement, variances
from dmft.specs.networks.program import (
    BESIDE,
    Architecture,
    Field,
    Formula,
    Sketch,
    numbers,
    structure,
    with_numbers,
)
from dmft.specs.parameterization import MEAN_FIELD, PARAMETERIZATIONS, STANDARD

Array = NDArray[np.float64]

SORT = _own.Sort(Architecture, "network", "architecture", "program")
SAMPLES, WIDTH = 3, 4
ALIKE = 1e-9  # relative difference between orders of the neurons


# ---- what they have to be --------------------------------------------------------------------------------------------


def sketched(network: Any, shape: tuple[int, ...]) -> Sketch:
    """The sketch of an architecture of one's own for inputs of this shape, after all checks.

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
        found: Sketch = network.sketch(shape)
    except Exception as error:
        raise ValueError(f"{_failure(name, shape)}: {type(error).__name__}: {error}") from error
    _check_beside(network, found)
    digest(network, shape)
    return found


def _failure(name: str, shape: tuple[int, ...]) -> str:
    return f"the program of {name} fails for inputs of shape {shape}"


def _check_beside(network: Any, found: Sketch) -> None:
    """ValueError, TypeError for what engines read from a network beside its program."""
    _check.positive("gamma0", network.gamma0, hint="The lazy limit is that of gamma0 -> 0.")
    if not isinstance(network.centered, bool):
        raise TypeError(f"centered={network.centered!r} must be True or False.")
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


def described(network: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """For JSON; on inputs of this shape."""
    return _own.described(network, SORT, digest(network, shape))


def from_described(content: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """What `described` gave.

    Raises:
        ValueError: a module that is not imported, or has no such architecture; fields that it does not have; a program
            that makes other numbers.
    """
    network = _own.made(content, SORT)
    sketched(network, shape)
    _own.require_digest(content, digest(network, shape), SORT)
    return network


# ---- what their programs make ----------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def digest(network: Any, shape: tuple[int, ...]) -> str:
    """Of what the program makes of inputs of this shape, and of what engines read beside it.

    Raises:
        ValueError: a program that fails, makes numbers that are not finite, or does not treat all neurons alike.
    """
    name, order = type(network).__name__, np.arange(WIDTH)
    straight, turned = (_made(network, shape, each) for each in (order, np.roll(order, 1)))
    size = max(float(abs(values).max()) for values in straight)
    if not all(np.isfinite(values).all() for values in straight):
        raise ValueError(f"{_failure(name, shape)}: it makes numbers that are not finite.")
    if any(abs(a[..., np.roll(order, 1)] - b).max() > ALIKE * size for a, b in zip(straight, turned, strict=True)):
        raise ValueError(
            f"the program of {name} does not treat all neurons alike: in another order they hold other numbers. "
            "Formulas of net.local act on the last axis, that of the neurons, entry by entry; means over it are "
            "net.average."
        )
    bare = _made(with_numbers(structure(network), numbers(network)), shape, order)
    if any(a.shape != b.shape or abs(a - b).max() > ALIKE * size for a, b in zip(straight, bare, strict=True)):
        raise ValueError(
            f"the program of {name} reads one of {', '.join(BESIDE)}, which engines apply beside it; give it a field "
            "of another name."
        )
    beside = {each: repr(getattr(network, each)) for each in BESIDE}
    return _own.digest_of(repr(sorted(beside.items())), straight, size)


def _made(network: Any, shape: tuple[int, ...], order: NDArray[np.int64]) -> list[Array]:
    """Every layer with its features, and what the readout averages."""
    net = _Values(shape, order)
    try:
        with np.errstate(all="ignore"):
            end = network.program(net, network.inputs(_numbers("inputs", (SAMPLES, *shape))))
    except Exception as error:
        name = type(network).__name__
        raise ValueError(f"{_failure(name, shape)}: {type(error).__name__}: {error}") from error
    # what lacks an axis of neurons would be no field
    return [np.broadcast_to(values, (*values.shape[:-1], WIDTH)) for values in (*net.seen, end.value)]


def _numbers(name: str, shape: tuple[int, ...]) -> Array:
    """In general position, the same everywhere, of variance 1."""
    phase = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32 * 2 * math.pi
    numbers: Array = math.sqrt(2) * np.cos(phase + np.arange(math.prod(shape), dtype=np.float64) ** 2)
    return numbers.reshape(shape)


class _Values:
    """An interpreter of networks of `WIDTH` neurons, in this order."""

    def __init__(self, shape: tuple[int, ...], order: NDArray[np.int64]) -> None:
        self.shape, self.order = shape, order
        self.seen: list[Array] = []

    def read(self, name: str, x: Array, *, to: Hashable) -> Field:
        return Field(self, x @ _numbers(name, (WIDTH, x.shape[-1]))[self.order].T, to)

    def apply(self, name: str, v: Field, *, to: Hashable, mix: Any = None) -> Field:
        bank = (1 if mix is None else len(mix),)
        W = _numbers(name, (*bank, WIDTH, WIDTH))[:, self.order][:, :, self.order] / math.sqrt(WIDTH)
        if mix is None:
            return Field(self, v.value @ W[0].T, to)
        return Field(self, sum(np.asarray(m) @ v.value @ w.T for m, w in zip(mix, W, strict=True)), to)

    def vector(self, name: str, *, of: Hashable) -> Field:
        return Field(self, _numbers(name, (WIDTH,))[self.order], of)

    def activate(self, phi: Activation, h: Field) -> Field:
        return Field(self, phi.both(np, h.value)[0], h.population)

    def mix(self, h: Field, A: Any) -> Field:
        return Field(self, np.asarray(A) @ h.value, h.population)

    def local(self, formula: Formula, *values: Field) -> Field:
        population = next((v.population for v in values if v.population is not None), None)
        made = formula(np, *(v.value for v in values))
        if population is not None:
            alone = formula(np, *(v.value if v.population is None else v.value[..., :1] for v in values))
            first = np.broadcast_to(made, (*made.shape[:-1], WIDTH))[..., :1]
            if not np.allclose(first, alone, rtol=ALIKE, atol=ALIKE):
                raise ValueError(
                    "a formula of net.local gives a neuron another number beside others than alone; sums, means and "
                    "orders over neurons are for net.average."
                )
        return Field(self, made, population)

    def average(self, a: Field, b: Field) -> Field:
        return Field(self, (a.value * b.value).mean(-1, keepdims=True), None)

    def layer(self, h: Field, features: Field) -> Field:
        self.seen += [h.value, features.value]
        return features

    def add(self, a: Field, b: Field) -> Field:
        return Field(self, a.value + b.value, a.population)

    def scale(self, factor: Any, h: Field) -> Field:
        return Field(self, factor * h.value, h.population)
