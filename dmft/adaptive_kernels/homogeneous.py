"""What the fixed points of gradient flow with weight decay ask of a problem: homogeneous layers, and a decay.

    f(s theta_l) = s f(theta)   for the weights of any layer l alone, s > 0        phi(h) = a_+ h, h > 0;  a_- h, h < 0

With it theta_l . df/dtheta_l = f for each of the L+1 layers, and where the flow has come to rest, where lambda theta =
gamma0^2 N sum_a Delta_a df_a/dtheta, f is regression with the kernel that the network has then
(`dmft.adaptive_kernels.flow`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmft.specs import Activation, GradientFlow, Problem
from dmft.specs.training.recurrence import RECURRENCE

PROBES = np.array([1e-3, 0.3, 1.0, 7.0, 40.0])
EQUAL = 1e-9  # relative, of numbers that are equal but for rounding


def slopes(activation: Activation) -> tuple[float, float]:
    """a_- and a_+ of a homogeneous activation.

    Raises:
        ValueError: another activation.

    Example:
        >>> slopes(dmft.relu())[0]
        0.0
    """
    below, above = (activation.both(np, sign * PROBES)[0] / (sign * PROBES) for sign in (-1.0, 1.0))
    if max(np.ptp(below), np.ptp(above)) > EQUAL * max(abs(below).max(), abs(above).max()):
        raise ValueError(
            f"activation {activation.name!r} is not homogeneous, phi(s h) = s phi(h) for s > 0: under weight decay its "
            "network at rest is no regression with its own kernel. Take relu, linear or a leaky ReLU "
            '(dmft.activation), or kind="bayes".'
        )
    return float(below[-1]) + 0.0, float(above[-1])


def slopes_at(h: NDArray[np.float64], slopes: tuple[float, float]) -> NDArray[np.float64]:
    """phi'(h), a_- at 0."""
    return np.where(h > 0, slopes[1], slopes[0])


def decay_of(problem: Problem) -> float:
    """lambda = P times the weight decay: of a flow d theta/dt = -gamma0^2 N d(P loss)/d theta - lambda theta.

    Raises:
        ValueError: no decay, one that changes during training, batches, or an optimiser that is not linear.
    """
    training = problem.training
    if training.batches is not None:
        raise ValueError("batches: training on them never comes to rest; take all samples at every step.")
    if training.stepping != RECURRENCE and not isinstance(training, GradientFlow):
        raise ValueError(
            f"{type(training).__name__} is no linear optimiser: where it comes to rest its weights are not in "
            "proportion to gradients, and predictions are no regression with the NTK; take dmft.GradientDescent(..., "
            "weight_decay=...)."
        )
    found = [_decay(A, b) for A, b in zip(*training.recurrences, strict=True) if b.any()]
    if min(found) <= 0:
        flow = isinstance(training, GradientFlow)
        raise ValueError(
            f"{type(training).__name__} has weight decay {min(found):g}: without decay a network at rest remembers its "
            "initial weights, and is no regression with the kernel that it has then; "
            + ("take dmft.GradientDescent(..., weight_decay=...)." if flow else "give a positive weight_decay.")
        )
    if np.ptp(found) > EQUAL * max(found):
        raise ValueError(
            f"weight decay goes from {found[0]:g} to {found[-1]:g} during training: a network comes to rest under one "
            "decay; give that alone."
        )
    return problem.task.n_train * found[-1]


def require_one_output(problem: Problem) -> None:
    """ValueError for several."""
    if problem.task.outputs:
        raise ValueError(f"{problem.task.targets.shape[1]} outputs: the flow is solved for one; give y (sample,).")


def _decay(A: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """lambda for which theta = D / lambda is at rest under x = A x + b D; 0 where nothing fades."""
    fading = np.eye(len(b)) - A
    if np.linalg.matrix_rank(fading) < len(b):
        return 0.0
    return float(1 / np.linalg.solve(fading, b)[0])
