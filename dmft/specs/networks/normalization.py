"""Normalisations, as parts of any program: over the neurons of a population, at every row and position.

    layer norm    u = gamma (h - <h>) / sqrt(<(h - <h>)^2> + epsilon)
    RMS norm      u = gamma h / sqrt(<h^2> + epsilon)

< > are averages over neurons, numbers that are deterministic in the limit, and gamma is 1, or a gain that is trained:
one number for all neurons, not one for each.  As c n of a number n from 1 / c on it learns at c^2 times the rate of
numbers; in branches of residual blocks c is that of their weights (`dmft.specs.parameterization`).  At the start <h>
and what sends gradients back through averages vanish as N^(-1/2), so that both norms are divisions by the size that h
has; training makes them others.

Sources: Ba, Kiros & Hinton 2016 (layer norm); Zhang & Sennrich 2019 (RMS norm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dmft.specs import _check
from dmft.specs.networks.population import Field

EPSILON = 1e-5  # as in PyTorch


@dataclass(frozen=True)
class _Division:
    """By the root of a mean square."""

    gain: str | None = None
    epsilon: float = EPSILON
    gain_factor: Any = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", _check.nonnegative("epsilon", self.epsilon))
        if self.gain is not None and not isinstance(self.gain, str):
            raise TypeError(f"gain={self.gain!r} is no name of a number to train; give one, or None for no gain.")
        if isinstance(self.gain_factor, np.number) or not hasattr(self.gain_factor, "dtype"):  # none of compiled code
            _check.positive("gain_factor", self.gain_factor)

    def __call__(self, net: Any, h: Field) -> Field:
        c = self.gain_factor
        gain = [] if self.gain is None else [c * net.number(self.gain, start=1 / c)]
        return net.local(self._divided, h, net.average(h, h), *gain)  # type: ignore[no-any-return]

    def _divided(self, xp: Any, h: Any, square: Any, gain: Any = 1.0) -> Any:
        return gain * h / xp.sqrt(square + self.epsilon)


class RMSNorm(_Division):
    """h / sqrt(<h^2> + epsilon), as a part of a program: `dmft.RMSNorm()(net, h)`.

    Args:
        gain: the name of a number that is trained, from 1 on, and multiplies the result (`net.number`); two parts of
            one name share it.  None for no gain.
        epsilon: added to the mean square.
        gain_factor: c, positive, be it a traced field: the gain is c times the number, which starts at 1 / c, and so
            learns at c^2 times the rate.

    Raises:
        ValueError, TypeError: an epsilon that is negative; a gain that is no name; a factor that is not positive.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Normalised(dmft.Architecture):
        ...     def program(self, net, x):
        ...         h = net.read("W0", x, to="stream")
        ...         u = net.apply("W1", dmft.RMSNorm(gain="g1")(net, h), to="inner")
        ...         return net.layer(u, net.activate(dmft.tanh(), u))
        >>> [part.name for part in Normalised().sketch((3,)).vectors]
        ['g1']
    """


class LayerNorm(_Division):
    """(h - <h>) / sqrt(<(h - <h>)^2> + epsilon), as a part of a program: `dmft.LayerNorm()(net, h)`.

    With `epsilon` and without a gain this is `torch.nn.functional.layer_norm(h, (N,), eps=epsilon)`.

    Args:
        gain, epsilon, gain_factor: as of `RMSNorm`.

    Raises:
        ValueError, TypeError: as for `RMSNorm`.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Normalised(dmft.Architecture):
        ...     def program(self, net, x):
        ...         h = net.read("W0", x, to="stream")
        ...         return net.layer(h, dmft.LayerNorm()(net, h))
        >>> Normalised().sketch((3,)).depth
        1
    """

    def __call__(self, net: Any, h: Field) -> Field:
        mean = net.average(h, net.local(_ones, h))
        return super().__call__(net, net.local(_less, h, mean))


def _ones(xp: Any, h: Any) -> Any:
    return xp.ones_like(h)


def _less(_: Any, h: Any, mean: Any) -> Any:
    return h - mean


NORMALIZATIONS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


def normalized(kind: str | None, net: Any, h: Field, gain: str | None = None, gain_factor: Any = 1.0) -> Field:
    """h as the normalisation of this name makes it; h itself for None."""
    return h if kind is None else NORMALIZATIONS[kind](gain, gain_factor=gain_factor)(net, h)


def require_normalization(kind: object, trained_gain: object = False) -> None:
    """ValueError for a name that is none, or a gain of none."""
    if kind is not None and kind not in NORMALIZATIONS:
        known = ", ".join(map(repr, NORMALIZATIONS))
        raise ValueError(f"normalization={kind!r} is unknown; choose one of {known}, or None for none.")
    if not isinstance(trained_gain, bool):
        raise TypeError(f"trained_gain={trained_gain!r} must be True or False.")
    if trained_gain and kind is None:
        raise ValueError('trained_gain=True is for a normalisation; give normalization="layer_norm", or leave it out.')
