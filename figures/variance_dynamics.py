"""Fluctuations through training: N Var of predictions and kernels of several widths on one predicted curve.

Mean over samples (kernels: over the diagonal).  Lines: `dmft.fluctuations`, with its standard error.  Points: trained
networks, N times their variance, with sampling errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import fluctuations, style

PANELS = {
    "prediction": "(a) predictions $f$",
    "feature_kernel_1": r"(b) feature kernel $\Phi^{(1)}$",
    "feature_kernel_2": r"(c) feature kernel $\Phi^{(2)}$",
    "ntk": "(d) NTK",
}
NEEDS = fluctuations.needs("variance_dynamics", one_of=fluctuations.predicted(PANELS, "variance"))


def data(store: Path | None) -> xr.Dataset:
    """A comparison with fluctuations, of a folder of results (`figures.needs`); without one, networks are trained."""
    return fluctuations.made() if store is None else NEEDS.stored(store)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """N Var of each panel, (width, step), its prediction `_limit` (step), and the errors of both."""
    comparison = NEEDS.take(*results)
    found = {}
    for panel, (name, layer) in fluctuations.held(comparison, PANELS, "variance").items():
        for ours, theirs in (("", ""), ("_se", "_se"), ("_limit", "_limit"), ("_limit_se", "_limit_se")):
            value = fluctuations.per_sample(comparison[f"{name}_variance{theirs}"])
            found[f"{panel}{ours}"] = value if layer is None else value.sel(layer=layer, drop=True)
    return xr.Dataset(found, attrs=style.provenance(comparison))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of a comparison with fluctuations, or of theory, networks and fluctuations in any order."""
    ds = drawn(*results)
    return fluctuations.in_pairs(draw, ds, len(fluctuations.shown(ds, PANELS)))


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """A panel for each quantity."""
    for i, (ax, panel) in enumerate(zip(axes, fluctuations.shown(ds, PANELS), strict=True)):
        fluctuations.draw_dynamics(ds, panel, ax, legend=i == 0)
        ax.set(title=PANELS[panel], ylim=(0, None))
    axes[0].set_ylabel(r"$N\,\mathrm{Var}$")
