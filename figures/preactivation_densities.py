"""Single neurons before and after training: densities of preactivations in networks of several widths, on the limit's.

Rows: layers.  (a, d) at initialisation and (b, e) after training, for one training image, on one grid of bins: steps
are networks, pooled, with their standard errors, the black line is the limit, dashed the Gaussian of the limit's mean
and variance.  Training takes neurons away from it, to two groups; the excess kurtosis kappa of the limit says how far.
(c, f) Wasserstein distance of networks from the limit against width, mean over two images, and (grey) how far apart
samples of one law are, as many as these, mean over widths: what is below is not resolved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dmft
import finite_nets
from comparisons.densities import densities, gaussian
from figures import fluctuations, style
from figures.needs import Needs

SIZE = (style.WIDE, 4.8)
GAMMA0 = 2.0
WIDTHS = (4, 8, 16, 32, 64, 128, 256)
SHOWN = (4, 16, 256)
NEURONS = 2**16
PARTICLES, SCRAMBLES = 8192, 8
BINS = 42
SAMPLES = (0, 1)
NEEDS = Needs(
    "preactivation_densities",
    "densities",
    "comparisons.densities(theory, nets)",
    (
        *("density", "density_limit", "edges", "mean_limit", "standard_deviation_limit", "excess_kurtosis_limit"),
        *("wasserstein", "wasserstein_floor"),
    ),
    make=densities,
    sources=("particles", "neurons"),
)


def data(store: Path | None) -> xr.Dataset:
    """`comparisons.densities`, of a folder of results (`figures.needs`); without one, networks are trained: threes
    against eights of MNIST, two hidden layers, richness 2, about forty seconds on two cores."""
    if store is not None:
        return NEEDS.stored(store)
    problem = fluctuations.problem(GAMMA0)
    theory = dmft.neurons(problem, particles=PARTICLES, scrambles=SCRAMBLES, samples=SAMPLES)
    nets = finite_nets.neurons(problem, widths=WIDTHS, neurons=NEURONS, samples=SAMPLES)
    return densities(theory, nets, bins=BINS)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """Densities of the first sample for a narrow, a middle and a wide width, the Gaussians beside them, and distances
    with the errors that samples have together."""
    found = NEEDS.take(*results)
    one = found.isel(sample=0).drop_vars(["sample", "split", "target"])
    edges = one["edges"].values
    h = (edges[..., 1:] + edges[..., :-1]) / 2
    shape = ("layer", "step", "bin")
    mean, deviation = (one[f"{name}_limit"].values[..., None] for name in ("mean", "standard_deviation"))
    curves = {
        "h": (shape, h),
        "density_gaussian": (shape, gaussian(h, mean, deviation)),
        "density_limit": one["density_limit"],
        "excess_kurtosis_limit": one["excess_kurtosis_limit"],
        "excess_kurtosis_limit_se": one["excess_kurtosis_limit_se"],
    }
    widths = one["width"].values
    chosen = [w for w in SHOWN if w in widths] or widths[sorted({0, len(widths) // 2, len(widths) - 1})]
    shown = one.sel(width=chosen).rename(width="width_shown")
    curves |= {name: shown[name] for name in ("density", "density_se")}
    distance = {name: found[name].mean("sample") for name in ("wasserstein", "wasserstein_se")}
    floor = found["wasserstein_floor"].mean(["sample", "width"]).max("step")
    ds = xr.Dataset(curves | distance | {"wasserstein_floor": floor})
    ds.attrs = style.provenance(found)
    return ds


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of `comparisons.densities`, or of neurons of theory and networks in any order."""
    ds = drawn(*results)
    return style.panels(draw, ds, (ds.sizes["layer"], 3), SIZE, squeeze=False)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """A row of panels for each layer."""
    first, last = ds["step"].values[0], ds["step"].values[-1]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for row, layer in zip(axes, ds["layer"].values, strict=True):
        at = ds.sel(layer=layer)
        for ax, step, when in zip(row, (first, last), ("at initialisation", f"after {last} steps"), strict=False):
            draw_density(at.sel(step=step), ax, str(layer))
            ax.set_title(f"({next(letters)}) layer {layer}, {when}")
        draw_distance(at, row[2])
        row[2].set_title(f"({next(letters)}) layer {layer}, distance")
        for side in (np.min, np.max):  # before and after on one scale
            edge = side([ax.get_xlim() for ax in row[:2]])
            for ax in row[:2]:
                ax.set_xlim(**{"left" if side is np.min else "right": edge})
    for ax in axes[:, 2]:
        ax.set_ylim(ds["wasserstein"].values.min() / 2, 12 * ds["wasserstein"].values.max())
    for ax in axes[:, 0]:
        ax.set_ylim(0, 1.35 * ax.get_ylim()[1])
    axes[0, 0].legend(loc="upper left", fontsize=6)
    style.legend(axes[0, 2], loc="upper right", fontsize=6.5)


def draw_density(ds: xr.Dataset, ax: Axes, layer: str) -> None:
    """One layer at one step."""
    h = ds["h"].values
    ax.plot(h, ds["density_gaussian"].values, "--", color="0.45", linewidth=1.1, label="Gaussian")
    ax.plot(h, ds["density_limit"].values, label=r"theory, $N\to\infty$", **(style.LIMIT | {"linewidth": 1.4}))
    # all widths on the same bins; densities have steps, and so have their lines
    for width, color in style.width_colors(ds["width_shown"].values.tolist()).items():
        y, se = (ds[name].sel(width_shown=width).values for name in ("density", "density_se"))
        ax.step(h, y, where="mid", color=color, linewidth=0.9, label=f"$N={width}$", zorder=6)
        ax.fill_between(h, y - se, y + se, step="mid", color=color, alpha=0.25, linewidth=0)
    kurtosis, se = ds["excess_kurtosis_limit"].item(), ds["excess_kurtosis_limit_se"].item()
    text = rf"limit: $\kappa={style.in_brackets(kurtosis, se)}$"
    ax.text(0.98, 0.99, text, transform=ax.transAxes, ha="right", va="top", fontsize=7)
    ax.set(xlabel=rf"preactivation $h^{{({layer})}}$", ylabel="density", ylim=(0, 1.25 * ds["density"].values.max()))


def draw_distance(ds: xr.Dataset, ax: Axes) -> None:
    """Of one layer, at the first and the last step."""
    width = ds["width"].values
    ax.axhspan(0, ds["wasserstein_floor"].item(), color="0.9", linewidth=0, label="unresolved (same law)", zorder=0)
    steps = zip(ds["step"].values[[0, -1]], ("at initialisation", "after training"), style.SERIES, strict=False)
    for step, label, look in steps:
        at = ds.sel(step=step)
        y, se = at["wasserstein"].values, at["wasserstein_se"].values
        ax.errorbar(width, y, se, linestyle="-", linewidth=0.8, label=label, **look)
    highest = ds["wasserstein"].values.max()
    style.guide(ax, width[: len(width) // 2 + 1], (width[0], 1.4 * highest), -1.0, r"$N^{-1}$")
    ax.set_yscale("log")
    style.width_axis(ax, width)
    ax.set_ylabel(r"$\int|F_N-F_\infty|\,\mathrm{d}h$")
