"""Runs behind the figures of fluctuations: real images, networks of several widths, the limit and its fluctuations.

Threes against eights of MNIST, four training images, twelve steps: few samples, so that thousands of networks of each
width fit two cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import comparisons
import dmft
import finite_nets
from figures import style
from figures.needs import Needs

STEPS = 12
RATE = 0.6
WIDTHS = (32, 64, 128, 256)
SEEDS = 16000


def problem(gamma0: float = 1.0, depth: int = 2, activation: dmft.Activation | None = None) -> dmft.Problem:
    """The problem of these figures."""
    task = dmft.load_task("mnist5k", classes=(3, 8), n_train=4, n_test=0)
    network = dmft.MLP(depth, activation or dmft.tanh(), gamma0)
    return dmft.Problem(network, task, dmft.GradientDescent(RATE, STEPS))


def compared(
    described: dmft.Problem, *, widths: Sequence[int], seeds: int, observables: Sequence[str] | None = None
) -> xr.Dataset:
    """The comparison of theory, its fluctuations and networks on a problem."""
    theory, predicted, nets = run(described, widths=widths, seeds=seeds, observables=observables)
    return comparisons.compare(theory, nets, predicted)


def run(
    described: dmft.Problem, *, widths: Sequence[int], seeds: int, observables: Sequence[str] | None = None
) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Theory, its fluctuations and networks of a problem."""
    theory = dmft.solve(described, particles=8192)
    predicted = dmft.fluctuations(described, observables=observables, draws=512)
    nets = finite_nets.train_ensemble(described, widths=widths, seeds=seeds, observables=observables)
    return theory, predicted, nets


@functools.cache
def runs() -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Theory, its fluctuations and networks, made once for all figures."""
    return run(problem(), widths=WIDTHS, seeds=SEEDS)


@functools.cache
def made() -> xr.Dataset:
    """The comparison of these."""
    theory, predicted, nets = runs()
    return comparisons.compare(theory, nets, predicted)


def needs(figure: str, variables: Sequence[str] = (), one_of: Sequence[str] = ()) -> Needs:
    """What a figure of a comparison with fluctuations needs."""
    return Needs(
        figure,
        "comparison",
        "comparisons.compare(theory, nets, fluctuations)",
        tuple(variables),
        tuple(one_of),
        comparisons.compare,
        ("theory", "networks", "fluctuations"),
    )


def predicted(panels: Iterable[str], kind: str) -> list[str]:
    """The variables of a comparison that panels, called as in `held`, show as predicted."""
    return [f"{name}_{kind}_limit" for name in dict.fromkeys(name for name, _ in _split(panels).values())]


def _split(panels: Iterable[str]) -> dict[str, tuple[str, int | None]]:
    """Quantity and layer."""
    return {panel: (panel[:-2], int(panel[-1])) if panel[-1].isdigit() else (panel, None) for panel in panels}


def held(comparison: xr.Dataset, panels: Iterable[str], kind: str) -> dict[str, tuple[str, int | None]]:
    """Of panels called like `prediction` or `feature_kernel_2`, quantity and layer of those that the comparison has
    predicted values for, of a kind "variance" or "bias".

    Raises:
        ValueError: of none.
    """
    split = _split(panels)
    found = {
        panel: (name, layer)
        for panel, (name, layer) in split.items()
        if f"{name}_{kind}_limit" in comparison and (layer is None or layer in comparison["layer"].values)
    }
    if not found:
        raise ValueError(f"the comparison has no predicted {kind} of {', '.join(split)}; give it fluctuations of one.")
    return found


def shown(ds: xr.Dataset, panels: Iterable[str]) -> list[str]:
    """Panels that there is something to draw in."""
    return [panel for panel in panels if panel in ds]


def diagonal(values: xr.DataArray) -> xr.DataArray:
    """Entries between each sample, and output, and itself, of a kernel; anything else as it is."""
    for dim in ("sample", "output"):
        if f"{dim}_2" in values.dims:
            same = xr.DataArray(np.arange(values.sizes[dim]), dims=dim)
            values = values.isel({dim: same, f"{dim}_2": same})
    return values


def per_sample(values: xr.DataArray) -> xr.DataArray:
    """Mean over samples and outputs, of kernels over the diagonal; of standard errors: as if all erred together."""
    values = diagonal(values)
    return values.mean([dim for dim in ("sample", "output") if dim in values.dims])


def in_pairs(draw: Callable[[xr.Dataset, Any], None], ds: xr.Dataset, panels: int) -> Figure:
    """A figure of so many panels through time, two in a row."""
    rows = -(-panels // 2)
    made = style.panels(
        lambda ds, axes: draw(ds, np.ravel(axes)[:panels]), ds, (rows, 2), (style.WIDE, 0.3 + 2.2 * rows)
    )
    for ax in made.axes[panels:]:
        ax.set_axis_off()
    return made


def draw_dynamics(ds: xr.Dataset, name: str, ax: Axes, *, legend: bool) -> None:
    """`<name>` (width, step) of networks as points on `<name>_limit` (step) of the theory, with errors."""
    time = ds["time"].values
    limit, se = ds[f"{name}_limit"].values, ds[f"{name}_limit_se"].values
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    style.errors(ax, time, limit, se)
    ax.plot(time, limit, label=r"theory, $N\to\infty$", **style.LIMIT)
    style.points_by_width(ax, time, ds, name)
    ax.set_xlabel(r"time $\eta t$")
    if legend:
        style.legend(ax)
