"""The run behind the figures of losses, representations and spectra: the limit and networks, with their kernels.

The problem of `figures.example`: threes against eights of MNIST, 30 training and 30 test images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import xarray as xr

import dmft
import finite_nets
from figures import example

WIDTHS = (32, 64, 128, 256, 512)
SEEDS = 64
OBSERVABLES = ("prediction", "loss", "feature_kernel", "ntk")


def make(*, seeds: int = SEEDS, **numerics: Any) -> tuple[xr.Dataset, xr.Dataset]:
    """Theory and networks; further arguments of `dmft.solve`."""
    described = example.problem()
    recorded: dict[str, Any] = {"save_steps": example.STEPS, "observables": OBSERVABLES}
    theory = dmft.solve(described, **recorded, **numerics)
    return theory, finite_nets.train_ensemble(described, widths=WIDTHS, seeds=seeds, **recorded)


@functools.cache
def wide() -> tuple[xr.Dataset, xr.Dataset]:
    """Theory and networks, made once for all figures."""
    return make()


def gathered(*parts: tuple[xr.Dataset, Sequence[str]], attrs: dict[str, Any]) -> xr.Dataset:
    """One Dataset of the named variables of several, those that are there."""
    found = [ds[[name for name in names if name in ds]].drop_attrs() for ds, names in parts]
    return xr.merge(found, join="exact", compat="no_conflicts", combine_attrs="drop").assign_attrs(attrs)
