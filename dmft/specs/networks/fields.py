"""Fields that stacks of layers share, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dmft.specs import _check
from dmft.specs.activation import NAMES, Activation
from dmft.specs.parameterization import PARAMETERIZATIONS

EXPONENTS = (0.5, 1.0)  # of branches, between which there is a limit of many blocks


def check_fields(network: Any, counted: str = "depth") -> None:
    """Check gamma0, activation, centered, frozen, weight_variance and parameterization of a frozen dataclass whose
    weights are W^0 .. W^{depth-1} and the readout, and set them; `counted`: the field that depth follows from.

    Raises:
        ValueError, TypeError: naming the field.
    """

    def put(name: str, value: Any) -> None:
        object.__setattr__(network, name, value)

    put(counted, _check.integer(counted, getattr(network, counted), minimum=1))
    hint = "The lazy limit, gamma0 -> 0, is dmft.lazy_limit(problem)."
    put("gamma0", _check.positive("gamma0", network.gamma0, hint=hint))
    require_activation(network.activation)
    if not isinstance(network.centered, bool):
        raise TypeError(f"centered={network.centered!r} must be True or False.")
    put("frozen", frozen_layers(network.frozen, network.depth))
    put("weight_variance", variances(network.weight_variance, network.depth))
    require_movement(network, network.depth)
    if network.parameterization not in PARAMETERIZATIONS:
        raise ValueError(
            f"parameterization={network.parameterization!r} is unknown; choose one of {', '.join(PARAMETERIZATIONS)}."
        )


def check_branches(network: Any) -> None:
    """Check branch_scale and branch_exponent of a frozen dataclass, and set them.

    Raises:
        ValueError, TypeError: naming the field.
    """
    for name in ("branch_scale", "branch_exponent"):
        object.__setattr__(network, name, _check.positive(name, getattr(network, name)))
    least, most = EXPONENTS
    if not least <= network.branch_exponent <= most:
        raise ValueError(
            f"branch_exponent={network.branch_exponent} is not between 1/2 and 1: below, the output of many blocks "
            "grows without bound, above, they learn less and less. Take 0.5 or 1."
        )


def require_activation(activation: Any) -> None:
    """TypeError if it is not one."""
    if not isinstance(activation, Activation):
        choices = ", ".join(f"dmft.{name}()" for name in NAMES)
        name = getattr(activation, "__name__", None)
        called = f"; call it: dmft.{name}()" if name in NAMES else ""
        raise TypeError(f"activation={activation!r} is not an activation{called}; choose one of {choices}.")


def require_movement(network: Any, readout: int) -> None:
    """ValueError if the readout is zero and stays there; `readout`: its number."""
    given = network.weight_variance
    if (given[-1] if isinstance(given, tuple) else given) == 0 and readout in network.frozen:
        raise ValueError(
            f"weight_variance={network.weight_variance} leaves the readout at zero and frozen={network.frozen} keeps "
            "it there: nothing would ever move. Train the readout, or give it a variance."
        )


def variances(value: object, depth: int) -> float | tuple[float, ...]:
    """One number where all of the layers 0..depth have the same; zero for the readout alone."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return _check.positive("weight_variance", value, hint="Zero is for the readout: give one number a layer.")
    given = list(value)
    if len(given) != depth + 1:
        raise ValueError(
            f"weight_variance has {len(given)} entries for {depth + 1} layers; give one number, or one for each of "
            f"W^0 .. W^{depth - 1} and the readout."
        )
    hint = "Only the readout, the last of them, may start at zero."
    found = [_check.positive(f"weight_variance[{i}]", v, hint=hint) for i, v in enumerate(given[:-1])]
    found.append(_check.nonnegative(f"weight_variance[{depth}]", given[-1]))
    return found[0] if len(set(found)) == 1 else tuple(found)


def frozen_layers(layers: object, depth: int) -> tuple[int, ...]:
    """The frozen layers, sorted."""
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"frozen={layers!r} is not a list of layers; give e.g. frozen=[0] or frozen=range({depth}).")
    found = sorted({_check.integer("frozen", layer, minimum=0) for layer in layers})
    if found and found[-1] > depth:
        raise ValueError(f"frozen holds {found[-1]}; the layers are 0..{depth}, of which {depth} is the readout.")
    if len(found) > depth:
        raise ValueError(f"frozen={found} leaves nothing to train; leave out one of the layers 0..{depth}.")
    return tuple(found)


def require_same_layers(network: Any, readout: int) -> None:
    """ValueError if layers are told apart by numbers, which other blocks would shift; `readout`: its number."""
    if set(network.frozen) - {0} or isinstance(network.weight_variance, tuple):
        raise ValueError(
            f"frozen={network.frozen} and weight_variance={network.weight_variance} name layers of {readout} by their "
            "numbers, which are others with more blocks; freeze layer 0 alone, and give one variance."
        )
