"""Feature learning against fluctuations: N Var of predictions and the kernels' signal-to-noise at several richness.

(a) N Var f through training, mean over samples: richer networks agree more with each other.
(b) signal-to-noise of kernels after training, mean over its standard deviation times N^(1/2), against richness.
Lines: theory, with its standard error.  Points: trained networks of one width, with sampling errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmft.schema.sources import kind_of
from figures import fluctuations, style
from figures.needs import Needs

SIZE = (style.WIDE, 2.9)
GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0)
WIDTH = 256
SEEDS = 4000
KERNELS = {"feature_kernel": r"features $\Phi^{(2)}$", "ntk": "NTK"}
OBSERVABLES = ("prediction", *KERNELS)
NEEDS = Needs(
    "richness",
    "richness",
    "figures.richness.of(*comparisons), comparisons with fluctuations at several gamma0,",
    ("variance", "variance_limit", *(f"{name}_signal{part}" for name in KERNELS for part in ("", "_limit"))),
)


def data(store: Path | None) -> xr.Dataset:
    """Curves (gamma0, step) and signal-to-noise (gamma0); from `store`/richness.nc, or made."""
    if store is not None:
        return NEEDS.stored(store)
    problems = map(fluctuations.problem, GAMMAS)
    return of(*(fluctuations.compared(p, widths=[WIDTH], seeds=SEEDS, observables=OBSERVABLES) for p in problems))


def of(*comparisons: xr.Dataset) -> xr.Dataset:
    """The data of comparisons with fluctuations, of problems that differ in gamma0, at the widest width of all.

    Raises:
        ValueError: not such comparisons, or of other steps.
    """
    shown = [f"{name}_variance_limit" for name in OBSERVABLES]
    needed = fluctuations.needs("richness", shown)
    held = {json.loads(c.attrs["problem"])["network"]["gamma0"]: c for c in map(needed.take, comparisons)}
    if len(held) < len(comparisons) or not held:
        raise ValueError(f"richness is of comparisons at several gamma0, each once; got gamma0 = {list(held)}.")
    width = max(set.intersection(*(set(c["width"].values.tolist()) for c in held.values())), default=None)
    if width is None:
        raise ValueError("richness is of comparisons that have a width in common; these have none.")
    rows = []
    gammas = sorted(held)
    for comparison in (held[gamma0].sel(width=width, drop=True) for gamma0 in gammas):
        row = {
            f"variance{part}": fluctuations.per_sample(comparison[f"prediction_variance{part}"])
            for part in ("", "_se", "_limit", "_limit_se")
        }
        for name in KERNELS:
            last = comparison.isel(step=-1, layer=-1, drop=True)
            for part, mean in (("", "mean"), ("_limit", "limit")):
                signal = fluctuations.per_sample(last[f"{name}_{mean}"])
                noise = fluctuations.per_sample(last[f"{name}_variance{part}"])
                error = fluctuations.per_sample(last[f"{name}_variance{part}_se"])
                row[f"{name}_signal{part}"] = signal / np.sqrt(noise)
                row[f"{name}_signal{part}_se"] = signal / np.sqrt(noise) * error / (2 * noise)
        rows.append(xr.Dataset(row))
    along = xr.DataArray(gammas, dims="gamma0", name="gamma0")
    ds = xr.concat(rows, along, coords="minimal", compat="override", join="exact")
    first = held[gammas[0]].attrs
    ds.attrs = {"analysis": "richness", "width": width, "seeds": first["seeds"], "problem": first["problem"]}
    return ds


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    comparisons = [result for result in results if isinstance(result, xr.Dataset) and kind_of(result) == "comparison"]
    return NEEDS.take(*(results if len(comparisons) < len(results) else [of(*comparisons)]))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of comparisons with fluctuations at several gamma0, or of what `of` returns."""
    return style.panels(draw, drawn(*results), (1, 2), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Both panels."""
    draw_variance(ds, axes[0])
    draw_signal(ds, axes[1])


def draw_variance(ds: xr.Dataset, ax: Axes) -> None:
    """(a) N Var f against time."""
    time = ds["time"].values
    for gamma0, color in style.width_colors(ds["gamma0"].values.tolist()).items():
        row = ds.sel(gamma0=gamma0)
        limit, se = row["variance_limit"].values, row["variance_limit_se"].values
        style.band(ax, time, limit, se, color=color, label=rf"$\gamma_0={gamma0:g}$")
        points = row["variance"].values, row["variance_se"].values
        ax.errorbar(time, *points, color=color, marker="o", markersize=3, linestyle="none", linewidth=0.9)
    ax.set(xlabel=r"time $\eta t$", ylabel=r"$N\,\mathrm{Var}\,f$", title="(a) predictions", ylim=(0, None))
    style.room(ax, top=0.15)
    ax.legend(title=f"points: networks, $N={ds.attrs['width']}$\nlines: theory")


def draw_signal(ds: xr.Dataset, ax: Axes) -> None:
    """(b) signal-to-noise of kernels against richness."""
    gamma0 = ds["gamma0"].values
    for (name, label), look in zip(KERNELS.items(), style.SERIES, strict=False):
        limit, se = ds[f"{name}_signal_limit"].values, ds[f"{name}_signal_limit_se"].values
        ax.plot(gamma0, limit, color=look["color"], label=f"{label}, theory")
        style.errors(ax, gamma0, limit, se, color=look["color"])
        points = ds[f"{name}_signal"].values, ds[f"{name}_signal_se"].values
        ax.errorbar(gamma0, *points, linestyle="none", linewidth=0.9, label=f"{label}, $N={ds.attrs['width']}$", **look)
    ax.set_xscale("log")
    ax.set_xticks(gamma0, [f"{g:g}" for g in gamma0])
    ax.minorticks_off()
    ax.set(
        xlabel=r"richness $\gamma_0$",
        ylabel=r"mean / (std $\times\sqrt{N}$)",
        title="(b) kernels after training",
        ylim=(0, None),
    )
    style.legend(ax)
