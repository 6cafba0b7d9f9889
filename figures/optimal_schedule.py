"""An optimal schedule: rates, up to 4, that bring the loss of the limit down, and how networks of finite width fare.

(a) The rate of every step, found at infinite width by `dmft.optimise`, and the best constant one.  (b) The loss of the
limit after training, against constant rates, and that of the schedule.  (c) The loss before every step: limit (lines)
and networks of the largest width (points).  (d) The loss after training against width: limit (dashed), L + b / N
(lines, with their standard errors) and networks (points).
Where larger rates are allowed there are other optima, some of them better in networks, too (the page says which).
Losses of the limit are those of other normals than the ones in which optima were found.  Threes against eights of
scikit-learn's digits, ten images, two hidden layers, tanh, six steps, a hundred networks a width.  Some ten minutes on
two cores.
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

import dmft
import finite_nets
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 4.6)
STEPS, SAMPLES = 6, 10
BOUNDS = (0.05, 4.0)  # of rates; beyond, optima are more often those of the normals of the search alone
RATES = (1.6, 1.9, 2.2, 2.5, 2.7, 2.9, 3.1, 3.3)
WIDTHS, SEEDS = (64, 128, 256, 512, 1024), 100
NUMERICS: dict[str, Any] = {"particles": 1024, "scrambles": 4, "tolerance": 1e-2}
DRAWS = 16  # of fluctuations, in each scramble
CONSTANT, SCHEDULE = TRAININGS = ("best constant rate", "schedule")
LOOKS = dict(zip(TRAININGS, style.SERIES, strict=False))
NEEDS = Needs(
    "optimal_schedule",
    "optimal_schedule",
    "figures.optimal_schedule.make(problem)",
    ("learning_rate", "rate_loss", "loss_limit", "loss_mean", "last_loss_predicted"),
)


def problem() -> dmft.Problem:
    """The problem of the gallery; its rate is where the search begins."""
    task = dmft.load_task("digits", classes=(3, 8), n_train=SAMPLES, n_test=0)
    return dmft.Problem(dmft.MLP(2, dmft.tanh()), task, dmft.GradientDescent(1.0, STEPS))


def data(store: Path | None) -> xr.Dataset:
    """The numbers, of a folder of results (`figures.needs`); without one, networks are trained."""
    return make(problem()) if store is None else NEEDS.stored(store)


def make(
    begin: dmft.Problem,
    *,
    bounds: tuple[float, float] = BOUNDS,
    rates: Sequence[float] = RATES,
    widths: Sequence[int] = WIDTHS,
    seeds: int = SEEDS,
    draws: int = DRAWS,
    iterations: int = 25,
    **numerics: Any,
) -> xr.Dataset:
    """The best of these constant rates, refined, the schedule to which that is refined again, and their losses.

    begin: with a constant rate, whichever.  numerics: particles, scrambles and tolerance of every limit.
    """
    numerics = NUMERICS | numerics
    search: dict[str, Any] = {"bounds": {"learning_rate": bounds}, "iterations": iterations, **numerics}
    others: dict[str, Any] = {"observables": ["loss"], "seed": 1, **numerics}
    steps, tried = begin.training.steps, dmft.vary(begin, learning_rate=list(rates))
    swept = [dmft.solve(one, save_steps=[steps], **others) for one in tried]
    losses, errors = ([float(one[f"loss{end}"][-1]) for one in swept] for end in ("", "_se"))
    constant = dmft.optimise(tried[int(np.argmin(losses))], **search).problem
    (refined,) = dmft.vary(constant, learning_rate=[constant.training.rates.tolist()])
    schedule = dmft.optimise(refined, **search).problem
    found = [_fared(one, widths, seeds, draws, others) for one in (constant, schedule)]
    ds = xr.concat(found, "training").assign_coords(training=list(TRAININGS), rate=list(rates))
    ds = ds.assign(rate_loss=("rate", losses), rate_loss_se=("rate", errors))
    return ds.assign_attrs(analysis="optimal_schedule", seeds=seeds, bounds=bounds)


def _fared(one: dmft.Problem, widths: Sequence[int], seeds: int, draws: int, numerics: dict[str, Any]) -> xr.Dataset:
    """Rates and losses of one training: of the limit, expected and measured of networks."""
    last = one.training.steps
    limit = dmft.solve(one, **numerics)
    added = dmft.fluctuations(one, save_steps=[last], draws=draws, **numerics)
    nets = finite_nets.train_ensemble(one, widths=widths, seeds=seeds, observables=["loss"])["loss"]
    expected = [limit["loss"].values[-1] + added["loss_bias"].values[-1] / n for n in widths]
    error = [np.hypot(limit["loss_se"].values[-1], added["loss_bias_se"].values[-1] / n) for n in widths]
    curves, ends = ("width", "time"), ("width",)
    return xr.Dataset(
        {
            "learning_rate": ("step", one.training.rates),
            "loss_limit": ("time", limit["loss"].values),
            "loss_limit_se": ("time", limit["loss_se"].values),
            "last_loss_predicted": (ends, expected),
            "last_loss_predicted_se": (ends, error),
            "loss_mean": (curves, nets.mean("seed").values),
            "loss_mean_se": (curves, nets.std("seed", ddof=1).values / seeds**0.5),
        },
        coords={"step": range(last), "time": range(last + 1), "width": list(widths)},
    )


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `make` returns."""
    return style.panels(draw, drawn(*results), (2, 2), SIZE)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """Four panels."""
    rates, swept, course, widths = axes.ravel()
    for name in TRAININGS:
        row, look = ds.sel(training=name), LOOKS[name]
        rates.plot(ds["step"].values, row["learning_rate"].values, label=name, markersize=3.5, **look)
        _draw_course(row, course, look)
        _draw_widths(row, widths, look)
    style.band(swept, ds["rate"].values, ds["rate_loss"].values, ds["rate_loss_se"].values, color="black")
    best = ds.sel(training=CONSTANT)
    at = best["learning_rate"].values[:1], best["loss_limit"].values[-1:]
    swept.plot(*at, linestyle="none", label=CONSTANT, **LOOKS[CONSTANT])
    level = float(ds.sel(training=SCHEDULE)["loss_limit"][-1])
    swept.axhline(level, color=LOOKS[SCHEDULE]["color"], label=SCHEDULE)
    rates.set(xlabel="step", ylabel=r"learning rate $\eta$", title="(a) rates", ylim=(0, None))
    swept.set(xlabel=r"constant rate $\eta$", ylabel="loss of the limit", title="(b) after training", yscale="log")
    course.set(xlabel="step", ylabel="loss", title="(c) limit and networks", yscale="log")
    widths.set(ylabel="loss after training", title="(d) finite width", yscale="log")
    style.width_axis(widths, ds["width"].values)
    for ax in axes.ravel():
        style.legend(ax, fontsize=6.5)


def _draw_course(row: xr.Dataset, ax: Axes, look: dict[str, Any]) -> None:
    """The limit through training, and the widest networks."""
    time, widest = row["time"].values, row.isel(width=-1)
    style.band(ax, time, row["loss_limit"].values, row["loss_limit_se"].values, color=look["color"])
    measured = widest["loss_mean"].values, widest["loss_mean_se"].values
    label = f"{row['training'].item()}, $N={widest['width'].item()}$"
    ax.errorbar(time, *measured, linestyle="none", markersize=3.5, label=label, **look)


def _draw_widths(row: xr.Dataset, ax: Axes, look: dict[str, Any]) -> None:
    """Losses after training, against width."""
    n, last = row["width"].values, row.isel(time=-1)
    ax.axhline(float(last["loss_limit"]), color=look["color"], linestyle="--", linewidth=0.9)
    predicted = row["last_loss_predicted"].values, row["last_loss_predicted_se"].values
    style.band(ax, n, *predicted, color=look["color"], label=f"{row['training'].item()}, $L+b/N$")
    measured = last["loss_mean"].values, last["loss_mean_se"].values
    ax.errorbar(n, *measured, linestyle="none", markersize=3.5, label=f"{row['training'].item()}, networks", **look)
