"""Causal functions of two times, one row at a time, and the site of the data that all models share.

Responses R(t, s) are lower triangular, correlations C(t, s) symmetric, products are matrix products over time.  What
happens at step t needs rows up to t alone: row t of every matrix is found once, by products of a row with matrices,
O(t^2), so that T steps take O(T^3).

    (A B)[t] = A[t] B      (R C R^T)[t] = (R[t] C) R^T      ((1 - K)^{-1})[t] = e_t + K[t] (1 - K)^{-1}, K strict

The data (residuals v1 of P samples, or of the batch) answer to the errors that they measure:

    v1 = u1 + eps + R_02 q,   u1 ~ GP(0, C_0)    q = v1 where all samples are seen at each step
                                                q = m v1, <m> = 1, Var m = P/B: B of P are drawn with replacement
    R_1 = (1 - R_02)^{-1}
    C_1 = <v1 v1> = R_1 (C_0 + sigma^2) R_1^T + (R_1 - 1) diag(n) (R_1 - 1)^T     n(t) = (P/B) C_1(t,t), drawn; else 0
    U   = <q q>/P = [ R_1 (C_0 + sigma^2) R_1^T + R_1 diag(n) R_1^T ] / P
    one pass, B fresh samples at each step: R_1 = 1,  U(t,s) = delta_ts (C_0(t,t) + sigma^2)/B
    population: R_1 = 1,  U = 0

    C_0   correlation of errors               R_02  response of errors to the data's noise, over P
    U     of the noise of the gradient, times lambda_k in mode k         sigma^2  variance of the labels' noise

Source: cavity method; the multiplicative noise m is independent between steps, so that responses do not see it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dmft.errors import DIVERGED, DivergenceError

Array = NDArray[np.float64]


def set_symmetric(C: Array, t: int, row: Array) -> None:
    """Put row t, at times 0 .. t, into a correlation."""
    C[t, : t + 1] = row
    C[: t + 1, t] = row


def between(row: Array, C: Array, R: Array) -> Array:
    """(R C R^T)[t, :t+1] of row = R[t, :t+1], where R has its rows up to t."""
    n = len(row)
    return np.asarray((row @ C[:n, :n]) @ R[:n, :n].T)


def inverse_row(K_row: Array, inverse: Array) -> Array:
    """((1 - K)^{-1})[t, :t+1] of K[t, :t], where the inverse has its rows up to t - 1."""
    t = len(K_row)
    row = np.ones(t + 1)
    row[:t] = K_row @ inverse[:t, :t]
    return row


def require_finite_loss(t: int, loss: float, initial: float, what: str) -> None:
    """DivergenceError where a loss has exploded."""
    if not loss <= DIVERGED * max(initial, 1.0):
        raise DivergenceError(
            f"the theory diverges at step {t}: test loss {loss:.3g} (initially {initial:.3g}). {what}"
        )


@dataclass
class DataSite:
    """The data's response and correlations, rows up to the present.

    steps: T, the number of times.  samples: P of a fixed set, None for fresh data.  batch: B, None for all.
    noise: sigma^2.  Sizes are in any one unit, as those of R_02 and U.
    """

    steps: int
    samples: float | None
    batch: float | None
    noise: float
    response: Array = field(init=False)
    residual: Array = field(init=False)
    gradient_noise: Array = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.steps, self.steps)
        self.response, self.residual, self.gradient_noise = np.eye(self.steps), np.zeros(shape), np.zeros(shape)
        self._errors, self._plain, self._drawn = np.zeros(shape), np.zeros(shape), np.zeros(self.steps)

    def append(self, t: int, errors: Array, fed_back: Array) -> None:
        """Row t: `errors` C_0[t, :t+1] and, of a fixed set, `fed_back` R_02[t, :t]."""
        set_symmetric(self._errors, t, errors + self.noise)
        if self.samples is None:
            if self.batch is None:
                set_symmetric(self.residual, t, self._errors[t, : t + 1])
            else:
                self.residual[t, t] = self._errors[t, t]
                self.gradient_noise[t, t] = self._errors[t, t] / self.batch
            return
        R = self.response
        R[t, : t + 1] = inverse_row(fed_back, R)
        set_symmetric(self._plain, t, between(R[t, : t + 1], self._errors, R))
        drawn = self._drawn[: t + 1]
        change = R[: t + 1, : t + 1] - np.eye(t + 1)
        set_symmetric(self.residual, t, self._plain[t, : t + 1] + (change[t] * drawn) @ change.T)
        if self.batch is not None:
            self._drawn[t] = self.samples / self.batch * self.residual[t, t]
        noise = self._plain[t, : t + 1] + (R[t, : t + 1] * drawn) @ R[: t + 1, : t + 1].T
        set_symmetric(self.gradient_noise, t, noise / self.samples)
