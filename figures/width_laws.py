"""Laws in width: fits of a + b/N to networks against the predicted limit, N Var and N bias, and exponents.

(a) mean prediction on one sample against 1/N: networks, their fit (which knows nothing of the theory), the limit.
(b) N Var of that prediction against 1/N: networks, their fit, the predicted value at 1/N = 0.
(c) N bias of predictions: slopes of the fits against `dmft.fluctuations`, all samples and steps.
(d) exponents s of variance and bias ~ N^s of several quantities; -1 is expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import comparisons
from figures import fluctuations, style

SIZE = (style.WIDE, 4.8)
QUANTITIES = {"prediction": "$f$", "loss": "loss", "feature_kernel": r"$\Phi$", "gradient_kernel": "$G$", "ntk": "NTK"}
NEEDS = fluctuations.needs(
    "width_laws", [f"prediction_{name}" for name in ("mean", "variance", "bias_limit", "variance_limit")]
)
FITTED = {
    "mean": ("prediction_mean", "prediction_limit"),
    "variance": ("prediction_variance", "prediction_variance_limit"),
}


def data(store: Path | None) -> xr.Dataset:
    """A comparison with fluctuations, of a folder of results (`figures.needs`); without one, networks are trained."""
    return fluctuations.made() if store is None else NEEDS.stored(store)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """Measured values, fits and predictions of one entry; slopes of all; exponents."""
    comparison = NEEDS.take(*results)
    # where the predicted bias is largest: half way through training
    bias = abs(comparison["prediction_bias_limit"])
    place = np.unravel_index(int(np.argmax(bias.values)), bias.shape)
    one = {dim: int(i) for dim, i in zip(bias.dims, place, strict=True)}
    found: dict[str, Any] = {}
    for name, (variable, limit) in FITTED.items():
        fit = comparisons.width_law(comparison, variable)
        for end in ("", "_se"):
            found[f"{name}{end}"] = comparison[f"{variable}{end}"].isel(one, drop=True)
            found[f"{name}_limit{end}"] = comparison[f"{limit}{end}"].isel(one, drop=True)
            # laws of several orders side by side
            found[f"{name}_fit{end}"] = fit[f"coefficient{end}"].isel(one, drop=True).rename(term=f"{name}_term")
        if name == "mean":
            found |= {f"slope{end}": fit[f"coefficient{end}"].isel(term=1, drop=True) for end in ("", "_se")}
            found |= {f"slope_limit{end}": comparison[f"prediction_bias_limit{end}"] for end in ("", "_se")}
    held = [q for q in QUANTITIES if f"{q}_variance_exponent" in comparison]
    for kind in ("variance", "bias"):
        for end in ("", "_se"):
            values = [comparison[f"{q}_{kind}_exponent{end}"].item() for q in held]
            found[f"{kind}_exponent{end}"] = ("quantity", values)
    ds = xr.Dataset(found).assign_coords(quantity=held)
    return ds.drop_vars([c for c in ds.coords if str(c).endswith("_term")]).assign_attrs(style.provenance(comparison))


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of a comparison with fluctuations, or of theory, networks and fluctuations in any order."""
    return style.panels(draw, drawn(*results), (2, 2), SIZE)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """Draw the four panels on four axes."""
    axes = axes.ravel()
    draw_law(ds, "mean", axes[0], r"$\mathrm{E} f$", "(a) mean of a prediction")
    draw_law(ds, "variance", axes[1], r"$N\,\mathrm{Var} f$", "(b) its variance")
    slope, slope_se, limit, limit_se = (
        ds[v].values.ravel() for v in ("slope", "slope_se", "slope_limit", "slope_limit_se")
    )
    ends = np.array([limit.min(), limit.max()])
    axes[2].plot(ends, ends, color="0.45", linestyle=":", zorder=0, label="equal")
    look = style.SERIES[0] | {"label": "every step and sample"}
    axes[2].errorbar(limit, slope, slope_se, limit_se, linestyle="none", linewidth=0.7, **look)
    axes[2].set(xlabel="predicted", ylabel="measured (slope of the fit)", title="(c) $N$ bias of predictions")
    style.legend(axes[2], loc="upper left")
    draw_exponents(ds, axes[3])


def draw_exponents(ds: xr.Dataset, ax: Axes) -> None:
    """(d) of several quantities, on a scale that their errors fill."""
    places = np.arange(ds.sizes["quantity"])
    spread = 0.02
    for (kind, shift), look in zip((("variance", -0.12), ("bias", 0.12)), style.SERIES, strict=False):
        value, se = ds[f"{kind}_exponent"].values, ds[f"{kind}_exponent_se"].values
        ax.errorbar(places + shift, value, se, linestyle="none", label=kind, **look)
        spread = max(spread, float(np.nanmax(abs(value + 1) + se, initial=0.0)))
    ax.axhline(-1, color="black", linewidth=1.0, zorder=0, label="1/N")
    ax.set_xticks(places, [QUANTITIES[q] for q in ds["quantity"].values])
    ax.set(
        xlabel="quantity", ylabel="exponent of $N$", title="(d) exponents", ylim=(-1 - 1.2 * spread, -1 + 1.8 * spread)
    )
    style.legend(ax, loc="upper left", ncols=3)


def draw_law(ds: xr.Dataset, name: str, ax: Axes, label: str, title: str) -> None:
    """Networks, their fit, and the prediction at 1/N = 0."""
    x = 1 / ds["width"].values
    look = style.SERIES[0]
    ax.errorbar(x, ds[name].values, ds[f"{name}_se"].values, linestyle="none", label="networks", **look)
    line = np.linspace(0, 1.05 * x.max(), 50)
    terms = ds[f"{name}_fit"].values
    law = ["$a", "b/N", "c/N^2"]
    ax.plot(
        line,
        sum(c * line**i for i, c in enumerate(terms)),
        color=look["color"],
        label=" + ".join(law[: len(terms)]) + "$",
    )
    ax.errorbar(
        [0],
        ds[f"{name}_fit"].values[:1],
        ds[f"{name}_fit_se"].values[:1],
        color=look["color"],
        marker="_",
        markersize=9,
        linestyle="none",
        label="$a$ of the fit",
    )
    limit, se = ds[f"{name}_limit"].item(), ds[f"{name}_limit_se"].item()
    ax.errorbar(
        [0],
        [limit],
        [se],
        color="black",
        marker="*",
        markersize=8,
        linestyle="none",
        label="theory, $N=\\infty$",
        zorder=6,
    )
    ax.set(xlabel="$1/N$", ylabel=label, title=title)
    style.legend(ax)
