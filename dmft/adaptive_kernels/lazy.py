"""The lazy counterparts of adaptive kernels: regression with the kernels of initialisation.

    f(x) = k(x)^T (K + ridge)^{-1} y

    "bayes"   K = v_L Phi^L, the NNGP kernel    ridge = P T              posterior of a temperature T, gamma0 -> 0
    "flow"    K = the NTK                       ridge = P weight decay   flow whose weights decay to their initial ones

ridge="tuned" takes the one whose errors on samples that are left out are least: leaving out sample a changes its
residual from ridge r_a, r = (K + ridge)^{-1} y, to r_a / [(K + ridge)^{-1}]_aa.

Decay to zero, as of `dmft.adaptive_kernels.flow`, has no lazy limit but f = 0: initial weights are forgotten before
anything is learned.

Assumptions and approximations: those of `dmft.limits.frozen`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft.adaptive_kernels.result import of_sets
from dmft.limits.frozen import frozen_kernels
from dmft.running.host import usual_errors
from dmft.specs import Problem, _check
from dmft.specs.parameterization import layer_variances, require_limit

Array = NDArray[np.float64]
TUNED = "tuned"
TRIED = np.logspace(-9, 2, 111)  # ridges, in units of the largest eigenvalue of K


@usual_errors
def lazy_kernel(problem: Problem, *, kind: str = "bayes", ridge: float | str) -> xr.Dataset:
    """Regression with the kernels of the lazy limit, where training has not changed them.

    Args:
        problem: network and task, with squared loss; gamma0 and the training do not matter.
        kind: "bayes", the NNGP kernel, or "flow", the NTK.
        ridge: see above; 0 where K has an inverse; "tuned", the best by leaving out one training sample at a time.

    Returns:
        Dataset of kind "adaptive_kernel" (`dmft.schema`): prediction, losses, feature_kernel and, for a single output,
        gradient_kernel and ntk, without errors; the attribute regime says that it is lazy, ridge which it is.

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
    if ridge != TUNED:
        ridge = _check.nonnegative("ridge", ridge)
    task, n = problem.task, problem.task.n_train
    frozen = frozen_kernels(problem.network, x=task.x)
    readout = layer_variances(problem.network, problem.sketch.readout_layer + 1)[-1]
    K = frozen.ntk if kind == "flow" else readout * frozen.feature[-1]
    attrs: dict[str, Any] = {"producer": "dmft.lazy_kernel", "method": f"regression, {kind}"}
    if isinstance(ridge, str):
        ridge, attrs["left_out_loss"] = _tuned(K[:n, :n], task.targets[:n])
    system = K[:n, :n] + ridge * np.eye(n)
    if np.linalg.cond(system) * np.finfo(float).eps > 1:
        raise ValueError(f"ridge={ridge:g}: the kernel of the training samples has no inverse; give a larger one.")
    values = {"prediction": K[:, :n] @ np.linalg.solve(system, task.targets[:n]), "feature_kernel": frozen.feature}
    if not task.outputs:
        values |= {"gradient_kernel": frozen.gradient, "ntk": frozen.ntk}
    attrs |= {"ridge": ridge, "regime": "LAZY (gamma0 -> 0)", "quadrature_error": frozen.quadrature_error}
    return of_sets(problem, {name: value[None] for name, value in values.items()}, attrs)


def _tuned(K: Array, y: Array) -> tuple[float, float]:
    """The ridge of the smallest loss on samples that are left out, and that loss."""
    values, vectors = np.linalg.eigh(K)
    modes, found = vectors.T @ y, []
    ridges = TRIED[TRIED * values[-1] + values[0] > 0] * values[-1]  # eigenvalues that are zero may be below
    for ridge in ridges:
        inverse = 1 / (values + ridge)
        left_out = (vectors * inverse @ modes) / (vectors**2 @ inverse)[:, None]
        found.append(float((left_out**2).sum(1).mean() / 2))
    best = int(np.argmin(found))
    return float(ridges[best]), found[best]
