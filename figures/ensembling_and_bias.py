"""Ensembles and width: averaging networks removes the variance part of their excess loss and leaves the bias.

(a) training loss of ensembles of k networks against k, for several widths (points); the infinite ensemble of each
    width (dotted); one network in the limit (black).
(b) the two parts of the excess loss against width: points measured, lines predicted.
(c) which single width an ensemble is worth, against its size k: points measured, lines predicted.
At the step where the loss of the limit is nearest to a quarter of the first: predictions half way to their targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
from figures import fluctuations, style
from figures.needs import Needs

SIZE = (style.WIDE, 2.9)
SIZES = (1, 2, 4, 8, 16, 32)
NEEDS = Needs(
    "ensembling_and_bias",
    "bias_variance",
    "comparisons.bias_variance(theory, nets, fluctuations)",
    ("loss_ensemble", "loss_infinite", "loss_worth", "loss_variance_part"),
    make=lambda theory, nets, fluctuations: comparisons.bias_variance(
        theory, nets, fluctuations, ensembles=_sizes(nets)
    ),
    optional=("fluctuations",),
)
PARTS = {"variance_part": "variance (averaging removes it)", "bias_part": "bias of width (it stays)"}


def data(store: Path | None) -> xr.Dataset:
    """`comparisons.bias_variance`, of a folder of results (`figures.needs`) or made."""
    return NEEDS.take(*fluctuations.runs()) if store is None else NEEDS.stored(store)


def _sizes(nets: xr.Dataset) -> list[int]:
    """`SIZES`, as far as there are two ensembles of them among the networks of every width."""
    kept = "seed" in nets.dims
    networks = nets.sizes["seed"] if kept else int(nets["count"].sum("block").min())
    if kept and "diverged" in nets:
        networks -= int(nets["diverged"].sum("seed").max())
    return [k for k in SIZES if k <= max(networks // 2, 1)]


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """The variables shown, at the step where the limit's loss has fallen to a quarter (without a limit: that of the
    infinite ensemble of the last width)."""
    ds = NEEDS.take(*results)
    loss = (ds["loss_limit"] if "loss_limit" in ds else ds["loss_infinite"].isel(width=-1)).values
    step = int(np.argmin(abs(loss - loss[0] / 4)))
    parts = [f"{part}{end}" for part in PARTS for end in ("", "_predicted")]
    names = [f"loss_{name}" for name in ("ensemble", "infinite", "limit", "worth", "worth_predicted", *parts)]
    held = [name for name in names if name in ds]  # as far as there were a limit and fluctuations
    found = ds.isel(step=step)[[f"{name}{end}" for name in held for end in ("", "_se")]]
    return found.assign_attrs(style.provenance(ds))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of `comparisons.bias_variance`, or of theory and networks in any order, with fluctuations."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Draw the three panels on three axes."""
    draw_ensembles(ds, axes[0])
    draw_parts(ds, axes[1])
    draw_worth(ds, axes[2])
    for ax in (axes[0], axes[2]):
        k = ds["ensemble"].values
        ax.set_xscale("log", base=2)
        ax.set_xticks(k, [str(i) for i in k])
        ax.minorticks_off()
        ax.set_xlabel("networks in the ensemble $k$")


def draw_ensembles(ds: xr.Dataset, ax: Axes) -> None:
    """(a) loss of ensembles of k networks."""
    k = ds["ensemble"].values
    for width, color in style.width_colors(ds["width"].values.tolist()).items():
        row = ds.sel(width=width)
        points = row["loss_ensemble"].values, row["loss_ensemble_se"].values
        ax.errorbar(k, *points, label=f"$N={width}$", color=color, marker="o", linestyle="-", linewidth=0.8)
        level, se = row["loss_infinite"].item(), row["loss_infinite_se"].item()
        ax.axhline(level, color=color, linestyle=":", linewidth=1.0, label=style.once(ax, r"dotted: $k=\infty$"))
        ax.axhspan(level - se, level + se, color=color, alpha=0.15, linewidth=0)
    if "loss_limit" in ds:
        ax.axhline(ds["loss_limit"].item(), label=style.INFINITE, **style.LIMIT)
    ax.set(ylabel="training loss", title=f"(a) ensembles, step {ds['step'].item()}")
    style.room(ax, top=0.3)
    style.legend(ax, loc="upper right", ncols=2)


def draw_worth(ds: xr.Dataset, ax: Axes) -> None:
    """(c) the width of one network that does as well."""
    k, predicted = ds["ensemble"].values, "loss_worth_predicted" in ds
    for width, color in style.width_colors(ds["width"].values.tolist()).items():
        row = ds.sel(width=width)
        points = row["loss_worth"].values, row["loss_worth_se"].values
        ax.errorbar(k, *points, color=color, marker="o", linestyle="none", label=style.once(ax, "measured"))
        if predicted:
            line = row["loss_worth_predicted"].values
            ax.plot(k, line, color=color, linewidth=1.0, label=style.once(ax, "theory"))
    ax.set_yscale("log", base=2)
    widest = ds["width"].values[-1]
    ax.plot(k, k * widest, color="0.45", linestyle=":", linewidth=1.0, label=f"{widest} $k$ neurons")
    ax.set(ylabel="width of one network as good", title="(c) worth of an ensemble")
    style.room(ax, top=0.3)
    style.legend(ax, loc="upper left")


def draw_parts(ds: xr.Dataset, ax: Axes) -> None:
    """(b) the parts of the excess loss against width, in absolute value."""
    width = ds["width"].values
    for (part, label), look in zip(PARTS.items(), style.SERIES, strict=False):
        if f"loss_{part}" not in ds:
            continue
        value, se = ds[f"loss_{part}"].values, ds[f"loss_{part}_se"].values
        sign = "" if value[0] > 0 else r" ($-$)"
        style.resolved(ax, width, abs(value), se, label=label + sign, linestyle="none", **look)
        if f"loss_{part}_predicted" in ds:
            line, se = (ds[f"loss_{part}_predicted{end}"].values for end in ("", "_se"))
            ax.plot(width, abs(line), color=look["color"], label=style.once(ax, "theory"))
            style.errors(ax, width, abs(line), se, color=look["color"])
    style.width_axis(ax, width)
    ax.set_yscale("log")
    style.room(ax, bottom=0.45)
    ax.set(ylabel="excess loss", title="(b) parts of the excess")
    style.legend(ax, loc="lower left")
