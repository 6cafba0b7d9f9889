"""Test accuracy on a whole data set against width, with its limit at infinity, from lazy to rich.

(a) mean accuracy of single networks (filled) and of the prediction averaged over networks (open), and the limit that
    both extrapolate to (lines: that of single networks, with its standard error), for each richness gamma0.
(b) accuracy against richness: of the widths (points) and of the limit (black).

Limits and their errors are those of `comparisons.extrapolate`: averages over laws in width.  Networks of two hidden
layers (ReLU) with cross-entropy, trained by SGD with momentum on minibatches, warm-up and cosine.  The gallery shows
all 50,000 images of CIFAR-10, mirrored and shifted by up to two pixels at random, 40 epochs of batches of 500; 24
networks each of N = 256 to 1,024, 8 of 2,048 and 4,096, 3 of 8,192, one of 16,384 (two for gamma0 = 2); gamma0 = .1,
.5, 2 with rates 10, 2, .3 (two to four minutes a richness on one H200; averages over networks were kept for gamma0 =
2): the best of three at N = 2,048 by accuracy on the test images, of which the figure's accuracies are therefore not
independent.  Without a store 1,200 of scikit-learn's digits are trained on, two minutes on two cores, at the best of
three rates on a fifth of the training images that is held out (`chosen`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
import finite_nets
from dmft.specs import _check
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 2.8)
BATCH, EPOCHS = 50, 8
RATES = {0.1: (1.0, 3.0, 10.0), 0.5: (0.3, 1.0, 3.0), 2.0: (0.03, 0.1, 0.3)}  # by richness, to choose from
WIDTHS = {32: 64, 64: 32, 128: 16, 256: 8, 512: 4}  # networks of each
HELD_OUT = 5  # every so many samples of the training set is one of those by which rates are chosen
TRIED = (128, 4)  # width, networks, with which they are
NAME = "test_accuracy"
MARGIN = 2  # beside the axis of percents, for points
SHOWN = tuple(f"{NAME}{kind}{end}" for kind in ("_mean", "_limit") for end in ("", "_se"))
AVERAGED = tuple(name.replace(NAME, f"{NAME}_infinite") for name in SHOWN)
NEEDS = Needs("whole_data_set", "whole_data_set", "figures.whole_data_set.gathered(found)", SHOWN)


def problem(task: dmft.Task | None = None, *, batch: int = BATCH, epochs: int = EPOCHS) -> dmft.Problem:
    """The problem of the figure, for digits or another task; its richness and rate are varied.

    Args:
        epochs: of which the first is the warm-up.

    Raises:
        ValueError, TypeError: a batch of more than all samples, and what `dmft.Problem` refuses.
    """
    task = dmft.load_task("digits", classes=range(10), n_train=1200, n_test=500) if task is None else task
    batch, epochs = _check.integer("batch", batch, minimum=1), _check.integer("epochs", epochs, minimum=2)
    if batch > task.n_train:
        raise ValueError(f"batch={batch} is more than the {task.n_train} training samples; take a smaller one.")
    steps = epochs * (task.n_train // batch)
    rates = dmft.learning_rates(1.0, steps, warm_up=steps // epochs)
    training = dmft.GradientDescent(rates, steps, momentum=0.9, batches=dmft.Epochs(batch), observe="test")
    return dmft.Problem(dmft.MLP(2, dmft.relu(), centered=False), task, training, loss="cross_entropy")


def data(store: Path | None) -> xr.Dataset:
    """The numbers, of a folder of results (`figures.needs`); without one, networks are trained."""
    return make(problem()) if store is None else NEEDS.stored(store)


def make(
    described: dmft.Problem, rates: Mapping[float, Sequence[float]] = RATES, seeds: Mapping[int, int] = WIDTHS
) -> xr.Dataset:
    """Networks of each richness, trained at the best of these rates, so many of each width, and their extrapolation."""
    found = {}
    for gamma0, some in rates.items():
        one = varied(described, gamma0, chosen(described, gamma0, some))
        nets = [_trained(one, n, count) for n, count in seeds.items()]
        found[gamma0] = comparisons.extrapolate(nets, [NAME])
    return gathered(found)


def varied(described: dmft.Problem, gamma0: float, rate: float) -> dmft.Problem:
    """The problem at this richness, its rates times `rate`."""
    schedule = [float(rate * each) for each in described.training.rates]
    (one,) = dmft.vary(described, gamma0=[gamma0], learning_rate=[schedule])
    return one


def chosen(described: dmft.Problem, gamma0: float, rates: Sequence[float], tried: tuple[int, int] = TRIED) -> float:
    """The rate with the best accuracy on samples of the training set that networks (width, how many) are not trained
    on; test samples are not looked at.

    Raises:
        ValueError: no rates; networks diverge at all of them.
    """
    if not len(rates):
        raise ValueError(f"there is no rate to choose from for gamma0={gamma0:g}; give one at least.")
    if len(rates) == 1:
        return rates[0]
    there = held_out(described)

    def accuracy(rate: float) -> float:
        """Of a rate at which any network diverges -1."""
        with warnings.catch_warnings(), suppress(dmft.errors.DivergenceError):
            warnings.simplefilter("ignore")
            found = _trained(varied(there, gamma0, rate), *tried)[NAME]
            return float(np.nan_to_num(found.isel(step=-1).mean(skipna=False), nan=-1))
        return -1.0

    found = [accuracy(rate) for rate in rates]
    if max(found) < 0:
        raise ValueError(
            f"networks diverge at each of the rates {', '.join(f'{rate:g}' for rate in rates)} for gamma0={gamma0:g} "
            f"and width {tried[0]}; give smaller ones."
        )
    return rates[int(np.argmax(found))]


def held_out(described: dmft.Problem) -> dmft.Problem:
    """The problem of all training samples but every fifth, on which it is tested; of as many epochs.

    Raises:
        ValueError: batches that are no epochs; it leaves less than a batch, or nothing to be tested on.
    """
    task, training = described.task, cast("Any", described.training)
    if not isinstance(training.batches, dmft.Epochs):
        raise ValueError("batches of a part of the training samples are drawn anew: give batches=dmft.Epochs(size).")
    out = np.arange(task.n_train) % HELD_OUT == HELD_OUT - 1
    if not out.any() or training.batches.size > (~out).sum():
        raise ValueError(
            f"of {task.n_train} training samples {out.sum()} are held out, which leaves {(~out).sum()} for batches of "
            f"{training.batches.size}; take smaller batches, more samples, or a single rate, which is not chosen."
        )
    rest = dmft.Task(task.x_train[~out], task.y_train[~out], task.x_train[out], task.y_train[out])
    steps = training.steps * (rest.n_train // training.batches.size) // (task.n_train // training.batches.size) or 1
    rates = np.asarray(training.rates)[np.arange(steps) * training.steps // steps]  # those of an epoch stay alike
    return replace(described, task=rest, training=replace(training, steps=steps, learning_rate=tuple(rates.tolist())))


def _trained(described: dmft.Problem, width: int, count: int) -> xr.Dataset:
    recorded: dict[str, Any] = {"save_steps": [described.training.steps], "observables": ["prediction", "loss"]}
    return finite_nets.train_ensemble(described, widths=[width], seeds=count, **recorded)


def gathered(found: Mapping[float, xr.Dataset]) -> xr.Dataset:
    """What the figure shows of extrapolations by richness, at their last step.

    Raises:
        ValueError, TypeError: none, or what `comparisons.extrapolate` does not return, or not of accuracies.
    """
    way = f'give {{gamma0: comparisons.extrapolate(results, ["{NAME}"])}}.'
    if not isinstance(found, Mapping):
        raise TypeError(f"a {type(found).__name__} has no extrapolations by richness; {way}")
    if not found:
        raise ValueError(f"there is no extrapolation to gather; {way}")
    for gamma0, ds in found.items():
        if not isinstance(ds, xr.Dataset):
            raise TypeError(f"gamma0={gamma0} has a {type(ds).__name__} in place of an extrapolation; {way}")
        if missing := [name for name in SHOWN if name not in ds]:
            raise ValueError(f"the Dataset of gamma0={gamma0} has no {', '.join(missing)}; {way}")
    each = [
        ds.isel(step=-1)[[name for name in (*SHOWN, *AVERAGED) if name in ds]].drop_attrs() for ds in found.values()
    ]
    ds = xr.concat(each, "gamma0", join="outer").assign_coords(gamma0=list(found))
    first = next(iter(found.values()))
    ds.attrs = {name: first.attrs[name] for name in ("problem", "version", "created")} | {"analysis": "whole_data_set"}
    return ds.sortby("gamma0")


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `gathered` returns."""
    return style.panels(draw, drawn(*results), (1, 2), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Both panels."""
    draw_widths(ds, axes[0])
    draw_richness(ds, axes[1])


def draw_widths(ds: xr.Dataset, ax: Axes) -> None:
    """(a) accuracy against width."""
    width = ds["width"].values
    for gamma0, look in zip(_shown(ds["gamma0"].values), style.SERIES, strict=False):
        row = ds.sel(gamma0=gamma0)
        at = f"{row[f'{NAME}_limit'].item():.4f}({1e4 * row[f'{NAME}_limit_se'].item():.0f})"
        y, se = (100 * row[f"{NAME}_mean{end}"].values for end in ("", "_se"))
        label = rf"$\gamma_0={gamma0:g}$: {at}"
        ax.errorbar(width, y, se, label=label, linestyle="-", linewidth=0.6, **look)
        if AVERAGED[0] in row:
            y, se = (100 * row[f"{NAME}_infinite_mean{end}"].values for end in ("", "_se"))
            ax.errorbar(width, y, se, linestyle=":", linewidth=0.6, **(look | {"markerfacecolor": "white"}))
        value, error = (100 * row[f"{NAME}_limit{end}"].item() for end in ("", "_se"))
        ax.axhspan(value - error, value + error, color=look["color"], alpha=0.2, linewidth=0)
        ax.axhline(value, color=look["color"], linewidth=1.2)
    style.width_axis(ax, width)
    _bound(ax)
    ax.set(ylabel="test accuracy (%)", title="(a) against width; lines: limit")
    style.legend(ax, loc="lower right", title="limit")


def draw_richness(ds: xr.Dataset, ax: Axes) -> None:
    """(b) accuracy against richness."""
    gamma0 = ds["gamma0"].values
    for width, color in style.width_colors(ds["width"].values.tolist()).items():
        y, se = (100 * ds[f"{NAME}_mean{end}"].sel(width=width).values for end in ("", "_se"))
        ax.errorbar(gamma0, y, se, color=color, marker="o", markersize=3, linewidth=0.8, label=f"$N={width}$")
    limit, se = (100 * ds[f"{NAME}_limit{end}"].values for end in ("", "_se"))
    ax.errorbar(gamma0, limit, se, marker="s", markersize=4, label=r"$N=\infty$", **style.LIMIT)
    ax.set_xscale("log")
    ax.set_xticks(gamma0, [f"{value:g}" for value in gamma0])
    ax.minorticks_off()
    _bound(ax)
    ax.set(xlabel=r"richness $\gamma_0$", ylabel="test accuracy (%)", title="(b) lazy to rich")
    style.legend(ax, fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _bound(ax: Axes) -> None:
    """No further than accuracies go, whatever their errors."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -MARGIN), min(high, 100 + MARGIN))


def _shown(gamma0: Any) -> Any:
    """The first, the last, and one between, of many."""
    return gamma0 if len(gamma0) <= 3 else np.asarray(gamma0)[[0, len(gamma0) // 2, -1]]
