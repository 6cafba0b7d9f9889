"""Whether a Dataset is a result in the form of its kind, and whether results belong together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft.errors import SchemaError
from dmft.schema import identity
from dmft.schema.kinds import KINDS, UNRESOLVED, dims
from dmft.schema.registry import quantities
from dmft.specs.problem import identity_of

SCHEMA = 1
PLAIN = ("variance", "covariance")  # of statistics: over seeds, not times N
LABELS = 6  # that a message shows
ATTRIBUTES = "result_attrs"  # coordinate of `dmft.stack`: the attributes of each result, as JSON
REQUIRED_ATTRS = ("problem", "problem_id", "producer", "version", "dtype", "device", "seed", "result", "created")


def check(ds: xr.Dataset) -> xr.Dataset:
    """What `dmft.save` writes and `dmft.load` reads.  Results, each of its kind, and stacks of them are checked;
    Datasets without a schema (analyses, the numbers of a figure) are taken as they are.

    Raises:
        SchemaError: naming the first difference.
    """
    if ATTRIBUTES in ds.coords and ds[ATTRIBUTES].ndim == 1:
        (dim,) = ds[ATTRIBUTES].dims
        for i in range(ds.sizes[dim]):
            check(ds.isel({dim: i}))
        return ds
    ds = restored(ds)
    if "schema" not in ds.attrs:
        return ds
    kind = ds.attrs.get("kind")
    if kind == "statistics":  # of the first versions
        old = {
            f"{q}_{name}{end}": f"{q}_seed_{name}{end}" for q in quantities() for name in PLAIN for end in ("", "_se")
        }
        ds = ds.rename_vars({before: now for before, now in old.items() if before in ds})
    if kind not in KINDS:
        raise SchemaError(f"the Dataset is of kind {kind!r}, which is none of {', '.join(KINDS)}.")
    return validate(ds, kind)


def restored(ds: xr.Dataset) -> xr.Dataset:
    """A result that was selected from a stack (`dmft.stack`), with its own attributes; any other Dataset as it is."""
    if ATTRIBUTES not in ds.coords:
        return ds
    if ds[ATTRIBUTES].ndim:
        (dim,) = ds[ATTRIBUTES].dims
        raise SchemaError(f"this is a stack of results over {dim}; select one, e.g. .sel({dim}={ds[dim].values[0]}).")
    attrs = json.loads(ds[ATTRIBUTES].item())
    ds = ds.drop_vars([ATTRIBUTES, "problem_id"])
    ds.attrs = attrs
    return ds


def validate(ds: xr.Dataset, kind: str) -> xr.Dataset:
    """`ds`, if it is a result of this kind in this schema; one that was selected from a stack has its attributes back.

    Raises:
        SchemaError: naming the first difference.
    """
    if not isinstance(ds, xr.Dataset):
        raise SchemaError(f"expected an xarray Dataset with a result of kind {kind!r}, got {type(ds).__name__}.")
    ds = restored(ds)
    if ds.attrs.get("schema") != SCHEMA:
        raise SchemaError(f"the Dataset has schema {ds.attrs.get('schema')}; this version reads schema {SCHEMA}.")
    if ds.attrs.get("kind") != kind:
        raise SchemaError(
            f"the Dataset is of kind {ds.attrs.get('kind')!r}; expected {kind!r}, from {KINDS[kind].maker}."
        )
    missing = [name for name in REQUIRED_ATTRS if name not in ds.attrs]
    if missing:
        raise SchemaError(f"the Dataset lacks the attributes {missing}.")
    _require_own_problem(ds)
    if not ds.data_vars:
        raise SchemaError("the Dataset holds no variables.")
    _require_widths(ds)
    empty, indexes = _empty(ds, kind), ds.indexes
    for name in ds.data_vars:
        variable = ds.variables[name]
        if KINDS[kind].errors and not str(name).endswith("_se") and f"{name}_se" not in ds.variables:
            raise SchemaError(f"variable {name!r} has no standard error {name}_se, as a result of kind {kind!r} must.")
        expected = dims(kind, str(name), outputs="output" in ds.dims)
        if variable.dims != expected:
            lost = [dim for dim in expected if dim not in variable.dims]
            way_out = f" Select with a list, {lost[0]}=[...], which keeps the dimension." if lost else ""
            raise SchemaError(f"variable {name!r} has dimensions {variable.dims}; expected {expected}.{way_out}")
        for dim in expected:
            if dim not in indexes:
                raise SchemaError(f"dimension {dim!r} of {name!r} has no coordinate labels.")
            index = indexes[dim]
            if not index.is_unique:
                twice = index[index.duplicated()].unique().tolist()
                raise SchemaError(
                    f"the labels {dim}={twice[0]}{' and others' * (len(twice) > 1)} are there twice. Where Datasets "
                    "were joined that hold the same entries, leave one out; where they do not, give each labels of its "
                    f"own, by .assign_coords({dim}=[...])."
                )
        if variable.dtype.kind not in "biuf":
            raise SchemaError(
                f"variable {name!r} is of {variable.dtype}; expected numbers: convert it, .astype(float)."
            )
        if not str(name).endswith(UNRESOLVED):
            _require_finite(ds, str(name), empty)
    for coord, dim in (("time", "step"), ("split", "sample"), ("target", "sample")):
        if dim in ds.dims and (coord not in ds.coords or ds[coord].dims[:1] != (dim,)):
            raise SchemaError(f"coordinate {coord!r} on {dim!r} is missing.")
    identity.require_own_entries(kind, ds)
    return ds


def _require_widths(ds: xr.Dataset) -> None:
    """SchemaError unless widths, where there are any, are whole numbers above zero."""
    for width in np.ravel(ds["width"].values) if "width" in ds.coords else ():
        number = isinstance(width, int | float | np.integer | np.floating) and not isinstance(width, bool)
        if not (number and 0 < width < np.inf and width == np.floor(width)):
            raise SchemaError(f"width={width!s} is no width; expected whole numbers of neurons, above zero.")


def _require_finite(ds: xr.Dataset, name: str, empty: NDArray[np.bool_]) -> None:
    """SchemaError that names the first entry that is nan or infinite, but where there is nothing."""
    values = ds.variables[name].values
    if np.isfinite(values[~empty] if empty.any() else values).all():
        return
    bad = ~np.isfinite(values) & ~empty.reshape(empty.shape + (1,) * (values.ndim - empty.ndim))
    first = zip(ds.variables[name].dims, np.argwhere(bad)[0], strict=True)
    at = ", ".join(f"{dim}={ds.indexes[dim][i]}" for dim, i in first)
    raise SchemaError(
        f"variable {name!r} holds non-finite numbers{at and f', first at {at}'}; leave such entries out, or compute "
        "them once more."
    )


def _require_own_problem(ds: xr.Dataset) -> None:
    """SchemaError unless the attribute problem is the description that problem_id is the digest of."""
    try:
        found = identity_of(ds.attrs["problem"])
    except (ValueError, TypeError) as error:
        raise SchemaError(f"the attribute 'problem' is not that of a result: {error}") from error
    if found != ds.attrs["problem_id"]:
        raise SchemaError(
            f"the attributes were changed: 'problem' describes {found}, and problem_id is {ds.attrs['problem_id']}. "
            "Take the result as it was made; another problem has other results."
        )


def _empty(ds: xr.Dataset, kind: str) -> NDArray[np.bool_]:
    """(width, seed) or (width, block): where there is nothing, and numbers are nan; () for others."""
    if kind == "ensemble" and "diverged" in ds:
        return np.asarray(ds["diverged"].values, bool)
    if kind == "moments":
        if not {"count", "diverged"} <= set(ds.data_vars):
            raise SchemaError("a result of kind 'moments' must hold count and diverged.")
        return np.asarray(ds["count"].values == 0)
    return np.zeros((), bool)


def require_same_problem(**results: xr.Dataset) -> None:
    """ValueError that names the differences, unless all results, given by what they are, belong to one problem."""
    (first, ours), *others = results.items()
    for second, theirs in others:
        if ours.attrs["problem_id"] != theirs.attrs["problem_id"]:
            left, right = (dict(_leaves(json.loads(ds.attrs["problem"]))) for ds in (ours, theirs))
            differences = [
                f"{path}: {left.get(path)} in the {first}, {right.get(path)} in the {second}"
                for path in dict.fromkeys([*left, *right])
                if left.get(path) != right.get(path)
            ]
            raise ValueError(f"{first} and {second} are of different problems; " + "; ".join(differences))


def theory_attrs(source: xr.Dataset) -> dict[str, Any]:
    """What a result says of the limit that it rests on, given that limit or what rests on it: who made it, and whether
    it is that of lazy networks."""
    prefix = "" if source.attrs.get("kind") == "limit" else "theory_"
    names = ("producer", "regime")
    return {f"theory_{n}": source.attrs[f"{prefix}{n}"] for n in names if f"{prefix}{n}" in source.attrs}


def require_same_labels(**results: xr.Dataset) -> None:
    """Compare the labels of two results, given by what they are, along what both have but width, seed and block.

    Raises:
        ValueError: other steps.  SchemaError: other labels of another dimension.
    """
    (first, ours), (second, theirs) = results.items()
    for dim, left in ours.indexes.items():
        right = theirs.indexes.get(dim)
        if right is None or dim in ("width", "seed", "block") or left.equals(right):
            continue
        labels = f"{_few(left)} and {_few(right)}"
        if dim == "step":
            raise ValueError(
                f"{first} has {len(left)} steps and the {second} {len(right)}, not the same: {labels}; select common "
                f"ones first, e.g. {first}.sel(step={second}.step)."
            )
        raise SchemaError(f"{first} and {second} are labelled differently along {dim}: {labels}.")


def _few(labels: Any) -> str:
    """Labels, by their start."""
    shown = ", ".join(str(label) for label in labels[:LABELS])
    return shown + ", ..." * (len(labels) > LABELS)


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
