"""The lazy limit gamma0 -> 0 (after N -> infinity): kernels stay what they are at initialisation.

NNGP and NTK recursions, b = 1 and no identity branch for an MLP, b = branch_scale for a residual network:

    K^{h,1}   = v_0 K^x + v_b sigma^2                        covariance of preactivations h^l; sigma: scale of biases
    K^{h,l+1} = [K^{h,l}] + b^2 (v_l Phi^l + v_b sigma^2)    [ ] in residual networks only
    Phi^l     = E phi phi        under K^{h,l}               feature kernel
    G^L       = v_L E phi' phi'  under K^{h,L}               gradient kernel of g^l = gamma0 N df/dh^l
    G^l       = G^{l+1} ([1] + b^2 v_l E phi' phi')          under K^{h,l}
    K         = G^1 (K^x + sigma^2) + b^2 sum_{l=1}^{L-1} G^{l+1} (Phi^l + sigma^2) + Phi^L    frozen layers left out

with the variances v of initial weights and biases, 1 unless they are given (`dmft.specs.parameterization`);
`dmft.limits.convolution` has them for convolutional networks.  (Neal 1996, Lee et al. 2018, Jacot et al. 2018.  In a
residual network g^{l+1} and W^l^T g^{l+1} are uncorrelated: their response to each other is linear in the readout,
whose mean vanishes.)  Predictions are linear in the parameters, so every optimiser acts on f as on theta, with f(0) = 0
and K the same for each output:

    GradientDescent   v(t+1) = beta v(t) + (1/B) sum_{a in batch} K_a Delta_a      f(t+1) = f(t) + eta_t v(t+1)
    GradientFlow      df/dt = (eta/P) K Delta(f)   (`dmft.limits.flow`);   "euler" steps of it are gradient descent

Assumptions and approximations
    Averages over Gaussian fields are exact for linear, relu and erf, and quadratures for others
    (`dmft.limits.gaussian`; 1000 samples take 5 s a layer on one core).  Weight decay is refused: theta(0), the point
    of linearisation, would itself decay.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dmft import schema
from dmft.limits.convolution import frozen_convolution
from dmft.limits.flow import integrated_descent
from dmft.limits.gaussian import NODES, diagonal_error, gaussian_averages, warn_of_few_nodes
from dmft.limits.result import DivergenceCheck, FrozenKernels, exact_result
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.specs import CNN, MLP, GradientFlow, Problem, ResidualMLP, _check, loss
from dmft.specs.loss import LOSSES
from dmft.specs.networks import Architecture, Network, perceptron
from dmft.specs.parameterization import layer_variances, require_limit, trained_layers

Array = NDArray[np.float64]


@usual_errors
def frozen_kernels(network: Network, input_kernel: ArrayLike, *, nodes: int = NODES) -> FrozenKernels:
    """The recursions above.

    Args:
        network: `dmft.MLP` or `dmft.ResidualMLP`; gamma0 does not matter.
        input_kernel: K^x = x.x'/D, (sample, sample_2).
        nodes: of the quadrature in each of two dimensions, for activations without a closed form.

    Raises:
        ValueError, TypeError: an input kernel that is not a covariance; nodes below 2.
    """
    phi, square, identity = network.activation, network.branch**2, float(network.residual)
    extra, (first, *inner, last) = network.bias**2, trained_layers(network)
    variances, drawn = layer_variances(network), network.bias_variance * extra
    K_x = np.asarray(input_kernel, dtype=np.float64)
    K_h, K_x = variances[0] * K_x + drawn, K_x + extra
    features, slopes, error = [], [], 0.0
    for variance in variances[1:]:
        feature, slope = gaussian_averages(phi, K_h, nodes=nodes)
        error = max(error, diagonal_error(phi, K_h.diagonal(), nodes))
        features.append(feature)
        slopes.append(slope)
        K_h = identity * K_h + square * (variance * feature + drawn)
    gradients = [variances[-1] * slopes[-1]]
    for slope, variance in zip(reversed(slopes[:-1]), reversed(variances[1:-1]), strict=True):
        gradients.insert(0, gradients[0] * (identity + square * variance * slope))
    ntk = first * gradients[0] * K_x + last * features[-1]
    for trained, above, feature in zip(inner, gradients[1:], features[:-1], strict=True):
        ntk = ntk + trained * square * above * (feature + extra)
    return FrozenKernels(np.array(features), np.array(gradients), ntk, error)


@usual_errors
def lazy_limit(problem: Problem, *, save_steps: Iterable[int] | None = None, nodes: int = NODES) -> xr.Dataset:
    """The limit of `problem` for gamma0 -> 0, in closed form; its gamma0 and `centered` do not matter.

    Args:
        problem: network, task, training, loss; without weight decay.  The network is an MLP, a ResidualMLP or a CNN.
        save_steps: the steps to record; all of 0..T by default.
        nodes: of the quadrature in each of two dimensions, for activations without a closed form.

    Returns:
        Dataset of kind "limit" (`dmft.schema`), with standard errors of zero: prediction, loss, test_loss, for classes
        accuracy and test_accuracy, feature_kernel; gradient_kernel and ntk for a single output (for several, those of
        each output are the ones of a single output, and those between outputs vanish).  Kernels do not depend on the
        step; they are repeated without taking memory, and cannot be written to.  The attribute `quadrature_error`
        estimates the relative error of the averages over Gaussian fields; `regime` says that the limit is that of lazy
        networks, whatever gamma0 the problem has, and what is made with it says so too.

    Raises:
        ValueError, TypeError: weight decay; another parameterization or architecture; arguments out of range.
        DivergenceError: learning rates too large for the NTK.
        MemoryEstimateError: kernels that do not fit in memory.

    Example:
        >>> lazy = dmft.lazy_limit(problem)
        >>> bool(lazy["loss"][-1] < lazy["loss"][0])
        True
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"lazy_limit expects a dmft.Problem, got {type(problem).__name__}.")
    require_limit(problem.network)
    if not has_lazy_limit(problem.network):
        raise ValueError(
            f"lazy_limit is for dmft.MLP, dmft.ResidualMLP and dmft.CNN, got {type(problem.network).__name__}; use "
            "dmft.solve with a small gamma0."
        )
    if problem.training.weight_decay > 0:
        raise ValueError(
            f"weight_decay={problem.training.weight_decay} has no lazy limit with frozen kernels: the initial weights "
            "decay too. Set weight_decay=0, or use dmft.solve with a small gamma0."
        )
    steps, nodes = schema.saved_steps(problem, save_steps), _check.integer("nodes", nodes, minimum=2)
    _require_memory(problem)
    kernels = _kernels(problem, nodes)
    warn_of_few_nodes(kernels.quadrature_error, nodes)
    if isinstance(problem.training, GradientFlow) and problem.training.scheme != "euler":
        prediction, method = _flow(problem, kernels.ntk, steps), "frozen kernels, exact gradient flow"
    else:
        prediction, method = _descent(problem, kernels.ntk, steps), "frozen kernels, exact discrete dynamics"
    seen = problem.observed
    observables = {"feature_kernel": kernels.feature[:, None, seen, seen]}
    if not problem.task.outputs:
        observables["gradient_kernel"] = kernels.gradient[:, None, seen, seen]
        observables["ntk"] = kernels.ntk[None, seen, seen]
    for name, kernel in observables.items():
        axis = kernel.ndim - 3
        observables[name] = np.broadcast_to(kernel, (*kernel.shape[:axis], len(steps), *kernel.shape[axis + 1 :]))
    attrs = {"producer": "dmft.lazy_limit", "method": method, "quadrature_error": kernels.quadrature_error}
    attrs |= {"nodes": nodes, "regime": "LAZY (gamma0 -> 0)"}
    return exact_result(problem, prediction[:, seen], observables, steps=steps, attrs=attrs)


