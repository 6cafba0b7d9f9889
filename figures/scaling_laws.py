"""Scaling laws: linear models of random data, exact curves beside trained models and predicted exponents.

(a) Loss against time for several numbers of features N and (b) of samples P: lines are theory, points trained models.
(c) What finite N adds to the loss: early like 1/N, late like N^-(capacity min(1, beta)).  (d) Loss against compute
C = N t, whose lower envelope is the compute-optimal frontier.  (e) Feature learning improves the exponent in time from
beta to 2 beta/(1 + beta).  (f) Stochastic gradients: one pass, and batches drawn again from fixed samples.  (g) Bias,
variances over features and data, and the loss of averaged models.  (h) Kernel regression on images of digits, with the
NTK of a ReLU network, and the theory of its spectrum.  (i) Compute frontiers of exact curves: lazy and rich features on
a hard task, and on a super-easy one the exact gradient and one pass of SGD, whose noise sets another law.  (j) Their
local slopes, beside the exponents of the laws.
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

SIZE = (style.WIDE, 12.2)
CAPACITY, SOURCE = 1.5, 1.75  # beta = 1/2
MODES, SEEDS = 300, 48
SIZES = (10, 30, 100)
MODELS = (10, 100, 1000)
TIMES = np.geomspace(1, 1e5, 11)
EARLY, LATE = 10.0, 1e8
COUNTS = np.geomspace(10, 3e3, 9)
COMPUTE = np.geomspace(1e3, 1e7, 5)
SUPER_EASY, ONE_PASS = 4.0, {"batch": 2, "learning_rate": 0.3}  # source of another task, beta = 2, and its SGD
FRONTIERS = ("lazy", "rich", "super-easy", "super-easy, one pass")
RICHNESS = (0.0, 1.0, 100.0)
LONG = np.geomspace(1, 1e7, 29)
STEPS, BATCHES = 60, (8, 32)
IMAGES, DIGITS = (10, 30, 100), np.array([1.0, 10.0, 100.0, 1e3])
KINDS = {"frontier": "loss", "frontier_features": "features"}
NEEDS = Needs(
    "scaling_laws", "scaling_laws", "figures.scaling_laws.data(None)", ("features", "samples", "correction", "frontier")
)


def data(store: Path | None) -> xr.Dataset:
    """All curves, made now in some minutes, or of a folder of results (`figures.needs`)."""
    if store is not None:
        return NEEDS.stored(store)
    spectrum, wide = rd.power_law(MODES, CAPACITY, SOURCE), rd.power_law(1e8, CAPACITY, SOURCE)
    found: dict[str, Any] = {}
    for name in ("features", "samples"):
        found |= _flows(spectrum, name)
    infinite = rd.gradient_flow(wide, [EARLY]).test[0]
    early = [rd.gradient_flow(wide, [EARLY], features=n).test[0] - infinite for n in COUNTS]
    late = [rd.residual_of_features(wide, n) for n in COUNTS]
    found["correction"] = (("when", "count"), np.array([early, late]))
    by_model = [rd.gradient_flow(wide, COMPUTE / n, features=n).test for n in MODELS]
    found["by_compute"] = (("model", "compute"), np.array(by_model))
    frontiers = _frontiers()
    found |= {
        name: (("course", "compute"), np.array([getattr(f, of) for f in frontiers])) for name, of in KINDS.items()
    }
    whole = rd.power_law(1e11, CAPACITY, SOURCE)
    found["rich"] = (("richness", "long"), np.array([rd.rich_flow(whole, LONG, richness=g).test for g in RICHNESS]))
    found |= _stochastic(spectrum) | _ensembles(spectrum) | _images()
    coords = {
        "course": list(FRONTIERS),
        "size": list(SIZES),
        "model": list(MODELS),
        "time": TIMES,
        "when": [EARLY, np.inf],
        "count": COUNTS,
        "compute": COMPUTE,
        "richness": list(RICHNESS),
        "long": LONG,
        "update": np.arange(STEPS + 1),
        "batch": list(BATCHES),
        "images": list(IMAGES),
        "image_time": DIGITS,
    }
    law = rd.exponents(CAPACITY, SOURCE), rd.exponents(CAPACITY, SOURCE, rich=True)
    attrs = {
        "analysis": "scaling_laws",
        "capacity": CAPACITY,
        "source": SOURCE,
        "seeds": SEEDS,
        "time_exponents": [each.time for each in law],
        "features_exponent": law[0].features,
        "compute_exponents": [
            *(each.compute for each in law),
            *(rd.exponents(CAPACITY, SUPER_EASY, one_pass=noisy).compute for noisy in (False, True)),
        ],
    }
    return xr.Dataset(found, coords=coords, attrs=attrs)


def _frontiers() -> list[rd.Frontier]:
    """In the order of `FRONTIERS`."""
    hard, easy = (rd.power_law(1e7, CAPACITY, source).coarse(40) for source in (SOURCE, SUPER_EASY))
    return [
        rd.compute_frontier(hard, COMPUTE),
        rd.compute_frontier(hard, COMPUTE, richness=1.0),
        rd.compute_frontier(easy, COMPUTE),
        rd.compute_frontier(easy, COMPUTE, **ONE_PASS),
    ]


def _trained(described: Any, name: str, dims: tuple[str, ...], steps: slice = slice(None)) -> dict[str, Any]:
    """The excess test loss of trained models, mean and standard error."""
    nets = finite_nets.train_ensemble(described, scales=[1], seeds=SEEDS, progress=False)
    x = 2 * nets["test_loss"].values[0, :, steps] - described.task.noise
    return {f"{name}_mean": (dims, x.mean(axis=0)), f"{name}_mean_se": (dims, x.std(axis=0) / np.sqrt(SEEDS))}


def _together(rows: Sequence[dict[str, Any]], dim: str) -> dict[str, Any]:
    """Variables of several rows along a new dimension."""
    return {name: ((dim, *rows[0][name][0]), np.array([row[name][1] for row in rows])) for name in rows[0]}


def _flows(spectrum: rd.Spectrum, name: str) -> dict[str, Any]:
    rows = []
    grid = tuple(np.diff(TIMES, prepend=0.0).tolist())
    for size in SIZES:
        model = dmft.RandomFeatures(size if name == "features" else None)
        task = dmft.RandomData(spectrum, samples=size if name == "samples" else None)
        described = dmft.Problem(model, task, dmft.GradientFlow(1.0, grid))  # type: ignore[arg-type]
        flow = rd.gradient_flow(spectrum, TIMES, **{name: size})
        rows.append({name: (("time",), flow.test), **_trained(described, name, ("time",), slice(1, None))})
    return _together(rows, "size")


def _stochastic(spectrum: rd.Spectrum) -> dict[str, Any]:
    """Test losses of one pass and of batches drawn again."""
    found: dict[str, Any] = {}
    for name, samples in (("one_pass", None), ("drawn", 64)):
        rows = []
        for batch in BATCHES:
            task = dmft.RandomData(spectrum, samples=samples, batch=batch, noise=0.1)
            training = dmft.GradientDescent(0.25, STEPS)
            described = dmft.Problem(dmft.RandomFeatures(40), task, training)  # type: ignore[arg-type]
            theory = np.diagonal(dmft.solve(described)["error_correlation"].values)
            rows.append({name: (("update",), theory), **_trained(described, name, ("update",))})
        found |= _together(rows, "batch")
    return found


def _ensembles(spectrum: rd.Spectrum) -> dict[str, Any]:
    split = rd.bias_variance(spectrum, times=TIMES, features=30, samples=60, noise=0.1)
    names = ("loss", "bias", "of_features", "of_data", "of_both")
    return {f"part_{name}": ("time", getattr(split, name)) for name in names} | {
        "part_averaged": ("time", split.ensemble(8, 8))
    }


def _images() -> dict[str, Any]:
    """Learning curves of digits, odd against even."""
    task = dmft.load_task("digits", classes=(3, 8), n_train=340, n_test=0)
    problem = dmft.Problem(dmft.MLP(1, dmft.relu()), task, dmft.GradientDescent(0.1, 1))
    kernel = dmft.lazy_limit(problem, save_steps=[0])["ntk"].values[0]
    curves = rd.learning_curves(kernel, task.y, samples=IMAGES, times=DIGITS, draws=SEEDS)
    names = {"test_loss": "image", "measured_test_loss": "image_mean", "measured_test_loss_se": "image_mean_se"}
    return {to: (("images", "image_time"), curves[of].values) for of, to in names.items()}


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `data` makes."""
    return style.panels(draw, drawn(*results), (5, 2), SIZE)


