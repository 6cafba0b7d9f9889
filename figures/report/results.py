"""Results of one problem: what was given, what follows from it, and why some of that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

import comparisons
from dmft import schema
from dmft.schema.sources import SOURCES, kind_of, source_of

Results = dict[str, xr.Dataset]
ONCE = ("theory", "networks", "fluctuations")  # of which a report has one


def given(tree: Any) -> Results:
    """Datasets by name, from narrow to wide, of the argument `tree` of `report`, with its errors."""
    if isinstance(tree, xr.DataTree):
        nodes = {node.path.strip("/") or node.name or "result": node.to_dataset() for node in tree.subtree}
        tree = {name: ds for name, ds in nodes.items() if ds.data_vars}
    if not isinstance(tree, Mapping) or not all(isinstance(ds, xr.Dataset) for ds in tree.values()):
        raise TypeError(f"report expects Datasets by name, or a DataTree of them, got {type(tree).__name__}.")
    single = {str(name): schema.restored(ds) for name, ds in tree.items()}
    results = {name: ds.sortby("width") if "width" in ds.dims else ds for name, ds in single.items()}
    for name, ds in results.items():
        if "problem_id" not in ds.attrs:
            raise ValueError(
                f"{name!r} does not say which problem it is of; give results of dmft, finite_nets or comparisons."
            )
        if "schema" in ds.attrs:
            schema.validate(ds, ds.attrs["kind"])
    if results:
        schema.require_same_problem(**results)
    for source in ONCE:
        several = [name for name, ds in results.items() if source_of(ds) == source]
        if len(several) > 1:
            raise ValueError(
                f"{' and '.join(several)} are all of kind {' or '.join(SOURCES[source].kinds)}; a report is of one of "
                "them."
            )
    return results


def of_kind(results: Results, kind: str) -> xr.Dataset | None:
    """The first result of this kind, if there is any."""
    return next((ds for ds in results.values() if kind_of(ds) == kind), None)


def source(results: Results, name: str) -> xr.Dataset | None:
    """The result with this name in `SOURCES`, if there is any."""
    return next((ds for ds in results.values() if source_of(ds) == name), None)


def completed(results: Results) -> tuple[Results, list[str]]:
    """With what follows from a limit and networks; and why some of it does not."""
    found, reasons = dict(results), list[str]()
    theory, nets, fluctuations = (source(results, name) for name in ONCE)
    if theory is None or nets is None:
        return found, reasons
    make: dict[str, Callable[[], xr.Dataset]] = {
        "comparison": lambda: comparisons.compare(theory, nets, fluctuations),
        "bias_variance": lambda: comparisons.bias_variance(theory, nets, fluctuations, ensembles=_ensembles(nets)),
        "pointwise": lambda: comparisons.pointwise(theory, nets),
        "representations": lambda: comparisons.representations(theory, nets),
        "spectra": lambda: comparisons.spectra(theory, nets),
        "after_kernel": lambda: comparisons.after_kernel(theory, nets),
    }
    for kind, making in make.items():
        if of_kind(results, kind) is not None:
            continue
        try:
            found[kind] = making()
        except ValueError as error:
            reasons.append(f"{kind}: {error}")
    return found, reasons


def _ensembles(nets: xr.Dataset) -> list[int]:
    """Powers of two, of which there are eight groups or more in an ensemble."""
    networks = nets.sizes["seed"] if "seed" in nets.dims else int(nets["count"].sum("block").min())
    return [1 << i for i in range(max(networks // 8, 1).bit_length())][:6]
