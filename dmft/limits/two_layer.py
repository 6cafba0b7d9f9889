"""The limit of a network with one hidden layer and phi(h) = h: exact for any data, number of outputs, loss, optimiser.

    h_mu = A x_mu,  f_mu = w^T h_mu / (gamma0 N),  x_mu in D' coordinates, x_mu . x_a = K^x_{mu a},  A (N, D'), w (N, C)

Neurons enter through Theta = [A | w], (N, D' + C), alone, and every update multiplies it from the right:

    D(t) = Theta J,    J = gamma0/B [[0, U], [U^T, 0]],    U = sum_{a in batch} x_a Delta_a^T          (D', C)

with zero columns where A or w is frozen; a bias of scale sigma is one more coordinate of x, of value sigma.  With
Theta = Theta_0 M, every optimiser (`dmft.specs.training`) acts on M, from M(0) = 1, as on theta:

    X(t+1) = A_t X(t) + b_t M(t) J(t)      X = (M, slots), the columns of frozen layers staying as they are
    GradientFlow      dS/dt = eta (J^T S + S J)
        "euler"       M(t+1) = M(t) (1 + eta dt J),   f(t+1) = f(t) + (eta dt/P) K(t) Delta(t)

where S = Theta^T Theta / N = M^T S_0 M with S_0 = Theta_0^T Theta_0 / N, which is 1 in the limit, or made of the
variances at initialisation.  The order parameters are its blocks:

    Phi_{mu a} = x_mu^T S_AA x_a     G_{cc'} = (S_ww)_{cc'}     f_mu = S_wA x_mu / gamma0
    K_{mu c, a c'} = G_{cc'} K^x_{mu a} + delta_{cc'} Phi_{mu a}              (terms of trained layers; K^x with bias)

Source: elimination of the neurons in Bordelon & Pehlevan 2022, section on deep linear networks.  For one sample with
K^x = 1, y = 1, squared loss: f = sinh(2 gamma0 v) / gamma0 with v' = eta Delta, and K = 2 sqrt(1 + gamma0^2 f^2).

Assumptions and approximations: none for discrete steps.  The flow is integrated to a relative tolerance of 1e-10.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import integrate, linalg

from dmft import schema
from dmft.limits.result import DivergenceCheck, exact_result
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.specs import Problem, linear, loss
from dmft.specs.loss import LOSSES
from dmft.specs.networks import Network, perceptron
from dmft.specs.parameterization import (
    batch_scale,
    initial_deviations,
    output_scale,
    require_limit,
    trained_layers,
    with_bias,
)

Array = NDArray[np.float64]

RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-10, 1e-12


class State(NamedTuple):
    """At one step: gram, S (D' + C, D' + C); output, f (sample, output)."""

    gram: Array
    output: Array


@usual_errors
def two_layer_linear(problem: Problem, *, save_steps: Iterable[int] | None = None) -> xr.Dataset:
    """The limit of a linear network with one hidden layer, from its Gram matrix alone.

    Args:
        problem: `dmft.MLP(depth=1, activation=dmft.linear())` (or a residual network of that depth, which is the same)
            on any task, with any loss and training; the hinge loss not with the exact flow.
        save_steps: the steps to record; all of 0..T by default.

    Returns:
        Dataset of kind "limit" (`dmft.schema`), with standard errors of zero: prediction, loss, test_loss, for classes
        accuracy and test_accuracy, feature_kernel, gradient_kernel, ntk.

    Raises:
        ValueError, TypeError: another network; hinge loss with the exact flow; arguments out of range.
        DivergenceError: learning rates too large.
        MemoryEstimateError: kernels that do not fit in memory.

    Example:
        >>> linear = dmft.vary(problem, network=[dmft.MLP(1, dmft.linear())])[0]
        >>> dmft.two_layer_linear(linear)["loss"].dims
        ('step',)
    """
    _check_problem(problem)
    steps = schema.saved_steps(problem, save_steps)
    _require_memory(problem, len(steps))
    x = _coordinates(problem)
    flow = problem.training.stepping.approximates
    states = _flow(problem, x, steps) if flow else _descent(problem, x, steps)
    seen, single = problem.observed, not problem.task.outputs
    x, dimension, outputs = x[seen], x.shape[1], problem.task.targets.shape[1]
    predictions, features, gradients = [], [], []
    for state in states:
        predictions.append(state.output[seen])
        features.append(x @ state.gram[:dimension, :dimension] @ x.T)
        gradients.append(state.gram[dimension:, dimension:])
    feature, gradient = np.array(features), np.array(gradients)
    first, readout = trained_layers(_network(problem))
    ntk = np.einsum("tcd,ma->tmcad", first * gradient, x @ x.T)
    ntk += np.einsum("cd,tma->tmcad", readout * np.eye(outputs), feature)
    gradient = np.broadcast_to(gradient[:, None, :, None, :], ntk.shape)  # the same for all samples
    kernels = {
        "feature_kernel": feature[None],
        "gradient_kernel": (gradient[:, :, 0, :, 0] if single else gradient)[None],
        "ntk": ntk[:, :, 0, :, 0] if single else ntk,
    }
    method = "Gram matrix, " + ("exact gradient flow" if flow else "exact discrete dynamics")
    attrs = {"producer": "dmft.two_layer_linear", "method": method}
    return exact_result(problem, np.array(predictions), kernels, steps=steps, attrs=attrs)


def _coordinates(problem: Problem) -> Array:
    """x (sample, coordinate), in at most as many coordinates as samples or features, with x.x' = K^x + bias^2."""
    scaled = with_bias(problem.network.inputs(problem.task.x), problem.network.bias)
    if len(scaled) >= scaled.shape[1]:
        return scaled
    triangular = linalg.qr(scaled.T, mode="r")[0]
    return np.array(triangular[: len(scaled)].T, dtype=np.float64)


