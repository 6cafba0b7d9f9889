"""The infinite-width feature-learning limit of neural networks (dynamical mean field theory), computed.

    problem = dmft.Problem(dmft.MLP(depth=2), dmft.load_task("digits", ...), dmft.GradientDescent(...))
    theory = dmft.solve(problem)

Specs need NumPy alone; the solver is loaded, and JAX with it, when it is first used.  PyTorch is never loaded here.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dmft.specs import (
    CNN,
    MLP,
    Activation,
    Adam,
    Architecture,
    ClippedDescent,
    DeepLinear,
    Entrywise,
    Epochs,
    GradientDescent,
    GradientFlow,
    LayerNorm,
    Lion,
    Muon,
    NormalizedDescent,
    Population,
    Problem,
    ProjectedLinear,
    QuadraticPerceptron,
    QuadraticTeacher,
    RandomData,
    RandomFeatures,
    ResidualCNN,
    ResidualMLP,
    RMSNorm,
    RMSprop,
    SignDescent,
    Task,
    Text,
    Training,
    Transformer,
    erf,
    gelu,
    learning_rates,
    linear,
    load_task,
    load_text,
    odour_task,
    one_pass,
    random_batches,
    relu,
    reversal_problem,
    softplus,
    tanh,
    torch_groups,
    vary,
)
from dmft.specs.activation import activation
from dmft.specs.descriptions import MODELS, NETWORKS, TRAININGS

if TYPE_CHECKING:
    from dmft.adaptive_kernels.drive import adaptive_kernel
    from dmft.adaptive_kernels.lazy import lazy_kernel
    from dmft.adaptive_kernels.rest import at_rest
    from dmft.drivers.adaptive_flow import adaptive_flow
    from dmft.drivers.depth import depth_limit
    from dmft.drivers.gradient import gradient
    from dmft.drivers.neurons import neurons
    from dmft.drivers.optimise import optimise
    from dmft.drivers.solve import solve
    from dmft.finite_width.expansion import at_width, required_width
    from dmft.finite_width.fluctuations import fluctuations
    from dmft.finite_width.transfer import transfer
    from dmft.limits.depth import infinite_depth_kernels, linear_residual
    from dmft.limits.distance import distance_from_lazy
    from dmft.limits.initial import initial_fluctuations
    from dmft.limits.lazy import lazy_limit
    from dmft.limits.two_layer import two_layer_linear
    from dmft.planning import plan
    from dmft.schema.observable import Observable
    from dmft.schema.registry import observable
    from dmft.schema.stacking import stack
    from dmft.schema.storage import load, save

__version__ = "0.1.0"

__all__ = [
    "CNN",
    "MLP",
    "Activation",
    "Adam",
    "Architecture",
    "ClippedDescent",
    "DeepLinear",
    "Entrywise",
    "Epochs",
    "GradientDescent",
    "GradientFlow",
    "LayerNorm",
    "Lion",
    "Muon",
    "NormalizedDescent",
    "Observable",
    "Population",
    "Problem",
    "ProjectedLinear",
    "QuadraticPerceptron",
    "QuadraticTeacher",
    "RMSNorm",
    "RMSprop",
    "RandomData",
    "RandomFeatures",
    "ResidualCNN",
    "ResidualMLP",
    "SignDescent",
    "Task",
    "Text",
    "Training",
    "Transformer",
    "activation",
    "adaptive_flow",
    "adaptive_kernel",
    "at_rest",
    "at_width",
    "depth_limit",
    "distance_from_lazy",
    "erf",
    "fluctuations",
    "gelu",
    "gradient",
    "infinite_depth_kernels",
    "initial_fluctuations",
    "lazy_kernel",
    "lazy_limit",
    "learning_rates",
    "linear",
    "linear_residual",
    "load",
    "load_task",
    "load_text",
    "neurons",
    "observable",
    "odour_task",
    "one_pass",
    "optimise",
    "plan",
    "random_batches",
    "relu",
    "required_width",
    "reversal_problem",
    "save",
    "softplus",
    "solve",
    "stack",
    "tanh",
    "torch_groups",
    "transfer",
    "two_layer_linear",
    "vary",
]

_LAZY = {
    "Observable": "dmft.schema.observable",
    "adaptive_flow": "dmft.drivers.adaptive_flow",
    "adaptive_kernel": "dmft.adaptive_kernels.drive",
    "at_rest": "dmft.adaptive_kernels.rest",
    "at_width": "dmft.finite_width.expansion",
    "depth_limit": "dmft.drivers.depth",
    "distance_from_lazy": "dmft.limits.distance",
    "fluctuations": "dmft.finite_width.fluctuations",
    "gradient": "dmft.drivers.gradient",
    "infinite_depth_kernels": "dmft.limits.depth",
    "initial_fluctuations": "dmft.limits.initial",
    "lazy_kernel": "dmft.adaptive_kernels.lazy",
    "lazy_limit": "dmft.limits.lazy",
    "linear_residual": "dmft.limits.depth",
    "load": "dmft.schema.storage",
    "neurons": "dmft.drivers.neurons",
    "observable": "dmft.schema.registry",
    "optimise": "dmft.drivers.optimise",
    "plan": "dmft.planning",
    "required_width": "dmft.finite_width.expansion",
    "save": "dmft.schema.storage",
    "solve": "dmft.drivers.solve",
    "stack": "dmft.schema.stacking",
    "transfer": "dmft.finite_width.transfer",
    "two_layer_linear": "dmft.limits.two_layer",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in ("limits", "random_data", "schema"):
        return importlib.import_module(f"dmft.{name}")
    for kinds in (NETWORKS, TRAININGS, MODELS):  # of files that are not named above
        if name in kinds:
            return kinds[name]
    raise AttributeError(f"module 'dmft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
