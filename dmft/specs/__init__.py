"""What is studied: frozen dataclasses, NumPy only, no width."""

from dmft.specs.activation import Activation, erf, gelu, linear, relu, softplus, tanh
from dmft.specs.networks import (
    CNN,
    MLP,
    Architecture,
    LayerNorm,
    Population,
    ResidualCNN,
    ResidualMLP,
    RMSNorm,
    Transformer,
)
from dmft.specs.problem import Problem
from dmft.specs.random_data import (
    DeepLinear,
    ProjectedLinear,
    QuadraticPerceptron,
    QuadraticTeacher,
    RandomData,
    RandomFeatures,
)
from dmft.specs.reversal import reversal_problem
from dmft.specs.tasks.given import Task
from dmft.specs.tasks.load import load_task
from dmft.specs.tasks.odours import odour_task
from dmft.specs.tasks.text import Text, load_text
from dmft.specs.torch_groups import torch_groups
from dmft.specs.training import (
    Adam,
    ClippedDescent,
    Entrywise,
    Epochs,
    GradientDescent,
    GradientFlow,
    Lion,
    Muon,
    NormalizedDescent,
    RMSprop,
    SignDescent,
    Training,
    learning_rates,
    one_pass,
    random_batches,
)
from dmft.specs.variations import vary

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
    "erf",
    "gelu",
    "learning_rates",
    "linear",
    "load_task",
    "load_text",
    "odour_task",
    "one_pass",
    "random_batches",
    "relu",
    "reversal_problem",
    "softplus",
    "tanh",
    "torch_groups",
    "vary",
]
