"""The lazy counterparts of adaptive kernels: regression with the kernels of initialisation.

    f(x) = k(x)^T (K + ridge)^{-1} y

    "bayes"   K = v_L Phi^L, the NNGP kernel    ridge = P T              posterior of a temperature T, gamma0 -> 0
    "flow"    K = the NTK                       ridge = P weight decay   flow whose weights decay to their initial ones

Decay to zero, as of `dmft.adaptive_kernels.flow`, has no lazy limit but f = 0: initial weights are forgotten before
anything is learned.

Assumptions and approximations: those of `dmft.limits.frozen`.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from dmft.adaptive_kernels.result import of_sets
from dmft.limits.frozen import frozen_kernels
from dmft.running.host import usual_errors
from dmft.specs import Problem, _check
from dmft.specs.parameterization import layer_variances, require_limit


@usual_errors
def lazy_kernel(problem: Problem, *, kind: str = "bayes", ridge: float) -> xr.Dataset:
    """Regression with the kernels of the lazy limit, where training has not changed them.

    Args:
        problem: network and task, with squared loss; gamma0 and the training do not matter.
        kind: "bayes", the NNGP kernel, or "flow", the NTK.
        ridge: see above; 0 where K has an inverse.

    Returns:
        Dataset of kind "adaptive_kernel" (`dmft.schema`): prediction, losses, feature_kernel and, for a single output,
        gradient_kernel and ntk, without errors; the attribute regime says that it is lazy.

    Raises:
        ValueError, TypeError: networks whose initial kernels do not follow from each other; other losses; arguments
            out of range; a kernel without inverse.

    Example:
        >>> lazy = dmft.lazy_kernel(problem, kind="flow", ridge=0.1)
        >>> lazy.attrs["regime"]
        'LAZY (gamma0 -> 0)'
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"lazy_kernel expects a dmft.Problem, got {type(problem).__name__}.")
    if kind not in ("bayes", "flow"):
        raise ValueError(f"kind={kind!r} is unknown; choose bayes or flow.")
    if problem.loss != "squared":
        raise ValueError(f'loss={problem.loss!r}: regression is for loss="squared".')
    require_limit(problem.network)
    ridge = _check.nonnegative("ridge", ridge)
    task, n = problem.task, problem.task.n_train
    frozen = frozen_kernels(problem.network, x=task.x)
    readout = layer_variances(problem.network, problem.sketch.readout_layer + 1)[-1]
    K = frozen.ntk if kind == "flow" else readout * frozen.feature[-1]
    system = K[:n, :n] + ridge * np.eye(n)
    if np.linalg.cond(system) * np.finfo(float).eps > 1:
        raise ValueError(f"ridge={ridge:g}: the kernel of the training samples has no inverse; give a larger one.")
    values = {"prediction": K[:, :n] @ np.linalg.solve(system, task.targets[:n]), "feature_kernel": frozen.feature}
    if not task.outputs:
        values |= {"gradient_kernel": frozen.gradient, "ntk": frozen.ntk}
    attrs = {"producer": "dmft.lazy_kernel", "method": f"regression, {kind}", "ridge": ridge}
    attrs |= {"regime": "LAZY (gamma0 -> 0)", "quadrature_error": frozen.quadrature_error}
    return of_sets(problem, {name: value[None] for name, value in values.items()}, attrs)
