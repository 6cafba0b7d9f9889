"""Spectra of the NTK across widths and in the limit: eigenvalues, task power, eigenfunctions, mode-wise errors.

(a) eigenvalues after training: means over networks, of the limit; grey: of the limit at initialisation.
(b) share of the targets in the first k modes.
(c) root mean square sine of the principal angles between the first eigenfunctions and those of the limit: of one
    network's NTK, and of the mean over networks.
(d) training loss by modes of the limit, at the step where it is nearest to an eighth of the first: networks, and the
    infinite ensemble.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import comparisons
from figures import runs, style
from figures.needs import Needs

SIZE = (style.WIDE, 5.0)
MODES = 10
SHOWN = ("eigenvalue", "eigenvalue_limit", "power", "power_limit", "deformation", "deformation_of_mean")
DEFORMED = {
    "deformation": ("one network", -0.5, "$N^{-1/2}$"),
    "deformation_of_mean": ("mean NTK of networks", -1.0, "$N^{-1}$"),
}
LOSSES = ("mode_loss", "mode_loss_infinite", "mode_loss_limit")


def _spectra(theory: xr.Dataset, nets: xr.Dataset) -> xr.Dataset:
    known = "split" in theory.coords  # where anything of samples is recorded
    modes = min(MODES, int((theory["split"] == "train").sum())) if known else None
    return comparisons.spectra(theory, nets, modes=modes)


NEEDS = Needs("ntk_spectra", "spectra", "comparisons.spectra(theory, nets)", SHOWN, make=_spectra)


def data(store: Path | None) -> xr.Dataset:
    """`comparisons.spectra`, of a folder of results (`figures.needs`) or made."""
    return NEEDS.take(*runs.wide()) if store is None else NEEDS.stored(store)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """The variables shown."""
    ds = NEEDS.take(*results)
    names = [name for name in (*SHOWN, *LOSSES) if name in ds]
    return ds[[f"{name}{end}" for name in names for end in ("", "_se")]].assign_attrs(style.provenance(ds))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of `comparisons.spectra`, or of theory and networks in any order."""
    return style.panels(draw, drawn(*results), (2, 2), SIZE)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """Draw the four panels on four axes."""
    axes = axes.ravel()
    mode, last, widths = ds["mode"].values, ds.isel(step=-1), ds["width"].values
    for name, ax in (("eigenvalue", axes[0]), ("power", axes[1])):
        if name == "eigenvalue":
            start = ds["eigenvalue_limit"].isel(step=0).values
            ax.plot(mode, start, color="0.5", linestyle="--", label=r"theory, $t=0$")
        ax.plot(mode, last[f"{name}_limit"].values, label=style.INFINITE, **style.LIMIT)
        style.points_by_width(ax, mode, last, name)
        _modes(ax, mode, "mode $k$")
        style.legend(ax, ncols=2, loc="upper right" if name == "eigenvalue" else "lower right")
    axes[0].set_yscale("log")
    style.room(axes[0], top=0.15)
    axes[0].set(ylabel=r"$\lambda_k$ of $K / P$", title="(a) eigenvalues after training")
    axes[1].set(ylabel=r"share of $|y|^2$ in modes $1 \ldots k$", title="(b) task power after training")
    for (name, (label, power, law)), look in zip(DEFORMED.items(), style.SERIES, strict=False):
        y, se = last[name].values, last[f"{name}_se"].values
        style.resolved(axes[2], widths, y, se, label=label, **look)
        style.above(axes[2], widths, y, se, power, law)
    style.width_axis(axes[2], widths)
    axes[2].set_yscale("log")
    style.room(axes[2], bottom=0.4)
    axes[2].set(ylabel="sine of the angle to the limit's", title=f"(c) the first {ds.attrs['subspace']} eigenfunctions")
    style.legend(axes[2], loc="lower left", ncols=2)
    if "mode_loss" in ds:
        draw_losses(ds, axes[3])


def draw_losses(ds: xr.Dataset, ax: Axes) -> None:
    """(d) the loss by modes of the limit, where it has fallen to an eighth."""
    total = ds["mode_loss_limit"].sum("mode").values
    eighth, mode = ds.isel(step=int(np.argmin(abs(total - total[0] / 8)))), ds["mode"].values
    ax.plot(mode, eighth["mode_loss_limit"].values, label=style.INFINITE, **style.LIMIT)
    for n, color in style.width_colors(ds["width"].values.tolist()).items():
        row = eighth.sel(width=n)
        y, se = row["mode_loss"].values, row["mode_loss_se"].values
        label = style.once(ax, "networks (colours of a)")
        ax.errorbar(mode, y, se, color=color, marker="o", markersize=3, linestyle="-", linewidth=0.7, label=label)
        y, se = row["mode_loss_infinite"].values, row["mode_loss_infinite_se"].values
        clear = y > se
        label = style.once(ax, "infinite ensemble")
        ax.plot(mode[clear], y[clear], color=color, marker="x", markersize=4, linestyle="none", label=label)
    ax.set_yscale("log")
    _modes(ax, mode, "mode $k$ of the limit")
    ax.set(ylabel="part of the training loss", title=f"(d) loss by modes, step {eighth['step'].item()}")
    style.room(ax, bottom=0.3)
    style.legend(ax, loc="lower left", ncols=2)


def _modes(ax: Axes, mode: np.ndarray, label: str) -> None:
    ax.set_xticks(mode[::2] if len(mode) > 6 else mode)
    ax.set_xlabel(label)
