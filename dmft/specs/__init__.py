"""What is studied: frozen dataclasses, NumPy only, no width."""

from dmft.specs.activation import Activation, erf, gelu, linear, relu, softplus, tanh
from dmft.specs.data import load_task
from dmft.specs.network import MLP
from dmft.specs.problem import Problem
from dmft.specs.task import Task
from dmft.specs.training import GradientDescent

__all__ = [
    "MLP",
    "Activation",
    "GradientDescent",
    "Problem",
    "Task",
    "erf",
    "gelu",
    "linear",
    "load_task",
    "relu",
    "softplus",
    "tanh",
]
