"""A scaling law of precision: losses of networks trained, or rounded after training, to few bits.

    L(N, D, P)  = A N_eff^-alpha + B D^-beta + E + delta          or `ceiling`, the loss of guessing, if lower     (1)
    N_eff       = N prod_x (1 - e^(-P_x / gamma_x + n_x))          channels x: weights, activations, ...           (2)
    delta       = C_T D^gamma_D / N_eff^gamma_N e^(-P_post / gamma_post + b) prod_x (1 - e^(-C_x (P_x - P_post)))  (3)

N parameters, D tokens (samples), P_x bits in training, P_post those that weights are rounded to afterwards; the last
product of (3) is one for weights trained in full precision, and zero where P_post >= P_x.  With the cost of training
C = (6 / 16) N D P, that of the same bits P in all channels:

    the best bits            sum_x (P / gamma_x) e^u / (1 - e^u) = 1, u = -P / gamma_x + n_x: whatever C, A, B      (4)
    at fixed bits            N = (alpha A / (beta B))^(1 / (alpha + beta)) s^(-alpha / (alpha + beta))
                                 (16 C / (6 P))^(beta / (alpha + beta)),  D = 16 C / (6 P N),  s = N_eff / N        (5)
    at fixed N               the P that minimises (1) at D = 16 C / (6 P N)                                         (6)
    more data hurts beyond   D^(gamma_D + beta) = beta B N^gamma_N e^(P_post / gamma_post - b) / (gamma_D C_T)      (7)
    share of parameters      f = ((L(P) - L(full)) / A + N^-alpha)^(-1 / alpha) / N, measured                       (8)

Source: T. Kumar et al., Scaling laws for precision, 2024 (arXiv:2411.04330), with the biases n_x of its appendix K, in
whose numbers they enter so; the ceiling is this library's, and (5) is derived here (the published exponents of P lose
the 1 / P of D).

Assumptions and approximations
    An empirical law of transformers of 30 to 220 million parameters, trained at rates tuned for them; (2) ends where an
    exponent comes to zero: shares of parameters are held at 0.001 there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar

from comparisons.errors import UnresolvedError
from dmft.specs import _check

Array = NDArray[np.float64]
Bits = float | Mapping[str, Any] | None

COST = 6 / 16  # of a parameter, a token and a bit: 6 N D operations of 16 bits
LEAST = -1e-3  # exponents are held below it
WIDE = 100.0  # times the largest gamma: more bits than matter
NEAR = 1e-9  # relative, of an end of an interval


@dataclass(frozen=True)
class Saturation:
    """What the bits of one channel leave of the parameters, 1 - e^(-P / gamma + bias).

    Args:
        gamma: bits over which little is lost any more.
        bias: n_x.

    Example:
        >>> round(float(comparisons.Saturation(2.67, 0.3).share(4)), 2)
        0.7
    """

    gamma: float
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not self.gamma > 0 or not np.isfinite(self.bias):
            raise ValueError(f"gamma={self.gamma}, bias={self.bias}: gamma must be positive and the bias finite.")

    def exponent(self, bits: ArrayLike) -> Array:
        """-P / gamma + bias, held below zero."""
        return np.asarray(np.minimum(self.bias - np.asarray(bits, np.float64) / self.gamma, LEAST))

    def share(self, bits: ArrayLike) -> Array:
        """N_eff / N of this channel."""
        return np.asarray(-np.expm1(self.exponent(bits)))

    def odds(self, bits: ArrayLike) -> Array:
        """e^u / (1 - e^u): -d log(share) / du."""
        return np.asarray(np.exp(u := self.exponent(bits)) / -np.expm1(u))


@dataclass(frozen=True)
class AfterTraining:
    """What rounding trained weights adds to the loss, (3).

    Args:
        scale: C_T.
        gamma_data, gamma_parameters: exponents of D and N.
        gamma_bits: gamma_post.
        bias: b.
        robust: C_x of channels, needed for weights that were trained at few bits; the source does not give them.

    Example:
        >>> comparisons.AfterTraining(0.06, 0.51, 0.34, 0.59).bias
        0.0
    """

    scale: float
    gamma_data: float
    gamma_parameters: float
    gamma_bits: float
    bias: float = 0.0
    robust: Mapping[str, float] = field(default_factory=dict)

    def loss(self, effective: ArrayLike, tokens: ArrayLike, bits: ArrayLike) -> Array:
        """delta of weights that were trained in full precision, but for N_eff."""
        rounded = np.exp(self.bias - np.asarray(bits, np.float64) / self.gamma_bits)
        grown = np.asarray(tokens, np.float64) ** self.gamma_data / np.asarray(effective) ** self.gamma_parameters
        return np.asarray(self.scale * grown * rounded)


class Allocation(NamedTuple):
    """Parameters N, tokens D and bits P of the smallest loss at a cost."""

    parameters: float
    tokens: float
    bits: float
    loss: float


@dataclass(frozen=True)
class PrecisionLaw:
    """The law (1) with its constants; `PrecisionLaw.published()` has those of the source.

    Args:
        A, alpha, B, beta, E: of (1).
        channels: a `Saturation` for each of what was rounded in training, by name.
        post: an `AfterTraining`, where weights are rounded after training.
        ceiling: of L, the loss of guessing: no network is worse, however few its bits.

    `bits` of its methods are one number for all channels or numbers by channel; a channel that is left out, and all of
    them with None, are in full precision.  Everything broadcasts.

    Example:
        >>> law = comparisons.PrecisionLaw.published()
        >>> round(law.optimal_bits(), 2)
        7.0
        >>> round(float(law.loss(30e6, 1.5e9, bits=16)), 3)
        4.103
    """

    A: float
    alpha: float
    B: float
    beta: float
    E: float
    channels: Mapping[str, Saturation] = field(default_factory=dict)
    post: AfterTraining | None = None
    ceiling: float = np.inf

    def __post_init__(self) -> None:
        for name in ("A", "alpha", "B", "beta", "ceiling"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")

    @classmethod
    def published(cls, numbers: str = "integer") -> PrecisionLaw:
        """With the constants of the source: of integers, or of weights that are "floating" point numbers."""
        exponent = 0.4965
        if numbers == "integer":
            channels = {
                "weights": Saturation(2.6745, 0.3037),
                "activations": Saturation(2.2102, 1.4072),
                "kv": Saturation(0.9578, 2.4185),
            }
        elif numbers == "floating":
            channels = {"weights": Saturation(2.8111, 0.1240)}
        else:
            raise ValueError(f'numbers={numbers!r} is unknown; choose "integer" or "floating".')
        after = AfterTraining(0.0598, 0.5068, 0.3439, 0.5907, 1.1277)
        return cls(4.299e3, exponent, 1.806e4, exponent, 2.7648, channels, after)

    def without_biases(self) -> PrecisionLaw:
        """The same with n_x = 0, as the source writes (2) in its main text."""
        return replace(self, channels={name: Saturation(each.gamma) for name, each in self.channels.items()})

    # ---- the law -----------------------------------------------------------------------------------------------------

    def effective_parameters(self, parameters: ArrayLike, bits: Bits = None) -> Array:
        """N_eff, (2)."""
        found = _require_positive("parameters", parameters)
        for name, value in self._by_channel(bits).items():
            found = found * self.channels[name].share(_require_positive(f"bits of {name}", value))
        return found

    def degradation(self, parameters: ArrayLike, tokens: ArrayLike, post: ArrayLike, bits: Bits = None) -> Array:
        """delta, (3), of weights rounded to `post` bits after training with `bits`.

        Raises:
            ValueError: a law without `post`; bits in training without C_x.
        """
        after, by_channel = self._after, self._by_channel(bits)
        found = after.loss(self.effective_parameters(parameters, bits), tokens, post)
        for name, value in by_channel.items():
            # more bits than what they are rounded to: less was prepared for
            more = np.maximum(np.asarray(value, np.float64) - np.asarray(post, np.float64), 0.0)
            if np.isinf(more).all():
                continue
            if name not in after.robust:
                raise ValueError(
                    f"rounding to {np.asarray(post)} bits after training with {name}={value} needs the constant C of "
                    f"{name}, which this law lacks; give AfterTraining(..., robust={{{name!r}: ...}}), or leave {name} "
                    "out: full precision."
                )
            found = found * -np.expm1(-after.robust[name] * more)
        return found

    def loss(
        self, parameters: ArrayLike, tokens: ArrayLike, bits: Bits = None, *, post: ArrayLike | None = None
    ) -> Array:
        """L, (1), with delta where weights are rounded to `post` bits after training."""
        effective, tokens = self.effective_parameters(parameters, bits), _require_positive("tokens", tokens)
        found = self.A * effective**-self.alpha + self.B * tokens**-self.beta + self.E
        found = found if post is None else found + self.degradation(parameters, tokens, post, bits)
        return np.asarray(np.minimum(found, self.ceiling))

    # ---- consequences ------------------------------------------------------------------------------------------------

    def optimal_bits(self, channels: Sequence[str] | None = None) -> float:
        """P of the smallest loss at any cost, (4), where these channels, by default all, have the same bits.

        Raises:
            UnresolvedError: fewer bits are better down to where the law ends.
            ValueError: names of other channels.
        """
        shared = self._named(channels)

        def slope(bits: float) -> float:
            return float(sum(bits / each.gamma * each.odds(bits) for each in shared)) - 1

        lowest, highest = self._interval(shared)
        if slope(lowest) <= 0:
            raise UnresolvedError(
                f"fewer bits are always better by this law, down to {lowest:.2g}, where it ends: (4) has no root.",
                lowest,
            )
        return float(brentq(slope, lowest, highest))

    def allocation(self, compute: float, bits: float | None = None) -> Allocation:
        """N, D and the loss at a cost C = (6 / 16) N D P and these bits, by default the best, (5)."""
        bits = self.optimal_bits() if bits is None else bits
        product = _check.positive("compute", compute) / (COST * _check.positive("bits", bits))
        share, both = float(self.effective_parameters(1.0, bits)), self.alpha + self.beta
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        parameters = balance * share ** (-self.alpha / both) * product ** (self.beta / both)
        tokens = product / parameters
        return Allocation(parameters, tokens, bits, float(self.loss(parameters, tokens, bits)))

    def bits_at_size(self, parameters: float, compute: float) -> Allocation:
        """P and D of the smallest loss of so many parameters at a cost, (6): bits grow with it."""
        product = _check.positive("compute", compute) / (COST * _check.positive("parameters", parameters))
        lowest, highest = self._interval(self._named(None))

        def loss(log_bits: float) -> float:
            bits = float(np.exp(log_bits))
            return float(self.loss(parameters, product / bits, bits))

        # the smallest of many, then close to it: the loss may be flat far from its minimum
        grid = np.linspace(np.log(lowest), np.log(highest), 400)
        best = int(np.argmin([loss(each) for each in grid]))
        ends = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
        found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": NEAR})
        bits = float(np.exp(found.x))
        return Allocation(parameters, product / bits, bits, float(found.fun))

    def critical_tokens(self, parameters: ArrayLike, post: ArrayLike) -> Array:
        """D beyond which more data make networks worse that are rounded to `post` bits after training, (7)."""
        after = self._after
        rounded = np.exp(np.asarray(post, np.float64) / after.gamma_bits - after.bias)
        grown = np.asarray(parameters, np.float64) ** after.gamma_parameters
        ratio = self.beta * self.B * grown * rounded / (after.gamma_data * after.scale)
        return np.asarray(ratio ** (1 / (after.gamma_data + self.beta)))

    def measured_share(self, parameters: ArrayLike, loss: ArrayLike, full: ArrayLike) -> Array:
        """N_eff / N, (8), of a measured loss at few bits and that of the same network in full precision."""
        n = np.asarray(parameters, np.float64)
        more = (np.asarray(loss, np.float64) - np.asarray(full, np.float64)) / self.A + n**-self.alpha
        with np.errstate(invalid="ignore"):  # of losses below any that the law has: nan
            return np.asarray(more ** (-1 / self.alpha) / n)

    # ---- checks ------------------------------------------------------------------------------------------------------

    @property
    def _after(self) -> AfterTraining:
        if self.post is None:
            raise ValueError("this law says nothing of rounding after training; give it post=AfterTraining(...).")
        return self.post

    def _by_channel(self, bits: Bits) -> dict[str, Any]:
        if bits is None:
            return {}
        if not isinstance(bits, Mapping):
            self._named(None)
            return dict.fromkeys(self.channels, bits)
        self._named(list(bits))
        return dict(bits)

    def _named(self, channels: Sequence[str] | None) -> list[Saturation]:
        names = list(self.channels) if channels is None else list(channels)
        if unknown := [name for name in names if name not in self.channels]:
            known = ", ".join(self.channels) or "no channels: nothing was rounded in training"
            raise ValueError(f"{unknown[0]!r} is none of the law's channels; it has {known}.")
        if not names and channels is None:
            raise ValueError("the law has no channels, so that bits do not matter; give it channels={'weights': ...}.")
        return [self.channels[name] for name in names]

    @staticmethod
    def _interval(shared: Sequence[Saturation]) -> tuple[float, float]:
        """From the bits at which a share vanishes to more than matter."""
        widest = max(each.gamma for each in shared)
        # exponents are held below LEAST: the law ends a little above the bits where a share would vanish
        lowest = max(each.gamma * (each.bias - LEAST) for each in shared)
        return max(lowest, NEAR * widest) * (1 + NEAR), max(lowest, 0.0) + WIDE * widest


def _require_positive(name: str, values: ArrayLike) -> Array:
    found = np.asarray(values, np.float64)
    if not (found > 0).all():
        raise ValueError(f"{name}={found} must be positive.")
    return found