def draw(ds: xr.Dataset, axes: Any) -> None:
    """Ten panels."""
    each = np.ravel(axes)
    for ax, name, symbol in zip(each, ("features", "samples"), "NP", strict=False):
        _rows(ds, ax, name, "size", "time", lambda size, s=symbol: f"${s}={size:g}$")
    lazy, rich = ds.attrs["time_exponents"]
    style.guide(each[0], TIMES[:5], (1.0, 0.8), -lazy, rf"$t^{{-{lazy:.2g}}}$")
    _corrections(ds, each[2])
    _frontier(ds, each[3])
    for g, look in zip(ds["richness"].values, style.SERIES, strict=False):
        each[4].plot(ds["long"].values, ds["rich"].sel(richness=g).values, color=look["color"], label=f"$G={g:g}$")
    for exponent in (lazy, rich):
        through = (1e2, 0.6 * ds["rich"].sel(richness=0.0).interp(long=1e2).item())
        style.guide(each[4], np.array([1e2, 1e7]), through, -exponent, rf"$t^{{-{exponent:.2g}}}$")
    for name, label, line in (("one_pass", "one pass", "o"), ("drawn", "drawn again", "s")):
        _rows(ds, each[5], name, "batch", "update", lambda b, what=label: f"{what}, $B={b:g}$", marker=line, every=6)
    _parts(ds, each[6])
    _rows(ds, each[7], "image", "images", "image_time", lambda p: f"$P={p:g}$")
    titles = (
        "features",
        "samples",
        "finite-size corrections",
        "compute",
        "feature learning",
        "SGD",
        "ensembles",
        "digits",
        "frontiers",
        "slopes of frontiers",
    )
    time, compute = "time $t$", "compute $C=Nt$"
    labels = (time, time, "features $N$", compute, time, "step", time, time, compute, compute)
    _frontiers_of_tasks(ds, each[8], each[9])
    for letter, ax, title, label in zip("abcdefghij", each, titles, labels, strict=True):
        ax.set(title=f"({letter}) {title}", xlabel=label)
        if label != "step":
            ax.set_xscale("log")
        if ax is not each[9]:
            ax.set_yscale("log")
        ax.legend(fontsize=6, handlelength=1.4)
    for ax in each[::2]:
        ax.set_ylabel("excess test loss")
    each[9].set_ylabel("minus the local slope")


