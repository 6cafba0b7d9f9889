"""Ten classes of MNIST through training, with cross-entropy: networks of two widths on the curves of the limit.

(a) training and test loss.
(b) test loss around its minimum: after it the networks grow overconfident, and the loss rises at unchanged accuracy.
(c) test accuracy after the first steps.
(d) N (mean test loss - limit): one curve for all widths where the difference is the 1/N bias alone.

Lines: the limit, with its standard error as a grey band.  Points: means over trained networks, with standard errors, at
some of the steps.  Coloured bands: one standard deviation of a single network.  Errors in (d) hold those of the limit,
which all widths and steps share.

Accuracies do not approach the limit like 1/N: an image counts as a whole, and those whose margin is below a network's
fluctuations count on both sides.  Of the 33 images within .3 of the boundary in the limit 23 are wrong, of which single
networks of width 1,024 get some right; the mean output of 16 such networks has the accuracy of the limit.

Assumptions and approximations
    A hundred training and 500 test images fill thousands of directions of a weight matrix (3,700 at this tolerance).
    The default, of a size for two cores, has hardly more particles than that, and `dmft.solve` says so: its limit
    has a bias up to that of a network as wide as there are particles, 1024 / 4096 of the difference drawn in (d) for
    the width 1024.  `compared` takes more particles and seeds, for a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
import finite_nets
from figures import fluctuations, style

SIZE = (13.0, 3.3)
STORED = "mnist_ten_classes.nc"
RATE = 15.0
STEPS = 50
WIDTHS = (256, 1024)
SEEDS = 16
PARTICLES = 4096
SCRAMBLES = 3
TOLERANCE = 3e-2  # test losses as with 1e-2, within their errors of 0.1 %, in half the time
CURVES = ("loss", "test_loss", "test_accuracy")
POINTS = 17  # of each width, at most


def problem(*, n_train: int = 100, n_test: int = 500) -> dmft.Problem:
    """The problem of this figure."""
    task = dmft.load_task("mnist5k", classes=range(10), n_train=n_train, n_test=n_test)
    network = dmft.MLP(depth=2, activation=dmft.tanh(), gamma0=1.0, centered=True)
    return dmft.Problem(network, task, dmft.GradientDescent(RATE, STEPS), loss="cross_entropy")


def compared(
    described: dmft.Problem,
    *,
    widths: Sequence[int] = WIDTHS,
    seeds: int = SEEDS,
    particles: int = PARTICLES,
    scrambles: int = SCRAMBLES,
    tolerance: float = TOLERANCE,
    dtype: str = "float32",
) -> xr.Dataset:
    """The comparison of networks and the limit on a problem, of losses and accuracies.

    Args:
        described: a problem with test samples and a loss for classes.
        widths, seeds: of the networks.
        particles, scrambles, tolerance, dtype: of the limit, as for `dmft.solve`.
    """
    theory = dmft.solve(
        described,
        particles=particles,
        scrambles=scrambles,
        tolerance=tolerance,
        dtype=dtype,
        observables=["prediction", "loss"],
    )
    nets = finite_nets.train_ensemble(described, widths=widths, seeds=seeds, observables=["loss"])
    return comparisons.compare(theory, nets)


def data(store: Path | None) -> xr.Dataset:
    """The comparison in `store`/mnist_ten_classes.nc; without a store, it is made."""
    return compared(problem()) if store is None else dmft.load(store / STORED)


def drawn(comparison: xr.Dataset) -> xr.Dataset:
    """Of each curve `_mean`, `_mean_se`, `_scatter` (width, step), `_limit`, `_limit_se` (step); test_loss_bias.

    `_scatter` is the standard deviation over networks, test_loss_bias = N (mean - limit), with its `_se`.
    """
    names = [f"{name}_{part}" for name in CURVES for part in ("mean", "mean_se", "limit", "limit_se")]
    ds = comparison[names].copy()
    ds.attrs = fluctuations.provenance(comparison)
    n = comparison["width"]
    for name in CURVES:
        ds[f"{name}_scatter"] = np.sqrt(comparison[f"{name}_variance"] / n)
    ds["test_loss_bias"] = n * comparison["test_loss_deviation"]
    ds["test_loss_bias_se"] = n * comparison["test_loss_deviation_se"]
    return ds


def figure(comparison: xr.Dataset) -> Figure:
    """The whole figure."""
    with plt.style.context(style.STYLE):
        fig, axes = plt.subplots(1, 4, figsize=SIZE)
        draw(drawn(comparison), axes)
    return fig


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Four panels on four axes."""
    _draw_curve(ds, "loss", axes[0])
    _draw_curve(ds, "test_loss", axes[0], line="--", named=False)
    axes[0].set(yscale="log", ylabel="loss", title="(a) training and (dashed) test loss")
    _draw_curve(ds, "test_loss", axes[1])
    bottom = float(min(ds["test_loss_limit"].min(), (ds["test_loss_mean"] - ds["test_loss_scatter"]).min()))
    top = bottom + 0.1 * (float(ds["test_loss_limit"].max()) - bottom)
    axes[1].set(ylim=(bottom - 0.1 * (top - bottom), top), ylabel="test loss", title="(b) test loss, enlarged")
    _draw_curve(ds, "test_accuracy", axes[2])
    late = ds["test_accuracy_limit"].isel(step=slice(len(ds["step"]) // 12, None))
    span = float(late.max() - late.min()) + 0.02
    axes[2].set(ylim=(float(late.min()) - 0.5 * span, float(late.max()) + 0.5 * span))
    axes[2].set(ylabel="test accuracy", title="(c) test accuracy")
    _draw_bias(ds, axes[3])
    for ax in axes:
        ax.set_xlabel("step $t$")
    axes[0].legend()


def _draw_curve(ds: xr.Dataset, name: str, ax: Axes, *, line: str = "-", named: bool = True) -> None:
    """A curve of the limit with its error, networks on it."""
    step = ds["step"].values
    limit, se = ds[f"{name}_limit"].values, ds[f"{name}_limit_se"].values
    ax.fill_between(step, limit - se, limit + se, color="black", alpha=0.25, linewidth=0)
    ax.plot(step, limit, line, label=r"theory, $N\to\infty$" if named else None, **(style.LIMIT | {"linewidth": 1.2}))
    for width, shown, look in _networks(ds):
        row = ds.sel(width=width)
        mean, scatter = row[f"{name}_mean"].values, row[f"{name}_scatter"].values
        ax.fill_between(step, mean - scatter, mean + scatter, color=look["color"], alpha=0.3, linewidth=0)
        row = row.isel(step=shown)
        ax.errorbar(
            row["step"].values,
            row[f"{name}_mean"].values,
            row[f"{name}_mean_se"].values,
            label=f"$N={width}$" if named else None,
            **look,
        )


def _draw_bias(ds: xr.Dataset, ax: Axes) -> None:
    """(d) N times the deviation of the mean test loss."""
    ax.axhline(0, color="black", linewidth=0.9, zorder=0)
    for width, shown, look in _networks(ds):
        row = ds.sel(width=width).isel(step=shown)
        ax.errorbar(
            row["step"].values,
            row["test_loss_bias"].values,
            row["test_loss_bias_se"].values,
            label=f"$N={width}$",
            **look,
        )
    ax.set(ylabel=r"$N\,(\mathrm{E}\,q_N - q_\infty)$", title="(d) bias of the mean test loss")


def _networks(ds: xr.Dataset) -> list[tuple[int, slice, dict[str, Any]]]:
    """Width, the steps with points (others for each width, so that none hides another), look of the points."""
    colors = style.width_colors(ds["width"].values.tolist())
    every = -(-ds.sizes["step"] // POINTS)
    markers = itertools.cycle(look["marker"] for look in style.SERIES)
    return [
        (
            width,
            slice(i * every // len(colors), None, every),
            {"color": color, "marker": marker, "markersize": 3, "linestyle": "none", "linewidth": 0.9, "zorder": 6},
        )
        for i, ((width, color), marker) in enumerate(zip(colors.items(), markers, strict=False))
    ]
