"""What is studied: frozen dataclasses, NumPy only, no width."""

from dmft.specs.activation import Activation, erf, gelu, linear, relu, softplus, tanh
from dmft.specs.networks import CNN, MLP, Architecture, Population, ResidualMLP, Transformer
from dmft.specs.problem import Problem, vary
from dmft.specs.tasks.given import Task
from dmft.specs.tasks.load import load_task
from dmft.specs.training import GradientDescent, GradientFlow, Training, one_pass, random_batches

__all__ = [
    "CNN",
    "MLP",
    "Activation",
    "Architecture",
    "GradientDescent",
    "GradientFlow",
    "Population",
    "Problem",
    "ResidualMLP",
    "Task",
    "Training",
    "Transformer",
    "erf",
    "gelu",
    "linear",
    "load_task",
    "one_pass",
    "random_batches",
    "relu",
    "softplus",
    "tanh",
    "vary",
]
