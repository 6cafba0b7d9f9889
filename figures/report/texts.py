"""Numbers with their errors, and settings, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from comparisons.estimators import upper_end
from dmft.text import at_most, with_error


def number(value: float, se: float) -> str:
    """With two digits of its error."""
    if not np.isfinite(value):
        return "-" if np.isnan(value) else "∞"
    return with_error(value, se).replace("+-", "±") if se > 0 else f"{value:.4g}"


def size(value: float, se: float) -> str:
    """Of what may not be negative: an upper end where the error is larger."""
    return at_most(upper_end(value, se)) if 0 < se >= value else number(value, se)


def estimate(ds: xr.Dataset, name: str, *, positive: bool = False) -> str:
    if name not in ds:
        return ""
    shown = size if positive else number
    return shown(ds[name].item(), ds[f"{name}_se"].item())


def scalar(ds: xr.Dataset, name: str) -> str:
    if name not in ds or not np.isfinite(ds[name].item()):
        return "not resolved"
    return number(ds[name].item(), ds[f"{name}_se"].item())


def best(ds: xr.Dataset, name: str) -> str:
    """At the width with the smallest error."""
    if name not in ds:
        return ""
    se = ds[f"{name}_se"].values
    if not np.isfinite(se).any():
        return "not resolved"
    i = int(np.nanargmin(se))
    return f"{number(ds[name].values[i], se[i])} (N = {ds['width'].values[i]})"


def flat(value: Any) -> str:
    """As text; empty entries are left out."""
    if isinstance(value, Mapping):
        entries = {k: v for k, v in value.items() if v not in (None, "", [], {})}
        return ", ".join(
            f"{k}: ({flat(v)})" if isinstance(v, Mapping) else f"{k}: {flat(v)}" for k, v in entries.items()
        )
    if isinstance(value, list) and len(value) > 12:
        return f"{value[0]}, ... ({len(value)} values)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
