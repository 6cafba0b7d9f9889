"""Adaptive kernels as a Dataset, from the estimates of independent sets of particles, or from a closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.specs import Problem

Array = NDArray[np.float64]


def of_sets(problem: Problem, sets: Mapping[str, Array], attrs: Mapping[str, Any]) -> xr.Dataset:
    """The mean over independent sets, and its standard error; of one set, a closed form, the error is zero.

    Args:
        problem: of all whose samples there are numbers.
        sets: (set, ...) by variable, with the dimensions that `dmft.schema` gives kind "adaptive_kernel", but
            predictions (and prediction_dual) always (set, sample, output).  Losses follow from predictions.
        attrs: what the producer says of itself.
    """
    f = np.asarray(sets["prediction"])
    values = {name: _of_outputs(problem, name, np.asarray(value)) for name, value in sets.items()}
    values |= schema.of_predictions(problem, _of_outputs(problem, "prediction", f))
    found: dict[str, Array] = {}
    for name, value in values.items():
        count = len(value)
        found[name] = value.mean(0)
        found[f"{name}_se"] = value.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(value.shape[1:])
    common = {"producer": "dmft.adaptive_kernel", "dtype": "float64", "device": "cpu", "seed": 0}
    return schema.build("adaptive_kernel", problem, found, attrs=common | dict(attrs))


def _of_outputs(problem: Problem, name: str, value: Array) -> Array:
    return value[..., 0] if name.startswith("prediction") and not problem.task.outputs else value
