"""Activations phi: their formulas, once for NumPy, JAX and PyTorch, and those of one's own.

    tanh, softplus, erf, gelu, relu, linear:    phi(h) = scale phi0(gain h) / gain

    tanh        tanh(u)                         erf      erf(u)
    softplus    log(1 + exp(u))                 gelu     u (1 + erf(u / sqrt 2)) / 2
    relu        sqrt(2) max(u, 0)               linear   u

phi'(0) does not depend on the gain.  relu and linear are homogeneous and have none.  `activation` makes one of a
formula of one's own.  The first argument of a formula is the module (numpy, jax.numpy, torch) whose arrays it takes.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs import _check

WITH_GAIN = ("tanh", "softplus", "erf", "gelu")
KINKS: dict[str, tuple[float, ...]] = {"relu": (0.0,)}
NAMES = ("tanh", "relu", "erf", "gelu", "softplus", "linear")
ROOT_2, ROOT_PI = math.sqrt(2), math.sqrt(math.pi)
Formula = Callable[[Any, Any], Any]

# where formulas of one's own are looked at: dense near the origin, sparse far out
NEAR, FAR = np.linspace(-6.0, 6.0, 1201) + 0.0013, np.array([-1e3, -1e2, -30.0, 30.0, 1e2, 1e3])
STEP = 1e-6  # of central differences: their error is 1e-10 of phi beside rounding, 1e-16 / STEP
AGREEMENT = 1e-5  # of derivative and differences, relative to the largest slope
JUMP = 0.05  # of the slope over two steps, relative to the largest, that is a kink: a smooth phi'' would be above 1e4


@dataclass(frozen=True)
class Activation:
    """A coordinatewise nonlinearity phi; made by `tanh`, `relu`, `erf`, `gelu`, `softplus`, `linear`, `activation`.

    Args:
        name: of the formula; of one of one's own, where it is found, "module:function".
        gain, scale: phi(h) = scale phi0(gain h) / gain.
        formula, derivative: phi0 and its derivative, of one of one's own.
        own_kinks: where the derivative of such a one jumps.
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
            found |= {"derivative": _path(self.derivative), "kinks": list(self.own_kinks)}
            found["sha256"] = _digest(self.formula, self.derivative)
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
        formula, derivative = (_found(fields[key]) for key in ("name", "derivative"))
        if _digest(formula, derivative) != fields["sha256"]:
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
    """
    names = [_path(function) for function in (formula, derivative)]
    where = tuple(sorted(float(k) for k in kinks))
    values, slopes = _values(formula), _values(derivative)
    _require_entrywise(formula, values)
    _require_derivative(names[0], formula, slopes, where)
    return Activation(names[0], gain, scale, formula, derivative, where)


def tanh(gain: float = 1.0, scale: float = 1.0) -> Activation:
    """phi(h) = scale tanh(gain h) / gain."""
    return Activation("tanh", gain, scale)


def softplus(gain: float = 1.0, scale: float = 1.0) -> Activation:
    """phi(h) = scale log(1 + exp(gain h)) / gain, a smooth ReLU."""
    return Activation("softplus", gain, scale)


def relu(scale: float = 1.0) -> Activation:
    """phi(h) = scale sqrt(2) max(h, 0), which keeps <phi^2> = <h^2> for Gaussian h and scale 1."""
    return Activation("relu", scale=scale)


def erf(gain: float = 1.0, scale: float = 1.0) -> Activation:
    """phi(h) = scale erf(gain h) / gain."""
    return Activation("erf", gain, scale)


def gelu(gain: float = 1.0, scale: float = 1.0) -> Activation:
    """phi(h) = scale h (1 + erf(gain h / sqrt 2)) / 2."""
    return Activation("gelu", gain, scale)


def linear(scale: float = 1.0) -> Activation:
    """phi(h) = scale h."""
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


# ---- formulas of one's own -------------------------------------------------------------------------------------------


def _path(function: Any) -> str:
    """Where a function is found again, "module:function"; TypeError if it is not."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not callable(function) or module is None or not name.isidentifier():
        raise TypeError(
            f"{name or function!r} cannot be found again by its name: an activation of one's own is made of functions "
            "that are defined in a module (or a notebook) under a name of their own, no lambda, not inside another one."
        )
    return f"{module}:{name}"


