"""Ensembles of random features: the test loss split into bias, and variances over features and data.

Two models of random features that share the data alone have no C_3/N in equations (8) and (10) of
`dmft.random_data.random_features`; that share the features alone, no C_1/P; neither, both: C_0 = c c' S[lambda w*^2],
the bias.  With E_A x E_D models averaged (draws of features times sets of data)

   (11) L = B + V_A/E_A + V_D/E_D + V_AD/(E_A E_D),   V_A = L_D - B, V_D = L_A - B, V_AD = L - L_A - L_D + B

where L_A is the loss with features averaged out and L_D that with data averaged out.

    B bias      V_A, V_D, V_AD  variances of features, of data, of both together

Source: B. Bordelon, A. Atanasov, C. Pehlevan, arXiv:2402.01092.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.random_data.equivalents import Wishart
from dmft.random_data.random_features import (
    SHARED,
    checked,
    correlations,
    flow_at,
    on_circle,
    require_stable,
)
from dmft.random_data.transforms import Talbot
from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BiasVariance:
    """Excess test loss and its parts, (step,): of one model, bias, variances of features, of data, of both."""

    loss: Array
    bias: Array
    of_features: Array
    of_data: Array
    of_both: Array

    def ensemble(self, features: int, data: int) -> Array:
        """The loss (11) of the average over E_A draws of features times E_D of data."""
        E_A, E_D = _check.integer("features", features, minimum=1), _check.integer("data", data, minimum=1)
        return self.bias + self.of_features / E_A + self.of_data / E_D + self.of_both / (E_A * E_D)

    def at(self, steps: NDArray[np.int64]) -> BiasVariance:
        """The parts at some of the steps."""
        return BiasVariance(*(getattr(self, each.name)[steps] for each in fields(self)))


def bias_variance(
    spectrum: Spectrum,
    *,
    steps: int | None = None,
    learning_rate: float = 1.0,
    momentum: float = 0.0,
    times: Sequence[float] | Array | None = None,
    features: float | None = None,
    samples: float | None = None,
    noise: float = 0.0,
) -> BiasVariance:
    """The excess test loss split into bias and variances over features and data.

    Args:
        spectrum, features, samples, noise: as of `gradient_descent`.
        steps, learning_rate, momentum: of gradient descent;
        times: of a flow, in place of these.

    Example:
        >>> from dmft.random_data import power_law
        >>> split = bias_variance(power_law(60, 1.2, 1.5), times=[10.0], features=15, samples=24, noise=0.1)
        >>> bool(split.ensemble(8, 8)[0] < split.ensemble(8, 1)[0] < split.loss[0])
        True
    """
    N, P = checked(features, samples, noise, learning_rate, momentum)
    parts: list[Array]
    if times is not None:
        t = _check.finite_array("times", times, ("time",))
        rule = Talbot()
        parts = [
            np.array([flow_at(s, spectrum, N, P, noise, rule, shared)[0] if s else spectrum.signal for s in t])
            for shared in SHARED
        ]
    else:
        steps = _check.integer("steps", steps, minimum=1)
        require_stable(learning_rate, momentum, spectrum, Wishart(P) * Wishart(N))
        circle, sums = on_circle(spectrum, steps, learning_rate, momentum, N, P)
        pairs: list[Any] = [correlations(sums, N, P, noise, shared)[0] for shared in SHARED]
        parts = [np.diagonal(circle.two_times(C0)).copy() for C0 in pairs]
    L, L_A, L_D, B = parts
    return BiasVariance(L, B, L_D - B, L_A - B, L - L_A - L_D + B)
