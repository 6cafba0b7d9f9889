"""The Dataset of modules from what was recorded of each."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from finite_nets.ensembles.ensemble import device_name
from finite_nets.modules import recording
from finite_nets.modules.run import Run
from finite_nets.training.state import NEVER

Results = dict[str, NDArray[Any]]


def dataset(run: Run, found: dict[int, dict[int, Results]], diverged: int) -> xr.Dataset:
    """The Dataset of kind "ensemble", from results by width and seed."""
    members = run.members
    first = found[members.widths[0]][members.seeds[0]]
    gone = np.array([[found[w][s]["exploded_at"] < NEVER for s in members.seeds] for w in members.widths])
    values: Results = {}
    for name in [name for name in first if name != "exploded_at" and not name.startswith("shape ")]:
        each = np.stack([np.stack([found[w][s][name] for s in members.seeds]) for w in members.widths])
        each[gone] = np.nan
        dims = ("step", *schema.dims("ensemble", name, outputs=bool(run.problem.task.outputs))[2:])
        layered = "layer" in dims  # recorded as (step, layer, ...)
        values[name] = np.moveaxis(each, 3, 2) if layered else each
    with np.errstate(all="ignore"):  # of members that diverged
        wanted = ("loss",) if "loss" in run.observables else ()
        following = schema.of_predictions(run.problem, values["prediction"].astype(np.float64), wanted)
    values |= {name: np.where(gone[..., None], np.nan, value) for name, value in following.items()}
    if "prediction" not in run.observables:
        del values["prediction"]
    if gone.any():
        values["diverged"] = gone
    coords: dict[str, Any] = {"width": np.array(members.widths), "seed": np.asarray(members.seeds)}
    if any("layer" in schema.dims("ensemble", name) for name in values):
        coords["module"] = ("layer", np.array(run.layers))
    if "activation_density" in values:
        coords["bin"] = recording.centres(recording.bin_edges(run.bins).numpy().astype(np.float64))
    if "weight_change" in values:
        coords["parameter"] = run.drawn
    shapes = {name.removeprefix("shape "): first[name].tolist() for name in first if name.startswith("shape ")}
    if "measured" in values:
        sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        coords["entry"] = np.arange(sum(sizes.values()))
        coords["measure"] = ("entry", np.repeat(list(sizes), list(sizes.values())))
    attrs: dict[str, Any] = {"seed": members.root, "producer": "finite_nets.train_modules", "dtype": run.dtype}
    return schema.build(
        "ensemble",
        run.problem,
        values,
        steps=run.steps,
        coords=coords,
        attrs=attrs | {"device": device_name(run.device), "diverged": diverged, "shapes": json.dumps(shapes)},
    )


def measured(nets: xr.Dataset, name: str) -> xr.DataArray:
    """What a function of the user's own returned in `train_modules(..., measure={name: function})`.

    Args:
        nets: the result.
        name: of the function.

    Returns:
        DataArray (width, seed, step, ...), with the axes that the function returned.

    Raises:
        ValueError: nothing was measured under this name.

    Example:
        >>> import torch
        >>> network, training = (lambda N: torch.nn.Linear(3, N)), finite_nets.ModuleTraining(0.5, steps=1)
        >>> finite_nets.measured(problem, "size")
        Traceback (most recent call last):
        ...
        TypeError: measured expects the Dataset of train_modules, got Problem.
    """
    if not isinstance(nets, xr.Dataset):
        raise TypeError(f"measured expects the Dataset of train_modules, got {type(nets).__name__}.")
    shapes = json.loads(nets.attrs.get("shapes", "{}"))
    if name not in shapes or "measured" not in nets:
        raise ValueError(f"{name!r} was not measured; there are {', '.join(shapes) or 'none'}: give measure={{...}}.")
    part = nets["measured"].isel(entry=np.flatnonzero(nets["measure"].values == name))
    dims = [f"axis_{i}" for i in range(len(shapes[name]))]
    leading = ("width", "seed", "step")
    values = part.transpose(*leading, "entry").values.reshape(*part.shape[:3], *shapes[name])
    return xr.DataArray(values, dims=(*leading, *dims), coords={dim: nets[dim] for dim in leading}, name=name)
