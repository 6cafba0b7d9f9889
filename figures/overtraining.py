"""Overtraining: what goes on in representations after training errors have vanished.

One target mixture of odorants among nontargets, one hidden layer of ReLU neurons: rich and lazy networks with logistic
loss, and rich ones with hinge loss.  Lines: the limit; points: networks of width 512 (of 1,024 in the gallery), means
of eight with standard errors.
(a) The training loss; dotted lines: the first recorded step without training errors.  (b) Largest margin of a linear
classifier of the features, over their size.  (c) Similarity of centred features of targets and nontargets.  (d) Probes
of the rich networks that are told from the target, by the number of its ten odorants that they share.  (e) Steps to
relearn flipped labels with a new readout, on features as they are at that step, and (f) with the readout kept, by
training that goes on: overtraining speeds up reversal in rich networks with a new readout alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
import finite_nets
from figures import style
from figures.grokking import saved
from figures.needs import Needs

SIZE = (style.WIDE, 4.9)
CASES = {
    "rich, logistic": (0.5, "logistic"),
    "lazy, logistic": (0.02, "logistic"),
    "rich, hinge": (0.5, "hinge"),
}
SAMPLES, TESTS, RATE, STEPS = 100, 40, 2.0, 1000
REVERSED, RELEARNED = (0, 30, 100, 300), 100  # steps after which labels are flipped, and of training on these
RELEARNING = 0.1  # learning rate of new readouts
WIDTH, SEEDS = 512, 8
SAVED = 14  # steps
NUMERICS: dict[str, Any] = {"particles": 1024, "scrambles": 2}
PANELS = {
    "feature_margin": ("(b) margin of features", "largest margin"),
    "cosine": ("(c) features of two classes", "similarity"),
}
NEEDS = Needs(
    "overtraining",
    "overtraining_figure",
    "figures.overtraining.data(None)",
    ("loss", "feature_margin", "probe_accuracy", "relearning_steps", "reversal_steps"),
)


def problem(case: str, *, samples: int = SAMPLES, tests: int = TESTS, steps: int = STEPS) -> dmft.Problem:
    """One of `CASES`."""
    gamma0, loss = CASES[case]
    task = dmft.odour_task(n_train=samples, n_test=tests, probes=(5, 6, 7, 8))
    network = dmft.MLP(1, dmft.relu(), gamma0=gamma0)
    return dmft.Problem(network, task, dmft.GradientDescent(RATE, steps), loss=loss)


def data(store: Path | None) -> xr.Dataset:
    """All curves, of a folder of results (`figures.needs`), or made in some five minutes on two cores."""
    return make() if store is None else NEEDS.stored(store)


def make(*, width: int = WIDTH, seeds: int = SEEDS, numerics: dict[str, Any] | None = None, **sizes: int) -> xr.Dataset:
    """All of it.

    Args:
        width, seeds: of networks.
        numerics: arguments of `dmft.solve`.
        sizes: of `problem`: samples, tests, steps.
    """
    numerics = {**NUMERICS, **(numerics or {}), "progress": False}
    nets: dict[str, Any] = {"widths": [width], "seeds": seeds, "progress": False}
    rows = []
    for case in CASES:
        described = problem(case, **sizes)
        wanted: dict[str, Any] = {"observables": ["prediction", "loss", "feature_kernel"]}
        wanted["save_steps"] = saved(described.training.steps, SAVED)
        row = _row(dmft.solve(described, **wanted, **numerics), "")
        row |= _row(finite_nets.train_ensemble(described, **wanted, **nets), "network_")
        if case != "rich, hinge":
            row |= _reversed(described, numerics, nets)
        rows.append(xr.Dataset(row).assign_coords(after=list(REVERSED)))
    along = xr.DataArray(list(CASES), dims="case", name="case")
    alike: dict[str, Any] = {"coords": "minimal", "compat": "override", "join": "exact", "combine_attrs": "drop"}
    ds = xr.concat(rows, along, data_vars="all", **alike)
    ds.attrs = {"analysis": "overtraining_figure", "width": width, "seeds": seeds, "rate": RELEARNING}
    return ds


def _row(result: xr.Dataset, prefix: str) -> dict[str, Any]:
    """What is shown of the limit, or means over networks with their errors."""
    found = comparisons.overtraining(result, learning_rate=RELEARNING)
    found["loss"] = result["loss"]
    names = ("loss", "train_error", *PANELS, "probe_accuracy", "relearning_steps")
    return _means({name: found[name] for name in names}, prefix)


def _reversed(described: dmft.Problem, numerics: dict[str, Any], nets: dict[str, Any]) -> dict[str, Any]:
    """Steps to relearn with the readout kept, (after,)."""
    row: dict[str, list[Any]] = {}
    for after in REVERSED:
        flipped = dmft.reversal_problem(described, after=after, steps=RELEARNED)
        wanted: dict[str, Any] = {"observables": ["prediction"], "save_steps": range(after, after + RELEARNED + 1)}
        results = {"": dmft.solve(flipped, **wanted, **numerics)}
        results["network_"] = finite_nets.train_ensemble(flipped, **wanted, **nets)
        for prefix, result in results.items():
            steps = comparisons.reversal(result)["reversal_steps"]
            for name, value in _means({"reversal_steps": steps}, prefix).items():
                row.setdefault(name, []).append(value.item())
    along = xr.DataArray(list(REVERSED), dims="after", name="after")
    return {name: xr.DataArray(values, dims="after", coords={"after": along}) for name, values in row.items()}


def _means(values: dict[str, xr.DataArray], prefix: str) -> dict[str, xr.DataArray]:
    """Values of the limit; of networks means over seeds and their standard errors."""
    found = {}
    for name, value in values.items():
        bare = value.drop_vars([c for c in value.coords if c not in value.dims or c in ("width", "seed")]).drop_attrs()
        if "seed" not in bare.dims:
            found[f"{prefix}{name}"] = bare
            continue
        one = bare.isel(width=0)
        found[f"{prefix}{name}"] = one.mean("seed")
        found[f"{prefix}{name}_se"] = one.std("seed", ddof=1) / one.sizes["seed"] ** 0.5
    return found


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `data` returns."""
    return style.panels(draw, drawn(*results), (2, 3), SIZE)


