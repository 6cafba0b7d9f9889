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

SIZE = (13.0, 3.6)
SIZES = (1, 2, 4, 8, 16, 32)
NEEDS = Needs(
    "ensembling_and_bias",
    "bias_variance",
    "comparisons.bias_variance(nets, theory, fluctuations)",
    ("loss_ensemble", "loss_infinite", "loss_worth", "loss_variance_part"),
    make=lambda theory, nets, fluctuations: comparisons.bias_variance(
        nets, theory, fluctuations, ensembles=_sizes(nets)
    ),
    optional=("fluctuations",),
)
PARTS = {"variance_part": "variance: removed by averaging", "bias_part": "bias of narrower width: not removed"}


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
    colors = style.width_colors(ds["width"].values.tolist())
    k = ds["ensemble"].values
    for width, color in colors.items():
        row = ds.sel(width=width)
        points = row["loss_ensemble"].values, row["loss_ensemble_se"].values
        look = {"color": color, "marker": "o", "linestyle": "-", "linewidth": 0.8}
        axes[0].errorbar(k, *points, label=f"$N={width}$", **look)
        level, se = row["loss_infinite"].item(), row["loss_infinite_se"].item()
        axes[0].axhline(level, color=color, linestyle=":", linewidth=1.0)
        axes[0].axhspan(level - se, level + se, color=color, alpha=0.15, linewidth=0)
        axes[2].errorbar(k, row["loss_worth"].values, row["loss_worth_se"].values, **{**look, "linestyle": "none"})
        if "loss_worth_predicted" in ds:
            axes[2].plot(k, row["loss_worth_predicted"].values, color=color, linewidth=1.0)
    if "loss_limit" in ds:
        axes[0].axhline(ds["loss_limit"].item(), label=r"$N=\infty$ (theory)", **style.LIMIT)
    axes[0].set(
        xlabel="networks in the ensemble $k$", ylabel="training loss", title=f"(a) ensembles, step {ds['step'].item()}"
    )
    axes[0].legend(title="dotted: infinite ensemble")
    draw_parts(ds, axes[1])
    axes[2].set_yscale("log", base=2)
    axes[2].plot(k, k * ds["width"].values[-1], color="0.55", linestyle=":", linewidth=1.0)
    axes[2].annotate(
        "$k N$ neurons", (k[-1], k[-1] * ds["width"].values[-1]), color="0.45", fontsize=7.5, ha="right", va="bottom"
    )
    axes[2].set(
        xlabel="networks in the ensemble $k$", ylabel="width of one network", title="(c) what an ensemble is worth"
    )
    for ax in (axes[0], axes[2]):
        ax.set_xscale("log", base=2)
        ax.set_xticks(k, [str(i) for i in k])
        ax.minorticks_off()


def draw_parts(ds: xr.Dataset, ax: Axes) -> None:
    """(b) the parts of the excess loss against width, in absolute value."""
    width, predicted = ds["width"].values, [part for part in PARTS if f"loss_{part}_predicted" in ds]
    for (part, label), look in zip(PARTS.items(), style.SERIES, strict=False):
        if f"loss_{part}" not in ds:
            continue
        value, se = ds[f"loss_{part}"].values, ds[f"loss_{part}_se"].values
        sign = "" if value[0] > 0 else r" ($-$)"
        style.resolved(ax, width, abs(value), se, label=label + sign, linestyle="none", **look)
        if part in predicted:
            line, se = (ds[f"loss_{part}_predicted{end}"].values for end in ("", "_se"))
            style.band(ax, width, abs(line), se, color=look["color"])
    style.width_axis(ax, width, room=1.3)
    ax.set_yscale("log")
    ax.set(ylabel="excess loss", title="(b) parts of the excess" + (", lines: theory" if predicted else ""))
    ax.legend()