def _generator(x: Array, delta: Array, network: Network) -> Array:
    """J, from x (sample, coordinate) and Delta (sample, output) of a batch."""
    U = batch_scale(network.gamma0, len(x)) * x.T @ delta
    rows, columns = U.shape
    return _trained(np.block([[np.zeros((rows, rows)), U], [U.T, np.zeros((columns, columns))]]), network, columns)


def _trained(J: Array, network: Network, outputs: int) -> Array:
    """J (..., D' + C) with zero columns for frozen layers."""
    first, readout = trained_layers(network)
    kept: Array = J * np.repeat([first, readout], [J.shape[-1] - outputs, outputs])
    return kept


def _output(gram: Array, x: Array, gamma0: float) -> Array:
    """f (sample, output), from the Gram matrix."""
    f: Array = output_scale(gamma0) * x @ gram[: x.shape[1], x.shape[1] :]
    return f


def _start(problem: Problem, x: Array) -> Array:
    """S_0 (D' + C, D' + C)."""
    found = initial_deviations(_network(problem), x, problem.network.bias)
    root = found.weights[0] * np.eye(x.shape[1]) + found.extra * np.outer(found.along, found.along)
    return linalg.block_diag(root @ root, found.weights[-1] ** 2 * np.eye(problem.task.targets.shape[1]))


