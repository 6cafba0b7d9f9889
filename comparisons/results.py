"""The form of every analysis: a Dataset that says what it was made of.

Variables have the names and dimensions that the analysis documents; an estimate `<name>` has its standard error
`<name>_se`.  What is not determined is nan.  attrs: analysis, problem (JSON), problem_id, version, created, and the
settings of the analysis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dmft import schema
from dmft.schema.labels import labelled

Variables = dict[str, tuple[tuple[str, ...], Any]]


def dataset(
    analysis: str, variables: Variables, coords: Mapping[str, Any], *sources: xr.Dataset, **attrs: Any
) -> xr.Dataset:
    """The Dataset of an analysis of `sources`, whose coordinates it takes over where their dimensions are used.

    Args:
        variables: dimensions and values by name.
        coords: labels of further dimensions.
        sources: results of one problem; the first lends its attributes, and a limit says whose it is.
        attrs: settings.
    """
    used = {dim for dims, _ in variables.values() for dim in dims}
    ds = xr.Dataset(variables)
    for source in sources:
        found = {name: c for name, c in source.coords.items() if set(c.dims) <= used and name not in ds.coords}
        ds = ds.assign_coords({name: c.variable for name, c in found.items() if _fits(c, ds)})
    ds = ds.assign_coords(dict(coords))
    shared = ("problem", "problem_id", "version")
    ds.attrs = {name: sources[0].attrs[name] for name in shared} | {
        "analysis": analysis,
        "created": max(source.attrs["created"] for source in sources),
        **attrs,
    }
    for source in sources:
        ds.attrs |= schema.theory_attrs(source)
    return labelled(ds)


def pair(name: str, dims: tuple[str, ...], value: tuple[Any, Any]) -> Variables:
    """An estimate and its standard error as variables."""
    return {name: (dims, np.asarray(value[0])), f"{name}_se": (dims, np.asarray(value[1]))}


def stacked(estimates: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Estimates with errors, one for each width, as arrays with the width first."""
    values, errors = zip(*estimates, strict=True)
    return np.stack(values), np.stack(errors)


def _fits(coord: xr.DataArray, ds: xr.Dataset) -> bool:
    return all(coord.sizes[dim] == ds.sizes[dim] for dim in coord.dims)
