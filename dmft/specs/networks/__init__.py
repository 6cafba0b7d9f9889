"""Architectures, one a file, without their width: that is a coordinate of results, not part of a problem."""

from dmft.specs.networks.perceptron import MLP, Network, ResidualMLP
from dmft.specs.networks.program import Architecture

__all__ = ["MLP", "Architecture", "Network", "ResidualMLP"]
