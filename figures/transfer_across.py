"""Learning-rate transfer across depth and batch size: what moves the best rate, and what does not.

(a, b) residual networks of 1 to 8 blocks, whose branches have a limit of infinite depth: the loss of the limit of
infinite width against the rate (lines), of networks of width 64 (points), and the best rate against depth.
(c, d) two hidden layers, equally many steps on 2, 4 or all 8 samples each, means over eight sequences of batches: the
same; thin bars are the standard deviation of the limit's best rate between sequences, which no width removes, where
each of them has one within the rates (of two samples, one has none).
Predictions at width 64 are of other networks, by the engine of the limit.  Threes against eights of scikit-learn's
digits, eight images, tanh, five steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from dmft.finite_width.across import levels
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 4.6)
WIDTH, SEEDS, STEPS, SAMPLES, ORDERS = 64, 1000, 5, 8, 8
NUMERICS: dict[str, Any] = {"by": "samples", "members": 1024, "particles": 1024, "scrambles": 8, "tolerance": 3e-3}
NETWORKS: dict[str, dmft.Architecture] = {
    "depth": dmft.ResidualMLP(2, dmft.tanh()),
    "batch_size": dmft.MLP(2, dmft.tanh()),
}
LEVELS = {"depth": (1, 2, 4, 8), "batch_size": (2, 4, 8)}
RATES = {
    "depth": (2.0, 2.15, 2.3, 2.45, 2.6, 2.8),
    "batch_size": (0.9, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.3, 2.6, 2.9, 3.1),
}
LABELS = {"depth": "residual blocks", "batch_size": "samples in a batch"}
SHOWN = ("loss_mean", "loss_limit", "optimum", "optimum_predicted", "optimum_limit")
NEEDS = Needs(
    "transfer_across",
    "transfer_across",
    "figures.transfer_across.data(None)",
    tuple(f"{name}_{axis}" for axis in LEVELS for name in SHOWN),
)


def data(store: Path | None) -> xr.Dataset:
    """The numbers, of a folder of results (`figures.needs`); without one, networks are trained."""
    if store is not None:
        return NEEDS.stored(store)
    parts = [compared(axis, LEVELS[axis], RATES[axis]) for axis in LEVELS]
    return xr.merge(parts).assign_attrs(analysis="transfer_across", width=WIDTH, step=STEPS)


def problem(axis: str) -> dmft.Problem:
    """The problem whose `axis` is varied."""
    task = dmft.load_task("digits", classes=(3, 8), n_train=SAMPLES, n_test=0)
    return dmft.Problem(NETWORKS[axis], task, dmft.GradientDescent(1.0, STEPS))


def compared(axis: str, values: Sequence[int], rates: Sequence[float], **numerics: Any) -> xr.Dataset:
    """Predicted and measured along one axis, `NUMERICS` but for `numerics`; names end with that of the axis."""
    along: dict[str, Any] = {"across": {axis: values}, "widths": [WIDTH], **NUMERICS, **numerics}
    if axis == "batch_size":
        along["orders"] = ORDERS
    theory = dmft.transfer(problem(axis), "learning_rate", rates, **along).isel(width=0)
    nets = measured(axis, values, rates).isel(width=0).reindex({axis: theory[axis]})
    found = nets[["loss_mean", "loss_mean_se", "optimum", "optimum_se"]]
    for name, other in (("optimum_predicted", "optimum"), ("optimum_limit",) * 2, ("loss_limit",) * 2):
        found = found.assign({f"{name}{end}": theory[f"{other}{end}"].variable for end in ("", "_se")})
    if "order_scatter" in theory:
        found["order_scatter"] = theory["order_scatter"].variable
    names = {
        name: f"{str(name).removesuffix('_se')}_{axis}{'_se' * str(name).endswith('_se')}"
        for name in (*found.data_vars, "value")
    }
    return found.reset_coords(drop=True).rename(names).drop_attrs()


def measured(axis: str, values: Sequence[int], rates: Sequence[float]) -> xr.Dataset:
    """Best rates of networks, of the depths or of the sequences of batches over which `dmft.transfer` averages."""
    recorded: dict[str, Any] = {"observables": ["loss"], "save_steps": [STEPS]}
    found: dict[int, dict[float, xr.Dataset]] = {value: {} for value in values}
    for rate in rates:
        (one,) = dmft.vary(problem(axis), learning_rate=[rate])
        for level in levels(one, {axis: values}, ORDERS, seed=0)[1]:
            each = [finite_nets.train_ensemble(p, widths=[WIDTH], seeds=SEEDS, **recorded) for p in level.problems]
            mean = np.mean([ds["loss"] for ds in each], axis=0)
            found[level.label][rate] = each[0].assign(loss=each[0]["loss"].copy(data=mean))
    parts = [comparisons.transfer(nets, over="learning_rate") for nets in found.values()]
    return xr.concat(parts, axis, combine_attrs="drop").assign_coords({axis: list(found)})


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `data` makes."""
    return style.panels(draw, drawn(*results), (2, 2), SIZE)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """A row of losses and best rates for each axis."""
    letters = iter("abcd")
    for axis, row in zip(LEVELS, axes, strict=True):
        _draw_losses(ds, axis, row[0])
        _draw_optima(ds, axis, row[1])
        for ax, title in zip(row, ("losses", "best rate"), strict=True):
            ax.set_title(f"({next(letters)}) {title}, {axis.replace('_', ' ')}")


def _draw_losses(ds: xr.Dataset, axis: str, ax: Axes) -> None:
    rate = ds[f"value_{axis}"].values
    finite = [level for level in ds[axis].values.tolist() if np.isfinite(level)]
    for level, look in zip(finite, style.SERIES, strict=False):
        row = ds.sel({axis: level})
        ax.plot(rate, row[f"loss_limit_{axis}"].values, color=look["color"], label=f"{level:g}")
        points = row[f"loss_mean_{axis}"].values, row[f"loss_mean_{axis}_se"].values
        ax.errorbar(rate, *points, linestyle="none", **look | {"markersize": 3})
    ax.set_yscale("log")
    ax.set(xlabel=r"learning rate $\eta$", ylabel=f"loss after {ds.attrs['step']} steps")
    style.legend(ax, title=LABELS[axis], ncols=2, fontsize=6.5)


def _draw_optima(ds: xr.Dataset, axis: str, ax: Axes) -> None:
    at = ds[axis].values
    x, names = np.arange(len(at)), [r"$\infty$" if np.isinf(level) else f"{level:g}" for level in at]
    limit, se = ds[f"optimum_limit_{axis}"].values, ds[f"optimum_limit_{axis}_se"].values
    style.band(ax, x, limit, se, color="black", label=style.INFINITE)
    if f"order_scatter_{axis}" in ds:
        spread = limit * ds[f"order_scatter_{axis}"].values
        ax.errorbar(x, limit, spread, color="0.6", linestyle="none", linewidth=0.8, label="one sequence of batches")
    of_width: Mapping[str, dict[str, Any]] = {
        "optimum_predicted": style.SERIES[0] | {"label": f"predicted, $N={ds.attrs['width']}$"},
        "optimum": style.SERIES[1] | {"label": f"networks, $N={ds.attrs['width']}$"},
    }
    for (name, look), off in zip(of_width.items(), (-0.06, 0.06), strict=True):
        points = ds[f"{name}_{axis}"].values, ds[f"{name}_{axis}_se"].values
        ax.errorbar(x + off, *points, linestyle="none", **look)
    ax.set_xticks(x, names)
    ax.set(xlabel=LABELS[axis], ylabel=r"best $\eta$")
    style.legend(ax)
