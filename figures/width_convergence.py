"""Networks approach the limit: learning curves, distance and variance against width.

(a) training (solid) and test loss (dashed): means over the networks of each width, with their standard errors as bands,
    and the limit.
(b) distance of predictions from the limit's after training, root mean square over samples: of a single network, which
    falls like N^-1/2; of the mean over networks, the bias of narrower width, which falls like 1/N.
(c) variance over networks, mean over steps and entries, with fitted exponents: it falls like 1/N.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
from figures import example, style
from figures.needs import Needs

SIZE = (style.WIDE, 2.6)
NEEDS = Needs(
    "width_convergence",
    "comparison",
    "comparisons.compare(theory, nets)",
    ("prediction_distance", "prediction_raw_variance"),
    make=comparisons.compare,
    optional=("fluctuations",),
)
CURVES = ("loss", "test_loss")
DISTANCES = {"distance": ("one network", -0.5, "$N^{-1/2}$"), "error": ("mean over networks", -1.0, "$N^{-1}$")}
VARIANCES = {"prediction": "$f$", "loss": "training loss", "feature_kernel": r"kernels $\Phi$"}


def data(store: Path | None) -> xr.Dataset:
    """`comparisons.compare`, of a folder of results (`figures.needs`); without one, the example is run."""
    return example.run(example.problem())[-1] if store is None else NEEDS.stored(store)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """The variables of a comparison that this figure shows."""
    comparison = NEEDS.take(*results)
    names = [f"{name}_{suffix}" for name in CURVES for suffix in ("mean", "mean_se", "limit")]
    names += [f"prediction_{kind}{end}" for kind in DISTANCES for end in ("", "_se")]
    names += [f"{name}_{suffix}" for name in VARIANCES for suffix in ("raw_variance", "raw_variance_se")]
    names += [f"{name}_variance_exponent{suffix}" for name in VARIANCES for suffix in ("", "_se")]
    return comparison[[name for name in names if name in comparison]]


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of a comparison, or of theory and networks in any order."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Draw the three panels on three axes."""
    draw_curves(ds, axes[0])
    draw_deviation(ds, axes[1])
    draw_variance(ds, axes[2])


def draw_curves(ds: xr.Dataset, ax: Axes) -> None:
    """(a) losses against time."""
    time = ds["time"].values
    colors = style.width_colors(ds["width"].values.tolist())
    for name, line in zip(CURVES, ("-", "--"), strict=True):
        if f"{name}_mean" not in ds:
            continue
        for width, color in colors.items():
            row = ds.sel(width=width)
            mean = row[f"{name}_mean"].values, row[f"{name}_mean_se"].values
            style.band(ax, time, *mean, linestyle=line, color=color, label=f"$N={width}$" if line == "-" else None)
        label = {"-": style.INFINITE, "--": "dashed: test"}[line]
        ax.plot(time, ds[f"{name}_limit"].values, line, label=label, **style.LIMIT)
    ax.set(xlabel=r"time $\eta t$", ylabel="loss", title="(a) learning curves", ylim=(0, None))
    style.room(ax, top=0.4)
    ax.legend(ncols=2, loc="upper right", fontsize=6)


def draw_deviation(ds: xr.Dataset, ax: Axes) -> None:
    """(b) distance of predictions to the limit's against width, at the last step."""
    last, width = ds.isel(step=-1), ds["width"].values
    for (kind, (label, slope, law)), look in zip(DISTANCES.items(), style.SERIES, strict=False):
        y, se = last[f"prediction_{kind}"].values, last[f"prediction_{kind}_se"].values
        style.resolved(ax, width, y, se, label=label, **look)
        style.above(ax, width, y, se, slope, law)
    style.width_axis(ax, width)
    ax.set_yscale("log")
    style.room(ax, bottom=0.6)
    ax.set(ylabel="distance of $f$ to the limit", title="(b) distance after training")
    style.legend(ax, loc="lower left")


def draw_variance(ds: xr.Dataset, ax: Axes) -> None:
    """(c) variance over networks against width, all steps and samples together."""
    width = ds["width"].values
    for (name, label), look in zip(VARIANCES.items(), style.SERIES, strict=False):
        if f"{name}_raw_variance" not in ds:
            continue
        y, se = ds[f"{name}_raw_variance"].values, ds[f"{name}_raw_variance_se"].values
        if f"{name}_variance_exponent" in ds:
            slope, error = ds[f"{name}_variance_exponent"].item(), ds[f"{name}_variance_exponent_se"].item()
            label = rf"{label}: $N^{{{style.in_brackets(slope, error)}}}$"
        ax.errorbar(width, y, se, label=label, linestyle="-", linewidth=0.8, **look)
    held = [ds[f"{name}_raw_variance"].values for name in VARIANCES if f"{name}_raw_variance" in ds]
    style.above(ax, width, np.max(held, axis=0), np.zeros(len(width)), -1.0, "$N^{-1}$")
    style.width_axis(ax, width)
    ax.set_yscale("log")
    style.room(ax, bottom=0.45)
    ax.set(ylabel="variance over networks", title="(c) variance")
    style.legend(ax, loc="lower left")
