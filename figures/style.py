"""One look for all figures: colours that survive colour blindness and grey print, guides, saving with the numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

import dmft
from comparisons.estimators import upper_end
from dmft.running.paths import local

STYLE = Path(__file__).parent / "figures.mplstyle"
WIDE = 7.1  # inches: two columns of a journal
LIMIT: dict[str, Any] = {"color": "black", "linewidth": 1.6, "zorder": 5}
INFINITE = r"$N=\infty$ (theory)"  # the name of its lines everywhere
MOST_TICKS = 8  # of widths on an axis

# Okabe & Ito (2008), with a marker and a line style each, so that colour carries nothing alone
SERIES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o"},
    {"color": "#D55E00", "marker": "s"},
    {"color": "#009E73", "marker": "^"},
    {"color": "#CC79A7", "marker": "D"},
    {"color": "#E69F00", "marker": "v"},
    {"color": "#56B4E9", "marker": "P"},
)


class Picture(Figure):
    """A figure that pyplot does not know: it shows as the value of a cell of a notebook, `show` opens a window for it.

    A figure of pyplot would become the current one, into which the caller's next `plt.plot` goes; it would stay open
    until it is closed, show twice in a notebook, and load the backend inside the style that is undone afterwards, so
    that later plots of the caller do not show at all.
    """

    def _repr_png_(self) -> bytes:
        """What a notebook shows, whether the inline backend has been loaded or not."""
        picture = io.BytesIO()
        self.savefig(picture, format="png", bbox_inches="tight")
        return picture.getvalue()

    def show(self, warn: bool = True) -> None:
        """Hand the figure to pyplot and show it as `plt.show()` does: a script waits until its window is closed."""
        del warn  # whether there are windows at all: pyplot says so itself
        import matplotlib.pyplot as plt

        plt.figure(FigureClass=lambda **_: self)  # type: ignore[arg-type]  # any maker of a figure
        plt.show()


def panels(
    draw: Callable[[xr.Dataset, Any], None],
    ds: xr.Dataset,
    shape: tuple[int, int],
    size: tuple[float, float],
    **shared: Any,
) -> Picture:
    """A figure of `shape` (rows, columns) panels, on whose axes `draw` draws `ds`; `shared`: of `Figure.subplots`."""
    with matplotlib.style.context(STYLE):
        figure = Picture(figsize=size)
        draw(ds, np.atleast_1d(figure.subplots(*shape, **shared)))
    return figure


def width_colors(widths: Sequence[int]) -> dict[int, Any]:
    """A colour for each width, light for narrow and dark for wide."""
    colormap: Colormap = matplotlib.colormaps["viridis_r"]
    return dict(zip(widths, colormap(np.linspace(0.12, 0.95, len(widths))), strict=True))


def once(ax: Axes, label: str | None) -> str | None:
    """A label for the legend, or None where the axes have it already."""
    return None if label in ax.get_legend_handles_labels()[1] else label


def guide(ax: Axes, x: NDArray[Any], through: tuple[float, float], slope: float, label: str) -> None:
    """A dotted power law of the given slope through a point, named in the legend."""
    ends = np.asarray([min(x), max(x)], float)
    y = through[1] * (ends / through[0]) ** slope
    ax.plot(ends, y, color="0.45", linestyle=":", linewidth=1.0, zorder=0, label=once(ax, label))


def above(ax: Axes, x: NDArray[Any], y: NDArray[Any], se: NDArray[Any], slope: float, label: str) -> None:
    """A guide just above the resolved points of a series (x,), so that none lies on it."""
    x, clear = np.asarray(x, float), y > se
    if clear.any():
        highest = float(np.max((y + se)[clear] / x[clear] ** slope))
        guide(ax, x, (1.0, 1.25 * highest), slope, label)


def in_brackets(value: float, error: float) -> str:
    """A number with its error in units of its last digit, -1.003(9), as TeX."""
    if not (np.isfinite(error) and error > 0):
        return f"{value:.3g}"
    decimals = max(-int(np.floor(np.log10(error))), 0)
    digits = round(error * 10**decimals)
    if digits == 10:  # .0096 is one in the digit before
        decimals, digits = (decimals - 1, 1) if decimals else (0, 10)
    return f"{value:.{decimals}f}({digits})"


def width_axis(ax: Axes, width: NDArray[Any]) -> None:
    """A logarithmic axis of widths, with those that were measured as ticks."""
    ax.set_xscale("log", base=2)
    shown = width if len(width) <= MOST_TICKS else width[:: -(-len(width) // MOST_TICKS)]
    ax.set_xticks(shown, [str(w) for w in shown])
    if len(shown) > 5:
        ax.tick_params(axis="x", labelsize=6.5)
    ax.minorticks_off()
    ax.set_xlabel("width $N$")
    ax.set_xlim(width[0] / 1.3, width[-1] * 1.3)


def room(ax: Axes, *, top: float = 0.0, bottom: float = 0.0) -> None:
    """Free space for a legend: shares of the height of what is drawn, added above and below it."""
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log":
        factor = high / low
        ax.set_ylim(low / factor**bottom, high * factor**top)
    else:
        ax.set_ylim(low - bottom * (high - low), high + top * (high - low))


def errors(
    ax: Axes, x: NDArray[Any], y: NDArray[Any], se: NDArray[Any], *, label: str | None = "", **look: Any
) -> None:
    """A band of one standard error on either side, named in the legend unless `label` is None."""
    named = once(ax, label or r"band: $\pm$ standard error") if label is not None else None
    ax.fill_between(x, y - se, y + se, **{"color": "black", "alpha": 0.2, "linewidth": 0, "label": named, **look})


def band(ax: Axes, x: NDArray[Any], y: NDArray[Any], se: NDArray[Any], **look: Any) -> None:
    """A line with its standard error as a band of its colour."""
    (line,) = ax.plot(x, y, **look)
    errors(ax, x, y, se, color=line.get_color(), label=None)


def by_width(ax: Axes, x: NDArray[Any], ds: xr.Dataset, name: str, limit: str) -> None:
    """Curves `name` (width, ...) of networks with their errors, and the curve `limit` of the theory if it is there."""
    for width, color in width_colors(ds["width"].values.tolist()).items():
        row = ds.sel(width=width)
        band(ax, x, row[name].values, row[f"{name}_se"].values, color=color, label=f"$N={width}$")
    if limit in ds:
        ax.plot(x, ds[limit].values, label=INFINITE, **LIMIT)


def points_by_width(ax: Axes, x: NDArray[Any], ds: xr.Dataset, name: str) -> None:
    """Points `name` (width, ...) with their errors where they belong: narrow widths as large open marks around the
    small ones of wide widths, so that equal values are seen to be equal."""
    colors = width_colors(ds["width"].values.tolist())
    for i, (width, color) in enumerate(colors.items()):
        row = ds.sel(width=width)
        look: dict[str, Any] = {
            "markersize": 6.5 - 4.0 * i / max(len(colors) - 1, 1),
            "markeredgewidth": 0.9,
            "elinewidth": 0.8,
        }
        face = color if i == len(colors) - 1 else "none"
        ax.errorbar(
            x,
            row[name].values,
            row[f"{name}_se"].values,
            color=color,
            marker="o",
            markerfacecolor=face,
            linestyle="none",
            label=f"$N={width}$",
            zorder=6 + i,
            **look,
        )


def resolved(ax: Axes, x: NDArray[Any], y: NDArray[Any], se: NDArray[Any], **look: Any) -> None:
    """Points with error bars on a logarithmic axis; of a value below its error an arrow down, from two errors above,
    which the legend explains."""
    clear = y > se
    ax.errorbar(x[clear], y[clear], se[clear], **{"linestyle": "-", "linewidth": 0.8, **look})
    hidden = ~clear & (se > 0)
    if hidden.any():
        bare = {k: v for k, v in look.items() if k not in ("label", "linestyle")} | {"marker": "_"}
        upper = upper_end(y, se)[hidden]
        ax.errorbar(x[hidden], upper, 0.4 * upper, uplims=True, linestyle="none", **bare)
        arrow: dict[str, Any] = {"color": "0.3", "marker": r"$\downarrow$", "markersize": 7, "linestyle": "none"}
        ax.plot([], [], label=once(ax, "below (two errors)"), **arrow)


def legend(ax: Axes, **look: Any) -> None:
    """The legend, what was measured first and guides after it; arguments of `Axes.legend`."""
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: isinstance(handles[i], Line2D))
    ax.legend([handles[i] for i in order], [labels[i] for i in order], **look)


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
