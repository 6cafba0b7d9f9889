"""Architectures, one a file, without their width: that is a coordinate of results, not part of a problem."""

from dmft.specs.networks.convolution import CNN
from dmft.specs.networks.normalization import LayerNorm, RMSNorm
from dmft.specs.networks.perceptron import MLP, Network, ResidualMLP, perceptron
from dmft.specs.networks.population import Population
from dmft.specs.networks.program import Architecture
from dmft.specs.networks.residual import ResidualCNN
from dmft.specs.networks.transformer import Transformer

__all__ = [
    "CNN",
    "MLP",
    "Architecture",
    "LayerNorm",
    "Network",
    "Population",
    "RMSNorm",
    "ResidualCNN",
    "ResidualMLP",
    "Transformer",
    "perceptron",
]
