"""Representations across widths: similarity of networks' feature kernels to the limit's, and to the task.

(a) 1 - unbiased CKA of the feature kernels of one network with the limit's against width, after training, each layer.
(b) relative distance of feature kernels (top layer): one network, and the mean over networks.
(c) alignment of the top feature kernel with the targets y y^T through training: networks (mean) and the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
from figures import runs, style

SIZE = (12.0, 3.6)
STORED = "kernel_alignment.nc"
SHOWN = ("unbiased_cka", "distance", "distance_of_mean", "target_alignment", "target_alignment_limit")


def data(store: Path | None) -> xr.Dataset:
    """`comparisons.representations`, from `store`/kernel_alignment.nc or theory.nc and networks.nc; or made."""
    if store is not None and (store / STORED).is_file():
        return dmft.load(store / STORED)
    theory, nets = runs.wide(store)
    return comparisons.representations(nets, theory)


def drawn(ds: xr.Dataset) -> xr.Dataset:
    """The variables shown."""
    return ds[[f"{name}{end}" for name in SHOWN for end in ("", "_se")]].assign_attrs(style.provenance(ds))


def figure(ds: xr.Dataset) -> Figure:
    """The whole figure."""
    with plt.style.context(style.STYLE):
        fig, axes = plt.subplots(1, 3, figsize=SIZE)
        draw(drawn(ds), axes)
    return fig


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Draw the three panels on three axes."""
    width, last = ds["width"].values, ds.isel(step=-1)
    for layer, look in zip(ds["layer"].values, style.SERIES, strict=False):
        row = last.sel(layer=layer)
        y, se = 1 - row["unbiased_cka"].values, row["unbiased_cka_se"].values
        style.resolved(axes[0], width, y, se, label=rf"$\Phi^{layer}$", **look)
        style.guide(axes[0], width, (width[0], 1.25 * y[0]), -1.0, "$N^{-1}$")
    axes[0].set(ylabel="1 $-$ CKA (unbiased)", title="(a) one network and the limit, after training")
    top = last.isel(layer=-1)
    for (name, label, slope), look in zip(
        (("distance", "one network", -0.5), ("distance_of_mean", "mean over networks", -1.0)),
        style.SERIES,
        strict=False,
    ):
        y, se = top[name].values, top[f"{name}_se"].values
        style.resolved(axes[1], width, y, se, label=label, **look)
        if slope == -0.5:
            style.guide(axes[1], width, (width[0], 1.25 * y[0]), slope, "$N^{-1/2}$")
    axes[1].set(ylabel="relative distance", title=rf"(b) $\Phi^{top['layer'].item()}$ and the limit's")
    for ax in axes[:2]:
        style.width_axis(ax, width)
        ax.set_yscale("log")
        ax.legend()
    time, row = ds["time"].values, ds.isel(layer=-1)
    for n, color in style.width_colors(width.tolist()).items():
        of_width = row.sel(width=n)
        y, se = of_width["target_alignment"].values, of_width["target_alignment_se"].values
        style.band(axes[2], time, y, se, color=color, label=f"$N={n}$")
    axes[2].plot(time, row["target_alignment_limit"].values, label=r"$N=\infty$ (theory)", **style.LIMIT)
    axes[2].set(xlabel=r"time $\eta t$", ylabel="alignment with $y y^T$", title="(c) the task in the kernel")
    axes[2].legend()
