"""Activations phi: their formulas, once for NumPy, JAX and PyTorch, and those of one's own.

    tanh, softplus, erf, gelu, relu, linear:    phi(h) = scale phi0(gain h) / gain

    tanh        tanh(u)                         erf      erf(u)
    softplus    log(1 + exp(u))                 gelu     u (1 + erf(u / sqrt 2)) / 2
    relu        sqrt(2) max(u, 0)               linear   u

phi'(0) does not depend on the gain.  relu and linear are homogeneous and have none.  `activation` makes one of a
formula of one's own.  The first argument of a formula is the module (numpy, jax.numpy, torch) whose arrays it takes.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dmft.specs import _check
from dmft.specs.own_activation import digest_of, function_at, path_of, require_derivative, require_entrywise, values_of

WITH_GAIN = ("tanh", "softplus", "erf", "gelu")
KINKS: dict[str, tuple[float, ...]] = {"relu": (0.0,)}
NAMES = ("tanh", "relu", "erf", "gelu", "softplus", "linear")
ROOT_2, ROOT_PI = math.sqrt(2), math.sqrt(math.pi)
Formula = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Activation:
    """A coordinatewise nonlinearity phi; made by `tanh`, `relu`, `erf`, `gelu`, `softplus`, `linear`, `activation`.

    Args:
        name: of the formula; of one of one's own, where it is found, "module:function".
        gain, scale: phi(h) = scale phi0(gain h) / gain.
        formula, derivative: phi0 and its derivative, of one of one's own.
        own_kinks: where the derivative of such a one jumps.

    Example:
        >>> dmft.softplus(gain=2.0)
        Activation(name='softplus', gain=2.0, ...)
    """

    name: str
    gain: float = 1.0
    scale: float = 1.0
    formula: Formula | None = None
    derivative: Formula | None = None
    own_kinks: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for field in ("gain", "scale"):
            object.__setattr__(self, field, _check.positive(field, getattr(self, field)))
        if self.formula is not None:
            return
        if self.name not in NAMES:
            raise ValueError(
                f"activation {self.name!r} is unknown; choose one of {', '.join(NAMES)}, or make one of a formula with "
                "dmft.activation(formula, derivative)."
            )
        if self.name not in WITH_GAIN and self.gain != 1.0:
            raise ValueError(
                f"activation {self.name!r} has no gain (got {self.gain}): it is homogeneous. Give scale instead; "
                f"{', '.join(WITH_GAIN)} have a gain."
            )

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where phi' jumps."""
        return tuple(k / self.gain for k in (self.own_kinks if self.formula else KINKS.get(self.name, ())))

    @property
    def smooth(self) -> bool:
        """Whether phi' is continuous."""
        return not self.kinks

    @property
    def plain(self) -> bool:
        """Whether it is one of the built-in formulas, as it stands: what GPU kernels have."""
        return self.formula is None and self.scale == 1 and (self.gain == 1 or self.name in ("tanh", "softplus"))

    def both(self, xp: Any, h: Any) -> tuple[Any, Any]:
        """phi(h) and phi'(h), coordinatewise; the derivative of ReLU at zero is zero."""
        u = h if self.gain == 1 else self.gain * h
        if self.formula is not None and self.derivative is not None:
            phi, slope = self.formula(xp, u), self.derivative(xp, u)
        else:
            phi, slope = BOTH[self.name](xp, u)
        phi = phi if self.gain == 1 else phi / self.gain
        return (phi, slope) if self.scale == 1 else (self.scale * phi, self.scale * slope)

    def bend(self, xp: Any, h: Any) -> Any:
        """phi''(h), coordinatewise, without what jumps of phi' add to it; of built-in formulas."""
        u = h if self.gain == 1 else self.gain * h
        return (self.scale * self.gain) * BEND[self.name](xp, u)

    def described(self) -> dict[str, Any]:
        """For JSON: fields added after the first version are left out while they say nothing new."""
        found: dict[str, Any] = {"name": self.name, "gain": self.gain}
        if self.scale != 1:
            found["scale"] = self.scale
        if self.formula is not None and self.derivative is not None:
            found |= {"derivative": path_of(self.derivative), "kinks": list(self.own_kinks)}
            found["sha256"] = digest_of(self.formula, self.derivative)
        return found

    @classmethod
    def from_described(cls, content: Mapping[str, Any]) -> Activation:
        """What `described` gave.  Formulas of one's own are looked for in modules that are imported already.

        Raises:
            ValueError: a module that is not imported, or has no such function, or another one.
        """
        fields = dict(content)
        if "derivative" not in fields:
            return cls(**fields)
        formula, derivative = (function_at(fields[key]) for key in ("name", "derivative"))
        if digest_of(formula, derivative) != fields["sha256"]:
            raise ValueError(
                f"activation {fields['name']} has changed since this was written: its values are others. Use the code "
                "of then, or describe the problem anew."
            )
        made = activation(formula, derivative, kinks=fields["kinks"])
        return cls(made.name, fields["gain"], fields.get("scale", 1.0), formula, derivative, made.own_kinks)


