"""Every power of N, D and gamma0 in a network (mean-field / mu-parameterization).

Conventions (Bordelon & Pehlevan 2022; Yang & Hu 2021), for L hidden layers of width N on P training inputs in R^D:

    h^1 = W^0 x / sqrt(D)      h^{l+1} = W^l phi(h^l) / sqrt(N)      f = w . phi(h^L) / (gamma0 N)
    loss = (1/P) sum_mu ell(f_mu, y_mu)      theta <- theta - eta gamma0^2 N dloss/dtheta      all weights iid N(0, 1)

    parameter   shape     enters the forward pass with   one step of gradient descent adds
    W^0         (N, D)    1 / sqrt(D)                    c sum_a Delta_a g^1_a x_a^T / sqrt(D)
    W^l         (N, N)    1 / sqrt(N)                    c sum_a Delta_a g^{l+1}_a phi(h^l_a)^T / sqrt(N)
    w           (N,)      1 / (gamma0 N)                 c sum_a Delta_a phi(h^L_a)

with Delta = -d ell / d f, the backward fields g^l = gamma0 N df/dh^l, and

    c = eta gamma0 / P          (P samples in the batch of a step)

The right column is the middle one: df/dW^l = g^{l+1} phi^T / (gamma0 N sqrt(N)), and the rate eta gamma0^2 N makes
eta gamma0 / P of the prefactors.  In kernels (averages over neurons) no power of N is left:

    f = <z^L phi(h^L)> / gamma0      h^{l+1} += c Delta_a <phi^l phi^l_a> g^{l+1}_a      K^x = x . x' / D

(Averages over neurons, < >, are the one place where 1/N stands elsewhere.)

A residual network (h^{l+1} = h^l + b W^l phi(h^l) / sqrt(N), `branch_scale` b) has b / sqrt(N) in the place of
1 / sqrt(N) in the row of W^l.  For several outputs Delta and the readout gain an index, and sums run over it.

Symbols: eta learning rate, gamma0 richness (gamma0 -> 0 is the lazy limit), P training samples, D input dimension.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def input_scale(dimension: int) -> float:
    """1/sqrt(D): factor of W^0 x."""
    return 1.0 / math.sqrt(dimension)


def hidden_scale(width: int) -> float:
    """1/sqrt(N): factor of W^l phi(h^l), and of W^l^T g^{l+1}."""
    return 1.0 / math.sqrt(width)


def output_scale(gamma0: Any, width: int = 1) -> Any:
    """1/(gamma0 N): factor of the sum w . phi(h^L).  With `width=1`, the factor of an average
    over neurons.  (`gamma0` may be a number of any array library.)"""
    return 1.0 / (gamma0 * width)


def batch_scale(gamma0: float, batch: int) -> float:
    """gamma0 / P: factor of Delta_a in every rank-one update, for P samples in a batch; c is the learning rate times
    this."""
    return gamma0 / batch


def parameter_rate(learning_rate: float, gamma0: float, width: int) -> float:
    """eta gamma0^2 N: the rate that multiplies dloss/dtheta for every parameter."""
    return learning_rate * gamma0**2 * width


def input_kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """K^x = x x^T / D between all rows of `x` (sample, feature)."""
    return (x @ x.T) * input_scale(x.shape[1]) ** 2
