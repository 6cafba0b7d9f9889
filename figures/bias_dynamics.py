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
NEEDS = fluctuations.needs("bias_dynamics", one_of=fluctuations.predicted(PANELS, "bias"))


def data(store: Path | None) -> xr.Dataset:
    """A comparison with fluctuations, of a folder of results (`figures.needs`); without one, networks are trained."""
    return fluctuations.made() if store is None else NEEDS.stored(store)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """N bias of each panel, (width, step), its prediction `_limit` (step), and the errors of both."""
    comparison = NEEDS.take(*results)
    found = {}
    for panel, (name, layer) in fluctuations.held(comparison, PANELS, "bias").items():
        sign = _towards(comparison["target"]) if name == "prediction" else 1.0
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


def _towards(target: xr.DataArray) -> xr.DataArray:
    """The sign of the targets; of several outputs, seen from their mean: +1 for a sample's class, -1 for others."""
    centered = target - target.mean("output") if "output" in target.dims else target
    return centered.copy(data=np.sign(centered.values))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of a comparison with fluctuations, or of theory, networks and fluctuations in any order."""
    ds = drawn(*results)
    return fluctuations.in_pairs(draw, ds, len(fluctuations.shown(ds, PANELS)))


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """A panel for each quantity."""
    for ax, panel in zip(axes, fluctuations.shown(ds, PANELS), strict=True):
        fluctuations.draw_dynamics(ds, panel, ax, legend=ax is axes[min(1, len(axes) - 1)])
        ax.set_title(PANELS[panel])
    axes[0].set_ylabel(r"$N\,(\mathrm{E}\,q_N - q_\infty)$")