def activation(
    formula: Formula,
    derivative: Formula,
    *,
    kinks: Iterable[float] = (),
    gain: float = 1.0,
    scale: float = 1.0,
) -> Activation:
    """An activation of one's own: phi(h) = scale formula(gain h) / gain.

        def swish(xp, h):
            return h / (1 + xp.exp(-h))

        def swish_slope(xp, h):
            s = 1 / (1 + xp.exp(-h))
            return s + h * s * (1 - s)

        network = dmft.MLP(depth=2, activation=dmft.activation(swish, swish_slope))

    Args:
        formula, derivative: functions of (xp, h), for arrays of the module xp: numpy, jax.numpy and torch.  Functions
            of a module, by whose names a problem can be written and read; where it is read, the module has to be
            imported.
        kinks: where the derivative jumps.  Fluctuations of networks with kinks need other methods.
        gain, scale: as above.

    Raises:
        TypeError: functions without a name in a module (a lambda, a function inside a function).
        ValueError: formulas that do not act on every entry alone, whose derivative is another, that have a kink that is
            not named, or that are not finite up to |h| = 1000.

    Example:
        >>> def phi(xp, u):
        ...     return u / xp.sqrt(1 + u * u)
        >>> def slope(xp, u):
        ...     return (1 + u * u) ** -1.5
        >>> dmft.MLP(1, dmft.activation(phi, slope)).activation.smooth
        True
    """
    names = [path_of(function) for function in (formula, derivative)]
    where = tuple(sorted(float(k) for k in kinks))
    values, slopes = values_of(formula), values_of(derivative)
    require_entrywise(formula, values)
    require_derivative(names[0], formula, slopes, where)
    return Activation(names[0], gain, scale, formula, derivative, where)


def tanh(gain: float = 1.0, scale: float = 1.0) -> Activation:
    """phi(h) = scale tanh(gain h) / gain.

    Args:
        gain, scale: as of `Activation`.

    Example:
        >>> dmft.MLP(2, dmft.tanh(gain=0.8)).activation.gain
        0.8
    """
    return Activation("tanh", gain, scale)


def softplus(gain: float = 1.0, scale: float = 1.0) -> Activation:
    """phi(h) = scale log(1 + exp(gain h)) / gain, a smooth ReLU.

    Args:
        gain, scale: as of `Activation`.

    Example:
        >>> dmft.softplus().smooth
        True
    """
    return Activation("softplus", gain, scale)


def relu(scale: float = 1.0) -> Activation:
    """phi(h) = scale sqrt(2) max(h, 0), which keeps <phi^2> = <h^2> for Gaussian h and scale 1.

    Args:
        scale: as of `Activation`.

    Example:
        >>> dmft.relu().kinks
        (0.0,)
    """
    return Activation("relu", scale=scale)


def erf(gain: float = 1.0, scale: float = 1.0) -> Activation:
    """phi(h) = scale erf(gain h) / gain.

    Args:
        gain, scale: as of `Activation`.

    Example:
        >>> dmft.erf(gain=0.8).gain
        0.8
    """
    return Activation("erf", gain, scale)


def gelu(gain: float = 1.0, scale: float = 1.0) -> Activation:
    """phi(h) = scale h (1 + erf(gain h / sqrt 2)) / 2.

    Args:
        gain, scale: as of `Activation`.

    Example:
        >>> dmft.gelu().smooth
        True
    """
    return Activation("gelu", gain, scale)


def linear(scale: float = 1.0) -> Activation:
    """phi(h) = scale h.

    Args:
        scale: as of `Activation`.

    Example:
        >>> dmft.MLP(1, dmft.linear(scale=2.0)).activation.scale
        2.0
    """
    return Activation("linear", scale=scale)


# ---- formulas: phi0(u) and phi0'(u), and phi0''(u) -------------------------------------------------------------------


@cache
def _library(name: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """erf and the logistic function of a library, by the name of its module."""
    if name == "torch":
        torch = sys.modules["torch"]
        return torch.special.erf, torch.sigmoid
    if name == "numpy":
        special = importlib.import_module("scipy.special")
        return special.erf, special.expit
    return importlib.import_module("jax.scipy.special").erf, importlib.import_module("jax.nn").sigmoid


def _erf(xp: Any, u: Any) -> Any:
    return _library(xp.__name__)[0](u)


def _sigmoid(xp: Any, u: Any) -> Any:
    return _library(xp.__name__)[1](u)


def _density(xp: Any, u: Any) -> Any:
    return xp.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)


def _both_tanh(xp: Any, u: Any) -> tuple[Any, Any]:
    t = xp.tanh(u)
    return t, 1 - t * t


def _both_relu(xp: Any, u: Any) -> tuple[Any, Any]:
    phi = ROOT_2 * xp.clip(u, 0, None)
    return phi, ROOT_2 * xp.sign(phi)


def _both_erf(xp: Any, u: Any) -> tuple[Any, Any]:
    return _erf(xp, u), 2 / ROOT_PI * xp.exp(-(u**2))


def _both_gelu(xp: Any, u: Any) -> tuple[Any, Any]:
    cdf = (1 + _erf(xp, u / ROOT_2)) / 2
    return u * cdf, cdf + u * _density(xp, u)


def _both_softplus(xp: Any, u: Any) -> tuple[Any, Any]:
    return xp.logaddexp(u, xp.zeros_like(u)), _sigmoid(xp, u)


def _bend_tanh(xp: Any, u: Any) -> Any:
    t = xp.tanh(u)
    return -2 * t * (1 - t * t)


BOTH: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "tanh": _both_tanh,
    "relu": _both_relu,
    "erf": _both_erf,
    "gelu": _both_gelu,
    "softplus": _both_softplus,
    "linear": lambda xp, u: (u, xp.ones_like(u)),
}
BEND: dict[str, Formula] = {
    "tanh": _bend_tanh,
    "relu": lambda xp, u: xp.zeros_like(u),
    "erf": lambda xp, u: -4 / ROOT_PI * u * xp.exp(-(u**2)),
    "gelu": lambda xp, u: (2 - u**2) * _density(xp, u),
    "softplus": lambda xp, u: _sigmoid(xp, u) * _sigmoid(xp, -u),
    "linear": lambda xp, u: xp.zeros_like(u),
}
