"""A block of attention and its two limits: many heads, wide heads, and how much heads differ.

(a) predictions of the training samples as heads grow in number; lines: the limit; points: means over networks of the
    fewest and the most heads.
(b) training loss as heads grow in dimension; line: the limit; points: means over networks of two heads.
(c) variance of attention over the two heads of a network after training, mean over positions, against their dimension,
    with alpha_A = 1 and alpha_A = 1/2; dotted: proportional to 1/d.
Error bars: standard errors.  Two sequences of three positions, one block, all weights trained.
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

SIZE = (style.WIDE, 2.7)
HEADS, HEAD_DIM = (8, 64), 2  # of (a)
DIMENSIONS, FIXED = (4, 16, 64), 2  # of (b) and (c): neurons of a head, and heads
EXPONENTS = (1.0, 0.5)
SEEDS = 200
STEPS = 10
NEEDS = Needs(
    "attention",
    "attention",
    "figures.attention.data(None)",
    ("prediction", "prediction_limit", "loss", "loss_limit", "head_variance"),
)


def problem(**options: Any) -> dmft.Problem:
    """The problem of this figure, with these options of the transformer."""
    x = np.random.default_rng(0).standard_normal((2, 3, 6))
    network = dmft.Transformer(blocks=1, branch_scale=2.0, centered=False, **options)
    return dmft.Problem(network, dmft.Task(x, np.array([1.0, -1.0])), dmft.GradientDescent(0.1, STEPS))


def data(store: Path | None) -> xr.Dataset:
    """What is drawn, of a folder of results (`figures.needs`); without one, networks are trained."""
    if store is not None:
        return NEEDS.stored(store)
    many, wide = problem(head_dim=HEAD_DIM), problem(heads=FIXED, limit="head_dim")
    found: dict[str, xr.DataArray] = {}
    for given, name in ((many, "prediction"), (wide, "loss")):
        limit = dmft.solve(given, particles=1024, scrambles=2, tolerance=1e-2, observables=[name])
        found |= {f"{name}_limit{end}": limit[f"{name}{end}"].drop_vars("time") for end in ("", "_se")}
    found |= _means(_trained(many, HEADS, HEAD_DIM, "prediction"), "heads", "prediction")
    found |= _means(_trained(wide, DIMENSIONS, FIXED, "loss"), "head_dim", "loss")
    for name, part in _variances().items():
        found[name] = part
    ds = xr.Dataset({name: value.reset_coords(drop=True) for name, value in found.items()})
    ds.attrs = {"seeds": SEEDS, "steps": STEPS, "head_dim": HEAD_DIM, "heads": FIXED}
    return ds


def _trained(given: dmft.Problem, counts: Sequence[int], times: int, *names: str) -> xr.Dataset:
    return finite_nets.train_ensemble(
        given, widths=[count * times for count in counts], seeds=SEEDS, observables=list(names)
    )


def _means(nets: xr.Dataset, dim: str, name: str) -> dict[str, xr.DataArray]:
    """Mean over networks and its standard error, along what grows."""
    value = nets[name].astype(float).swap_dims(width=dim).reset_coords(drop=True)
    error = value.std("seed", ddof=1) / SEEDS**0.5
    return {name: value.mean("seed"), f"{name}_se": error}


def _variances() -> dict[str, xr.DataArray]:
    """Of attention over heads after training, by exponent and dimension of heads."""
    name, rows = "attention_head_variance", []
    for exponent in EXPONENTS:
        row = []
        for count in DIMENSIONS:
            given = problem(head_dim=count, attention_exponent=exponent)
            each = _trained(given, [FIXED], count, name)[name].isel(step=-1, attention_layer=0, width=0)
            row.append(each.astype(float).mean(("sample", "query", "key")).values)
        rows.append(row)
    values = xr.DataArray(
        rows, dims=("exponent", "head_dim", "seed"), coords={"exponent": list(EXPONENTS), "head_dim": list(DIMENSIONS)}
    )
    error = values.std("seed", ddof=1) / SEEDS**0.5
    return {"head_variance": values.mean("seed"), "head_variance_se": error}


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `data` returns."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Three panels."""
    _draw_training(ds, axes[0], "prediction", "heads", "$H={}$")
    axes[0].set(ylabel="prediction $f$", title=f"(a) many heads, $d={ds.attrs['head_dim']}$")
    _draw_training(ds, axes[1], "loss", "head_dim", "$d={}$")
    axes[1].set(ylabel="training loss", title=f"(b) wide heads, $H={ds.attrs['heads']}$", ylim=(0, None))
    _draw_variance(ds, axes[2])
    for ax in axes:
        style.legend(ax)


def _draw_training(ds: xr.Dataset, ax: Axes, name: str, dim: str, label: str) -> None:
    step, counts = ds["step"].values, ds[dim].values.tolist()
    samples = ds["sample"].values if "sample" in ds[name].dims else [None]
    for sample in samples:
        row = ds if sample is None else ds.sel(sample=sample)
        ax.plot(step, row[f"{name}_limit"].values, label=style.once(ax, "limit"), **style.LIMIT)
        for count, look in zip(counts, style.SERIES, strict=False):
            value, error = (row[f"{name}{end}"].sel({dim: count}).values for end in ("", "_se"))
            named = style.once(ax, label.format(count))
            ax.errorbar(step, value, error, markersize=3, linestyle="none", label=named, **look)
    ax.set(xlabel="step $t$")


def _draw_variance(ds: xr.Dataset, ax: Axes) -> None:
    dims = ds["head_dim"].values
    for exponent, look in zip(ds["exponent"].values, style.SERIES, strict=False):
        value, error = (ds[f"head_variance{end}"].sel(exponent=exponent).values for end in ("", "_se"))
        named = rf"$\alpha_A={exponent:g}$"
        ax.errorbar(dims, value, error, markersize=4, linestyle="none", label=named, **look)
        if exponent == 1:
            ax.plot(dims, value[0] * dims[0] / dims, ":", color=look["color"], linewidth=0.9, label=r"$\propto 1/d$")
    ax.set(xscale="log", yscale="log", xlabel="neurons of a head $d$", ylabel="variance over heads")
    ax.set(title="(c) heads differ", xticks=dims, xticklabels=[str(n) for n in dims])
    ax.minorticks_off()
