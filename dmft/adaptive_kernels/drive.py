"""The one door to adaptive kernels: `kind` says what training ends with (`dmft.adaptive_kernels`)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import xarray as xr

from dmft.running.host import usual_errors
from dmft.specs import Problem

KINDS = ("bayes", "flow")  # modules of this package, each with its function <kind>_kernel


@usual_errors
def adaptive_kernel(problem: Problem, *, kind: str = "bayes", **settings: Any) -> xr.Dataset:
    """Kernels and predictions that training of `problem` ends with at infinite width, its features having adapted.

    Args:
        problem: a perceptron without biases, all of whose layers are trained, its task, and the squared loss.
            `centered` does not matter: outputs vanish at initialisation.
        kind: "bayes", the posterior of the weights at a temperature, or "flow", gradient flow with weight decay.
        settings: of that kind, those of `dmft.adaptive_kernels.bayes.bayes_kernel` or
            `dmft.adaptive_kernels.flow.flow_kernel`.

    Returns:
        Dataset of kind "adaptive_kernel" (`dmft.schema`): prediction, loss, test_loss, feature_kernel, what else the
        kind has, and standard errors, which are zero in closed forms.

    Raises:
        NotConvergedError: errors that stayed larger than the tolerance; its `estimate` is what was reached.
        ValueError, TypeError: another network or loss; settings that the kind does not have, or out of range.

    Source: Lauditi, Bordelon & Pehlevan 2025.

    Example:
        >>> line = dmft.MLP(depth=2, activation=dmft.linear(), gamma0=1.0)
        >>> linear = dmft.Problem(line, problem.task, dmft.GradientDescent(0.1, steps=1))
        >>> found = dmft.adaptive_kernel(linear, kind="bayes", temperature=0.01)
        >>> found["feature_kernel"].dims
        ('layer', 'sample', 'sample_2')
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"adaptive_kernel expects a dmft.Problem, got {type(problem).__name__}.")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    found: Callable[..., xr.Dataset] = getattr(
        importlib.import_module(f"dmft.adaptive_kernels.{kind}"), f"{kind}_kernel"
    )
    known = [name for name in inspect.signature(found).parameters if name != "problem"]
    if unknown := sorted(set(settings) - set(known)):
        raise TypeError(f"kind={kind!r} has no setting {unknown[0]!r}; it has {', '.join(known)}.")
    return found(problem, **settings)
