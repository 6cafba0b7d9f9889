"""`statistics`: means, variances, covariances over the networks of each width, with standard errors, and no theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from comparisons import inputs
from comparisons.samples import held, prediction_covariance, require_enough, samples
from dmft import schema
from dmft.running.host import usual_errors
from dmft.schema.labels import labelled

FEWEST = 4  # networks, or blocks, of a width


@usual_errors
def statistics(nets: xr.Dataset, *, covariance: bool = False) -> xr.Dataset:
    """Statistics of an ensemble, whose networks are at hand or known by moments of blocks.

    Args:
        nets: of kind "ensemble" or "moments", e.g. from `finite_nets.train_ensemble` or `finite_nets.open_store`.
        covariance: of predictions over all pairs of (step, sample), from networks or from their comoments.

    Returns:
        Dataset of kind "statistics" (`dmft.schema`), not multiplied by N: count(width); `<q>_mean` and
        `<q>_seed_variance` (width, ...) with their `_se`, for every quantity q; prediction_seed_covariance(width, step,
        sample, step_2, sample_2) on request.  Networks that diverged do not count.

    Raises:
        SchemaError: a Dataset of another kind.
        ValueError: fewer than four networks or blocks of a width; no predictions, or no comoments, for a covariance.
    """
    nets = inputs.check_networks(nets)
    moments = nets.attrs["kind"] == "moments"
    counts = require_enough(nets, FEWEST)
    outputs, widths = "output" in nets.dims, range(nets.sizes["width"])
    found: dict[str, Any] = {"count": np.array(counts)}
    for name in schema.quantities():
        if held(nets, name):
            each = [samples(nets, name, i) for i in widths]
            for kind, pairs in (("mean", [s.mean() for s in each]), ("seed_variance", [s.variance() for s in each])):
                for suffix, values in zip(("", "_se"), zip(*pairs, strict=True), strict=True):
                    found[f"{name}_{kind}{suffix}"] = np.stack(values)
    if covariance:
        if ("prediction_comoment" if moments else "prediction") not in nets:
            raise ValueError(
                "the networks have no predictions to find a covariance of; record them"
                + (" with covariance=True." if moments else ".")
            )
        one = found["prediction_mean"].shape[1:]
        each_width = [prediction_covariance(nets, i).reshape(*one, *one) for i in widths]
        found["prediction_seed_covariance"] = np.stack(each_width)
    variables = {name: (schema.dims("statistics", name, outputs=outputs), value) for name, value in found.items()}
    used = {dim for dims, _ in variables.values() for dim in dims}
    ds = xr.Dataset(variables)
    missing = {dim: nets[dim.removesuffix("_2")].values for dim in used if dim not in nets.coords}
    ds = ds.assign_coords({name: c for name, c in nets.coords.items() if set(c.dims) <= used} | missing)
    ds.attrs = nets.attrs | {"kind": "statistics", "producer": "comparisons.statistics"}
    return schema.validate(labelled(ds), "statistics")
