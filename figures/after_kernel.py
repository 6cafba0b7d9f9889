"""After-kernels: regression with the NTK of networks through training, across widths and in the limit.

(a) test loss of kernel regression with the NTK of step t: mean over networks of each width, and the limit.
(b) its excess over the limit's after training: of one network's kernel, of the mean kernel over networks.
(c) distance of its test predictions from those of the limit's after-kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
from figures import runs, style
from figures.needs import Needs

SIZE = (style.WIDE, 2.7)
NEEDS = Needs(
    "after_kernel",
    "after_kernel",
    "comparisons.after_kernel(theory, nets)",
    ("test_loss", "test_loss_limit", "test_loss_of_mean", "distance", "distance_of_mean"),
    make=comparisons.after_kernel,
)
CURVES = {"": "kernel of one network", "_of_mean": "mean kernel"}


def data(store: Path | None) -> xr.Dataset:
    """`comparisons.after_kernel`, of a folder of results (`figures.needs`) or made."""
    return NEEDS.take(*runs.wide()) if store is None else NEEDS.stored(store)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it, and the excess over the limit."""
    ds = NEEDS.take(*results)
    found = {}
    for name in CURVES:
        found[f"excess{name}"] = ds[f"test_loss{name}"] - ds["test_loss_limit"]
        found[f"excess{name}_se"] = (ds[f"test_loss{name}_se"] ** 2 + ds["test_loss_limit_se"] ** 2) ** 0.5
    return ds.assign(found).assign_attrs(style.provenance(ds))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of `comparisons.after_kernel`, or of theory and networks in any order."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Draw the three panels on three axes."""
    time, width, last = ds["time"].values, ds["width"].values, ds.isel(step=-1)
    style.by_width(axes[0], time, ds, "test_loss", "test_loss_limit")
    axes[0].set(xlabel=r"time $\eta t$ of the kernel", ylabel="test loss of regression", title="(a) through training")
    for (name, label), look in zip(CURVES.items(), style.SERIES, strict=False):
        value, se = last[f"excess{name}"].values, last[f"excess{name}_se"].values
        axes[1].errorbar(width, value, se, label=label, linewidth=0.8, linestyle="-", **look)
        style.resolved(
            axes[2], width, last[f"distance{name}"].values, last[f"distance{name}_se"].values, label=label, **look
        )
    axes[1].axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes[1].set(ylabel="test loss, excess over the limit", title="(b) after training")
    style.above(axes[2], width, last["distance"].values, last["distance_se"].values, -0.5, "$N^{-1/2}$")
    axes[2].set_yscale("log")
    axes[2].set(ylabel="rms distance of predictions", title="(c) distance to the limit's")
    for ax in axes[1:]:
        style.width_axis(ax, width)
    style.room(axes[2], bottom=0.5)
    for ax, place in zip(axes, ("upper right", "upper right", "lower left"), strict=True):
        style.legend(ax, loc=place)
