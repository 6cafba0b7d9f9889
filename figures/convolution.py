"""A convolutional network and its limit: predictions through training, their bias of narrower width, their variance.

(a) predictions of the training samples; lines: the limit; points: means over networks of the narrowest and the widest
    width.
(b) mean over networks minus the limit after training, against 1/N; dotted: straight lines through zero, by the
    narrowest width but one.
(c) N Var of predictions, mean over samples, of every width on the predicted curve.
Error bars and grey bands: standard errors.  Without a store: two digits each of zeros and ones, whose rows are 8
positions of 8 channels, two convolutions with kernels of three places.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
import finite_nets
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 2.9)
WIDTHS = (32, 64, 128, 256)
SEEDS = 1000
TOLERANCE = 3e-2  # predictions as with 1e-2, within their standard errors (measured), in half the time
NEEDS = Needs(
    "convolution",
    "comparison",
    "comparisons.compare(theory, nets, fluctuations)",
    ("prediction_mean", "prediction_deviation", "prediction_variance"),
    make=comparisons.compare,
    optional=("fluctuations",),
)


def problem() -> dmft.Problem:
    """The problem of this figure."""
    images = dmft.load_task("digits", classes=(0, 1), n_train=4, n_test=0, flatten=False)
    task = dmft.Task(images.x_train[..., 0], images.y_train, provenance=images.provenance)
    network = dmft.CNN(depth=2, kernel_size=3, activation=dmft.tanh(), gamma0=1.0)
    return dmft.Problem(network, task, dmft.GradientDescent(learning_rate=1.0, steps=8))


def data(store: Path | None) -> xr.Dataset:
    """A comparison with fluctuations, of a folder of results (`figures.needs`); without one, networks are trained."""
    if store is not None:
        return NEEDS.stored(store)
    described, names = problem(), ["prediction"]
    theory = dmft.solve(described, scrambles=4, tolerance=TOLERANCE, observables=names)
    predicted = dmft.fluctuations(
        described, mode="reverse", observables=names, particles=2048, scrambles=4, tolerance=TOLERANCE
    )
    nets = finite_nets.train_ensemble(described, widths=WIDTHS, seeds=SEEDS, observables=names)
    return comparisons.compare(theory, nets, predicted)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """Of predictions `_mean`, `_limit`, `_deviation`, and the mean of `_variance` over samples, with their `_se`; of
    several outputs the first."""
    comparison = NEEDS.take(*results)
    comparison = comparison.isel(output=0) if "output" in comparison.dims else comparison
    names = [f"prediction_{part}{end}" for part in ("mean", "limit", "deviation") for end in ("", "_se")]
    ds = comparison[names].copy()
    ds.attrs = style.provenance(comparison)
    for part in ("variance", "variance_limit"):
        if f"prediction_{part}" in comparison:
            value, se = comparison[f"prediction_{part}"], comparison[f"prediction_{part}_se"]
            ds[f"prediction_{part}"] = value.mean("sample")
            # samples share their networks, and their draws: as if all erred together
            ds[f"prediction_{part}_se"] = se.mean("sample")
    return ds


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of a comparison of predictions, or of theory, networks and fluctuations in any order."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Three panels."""
    step, widths = ds["step"].values, ds["width"].values.tolist()
    colors = style.width_colors(widths)
    _draw_predictions(ds, axes[0])
    _draw_bias(ds, axes[1])
    ax = axes[2]
    if "prediction_variance_limit" in ds:
        limit, se = ds["prediction_variance_limit"].values, ds["prediction_variance_limit_se"].values
        ax.fill_between(step, limit - se, limit + se, color="black", alpha=0.25, linewidth=0)
        ax.plot(step, limit, label="predicted", **style.LIMIT)
    for width, color in colors.items():
        row = ds.sel(width=width)
        value, se = row["prediction_variance"].values, row["prediction_variance_se"].values
        ax.errorbar(step, value, se, marker="o", markersize=3, linestyle="none", color=color, label=f"$N={width}$")
    ax.set(ylabel=r"$N\,\mathrm{Var}\,f$", title="(c) variance", ylim=(0, None))
    for each in (axes[0], ax):
        each.set(xlabel="step $t$", xticks=step[:: max(1, len(step) // 4)])
        style.legend(each)


def _draw_predictions(ds: xr.Dataset, ax: Axes) -> None:
    step, widths = ds["step"].values, ds["width"].values.tolist()
    colors = style.width_colors(widths)
    for i in range(ds.sizes["sample"]):
        row = ds.isel(sample=i)
        limit, se = row["prediction_limit"].values, row["prediction_limit_se"].values
        ax.fill_between(step, limit - se, limit + se, color="black", alpha=0.25, linewidth=0)
        ax.plot(step, limit, label=style.once(ax, r"limit, $N\to\infty$"), **style.LIMIT)
        for width, marker in ((widths[0], "s"), (widths[-1], "o")):
            value, error = (row[f"prediction_mean{end}"].sel(width=width).values for end in ("", "_se"))
            look = {"marker": marker, "markersize": 3, "linestyle": "none", "color": colors[width]}
            ax.errorbar(step, value, error, label=style.once(ax, f"$N={width}$"), **look)
    ax.set(ylabel="prediction $f$", title="(a) predictions")


def _draw_bias(ds: xr.Dataset, ax: Axes) -> None:
    last, widths = ds.isel(step=-1), ds["width"].values
    ax.axhline(0, color="black", linewidth=0.9, zorder=0)
    anchor = widths[min(1, len(widths) - 1)]
    for i, look in zip(range(ds.sizes["sample"]), style.SERIES, strict=False):
        row = last.isel(sample=i)
        value, error = row["prediction_deviation"].values, row["prediction_deviation_se"].values
        ax.errorbar(1 / widths, value, error, linestyle="none", label=f"sample {int(row['sample'])}", **look)
        slope = anchor * row["prediction_deviation"].sel(width=anchor).item()
        ends = np.array([0.0, 1 / widths.min()])
        label = style.once(ax, "dotted: $\\propto 1/N$")
        ax.plot(ends, slope * ends, ":", color=look["color"], linewidth=0.9, label=label)
    ax.set(xlabel="$1/N$", ylabel=r"$\mathrm{E} f_N - f_\infty$", title="(b) bias after training", xlim=(0, None))
    style.legend(ax)
