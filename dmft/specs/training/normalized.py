"""Normalised descent: steps along the gradient, of a length that does not depend on it.

    V <- beta V + G / max(n, floor)      theta <- (1 - eta lambda) theta + eta gamma0 s V

with the scaled gradients G of `dmft.specs.training.entrywise`.  n is the norm of the gradient of a weight, or of all of
them together, as it has a limit: a sum over what comes in, an average over the neurons i of the population that it ends
in,

    n^2 = sum_j s_j^2 <G_ij^2>_i      of one weight, of a matrix <G_ij^2>_ij: |dloss/dtheta|^2 = n^2 / (gamma0^2 N)
    n^2 = sum of those of all weights, each times N_p / N of its population

The second is -dloss/dt under gradient descent of unit rate, sum_ab Delta_a K_ab Delta_b / P^2.  A positive floor is
clipping by the norm: gradient descent with the rate eta / floor, whose gradient is clipped at n = floor.

A factor in front of the gradient leaves the learned part of a matrix of low rank: in orthonormal bases of what it has
met, G = Q_B C Q_F^T, <G_ij^2> is |C|^2, and the limit costs what that of gradient descent does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dmft.specs import _check
from dmft.specs.training.entrywise import Entrywise

NORMS = ("weight", "all")


@dataclass(frozen=True)
class NormalizedDescent(Entrywise):
    """Gradient descent whose gradient is divided by its norm, or clipped by it.

    Args:
        learning_rate: eta, one number or one for each step; a step moves h by about eta gamma0.
        steps: number T of updates.
        norm: "weight": of each weight by its own norm (every layer moves as far as any other); "all": of all by that of
            all of them together, in units of weights N(0, 1).
        floor: a norm below this counts as this, so that steps end where training does: clipping by the norm.
        momentum: beta of the heavy ball, of what has been divided.
        weight_decay: lambda, decoupled.
        batches, observe: as of `dmft.Adam`.

    Raises:
        ValueError, TypeError: naming the argument.

    Source: You, Gitman & Ginsburg 2017 (norms by layer); Cutkosky & Mehta 2020 (momentum); Pascanu, Mikolov & Bengio
    2013 (clipping).

    Example:
        >>> descent = dmft.NormalizedDescent(0.1, steps=3, floor=0.5)
        >>> descent.factor(np, np.array([4.0, 0.01, 0.0])).tolist()  # of squared norms
        [0.5, 2.0, 2.0]
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    norm: str = "weight"
    floor: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    batches: tuple[tuple[int, ...], ...] | None = None
    observe: str = "all"
    by_matrix = True
    derivable = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} is unknown; choose one of {', '.join(NORMS)}.")
        object.__setattr__(self, "floor", _check.nonnegative("floor", self.floor))
        self._check_fractions("momentum")

    @property
    def slots(self) -> int:  # type: ignore[override]
        return int(self.momentum > 0)

    @property
    def divided_by(self) -> str:  # type: ignore[override]
        return self.norm

    @property
    def flips(self) -> bool:
        return not (self.floor or self.momentum)

    def factor(self, xp: Any, square: Any) -> Any:
        """1 / max(n, floor) of n^2, and 0 where that is 0: no gradient was met there."""
        square = xp.where(square <= self.floor**2, self.floor**2, square)  # what is no number remains none
        live = square != 0
        return xp.where(live, 1 / xp.sqrt(xp.where(live, square, 1.0)), 0.0)

    def update(self, xp: Any, t: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:
        del t
        return self.matrix(xp, state, G)

    def matrix(self, xp: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:
        """(state, V) of a whole weight, whose gradient has been divided by the norm."""
        del xp
        if not self.momentum:
            return tuple(state), G
        V = self.momentum * state[0] + G
        return (V,), V