def _rows(
    ds: xr.Dataset, ax: Axes, name: str, dim: str, along: str, label: Any, *, marker: str = "o", every: int = 1
) -> None:
    """A line of theory and points of trained models for each entry of `dim`."""
    x = ds[along].values
    shift = 0 if marker == "o" else len(ds[dim])
    for value, look in zip(ds[dim].values, style.SERIES[shift:], strict=False):
        row = ds.sel({dim: value})
        ax.plot(x, row[name].values, color=look["color"], label=label(value))
        points = row[f"{name}_mean"].values[::every], row[f"{name}_mean_se"].values[::every]
        ax.errorbar(x[::every], *points, color=look["color"], marker=marker, markersize=3, linestyle="none")


def _corrections(ds: xr.Dataset, ax: Axes) -> None:
    n = ds["count"].values
    early, late = ds["correction"].values
    for y, look, label in zip(
        (early, late), style.SERIES, (f"$t={ds['when'].values[0]:g}$", r"$t=\infty$"), strict=False
    ):
        ax.plot(n, y, label=label, **look)
    style.guide(ax, n, (n[-1], 0.7 * early[-1]), -1.0, "$N^{-1}$")
    slope = ds.attrs["features_exponent"]
    style.guide(ax, n, (n[-1], 0.7 * late[-1]), -slope, rf"$N^{{-{slope:.3g}}}$")


def _frontier(ds: xr.Dataset, ax: Axes) -> None:
    compute = ds["compute"].values
    for model, look in zip(ds["model"].values, style.SERIES, strict=False):
        ax.plot(compute, ds["by_compute"].sel(model=model).values, label=f"$N={model:g}$", **look)
    best, slope = ds["frontier"].sel(course="lazy").values, ds.attrs["compute_exponents"][0]
    ax.plot(compute, best, label="frontier", **style.LIMIT)
    style.guide(ax, compute, (compute[-1], 0.7 * best[-1]), -slope, rf"$C^{{-{slope:.2g}}}$")


def _frontiers_of_tasks(ds: xr.Dataset, losses: Axes, slopes: Axes) -> None:
    compute = ds["compute"].values
    between = np.sqrt(compute[1:] * compute[:-1])
    for course, exponent, look in zip(ds["course"].values, ds.attrs["compute_exponents"], style.SERIES, strict=False):
        y = ds["frontier"].sel(course=course).values
        losses.plot(compute, y, label=course, **look)
        slopes.plot(between, -rd.local_slopes(compute, y), label=course, **look)
        slopes.axhline(exponent, color=look["color"], linestyle=":", linewidth=1.0)


def _parts(ds: xr.Dataset, ax: Axes) -> None:
    names = {
        "loss": "one model",
        "averaged": r"$8\times8$ averaged",
        "bias": "bias",
        "of_features": "variance of features",
        "of_data": "variance of data",
        "of_both": "of both",
    }
    for (name, label), look in zip(names.items(), style.SERIES, strict=False):
        ax.plot(ds["time"].values, ds[f"part_{name}"].values, color=look["color"], label=label)
