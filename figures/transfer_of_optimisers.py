"""Learning-rate transfer of three optimisers: best rates of wide networks, predicted, and measured.

A column each for gradient descent, Adam and Muon.  Above: mean loss after training against the rate, of the limit and
of each width (lines), and of networks (points); below: the best rate against width, predicted (line, with its standard
error), of the mean over networks (points), and the standard deviation of one network's (thin bars).  Predictions are
of other networks, by the engine of the limit, for all orders of 1/N: derivatives of the limit say little of Muon, and
of Adam at these widths.
Threes against eights of MNIST, fifty images, two hidden layers, tanh, four steps; betas and momentum are 1/2 (with .9
losses go up and down with the rate, in so few steps), eps is .05.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

import comparisons
import dmft
import finite_nets
from figures import learning_rate_transfer, style
from figures.needs import Needs

SIZE = (style.WIDE, 4.6)
WIDTHS, SEEDS, STEPS = (32, 64, 128, 256), 4000, 4
NUMERICS: dict[str, Any] = {"by": "samples", "members": 2048, "particles": 8192, "scrambles": 8, "tolerance": 3e-3}
ADAM: dict[str, Any] = {"beta1": 0.5, "beta2": 0.99, "eps": 0.05}
OPTIMISERS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "gradient descent": (dmft.GradientDescent(1.0, STEPS), (3.9, 4.05, 4.2, 4.3, 4.4, 4.5, 4.65)),
    "Adam": (dmft.Adam(1.0, STEPS, **ADAM), (1.6, 1.7, 1.8, 1.9, 2.0, 2.1)),
    "Muon": (dmft.Muon(1.0, STEPS, momentum=0.5, **ADAM), (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
}
SHOWN = ("loss_mean", "loss_mean_predicted", "loss_limit", "optimum", "optimum_predicted", "optimum_limit", "scatter")
NEEDS = Needs(
    "transfer_of_optimisers",
    "transfer_of_optimisers",
    "figures.transfer_of_optimisers.make({name: comparisons.transfer(nets, theory)})",
    (*SHOWN, "rate"),
)


def problem(optimiser: str) -> dmft.Problem:
    """The problem of one of `OPTIMISERS`."""
    task = dmft.load_task("mnist5k", classes=(3, 8), n_train=50, n_test=0)
    return dmft.Problem(dmft.MLP(2, dmft.tanh()), task, OPTIMISERS[optimiser][0])


def data(store: Path | None) -> xr.Dataset:
    """The numbers, of a folder of results (`figures.needs`); without one, networks are trained."""
    if store is not None:
        return NEEDS.stored(store)
    found = {}
    for name, (_, rates) in OPTIMISERS.items():
        found[name] = compared(name, rates)
    return make(found)


def compared(name: str, rates: Sequence[float]) -> xr.Dataset:
    """Predicted and measured, of one optimiser."""
    theory = dmft.transfer(problem(name), "learning_rate", rates, widths=WIDTHS, **NUMERICS)
    recorded: dict[str, Any] = {"observables": ["loss"], "save_steps": [STEPS]}
    nets = [
        finite_nets.train_ensemble(one, widths=WIDTHS, seeds=SEEDS, **recorded)
        for one in dmft.vary(problem(name), learning_rate=rates)
    ]
    return comparisons.transfer(nets, theory)


def make(found: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """What is drawn of comparisons over rates, by name of the optimiser; each has rates of its own."""
    parts = []
    for one in found.values():
        part = one[[name for each in SHOWN for name in (each, f"{each}_se")]].drop_attrs(deep=False)
        part = part.assign(rate=("value", one["value"].values)).rename(value="point")
        parts.append(part.assign_coords(point=range(part.sizes["point"])))
    ds = xr.concat(parts, "optimiser", join="outer").assign_coords(optimiser=list(found))
    first = next(iter(found.values()))
    ds.attrs = {"analysis": "transfer_of_optimisers", "scale": first.attrs["scale"], "step": first.attrs["step"]}
    return ds


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `make` returns."""
    ds = drawn(*results)
    return style.panels(draw, ds, (2, ds.sizes["optimiser"]), SIZE)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """A row of losses, and one of best rates."""
    letters = iter("abcdefghijkl")
    for ax, name in zip(axes[0], ds["optimiser"].values.tolist(), strict=True):
        learning_rate_transfer.draw_losses(_one(ds, name), ax)
        ax.set_title(f"({next(letters)}) {name}")
    for ax, name in zip(axes[1], ds["optimiser"].values.tolist(), strict=True):
        learning_rate_transfer.draw_optima(_one(ds, name), ax)
        ax.set_title(f"({next(letters)}) best rate")
    style.room(axes[1, 0], bottom=0.6)
    style.legend(axes[1, 0], loc="lower left", fontsize=6.5)
    for ax in [*axes[0, 1:], *axes[1, 1:]]:
        ax.get_legend().remove()
        ax.set_ylabel("")


def _one(ds: xr.Dataset, name: str) -> xr.Dataset:
    """The comparison of one optimiser."""
    part = ds.sel(optimiser=name).dropna("point", subset=["rate"])
    return part.rename(point="value").assign_coords(value=part["rate"].values)
