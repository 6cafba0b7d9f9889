"""The bias of narrower width through training: N (mean over networks - limit) of several widths on one predicted curve.

Predictions: towards their targets, mean over samples; kernels: mean of the diagonal.  Lines: `dmft.fluctuations`, with
its standard error.  Points: trained networks, with sampling errors and those of the limit, times N.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import fluctuations, style

PANELS = {
    "prediction": "(a) predictions, towards the target",
    "loss": "(b) training loss",
    "feature_kernel_2": r"(c) feature kernel $\Phi^{(2)}$",
    "ntk": "(d) NTK",
}


def data(store: Path | None) -> xr.Dataset:
    """The comparison in `store`/fluctuations.nc; without a store, networks are trained."""
    return fluctuations.dynamics(store)


def drawn(comparison: xr.Dataset) -> xr.Dataset:
    """N bias of each panel, (width, step), its prediction `_limit` (step), and the errors of both."""
    found = {}
    for panel, (name, layer) in fluctuations.held(comparison, PANELS, "bias").items():
        sign = np.sign(comparison["target"]) if name == "prediction" else 1.0
        n = comparison["width"]
        values = {
            "": n * comparison[f"{name}_deviation"] * sign,
            "_se": n * comparison[f"{name}_deviation_se"],
            "_limit": comparison[f"{name}_bias_limit"] * sign,
            "_limit_se": comparison[f"{name}_bias_limit_se"],
        }
        for part, value in values.items():
            mean = fluctuations.per_sample(value)
            found[f"{panel}{part}"] = mean if layer is None else mean.sel(layer=layer, drop=True)
    return xr.Dataset(found, attrs=style.provenance(comparison))


def figure(comparison: xr.Dataset) -> Figure:
    """The whole figure."""
    ds = drawn(comparison)
    return fluctuations.figure(draw, ds, len(fluctuations.shown(ds, PANELS)))


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """A panel for each quantity."""
    for ax, panel in zip(axes, fluctuations.shown(ds, PANELS), strict=True):
        fluctuations.draw_dynamics(ds, panel, ax, legend=ax is axes[min(1, len(axes) - 1)])
        ax.set_title(PANELS[panel])
    axes[0].set_ylabel(r"$N\,(\mathrm{E}\,q_N - q_\infty)$")
