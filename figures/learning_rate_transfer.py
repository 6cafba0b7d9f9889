"""Learning-rate transfer: the best rate of wide networks, predicted from the limit, and measured.

(a) mean loss after training against the rate: the limit and L + b / N (lines), networks (points); the lowest points.
(b) the best rate against width: predicted (line, with its standard error), of networks (points); thin bars are the
standard deviation of one network's best rate.
(c) that standard deviation: predicted, which falls like N^-1/2, and of networks.  Networks that are best at an end of
the rates are left out, three tenths at width 32: what is measured there is too small.
(d) that best rate beside the one of standard parameterization, one rate for all weights of PyTorch's sizes: its steps
grow with width, and the best rate falls nearly like 1/N.  Both over those of the narrowest networks.
Threes against eights of scikit-learn's digits, four images, two hidden layers, tanh, five steps.  Some two minutes
on two cores.
"""

from __future__ import annotations

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

SIZE, TALL = (style.WIDE, 2.6), (style.WIDE, 5.0)
STANDARD = tuple(np.geomspace(1.0, 5.0, 25))  # rates of standard parameterization, times the width
RATES = (1.8, 2.0, 2.1, 2.2, 2.3, 2.4)
WIDTHS = (32, 64, 128, 256)
SEEDS = 1000
STEPS = 5
NUMERICS: dict[str, Any] = {"draws": 32, "particles": 1024, "scrambles": 4}
TICKS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
NEEDS = Needs(
    "learning_rate_transfer",
    "transfer",
    "comparisons.transfer(nets, theory)",
    ("loss_mean", "loss_mean_predicted", "optimum", "optimum_predicted", "optimum_limit", "scatter_predicted"),
)


def problem() -> dmft.Problem:
    """The problem of the gallery."""
    task = dmft.load_task("digits", classes=(3, 8), n_train=4, n_test=0)
    return dmft.Problem(dmft.MLP(2, dmft.tanh()), task, dmft.GradientDescent(1.0, steps=STEPS))


def data(store: Path | None) -> xr.Dataset:
    """The numbers, of a folder of results (`figures.needs`); without one, networks are trained."""
    return make(**NUMERICS) if store is None else NEEDS.stored(store)


def make(
    *, rates: Sequence[float] = RATES, widths: Sequence[int] = WIDTHS, seeds: int = SEEDS, **numerics: Any
) -> xr.Dataset:
    """The best rates of this problem; further arguments of `dmft.transfer`."""
    theory = dmft.transfer(problem(), "learning_rate", rates, widths=widths, **numerics)
    recorded: dict[str, Any] = {"observables": ["loss"], "save_steps": [STEPS]}
    nets = [
        finite_nets.train_ensemble(one, widths=widths, seeds=seeds, **recorded)
        for one in dmft.vary(problem(), learning_rate=rates)
    ]
    return with_standard(comparisons.transfer(nets, theory), seeds)


