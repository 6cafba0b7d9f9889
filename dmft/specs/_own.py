"""Classes of one's own among the specs: how they are described, and how they are found again.

    {"kind": "module:Class", ...its fields, "sha256": of numbers that it makes}

A description is read only where the module is imported already.  The digest tells code that was edited from the one
that was described: it is taken of numbers that the object makes, which those who know it choose.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmft.specs.activation import Activation
from dmft.specs.training.batches import Epochs

KIND, DIGEST = "kind", "sha256"
DIGITS = 8  # of the digest


class Sort(NamedTuple):
    """Of classes: what they derive from; the part of a problem that they are; in words, what they are called and what
    of them makes numbers."""

    base: type
    part: str
    noun: str
    maker: str


def require_frozen_dataclass(spec: Any) -> None:
    """TypeError for what has no fields by which it is known, or fields of names that descriptions need."""
    cls = type(spec)
    parameters = vars(cls).get("__dataclass_params__")
    if parameters is None or not (parameters.frozen and parameters.eq):
        raise TypeError(
            f"{cls.__name__} is not a frozen dataclass, by whose fields a problem is known; write "
            f"@dataclass(frozen=True) above class {cls.__name__}."
        )
    for each in dataclasses.fields(cls):
        if each.name in (KIND, DIGEST):
            raise TypeError(f"{cls.__name__} has a field {each.name!r}, a name that descriptions need; rename it.")


def path(cls: type, sort: Sort) -> str:
    """Where a class is found again, "module:Class"; TypeError if it is not."""
    if "<" in cls.__qualname__:
        raise TypeError(
            f"{cls.__qualname__} cannot be found again by its name: define an {sort.noun} of one's own in a module "
            "(or a notebook), not inside a function."
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def described(spec: Any, sort: Sort, digest: str) -> dict[str, Any]:
    """For JSON."""
    return {KIND: path(type(spec), sort), **written(spec), DIGEST: digest}


def written(spec: Any) -> dict[str, Any]:
    """The fields for JSON; TypeError for what it does not hold."""
    name = type(spec).__name__
    return {each.name: _written(f"{name}.{each.name}", getattr(spec, each.name)) for each in dataclasses.fields(spec)}


def made(content: Mapping[str, Any], sort: Sort) -> Any:
    """The object that was described.  Classes are looked for in modules that are imported already.

    Raises:
        ValueError: a module that is not imported, or has no such class; fields that it does not have.
    """
    cls = _found(content[KIND], sort)
    values = {name: value for name, value in content.items() if name not in (KIND, DIGEST)}
    known = [each.name for each in dataclasses.fields(cls) if each.init]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{content[KIND]} has no {', '.join(unknown)}; its fields are {', '.join(known)}.")
    try:
        return cls(**{name: _read(value) for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{content[KIND]} cannot be made of its description: {error}.") from error


def require_digest(content: Mapping[str, Any], digest: str, sort: Sort) -> None:
    """ValueError where what was read makes other numbers than what was described."""
    if digest != content.get(DIGEST):
        raise ValueError(
            f"the {sort.maker} of {content[KIND]} has changed since this was written: it makes other numbers. Use the "
            "code of then, or describe the problem anew."
        )


def in_general_position(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers, the same everywhere, of variance 1."""
    phase = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32 * 2 * math.pi
    found: NDArray[np.float64] = math.sqrt(2) * np.cos(phase + np.arange(math.prod(shape), dtype=np.float64) ** 2)
    return found.reshape(shape)


def digest_of(beside: str, numbers: Iterable[NDArray[np.float64]], size: float | None = None) -> str:
    """Sixteen hexadecimal digits: of text, `size` and numbers, to DIGITS relative to it; without one, of each number by
    itself."""
    found, form = hashlib.sha256(beside.encode()), "e" if size is None else "f"
    if size is not None:
        found.update(f"{size:.{DIGITS}e}".encode())
    for values in numbers:
        rounded = values if size is None else np.round(values / (size or 1), DIGITS)
        found.update(f"{values.shape}".encode())
        found.update(",".join(f"{v:.{DIGITS}{form}}" for v in (rounded + 0.0).flat).encode())
    return found.hexdigest()[:16]


def _found(where: str, sort: Sort) -> type:
    module, _, name = where.partition(":")
    if module not in sys.modules:
        raise ValueError(
            f"the {sort.part} is {where}, of a module that is not imported, and is never imported from a description; "
            f"`import {module}` first."
        )
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # as it stands: to ask a module for a name may import others
    if isinstance(found, type) and issubclass(found, sort.base) and "__dataclass_params__" in vars(found):
        return found
    here = (
        " Classes of a notebook or a script are known in their own process alone: put them in a module, and import it."
        if module == "__main__"
        else ""
    )
    raise ValueError(f"the module {module} has no {sort.noun} {name}; define it first.{here}")


def _written(name: str, value: Any) -> Any:
    if isinstance(value, Activation):
        return value.described()
    if isinstance(value, Epochs):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_written(name, each) for each in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError(
        f"{name}={value!r} cannot be part of a description; fields are finite numbers of Python, text, truth values, "
        "None, activations, and tuples of them."
    )


def _read(value: Any) -> Any:
    """What `_written` gave."""
    if isinstance(value, Mapping):  # of an activation, or `Epochs`, which training reads
        return Activation.from_described(value) if "name" in value else value
    return tuple(_read(each) for each in value) if isinstance(value, list) else value
