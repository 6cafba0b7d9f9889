"""Few bits: the law of precision, what it says, and a grid of quantised networks of our own that it is fitted to.

(a) The law with its published constants: share of the parameters that bits leave, by what is rounded; (b) loss at a
fixed cost against the bits of all of it: the best ones, about 7, are the same at every cost.  (c-f) Perceptrons in one
pass over images, by width, samples met and bits: points are test losses of networks trained with few bits, straight
through, or rounded after training; lines the law that fits all of them, held at the loss of guessing.  (c) By bits of
weights; (d) by bits of weights and activations; (e) by bits that trained weights are rounded to.  (f) All of them
against the fit, those apart that it was not fitted to (`held_out`: the widest networks).  Runs of which a network
diverges are left out.
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
from numpy.typing import NDArray

import comparisons
import dmft
import finite_nets
from dmft.errors import DivergenceError
from figures import style
from figures.needs import Needs

SIZE = (style.WIDE, 4.9)
BITS = (2, 3, 4, 6, 8)
WIDTHS, SEEDS = (8, 16, 32, 64), 4
BATCH, RATE = 20, 0.5
COMPUTE = (1e18, 1e20, 1e22)
SHOWN = np.linspace(2.0, 12.0, 101)
ROUNDED = {"weights": (1, 0), "activations": (0, 1), "both": (1, 1)}
NEEDS = Needs(
    "precision", "precision", "figures.precision.make(runs)", ("loss", "predicted", "share", "cost_loss", "by_bits")
)


def problem(source: str = "digits", n_train: int = 1400, n_test: int = 390, batch: int = BATCH) -> dmft.Problem:
    """One pass over images of all classes."""
    task = dmft.load_task(source, classes=tuple(range(10)), n_train=n_train, n_test=n_test, balanced=False)
    batches: Any = dmft.one_pass(n_train, batch)
    training = dmft.GradientDescent(RATE, len(batches), batches=batches, observe="test")
    return dmft.Problem(dmft.MLP(2, dmft.relu(), centered=False), task, training, "cross_entropy")


def data(store: Path | None) -> xr.Dataset:
    """All of it, made now on scikit-learn's digits in a minute, or of a folder of results (`figures.needs`)."""
    if store is not None:
        return NEEDS.stored(store)
    described = problem()
    steps = described.training.steps
    return make(measure(described, WIDTHS, BITS, [steps // 4, steps // 2, steps], SEEDS))


def measure(
    described: dmft.Problem,
    widths: Sequence[int],
    bits: Sequence[int],
    save_steps: Sequence[int],
    seeds: int,
    **options: Any,
) -> xr.Dataset:
    """A table of runs (run): test losses of networks of each width, number of samples and kind of rounding, mean over
    networks with its standard error.

    options: further ones of `finite_nets.train_ensemble`.
    """
    common: dict[str, Any] = {"widths": widths, "seeds": seeds, "save_steps": save_steps, **options}
    after = finite_nets.quantise(described, bits=bits, **common)
    parts = [_table(after["test_loss"], after)]
    for kind, which in ROUNDED.items():
        for each in bits:
            weights, activations = (each if one else None for one in which)
            rounding = finite_nets.Quantisation(weights, activations)
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "(?s).*diverge")  # few bits may
                    nets = finite_nets.train_ensemble(described, quantisation=rounding, observables=["loss"], **common)
            except DivergenceError:
                warnings.warn(f"networks with {each} bits of {kind} diverge and are left out", stacklevel=2)
                continue
            parts.append(_table(nets["test_loss"], after, weights=weights, activations=activations))
    found = xr.concat(parts, "run")
    found.attrs = {key: after.attrs[key] for key in ("problem", "problem_id", "version", "created", "device")}
    return found.assign_attrs(seeds=seeds, guessing=float(np.log(described.task.targets.shape[1])))


def _table(loss: xr.DataArray, sizes: xr.Dataset, **bits: float | None) -> xr.Dataset:
    """One run a row, of losses (width, seed, step[, post])."""
    if "post" not in loss.dims:
        loss = loss.drop_vars("post", errors="ignore").expand_dims(post=[np.inf])
    spread = loss.std("seed", ddof=1) / np.sqrt(loss.notnull().sum("seed"))
    columns = {"loss": loss.mean("seed", skipna=False), "loss_se": spread, "width": loss["width"], "post": loss["post"]}
    columns |= {name: sizes[name].reset_coords(drop=True) for name in ("parameters", "tokens")}
    each = xr.broadcast(*(one.reset_coords(drop=True) for one in columns.values()))
    found = {
        name: one.transpose("width", "step", "post").values.ravel() for name, one in zip(columns, each, strict=True)
    }
    for name in ("weights", "activations"):
        found[name] = np.full(len(found["loss"]), np.inf if bits.get(name) is None else bits[name])
    whole = np.isfinite(found["loss"])  # of those that are left when others diverge the mean is another
    return xr.Dataset({name: ("run", value[whole]) for name, value in found.items()})


def make(runs: xr.Dataset, *, bootstrap: int = 50) -> xr.Dataset:
    """What is drawn of a table of runs: the law fitted to all but the widest networks, and the published one."""
    widths = np.unique(runs["width"].values)
    held_out = (runs["width"] == widths[-1]).values
    columns = ["parameters", "tokens", "weights", "activations", "post", "loss"]
    fit = comparisons.fit_precision(
        runs[columns].isel(run=~held_out),
        bootstrap=bootstrap,
        delta=0.01,
        ceiling=runs.attrs.get("guessing", np.inf),
    )
    every = comparisons.predict_precision(fit, runs[columns])
    published = comparisons.PrecisionLaw.published()
    shares = [published.channels[name].share(SHOWN) for name in published.channels]
    cost = [[published.allocation(c, p).loss for p in SHOWN] for c in COMPUTE]
    sizes = np.unique(runs["parameters"].values)
    largest = runs["tokens"].values.max()
    rounded = [
        [
            fit.law.loss(n, largest, {name: SHOWN for name, one in zip(fit.law.channels, which, strict=True) if one})
            for n in sizes
        ]
        for which in ROUNDED.values()
    ]
    tokens = np.unique(runs["tokens"].values)
    after = [[fit.law.loss(n, d, post=SHOWN) for n in sizes] for d in tokens]
    found = every.assign(
        width=runs["width"],
        loss_se=runs["loss_se"],
        held_out=("run", held_out),
        share=(("channel", "bits"), shares),
        cost_loss=(("compute", "bits"), cost),
        by_bits=(("kind", "size", "bits"), rounded),
        after_training=(("seen", "size", "bits"), after),
    )
    found = found.assign_coords(
        channel=list(published.channels), bits=SHOWN, compute=list(COMPUTE), kind=list(ROUNDED), size=sizes, seen=tokens
    )
    law = fit.law
    found.attrs = runs.attrs | {
        "analysis": "precision",
        "fit": str(fit),
        "fit_r2": fit.runs.attrs["r2"],
        "fit_rms": fit.runs.attrs["rms"],
        "rms": every.attrs["rms"],
        "held_out_rms": float(np.sqrt((every["residual"].values[held_out] ** 2).mean())),
        "best_bits": published.optimal_bits(),
        "alpha": law.alpha,
        "beta": law.beta,
    }
    return found


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `data` makes."""
    return style.panels(draw, drawn(*results), (2, 3), SIZE)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """Six panels."""
    (share, cost, weights), (activations, after, all_of_them) = axes
    bits = ds["bits"].values
    for name, look in zip(ds["channel"].values.tolist(), style.SERIES, strict=False):
        share.plot(bits, ds["share"].sel(channel=name).values, color=look["color"], label=name)
    share.set(title="(a) published law", xlabel="bits", ylabel=r"$N_{\mathrm{eff}}/N$")
    for c, look in zip(ds["compute"].values, style.SERIES, strict=False):
        y = ds["cost_loss"].sel(compute=c).values
        cost.plot(bits[bits >= 4], y[bits >= 4], color=look["color"], label=f"$C=10^{{{np.log10(c):.0f}}}$")
    cost.axvline(ds.attrs["best_bits"], color="0.4", linewidth=0.8, linestyle="--")
    cost.set(title=f"(b) best: {ds.attrs['best_bits']:.2f} bits", xlabel="bits of everything", ylabel="loss")
    most = ds["tokens"].values.max()
    trained = (ds["tokens"].values == most) & np.isinf(ds["post"].values)
    for ax, kind, letter in ((weights, "weights", "c"), (activations, "both", "d")):
        which = [
            np.isfinite(ds[name].values) == bool(one)
            for name, one in zip(("weights", "activations"), ROUNDED[kind], strict=True)
        ]
        _by_bits(ds, ax, trained & which[0] & which[1], "weights", ds["by_bits"].sel(kind=kind))
        ax.set(title=f"({letter}) trained at few bits: {kind}", xlabel="bits", ylabel="test loss")
    rounded = (ds["tokens"].values == most) & np.isfinite(ds["post"].values)
    _by_bits(ds, after, rounded, "post", ds["after_training"].sel(seen=most))
    after.set(title="(e) rounded after training", xlabel="bits", ylabel="test loss")
    _all(ds, all_of_them)
    for ax in axes.flat:
        if ax is not all_of_them:
            ax.set_xscale("log", base=2)
            ax.set_xticks([2, 3, 4, 6, 8, 12], [2, 3, 4, 6, 8, 12])
            ax.minorticks_off()
        ax.legend(fontsize=6, handlelength=1.4)
    cost.set_xlim(3.8, 12.6)


def _by_bits(ds: xr.Dataset, ax: Axes, rows: NDArray[np.bool_], name: str, law: xr.DataArray) -> None:
    """Points of each width, and the law, against bits."""
    bits = ds["bits"].values
    for n, look in zip(ds["size"].values, style.SERIES, strict=False):
        mine = rows & (ds["parameters"].values == n)
        if not mine.any():
            continue
        part = ds.isel(run=mine)
        ax.errorbar(
            part[name].values,
            part["loss"].values,
            part["loss_se"].values,
            linestyle="none",
            markersize=3,
            **look,
            label=f"$N={part['width'].values[0]:.0f}$",
        )
        ax.plot(bits, law.sel(size=n).values, color=look["color"], linewidth=0.8)
    top, low = float(ds["loss"].values[rows].max()), float(ds["loss"].values[rows].min())
    ax.set_yscale("log")
    ax.set_ylim(low / 1.1, top * 1.1)


def _all(ds: xr.Dataset, ax: Axes) -> None:
    """Measured against fitted."""
    for label, out, marker in (("fitted", False, "o"), ("widest, predicted", True, "s")):
        mine = ds["held_out"].values == out
        ax.plot(
            ds["predicted"].values[mine],
            ds["loss"].values[mine],
            marker,
            markersize=2,
            linestyle="none",
            color="C3" if out else "C0",
            label=label,
        )
    ends = [float(ds["loss"].values.min()), float(ds["loss"].values.max())]
    ax.plot(ends, ends, color="0.4", linewidth=0.8, linestyle="--")
    title = f"(f) $R^2={ds.attrs['fit_r2']:.3f}$, off by {100 * ds.attrs['fit_rms']:.1f} %"
    ax.set(title=title, xlabel="test loss of the law", ylabel="measured")
