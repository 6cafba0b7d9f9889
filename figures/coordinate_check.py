"""Coordinate check: sizes of activations and of their updates against width, in three parameterizations.

The first thing to look at in a code that is to be made wide.  Columns: one network, images of digits and rate at width
64, where the three parameterizations are the same network, made wider by the rules of each.
(a-c) root mean square of activations phi(h^l) and of the output, over neurons, images and networks, after a few steps.
(d-f) the same of their change since initialisation: in mean-field scaling all tend to the limit (lines), in NTK scaling
activations stop moving (N^-1/2); with one learning rate for weights of ordinary size ("standard") they move differently
at every width, until training is unstable: crosses mark widths at which networks diverge, and how many of six; points
are the others.
Threes against eights of scikit-learn's digits, three hidden layers, ReLU.  About a minute on two cores.  `make` does
the same for any problem, in the parameterizations that its network offers.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dmft
import finite_nets
from dmft.errors import DivergenceError
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 4.6)
DEPTH = 3
BASE = 64  # the width at which all parameterizations agree
RATE, STEPS = 0.5, 4
WIDTHS = (64, 128, 256, 512, 1024, 2048)
SEEDS = 6
PARTICLES = 4096
TITLES = {"mean_field": "mean field", "ntk": "NTK", "standard": "standard"}
QUANTITIES = {"size": "after {} steps", "change": "change in {} steps"}
Array = NDArray[np.float64]


class Squares(NamedTuple):
    """Mean squares, (..., field), of activations of all layers and the output, and of their changes."""

    size: Array
    change: Array


def problem() -> dmft.Problem:
    """The problem of the gallery, whose images have as many pixels as networks have neurons at the base width."""
    task = dmft.load_task("digits", classes=(3, 8), n_train=8, n_test=0)
    return dmft.Problem(dmft.MLP(DEPTH, dmft.relu(), centered=False), task, dmft.GradientDescent(RATE, STEPS))


def parameterized(described: dmft.Problem, parameterization: str, base: int) -> dmft.Problem:
    """A mean-field problem in another parameterization, with scales that make both the same network at width `base`.

    With the factors of `dmft.specs.parameterization`: the richness gamma0 sqrt(N) makes 1 / (gamma0 N) of
    1 / (gamma0 sqrt(N)); the factors m = D, N, N of "standard" are those of a rate N times as large where D = N.  For
    inputs of another dimension the first layer of "standard" learns D / N times as fast as the others at that width.
    """
    if parameterization == "mean_field":
        return described
    scale = 1 / base if parameterization == "standard" else 1.0
    gamma0, rates = described.network.gamma0 * base**0.5, np.multiply(described.training.learning_rate, scale).tolist()
    found = dmft.vary(described, parameterization=[parameterization], gamma0=[gamma0], learning_rate=[rates])
    return found[0]


def data(store: Path | None) -> xr.Dataset:
    """The sizes, of a folder of results (`figures.needs`); without one, networks are trained."""
    if store is not None:
        return NEEDS.stored(store)
    return make(problem(), widths=WIDTHS, seeds=SEEDS, steps=STEPS, base=BASE, particles=PARTICLES)


def make(
    described: dmft.Problem,
    *,
    widths: Sequence[int] = WIDTHS,
    parameterizations: Sequence[str] = tuple(TITLES),
    seeds: int = SEEDS,
    steps: int | None = None,
    base: int | None = None,
    **numerics: Any,
) -> xr.Dataset:
    """The sizes in any problem, to be drawn.

    Args:
        described: in mean-field parameterization, with as few samples as will do.
        widths: of the networks.
        parameterizations: those to compare; "standard" is for perceptrons alone.
        seeds: networks of each width and parameterization.
        steps: of training, after which sizes are taken; those of the problem, but four at most, by default.
        base: the width at which all parameterizations are the same network, or as near to it as `parameterized` says;
            the narrowest by default.
        numerics: further arguments of `dmft.solve`.

    Returns:
        Dataset: root mean squares size and change (parameterization, width, field) over neurons, samples and networks,
        with their `_se`, nan where all networks diverge; their limits size_limit and change_limit (field);
        diverged(parameterization, width), how many of the networks do.  Fields are the layers and the output.

    Raises:
        ValueError: another parameterization, one that is not known or that the network does not offer, no widths, steps
            outside of training; as `dmft.solve`.
    """
    if not len(widths):
        raise ValueError("widths is empty; give widths of networks, e.g. widths=[64, 256, 1024].")
    if not len(parameterizations) or not set(parameterizations) <= set(TITLES):
        raise ValueError(f"parameterizations={parameterizations}: give some of {', '.join(TITLES)}.")
    last = min(described.training.steps, STEPS) if steps is None else steps
    if not 1 <= last <= described.training.steps:
        raise ValueError(f"steps={last} are not among the {described.training.steps} of training; give 1 at least.")
    base, widths = min(widths) if base is None else base, sorted(map(int, widths))
    recorded: dict[str, Any] = {
        "observables": ["prediction", "feature_kernel"],
        "two_time": True,
        "save_steps": [0, last],
    }
    theory = dmft.solve(described, **recorded, **numerics)
    fields = [*(f"layer {layer}" for layer in theory["layer"].values), "output"]
    shape = (len(parameterizations), len(widths), len(fields))
    found = {f"{name}{part}": np.full(shape, np.nan) for name in QUANTITIES for part in ("", "_se")}
    diverged = np.zeros(shape[:2], int)
    for (i, parameterization), (j, width) in itertools.product(enumerate(parameterizations), enumerate(widths)):
        other = parameterized(described, parameterization, base)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "(?s).*diverge")  # that is what this figure shows
                nets = finite_nets.train_ensemble(other, widths=[width], seeds=seeds, dtype="float64", **recorded)
        except DivergenceError:
            diverged[i, j] = seeds
            continue
        diverged[i, j] = nets.attrs["diverged"]
        healthy = nets.isel(width=0) if "diverged" not in nets else nets.isel(width=0, seed=~nets["diverged"].values[0])
        for name, each in squares(healthy)._asdict().items():
            found[name][i, j], found[f"{name}_se"][i, j] = root_mean(each)
    dims = ("parameterization", "width", "field")
    limits = {f"{name}_limit": ("field", np.sqrt(each)) for name, each in squares(theory)._asdict().items()}
    variables = {name: (dims, value) for name, value in found.items()} | limits
    ds = xr.Dataset(
        variables | {"diverged": (dims[:2], diverged)},
        coords={"parameterization": list(parameterizations), "width": widths, "field": fields},
    )
    ds.attrs = style.provenance(theory) | {"seeds": seeds, "steps": last}
    return ds


NEEDS = Needs(
    "coordinate_check",
    "coordinate_check",
    "figures.coordinate_check.make(problem)",
    ("size", "change", "size_limit", "change_limit", "diverged"),
)


def squares(result: xr.Dataset) -> Squares:
    """Of a result with the first and the last step: means over samples and outputs, from <(phi' - phi)^2> = Phi(t, t) -
    2 Phi(t, 0) + Phi(0, 0)."""
    Phi = _two_time(result)
    start, end, between = Phi[..., 0, 0, :], Phi[..., -1, -1, :], Phi[..., -1, 0, :]
    entry = [dim for dim in ("sample", "output") if dim in result["prediction"].dims]
    f = result["prediction"].transpose(..., "step", *entry).values
    f = f.reshape(*f.shape[: f.ndim - len(entry)], -1)

    def joined(activations: Array, output: Array) -> Array:
        return np.concatenate([activations, (output**2).mean(axis=-1)[..., None]], axis=-1)

    return Squares(
        size=joined(end, f[..., -1, :]),
        change=joined(np.maximum(start + end - 2 * between, 0.0), f[..., -1, :] - f[..., 0, :]),
    )


def _two_time(result: xr.Dataset) -> Array:
    """(..., step, step_2, layer): mean over samples of the kernel between each and itself."""
    kernel = result["feature_kernel_two_time"].transpose(..., "step", "step_2", "layer", "sample", "sample_2").values
    return np.asarray(np.einsum("...ss->...", kernel) / kernel.shape[-1])


def root_mean(each: Array) -> tuple[Array, Array]:
    """Root of the mean over members of squares (member, ...), and its standard error; nan for one member."""
    value = np.sqrt(each.mean(axis=0))
    if len(each) < 2:
        return value, np.full_like(value, np.nan)
    return value, each.std(axis=0, ddof=1) / np.sqrt(len(each)) / (2 * value)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `make` returns."""
    ds = drawn(*results)
    return style.panels(draw, ds, (len(QUANTITIES), ds.sizes["parameterization"]), SIZE, sharey="row", sharex=True)


def draw(ds: xr.Dataset, axes: NDArray[Any], *, letters: str = "abcdef", network: str = "") -> None:
    """A row for sizes and one for changes, a column for each parameterization.

    letters: of the panels, row by row; network: what titles say before the parameterization.
    """
    each = iter(letters)
    steps, compared = ds.attrs["steps"], ds["parameterization"].values.tolist()
    for row, (name, what) in zip(axes, QUANTITIES.items(), strict=True):
        for ax, parameterization in zip(row, compared, strict=True):
            draw_panel(ds.sel(parameterization=parameterization), name, ax, limit=parameterization == "mean_field")
            ax.set_title(f"({next(each)}) {network}{TITLES[parameterization]}")
        row[0].set_ylabel(f"root mean square, {what.format(steps)}")
    width = ds["width"].values
    for ax in axes.flat:
        style.width_axis(ax, width)
        ax.label_outer()
    if "ntk" in compared:
        ax = axes[1, compared.index("ntk")]
        through = ds["change"].sel(parameterization="ntk").isel(width=0, field=0).item()
        style.guide(ax, width, (width[0], 0.7 * through), -0.5, r"$N^{-1/2}$")
        _legend_of(ax, r"$N^{-1/2}$")
    for ax in axes[0]:
        _legend_of(ax, *(text for text in ax.get_legend_handles_labels()[1] if text.endswith("diverge")))
    axes[0, 0].plot([], [], color="0.4", linewidth=0.8, linestyle="--", label=r"theory, $N\to\infty$")
    axes[0, 0].legend(loc="best")


def draw_panel(ds: xr.Dataset, name: str, ax: Axes, *, limit: bool) -> None:
    """One quantity in one parameterization."""
    width = ds["width"].values
    ax.set_yscale("log")
    for field, look in zip(ds["field"].values.tolist(), itertools.cycle(style.SERIES), strict=False):
        y, se = ds[name].sel(field=field).values, ds[f"{name}_se"].sel(field=field).values
        ax.errorbar(width, y, se, linestyle="-", linewidth=0.8, label=field, **look)
        if limit:
            ax.axhline(ds[f"{name}_limit"].sel(field=field).item(), color=look["color"], linewidth=0.8, linestyle="--")
    _mark_divergence(ax, width, ds["diverged"].values, ds.attrs["seeds"])


def _legend_of(ax: Axes, *names: str) -> None:
    """Of these labels alone; nothing where there is none."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if names:
        ax.legend([handles[name] for name in names], names, loc="center left")


def _mark_divergence(ax: Axes, width: Sequence[int] | NDArray[Any], diverged: NDArray[Any], networks: int) -> None:
    """A cross and a number at the upper edge for every width at which networks diverge."""
    for w, count in zip(width, diverged, strict=True):
        if count:
            look: dict[str, Any] = {
                "color": "black",
                "markersize": 5,
                "label": style.once(ax, f"so many of {networks} diverge"),
            }
            ax.plot(w, 0.95, "x", linestyle="none", transform=ax.get_xaxis_transform(), **look)
            ax.annotate(
                str(count),
                (w, 0.95),
                xycoords=ax.get_xaxis_transform(),
                textcoords="offset points",
                xytext=(5, 0),
                va="center",
                fontsize=7.5,
            )
