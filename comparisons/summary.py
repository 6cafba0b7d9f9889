"""A comparison as a short table of text."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from comparisons.estimators import root
from dmft import schema

LABELS = {
    "prediction": "prediction f",
    "loss": "training loss",
    "test_loss": "test loss",
    "feature_kernel": "feature kernels",
    "gradient_kernel": "gradient kernels",
    "ntk": "NTK",
}


def summary(comparison: xr.Dataset) -> str:
    """Distance to the limit at each width, and the exponents in width, as text of at most 100 columns."""
    schema.validate(comparison, "comparison")
    last = comparison.isel(step=-1)
    lines = [
        f"Networks of {comparison.attrs['seeds']} seeds a width against the limit "
        f"({comparison.attrs['theory_scrambles']} x {comparison.attrs['theory_particles']} particles); "
        f"problem {comparison.attrs['problem_id']}",
        "",
        f"{'':>6}  {'bias of f':>19}  {'N Var f':>17}  {'Phi^L: distance of':>33}  {'loss':>10}",
        f"{'width':>6}  {'(rms)':>19}  {'(mean)':>17}  {'one network':>14}  {'their mean':>17}  {'at the end':>10}",
    ]
    for width in comparison["width"].values:
        row, end = comparison.sel(width=width), last.sel(width=width)
        bias = root(row["prediction_total_bias_square"].values, row["prediction_total_bias_square_se"].values)
        variance = width * row["prediction_total_variance"].item(), width * row["prediction_total_variance_se"].item()
        lines.append(
            f"{width:>6}  {_with_error(*bias):>19}  {_with_error(*variance):>17}  "
            f"{_percent(end, 'feature_kernel_distance'):>14}  "
            f"{_percent(end, 'feature_kernel_error', error=True):>17}  {end['loss_mean'].item():>10.5f}"
        )
    lines.append(f"{'limit':>6}  {'':>19}  {'':>17}  {'':>14}  {'':>17}  {last['loss_limit'].item():>10.5f}")
    lines += ["", f"{'Falls with width N like N^s, s =':<29}{'variance (-1 expected)':>25}{'bias (-1 expected)':>26}"]
    for name, label in LABELS.items():
        if f"{name}_variance_exponent" in comparison:
            exponents = (_exponent(comparison, f"{name}_{kind}_exponent") for kind in ("variance", "bias"))
            lines.append(f"  {label:<27}" + "".join(f"{exponent:>26}" for exponent in exponents))
    return "\n".join(lines)


def _with_error(value: Any, se: Any) -> str:
    return f"{value:.5f} +- {se:.5f}"


def _percent(row: xr.Dataset, name: str, *, error: bool = False) -> str:
    if name not in row:
        return "-"
    value = f"{100 * row[name].values[-1]:.2f} %"
    return value + (f" +- {100 * row[name + '_se'].values[-1]:.2f}" if error else "")


def _exponent(comparison: xr.Dataset, name: str) -> str:
    value, se = comparison[name].item(), comparison[name + "_se"].item()
    return "not resolved" if np.isnan(value) else f"{value:.2f} +- {se:.2f}"