def _descent(problem: Problem, x: Array, steps: NDArray[np.int64]) -> Iterator[State]:
    """States at the recorded steps, of the recurrence."""
    training, network, y, batches = problem.training, _network(problem), problem.task.targets, problem.batches
    by_ntk, last = training.stepping.follows_output, int(steps[-1])
    check, f, start, size = DivergenceCheck(problem), np.zeros_like(y), _start(problem, x), x.shape[1] + y.shape[1]
    change, b = training.recurrences.step
    X = np.zeros((b.shape[1], size, size))
    X[0] = np.eye(size)
    for t in range(last + 1):
        M = X[0]
        gram = M.T @ start @ M
        f = f if by_ntk else _output(gram, x, network.gamma0)
        if t in steps:
            yield State(gram, f)
        batch = batches[min(t, training.steps - 1)]  # after the last update, look at the samples it was made from
        check(t, f[batch], y[batch])
        if t < last:
            delta = loss.descent(np, problem.loss, f[batch], y[batch])
            if by_ntk:
                f = f + b[t, 0] / len(batch) * _kernel_times(gram, x, x[batch], delta, network)
            pushed = np.multiply.outer(b[t], M @ _generator(x[batch], delta, network))
            X = _trained(np.tensordot(change[t], X, 1) + pushed, network, y.shape[1])
            X[0] += M


def _kernel_times(gram: Array, x: Array, trained: Array, delta: Array, network: Network) -> Array:
    """sum_{a c'} K_{mu c, a c'} Delta_{a c'}, (sample, output), for the samples `trained` of a batch."""
    d, (first, readout) = x.shape[1], trained_layers(network)
    pulled = trained.T @ delta
    moved: Array = x @ (first * pulled @ gram[d:, d:] + readout * gram[:d, :d] @ pulled)
    return moved


def _flow(problem: Problem, x: Array, steps: NDArray[np.int64]) -> Iterator[State]:
    """States at the recorded steps, of the exact flow; explicit, for its fastest rates are those of its steps."""
    n, network, times = problem.task.n_train, _network(problem), problem.training.times[steps]
    y, size = problem.task.targets[:n], x.shape[1] + problem.task.targets.shape[1]

    def slope(_: float, flat: Array) -> Array:
        gram = flat.reshape(size, size)
        delta = loss.descent(np, problem.loss, _output(gram, x[:n], network.gamma0), y)
        half = _generator(x[:n], delta, network).T @ gram
        return np.ravel(half + half.T)

    start = _start(problem, x)
    if times[-1] == 0:
        yield State(start, _output(start, x, network.gamma0))
        return
    solved = integrate.solve_ivp(
        slope,
        (0.0, float(times[-1])),
        start.ravel(),
        method="DOP853",
        t_eval=times,
        rtol=RELATIVE_TOLERANCE,
        atol=ABSOLUTE_TOLERANCE,
    )
    if not solved.success:
        raise ArithmeticError(f"the flow could not be integrated to time {times[-1]:g}: {solved.message}")
    for flat in solved.y.T:
        gram = flat.reshape(size, size)
        yield State(gram, _output(gram, x, network.gamma0))


def _network(problem: Problem) -> Network:
    return perceptron(problem.network, "two_layer_linear", "use dmft.solve")


def _check_problem(problem: Problem) -> None:
    if not isinstance(problem, Problem):
        raise TypeError(f"two_layer_linear expects a dmft.Problem, got {type(problem).__name__}.")
    network, training = _network(problem), problem.training
    require_limit(network)
    training.require_linear("closed forms")
    if network.depth != 1 or network.activation != linear():
        raise ValueError(
            f"two_layer_linear is for depth=1 and activation dmft.linear(); this network has depth={network.depth} and "
            f"{network.activation.name} of scale {network.activation.scale:g}. Use dmft.solve."
        )
    if LOSSES[problem.loss].jumps and training.stepping.approximates:
        raise ValueError(
            f'loss="{problem.loss}" has a jump at the margin, over which the exact flow is not integrated; take '
            'GradientFlow(..., scheme="euler") or GradientDescent with a small learning rate.'
        )


def _require_memory(problem: Problem, recorded: int) -> None:
    samples, outputs = len(range(problem.task.n_samples)[problem.observed]), problem.task.targets.shape[1]
    memory.require(
        8 * recorded * samples**2 * (3 * outputs**2 + 2),
        limit=None,
        available=memory.available_on_host(),
        what=f"kernels of {samples} samples and {outputs} outputs at {recorded} steps",
        ways_out="record fewer steps with save_steps, or take fewer samples",
    )
