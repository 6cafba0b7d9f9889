"""Coordinate check of a convolutional network and of a transformer, in mean-field and in NTK parameterization.

As `figures.coordinate_check`, a column for each architecture and parameterization: above, root mean squares of
activations and of the output after a few steps; below, of their change, which has a limit (lines) in mean-field
parameterization and falls as N^-1/2 in the other.  Features of the transformer are its residual stream, before each of
two blocks of causal attention, whose heads of eight neurons grow in number, and after them.
Two digits each of zeros and ones, whose rows are 8 positions of 8 channels.  About three minutes on two cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dmft
from figures import convolution, coordinate_check, style
from figures.needs import Needs

SIZE = (style.WIDE, 4.6)
STEPS = 4
WIDTHS = (64, 128, 256, 512)
SEEDS = 6
PARTICLES = 2048
PARAMETERIZATIONS = ("mean_field", "ntk")
NETWORKS = {
    "CNN": dmft.CNN(depth=2, kernel_size=3, gamma0=1.0, centered=False),
    "transformer": dmft.Transformer(blocks=2, head_dim=8, causal=True, gamma0=1.0, centered=False),
}
LETTERS = {"CNN": "abef", "transformer": "cdgh"}
RATES = {"CNN": 1.0, "transformer": 0.5}
NEEDS = Needs(
    "coordinate_check_of_architectures",
    "coordinate_check_of_architectures",
    "figures.coordinate_check_of_architectures.data(None)",
    ("size", "change", "size_limit", "change_limit", "diverged"),
)


def data(store: Path | None) -> xr.Dataset:
    """The sizes of `figures.coordinate_check.make` with a dimension network, of a folder of results (`figures.needs`);
    without one, networks are trained."""
    if store is not None:
        return NEEDS.stored(store)
    task = convolution.problem().task
    each = [
        coordinate_check.make(
            dmft.Problem(network, task, dmft.GradientDescent(RATES[name], STEPS)),
            widths=WIDTHS,
            parameterizations=PARAMETERIZATIONS,
            seeds=SEEDS,
            particles=PARTICLES,
            tolerance=convolution.TOLERANCE,
        )
        for name, network in NETWORKS.items()
    ]
    found = xr.concat(each, "network", join="outer").assign_coords(network=list(NETWORKS))
    # a network whose layers are fewer has nothing in the others; the output comes last
    found = found.sel(field=[*(name for name in found["field"].values if name != "output"), "output"])
    found.attrs = {"seeds": SEEDS, "steps": STEPS} | {
        f"{name}_{key}": value for name, ds in zip(NETWORKS, each, strict=True) for key, value in ds.attrs.items()
    }
    return found


def drawn(*results: xr.Dataset) -> xr.Dataset:
    """All of it."""
    return NEEDS.take(*results)


def figure(*results: xr.Dataset) -> Figure:
    """The whole figure, of what `data` returns."""
    ds = drawn(*results)
    columns = ds.sizes["network"] * ds.sizes["parameterization"]
    shape = (len(coordinate_check.QUANTITIES), columns)
    return style.panels(draw, ds, shape, SIZE, sharey="row", sharex=True)


def draw(ds: xr.Dataset, axes: NDArray[Any]) -> None:
    """A row for sizes and one for changes; columns for each network in each parameterization."""
    columns = ds.sizes["parameterization"]
    for i, name in enumerate(ds["network"].values.tolist()):
        of_one = ds.sel(network=name)
        of_one = of_one.sel(field=of_one["size_limit"].notnull())
        part = axes[:, columns * i : columns * (i + 1)]
        coordinate_check.draw(of_one, part, letters=LETTERS[name], network=f"{name}\n")
    for ax in axes.flat:
        ax.label_outer()
