"""`statistics`: means, variances, covariances over the networks of each width, with standard errors, and no theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from comparisons.samples import covariance, held, require_enough, samples
from dmft import schema

FEWEST = 4  # networks, or blocks, of a width


def statistics(nets: xr.Dataset) -> xr.Dataset:
    """Statistics of an ensemble, whose networks are at hand or known by moments of blocks.

    Args:
        nets: of kind "ensemble" or "moments", e.g. from `finite_nets.train_ensemble` or `finite_nets.open_store`.

    Returns:
        Dataset of kind "statistics" (`dmft.schema`), not multiplied by N: count(width); `<q>_mean` and `<q>_variance`
        (width, ...) with their `_se`, for every quantity q; prediction_covariance(width, step, sample, step_2,
        sample_2) where predictions of single networks, or their comoments, are there.  Networks that diverged do not
        count.

    Raises:
        SchemaError: a Dataset of another kind.
        ValueError: fewer than four networks or blocks of a width.
    """
    moments = isinstance(nets, xr.Dataset) and nets.attrs.get("kind") == "moments"
    schema.validate(nets, "moments" if moments else "ensemble")
    counts = require_enough(nets, FEWEST)
    outputs, widths = "output" in nets.dims, range(nets.sizes["width"])
    found: dict[str, Any] = {"count": np.array(counts)}
    for name in schema.VARIABLES:
        if held(nets, name):
            each = [samples(nets, name, i) for i in widths]
            for kind, pairs in (("mean", [s.mean() for s in each]), ("variance", [s.variance() for s in each])):
                for suffix, values in zip(("", "_se"), zip(*pairs, strict=True), strict=True):
                    found[f"{name}_{kind}{suffix}"] = np.stack(values)
    if "prediction_comoment" in nets or (not moments and "prediction" in nets):
        one = found["prediction_mean"].shape[1:]
        found["prediction_covariance"] = np.stack([covariance(nets, i).reshape(*one, *one) for i in widths])
    variables = {name: (schema.dims("statistics", name, outputs=outputs), value) for name, value in found.items()}
    used = {dim for dims, _ in variables.values() for dim in dims}
    ds = xr.Dataset(variables)
    missing = {dim: nets[dim.removesuffix("_2")].values for dim in used if dim not in nets.coords}
    ds = ds.assign_coords({name: c for name, c in nets.coords.items() if set(c.dims) <= used} | missing)
    ds.attrs = nets.attrs | {"kind": "statistics", "producer": "comparisons.statistics"}
    return schema.validate(ds, "statistics")
