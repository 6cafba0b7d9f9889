"""Kernels of a network and of the limit: feature kernel before and after training, NTK after training.

Columns: theory and one network of the widest width, on one colour scale; their difference, and the difference of the
mean over networks, each on its own scale (beside it), with its size relative to the kernel beneath.  Samples by class.
(No NTK for several outputs.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from comparisons import inputs
from comparisons.samples import members
from figures import runs, style
from figures.needs import Needs

SIZE = (style.WIDE, 5.4)
COLUMNS = ("limit", "one", "difference", "mean_difference")


def data(store: Path | None) -> xr.Dataset:
    """The kernels, of a folder of results (`figures.needs`) or made."""
    return NEEDS.take(*runs.wide()) if store is None else NEEDS.stored(store)


def of(theory: xr.Dataset, nets: xr.Dataset) -> xr.Dataset:
    """Kernels (row, sample, sample_2): of the limit, of one network of the widest width, and their mean."""
    inputs.check_networks(nets, members="this figure")
    inputs.check_quantities(nets, "the ensemble", ["feature_kernel"])
    inputs.check_theory(theory, nets, ["feature_kernel"])
    widest = int(np.argmax(nets["width"].values))
    top = theory["layer"].values[-1]
    rows = {
        rf"$\Phi^{{({top})}}$ at $t=0$": ("feature_kernel", 0),
        rf"$\Phi^{{({top})}}$ after training": ("feature_kernel", -1),
    }
    if "ntk" in nets and "ntk" in theory and "output" not in theory["ntk"].dims:
        rows["NTK after training"] = ("ntk", -1)
    # a common training and test order: by class
    target = theory["target"].values
    order = np.lexsort((np.arange(len(target)), target if target.ndim == 1 else target.argmax(axis=1)))
    found: dict[str, list[Any]] = {"limit": [], "one": [], "mean": []}
    for name, step in rows.values():
        at = (-1, step) if "layer" in theory[name].dims else (step,)
        networks = members(nets, name, widest)[(slice(None), *at)]
        for key, kernel in (("limit", theory[name].values[at]), ("one", networks[0]), ("mean", networks.mean(axis=0))):
            found[key].append(kernel[order][:, order])
    ds = xr.Dataset({key: (("row", "sample", "sample_2"), np.stack(value)) for key, value in found.items()})
    labels = {"row": list(rows), "sample": theory["sample"].values[order], "sample_2": theory["sample"].values[order]}
    attrs = style.provenance(nets) | {
        "analysis": "kernel_heatmaps",
        "width": int(nets["width"][widest]),
        "networks": len(networks),
    }
    return ds.assign_coords(labels).assign_attrs(attrs)


NEEDS = Needs(
    "kernel_heatmaps",
    "kernel_heatmaps",
    "figures.kernel_heatmaps.of(theory, nets)",
    ("limit", "one", "mean"),
    make=of,
)


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """The kernels and their differences from the limit."""
    ds = NEEDS.take(*results)
    return ds.assign(difference=ds["one"] - ds["limit"], mean_difference=ds["mean"] - ds["limit"])


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of theory and networks in any order."""
    ds = drawn(*results)
    return style.panels(draw, ds, (ds.sizes["row"], len(COLUMNS)), SIZE, squeeze=False)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """A row of four panels for each kernel."""
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    titles = {
        "limit": "theory",
        "one": f"one network, $N={ds.attrs['width']}$",
        "difference": "network $-$ theory",
        "mean_difference": f"mean of {ds.attrs['networks']} $-$ theory",
    }
    for i, name in enumerate(ds["row"].values):
        row = ds.isel(row=i)
        size = max(float(abs(row[key]).max()) for key in ("limit", "one"))
        norm = float((row["limit"] ** 2).mean()) ** 0.5
        for ax, key in zip(axes[i], COLUMNS, strict=True):
            change = key not in ("limit", "one")
            # a difference on a scale of its own, or that of the mean would be blank
            level = float(abs(row[key]).quantile(0.995)) if change else size
            level = level or 1.0  # of a difference that vanishes
            colors = "PuOr_r" if change else "RdBu_r"
            image = ax.imshow(row[key].values, cmap=colors, vmin=-level, vmax=level, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            title = f"({next(letters)})" + (f" {titles[key]}" if i == 0 else "")
            ax.set_title(title, fontsize=7.5)
            if change:
                share = float((row[key] ** 2).mean()) ** 0.5 / norm if norm else np.nan
                ax.set_xlabel(f"rms {100 * share:.2g} % of the kernel's", fontsize=7)
            if key != "limit":  # the first two share theirs
                bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02, aspect=14)
                bar.ax.tick_params(labelsize=6.5)
                bar.locator = MaxNLocator(3, symmetric=True)
        axes[i, 0].set_ylabel(str(name))
        for ax in axes[i, :2]:
            ax.set_xlabel("samples by class", fontsize=7)
