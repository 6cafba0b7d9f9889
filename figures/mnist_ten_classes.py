"""Ten classes of MNIST through training, with cross-entropy: networks of two widths on the curves of the limit.

(a) training and test loss.
(b) test loss around its minimum: after it the networks grow overconfident, and the loss rises at unchanged accuracy.
(c) test accuracy.
(d) N (mean test loss - limit): one curve for all widths where the difference is the 1/N bias alone.

Lines: the limit, with its standard error as a grey band.  Points: means over trained networks, with standard errors, at
some of the steps.  Coloured bands: one standard deviation of a single network.  Errors in (d) hold those of the limit,
which all widths and steps share.

Accuracies do not approach the limit like 1/N: an image counts as a whole, and those whose margin is below a network's
fluctuations count on both sides.  Of the 33 test images within .3 of the boundary in the limit 23 are wrong, of which
single networks of width 1,024 get some right; the mean output of 16 such networks has the accuracy of the limit.

Assumptions and approximations
    Sobol points of hundreds of dimensions, one for each image here, have an error of order 1/S that their scatter does
    not show.  Measured on the training loss at step 1, 2.0544 +- .0003 by networks of width 4,096: 4,096 particles give
    2.0545 with 100 test images, but 2.0574 with 500; 16,384 give 2.0552 with 500 (standard errors at most .0004).
    Without a store the limit is therefore that of 100 test images, at a size for two cores; `problem` has 500, for
    which `compared` wants more particles, on a GPU (65,536: an error of .0002, if it falls on like 1/S).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import comparisons
import dmft
import finite_nets
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 4.8)
RATE = 15.0
STEPS = 50
WIDTHS = (256, 1024)
SEEDS = 16
PARTICLES = 4096
SCRAMBLES = 4
TOLERANCE = 3e-2  # losses as with 1e-2, well within their standard errors (measured to step 10), in half the time
N_TEST = 100  # of what is made without a store
CURVES = ("loss", "test_loss", "test_accuracy")
NEEDS = Needs(
    "mnist_ten_classes",
    "comparison",
    "comparisons.compare(theory, nets), for classes with test samples,",
    tuple(f"{name}_mean" for name in CURVES),
    make=comparisons.compare,
    optional=("fluctuations",),
)
POINTS = 13  # of each width, at most
TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)


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
    """A comparison, of a folder of results (`figures.needs`); without one, that of a smaller problem is made."""
    return compared(problem(n_test=N_TEST)) if store is None else NEEDS.stored(store)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """Of each curve `_mean`, `_mean_se`, `_scatter` (width, step), `_limit`, `_limit_se` (step); test_loss_bias.

    `_scatter` is the standard deviation over networks, test_loss_bias = N (mean - limit), with its `_se`.
    """
    comparison = NEEDS.take(*results)
    names = [f"{name}_{part}" for name in CURVES for part in ("mean", "mean_se", "limit", "limit_se")]
    ds = comparison[names].copy()
    ds.attrs = style.provenance(comparison)
    n = comparison["width"]
    for name in CURVES:
        ds[f"{name}_scatter"] = np.sqrt(comparison[f"{name}_variance"] / n)
    ds["test_loss_bias"] = n * comparison["test_loss_deviation"]
    ds["test_loss_bias_se"] = n * comparison["test_loss_deviation_se"]
    return ds


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of a comparison of losses and accuracies, or of theory and networks in any order."""
    return style.panels(draw, drawn(*results), (2, 2), SIZE)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """Four panels on four axes."""
    axes = axes.ravel()
    _draw_curve(ds, "loss", axes[0], label="$N={}$")
    _draw_curve(ds, "test_loss", axes[0], line="--")
    axes[0].set(yscale="log", ylabel="loss", title="(a) loss")
    _draw_curve(ds, "test_loss", axes[1], band=r"$\pm$ std of networks, $N={}$")
    axes[1].set(ylabel="test loss", title="(b) test loss, enlarged")
    low, high = _range(ds, "test_loss")
    axes[1].set_ylim(low - 0.01 * (high - low), low + 0.1 * (high - low))
    _draw_curve(ds, "test_accuracy", axes[2])
    axes[2].set(ylabel="test accuracy", title="(c) test accuracy, enlarged")
    low, high = _range(ds, "test_accuracy")
    axes[2].set_ylim(high - 0.25 * (high - low), high + 0.01 * (high - low))
    _draw_bias(ds, axes[3])
    axes[0].plot([], [], "--", color="black", linewidth=1.2, label="dashed: test")
    axes[0].legend(loc="lower left")
    axes[1].legend(loc="upper right")
    last = int(ds["step"][-1])
    axes[1].set(xlabel="step $t$", xlim=(0, 1.02 * last))
    for ax in (axes[0], axes[2], axes[3]):
        ax.set_xscale("symlog", linthresh=2)
        ax.set_xticks([t for t in TICKS if t <= last], [str(t) for t in TICKS if t <= last])
        ax.minorticks_off()
        ax.set(xlabel="step $t$", xlim=(0, 1.1 * last))


