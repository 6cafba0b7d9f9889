"""Losses and predictions across widths: learning curves, single test samples, and distances point by point.

(a) training and test loss of networks of several widths, mean and standard error, and of the limit.
(b) predictions on four test samples through training: one network of each width (colours as in a), and the limit; of
    several outputs that of the sample's class.
(c) root mean square distance of predictions on test samples after training, relative to the limit's: one network from
    the limit; two networks of successive widths; the mean over networks from the limit (the bias of narrower width).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
from comparisons import inputs
from comparisons.samples import members
from figures import runs, style
from figures.needs import Needs
from figures.width_convergence import draw_curves

SIZE = (style.WIDE, 2.7)
SHOWN = 4
DISTANCES = {
    "distance": ("network to limit", "width", -0.5),
    "successive": ("network to half its width", "wider", -0.5),
    "error": ("mean of networks to limit", "width", -1.0),
}
LAWS = {-0.5: "$N^{-1/2}$", -1.0: "$N^{-1}$"}


def data(store: Path | None) -> xr.Dataset:
    """The curves, samples and distances, of a folder of results (`figures.needs`) or made."""
    return NEEDS.take(*runs.wide()) if store is None else NEEDS.stored(store)


def of(theory: xr.Dataset, nets: xr.Dataset) -> xr.Dataset:
    """Curves of losses, single predictions (one, one_limit) on `SHOWN` samples, and distances of `pointwise`."""
    nets = nets.sortby("width")
    inputs.check_networks(nets, members="this figure")
    for what, each in (("the ensemble", nets), ("the theory", theory)):
        inputs.check_quantities(each, what, ["prediction"])
    curves = comparisons.compare(theory, nets)
    names = [f"{loss}_{part}" for loss in ("loss", "test_loss") for part in ("mean", "mean_se", "limit")]
    split = "test" if (nets["split"] == "test").any() else "train"
    order = np.flatnonzero(nets["split"] == split)
    # spread over the range of the limit's final predictions
    limit = _of_class(theory["prediction"])
    last = limit.isel(step=-1, sample=order)
    chosen = order[np.argsort(last.values)[np.linspace(0, len(order) - 1, SHOWN).round().astype(int)]]
    one = np.stack([members(nets, "prediction", i)[0] for i in range(nets.sizes["width"])])
    single = _of_class(nets["prediction"].isel(seed=0, drop=True).copy(data=one))
    singles = xr.Dataset({"one": single, "one_limit": limit}).isel(sample=chosen)
    points = comparisons.pointwise(theory, nets).sel(split=split, drop=True)
    ends = [f"{name}{end}" for name in DISTANCES for end in ("", "_se")]
    attrs = style.provenance(curves) | {"split": split}
    return runs.gathered((curves, names), (singles, ["one", "one_limit"]), (points, ends), attrs=attrs)


NEEDS = Needs(
    "loss_and_predictions",
    "loss_and_predictions",
    "figures.loss_and_predictions.of(theory, nets)",
    ("loss_mean", "one", "one_limit", "distance", "error"),
    make=of,
)


def _of_class(f: xr.DataArray) -> xr.DataArray:
    """Of several outputs, that with the largest target."""
    return f.isel(output=f["target"].argmax("output"), drop=True) if "output" in f.dims else f


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of theory and networks in any order."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Draw the three panels on three axes."""
    draw_curves(ds, axes[0])
    draw_predictions(ds, axes[1])
    draw_distances(ds, axes[2])


def draw_predictions(ds: xr.Dataset, ax: Axes) -> None:
    """(b) predictions on single samples against time."""
    time = ds["time"].values
    for sample in ds["sample"].values:
        for width, color in style.width_colors(ds["width"].values.tolist()).items():
            y = ds["one"].sel(width=width, sample=sample).values
            ax.plot(time, y, color=color, linewidth=0.9)
        y = ds["one_limit"].sel(sample=sample).values
        ax.plot(time, y, **style.LIMIT)
    ax.set(
        xlabel=r"time $\eta t$",
        ylabel="prediction $f$",
        title=f"(b) single networks, {ds.attrs['split']}",
    )


def draw_distances(ds: xr.Dataset, ax: Axes) -> None:
    """(c) relative distances of predictions against width, at the last step."""
    last = ds.isel(step=-1)
    for (name, (label, dim, slope)), look in zip(DISTANCES.items(), style.SERIES, strict=False):
        if name not in ds:  # a single width has no successive one
            continue
        width, y, se = last[dim].values, last[name].values, last[f"{name}_se"].values
        style.resolved(ax, width, y, se, label=label, **look)
        if name != "distance" or "successive" not in ds:  # that lies above it
            style.above(ax, width, y, se, slope, LAWS[slope])
    style.width_axis(ax, ds["width"].values)
    ax.set_yscale("log")
    style.room(ax, bottom=0.75)
    ax.set(ylabel="relative distance of $f$", title=f"(c) after training, {ds.attrs['split']}")
    style.legend(ax, loc="lower left")
