"""Ensembles of real networks of finite width, trained on the same `dmft.Problem` as the theory, in PyTorch.

    nets = finite_nets.train_ensemble(problem, widths=[64, 256, 1024], seeds=32)

PyTorch is loaded with the first use of a name here; JAX never is.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finite_nets.ensemble import train_ensemble

__all__ = ["train_ensemble"]

_LAZY = {"train_ensemble": "finite_nets.ensemble"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'finite_nets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
