"""Grokking: test losses fall long after training losses where networks are lazy, and end higher.

(a) Quadratic perceptrons of three richnesses on 450 samples in 50 dimensions: training (dashed) and test loss (solid)
of infinitely many neurons, and of networks of width 100 (points).  (b) The parts of the test loss where the initial
kernel hardly suits the task (100 dimensions, 550 samples, curvature .02): linear power comes and goes.  (c) Relative
change of the NTK in (a).  (d) The test loss after training against the laziness 1 / gamma0, for two numbers of samples.
(e) The limit of ReLU networks with one hidden layer on the second Hermite polynomial of one of 30 inputs, and (f) on
even against odd digits of MNIST: theory (lines) beside four networks of width 512, eight of 1,024 in the gallery
(points, means with standard errors).
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
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 4.9)
DIMENSION, SAMPLES, CURVATURE = 50, (250, 450), 0.25
RATE, STEPS, WIDTH = 10.0, 6000, 100
SHOWN = (4.0, 1.0, 0.25)  # gamma0 of (a, c)
LAZINESS = (0.125, 0.5, 2.0, 8.0, 32.0)
PARTS = ("test_loss", "offset_error", "misalignment", "linear_power")
RICHNESS = {"teacher": (0.1, 0.5, 2.0), "digits": (0.1, 1.0, 3.0)}  # of (e, f)
TITLES = {"teacher": "(e) student and teacher", "digits": "(f) MNIST, even and odd"}
NET_WIDTH, SEEDS = 512, 4
NUMERICS: dict[str, Any] = {"particles": 1024, "scrambles": 4}
LOSSES = ("loss", "test_loss")
NEEDS = Needs(
    "grokking",
    "grokking",
    "figures.grokking.data(None)",
    ("quadratic_loss", "early_misalignment", "last_test_loss", *(f"{name}_test_loss" for name in RICHNESS)),
)


def saved(last: int, count: int = 60) -> list[int]:
    """Steps 0 to `last`, evenly in their logarithm."""
    found: list[int] = np.unique(np.concatenate([[0], np.geomspace(1, last, count).astype(int)])).tolist()
    return found


def quadratic(gamma0: float, samples: int) -> dmft.Problem:
    """That of (a), (c) and (d)."""
    task: Any = dmft.QuadraticTeacher(DIMENSION, samples)
    return dmft.Problem(dmft.QuadraticPerceptron(gamma0, CURVATURE), task, dmft.GradientDescent(RATE, STEPS))


def early() -> dmft.Problem:
    """That of (b), at 20 times the rate of the paper."""
    task: Any = dmft.QuadraticTeacher(100, 550)
    return dmft.Problem(dmft.QuadraticPerceptron(1.0, 0.02), task, dmft.GradientDescent(40.0, 5000))


def teacher(gamma0: float, dimension: int = 30, samples: int = 300, tests: int = 300, steps: int = 800) -> dmft.Problem:
    """That of (e): y = He_2(x_1) / sqrt 2."""
    x = np.random.default_rng(0).standard_normal((samples + tests, dimension))
    y = (x[:, 0] ** 2 - 1) / 2**0.5
    task = dmft.Task(x[:samples], y[:samples], x[samples:], y[samples:])
    return dmft.Problem(dmft.MLP(1, dmft.relu(), gamma0=gamma0), task, dmft.GradientDescent(1.5, steps))


def digits(gamma0: float, samples: int = 100, tests: int = 300, steps: int = 400) -> dmft.Problem:
    """That of (f)."""
    parity = ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))
    task = dmft.load_task("mnist5k", classes=parity, n_train=samples, n_test=tests)
    return dmft.Problem(dmft.MLP(1, dmft.relu(), gamma0=gamma0), task, dmft.GradientDescent(1.0, steps))


def data(store: Path | None) -> xr.Dataset:
    """All curves, of a folder of results (`figures.needs`), or made in some five minutes on two cores."""
    return make() if store is None else NEEDS.stored(store)


def make(*, width: int = NET_WIDTH, seeds: int = SEEDS, **numerics: Any) -> xr.Dataset:
    """All of it; numerics are arguments of `dmft.solve`."""
    found: dict[str, Any] = {}
    steps = saved(STEPS)
    rows = [(dmft.solve(one, save_steps=steps), one) for one in (quadratic(g, SAMPLES[-1]) for g in SHOWN)]
    points = saved(STEPS, 14)
    nets = [
        finite_nets.train_ensemble(one, widths=[WIDTH], seeds=1, save_steps=points, dtype="float64", progress=False)
        for _, one in rows
    ]
    for name in (*LOSSES, "ntk_change"):
        found[f"quadratic_{name}"] = (("shown", "quadratic_step"), [row[name].values for row, _ in rows])
        found[f"network_{name}"] = (("shown", "network_step"), [net[name].values[0, 0] for net in nets])
    first = dmft.solve(early(), save_steps=steps[: np.searchsorted(steps, 5000, side="right")])
    found |= {f"early_{name}": ("early_step", first[name].values) for name in ("loss", *PARTS)}
    last = [[_last(quadratic(1 / alpha, P)) for alpha in LAZINESS] for P in SAMPLES]
    found["last_test_loss"] = (("samples", "laziness"), last)
    coords: dict[str, Any] = {
        "shown": list(SHOWN),
        "quadratic_step": steps,
        "network_step": points,
        "early_step": first["step"].values,
        "samples": list(SAMPLES),
        "laziness": list(LAZINESS),
    }
    for name, problem in (("teacher", teacher), ("digits", digits)):
        swept, labels = _swept(name, [problem(g) for g in RICHNESS[name]], width, seeds, numerics)
        found |= swept
        coords |= labels
    rates = {"quadratic_rate": RATE, "early_rate": 40.0, "teacher_rate": 1.5, "digits_rate": 1.0}
    return xr.Dataset(
        found, coords, {"analysis": "grokking", "width": width, "seeds": seeds, "network_width": WIDTH, **rates}
    )


def _last(problem: dmft.Problem) -> float:
    return float(dmft.solve(problem, save_steps=[STEPS])["test_loss"].item())


def _swept(
    name: str, problems: Sequence[dmft.Problem], width: int, seeds: int, numerics: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Theory and networks of problems that differ in gamma0: variables, and coordinates."""
    last = problems[0].training.steps
    steps, points = saved(last, 30), saved(last, 9)
    wanted: dict[str, Any] = {"observables": ["loss"], "progress": False}
    theories = [dmft.solve(one, save_steps=steps, **wanted, **{**NUMERICS, **numerics}) for one in problems]
    nets = [
        finite_nets.train_ensemble(one, widths=[width], seeds=seeds, save_steps=points, **wanted) for one in problems
    ]
    found: dict[str, Any] = {}
    for loss in LOSSES:
        each = [net[loss].values[0] for net in nets]
        dims, at = (f"{name}_gamma0", f"{name}_step"), (f"{name}_gamma0", f"{name}_point")
        found[f"{name}_{loss}"] = (dims, [theory[loss].values for theory in theories])
        found[f"{name}_{loss}_se"] = (dims, [theory[f"{loss}_se"].values for theory in theories])
        found[f"{name}_network_{loss}"] = (at, [x.mean(0) for x in each])
        found[f"{name}_network_{loss}_se"] = (at, [x.std(0, ddof=1) / len(x) ** 0.5 for x in each])
    gammas = [one.network.gamma0 for one in problems]
    return found, {f"{name}_gamma0": gammas, f"{name}_step": steps, f"{name}_point": points}


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `data` returns."""
    return style.panels(draw, drawn(*results), (2, 3), SIZE)


def draw(ds: xr.Dataset, axes: Any) -> None:
    """Six panels."""
    panels = axes.ravel()
    time, at = (ds[f"{name}_step"].values * ds.attrs["quadratic_rate"] for name in ("quadratic", "network"))
    for gamma0, look in zip(ds["shown"].values.tolist(), style.SERIES, strict=False):
        row, color = ds.sel(shown=gamma0), look["color"]
        for loss, line in zip(LOSSES, ("--", "-"), strict=True):
            label = rf"$\gamma_0={gamma0:g}$" if line == "-" else None
            panels[0].plot(time[1:], row[f"quadratic_{loss}"].values[1:], line, color=color, label=label)
            panels[0].plot(at[1:], row[f"network_{loss}"].values[1:], linestyle="none", markersize=3, **look)
        panels[2].plot(time[1:], row["quadratic_ntk_change"].values[1:], color=color, label=rf"$\gamma_0={gamma0:g}$")
        panels[2].plot(at[1:], row["network_ntk_change"].values[1:], linestyle="none", markersize=3, **look)
    panels[0].set(yscale="log", ylim=(1e-5, 1), ylabel="loss", title="(a) laziness")
    panels[2].set(yscale="log", ylim=(1e-3, 5), ylabel=r"$|K-K_0|/|K_0|$", title="(c) change of the NTK")
    time = ds["early_step"].values * ds.attrs["early_rate"]
    panels[1].plot(time[1:], ds["early_loss"].values[1:], "--", color="black", label="training loss")
    for name, look in zip(PARTS, ({"color": "black"}, *style.SERIES), strict=False):
        panels[1].plot(time[1:], ds[f"early_{name}"].values[1:], color=look["color"], label=name.replace("_", " "))
    panels[1].set(ylabel="loss", title="(b) parts of the test loss", ylim=(0, None))
    for ax in panels[:3]:
        ax.set(xscale="log", xlabel=r"time $\eta t$")
    for samples, look in zip(ds["samples"].values.tolist(), style.SERIES, strict=False):
        last = ds["last_test_loss"].sel(samples=samples).values
        panels[3].plot(ds["laziness"].values, last, markersize=3, label=f"$P={samples}$", **look)
    panels[3].set(xscale="log", yscale="log", xlabel=r"laziness $1/\gamma_0$", ylabel="test loss after training")
    panels[3].set_title("(d) lazy networks end higher")
    for ax, name in zip(panels[4:], RICHNESS, strict=True):
        _draw_swept(ds, ax, name)
    for ax in panels:
        style.legend(ax, fontsize=6)


def _draw_swept(ds: xr.Dataset, ax: Axes, name: str) -> None:
    """(e) or (f): theory, and networks with their errors."""
    time, at = (ds[f"{name}_{dim}"].values[1:] * ds.attrs[f"{name}_rate"] for dim in ("step", "point"))
    for gamma0, look in zip(ds[f"{name}_gamma0"].values.tolist(), style.SERIES, strict=False):
        row = ds.sel({f"{name}_gamma0": gamma0})
        for loss, line in zip(LOSSES, ("--", "-"), strict=True):
            label = rf"$\gamma_0={gamma0:g}$" if line == "-" else None
            value, se = row[f"{name}_{loss}"].values[1:], row[f"{name}_{loss}_se"].values[1:]
            style.band(ax, time, value, se, color=look["color"], linestyle=line, label=label)
            points = row[f"{name}_network_{loss}"].values[1:], row[f"{name}_network_{loss}_se"].values[1:]
            ax.errorbar(at, *points, linestyle="none", markersize=2.5, elinewidth=0.8, **look)
    ax.set(xscale="log", yscale="log", ylim=(1e-4, 1), xlabel=r"time $\eta t$", ylabel="loss", title=TITLES[name])
