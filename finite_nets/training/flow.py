"""Gradient flow d theta / dt = eta D of networks, on a grid of times with steps dt; rate = eta dt, tau = rate / P.

"euler": theta' = theta + rate D(Delta(f)), and an output of its own that follows the network's NTK on all samples,

    f' = f + tau K Delta(f),      f(0) the network's output

"rosenbrock": ROS2 (Verwer, Spee, Blom & Hundsdorfer 1999, SIAM J. Sci. Comput. 20, 1456), of second order for any
approximate Jacobian A of the direction, and L-stable.  With A = -J^T H J of Gauss and Newton (J = df/dtheta, H the
curvature of the loss) all linear systems live in the space of training samples and outputs:

    a = (1 + gamma tau H K)^-1 Delta                            theta* = theta + rate D(a)
    b = (1 + gamma tau H K)^-1 (gamma tau H K* Delta* + 2 a)    theta' = theta + rate (D((3a - b) / 2) + D*(Delta* / 2))

gamma = 1 - 1/sqrt(2); D(a) is the direction with a in the place of Delta, a star stands for theta*, and K* is the NTK
between theta and theta*, with the features and gradients of both.

Assumptions: full batch.  Where the fastest modes are not resolved by the steps, what is neglected of the Jacobian (the
curvature of f) must be small beside 1/rate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmft.specs import loss

if TYPE_CHECKING:
    from finite_nets.training.state import Fields, State, W
    from finite_nets.training.trainer import Training

GAMMA = 1 - 1 / math.sqrt(2)


def euler(trainer: Training[W], state: State[W], seen: Fields, trained: Fields, t: int) -> None:
    """Step t, of first order, in place, from the fields of all samples and those of the training samples."""
    rate = float(trainer.training.rates[t])
    K = trainer.tangent_kernel(state, seen, trained)
    assert state.carried is not None  # set by the first pass
    pulled = K @ trained.delta.flatten(1)[..., None]
    state.carried = state.carried + rate / trainer.n_train * pulled.reshape_as(state.carried)
    trainer.push(state, state.weights, trained, trained.delta, rate)


def rosenbrock(trainer: Training[W], state: State[W], _: Fields, seen: Fields, t: int) -> None:
    """Step t, of second order, in place; `seen` are the fields of the training samples."""
    rate = float(trainer.training.rates[t])
    tau = rate / trainer.n_train
    curvature: Tensor = loss.curvature(torch, trainer.loss, seen.output, seen.target).double()

    def damped(v: Tensor) -> Tensor:
        """gamma tau H v, for columns (member, event, column)."""
        by_sample = v.reshape(*curvature.shape[:3], -1)
        return GAMMA * tau * (curvature @ by_sample).reshape_as(v)

    K = trainer.tangent_kernel(state, seen, seen).double()
    factors, pivots, _ = torch.linalg.lu_factor_ex(torch.eye(K.shape[-1], dtype=K.dtype, device=K.device) + damped(K))

    def solved(v: Tensor) -> Tensor:
        solution: Tensor = torch.linalg.lu_solve(factors, pivots, v)
        return solution

    def along(fields: Fields, coefficients: Tensor) -> None:
        trainer.push(state, state.weights, fields, coefficients.reshape_as(fields.delta).to(fields.delta.dtype), rate)

    a = solved(seen.delta.double().flatten(1)[..., None])
    along(seen, a)
    met = trainer.meet(0, everything=False)
    _, trial = trainer.evaluate(state, met, gradients=False)
    response = trainer.tangent_kernel(state, seen, trial).double() @ trial.delta.double().flatten(1)[..., None]
    b = solved(damped(response) + 2 * a)
    # from theta*, which the weights are at
    along(seen, (a - b) / 2)
    along(trial, trial.delta / 2)
