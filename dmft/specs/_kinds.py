"""Kinds of specs: one more file in their folder is one more kind."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def modules_in(package: ModuleType) -> list[ModuleType]:
    """The modules that a package holds, imported, in the order of their names."""
    return [
        importlib.import_module(f"{package.__name__}.{file.name}") for file in pkgutil.iter_modules(package.__path__)
    ]


def kinds_in(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """The dataclasses derived from `base` that files of a package define, by name."""
    found: dict[str, type[T]] = {}
    for module in modules_in(package):
        defined = {name: v for name, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
        found |= {
            name: v
            for name, v in defined.items()
            if isinstance(v, type) and issubclass(v, base) and "__dataclass_params__" in vars(v)
        }
    return found
