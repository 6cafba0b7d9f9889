"""Networks approach the limit: learning curves, deviation and variance against width.

(a) training and test loss of networks of several widths, mean and standard error, and of the limit.
(b) distance to the limit at the end of training: of a single network (falls like N^-1/2) and of the mean over networks
    (the bias of narrower width, 1/N); losses of the mean.
(c) variance over networks (1/N), with fitted exponents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
from figures import example, style
from figures.needs import Needs

SIZE = (12.0, 3.6)
NEEDS = Needs(
    "width_convergence",
    "comparison",
    "comparisons.compare(theory, nets)",
    ("prediction_distance", "prediction_raw_variance"),
    make=comparisons.compare,
    optional=("fluctuations",),
)
CURVES = ("loss", "test_loss")
VARIANCES = {"prediction": "prediction $f$", "loss": "training loss", "feature_kernel": "feature kernels $\\Phi$"}


def data(store: Path | None) -> xr.Dataset:
    """`comparisons.compare`, of a folder of results (`figures.needs`); without one, the example is run."""
    return example.run(example.problem())[-1] if store is None else NEEDS.stored(store)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """The variables of a comparison that this figure shows."""
    comparison = NEEDS.take(*results)
    names = [
        f"{name}_{suffix}" for name in CURVES for suffix in ("mean", "mean_se", "limit", "deviation", "deviation_se")
    ]
    names += ["prediction_distance", "prediction_distance_se"]
    names += [f"{name}_{suffix}" for name in VARIANCES for suffix in ("raw_variance", "raw_variance_se")]
    names += [f"{name}_variance_exponent{suffix}" for name in VARIANCES for suffix in ("", "_se")]
    names += ["feature_kernel_distance", "feature_kernel_distance_se"]
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
        label = {"-": r"$N=\infty$ (theory)", "--": "dashed: test"}[line]
        ax.plot(time, ds[f"{name}_limit"].values, line, label=label, **style.LIMIT)
    ax.set(xlabel=r"time $\eta t$", ylabel="loss", title="(a) learning curves", ylim=(0, None))
    ax.legend(ncols=2)


def draw_deviation(ds: xr.Dataset, ax: Axes) -> None:
    """(b) distance to the limit against width, at the last step."""
    last = ds.isel(step=-1)
    width = ds["width"].values
    series = [("one network: $f$ (rms)", last["prediction_distance"], last["prediction_distance_se"])]
    if "feature_kernel_distance" in ds:
        top = last.isel(layer=-1)
        label = rf"one network: $\Phi^{top['layer'].item()}$ (relative)"
        series.append((label, top["feature_kernel_distance"], top["feature_kernel_distance_se"]))
    for name, label in (("test_loss", "mean: test loss"), ("loss", "mean: training loss")):
        if f"{name}_deviation" in ds:
            series.append((label, abs(last[f"{name}_deviation"]), last[f"{name}_deviation_se"]))
    for (label, value, se), look in zip(series, style.SERIES, strict=False):
        y = value.values
        style.resolved(ax, width, y, se.values, label=label, **look)
        if label.startswith("one network"):
            style.guide(ax, width, (width[0], 1.3 * y[0]), -0.5, r"$N^{-1/2}$")
        else:
            style.guide(ax, width, (width[0], 1.3 * y[0]), -1.0, r"$N^{-1}$")
    style.width_axis(ax, width)
    ax.set_yscale("log")
    ax.set_ylim(ax.get_ylim()[0] / 12, None)  # room for the legend below
    ax.set(ylabel="distance to the limit", title="(b) deviation at the last step")
    ax.legend(loc="lower left", ncols=2)


def draw_variance(ds: xr.Dataset, ax: Axes) -> None:
    """(c) variance over networks against width, all steps and samples together."""
    width = ds["width"].values
    for (name, label), look in zip(VARIANCES.items(), style.SERIES, strict=False):
        if f"{name}_raw_variance" not in ds:
            continue
        y, se = ds[f"{name}_raw_variance"].values, ds[f"{name}_raw_variance_se"].values
        if f"{name}_variance_exponent" in ds:
            slope, error = ds[f"{name}_variance_exponent"].item(), ds[f"{name}_variance_exponent_se"].item()
            label = rf"{label}: $N^{{{slope:.2f} \pm {error:.2f}}}$"
        ax.errorbar(width, y, se, label=label, linestyle="-", linewidth=0.8, **look)
        style.guide(ax, width, (width[0], 1.3 * y[0]), -1.0, r"$N^{-1}$")
    style.width_axis(ax, width)
    ax.set_yscale("log")
    ax.set(ylabel="variance over networks", title="(c) variance")
    ax.legend()
