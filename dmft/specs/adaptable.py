"""Which problems have adaptive kernels, and posteriors that are sampled: perceptrons all of whose layers learn."""

from __future__ import annotations

from dmft.specs.networks import MLP
from dmft.specs.parameterization import layer_variances, require_limit
from dmft.specs.problem import Problem


def adaptable(problem: Problem) -> MLP:
    """The network of such a problem.

    Raises:
        ValueError: another network, one with biases or frozen layers; another loss; training samples not observed.
    """
    network = problem.network
    if type(network) is not MLP:
        raise ValueError(f"adaptive kernels are there for dmft.MLP, got {type(network).__name__}; train it instead.")
    require_limit(network)
    if network.bias:
        raise ValueError(f"bias={network.bias}: adaptive kernels are those of networks without biases; take bias=0.")
    if network.frozen:
        raise ValueError(f"frozen={network.frozen}: adaptive kernels are there for networks all of whose layers learn.")
    if problem.loss != "squared":
        raise ValueError(f'loss={problem.loss!r}: adaptive kernels are there for loss="squared" alone.')
    if problem.training.observe != "all":
        raise ValueError(f"observe={problem.training.observe!r}: kernels of training samples are needed; leave it out.")
    return network


def prior(network: MLP) -> tuple[float, ...]:
    """v_0 .. v_L of the weights; ValueError if one is zero."""
    found = layer_variances(network)
    if 0.0 in found:
        raise ValueError(f"weight_variance={found}: weights without variance have no posterior; give positive ones.")
    return found
