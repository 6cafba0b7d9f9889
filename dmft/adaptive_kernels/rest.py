"""Kernels of networks at rest: averages over the last steps, of the limit or of networks.

Where the flow with decay rests, lambda times the weights is the time average of gradients.  With weights w_t over
successive steps, sum_t w_t = 1,

    Phi = sum_{t,s} w_t w_s Phi(t, s)        G = sum_{t,s} w_t w_s G(t, s)                                           (1)
    K = sum_{l=0}^L G^{l+1} o Phi^l          Phi^0 = K^x, G^{L+1} = 1

are kernels of features and gradients averaged in time, and homogeneous layers have

    f(x) = k(x)^T [K + (L+1) lambda]^{-1} y                                                                          (2)

With a kink this does not hold for the kernels of one step, off by some per cent however small the steps: neurons rest
exactly at h = 0 for some samples, where slopes jump for ever.  They jump as the digits of a converter do that hold a
mean, in turns of a few steps: raised cosines w_t over some thirty successive steps average them as well as many hundred
that are drawn from late times.  What is left of (2) is the speed of what still moves, and of the order of steps.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft.adaptive_kernels.homogeneous import decay_of, require_one_output, slopes
from dmft.specs import Problem, Training
from dmft.specs.adaptable import adaptable

Array = NDArray[np.float64]
KERNELS = ("feature_kernel", "gradient_kernel")
FEWEST = 8  # successive steps
EARLIER = 0.8  # of the steps, where predictions are looked at before the last ones


def regression(ntk: Array, y: Array, ridge: float) -> Array:
    """k^T (K + ridge)^-1 y (..., sample), from kernels (..., sample, sample_2), whose first samples have targets y."""
    n = len(y)
    weights = np.linalg.solve(
        ntk[..., :n, :n] + ridge * np.eye(n), np.broadcast_to(y[:, None], (*ntk.shape[:-2], n, 1))
    )
    found: Array = (ntk[..., :n] @ weights)[..., 0]
    return found


def at_rest(problem: Problem, result: xr.Dataset) -> xr.Dataset:
    """Kernels averaged over the steps of a result, and regression with them beside its predictions.

    Args:
        problem: of the result; with weight decay, a homogeneous activation and no biases, and networks that do not
            subtract their output at initialisation.
        result: of `dmft.solve` or `finite_nets.train_ensemble` with two_time=True, whose `save_steps` end with some
            thirty successive steps, over which are averages, and hold others some time before
            (`dmft.adaptive_kernels.rest.late_steps`).

    Returns:
        Dataset: prediction (..., sample), feature_kernel and gradient_kernel (..., layer, sample, sample_2), ntk (...,
        sample, sample_2), averages; regression (..., sample), the right side of (2); and, relative to the root mean
        square of the targets, identity_error (...), the largest difference of the two, instant_error, that with the
        kernels of the last step, and remaining, by how much predictions still have to move if they go on like 1/t, as
        those of infinitely many neurons do, from their change since the saved steps before (nan without); "..." are
        width and seed of networks.

    Raises:
        ValueError: a result of another problem, without kernels between steps; problems without such a state.

    Example:
        >>> network = dmft.MLP(1, dmft.relu(), centered=False)
        >>> decaying = dmft.Problem(network, problem.task, dmft.GradientDescent(0.5, steps=200, weight_decay=0.1))
        >>> late = finite_nets.train_ensemble(
        ...     decaying, widths=[32], seeds=1, save_steps=range(170, 201), two_time=True
        ... )
        >>> bool(dmft.at_rest(decaying, late)["identity_error"] < 0.1)
        True
    """
    network = adaptable(problem)
    slopes(network.activation)
    require_one_output(problem)
    if result.attrs.get("problem_id") != problem.problem_id:
        raise ValueError(f"the result is of problem {result.attrs.get('problem_id')}, not of {problem.problem_id}.")
    names = ["prediction", *(f"{name}_two_time" for name in KERNELS)]
    if missing := [name for name in names if name not in result]:
        raise ValueError(f"the result lacks {', '.join(missing)}; make it with two_time=True.")
    if "width" in result.dims and network.centered:
        raise ValueError("centered=True: networks that subtract f(0) are no regression with their kernel; take False.")
    leading = tuple(dim for dim in ("width", "seed") if dim in result.dims)
    y, decay = problem.task.y_train, decay_of(problem)
    ridge, size = (network.depth + 1) * decay, float(np.sqrt(np.mean(y**2))) or 1.0
    f = result["prediction"].transpose(*leading, "step", "sample").values
    *earlier, last = _runs(result["step"].values)
    if len(last) < FEWEST:
        raise ValueError(
            f"the last {len(last)} of the saved steps are successive; save {FEWEST} or more, as late_steps."
        )
    w = np.hanning(len(last) + 2)[1:-1]
    w /= w.sum()
    mean = w @ f[..., last, :]
    order = (*leading, "layer", "step", "step_2", "sample", "sample_2")
    two_time = [result[f"{name}_two_time"].transpose(*order).values for name in KERNELS]
    features, gradients = (
        np.einsum("...tsab,t,s->...ab", each[..., last[0] :, last[0] :, :, :], w, w) for each in two_time
    )
    ntk = tangent_kernel(problem.task.input_kernel, features, gradients)
    instant = tangent_kernel(problem.task.input_kernel, *(each[..., -1, -1, :, :] for each in two_time))
    found = regression(ntk, y, ridge)
    left = np.full(mean.shape[:-1], np.nan)
    if earlier:
        before = earlier[-1]
        t_0, t_1 = (result["time"].values[run].mean() for run in (before, last))
        if t_0 > 0:  # of the start nothing follows
            left = abs(mean - f[..., before, :].mean(-2)).max(-1) * t_0 / (t_1 - t_0)
    pair = ("sample", "sample_2")
    return xr.Dataset(
        {
            "prediction": ((*leading, "sample"), mean),
            "feature_kernel": ((*leading, "layer", *pair), features),
            "gradient_kernel": ((*leading, "layer", *pair), gradients),
            "ntk": ((*leading, *pair), ntk),
            "regression": ((*leading, "sample"), found),
            "identity_error": (leading, abs(found - mean).max(-1) / size),
            "instant_error": (leading, abs(regression(instant, y, ridge) - f[..., -1, :]).max(-1) / size),
            "remaining": (leading, left / size),
        },
        coords={name: result.coords[name] for name in (*leading, "layer", *pair)},
        attrs={"analysis": "at_rest", "problem_id": problem.problem_id, "decay": decay},
    )


def late_steps(training: Training, looks: int = 32) -> NDArray[np.int64]:
    """Steps to save for `at_rest`: as many successive last ones, and some before, at 0.8 of the steps."""
    last = np.arange(training.steps + 1 - looks, training.steps + 1)
    steps: NDArray[np.int64] = np.concatenate([round(EARLIER * last[0]) + np.arange(looks // 2), last])
    return np.unique(steps[steps >= 0])


def _runs(steps: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Places of successive steps."""
    return np.split(np.arange(len(steps)), np.flatnonzero(np.diff(steps) > 1) + 1)


def tangent_kernel(input_kernel: Array, features: Array, gradients: Array) -> Array:
    """K (..., sample, sample_2) of Phi^1..Phi^L and G^1..G^L (..., layer, sample, sample_2)."""
    between = (gradients[..., 1:, :, :] * features[..., :-1, :, :]).sum(-3)
    found: Array = gradients[..., 0, :, :] * input_kernel + between + features[..., -1, :, :]
    return found
