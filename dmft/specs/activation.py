"""Activations phi, as data.

    tanh(gain)      tanh(gain h) / gain           softplus(gain)   log(1 + exp(gain h)) / gain
    erf()           erf(h)                        gelu()           h (1 + erf(h / sqrt 2)) / 2
    relu()          sqrt(2) max(h, 0)             linear()         h

The formulas stand in `dmft.engine.activations` (JAX) and `finite_nets.activations` (PyTorch).
"""

from __future__ import annotations

from dataclasses import dataclass

from dmft.specs import _check

WITH_GAIN = ("tanh", "softplus")
KINKS = {"relu": (0.0,)}  # where phi' jumps
NAMES = ("tanh", "relu", "erf", "gelu", "softplus", "linear")


@dataclass(frozen=True)
class Activation:
    """A coordinatewise nonlinearity phi; made by `tanh`, `relu`, `erf`, `gelu`, `softplus`, `linear`.

    `gain` scales the argument of tanh and softplus (phi'(0) does not depend on it) and is 1 for the others.
    """

    name: str
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"activation {self.name!r} is unknown; choose one of {', '.join(NAMES)}.")
        object.__setattr__(self, "gain", _check.positive("gain", self.gain))
        if self.name not in WITH_GAIN and self.gain != 1.0:
            raise ValueError(
                f"activation {self.name!r} has no gain (got {self.gain}); {' and '.join(WITH_GAIN)} have one."
            )

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where phi' jumps."""
        return KINKS.get(self.name, ())

    @property
    def smooth(self) -> bool:
        """Whether phi' is continuous."""
        return not self.kinks


def tanh(gain: float = 1.0) -> Activation:
    """phi(h) = tanh(gain h) / gain."""
    return Activation("tanh", gain)


def softplus(gain: float = 1.0) -> Activation:
    """phi(h) = log(1 + exp(gain h)) / gain, a smooth ReLU."""
    return Activation("softplus", gain)


def relu() -> Activation:
    """phi(h) = sqrt(2) max(h, 0), which keeps <phi^2> = <h^2> for Gaussian h."""
    return Activation("relu")


def erf() -> Activation:
    """phi(h) = erf(h)."""
    return Activation("erf")


def gelu() -> Activation:
    """phi(h) = h (1 + erf(h / sqrt 2)) / 2."""
    return Activation("gelu")


def linear() -> Activation:
    """phi(h) = h."""
    return Activation("linear")
