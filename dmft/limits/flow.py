"""Gradient flow with a frozen kernel: I(t) = int_0^t Delta(s) ds, in units where

df/dt = (1/P) K Delta(f),   f(0) = 0,   hence   f = (1/P) K I,   dI/dt = Delta(K I / P)

squared              I = V phi(lambda t) V^T y,   phi(q) = P (1 - exp(-q/P)) / lambda,   K = V lambda V^T
logistic, cross-     an ordinary differential equation, integrated to a relative tolerance of 1e-10 (LSODA)
entropy
hinge                Delta = alpha y with alpha = 1 below the margin y f = 1, 0 above it and between 0 and 1 at it:
                     the flow is that of the subgradient of least norm, min |sum_a alpha_a y_a df_a/dtheta|, which
                     keeps samples at the margin where they would be pushed to and fro.  alpha is constant
                     from one sample's arrival at the margin to the next one's, so that f is linear in between.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, linalg, optimize

from dmft.specs import loss as losses

Array = NDArray[np.float64]

RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-10, 1e-12
AT_MARGIN = 1e-12  # distance from the margin that is rounding
EVENTS = 1000  # arrivals at the margin for each sample, after which something is wrong


def integrated_descent(loss: str, kernel: Array, y: Array, times: Array) -> Array:
    """I at the given times.

    Args:
        loss: one of `dmft.specs.loss.LOSSES`.
        kernel: K of the training samples, (sample, sample_2), the same for each output.
        y: targets (sample, output).
        times: (step,), increasing, in units of the flow: eta t.

    Returns:
        (step, sample, output).
    """
    if losses.LOSSES[loss].quadratic:
        return _squared(kernel, y, times)
    if losses.LOSSES[loss].jumps:
        return np.stack([_hinge(kernel, column, times) for column in y.T], axis=-1)
    return _integrated(loss, kernel, y, times)


def _squared(kernel: Array, y: Array, times: Array) -> Array:
    values, V = linalg.eigh(kernel)
    rates = np.maximum(values, 0)[:, None] / len(y)
    # (1 - exp(-rate t)) / rate, which is t where the rate is zero
    decayed = -np.expm1(-rates * times[:, None, None])
    lengths = np.where(rates > 0, decayed / np.where(rates > 0, rates, 1), times[:, None, None])
    solution: Array = V @ (lengths * (V.T @ y))
    return solution


def _integrated(loss: str, kernel: Array, y: Array, times: Array) -> Array:
    per_sample = kernel / len(y)
    shape = y.shape

    def slope(_: float, flat: Array) -> Array:
        f = per_sample @ flat.reshape(shape)
        return np.ravel(losses.descent(np, loss, f, y))

    def jacobian(_: float, flat: Array) -> Array:
        curvature = losses.curvature(np, loss, per_sample @ flat.reshape(shape), y)
        blocks: Array = -np.einsum("acd,ab->acbd", curvature, per_sample)
        return blocks.reshape(y.size, y.size)

    if times[-1] == 0:
        return np.zeros((1, *shape))
    solved = integrate.solve_ivp(
        slope,
        (0.0, float(times[-1])),
        np.zeros(y.size),
        method="LSODA",
        t_eval=times,
        jac=jacobian,
        rtol=RELATIVE_TOLERANCE,
        atol=ABSOLUTE_TOLERANCE,
    )
    if not solved.success:
        raise ArithmeticError(f"the flow could not be integrated to time {times[-1]:g}: {solved.message}")
    solution: Array = solved.y.T.reshape(len(times), *shape)
    return solution


def _hinge(kernel: Array, y: Array, times: Array) -> Array:
    """For one output: y (sample,); from event to event."""
    n = len(y)
    values, V = linalg.eigh(kernel)
    forces = y[:, None] * V * np.sqrt(np.maximum(values, 0))  # row a: y_a df_a/dtheta, in as many coordinates
    margin, integral, now = np.zeros(n), np.zeros(n), 0.0
    recorded: list[Array] = []
    for _ in range(EVENTS * n):
        alpha = _least_norm(forces, margin)
        speed = forces @ (alpha @ forces) / n
        speed[(abs(margin - 1) <= AT_MARGIN) & (alpha > 0) & (alpha < 1)] = 0
        # those that move towards the margin, not those that leave it
        towards = (abs(margin - 1) > AT_MARGIN) & (speed * (1 - margin) > 0)
        waits = np.full(n, np.inf)
        waits[towards] = (1 - margin[towards]) / speed[towards]
        arrival = now + waits.min()
        while len(recorded) < len(times) and times[len(recorded)] <= arrival:
            recorded.append(integral + (times[len(recorded)] - now) * alpha * y)
        if len(recorded) == len(times):
            return np.array(recorded)
        integral = integral + waits.min() * alpha * y
        margin = np.where(waits == waits.min(), 1.0, margin + waits.min() * speed)
        now = arrival
    raise ArithmeticError(f"samples kept crossing the margin {EVENTS * n} times; use training with discrete steps.")


def _least_norm(forces: Array, margin: Array) -> Array:
    """alpha (sample,): 1 below the margin, 0 above, at it the one in [0, 1] of least |sum_a alpha_a forces_a|."""
    alpha = (margin < 1 - AT_MARGIN).astype(float)
    at = abs(margin - 1) <= AT_MARGIN
    if at.any():
        found = optimize.lsq_linear(forces[at].T, -(alpha @ forces), bounds=(0, 1), method="bvls")
        alpha[at] = found.x
    return alpha
