"""The lazy limit gamma0 -> 0 (after N -> infinity): kernels stay what they are at initialisation.

`dmft.limits.frozen` has their recursions.  Predictions are linear in the parameters, so every optimiser acts on f as on
theta, with f(0) = 0 and K the same for each output (`dmft.specs.training`):

    x(t+1) = A_t x(t) + b_t (1/B) sum_{a in batch} K_a Delta_a(f)      x = (f, slots)
    GradientFlow      df/dt = (eta/P) K Delta(f)   (`dmft.limits.flow`);   "euler" steps of it are such a recurrence

Assumptions and approximations: those of `dmft.limits.frozen`.  Where initial parameters fade, as by weight decay, there
is no such limit: theta(0), the point of linearisation, would itself decay.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.limits.flow import integrated_descent
from dmft.limits.frozen import frozen_kernels, why_unclosed
from dmft.limits.gaussian import NODES, warn_of_few_nodes
from dmft.limits.gaussian_fields import UnclosedError
from dmft.limits.result import DivergenceCheck, exact_result
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.specs import Problem, _check, loss
from dmft.specs.loss import LOSSES
from dmft.specs.parameterization import require_limit

Array = NDArray[np.float64]


@usual_errors
def lazy_limit(problem: Problem, *, save_steps: Iterable[int] | None = None, nodes: int = NODES) -> xr.Dataset:
    """The limit of `problem` for gamma0 -> 0, in closed form; its gamma0 and `centered` do not matter.

    Args:
        problem: network, task, training, loss; initial parameters do not decay.  The network is one whose kernels at
            initialisation follow from each other (`dmft.limits.frozen`), as those of MLP, ResidualMLP and CNN do.
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
        ValueError, TypeError: initial parameters that decay; another parameterization or architecture; arguments out
            of range.
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
    problem.training.require_linear("frozen kernels")
    if problem.training.decays:
        d = problem.training.recurrences.initial()
        raise ValueError(
            f"{type(problem.training).__name__} lets initial weights decay, to {d[abs(d - 1).argmax()]:.3g} of what "
            "they were: it has no lazy limit with frozen kernels. Take one without weight decay, or use dmft.solve "
            "with a small gamma0."
        )
    steps, nodes = schema.saved_steps(problem, save_steps), _check.integer("nodes", nodes, minimum=2)
    _require_memory(problem)
    try:
        kernels = frozen_kernels(problem.network, x=problem.task.x, nodes=nodes)
    except UnclosedError as reason:
        raise ValueError(f"lazy_limit: {reason}; use dmft.solve with a small gamma0.") from reason
    warn_of_few_nodes(kernels.quadrature_error, nodes)
    if problem.training.stepping.approximates:
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


def has_lazy_limit(problem: Problem) -> bool:
    """Whether the kernels of its network are frozen ones."""
    return not why_unclosed(problem.network, problem.task.shape)


def _descent(problem: Problem, ntk: Array, steps: NDArray[np.int64]) -> Array:
    """f (step, sample, output) at the recorded steps, of the recurrence."""
    training, y, batches, last = problem.training, problem.task.targets, problem.batches, int(steps[-1])
    A, b = training.recurrences
    x = np.zeros((b.shape[1], *y.shape))
    check, recorded = DivergenceCheck(problem), []
    for t in range(last + 1):
        if t in steps:
            recorded.append(x[0])
        batch = batches[min(t, training.steps - 1)]  # after the last update, look at the samples it was made from
        check(t, x[0, batch], y[batch])
        if t < last:
            delta = loss.descent(np, problem.loss, x[0, batch], y[batch])
            x = np.tensordot(A[t], x, 1) + np.multiply.outer(b[t], ntk[:, batch] @ delta / len(batch))
    return np.array(recorded)


def _flow(problem: Problem, ntk: Array, steps: NDArray[np.int64]) -> Array:
    """f (step, sample, output) = (1/P) K int_0^t Delta(s) eta ds."""
    n = problem.task.n_train
    integral = integrated_descent(problem.loss, ntk[:n, :n], problem.task.targets[:n], problem.training.times[steps])
    return ntk[:, :n] @ integral / n


def _require_memory(problem: Problem) -> None:
    samples, depth = problem.task.n_samples, problem.sketch.depth
    columns = samples * max(positions or 1 for _, positions in problem.sketch.layers)
    needed = 8 * columns**2 * (6 * depth + 4)
    kind = LOSSES[problem.loss]
    if problem.training.stepping.approximates and not (kind.quadratic or kind.jumps):
        needed += 24 * problem.task.y_train.size**2  # Jacobians
    memory.require(
        needed,
        limit=None,
        available=memory.available_on_host(),
        what=f"the lazy limit of {samples} samples and {depth} layers",
        ways_out="take fewer samples" if columns == samples else "take fewer samples, or fewer positions",
    )
