"""Numbers of the interactive part of the page: curves through training, and kernels at some steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import to_hex

from comparisons.samples import held, samples
from figures import style
from figures.report.quantities import CURVES, KERNELS, LABELS
from figures.report.results import Results, of_kind, source

MOST_NUMBERS = 400_000  # of kernels in the file


def interactive(found: Results) -> dict[str, Any]:
    """What the script of the page draws, for JSON."""
    return {"curves": _curves(found), **_kernels(found)}


def _curves(found: Results) -> list[dict[str, Any]]:
    comparison = of_kind(found, "comparison")
    if comparison is None:
        return []
    curves = []
    widths = comparison["width"].values.tolist()
    colors = {n: to_hex(color) for n, color in style.width_colors(widths).items()}
    for q in CURVES:
        if f"{q}_mean" not in comparison:
            continue
        lines = [
            {"name": f"N = {n}", "color": colors[n], "limit": False, **_pair(comparison.sel(width=n), f"{q}_mean")}
            for n in widths
        ]
        lines.append({"name": "limit", "color": "#000", "limit": True, **_pair(comparison, f"{q}_limit")})
        curves.append({"name": LABELS.get(q, q), "time": _list(comparison["time"].values), "lines": lines})
    return curves


def _pair(ds: xr.Dataset, name: str) -> dict[str, Any]:
    return {"y": _list(ds[name].values), "se": _list(ds[f"{name}_se"].values)}


def _kernels(found: Results) -> dict[str, Any]:
    """Kernels of the limit and means over networks at some steps, as many numbers as a page can hold."""
    theory, nets = source(found, "theory"), source(found, "networks")
    nothing: dict[str, Any] = {"kernels": [], "widths": [], "times": []}
    if theory is None or nets is None or "output" in theory.dims:
        return nothing
    names = [name for name in KERNELS if name in theory and held(nets, name)]
    if not names or "sample_2" not in theory.dims:
        return nothing
    layers = sum(theory[name].sizes.get("layer", 1) for name in names)
    each = layers * theory.sizes["sample"] ** 2 * (1 + nets.sizes["width"])
    count = min(theory.sizes["step"], MOST_NUMBERS // each)
    if count < 1:
        return nothing
    order = np.argsort(theory["target"].values, kind="stable")  # samples by class
    steps = np.unique(np.linspace(0, theory.sizes["step"] - 1, count).round().astype(int))
    kernels = []
    for name in names:
        means = np.stack([samples(nets, name, i).mean()[0] for i in range(nets.sizes["width"])])
        means, limit = (values[..., order[:, None], order] for values in (means, theory[name].values))
        for layer in range(len(limit)) if "layer" in theory[name].dims else [None]:
            at = () if layer is None else (layer,)
            kernels.append(
                {
                    "name": KERNELS[name]
                    if layer is None
                    else f"{KERNELS[name]}, layer {theory['layer'].values[layer]}",
                    "limit": [_list(limit[(*at, s)].ravel()) for s in steps],
                    "mean": [[_list(mean[(*at, s)].ravel()) for s in steps] for mean in means],
                }
            )
    return {"kernels": kernels, "widths": nets["width"].values.tolist(), "times": _list(theory["time"].values[steps])}


def _list(values: Any) -> list[float | None]:
    """Four digits; what is not finite as null."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(values, float).tolist()]
