"""Representations across widths: similarity of networks' kernels to the limit's, and to the task.

(a) 1 - unbiased CKA of the kernels of one network with the limit's against width, after training, each layer.
(b) relative distance of kernels (top layer): one network, and the mean over networks.
(c) alignment of the top kernel with the targets y y^T through training: networks (mean) and the limit.
Feature kernels, unless others are given.  What networks known by moments, fewer than four samples or feature kernels of
several outputs do not have is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
from dmft import schema
from figures import runs, style
from figures.needs import Needs

SIZE = (style.WIDE, 2.6)
NEEDS = Needs(
    "kernel_alignment",
    "representations",
    "comparisons.representations(theory, nets)",
    one_of=("distance", "distance_of_mean"),
    make=comparisons.representations,
)
DISTANCES = {"distance": "one network", "distance_of_mean": "mean over networks"}
SHOWN = ("unbiased_cka", "distance", "distance_of_mean", "target_alignment", "target_alignment_limit")


def data(store: Path | None) -> xr.Dataset:
    """`comparisons.representations`, of a folder of results (`figures.needs`) or made."""
    return NEEDS.take(*runs.wide()) if store is None else NEEDS.stored(store)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """The variables shown, those that are there."""
    ds = NEEDS.take(*results)
    names = [f"{name}{end}" for name in SHOWN if name in ds for end in ("", "_se")]
    return ds[names].assign_attrs(style.provenance(ds))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of `comparisons.representations`, or of theory and networks in any order."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Draw the three panels on three axes."""
    if "layer" not in ds.dims:
        ds = ds.expand_dims(layer=[""])
    draw_similarity(ds, axes[0])
    draw_distance(ds, axes[1])
    for ax in axes[:2]:
        style.width_axis(ax, ds["width"].values)
        ax.set_yscale("log")
        style.room(ax, bottom=0.4)
    draw_targets(ds, axes[2])
    for ax, place in zip(axes, ("lower left", "lower left", "lower right"), strict=True):
        if ax.has_data():
            style.legend(ax, loc=place)
        else:
            ax.set_axis_off()


def draw_similarity(ds: xr.Dataset, ax: Axes) -> None:
    """(a) against width, after training."""
    if "unbiased_cka" in ds:
        width, last = ds["width"].values, ds.isel(step=-1)
        for layer, look in zip(ds["layer"].values, cycle(style.SERIES), strict=False):
            row = last.sel(layer=layer)
            y, se = 1 - row["unbiased_cka"].values, row["unbiased_cka_se"].values
            style.resolved(ax, width, y, se, label=f"${_symbol(ds, layer)}$", **look)
            style.above(ax, width, y, se, -1.0, "$N^{-1}$")
    ax.set(ylabel="1 $-$ CKA (unbiased)", title="(a) similarity to the limit")


def draw_distance(ds: xr.Dataset, ax: Axes) -> None:
    """(b) against width, after training, of the top layer."""
    width, top = ds["width"].values, ds.isel(step=-1, layer=-1)
    for (name, label), look in zip(DISTANCES.items(), style.SERIES, strict=False):
        if name in ds:
            y, se = top[name].values, top[f"{name}_se"].values
            style.resolved(ax, width, y, se, label=label, **look)
            if name == "distance":
                style.above(ax, width, y, se, -0.5, "$N^{-1/2}$")
    ax.set(ylabel="relative distance", title=f"(b) distance, ${_symbol(ds, top['layer'].item())}$")


def draw_targets(ds: xr.Dataset, ax: Axes) -> None:
    """(c) against time, of the top layer."""
    time, row = ds["time"].values, ds.isel(layer=-1)
    if "target_alignment" in ds:
        style.by_width(ax, time, row, "target_alignment", "target_alignment_limit")
    elif "target_alignment_limit" in ds:
        ax.plot(time, row["target_alignment_limit"].values, label=r"$N=\infty$ (theory)", **style.LIMIT)
    ax.set(xlabel=r"time $\eta t$", ylabel="alignment with $y y^T$", title="(c) the task in the kernel")


def _symbol(ds: xr.Dataset, layer: int | str) -> str:
    """Of the kernel, in TeX."""
    return schema.quantities()[ds.attrs["quantity"]].symbol + (f"^{{({layer})}}" if layer != "" else "")
