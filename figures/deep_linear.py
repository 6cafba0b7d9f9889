"""Deep linear networks in the proportional limit: wider is better and rates transfer, in mean-field scaling only.

(a) Loss after four steps against the learning rate for widths N = nu D, gamma0 = 1: wide networks learn more at every
rate, and their best rate settles.  (b) The same with gamma0 = nu^(-1/2), the NTK parameterization: at small rates width
does not help, and the best rate goes on to shift.  (c) Loss against time for several depths: residual networks with
branches of scale L^(-1/2), which have a limit of infinite depth, and plain ones.  Lines are theory, points trained
networks of dimension 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dmft
import finite_nets
from dmft import random_data as rd
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 2.7)
RATIOS = (0.25, 1.0, 4.0, 16.0)
RATES = np.round(np.linspace(0.04, 0.6, 15), 3)
TRAINED = RATES[1:8:3]
SHORT, STEPS, RATE = 4, 12, 0.02
DEPTHS = (2, 4, 8)
DIMENSION, SEEDS = 100, 8
SCALINGS = ("mean field", "NTK")
NEEDS = Needs("deep_linear", "deep_linear", "figures.deep_linear.data(None)", ("by_rate", "residual", "plain"))


def _problem(network: dmft.DeepLinear, rate: float, steps: int) -> dmft.Problem:
    task: Any = dmft.RandomData(rd.isotropic(DIMENSION))
    return dmft.Problem(network, task, dmft.GradientDescent(float(rate), steps))


def _limit(described: dmft.Problem) -> np.ndarray:
    """Twice the test loss at all steps, without end where the rate is too large."""
    try:
        found: np.ndarray = 2 * dmft.solve(described)["test_loss"].values
    except dmft.errors.DivergenceError:
        found = np.full(described.training.steps + 1, np.nan)
    return found


def _networks(described: dmft.Problem) -> np.ndarray:
    """The same of trained networks: mean and standard error."""
    x = 2 * finite_nets.train_ensemble(described, scales=[1], seeds=SEEDS, progress=False)["test_loss"].values[0]
    return np.array([x.mean(axis=0), x.std(axis=0) / np.sqrt(SEEDS)])


def data(store: Path | None) -> xr.Dataset:
    """All curves, made now in a minute, or of a folder of results (`figures.needs`)."""
    if store is not None:
        return NEEDS.stored(store)
    networks = [
        [dmft.DeepLinear(1, ratio, gamma0=1.0 if scaling == "mean field" else ratio**-0.5) for ratio in RATIOS]
        for scaling in SCALINGS
    ]
    limits = [[[_limit(_problem(net, rate, SHORT))[-1] for rate in RATES] for net in row] for row in networks]
    points = [[[_networks(_problem(net, r, SHORT))[:, -1] for r in TRAINED] for net in row] for row in networks]
    mean, se = np.moveaxis(np.array(points), -1, 0)
    dims = ("scaling", "ratio", "trained_rate")
    found: dict[str, Any] = {
        "by_rate": (("scaling", "ratio", "rate"), np.array(limits)),
        "by_rate_mean": (dims, mean),
        "by_rate_mean_se": (dims, se),
    }
    for name, branch in (("residual", 1.0), ("plain", None)):
        each = [_problem(dmft.DeepLinear(L, 1.0, branch=branch), RATE, STEPS) for L in DEPTHS]
        measured = np.array([_networks(one) for one in each])
        found[name] = (("depth", "update"), np.array([_limit(one) for one in each]))
        found[f"{name}_mean"] = (("depth", "update"), measured[:, 0])
        found[f"{name}_mean_se"] = (("depth", "update"), measured[:, 1])
    coords = {
        "scaling": list(SCALINGS),
        "ratio": list(RATIOS),
        "rate": RATES,
        "trained_rate": TRAINED,
        "depth": list(DEPTHS),
        "update": np.arange(STEPS + 1),
    }
    attrs = {"analysis": "deep_linear", "steps": SHORT, "rate": RATE, "dimension": DIMENSION, "seeds": SEEDS}
    return xr.Dataset(found, coords=coords, attrs=attrs)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `data` makes."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Three panels."""
    for letter, ax, scaling in zip("ab", axes, ds["scaling"].values, strict=False):
        for ratio, look in zip(ds["ratio"].values, style.SERIES, strict=False):
            row = ds.sel(scaling=scaling, ratio=ratio)
            ax.plot(ds["rate"].values, row["by_rate"].values, color=look["color"], label=rf"$\nu={ratio:g}$")
            _points(ax, ds["trained_rate"].values, row, "by_rate", look)
        ax.set(title=f"({letter}) {scaling}", xlabel=r"learning rate $\eta$", yscale="log", ylim=(1e-5, 10))
    axes[0].set_ylabel(f"test loss after {ds.attrs['steps']} steps")
    for name, line in (("residual", "-"), ("plain", "--")):
        for depth, look in zip(ds["depth"].values, style.SERIES, strict=False):
            row = ds.sel(depth=depth)
            label = f"{name}, $L={depth}$"
            axes[2].plot(ds["update"].values, row[name].values, line, color=look["color"], label=label)
            _points(axes[2], ds["update"].values[::4], row.isel(update=slice(None, None, 4)), name, look)
    axes[2].set(title="(c) depth", xlabel="step", yscale="log")
    for ax in axes:
        ax.legend(fontsize=6, handlelength=1.6)


def _points(ax: Axes, x: np.ndarray, row: xr.Dataset, name: str, look: dict[str, Any]) -> None:
    mean, se = row[f"{name}_mean"].values, row[f"{name}_mean_se"].values
    ax.errorbar(x, mean, se, color=look["color"], marker=look["marker"], markersize=3, linestyle="none")
