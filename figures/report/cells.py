"""Estimates as the text of a cell: with two digits of their errors, or an upper end."""

from __future__ import annotations

import numpy as np
import xarray as xr

from comparisons.estimators import upper_end
from dmft.text import at_most, with_error


def number(value: float, se: float) -> str:
    """A value with two digits of its error."""
    if not np.isfinite(value):
        return "-" if np.isnan(value) else "∞"
    return with_error(value, se).replace("+-", "±") if se > 0 else f"{value:.4g}"


def size(value: float, se: float) -> str:
    """What may not be negative: an upper end where the error is larger."""
    return at_most(upper_end(value, se)) if 0 < se >= value else number(value, se)


def estimate(ds: xr.Dataset, name: str, *, positive: bool = False) -> str:
    """A variable without dimensions; empty where it is not there."""
    if name not in ds:
        return ""
    shown = size if positive else number
    return shown(ds[name].item(), ds[f"{name}_se"].item())


def resolved(ds: xr.Dataset, name: str) -> str:
    """A variable without dimensions, or that it is not resolved."""
    return estimate(ds, name) if name in ds and np.isfinite(ds[name].item()) else "not resolved"


def best(ds: xr.Dataset, name: str) -> str:
    """A variable over widths, at the width with the smallest error."""
    if name not in ds:
        return ""
    se = ds[f"{name}_se"].values
    if not np.isfinite(se).any():
        return "not resolved"
    i = int(np.nanargmin(se))
    return f"{number(ds[name].values[i], se[i])} (N = {ds['width'].values[i]})"