def draw(ds: xr.Dataset, axes: Any) -> None:
    """Six panels."""
    loss, margin, cosine, probes, new, kept = axes.ravel()
    for (case, row), look in zip(((c, ds.sel(case=c)) for c in ds["case"].values), style.SERIES, strict=False):
        _curve(loss, row, "loss", str(case), look)
        errors = row["train_error"].values
        if (errors == 0).any():
            loss.axvline(row["step"].values[(errors == 0).argmax()], color=look["color"], linewidth=0.8, linestyle=":")
        for name, ax in zip(PANELS, (margin, cosine), strict=True):
            _curve(ax, row, name, str(case), look)
        _curve(new, row, "relearning_steps", str(case), look)
        if not np.isnan(row["reversal_steps"]).all():
            _curve(kept, row, "reversal_steps", str(case), look, "after")
    for overlap, look in zip(ds["overlap"].values.tolist(), style.SERIES, strict=False):
        _curve(probes, ds.sel(case="rich, logistic", overlap=overlap), "probe_accuracy", f"{overlap:g} in common", look)
    loss.set(yscale="log", ylabel="training loss", title="(a) training")
    loss.set_ylim(1e-4, 1)
    for (title, label), ax in zip(PANELS.values(), (margin, cosine), strict=True):
        ax.set(title=title, ylabel=label)
    probes.set(ylabel="share told from the target", title="(d) probes, rich, logistic", ylim=(-0.05, 1.05))
    new.set(ylabel="steps to relearn", title="(e) reversal, new readout", ylim=(0, None))
    kept.set(ylabel="steps to relearn", title="(f) reversal, readout kept", ylim=(0, None))
    for ax in (loss, margin, cosine, probes, new, kept):
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(left=-0.3)
        ax.set_xlabel("step" if ax is not kept else "steps before the reversal")
        style.legend(ax, fontsize=6)


def _curve(ax: Axes, row: xr.Dataset, name: str, label: str, look: dict[str, Any], along: str = "step") -> None:
    x = row[along].values
    ax.plot(x, row[name].values, color=look["color"], label=label)
    points = row[f"network_{name}"].values, row[f"network_{name}_se"].values
    ax.errorbar(x, *points, linestyle="none", markersize=2.5, elinewidth=0.8, **look)
