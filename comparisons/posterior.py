"""Networks under their posterior beside the adaptive kernels of infinite width.

    <q>_deviation    mean over chains minus the limit; with errors of both, <q>_z in standard errors
    <kernel>_error   |mean over chains - limit| / |limit| of each layer, Frobenius norms; <kernel>_noise, what the
                     standard errors of both alone would make of it, root mean square

Deviations of networks of width N are of order 1/N.
"""

from __future__ import annotations

import math

import xarray as xr

from dmft import schema
from dmft.running.host import usual_errors
from dmft.schema.sources import by_kind

PREDICTED = ("prediction", "loss", "test_loss")


@usual_errors
@by_kind(theory="adaptive", nets="chains")
def posterior(theory: xr.Dataset, nets: xr.Dataset) -> xr.Dataset:
    """How far networks of each width are from the limit.

    Args:
        theory: of `dmft.adaptive_kernel(kind="bayes")`; it and the networks may be given in any order.
        nets: of `finite_nets.sample_posterior`, of the same problem at the same temperature.

    Returns:
        Dataset: prediction_mean, prediction_deviation, prediction_z (width, sample) and prediction_limit (sample) with
        their `_se`, losses alike; feature_kernel_error, feature_kernel_noise (width, layer).

    Raises:
        SchemaError, ValueError: results of other kinds, or of different problems or temperatures.

    Example:
        >>> linear = dmft.vary(problem, activation=[dmft.linear()])[0]
        >>> theory = dmft.adaptive_kernel(linear, temperature=0.5)
        >>> nets = finite_nets.sample_posterior(linear, widths=[8], seeds=4, temperature=0.5, largest_r_hat=2.0)
        >>> comparisons.posterior(theory, nets)["feature_kernel_error"].dims
        ('width', 'layer')
    """
    theory, nets = schema.validate(theory, "adaptive_kernel"), schema.validate(nets, "posterior")
    schema.require_same_problem(theory=theory, networks=nets)
    schema.require_same_labels(theory=theory, networks=nets)
    limit_at, nets_at = (ds.attrs.get("temperature", math.nan) for ds in (theory, nets))
    if not math.isclose(limit_at, nets_at):
        raise ValueError(f"temperatures are {limit_at} of the theory and {nets_at} of the networks; take the same.")
    found: dict[str, xr.DataArray] = {}
    for name in PREDICTED:
        if name not in theory:
            continue
        mean, limit = nets[name].mean("seed"), theory[name]
        errors = _both(nets, theory, name)
        found |= {f"{name}_mean": mean, f"{name}_mean_se": nets[f"{name}_se"]}
        found |= {f"{name}_limit": limit, f"{name}_limit_se": theory[f"{name}_se"]}
        found |= {
            f"{name}_deviation": mean - limit,
            f"{name}_deviation_se": errors,
            f"{name}_z": (mean - limit) / errors,
        }
    pair, kernel = ["sample", "sample_2"], "feature_kernel"
    size = _norm(theory[kernel], pair)
    found[f"{kernel}_error"] = _norm(nets[kernel].mean("seed") - theory[kernel], pair) / size
    found[f"{kernel}_noise"] = _norm(_both(nets, theory, kernel), pair) / size
    result = xr.Dataset(found)
    result.attrs = {name: nets.attrs[name] for name in ("problem", "problem_id", "temperature")}
    return result


def _both(nets: xr.Dataset, theory: xr.Dataset, name: str) -> xr.DataArray:
    """Standard error of a difference."""
    return (nets[f"{name}_se"] ** 2 + theory[f"{name}_se"] ** 2) ** 0.5


def _norm(array: xr.DataArray, dims: list[str]) -> xr.DataArray:
    return (array**2).sum(dims) ** 0.5
