"""What a report is given, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from comparisons.bias_variance import bias_variance
from comparisons.compare import compare
from comparisons.representations import representations
from comparisons.spectra import after_kernel, spectra
from comparisons.widths import pointwise
from dmft import schema

SOURCES = (("limit",), ("ensemble", "moments"), ("fluctuations",))  # kinds of which a report has one result
Results = dict[str, xr.Dataset]


def checked(tree: Any) -> Results:
    if isinstance(tree, xr.DataTree):
        nodes = {node.path.strip("/") or node.name or "result": node.to_dataset() for node in tree.subtree}
        tree = {name: ds for name, ds in nodes.items() if ds.data_vars}
    if not isinstance(tree, Mapping) or not all(isinstance(ds, xr.Dataset) for ds in tree.values()):
        raise TypeError(f"report expects Datasets by name, or a DataTree of them, got {type(tree).__name__}.")
    single = {str(name): schema.restored(ds) for name, ds in tree.items()}
    # tables and figures go from narrow to wide
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
    for kinds in SOURCES:
        several = [name for name, ds in results.items() if kind_of(ds) in kinds]
        if len(several) > 1:
            raise ValueError(
                f"{' and '.join(several)} are all of kind {' or '.join(kinds)}; a report is of one of them."
            )
    return results


def kind_of(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("analysis", ds.attrs.get("kind", "")))


def first(results: Results, *kinds: str) -> xr.Dataset | None:
    """The first result of one of these kinds, if there is any."""
    return next((ds for ds in results.values() if kind_of(ds) in kinds), None)


def completed(given: Results) -> tuple[Results, list[str]]:
    """With what follows from a limit and networks; and why some of it does not."""
    found, reasons = dict(given), list[str]()
    theory, nets, fluctuations = (first(given, *kinds) for kinds in SOURCES)
    if theory is None or nets is None:
        return found, reasons
    make: dict[str, Callable[[], xr.Dataset]] = {
        "comparison": lambda: compare(theory, nets, fluctuations),
        "bias_variance": lambda: bias_variance(nets, theory, fluctuations, ensembles=_ensembles(nets)),
        "pointwise": lambda: pointwise(nets, theory),
        "representations": lambda: representations(theory, nets),
        "spectra": lambda: spectra(theory, nets),
        "after_kernel": lambda: after_kernel(theory, nets),
    }
    for kind, making in make.items():
        if first(given, kind) is not None:
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