def with_standard(found: xr.Dataset, seeds: int) -> xr.Dataset:
    """The same, with best rates of networks in standard parameterization, each width on rates of its own."""
    given = problem()
    standard = dmft.Problem(dmft.MLP(2, dmft.tanh(), parameterization="standard"), given.task, given.training)
    recorded: dict[str, Any] = {"seeds": seeds, "observables": ["loss"], "save_steps": [STEPS]}
    best = []
    for width in found["width"].values.tolist():
        rates = [rate / width for rate in STANDARD]
        nets = [
            finite_nets.train_ensemble(one, widths=[width], **recorded)
            for one in dmft.vary(standard, learning_rate=rates)
        ]
        best.append(comparisons.transfer(nets, over="learning_rate"))
    return found.assign(
        {f"optimum_standard{end}": ("width", [one[f"optimum{end}"].item() for one in best]) for end in ("", "_se")}
    )


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `comparisons.transfer` returns with a theory, or `make`, which has (d) besides."""
    ds = drawn(*results)
    return style.panels(draw, ds, *(((2, 2), TALL) if "optimum_standard" in ds else ((1, 3), SIZE)))


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """All panels."""
    drawings = (draw_losses, draw_optima, draw_scatter, draw_standard)
    for drawing, ax in zip(drawings, axes.flat, strict=False):
        drawing(ds, ax)


def draw_losses(ds: xr.Dataset, ax: Axes) -> None:
    """(a) losses against the rate."""
    rate = ds["value"].values
    for width, color in style.width_colors(ds["width"].values.tolist()).items():
        row = ds.sel(width=width)
        style.band(ax, rate, row["loss_mean_predicted"].values, row["loss_mean_predicted_se"].values, color=color)
        points = row["loss_mean"].values, row["loss_mean_se"].values
        ax.errorbar(rate, *points, color=color, marker="o", markersize=3, linestyle="none", label=f"$N={width}$")
        ax.axvline(row["optimum"].item(), color=color, linewidth=0.8, linestyle=":")
    ax.plot(rate, ds["loss_limit"].values, label=style.INFINITE, **style.LIMIT)
    ax.set_yscale("log")
    ax.set(xlabel=r"learning rate $\eta$", ylabel=f"loss after {ds.attrs['step']} steps", title="(a) mean losses")
    style.room(ax, top=0.4)
    style.legend(ax, loc="upper center", ncols=2, fontsize=6.5)


def draw_optima(ds: xr.Dataset, ax: Axes) -> None:
    """(b) the best rate against width."""
    width, best = ds["width"].values, ds["optimum"].values
    predicted, se = ds["optimum_predicted"].values, ds["optimum_predicted_se"].values
    style.band(ax, width, predicted, se, color=style.SERIES[0]["color"], label="predicted")
    spread = ds["scatter"].values * (best if ds.attrs["scale"] == "log" else 1.0)
    ax.errorbar(width, best, spread, color="0.6", linestyle="none", linewidth=0.8, label="one network")
    look = style.SERIES[1]
    ax.errorbar(width, best, ds["optimum_se"].values, linestyle="none", label="mean loss of networks", **look)
    ax.axhline(ds["optimum_limit"].item(), label=style.INFINITE, **style.LIMIT)
    style.width_axis(ax, width)
    ax.set(ylabel=r"best $\eta$", title="(b) best rate")
    style.legend(ax)


def draw_scatter(ds: xr.Dataset, ax: Axes) -> None:
    """(c) scatter of the best rate of one network."""
    width = ds["width"].values
    limit, se = ds["scatter_predicted"].values, ds["scatter_predicted_se"].values
    style.band(ax, width, limit, se, color=style.SERIES[0]["color"], label="predicted")
    points = ds["scatter"].values, ds["scatter_se"].values
    ax.errorbar(width, *points, linestyle="none", label="networks", **style.SERIES[1])
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_yticks([tick for tick in TICKS if low < tick < high], [f"{tick:g}" for tick in TICKS if low < tick < high])
    ax.minorticks_off()
    style.guide(ax, width, (width[0], 0.7 * limit[0]), -0.5, r"$N^{-1/2}$")
    style.width_axis(ax, width)
    ax.set(ylabel=r"standard deviation of $\log\eta$", title="(c) one network")
    style.legend(ax)


def draw_standard(ds: xr.Dataset, ax: Axes) -> None:
    """(d) best rates in two parameterizations."""
    width = ds["width"].values
    names = {"optimum": "mean-field", "optimum_standard": "standard"}
    for (name, label), look in zip(names.items(), style.SERIES, strict=False):
        best, se = ds[name].values, ds[f"{name}_se"].values
        ax.errorbar(width, best / best[0], se / best[0], label=label, linewidth=0.8, **look)
    style.guide(ax, width, (width[0], 0.8), -1.0, "$1/N$")
    ax.set_yscale("log")
    style.width_axis(ax, width)
    ax.set(ylabel=rf"best $\eta$ / best $\eta$ at $N={width[0]}$", title="(d) two parameterizations")
    style.legend(ax)
