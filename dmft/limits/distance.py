"""How far from lazy: what feature learning did to kernels and predictions.

For a kernel A at a step, B the same at initialisation, norms and products over all pairs of samples (and outputs):

    change      |A - B| / |B|                      0 in the lazy limit
    alignment   <A, B> / (|A| |B|)                 1 in the lazy limit, and where A only grew by a factor
    predictions |f - f_lazy| / |f_lazy|            over the training, or the test, samples of the same step

Assumptions and approximations
    Standard errors are those of the leading order in the errors of the entries, which are added as if all of them
    erred together, dq = sum |dq/dA| dA + sum |dq/dB| dB: not less than the standard error whatever their correlations
    are.  A change is positive, errors alone make one: below its standard error it says nothing.  Where it is exactly 0
    its derivative does not exist, and the error |dA| / |B| + |dB| / |B| stands for it, 0 at initialisation itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.limits.lazy import has_lazy_limit, lazy_limit
from dmft.running.host import usual_errors
from dmft.schema.labels import labelled
from dmft.specs import Problem

Array = NDArray[np.float64]

PAIRS = ("sample", "output", "sample_2", "output_2")


@usual_errors
def distance_from_lazy(theory: xr.Dataset, problem: Problem) -> xr.Dataset:
    """How far a solved limit is from its own beginning and from the lazy limit, at every saved step.

    Args:
        theory: from `dmft.solve`, or another Dataset of kind "limit", with step 0 among its steps.
        problem: the one that it solves.

    Returns:
        Dataset of numbers without units, each with its `_se`; those of the variables that the theory holds:

        feature_kernel_change, gradient_kernel_change (layer, step), ntk_change (step), and of other kernels
        feature_kernel_alignment, gradient_kernel_alignment (layer, step), ntk_alignment (step), and of other kernels
        prediction_change, test_prediction_change (step), relative to `dmft.lazy_limit`; left out with weight decay,
            which has none, and for architectures whose kernels do not follow from each other; 0 where both predictions
            vanish, infinite where only the lazy ones do

    Raises:
        SchemaError: not a result of kind "limit".
        ValueError, TypeError: the theory is of another problem, lacks step 0, or has none of these variables.

    Example:
        >>> dmft.distance_from_lazy(theory, problem).sizes["step"]
        3
    """
    theory = schema.validate(theory, "limit")
    if not isinstance(problem, Problem):
        raise TypeError(
            f"distance_from_lazy expects a dmft.Problem as its second argument, got {type(problem).__name__}."
        )
    if theory.attrs["problem_id"] != problem.problem_id:
        raise ValueError(
            f"the theory solves the problem {theory.attrs['problem_id']}, not the given one, {problem.problem_id}; "
            "give the Problem that it was made from."
        )
    held = [name for name in schema.kernels() if name in theory]
    if not held and "prediction" not in theory:
        wanted = [*schema.kernels(), "prediction"]
        raise ValueError(f"the theory holds {list(theory.data_vars)}; it needs one of {wanted}.")
    steps = theory["step"].values
    if 0 not in steps:
        raise ValueError(
            f"the theory has the steps {steps[0]}..{steps[-1]} without step 0, from which distances are measured; "
            "solve it with 0 in save_steps."
        )
    found: dict[str, Any] = {}
    for name in held:
        found |= _of_kernel(name, theory)
    if "prediction" in theory:
        found |= _of_predictions(theory, problem)
    ds = xr.Dataset(found).assign_coords(time=theory["time"])
    shared = ("problem", "problem_id", "version", "dtype", "seed", "created")
    ds.attrs = {name: theory.attrs[name] for name in shared} | {
        "kind": "distance",
        "producer": "dmft.distance_from_lazy",
        "device": "cpu",
    }
    return labelled(ds)


def relative_change(A: Array, B: Array, dA: Array, dB: Array) -> tuple[Array, Array]:
    """|A - B| / |B| over the last axis, and its standard error from those of A and B; all (..., entry).

    0 where A = B = 0, infinite where only B is.
    """
    difference, distance, norm = A - B, _norm(A - B), _norm(B)
    moved, there = distance > 0, norm > 0
    change = np.where(there, distance / np.where(there, norm, 1), np.where(moved, np.inf, 0.0))
    size = np.where(there, norm, np.inf)[..., None]
    direction = difference / np.where(moved, distance, 1)[..., None]
    by_A = direction / size
    by_B = -by_A - np.where(there, change, 0)[..., None] * B / size**2
    first_order = (abs(by_A) * dA + abs(by_B) * dB).sum(axis=-1)
    at_zero = (_norm(dA) + _norm(dB)) / size[..., 0]
    return change, np.where(moved, first_order, at_zero)


def alignment(A: Array, B: Array, dA: Array, dB: Array) -> tuple[Array, Array]:
    """<A, B> / (|A| |B|) over the last axis, and its standard error; all (..., entry).  0 where A or B is."""
    a, b = (v / np.where((n := _norm(v)) > 0, n, 1)[..., None] for v in (A, B))
    cosine = (a * b).sum(axis=-1, keepdims=True)
    error = sum(
        abs(other - cosine * own) * d / np.where((n := _norm(v)) > 0, n, np.inf)[..., None]
        for own, other, v, d in ((a, b, A, dA), (b, a, B, dB))
    )
    return cosine[..., 0], np.asarray(error).sum(axis=-1)


def _of_kernel(name: str, theory: xr.Dataset) -> dict[str, Any]:
    values, errors = (_flattened(theory[key]) for key in (name, f"{name}_se"))
    dims = tuple(dim for dim in theory[name].dims if dim not in PAIRS)
    start = int(np.flatnonzero(theory["step"].values == 0)[0])
    initial, initial_error = (np.take(v, [start], axis=-2) for v in (values, errors))
    coords = {dim: theory[dim] for dim in dims}
    found = {}
    for suffix, compute in (("change", relative_change), ("alignment", alignment)):
        value, error = compute(values, initial, errors, initial_error)
        value[..., start], error[..., start] = float(suffix == "alignment"), 0.0  # of itself
        found[f"{name}_{suffix}"] = xr.DataArray(value, dims=dims, coords=coords)
        found[f"{name}_{suffix}_se"] = xr.DataArray(error, dims=dims, coords=coords)
    return found


def _of_predictions(theory: xr.Dataset, problem: Problem) -> dict[str, Any]:
    if problem.training.stepping.by_entry or problem.training.decays or not has_lazy_limit(problem):
        return {}
    lazy = lazy_limit(problem, save_steps=theory["step"].values.tolist())
    found = {}
    for split, prefix in (("train", ""), ("test", "test_")):
        part = (theory["split"] == split).values
        if not part.any():
            continue
        f, error, reference = (
            _flattened(source.isel(sample=part))
            for source in (theory.prediction, theory.prediction_se, lazy.prediction)
        )
        value, error = relative_change(f, reference, error, np.zeros_like(error))
        for end, array in (("", value), ("_se", error)):
            found[f"{prefix}prediction_change{end}"] = xr.DataArray(array, dims="step", coords={"step": theory["step"]})
    return found


def _flattened(array: xr.DataArray) -> Array:
    """(..., entry): all pairs of samples, or samples, as one last axis."""
    kept = [dim for dim in array.dims if dim not in PAIRS]
    values = array.transpose(*kept, ...).values.astype(np.float64)
    return values.reshape(*values.shape[: len(kept)], -1)


def _norm(v: Array) -> Array:
    norm: Array = np.sqrt((v**2).sum(axis=-1))
    return norm