def has_lazy_limit(network: Architecture) -> bool:
    """Whether its frozen kernels are known."""
    return type(network) in (MLP, ResidualMLP, CNN)


def _kernels(problem: Problem, nodes: int) -> FrozenKernels:
    network, task = problem.network, problem.task
    if isinstance(network, CNN):
        return frozen_convolution(network, task.x, nodes=nodes)
    return frozen_kernels(perceptron(network, "lazy_limit", "use dmft.solve"), task.input_kernel, nodes=nodes)


def _descent(problem: Problem, ntk: Array, steps: NDArray[np.int64]) -> Array:
    """f (step, sample, output) at the recorded steps, of gradient descent or Euler steps of the flow."""
    training, y, batches, last = problem.training, problem.task.targets, problem.batches, int(steps[-1])
    f, velocity = np.zeros_like(y), np.zeros_like(y)
    check, recorded = DivergenceCheck(problem), []
    for t in range(last + 1):
        if t in steps:
            recorded.append(f)
        batch = batches[min(t, training.steps - 1)]  # after the last update, look at the samples it was made from
        check(t, f[batch], y[batch])
        if t < last:
            delta = loss.descent(np, problem.loss, f[batch], y[batch])
            velocity = training.momentum * velocity + ntk[:, batch] @ delta / len(batch)
            f = f + training.rates[t] * velocity
    return np.array(recorded)


def _flow(problem: Problem, ntk: Array, steps: NDArray[np.int64]) -> Array:
    """f (step, sample, output) = (1/P) K int_0^t Delta(s) eta ds."""
    n = problem.task.n_train
    integral = integrated_descent(problem.loss, ntk[:n, :n], problem.task.targets[:n], problem.training.times[steps])
    return ntk[:, :n] @ integral / n


def _require_memory(problem: Problem) -> None:
    samples, depth = problem.task.n_samples, problem.sketch.depth
    columns = samples * max(positions or 1 for _, positions in problem.sketch.layers)
    needed = 8 * columns**2 * (4 * depth + 4)
    if isinstance(problem.training, GradientFlow) and not (
        LOSSES[problem.loss].quadratic or LOSSES[problem.loss].jumps
    ):
        needed += 24 * problem.task.y_train.size**2  # Jacobians
    memory.require(
        needed,
        limit=None,
        available=memory.available_on_host(),
        what=f"the lazy limit of {samples} samples and {depth} layers",
        ways_out="take fewer samples" if columns == samples else "take fewer samples, or fewer positions",
    )
