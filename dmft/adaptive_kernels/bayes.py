"""The posterior of infinitely wide networks with adapted features, to which noisy training with weight decay relaxes.

    p(theta) ~ exp{ -(gamma0^2 N / T) loss(theta) - sum_l |W^l|^2 / (2 v_l) }     loss = (1/P) sum_a |f_a - y_a|^2 / 2

is the law of weights that start from N(0, v_l) (`weight_variance` of the network), have seen the data, and have the
temperature T; d theta = -[gamma0^2 N grad loss + (T/v_l) theta] dt + sqrt(2 T) dB relaxes to it.  With beta = 1/(P T),
C_1 = v_0 K^x and C_{l+1} = v_l Phi^l, at N -> infinity and fixed P,

    p(data, Phi) ~ exp(-N S)
    S = (gamma0^2/2) tr y^T (v_L Phi^L + I/beta)^{-1} y - sum_l [(1/2) tr Phi^l D^l + ln Z_l]
    Z_l = E_{h ~ N(0, C_l)} exp(-phi(h)^T D^l phi(h) / 2),     Phi^l = <phi(h) phi(h)^T>_l in that tilted law        (1)
    D^L = -gamma0^2 v_L r r^T,     r = (v_L Phi^L + I/beta)^{-1} y
    D^l = v_l C^{-1} <h (phi'(h) o D^{l+1} phi(h))^T>_{l+1},     C = C_{l+1}                                         (2)

Test points have no duals D; they follow the training samples by the Gaussian law of their preactivations, and
f(x) = v_L k(x)^T r with the kernels k that come of it.  `dmft.adaptive_kernels.linear` has deep linear networks.
"""

from __future__ import annotations

import xarray as xr

from dmft.adaptive_kernels.linear import LinearPosterior
from dmft.adaptive_kernels.result import of_sets
from dmft.specs import MLP, Problem, _check


def bayes_kernel(problem: Problem, *, temperature: float) -> xr.Dataset:
    """Kernels, duals and predictions of the posterior of `problem`, without its training.

    Args:
        problem: as of `dmft.adaptive_kernel`; the prior variances are its `weight_variance`.
        temperature: T, of the loss that is a mean over samples.

    Returns:
        Dataset of kind "adaptive_kernel" (`dmft.schema`): feature_kernel, feature_dual (D), prediction,
        prediction_dual (r), action, losses.  Of deep linear networks the attributes have the gains chi and the
        actions of all branches.
    """
    task, network = problem.task, problem.network
    assert isinstance(network, MLP)  # checked by `adaptive_kernel`
    temperature = _check.positive("temperature", temperature)
    kernel, n = task.input_kernel, task.n_train
    posterior = LinearPosterior(
        kernel[:n, :n],
        task.targets[:n],
        network.depth,
        network.gamma0,
        temperature * n,
        variances(network),
        network.activation.scale,
    )
    branches = posterior.branches()
    found = posterior.order_parameters(kernel, posterior.least())
    attrs = {
        "method": "closed form",
        "temperature": temperature,
        "actions": [posterior.action(chi) for chi in branches],
    }
    return of_sets(problem, {name: value[None] for name, value in found.items()}, attrs)


def variances(network: MLP) -> tuple[float, ...]:
    """v_0 .. v_L of the weights; ValueError if one is zero."""
    given = network.weight_variance
    found = tuple(given) if isinstance(given, tuple) else (given,) * (network.depth + 1)
    if 0.0 in found:
        raise ValueError(f"weight_variance={found}: weights without variance have no posterior; give positive ones.")
    return found
