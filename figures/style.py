"""One look for all figures: colours that survive colour blindness and grey print, guides, saving with the numbers."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dmft
from comparisons.estimators import upper_end
from dmft.paths import local

STYLE = Path(__file__).parent / "figures.mplstyle"
LIMIT: dict[str, Any] = {"color": "black", "linewidth": 1.8, "zorder": 5}

# Okabe & Ito (2008), with a marker and a line style each, so that colour carries nothing alone
SERIES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o"},
    {"color": "#D55E00", "marker": "s"},
    {"color": "#009E73", "marker": "^"},
    {"color": "#CC79A7", "marker": "D"},
    {"color": "#E69F00", "marker": "v"},
    {"color": "#56B4E9", "marker": "P"},
)


def panels(
    draw: Callable[[xr.Dataset, Any], None],
    ds: xr.Dataset,
    shape: tuple[int, int],
    size: tuple[float, float],
    **shared: Any,
) -> Figure:
    """A figure of `shape` (rows, columns) panels, on whose axes `draw` draws `ds`; `shared`: of `plt.subplots`."""
    figure: Figure
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(*shape, figsize=size, **shared)
        draw(ds, np.atleast_1d(axes))
    return figure


def width_colors(widths: Sequence[int]) -> dict[int, Any]:
    """A colour for each width, light for narrow and dark for wide."""
    colormap: Colormap = matplotlib.colormaps["viridis_r"]
    return dict(zip(widths, colormap(np.linspace(0.12, 0.95, len(widths))), strict=True))


def guide(ax: Axes, width: NDArray[Any], through: tuple[float, float], slope: float, label: str) -> None:
    """A dotted power law of the given slope through a point, with its name at the right end."""
    x = np.asarray([min(width), max(width)], float)
    y = through[1] * (x / through[0]) ** slope
    ax.plot(x, y, color="0.55", linestyle=":", linewidth=1.0, zorder=0)
    ax.annotate(
        label, (x[-1], y[-1]), textcoords="offset points", xytext=(3, 0), color="0.45", fontsize=7.5, va="center"
    )


def width_axis(ax: Axes, width: NDArray[Any], *, room: float = 1.8) -> None:
    """A logarithmic axis of widths, with those that were measured as ticks and `room` for the names of guides."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(width, [str(w) for w in width])
    ax.minorticks_off()
    ax.set_xlabel("width $N$")
    ax.set_xlim(width[0] / 1.3, width[-1] * room)


def band(ax: Axes, x: NDArray[Any], y: NDArray[Any], se: NDArray[Any], **look: Any) -> None:
    """A line with its standard error as a band."""
    (line,) = ax.plot(x, y, **look)
    ax.fill_between(x, y - se, y + se, color=line.get_color(), alpha=0.2, linewidth=0)


def by_width(ax: Axes, x: NDArray[Any], ds: xr.Dataset, name: str, limit: str) -> None:
    """Curves `name` (width, ...) of networks with their errors, and the curve `limit` of the theory if it is there."""
    for width, color in width_colors(ds["width"].values.tolist()).items():
        row = ds.sel(width=width)
        band(ax, x, row[name].values, row[f"{name}_se"].values, color=color, label=f"$N={width}$")
    if limit in ds:
        ax.plot(x, ds[limit].values, label=r"$N=\infty$ (theory)", **LIMIT)


def resolved(ax: Axes, x: NDArray[Any], y: NDArray[Any], se: NDArray[Any], **look: Any) -> None:
    """Points with error bars on a logarithmic axis; of a value below its error an arrow down, from two errors above."""
    clear = y > se
    ax.errorbar(x[clear], y[clear], se[clear], **{"linestyle": "-", "linewidth": 0.8, **look})
    hidden = ~clear & (se > 0)
    if hidden.any():
        bare = {k: v for k, v in look.items() if k not in ("label", "linestyle")} | {"marker": "_"}
        upper = upper_end(y, se)[hidden]
        ax.errorbar(x[hidden], upper, 0.4 * upper, uplims=True, linestyle="none", **bare)


def docstring(module: Any) -> str:
    """What a module says of itself, from its source: `python -OO` drops it from the module."""
    return ast.get_docstring(ast.parse(inspect.getsource(module)), clean=False) or ""


def provenance(ds: xr.Dataset) -> dict[str, Any]:
    """Attributes for numbers drawn from a result, which are no longer one in the sense of `dmft.schema`."""
    return {name: value for name, value in ds.attrs.items() if name not in ("schema", "kind", "analysis")}


def save(figure: Figure, drawn: xr.Dataset, out: str | Path) -> list[Path]:
    """Write the figure as PNG and PDF and the numbers it shows as NetCDF, to `out` with these suffixes."""
    stem = local(out, "out")
    stem = stem.with_suffix("") if stem.suffix in (".png", ".pdf", ".nc") else stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf", ".nc")]
    figure.savefig(paths[0])
    # no date in the file: the same numbers give the same bytes
    figure.savefig(paths[1], metadata={"CreationDate": None})
    dmft.save(drawn, paths[2])
    return paths
