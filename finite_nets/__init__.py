"""Ensembles of real networks of finite width, trained on the same `dmft.Problem` as the theory, in PyTorch.

    nets = finite_nets.train_ensemble(problem, widths=[64, 256, 1024], seeds=32)
    wide = finite_nets.sample_in_law(problem, widths=[10**4, 10**5, 10**6], seeds=32)

    finite_nets.sweep(problems, [64, 128, 256], 10**6, store="runs/richness")       moments, block by block, in a store
    moments = finite_nets.open_store("runs/richness", problem=problems[0])

PyTorch is loaded with the first use of a name here; JAX with `sample_in_law` alone, which runs the engine of `dmft`
with as many particles as the network has neurons.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finite_nets.ensemble import train_ensemble
    from finite_nets.in_law import sample_in_law
    from finite_nets.planning import plan_sweep
    from finite_nets.preactivations import neurons
    from finite_nets.predictions import from_predictions
    from finite_nets.reading import check_store, open_store, problems
    from finite_nets.sweeping import sweep

__all__ = [
    "check_store",
    "from_predictions",
    "neurons",
    "open_store",
    "plan_sweep",
    "problems",
    "sample_in_law",
    "sweep",
    "train_ensemble",
]

_LAZY = {
    "check_store": "finite_nets.reading",
    "from_predictions": "finite_nets.predictions",
    "neurons": "finite_nets.preactivations",
    "open_store": "finite_nets.reading",
    "plan_sweep": "finite_nets.planning",
    "problems": "finite_nets.reading",
    "sample_in_law": "finite_nets.in_law",
    "sweep": "finite_nets.sweeping",
    "train_ensemble": "finite_nets.ensemble",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'finite_nets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
