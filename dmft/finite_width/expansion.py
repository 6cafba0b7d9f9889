"""What a network of width N is expected to do, to leading order in 1/N.

    E q_N = q + b / N              Var q_N = V / N              V, b = lim N Var, lim N bias (`dmft.fluctuations`)

The expected loss exceeds that of the limit for two reasons, with ell = (f - y)^2 / 2 averaged over samples:

    E loss_N - loss  =  < V_f / 2 > / N   +   < (f - y) b_f > / N
                        variance of f:        bias of narrower width:
                        an ensemble's mean    stays in the mean of any
                        is free of it         ensemble

A single network is off by sqrt(V/N + (b/N)^2), root mean square; it is off by a tolerance e at the width

    N = (V + sqrt(V^2 + 4 b^2 e^2)) / (2 e^2)
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from dmft import schema
from dmft.running.host import usual_errors
from dmft.schema.labels import labelled
from dmft.schema.observed.loss import loss
from dmft.schema.order import in_any_order
from dmft.specs import _check
from dmft.specs.loss import LOSSES


@usual_errors
@in_any_order(theory=("limit",), fluctuations=("fluctuations",))
def at_width(theory: xr.Dataset, fluctuations: xr.Dataset, width: int | Sequence[int]) -> xr.Dataset:
    """Mean, standard deviation and excess loss of networks of the given width, or widths.

    Args:
        theory: the limit, from `dmft.solve`; it and the fluctuations may be given in any order.
        fluctuations: of the same problem and steps, from `dmft.fluctuations` (not in reverse mode, which has no bias).
        width: N, one or several.

    Returns:
        Dataset of kind "expansion" with the dimension width before those of each quantity: `<name>_mean` = q + b/N;
        `<name>_std` = sqrt(V/N); for loss and test_loss also `<name>_excess` = b/N and, for the squared loss where the
        variance of the prediction is given, its parts `<name>_excess_variance` and `<name>_excess_bias` (formulas
        above); each with its `_se`.  Errors of what is summed over samples are added as if all of them erred together.

    Raises:
        SchemaError, ValueError: not a limit and its fluctuations; different problems or steps; no common quantities.

    The attribute `theory_producer` says whose limit it is, `theory_regime` where that is the lazy one.

    Assumptions and approximations: leading order in 1/N.  A warning says where the bias exceeds the standard deviation,
    which the expansion does not survive.
    """
    theory = schema.validate(theory, "limit")
    fluctuations = schema.validate(fluctuations, "fluctuations")
    schema.require_same_problem(theory=theory, fluctuations=fluctuations)
    given = [width] if isinstance(width, (int, np.integer)) else list(width)
    widths = [_check.integer(f"width[{i}]", n, minimum=1) for i, n in enumerate(given)]
    names = [n for n in schema.quantities() if n in theory and f"{n}_bias" in fluctuations]
    if not names:
        raise ValueError("the fluctuations hold no bias of any quantity of the theory; make them in another mode.")
    q, v = theory[names + [f"{name}_se" for name in names]], fluctuations
    schema.require_same_labels(theory=q, fluctuations=v)
    n = xr.DataArray(np.array(widths), dims="width", coords={"width": widths})

    found: dict[str, Any] = {}
    for name in names:
        bias, bias_se = v[f"{name}_bias"], v[f"{name}_bias_se"]
        variance, variance_se = v[f"{name}_variance"], v[f"{name}_variance_se"]
        found[f"{name}_mean"] = q[name] + bias / n
        found[f"{name}_mean_se"] = (q[f"{name}_se"] ** 2 + (bias_se / n) ** 2) ** 0.5
        std: xr.DataArray = (variance / n) ** 0.5
        found[f"{name}_std"] = std
        found[f"{name}_std_se"] = (variance_se / (2 * n * std.where(std > 0))).fillna(0.0)
        quantity = schema.quantities()[name]
        if quantity.needs == schema.PREDICTIONS:
            # of the squared loss
            split = quantity.formula is loss.formula and LOSSES[json.loads(theory.attrs["problem"])["loss"]].quadratic
            found |= _excess(name, v, n, quantity.split if split else None)
        narrow = float((bias**2).sum() / max(float(variance.sum()), np.finfo(float).tiny))
        if min(widths) < narrow:
            warnings.warn(
                f"at width {min(widths)} the bias of {name} exceeds its standard deviation: the leading order in 1/N "
                f"needs widths well above {narrow:.0f}.",
                stacklevel=3,
            )
    outputs = "output" in theory.dims
    ds = xr.Dataset(
        {name: value.transpose(*schema.dims("expansion", name, outputs=outputs)) for name, value in found.items()}
    )
    shared = ("schema", "problem", "problem_id", "version", "result", "dtype", "seed")
    ds.attrs = {name: theory.attrs[name] for name in shared} | {
        "kind": "expansion",
        "producer": "dmft.at_width",
        "device": "cpu",
        "created": max(theory.attrs["created"], fluctuations.attrs["created"]),
        "mode": fluctuations.attrs["mode"],
        **schema.theory_attrs(theory),
    }
    return schema.validate(labelled(ds), "expansion")


def _excess(name: str, v: xr.Dataset, n: xr.DataArray, split: str | None) -> dict[str, xr.DataArray]:
    """In parts, where a split of the samples is given."""
    bias, bias_se = v[f"{name}_bias"], v[f"{name}_bias_se"]
    found = {f"{name}_excess": bias / n, f"{name}_excess_se": bias_se / n}
    if split and "prediction_variance" in v:
        part = v.sel(sample=v["split"] == split)
        outputs = [dim for dim in ("output",) if dim in part.dims]
        spread, spread_se = (part[f"prediction_variance{end}"].mean("sample").sum(outputs) / 2 for end in ("", "_se"))
        found[f"{name}_excess_variance"], found[f"{name}_excess_variance_se"] = spread / n, spread_se / n
        found[f"{name}_excess_bias"] = (bias - spread) / n
        found[f"{name}_excess_bias_se"] = (bias_se**2 + spread_se**2) ** 0.5 / n
    return found


@usual_errors
def required_width(
    fluctuations: xr.Dataset, tolerance: float | xr.DataArray, *, quantity: str = "prediction"
) -> xr.DataArray:
    """The width at which one network is off the limit by `tolerance`, root mean square, for each entry of a quantity.

    Args:
        fluctuations: from `dmft.fluctuations`; without a bias (reverse mode) the variance alone counts.
        tolerance: in the units of the quantity; one for all entries, or one for each, such as `0.05 * theory["loss"]`
            for five per cent of the limit.
        quantity: e.g. "prediction", "loss", "ntk".

    Returns:
        Whole numbers with the dimensions of the quantity, at least 1; take `.max()` for all entries together.

    Raises:
        SchemaError, ValueError: not fluctuations; a quantity that they do not hold; tolerance not positive.
    """
    fluctuations = schema.validate(fluctuations, "fluctuations")
    if not isinstance(tolerance, xr.DataArray):
        tolerance = xr.DataArray(_check.positive("tolerance", tolerance))
    elif not (tolerance > 0).all():
        raise ValueError(f"tolerance must be positive for every entry; the least is {tolerance.min().item():g}.")
    if f"{quantity}_variance" not in fluctuations:
        held = [name for name in schema.quantities() if f"{name}_variance" in fluctuations]
        raise ValueError(f"quantity={quantity!r} is not in these fluctuations, which hold {', '.join(held)}.")
    variance = fluctuations[f"{quantity}_variance"]
    bias = fluctuations.get(f"{quantity}_bias", 0 * variance)
    width = (variance + (variance**2 + 4 * (bias * tolerance) ** 2) ** 0.5) / (2 * tolerance**2)
    if width.sizes != variance.sizes:
        raise ValueError(
            f"tolerance has the dimensions {dict(tolerance.sizes)}, {quantity} {dict(variance.sizes)}; take it "
            "from a result of the same problem and steps."
        )
    name = f"{quantity}_required_width"
    found = variance.copy(data=np.maximum(np.ceil(width.values), 1).astype(np.int64))
    return labelled(found.to_dataset(name=name))[name]
