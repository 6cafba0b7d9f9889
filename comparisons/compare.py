"""`compare`: where networks of each width stand relative to the limit, and how the difference falls with width.

For a quantity q, with E networks of width N (names of the variables in the result, sample and layer indices left out):

    q_limit                the limit                                      + q_limit_se
    q_mean                 mean over networks                             + q_mean_se
    q_variance             N Var(q)                                       + q_variance_se
    q_deviation            q_mean - q_limit                               + q_deviation_se (both errors), q_z = ratio
    q_error                |E q - q_limit| of the ensemble's mean: bias, falls like 1/N             + q_error_se
    q_distance             rms_e |q_e - q_limit| of one network, falls like 1/sqrt(N)               + q_distance_se
                           for each layer and step; kernels: Frobenius norms over samples, relative to the limit's;
                           predictions: root mean square over samples and outputs; losses, accuracies: as they are
    q_raw_variance         Var(q), not multiplied by N, mean over entries     + q_raw_variance_se
    q_raw_bias_square      (E q - q_limit)^2, mean over entries           + q_raw_bias_square_se
    q_variance_exponent    s in q_raw_variance ~ N^s                      + q_variance_exponent_se, _chi2 (per degree
                           of freedom); nan where the widths do not resolve it
    q_bias_exponent        s in the root of q_raw_bias_square ~ N^s       + q_bias_exponent_se, _chi2

With fluctuations, V = lim N Var(q) and b = lim N (E q - q_limit) stand beside what was measured:

    q_variance_limit, q_bias_limit   V and b                              + _se
    q_variance_z, q_bias_z           (N Var(q) - V) and (N q_deviation - b), in units of both errors; corrections of
                                     relative order 1/N show here at narrow widths
    q_variance_ratio                 sum_samples N Var(q) / sum_samples V, for each layer and step     + _se
    q_bias_ratio                     slope of N q_deviation over b: sum N q_deviation b / sum b^2      + _se
    q_variance_overall_ratio, q_bias_overall_ratio   the same, all entries together  + _se; nan where V or b vanish or
                                     are not resolved

Squared deviations are freed of the sampling noise of networks and theory (`comparisons.estimators`); a root of a
negative estimate is reported as 0 with its error.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import OptimizeWarning

from comparisons import estimators, inputs
from comparisons.samples import held, require_enough, samples
from comparisons.scaling import PowerLaw, fit_power_law
from dmft import schema
from dmft.running.host import usual_errors
from dmft.schema.labels import labelled
from dmft.schema.order import NETWORKS, in_any_order


@usual_errors
@in_any_order(theory=("limit",), nets=NETWORKS, fluctuations=("fluctuations",))
def compare(theory: xr.Dataset, nets: xr.Dataset, fluctuations: xr.Dataset | None = None) -> xr.Dataset:
    """Compare an ensemble with the limit of the same problem.

    Args:
        theory: of kind "limit", e.g. from `dmft.solve`; results may be given in any order.
        nets: of kind "ensemble" or "moments", e.g. from `finite_nets.train_ensemble` or `finite_nets.open_store`; at
            least eight seeds, or blocks of them, a width.  Networks that diverged do not count.
        fluctuations: predicted N Var and N bias, from `dmft.fluctuations`, for the quantities that it holds.

    Returns:
        Dataset of kind "comparison" with the variables listed at the top of this module, for every quantity that both
        hold; N Var and deviations have the dimensions (width, ...) of the quantity, exponents have none.  Attributes of
        the inputs are there with the prefixes theory_, nets_, fluctuations_; theory_regime says where the limit is that
        of lazy networks.

    Raises:
        SchemaError: inputs of another form.
        ValueError: different problems, different steps or samples, fewer than eight seeds or blocks.
    """
    theory, nets = schema.validate(theory, "limit"), inputs.check_networks(nets)
    quantities = [name for name in schema.quantities() if name in theory and held(nets, name)]
    theory = inputs.check_theory(theory, nets, quantities)
    seeds = require_enough(nets)
    if fluctuations is not None:
        fluctuations = inputs.check_fluctuations(fluctuations, nets)

    outputs = "output" in theory.dims
    variables: dict[str, tuple[tuple[str, ...], Any]] = {}
    for name in quantities:
        found = _quantity(theory, nets, name)
        if fluctuations is not None:
            found |= _predicted(fluctuations, nets, name, found)
        for suffix, value in found.items():
            variable = f"{name}_{suffix}"
            variables[variable] = (schema.dims("comparison", variable, outputs=outputs), value)
    kept = {dim for dims, _ in variables.values() for dim in dims}
    coords = {name: c for name, c in nets.coords.items() if set(c.dims) <= kept}
    ds = xr.Dataset(variables, coords=coords)
    shared = ("schema", "problem", "problem_id", "version")
    ds.attrs = {name: theory.attrs[name] for name in shared} | {
        "kind": "comparison",
        "producer": "comparisons.compare",
        "seeds": seeds[0] if len(set(seeds)) == 1 else seeds,
        "dtype": "float64",
        "device": "cpu",
        "seed": nets.attrs["seed"],
        "result": "success",
        "created": max(theory.attrs["created"], nets.attrs["created"]),
    }
    for side, source in (("theory", theory), ("nets", nets), ("fluctuations", fluctuations)):
        if source is None:
            continue
        ds.attrs |= {f"{side}_{k}": v for k, v in source.attrs.items() if k not in (*shared, "kind")}
    return schema.validate(labelled(ds), "comparison")


def _quantity(theory: xr.Dataset, nets: xr.Dataset, name: str) -> dict[str, Any]:
    """All variables of one quantity, by suffix; widths on the first axis."""
    limit, limit_se = theory[name].values, theory[f"{name}_se"].values
    widths = nets["width"].values
    dims = theory[name].dims
    inner = tuple(i for i, dim in enumerate(dims) if dim not in ("layer", "step"))
    everything = tuple(range(len(dims)))
    unit = limit if schema.quantities()[name].kernel else np.ones_like(limit)
    scale = np.sqrt((unit**2).sum(axis=inner))
    precision = schema.ROUNDING[nets.attrs["dtype"]]

    rows: list[dict[str, Any]] = []
    for i, width in enumerate(widths):
        x = samples(nets, name, i)
        row: dict[str, Any] = {}
        row["mean"], row["mean_se"] = estimators.mean(x)
        variance, variance_se = estimators.variance(x)
        row["variance"], row["variance_se"] = width * variance, width * variance_se
        row["deviation"] = row["mean"] - limit
        rounding = precision * np.maximum(abs(row["mean"]), abs(limit))
        row["deviation_se"] = np.sqrt(row["mean_se"] ** 2 + limit_se**2 + rounding**2)
        row["z"] = estimators.z_score(row["deviation"], row["deviation_se"])
        square, square_se = estimators.squared_bias(x, limit, limit_se, inner)
        row["error"], row["error_se"] = (value / scale for value in estimators.root(square, square_se))
        row["distance"], row["distance_se"] = (value / scale for value in estimators.distance(x, limit, inner))
        square, square_se = estimators.squared_bias(x, limit, limit_se, everything)
        row["raw_bias_square"], row["raw_bias_square_se"] = square / limit.size, square_se / limit.size
        row["raw_variance"], row["raw_variance_se"] = estimators.mean_variance(x)
        rows.append(row)
    found: dict[str, Any] = {suffix: np.stack([row[suffix] for row in rows]) for suffix in rows[0]}
    found |= {"limit": limit, "limit_se": limit_se}
    if len(widths) > 1:
        for kind, quantity, root in (("variance", "raw_variance", 1), ("bias", "raw_bias_square", 2)):
            law = _power_law(widths, found[quantity], found[f"{quantity}_se"])
            found[f"{kind}_exponent"] = law.slope / root
            found[f"{kind}_exponent_se"] = law.slope_se / root
            found[f"{kind}_exponent_chi2"] = law.chi2_per_dof
    return found


def _power_law(widths: Any, value: Any, se: Any) -> PowerLaw:
    """The fit through the widths where networks differ: an accuracy may be the same in all of them."""
    some = se > 0
    with warnings.catch_warnings():
        # a fit without covariance says itself that it is not resolved
        warnings.simplefilter("ignore", OptimizeWarning)
        return fit_power_law(widths[some], value[some], se[some])


def _predicted(fluctuations: xr.Dataset, nets: xr.Dataset, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Predicted N Var and N bias beside the measured ones in `found`, by suffix; widths on the first axis."""
    added: dict[str, Any] = {}
    widths = nets["width"].values
    dims = schema.dims("limit", name, outputs="output" in nets.dims)  # of one network
    column = widths.reshape(-1, *[1] * len(dims))
    measured = {
        "variance": (found["variance"], found["variance_se"]),
        "bias": (column * found["deviation"], column * found["deviation_se"]),
    }
    for kind, (value, se) in measured.items():
        if f"{name}_{kind}" not in fluctuations:
            continue
        limit, limit_se = (fluctuations[f"{name}_{kind}{part}"].values for part in ("", "_se"))
        added[f"{kind}_limit"], added[f"{kind}_limit_se"] = limit, limit_se
        precision = schema.ROUNDING[nets.attrs["dtype"]]
        rounding = precision * column * np.maximum(abs(found["mean"]), abs(found["limit"]))
        added[f"{kind}_z"] = estimators.z_score(value - limit, np.sqrt(se**2 + limit_se**2 + rounding**2))
        ratio = {"variance": estimators.variance_ratio, "bias": estimators.bias_ratio}[kind]
        inner = tuple(i for i, dim in enumerate(dims) if dim not in ("layer", "step"))
        for suffix, axis in (("ratio", inner), ("overall_ratio", tuple(range(len(dims))))):
            rows = [
                ratio(
                    samples(nets, name, i),
                    width,
                    found["limit"],
                    found["limit_se"],
                    limit,
                    limit_se,
                    axis,
                )
                for i, width in enumerate(widths)
            ]
            added[f"{kind}_{suffix}"], added[f"{kind}_{suffix}_se"] = (
                np.stack(part) for part in zip(*rows, strict=True)
            )
    return added
