"""Residual networks of many blocks: kernels through depth and their limit, and the learning rates that they bear.

(a) feature kernel after training, mean over samples of its diagonal, against the place l / L in the stream, of 8, 16
    and 32 blocks with branches 1 / sqrt(L), and of infinitely many.
(b) predictions of the training samples after training, off the extrapolated ones, against 1 / L; black: the error of
    the extrapolation.  Bars: standard errors, of all but the extrapolation.
(c) training loss after 40 steps of networks of width 128 against the learning rate, branches 1 / sqrt(L) (solid) and
    unscaled (dashed); vertical lines: 2 P / lambda_max of the lazy limit, for every L and for infinitely many.  Where a
    network diverges nothing is drawn.
(a, b) two digits each of threes and eights, tanh; (c) 32 points in ten dimensions, ReLU.  Two minutes on two cores.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dmft
import finite_nets
from dmft.errors import DivergenceError
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 2.9)
DEPTHS = (8, 16, 32)  # of (a, b)
NUMERICS: dict[str, Any] = {"particles": 1024, "scrambles": 4}
STEPS = 5
BLOCKS = (2, 8, 32)  # of (c)
RATES = tuple(2.0**k for k in range(-9, 3))
SCALINGS = {"1 / sqrt(L)": 0.5, "1": 0.0}  # branches L^-exponent
WIDTH, SEEDS, POINTS, DIMENSION, RATE_STEPS, RICHNESS = 128, 4, 32, 10, 40, 0.3
NEEDS = Needs(
    "infinite_depth",
    "infinite_depth",
    "figures.infinite_depth.data(None)",
    ("feature_kernel", "prediction", "trained_loss", "edge"),
)


def problem() -> dmft.Problem:
    """That of (a, b), of any number of blocks."""
    task = dmft.load_task("digits", classes=(3, 8), n_train=4, n_test=0)
    return dmft.Problem(dmft.ResidualMLP(2, gamma0=1.0), task, dmft.GradientDescent(0.3, STEPS))


def of_rates(blocks: int, exponent: float, rate: float) -> dmft.Problem:
    """That of (c)."""
    x = np.random.default_rng(0).standard_normal((POINTS, DIMENSION))
    x *= np.sqrt(DIMENSION) / np.linalg.norm(x, axis=1, keepdims=True)
    network = dmft.ResidualMLP(blocks + 1, dmft.relu(), gamma0=RICHNESS, branch_scale=float(blocks) ** -exponent)
    return dmft.Problem(network, dmft.Task(x, np.sign(x[:, 0])), dmft.GradientDescent(rate, RATE_STEPS))


def data(store: Path | None) -> xr.Dataset:
    """The numbers, of a folder of results (`figures.needs`); without one, they are computed."""
    return make() if store is None else NEEDS.stored(store)


def make() -> xr.Dataset:
    """Kernels and predictions of all depths and their limit; losses of networks against rates; edges."""
    deep = dmft.depth_limit(
        problem(), DEPTHS, **NUMERICS, save_steps=[0, STEPS], observables=["prediction", "feature_kernel"]
    ).isel(step=-1, drop=True)
    places = np.arange(deep.sizes["layer"]) / DEPTHS[0]
    n = deep.sizes["sample"]
    found: dict[str, Any] = {}
    for end in ("", "_se"):
        kernel = deep[f"feature_kernel{end}"].transpose("depth", "layer", "sample", "sample_2").values
        # samples share their particles: as if all erred together
        found[f"feature_kernel{end}"] = (("depth", "place"), np.einsum("dlss->dl", kernel) / n)
        found[f"prediction{end}"] = (("depth", "sample"), deep[f"prediction{end}"].transpose("depth", "sample").values)
    losses = np.array([[[_trained(L, e, r) for r in RATES] for L in BLOCKS] for e in SCALINGS.values()])
    found["trained_loss"] = (("scaling", "blocks", "rate"), losses)
    found["edge"] = (("scaling", "blocks"), [[edge(L, e) for L in BLOCKS] for e in SCALINGS.values()])
    x = of_rates(2, 0.5, 1.0).task.x_train
    ntk = dmft.infinite_depth_kernels(x @ x.T / DIMENSION, dmft.relu()).ntk
    found["edge_limit"] = ((), 2 * POINTS / np.linalg.eigvalsh(ntk)[-1])
    coords = {"depth": deep["depth"].values, "place": places, "sample": deep["sample"].values}
    ds = xr.Dataset(found, {**coords, "scaling": list(SCALINGS), "blocks": list(BLOCKS), "rate": list(RATES)})
    ds.attrs = style.provenance(deep) | {"steps": STEPS, "width": WIDTH, "seeds": SEEDS}
    return ds


def edge(blocks: int, exponent: float) -> float:
    """The largest learning rate at which the lazy limit does not diverge, 2 P / lambda_max."""
    ntk = dmft.lazy_limit(of_rates(blocks, exponent, 1e-12))["ntk"].isel(step=0).values
    return float(2 * POINTS / np.linalg.eigvalsh(ntk)[-1])


def _trained(blocks: int, exponent: float, rate: float) -> float:
    """The training loss at the end, mean over networks; nan where one diverges, or where losses have grown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*diverge")  # that is what this figure shows
        try:
            nets = finite_nets.train_ensemble(
                of_rates(blocks, exponent, rate),
                widths=[WIDTH],
                seeds=SEEDS,
                observables=["loss"],
                save_steps=[0, RATE_STEPS],
                progress=False,
            )
        except DivergenceError:
            return np.nan
    start, end = nets["loss"].isel(width=0).mean("seed", skipna=False).values
    return float(end) if end <= start else np.nan


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `make` returns."""
    return style.panels(draw, drawn(*results), (1, 3), SIZE)


def draw(ds: xr.Dataset, axes: Sequence[Axes]) -> None:
    """Three panels."""
    finite = [depth for depth in ds["depth"].values.tolist() if np.isfinite(depth)]
    ax = axes[0]
    for depth, look in zip(finite, style.SERIES, strict=False):
        _points(ax, ds["place"].values, ds.sel(depth=depth), "feature_kernel", f"$L={depth:.0f}$", look)
    limit = ds.sel(depth=np.inf)
    _band(ax, ds["place"].values, limit["feature_kernel"].values, limit["feature_kernel_se"].values)
    ax.set(xlabel="place $l/L$", ylabel=r"mean of $\Phi_{\mu\mu}$", title="(a) kernels through depth")
    style.legend(ax)
    ax = axes[1]
    inverse, off = 1 / ds["depth"].values, ds["prediction"] - ds["prediction"].sel(depth=np.inf)
    ax.axhline(0, color="black", linewidth=0.9, zorder=0)
    for i, look in zip(range(ds.sizes["sample"]), style.SERIES, strict=False):
        for depth, color in zip(ds["depth"].values.tolist(), [*[look["color"]] * len(finite), "black"], strict=True):
            each = {"depth": depth, "sample": ds["sample"].values[i]}
            value, se = off.sel(each).item(), ds["prediction_se"].sel(each).item()
            ax.errorbar(1 / depth + 0.002 * i, value, se, markersize=3, **{**look, "color": color})
        ax.plot(inverse + 0.002 * i, off.isel(sample=i).values, color=look["color"], linewidth=0.8, linestyle=":")
    ax.set(xlabel="$1/L$", ylabel=r"$f_L-f_\infty$", title=r"(b) predictions")
    _draw_rates(ds, axes[2])


def _draw_rates(ds: xr.Dataset, ax: Axes) -> None:
    rates = ds["rate"].values
    for line, scaling in zip(("-", "--"), ds["scaling"].values.tolist(), strict=True):
        for blocks, look in zip(ds["blocks"].values.tolist(), style.SERIES, strict=False):
            row = ds.sel(scaling=scaling, blocks=blocks)
            label = f"$L={blocks}$" if line == "-" else None
            ax.plot(rates, row["trained_loss"].values, linestyle=line, label=label, markersize=3, **look)
            if rates[0] < row["edge"].item():
                ax.axvline(row["edge"].item(), color=look["color"], linewidth=0.8, linestyle=line)
    ax.axvline(ds["edge_limit"].item(), color="black", linewidth=1.2, linestyle=":", label=r"edge, $L=\infty$")
    ax.set(xscale="log", yscale="log", xlabel=r"learning rate $\eta$", title="(c) learning rates")
    ax.set_ylabel(f"loss of width {ds.attrs['width']}")
    ax.set_xscale("log", base=2)
    style.legend(ax)


def _points(ax: Axes, x: Any, ds: xr.Dataset, name: str, label: str | None, look: dict[str, Any]) -> None:
    ax.errorbar(x, ds[name].values, ds[f"{name}_se"].values, linestyle="none", markersize=3, label=label, **look)


def _band(ax: Axes, x: Any, value: Any, se: Any) -> None:
    ax.fill_between(x, value - se, value + se, color="black", alpha=0.25, linewidth=0)
    ax.plot(x, value, label=r"limit, $L\to\infty$", **style.LIMIT)
