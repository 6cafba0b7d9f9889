"""Spectra of the NTK across widths and in the limit: eigenvalues, task power, eigenfunctions, mode-wise errors.

(a) eigenvalues after training: means over networks, of the limit; grey: of the limit at initialisation.
(b) share of the targets in the first k modes.
(c) root mean square sine of the principal angles between the first eigenfunctions and those of the limit: of one
    network's NTK, and of the mean over networks.
(d) training loss by modes of the limit, at the step where it is nearest to an eighth of the first: networks, and the
    infinite ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
from figures import runs, style
from figures.needs import Needs

SIZE = (14.5, 3.5)
MODES = 10
SHOWN = ("eigenvalue", "eigenvalue_limit", "power", "power_limit", "deformation", "deformation_of_mean")
DEFORMED = {
    "deformation": ("one network", -0.5, "$N^{-1/2}$"),
    "deformation_of_mean": ("mean NTK of networks", -1.0, "$N^{-1}$"),
}
LOSSES = ("mode_loss", "mode_loss_infinite", "mode_loss_limit")


def _spectra(theory: xr.Dataset, nets: xr.Dataset) -> xr.Dataset:
    return comparisons.spectra(nets, theory, modes=min(MODES, int((theory["split"] == "train").sum())))


NEEDS = Needs("ntk_spectra", "spectra", "comparisons.spectra(nets, theory)", SHOWN, make=_spectra)


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
    return style.panels(draw, drawn(*results), (1, 4), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Draw the four panels on four axes."""
    mode, last, widths = ds["mode"].values, ds.isel(step=-1), ds["width"].values
    for name, ax in (("eigenvalue", axes[0]), ("power", axes[1])):
        if name == "eigenvalue":
            ax.plot(
                mode, ds["eigenvalue_limit"].isel(step=0).values, color="0.6", linestyle="--", label=r"theory, $t=0$"
            )
        ax.plot(mode, last[f"{name}_limit"].values, label=r"$N=\infty$ (theory)", **style.LIMIT)
        _points(last, name, mode, ax)
        ax.set_xticks(mode[::2] if len(mode) > 6 else mode)
        ax.set_xlabel("mode $k$")
    axes[0].set_yscale("log")
    axes[0].set(ylabel=r"$\lambda_k$ of $K / P$", title="(a) eigenvalues after training")
    axes[1].set(ylabel=r"share of $|y|^2$ in modes $1 \ldots k$", title="(b) task power")
    for (name, (label, power, law)), look in zip(DEFORMED.items(), style.SERIES, strict=False):
        y, se = last[name].values, last[f"{name}_se"].values
        style.resolved(axes[2], widths, y, se, label=label, **look)
        if y[0] > se[0]:
            style.guide(axes[2], widths, (widths[0], 1.2 * y[0]), power, law)
    style.width_axis(axes[2], widths)
    axes[2].set_yscale("log")
    axes[2].set(ylabel="sine of the angle to the limit's", title=f"(c) the first {ds.attrs['subspace']} eigenfunctions")
    axes[2].legend()
    if "mode_loss" in ds:
        draw_losses(ds, axes[3])
    axes[1].legend()


def draw_losses(ds: xr.Dataset, ax: Axes) -> None:
    """(d) the loss by modes of the limit, where it has fallen to an eighth."""
    total = ds["mode_loss_limit"].sum("mode").values
    half, mode = ds.isel(step=int(np.argmin(abs(total - total[0] / 8)))), ds["mode"].values
    ax.plot(mode, half["mode_loss_limit"].values, **style.LIMIT)
    for i, (n, color) in enumerate(style.width_colors(ds["width"].values.tolist()).items()):
        row = half.sel(width=n)
        y, se = row["mode_loss"].values, row["mode_loss_se"].values
        label = "networks" if i == 0 else None
        ax.errorbar(mode, y, se, color=color, marker="o", markersize=3, linestyle="-", linewidth=0.7, label=label)
        y, se = row["mode_loss_infinite"].values, row["mode_loss_infinite_se"].values
        clear = y > se
        label = "infinite ensemble" if i == 0 else None
        ax.plot(mode[clear], y[clear], color=color, marker="x", markersize=4, linestyle="none", label=label)
    ax.set_yscale("log")
    ax.set_xticks(mode[::2] if len(mode) > 6 else mode)
    ax.set(
        xlabel="mode $k$ of the limit",
        ylabel="part of the loss",
        title=f"(d) training loss, step {half['step'].item()}",
    )
    ax.legend()


def _points(last: xr.Dataset, name: str, mode: np.ndarray, ax: Axes) -> None:
    for width, color in style.width_colors(last["width"].values.tolist()).items():
        row = last.sel(width=width)
        y, se = row[name].values, row[f"{name}_se"].values
        ax.errorbar(mode, y, se, color=color, marker="o", markersize=3, linestyle="none", label=f"$N={width}$")
