"""Ensembles of real networks of finite width, trained on the same `dmft.Problem` as the theory, in PyTorch.

    nets = finite_nets.train_ensemble(problem, widths=[64, 256, 1024], seeds=32)
    wide = finite_nets.sample_in_law(problem, widths=[10**4, 10**5, 10**6], seeds=32)

PyTorch is loaded with the first use of a name here; JAX with `sample_in_law` alone, which runs the engine of `dmft`
with as many particles as the network has neurons.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finite_nets.ensemble import train_ensemble
    from finite_nets.in_law import sample_in_law

__all__ = ["sample_in_law", "train_ensemble"]

_LAZY = {"sample_in_law": "finite_nets.in_law", "train_ensemble": "finite_nets.ensemble"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'finite_nets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
