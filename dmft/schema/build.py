"""A result Dataset from its arrays."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft.schema import identity
from dmft.schema.kinds import dims
from dmft.schema.labels import labelled
from dmft.schema.validate import SCHEMA, validate
from dmft.specs import Problem


def build(
    kind: str,
    problem: Problem,
    values: Mapping[str, NDArray[Any]],
    *,
    steps: NDArray[np.int64] | None = None,
    attrs: Mapping[str, Any],
    coords: Mapping[str, Any] | None = None,
    samples: NDArray[np.int64] | None = None,
) -> xr.Dataset:
    """A validated result Dataset.

    Args:
        kind: one of `dmft.schema.kinds`.
        values: arrays by variable name, with the dimensions that `dims` gives.
        steps: the recorded steps; None for results that have none.
        attrs: what the producer says of itself (producer, dtype, device, seed, ...).
        coords: coordinates of the leading dimensions.
        samples: those in `values`; all that are observed by default.
    """
    task = problem.task
    samples = np.arange(task.n_samples)[problem.observed] if samples is None else samples
    recorded = np.arange(0) if steps is None else steps
    outputs, sizes = bool(task.outputs), problem.dimensions
    variables = {name: (dims(kind, name, outputs=outputs), value) for name, value in values.items()}
    used = {dim for names, _ in variables.values() for dim in names}
    labels: dict[str, Any] = {
        "step": recorded,
        "sample": samples,
        "sample_2": samples,
        **{dim: np.arange(1, sizes[dim] + 1) for dim in ("layer", "attention_layer")},
        **{dim: np.arange(sizes[dim]) for dim in ("query", "key")},
        "step_2": recorded,
        "source_layer": np.arange(1, sizes["layer"] + 1),
        **{dim: np.arange(n) for n in task.outputs for dim in ("output", "output_2")},
    }
    ds = xr.Dataset(variables, coords={dim: label for dim, label in labels.items() if dim in used})
    by_step = {} if steps is None else {"time": ("step", problem.training.times[steps])}
    by_sample = {
        "split": ("sample", np.where(samples < task.n_train, "train", "test")),
        "target": ("sample", task.y[samples]) if not outputs else (("sample", "output"), task.y[samples]),
    }
    ds = ds.assign_coords(by_step | (by_sample if "sample" in used else {}) | dict(coords or {}))
    if (read := sizes.get("position", 0)) and "output" in ds.dims:
        each = ds.sizes["output"] // read
        ds = ds.assign_coords(position=("output", ds["output"].values // each))
    if "width" in ds.dims:
        counted = [problem.network.counts(int(width)) for width in ds["width"].values]
        ds = ds.assign_coords({name: ("width", [each[name] for each in counted]) for name in counted[0]})
    ds = ds.assign_coords(identity.coordinates(kind, ds, problem.problem_id, attrs))
    ds.attrs = {
        "schema": SCHEMA,
        "kind": kind,
        "problem": problem.to_json(arrays=False),
        "problem_id": problem.problem_id,
        "version": _version(),
        "result": "success",
        "created": now(),
        **attrs,
    }
    return validate(labelled(ds), kind)


def exact(
    problem: Problem, values: Mapping[str, NDArray[Any]], *, steps: NDArray[np.int64], attrs: Mapping[str, Any]
) -> xr.Dataset:
    """A Dataset of kind "limit" of which nothing was sampled: standard errors are zero."""
    zeros = {f"{name}_se": np.broadcast_to(np.zeros(()), np.shape(value)) for name, value in values.items()}
    common = {"dtype": "float64", "device": "cpu", "seed": 0}
    return build("limit", problem, {**values, **zeros}, steps=steps, attrs=common | dict(attrs))


def now() -> str:
    """When a result is created, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version() -> str:
    from dmft import __version__

    return __version__
