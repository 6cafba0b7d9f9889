"""Coordinate check of a PyTorch module of one's own: what each of its parts makes, and what it learns, against width.

A perceptron of PyTorch's layers, with `torch.optim.SGD`; left as the user wrote it, its readout learns at the rate of
the others; right as repaired.  (a, b) Root mean square of what parts make before training and (c, d) of what their own
parameters add in the first step: flat lines are right (the readout may start smaller), thick ones are faults that
`comparisons.coordinate_check` names, with what they miss.  Some seconds on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

import comparisons
import dmft
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 4.8)
WIDTHS, SEEDS, RATE = (64, 128, 256, 512, 1024), 5, 0.3
TITLES = {"wrong": "a readout at the rate of the others", "repaired": "repaired"}
ROWS = {"start": "before training", "update": "added by its own parameters"}
NEEDS = Needs(
    "own_coordinate_check",
    "own_coordinate_check",
    "figures.own_coordinate_check.make(checks)",
    ("start", "update", "fault"),
)


def network(N: int) -> Any:
    """A perceptron on images of 64 pixels, with a small readout."""
    import torch  # here: `figures` is loaded without it

    nn = torch.nn
    module = nn.Sequential()
    for name, inputs, outputs in (("read", 64, N), ("hidden", N, N), ("readout", N, 1)):
        part = nn.Linear(inputs, outputs)
        nn.init.normal_(part.weight, std=1 / N if name == "readout" else (2 / inputs) ** 0.5)
        nn.init.zeros_(part.bias)
        module.add_module(name, part)
        if name != "readout":
            module.add_module(f"relu of {name}", nn.ReLU())
    return module


def descent(readout: Callable[[int], float]) -> Callable[[Any, int], Any]:
    """SGD at mean-field rates (`finite_nets.mean_field_rates`), but for the weights of the readout."""

    def optimizer(module: Any, N: int) -> Any:
        import torch

        rates = {"read": (N / 64, N), "hidden": (1.0, N), "readout": (readout(N), 1.0)}  # of weights and of biases
        groups = [
            {"params": [p], "lr": RATE * rate}
            for name, both in rates.items()
            for p, rate in zip(module.get_submodule(name).parameters(), both, strict=True)
        ]
        return torch.optim.SGD(groups, lr=RATE)

    return optimizer


def data(store: Path | None) -> xr.Dataset:
    """Checks of the wrong and of the repaired network, of a folder of results (`figures.needs`) or made now."""
    if store is not None:
        return NEEDS.stored(store)
    task = dmft.load_task("digits", classes=(3, 8), n_train=64)
    rates: dict[str, Callable[[int], float]] = {"wrong": lambda _: 1.0, "repaired": lambda N: 1 / N}
    return make(
        {
            name: comparisons.coordinate_check(network, task, WIDTHS, SEEDS, optimizer=descent(rate), steps=2)
            for name, rate in rates.items()
        }
    )


def make(checks: dict[str, comparisons.CoordinateCheck]) -> xr.Dataset:
    """What is drawn of checks of one module, by name."""
    parts = []
    for check in checks.values():
        ds = check.dataset
        update = ds["own"].where(ds["module"] != "(output)", ds["change"]).isel(step=1)
        found = {"start": ds["size"].isel(step=0), "update": update}
        each = {name: one.mean("seed") for name, one in found.items()}
        each |= {f"{name}_se": one.std("seed", ddof=1) / np.sqrt(one.sizes["seed"]) for name, one in found.items()}
        part = xr.Dataset({name: one.drop_vars("step") for name, one in each.items()})
        judged = {name: ("module", [getattr(v, name) for v in check.verdicts]) for name in ("fault", "text")}
        parts.append(part.assign(judged))
    ds = xr.concat(parts, "check").assign_coords(check=list(checks))
    ds.attrs = {"analysis": "own_coordinate_check", "seeds": int(next(iter(checks.values())).dataset.sizes["seed"])}
    return ds


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `make` returns."""
    ds = drawn(*results)
    return style.panels(draw, ds, (len(ROWS), ds.sizes["check"]), SIZE, sharey="row", sharex=True)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """A row for starts and one for updates, a column for each check."""
    letters = iter("abcdefgh")
    for row, (name, label) in zip(axes, ROWS.items(), strict=True):
        for ax, check in zip(row, ds["check"].values.tolist(), strict=True):
            one = ds.sel(check=check)
            for module, look in zip(ds["module"].values.tolist(), style.SERIES, strict=False):
                part = one.sel(module=module)
                y, se = part[name].values, part[f"{name}_se"].values
                if np.isnan(y).all():
                    continue
                wrong = part["fault"].item() == name
                ax.errorbar(ds["width"].values, y, se, linewidth=2.2 if wrong else 0.8, label=module, **look)
            ax.set_yscale("log")
            ax.set_title(f"({next(letters)}) {TITLES.get(check, check)}")
            style.width_axis(ax, ds["width"].values)
            ax.label_outer()
        row[0].set_ylabel(label)
    axes[0, -1].legend(fontsize=6)
