"""Ensembles of real networks of finite width, trained on the same `dmft.Problem` as the theory, in PyTorch.

    nets = finite_nets.train_ensemble(problem, widths=[64, 256, 1024], seeds=32)
    wide = finite_nets.sample_in_law(problem, widths=[10**4, 10**5, 10**6], seeds=32)

    finite_nets.sweep(problems, [64, 128, 256], 10**6, store="runs/richness")       moments, block by block, in a store
    moments = finite_nets.open_store("runs/richness", problem=problems[0])

    finite_nets.train_modules(make_module, task, training, widths, seeds)           any torch.nn.Module across widths

PyTorch is loaded with the first use of a name here; JAX with `sample_in_law` alone, which runs the engine of `dmft`
with as many particles as the network has neurons.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finite_nets.device.rounding import Quantisation
    from finite_nets.ensembles.ensemble import train_ensemble
    from finite_nets.ensembles.in_law import sample_in_law
    from finite_nets.ensembles.neurons import neurons
    from finite_nets.ensembles.predictions import from_predictions
    from finite_nets.ensembles.quantised import quantise
    from finite_nets.modules.coordinates import coordinates
    from finite_nets.modules.plan import plan_modules
    from finite_nets.modules.rates import mean_field_rates
    from finite_nets.modules.results import measured
    from finite_nets.modules.train import train_modules
    from finite_nets.modules.training import ModuleTraining
    from finite_nets.posterior.sample import sample_posterior
    from finite_nets.sweeps.plan import plan_sweep
    from finite_nets.sweeps.reading import check_store, open_store, problems
    from finite_nets.sweeps.sweep import sweep

__all__ = [
    "ModuleTraining",
    "Quantisation",
    "check_store",
    "coordinates",
    "from_predictions",
    "mean_field_rates",
    "measured",
    "neurons",
    "open_store",
    "plan_modules",
    "plan_sweep",
    "problems",
    "quantise",
    "sample_in_law",
    "sample_posterior",
    "sweep",
    "train_ensemble",
    "train_modules",
]

_LAZY = {
    "ModuleTraining": "finite_nets.modules.training",
    "Quantisation": "finite_nets.device.rounding",
    "check_store": "finite_nets.sweeps.reading",
    "coordinates": "finite_nets.modules.coordinates",
    "from_predictions": "finite_nets.ensembles.predictions",
    "mean_field_rates": "finite_nets.modules.rates",
    "measured": "finite_nets.modules.results",
    "neurons": "finite_nets.ensembles.neurons",
    "open_store": "finite_nets.sweeps.reading",
    "plan_modules": "finite_nets.modules.plan",
    "plan_sweep": "finite_nets.sweeps.plan",
    "problems": "finite_nets.sweeps.reading",
    "quantise": "finite_nets.ensembles.quantised",
    "sample_in_law": "finite_nets.ensembles.in_law",
    "sample_posterior": "finite_nets.posterior.sample",
    "sweep": "finite_nets.sweeps.sweep",
    "train_ensemble": "finite_nets.ensembles.ensemble",
    "train_modules": "finite_nets.modules.train",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'finite_nets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
