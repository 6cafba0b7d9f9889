"""Fluctuations accumulate through layers: N Var of kernels against layer, and of a trained network against its depth.

(a) N Var of feature kernels at initialisation against layer, mean of the diagonal, of linear, tanh and ReLU networks;
    on inputs with K^x_aa = 1 it is exactly 2 l for linear and 5 l for ReLU networks (dotted).
(b) N Var after training of tanh networks against their number of hidden layers: predictions, top feature kernel.
Lines: theory, in (a) exact (`dmft.initial_fluctuations`), in (b) with its standard error.  Points: networks of one
width, with sampling errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
import finite_nets
from figures import fluctuations, style
from figures.needs import Needs

SIZE = (style.WIDE, 3.0)
LAYERS = 6
ACTIVATIONS = (dmft.relu(), dmft.linear(), dmft.tanh())
DEPTHS = (1, 2, 3, 4, 5)
STEP = 4  # of training, shown in (b): predictions are half way to their targets
WIDTH = 256
SEEDS = 4000
KNOWN = {"linear": 2.0, "relu": 5.0}  # lim N Var Phi_aa of layer l is this times l K_aa^2 at initialisation
TRAINED = {"prediction": "prediction $f$", "feature_kernel": r"feature kernel $\Phi^{(L)}$"}
PARTS = ("", "_se", "_limit", "_limit_se")
NEEDS = Needs(
    "depth",
    "depth",
    "figures.depth.data(None)",
    tuple(f"{name}{part}" for name in ("initial", *TRAINED) for part in PARTS),
)


def data(store: Path | None) -> xr.Dataset:
    """Variances (activation, layer) at initialisation and (depth,) after training; stored or made."""
    if store is not None:
        return NEEDS.stored(store)
    start: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for activation in ACTIVATIONS:
        row = _at_initialisation(fluctuations.problem(depth=LAYERS, activation=activation))
        for part in PARTS:
            start[part].append(fluctuations.per_sample(row[f"feature_kernel_variance{part}"]).values)
    found: dict[str, Any] = {
        f"initial{part}": (("activation", "layer"), np.stack(values)) for part, values in start.items()
    }
    rows = [_compared(fluctuations.problem(depth=depth), STEP, list(TRAINED)).isel(layer=-1) for depth in DEPTHS]
    for name in TRAINED:
        for part in PARTS:
            values = [fluctuations.per_sample(row[f"{name}_variance{part}"]).item() for row in rows]
            found[f"{name}{part}"] = ("depth", np.array(values))
    size = float((np.diagonal(fluctuations.problem().task.input_kernel) ** 2).mean())
    each = [KNOWN.get(a.name, np.nan) * size * np.arange(1, LAYERS + 1) for a in ACTIVATIONS]
    found["initial_known"] = (("activation", "layer"), np.stack(each))
    coords = {"activation": [a.name for a in ACTIVATIONS], "layer": range(1, LAYERS + 1), "depth": list(DEPTHS)}
    attrs = {
        "analysis": "depth",
        "width": WIDTH,
        "seeds": SEEDS,
        "step": STEP,
        "problem": fluctuations.problem().to_json(arrays=False),
    }
    return xr.Dataset(found, coords=coords, attrs=attrs)


def _at_initialisation(described: dmft.Problem) -> xr.Dataset:
    """N Var of feature kernels, of networks and exact."""
    found = comparisons.statistics(_networks(described, 0, ["feature_kernel"])).isel(width=0, step=0)
    assert isinstance(described.network, dmft.MLP)
    exact = dmft.initial_fluctuations(described.network, described.task.input_kernel).feature_variance
    parts = {"": WIDTH * found["feature_kernel_seed_variance"], "_se": WIDTH * found["feature_kernel_seed_variance_se"]}
    parts["_limit"] = parts[""].copy(data=exact)
    parts["_limit_se"] = 0.0 * parts["_limit"]
    return xr.Dataset({f"feature_kernel_variance{part}": value for part, value in parts.items()})


def _compared(described: dmft.Problem, step: int, observables: list[str]) -> xr.Dataset:
    """The comparison at one step and width."""
    theory = dmft.solve(described, save_steps=[step])
    predicted = dmft.fluctuations(described, observables=observables, save_steps=[step])
    return comparisons.compare(theory, _networks(described, step, observables), predicted).isel(width=0, step=0)


def _networks(described: dmft.Problem, step: int, observables: list[str]) -> xr.Dataset:
    options: dict[str, Any] = {"observables": observables, "save_steps": [step]}
    return finite_nets.train_ensemble(described, widths=[WIDTH], seeds=SEEDS, **options)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `data` makes."""
    return style.panels(draw, drawn(*results), (1, 2), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Both panels."""
    for name, look in zip(ds["activation"].values, style.SERIES, strict=False):
        row = ds.sel(activation=name)
        _draw_row(row, "initial", "layer", str(name), look, axes[0])
        if np.isfinite(row["initial_known"].values).all():
            label = style.once(axes[0], "known: $5\\,l$, $2\\,l$")
            axes[0].plot(ds["layer"].values, row["initial_known"].values, ":", color="black", label=label, zorder=4)
    axes[0].set(
        xlabel=r"layer $l$", ylabel=r"$N\,\mathrm{Var}\,\Phi^{(l)}$", title="(a) at initialisation", ylim=(0, None)
    )
    for (name, label), look in zip(TRAINED.items(), style.SERIES, strict=False):
        _draw_row(ds, name, "depth", label, look, axes[1])
    axes[1].set(
        xlabel="hidden layers $L$",
        ylabel=r"$N\,\mathrm{Var}$",
        title=f"(b) tanh, step {ds.attrs['step']}",
        ylim=(0, None),
    )
    for ax in axes:
        style.legend(ax, title=f"points: networks, $N={ds.attrs['width']}$")


def _draw_row(ds: xr.Dataset, name: str, dim: str, label: str, look: dict[str, Any], ax: Axes) -> None:
    x, limit, se = ds[dim].values, ds[f"{name}_limit"].values, ds[f"{name}_limit_se"].values
    ax.plot(x, limit, color=look["color"], label=style.once(ax, "theory"))
    style.errors(ax, x, limit, se, color=look["color"])
    ax.errorbar(x, ds[name].values, ds[f"{name}_se"].values, linestyle="none", linewidth=0.9, label=label, **look)
    ax.set_xticks(x)
