"""Numbers of the interactive part of a report: curves through training, and kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from comparisons.samples import held, samples
from dmft import schema
from figures import style
from figures.report.results import SOURCES, Results, first

MOST_NUMBERS = 400_000  # of kernels in the file


def data_of(found: Results) -> dict[str, Any]:
    return {"curves": _curves(found), **_kernels(found)}


def _curves(found: Results) -> list[dict[str, Any]]:
    comparison = first(found, "comparison")
    if comparison is None:
        return []
    curves = []
    widths = comparison["width"].values.tolist()
    colors = {n: _css(color) for n, color in style.width_colors(widths).items()}
    for q, quantity in schema.quantities().items():
        if quantity.dims != ("step",) or f"{q}_mean" not in comparison:
            continue
        lines = [
            {"name": f"N = {n}", "color": colors[n], "limit": False, **_pair(comparison.sel(width=n), f"{q}_mean")}
            for n in widths
        ]
        lines.append({"name": "limit", "color": "#000", "limit": True, **_pair(comparison, f"{q}_limit")})
        curves.append({"name": schema.in_tables()[q], "time": _list(comparison["time"].values), "lines": lines})
    return curves


def _pair(ds: xr.Dataset, name: str) -> dict[str, Any]:
    return {"y": _list(ds[name].values), "se": _list(ds[f"{name}_se"].values)}


def _kernels(found: Results) -> dict[str, Any]:
    """Kernels of the limit and means over networks at some steps, as many numbers as a page can hold."""
    theory, nets, _ = (first(found, *kinds) for kinds in SOURCES)
    nothing: dict[str, Any] = {"kernels": [], "widths": [], "times": []}
    if theory is None or nets is None or "output" in theory.dims:
        return nothing
    names = [name for name in schema.kernels() if name in theory and held(nets, name)]
    if not names or "sample_2" not in theory.dims:
        return nothing
    layers = sum(theory[name].sizes.get("layer", 1) for name in names)
    each = layers * theory.sizes["sample"] ** 2 * (1 + nets.sizes["width"])
    count = min(theory.sizes["step"], MOST_NUMBERS // each)
    if count < 1:
        return nothing
    target = theory["target"].values
    order = np.argsort(target, kind="stable")  # samples by class
    steps = np.unique(np.linspace(0, theory.sizes["step"] - 1, count).round().astype(int))
    kernels = []
    for name in names:
        means = np.stack([samples(nets, name, i).mean()[0] for i in range(nets.sizes["width"])])
        means, limit = (values[..., order[:, None], order] for values in (means, theory[name].values))
        label = schema.in_tables()[name]
        for layer in range(len(limit)) if "layer" in theory[name].dims else [None]:
            at = () if layer is None else (layer,)
            kernels.append(
                {
                    "name": label if layer is None else f"{label}, layer {theory['layer'].values[layer]}",
                    "limit": [_list(limit[(*at, s)].ravel()) for s in steps],
                    "mean": [[_list(mean[(*at, s)].ravel()) for s in steps] for mean in means],
                }
            )
    return {"kernels": kernels, "widths": nets["width"].values.tolist(), "times": _list(theory["time"].values[steps])}


def _list(values: Any) -> list[float | None]:
    """Four digits; what is not finite as null."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(values, float).tolist()]


def _css(color: Any) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in color[:3])
