"""What the closed forms share: no error of sampling, one check for divergence, results in the schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.errors import DivergenceError, exploded
from dmft.specs import Problem, loss

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FrozenKernels:
    """Kernels at initialisation, at infinite width.

    feature, gradient: (layer, sample, sample_2); ntk: (sample, sample_2); quadrature_error: estimated relative error
    of the averages they are made of (0 where these are closed forms).
    """

    feature: Array
    gradient: Array
    ntk: Array
    quadrature_error: float


def exact_result(
    problem: Problem,
    prediction: Array,
    kernels: Mapping[str, Array],
    *,
    steps: NDArray[np.int64],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """A Dataset of kind "limit" whose standard errors are zero.

    prediction: (step, sample, output) of the observed samples; kernels: in the dimensions of the schema.
    """
    prediction = prediction if problem.task.outputs else prediction[..., 0]
    values: dict[str, Array] = {"prediction": prediction}
    values |= schema.of_predictions(problem, prediction) | dict(kernels)
    return schema.exact(problem, values, steps=steps, attrs=attrs)


class DivergenceCheck:
    """Raises DivergenceError at the first step whose loss, over the samples of its batch, exploded."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.initial: np.float64 | None = None

    def __call__(self, step: int, f: Array, y: Array) -> None:
        """f, y: (sample, output)."""
        now = loss.values(np, self.problem.sample_loss, f, y).mean()
        self.initial = now if self.initial is None else self.initial
        if exploded(now, self.initial):
            raise DivergenceError(
                f"the limit diverges at step {step}: loss {now:.3g} (initially {self.initial:.3g}). "
                f"Lower {self.problem.training.largest_step}. {self.problem.task.unusual_size}".rstrip()
            )