def _found(path: str) -> Formula:
    module, _, name = path.partition(":")
    if module not in sys.modules:
        raise ValueError(
            f"the activation {path} is of a module that is not imported, and is never imported from a description; "
            f"`import {module}` first."
        )
    found = getattr(sys.modules[module], name, None)
    if not callable(found):
        raise ValueError(
            f"the module {module} has no function {name}, of which the activation was made; define it first."
        )
    function: Formula = found
    return function


def _values(function: Formula) -> NDArray[np.float64]:
    """On NEAR and FAR; ValueError where they are no finite numbers of the same shape."""
    h = np.concatenate([NEAR, FAR])
    name = _path(function)
    try:
        with np.errstate(all="ignore"):
            values = np.asarray(function(np, h), np.float64)
    except Exception as error:
        raise ValueError(
            f"{name}(numpy, h) fails for an array h: {type(error).__name__}: {error}. Write it for arrays of the "
            "module that is its first argument: numpy, jax.numpy, torch."
        ) from error
    if values.shape != h.shape:
        raise ValueError(f"{name} makes the shape {values.shape} of {h.shape}; it must act on every entry by itself.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name} is {values[bad[0]]} at h={h[bad[0]]:g}; it must be finite up to |h| = 1000.")
    return values


def _require_entrywise(formula: Formula, values: NDArray[np.float64]) -> None:
    """ValueError where an entry depends on the others."""
    some = np.concatenate([NEAR, FAR])[::-3]
    with np.errstate(all="ignore"):
        alone = np.asarray(formula(np, some[:, None]), np.float64).ravel()
    if not np.allclose(alone, values[::-3], rtol=1e-9, atol=1e-12):
        raise ValueError(
            f"{_path(formula)} gives an entry another value in another array; it must act on each by itself."
        )


def _require_derivative(name: str, formula: Formula, slopes: NDArray[np.float64], kinks: tuple[float, ...]) -> None:
    """ValueError where the derivative is not that of the formula, or jumps where no kink is named."""
    near = slopes[: len(NEAR)]
    largest = max(float(abs(near).max()), 1e-3)
    away = np.ones(len(NEAR), bool)
    for kink in kinks:
        away &= abs(NEAR - kink) > 2 * STEP
    difference = (formula(np, NEAR + STEP) - formula(np, NEAR - STEP)) / (2 * STEP)
    wrong = away & (abs(difference - near) > AGREEMENT * largest)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"the derivative given for {name} is {near[i]:.6g} at h={NEAR[i]:.4g}, and its values rise by "
            f"{difference[i]:.6g}; give its derivative, and name its kinks with kinks=[...]."
        )
    # between neighbours of the grid: the mean of the slopes at both ends against what the values rise by
    rise = np.diff(formula(np, NEAR)) / np.diff(NEAR)
    between = [not any(a < k < b for k in kinks) for a, b in pairwise(NEAR.tolist())]
    jumps = np.asarray(between) & (abs(np.diff(near)) > JUMP * largest) & (abs(rise - near[:-1]) > 1e-3 * largest)
    steep = abs(np.diff(near)) > 20 * np.median(abs(np.diff(near)) + 1e-6 * largest)
    if (jumps & steep).any():
        i = int(np.flatnonzero(jumps & steep)[0])
        raise ValueError(
            f"the slope of {name} jumps from {near[i]:.4g} to {near[i + 1]:.4g} near h={NEAR[i]:.4g}; name its kinks "
            "with kinks=[...]: methods for smooth activations would be wrong there."
        )


@cache
def _digest(formula: Formula, derivative: Formula) -> str:
    """Of the values, to eight digits, so that a formula that was edited is another one."""
    numbers = np.concatenate([_values(formula), _values(derivative)])
    return hashlib.sha256(",".join(f"{v + 0.0:.7e}" for v in numbers).encode()).hexdigest()[:16]
