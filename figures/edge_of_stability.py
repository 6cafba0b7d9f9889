"""Edge of stability: sharpness through training with a large step, across widths and in the limit.

(a) sharpness times the learning rate: means over networks of each width, with the standard deviation of the narrowest
    and the widest, and the limit; plain gradient descent is stable below 2 (dashed).
(b) training loss of the same networks and of the limit.
(c) the step at which the sharpness first exceeds 2 over the rate: median over networks, those between which half of
    them lie (thin bars), and the limit.  A network that never exceeds it counts as later than all others, and is drawn
    at the last step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
import finite_nets
from comparisons import inputs
from comparisons.estimators import first_above
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 2.7)
WIDTHS = (32, 64, 128, 256, 512)
SEEDS = 48
RATE = 5.5
STEPS = 30
EDGE = 2.0
OBSERVABLES = ("loss", "sharpness")
REACHED = ("reached", "step_median", "step_median_se", "step_low", "step_high")  # a share; steps


def problem() -> dmft.Problem:
    """Threes against eights of MNIST, twenty images, at a rate at which training finds the edge."""
    task = dmft.load_task("mnist5k", classes=(3, 8), n_train=20, n_test=0)
    network = dmft.MLP(depth=2, activation=dmft.tanh(), gamma0=0.5)
    return dmft.Problem(network, task, dmft.GradientDescent(RATE, STEPS))


def data(store: Path | None) -> xr.Dataset:
    """Losses, sharpness times the rate, and when it reaches the edge: of a folder of results, or made."""
    return make() if store is None else NEEDS.stored(store)


def make(*, widths: Sequence[int] = WIDTHS, seeds: int = SEEDS, scrambles: int = 4, **numerics: Any) -> xr.Dataset:
    """The data; further arguments of `dmft.solve`."""
    described = problem()
    theory = dmft.solve(described, observables=OBSERVABLES, scrambles=scrambles, **numerics)
    nets = finite_nets.train_ensemble(described, widths=widths, seeds=seeds, observables=OBSERVABLES)
    return of(theory, nets)


def of(theory: xr.Dataset, nets: xr.Dataset) -> xr.Dataset:
    """The data of theory and networks, which have recorded losses and sharpness.

    Raises:
        ValueError: not recorded, or a rate that changes while they train.
    """
    inputs.check_networks(nets, members="this figure")
    inputs.check_quantities(nets, "the ensemble", OBSERVABLES)
    inputs.check_theory(theory, nets, OBSERVABLES)
    comparison = comparisons.compare(theory, nets)
    rates = np.unique(json.loads(nets.attrs["problem"])["training"]["learning_rate"])
    if len(rates) > 1:
        raise ValueError(f"the learning rate goes from {rates[0]:g} to {rates[-1]:g}; the edge is that of one rate.")
    rate = float(rates[0])
    found: dict[str, Any] = {
        name: comparison[name] for name in ("loss_mean", "loss_mean_se", "loss_limit", "loss_limit_se")
    }
    for name in ("mean", "mean_se", "limit", "limit_se"):
        found[f"edge_{name}"] = rate * comparison[f"sharpness_{name}"]
    found["edge_std"] = rate * nets["sharpness"].std("seed", ddof=1)
    step, level = nets["step"].values, EDGE / rate
    for name, values in zip(
        REACHED, np.transpose([when(step, rows, level) for rows in nets["sharpness"].values]), strict=True
    ):
        found[name] = ("width", values)
    limit, se = theory["sharpness"].values, theory["sharpness_se"].values
    found["step_limit"] = ((), first_above(step, limit, level))
    # early and late: the curve up and down by its error
    ends = [first_above(step, limit + sign * se, level) for sign in (1, -1)]
    found["step_limit_se"] = ((), abs(ends[1] - ends[0]) / 2)
    return xr.Dataset(found).assign_attrs(
        style.provenance(comparison) | {"analysis": "edge_of_stability", "learning_rate": rate}
    )


NEEDS = Needs(
    "edge_of_stability",
    "edge_of_stability",
    "figures.edge_of_stability.of(theory, nets)",
    ("edge_mean", "edge_limit", "edge_std", "loss_mean", "step_median", "step_limit"),
    make=of,
)


def when(step: np.ndarray, sharpness: np.ndarray, level: float) -> tuple[float, ...]:
    """`REACHED`, of networks (member, step) that did not diverge: when their sharpness first exceeds a level; infinite
    where too few do, and the error nan."""
    each = np.array([first_above(step, row, level) for row in sharpness if np.isfinite(row).all()])
    share = np.isfinite(each).mean()
    each[np.isnan(each)] = np.inf
    half = 0.5 / np.sqrt(len(each))  # ranks are binomial
    # never between two networks, of which one may never reach it
    low, below, median, above, high = np.quantile(
        each, [0.25, 0.5 - half, 0.5, 0.5 + half, 0.75], method="inverted_cdf"
    )
    return share, median, (above - below) / 2 if np.isfinite(above) else np.nan, low, high


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of theory and networks that recorded losses and sharpness, in any order."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Draw the three panels on three axes."""
    step, widths = ds["step"].values, ds["width"].values
    for name, ax in (("edge", axes[0]), ("loss", axes[1])):
        style.by_width(ax, step, ds, f"{name}_mean", f"{name}_limit")
        ax.set_xlabel("step")
    colors = style.width_colors(widths.tolist())
    for width in (widths[0], widths[-1]):
        y, std = (ds[f"edge_{part}"].sel(width=width).values for part in ("mean", "std"))
        look = {"color": colors[width], "alpha": 0.2, "label": rf"$\pm$ std of networks, $N={width}$"}
        style.errors(axes[0], step, y, std, **look)
    axes[0].axhline(EDGE, color="0.3", linestyle="--", linewidth=1.0, zorder=0, label="edge of stability")
    axes[0].set(ylabel=r"$\eta\,\times$ sharpness", title="(a) sharpness")
    kept = [i for i, text in enumerate(axes[0].get_legend_handles_labels()[1]) if not text.startswith("$N=")]
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend([handles[i] for i in kept], [labels[i] for i in kept], loc="lower right")
    axes[1].set_yscale("log")
    axes[1].set(ylabel="training loss", title="(b) training loss")
    axes[1].legend()
    low, median, high = (np.minimum(ds[f"step_{name}"].values, step[-1]) for name in ("low", "median", "high"))
    apart = [median - low, high - median]
    bars: dict[str, Any] = {
        "linestyle": "none",
        "linewidth": 0.8,
        "color": "0.6",
        "capsize": 0,
        "label": "half of the networks",
    }
    axes[2].errorbar(widths, median, apart, **bars)
    look = style.SERIES[0]
    axes[2].errorbar(widths, median, ds["step_median_se"].values, linestyle="none", label="median network", **look)
    limit, se = ds["step_limit"].item(), ds["step_limit_se"].item()
    axes[2].axhline(limit, label=style.INFINITE, **style.LIMIT)
    axes[2].axhspan(limit - se, limit + se, color="black", alpha=0.15, linewidth=0)
    style.width_axis(axes[2], widths)
    axes[2].set(ylabel=r"step at which it reaches $2/\eta$", title="(c) when the edge is reached", ylim=(0, None))
    axes[2].legend(loc="upper right")
