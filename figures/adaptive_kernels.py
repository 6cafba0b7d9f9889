"""Kernels that have adapted beside lazy ones, and networks: even against odd digits of MNIST, two layers of ReLU.

(a) share of test images on the wrong side and (b) test loss against richness, (c) the first against training samples,
(d) test loss against the temperature: what the posterior has learned, and lazy kernels of the same ridge.
Lines: kernel predictors; points: networks trained with weight decay to rest.  Bars: standard errors over draws of the
training set, which all predictors share: differences have smaller ones.  In (a) to (c) all have one weight decay, or
temperature: lazy kernels and the posterior a ridge of P times that, the adaptive NTK of (L+1) P times; dotted: the lazy
NTK whose ridge is the best for training samples that are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

SIZE, TALL = (style.WIDE, 2.7), (style.WIDE, 4.9)
EVEN, ODD = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)
SAMPLES, SHOWN = (10, 20, 40), 20
GAMMAS, GAMMA0 = (0.25, 0.5, 1.0, 2.0, 4.0), 1.0
DRAWS, TEST, WIDTH = 8, 500, 300
DECAY = 0.03  # of weights, and the temperature of the posterior
TEMPERATURES = (0.001, 0.003, 0.01, DECAY, 0.1)  # of (d)
UNTIL = 40.0  # inverse decays; what is left of the way to rest falls like 1 / time
STABLE = 0.3  # of the largest eigenvalue of the initial NTK, the step
LAZY_NNGP, LAZY_NTK, TUNED, BAYES, FLOW, NETWORKS = PREDICTORS = (
    "lazy NNGP",
    "lazy NTK",
    "lazy NTK, tuned",
    "adaptive Bayes",
    "adaptive NTK",
    "networks",
)
LOOKS: dict[str, dict[str, Any]] = {
    LAZY_NNGP: {"color": "#56B4E9", "linestyle": "--"},
    LAZY_NTK: {"color": "#0072B2", "linestyle": "--"},
    TUNED: {"color": "#0072B2", "linestyle": ":"},
    BAYES: {"color": "#D55E00", "linestyle": "-"},
    FLOW: {"color": "#009E73", "linestyle": "-"},
    NETWORKS: {"color": "black", "linestyle": "none", "marker": "o"},
}
NEEDS = Needs(
    "adaptive_kernels", "predictors", "comparisons.predictors({...})", ("test_error", "test_error_se", "test_loss")
)


def problem(draw: int, *, gamma0: float, samples: int, source: str = "mnist5k") -> dmft.Problem:
    """Of one draw of the training set; steps of its flow are those that its initial kernel allows."""
    task = dmft.load_task(source, classes=(EVEN, ODD), n_train=samples, n_test=TEST, seed=draw)
    network = dmft.MLP(1, dmft.Activation("relu", scale=2**-0.5), gamma0=gamma0, centered=False)
    first = dmft.Problem(network, task, dmft.GradientDescent(1.0, 1, weight_decay=DECAY))
    kernel = dmft.lazy_kernel(first, kind="flow", ridge=1.0)["ntk"].values[:samples, :samples]
    rate = STABLE * samples / (np.linalg.eigvalsh(kernel)[-1] * max(1.0, gamma0))
    steps = int(np.ceil(UNTIL / (DECAY * rate)))
    return dmft.Problem(network, task, dmft.GradientDescent(rate, steps, weight_decay=DECAY))


def settings(gammas: Iterable[float] = GAMMAS, samples: Iterable[int] = SAMPLES) -> list[tuple[float, int]]:
    """gamma0 and samples of the panels: a row and a column."""
    return list(dict.fromkeys([*((gamma0, SHOWN) for gamma0 in gammas), *((GAMMA0, count) for count in samples)]))


def lazy(described: dmft.Problem, *, temperature: float = DECAY) -> dict[str, xr.Dataset]:
    """The lazy predictors of this ridge over P, by name."""
    ridge = temperature * described.task.n_train
    return {
        LAZY_NNGP: dmft.lazy_kernel(described, kind="bayes", ridge=ridge),
        LAZY_NTK: dmft.lazy_kernel(described, kind="flow", ridge=ridge),
    }


def posterior(described: dmft.Problem, *, temperature: float = DECAY) -> dict[str, xr.Dataset]:
    """The adaptive posterior, by name."""
    return {BAYES: dmft.adaptive_kernel(described, kind="bayes", temperature=temperature)}


def decayed(described: dmft.Problem, *, tolerance: float = 1e-6) -> dict[str, xr.Dataset]:
    """The adaptive NTK, by name."""
    return {FLOW: dmft.adaptive_kernel(described, kind="flow", tolerance=tolerance)}


def networks(described: dmft.Problem, *, width: int = WIDTH, seeds: int = 2, **settings: Any) -> dict[str, xr.Dataset]:
    """Networks at rest, by name."""
    last = described.training.steps
    found = finite_nets.train_ensemble(
        described,
        widths=[width],
        seeds=seeds,
        save_steps=[last],
        observables=["prediction"],
        progress=False,
        **settings,
    )
    return {NETWORKS: found}


def data(store: Path | None) -> xr.Dataset:
    """From `store`/adaptive_kernels.nc, or made: minutes on a GPU, an hour or two of two cores."""
    if store is not None:
        return NEEDS.stored(store)
    found: dict[float, dict[str, list[xr.Dataset]]] = {each: {} for each in TEMPERATURES}

    def add(results: Mapping[str, xr.Dataset], temperature: float = DECAY) -> None:
        for name, result in results.items():
            found[temperature].setdefault(name, []).append(result)

    for draw in range(DRAWS):
        for gamma0, samples in settings():
            described = problem(draw, gamma0=gamma0, samples=samples)
            add(posterior(described) | decayed(described) | networks(described))
            if gamma0 == GAMMA0:
                add(lazy(described) | {TUNED: dmft.lazy_kernel(described, kind="flow", ridge="tuned")})
        described = problem(draw, gamma0=GAMMA0, samples=SHOWN)
        for temperature in found.keys() - {DECAY}:
            add(lazy(described, temperature=temperature), temperature)
            add(posterior(described, temperature=temperature), temperature)
    return gathered(found)


def gathered(found: Mapping[float, Mapping[str, Iterable[xr.Dataset]]]) -> xr.Dataset:
    """The comparison of results, by temperature and name, with a dimension of temperatures."""
    parts = [comparisons.predictors(results, reference=LAZY_NNGP) for results in found.values()]
    order = [name for name in PREDICTORS if any(name in results for results in found.values())]
    joined = xr.concat(parts, "temperature", join="outer", fill_value={"draws": 0}, combine_attrs="override")
    return joined.assign_coords(temperature=list(found)).sortby("temperature").sel(predictor=order)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `comparisons.predictors` has returned; panel (d), of what `gathered` has."""
    ds = drawn(*results)
    return style.panels(draw, ds, *(((2, 2), TALL) if "temperature" in ds.dims else ((1, 3), SIZE)))


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """All panels."""
    axes = axes.ravel()
    samples, gamma0 = (_nearest(ds[name].values, value) for name, value in (("samples", SHOWN), ("gamma0", GAMMA0)))
    if "temperature" in ds.dims:
        _against(ds.sel(samples=samples, gamma0=gamma0), "temperature", "test_loss", axes[3])
        axes[3].set_title(rf"(d) $P={samples}$, $\gamma_0={gamma0:g}$")
        ds = ds.sel(temperature=_nearest(ds["temperature"].values, DECAY))
    _against(ds.sel(samples=samples), "gamma0", "test_error", axes[0])
    _against(ds.sel(samples=samples), "gamma0", "test_loss", axes[1])
    _against(ds.sel(gamma0=gamma0), "samples", "test_error", axes[2])
    for ax, title in zip(
        axes, (f"(a) $P={samples}$", f"(b) $P={samples}$", rf"(c) $\gamma_0={gamma0:g}$"), strict=False
    ):
        ax.set_title(title)
    axes[1].legend(fontsize="x-small")


def _against(ds: xr.Dataset, along: str, quantity: str, ax: Axes) -> None:
    labels = {
        "test_error": "share of test errors",
        "test_loss": "test loss",
        "gamma0": r"richness $\gamma_0$",
        "samples": "training samples $P$",
        "temperature": "temperature $T$, or ridge over $P$",
    }
    x = ds[along].values
    ax.set_xscale("log")
    ax.minorticks_off()
    for name in ds["predictor"].values.tolist():
        row = ds.sel(predictor=name)
        here = np.isfinite(row[quantity].values)
        if along == "temperature" and here.sum() < 2:  # of one temperature alone
            continue
        points = x[here], row[quantity].values[here], row[f"{quantity}_se"].values[here]
        ax.errorbar(*points, label=name, linewidth=1.1, markersize=3.5, **LOOKS.get(name, {}))
    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.set(xlabel=labels[along], ylabel=labels[quantity])


def _nearest(values: Any, wanted: float) -> Any:
    """The value nearest to the one wanted."""
    return values[np.argmin(abs(values - wanted))]