def _draw_curve(ds: xr.Dataset, name: str, ax: Axes, *, line: str = "-", label: str = "", band: str = "") -> None:
    """A curve of the limit with its error, networks on it; labels, with a place for the width, of points and bands."""
    step = ds["step"].values
    limit, se = ds[f"{name}_limit"].values, ds[f"{name}_limit_se"].values
    ax.fill_between(step, limit - se, limit + se, color="black", alpha=0.25, linewidth=0)
    ax.plot(step, limit, line, label=r"theory, $N\to\infty$" if label else None, **(style.LIMIT | {"linewidth": 1.2}))
    for width, shown, look in _networks(ds):
        row = ds.sel(width=width)
        mean, scatter = row[f"{name}_mean"].values, row[f"{name}_scatter"].values
        ax.fill_between(
            step,
            mean - scatter,
            mean + scatter,
            color=look["color"],
            alpha=0.3,
            linewidth=0,
            label=band.format(width) or None,
        )
        se = row[f"{name}_mean_se"].values
        ax.errorbar(step[shown], mean[shown], se[shown], label=label.format(width) or None, **look)


def _range(ds: xr.Dataset, name: str) -> tuple[float, float]:
    """The least and the greatest value of a curve, scatter of networks included."""
    mean, scatter = ds[f"{name}_mean"], ds[f"{name}_scatter"]
    low = min(ds[f"{name}_limit"].min().item(), (mean - scatter).min().item())
    return low, max(ds[f"{name}_limit"].max().item(), (mean + scatter).max().item())


def _draw_bias(ds: xr.Dataset, ax: Axes) -> None:
    """(d) N times the deviation of the mean test loss."""
    ax.axhline(0, color="black", linewidth=0.9, zorder=0)
    step = ds["step"].values
    for width, shown, look in _networks(ds):
        row = ds.sel(width=width)
        bias, se = row["test_loss_bias"].values, row["test_loss_bias_se"].values
        ax.errorbar(step[shown], bias[shown], se[shown], **look)
    ax.set(ylabel=r"$N\,(\mathrm{E}\,\mathcal{L}_N - \mathcal{L}_\infty)$", title="(d) bias of the mean test loss")


def _networks(ds: xr.Dataset) -> list[tuple[int, NDArray[np.intp], dict[str, Any]]]:
    """Width, positions of the steps with points (others for each width: none hides another), look of the points."""
    colors = style.width_colors(ds["width"].values.tolist())
    positions = np.unique(np.geomspace(1, max(ds.sizes["step"] - 1, 1), POINTS * len(colors)).astype(np.intp))
    markers = itertools.cycle(look["marker"] for look in style.SERIES)
    return [
        (
            width,
            np.append(0, positions[i :: len(colors)]),
            {"color": color, "marker": marker, "markersize": 3, "linestyle": "none", "linewidth": 0.9, "zorder": 6},
        )
        for i, ((width, color), marker) in enumerate(zip(colors.items(), markers, strict=False))
    ]
