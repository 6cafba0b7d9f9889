"""`stack`: results of problems that differ in one thing, as one Dataset.

    problems = dmft.vary(problem, gamma0=[0.5, 1, 2])
    limits = dmft.stack([dmft.solve(p) for p in problems], "gamma0")
    limits.loss.sel(gamma0=1)                          # (step,)
    dmft.distance_from_lazy(limits.sel(gamma0=1), problems[1])

`xarray.concat` would give all of them the attributes of the first.  Here each keeps its own: `problem_id`, and all
attributes as JSON in `result_attrs`, are coordinates along the new dimension, so that what is selected again is that
result, which every function takes and `dmft.save` writes.  Functions of single results refuse the stack itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dmft import schema
from dmft.errors import SchemaError
from dmft.schema.labels import labelled
from dmft.specs.descriptions import SILENT


def stack(results: Sequence[xr.Dataset] | dict[Any, xr.Dataset], dim: str) -> xr.Dataset:
    """Join results along a new dimension.

    Args:
        results: of one kind, with the same variables and labels; a list, labelled by the values of the field `dim` of
            their problems, or a dictionary of results by label.
        dim: its name, for a list a field of network, training or problem: "gamma0", "learning_rate", "loss", ...

    Returns:
        Dataset with the dimension `dim` before the others of every variable, and of coordinates that differ (`time`,
        where learning rates do); coordinates problem_id(dim) and result_attrs(dim); the attributes that all have in
        common.  `.sel({dim: value})` is one of the results again.

    Raises:
        SchemaError: not results of one kind.
        ValueError, TypeError: none; other variables, steps, samples or layers; a field that does not tell the problems
            apart; a name that is taken.

    Example:
        >>> dict(dmft.stack({0.5: theory, 1.0: theory}, "richness")["loss"].sizes)
        {'richness': 2, 'step': 3}
    """
    if not isinstance(results, (list, tuple, dict)) or not results:
        raise TypeError(f"results={type(results).__name__}: give a list of results, or a dictionary of them by label.")
    given = list(results.values() if isinstance(results, dict) else results)
    for i, one in enumerate(given):
        if not isinstance(one, xr.Dataset) or one.attrs.get("kind") not in schema.KINDS:
            raise SchemaError(
                f"results[{i}] is no result: expected a Dataset with a kind, from {schema.KINDS['limit'].maker}."
            )
    kind = given[0].attrs["kind"]
    each = [schema.validate(one, kind) for one in given]
    if dim in each[0].variables or dim in each[0].dims:
        raise ValueError(f"dim={dim!r} is the name of a variable or dimension of the results; choose another one.")
    labels = list(results) if isinstance(results, dict) else [value_of(one, dim) for one in each]
    if len(set(labels)) < len(labels):
        raise ValueError(f"the results have {dim}={labels}, not all different; give a dictionary of results by label.")
    for label, one in zip(labels[1:], each[1:], strict=True):
        _require_alike(each[0], one, f"{dim}={labels[0]}", f"{dim}={label}")
    stacked = xr.concat(
        [one.drop_attrs(deep=False) for one in each],
        xr.DataArray(_as_labels(labels), dims=dim, name=dim),
        data_vars="all",
        coords="different",
        compat="equals",
        join="exact",
        combine_attrs="drop",
    )
    stacked = stacked.assign_coords(
        {
            "problem_id": (dim, [one.attrs["problem_id"] for one in each]),
            schema.ATTRIBUTES: (dim, [_as_json(one.attrs) for one in each]),
        }
    )
    shared = {k: v for k, v in each[0].attrs.items() if all(_same(v, one.attrs.get(k)) for one in each)}
    stacked.attrs = {k: v for k, v in shared.items() if k not in ("problem", "problem_id")}
    stacked[dim].attrs = {"long_name": dim, "units": "1"}
    return labelled(stacked)


def value_of(result: xr.Dataset, name: str) -> Any:
    """The field of the problem of a result: of its network, its training, or its own."""
    problem = json.loads(result.attrs["problem"])
    if name == "task":
        return problem["task"]["sha256"][:12]
    for part in (problem["network"], problem["training"], problem, SILENT):
        if name in part:
            value = part[name]
            return value if isinstance(value, (int, float, str)) else json.dumps(value, sort_keys=True)
    raise ValueError(
        f"dim={name!r} is no field that these problems describe; give a dictionary of results by label, e.g. "
        f"dmft.stack({{0.5: first, 1.0: second}}, {name!r})."
    )


def _require_alike(ours: xr.Dataset, theirs: xr.Dataset, first: str, second: str) -> None:
    other = sorted(map(str, set(ours.data_vars) ^ set(theirs.data_vars)))
    if other:
        raise ValueError(f"of {first} and {second} only one has {', '.join(other)}; stack what all have.")
    for name, labels in ours.indexes.items():
        if not labels.equals(theirs.indexes[name]):
            raise ValueError(
                f"results of {first} and {second} have other labels along {name}, {len(labels)} and "
                f"{len(theirs.indexes[name])} of them; stack what has the same, by .sel({name}=[...]) if need be."
            )


def _as_labels(labels: Sequence[Any]) -> Any:
    numbers = all(isinstance(label, (int, float, np.number)) for label in labels)
    return np.array(labels if numbers else list(map(str, labels)))


def _as_json(attrs: Mapping[Any, Any]) -> str:
    return json.dumps({str(name): np.asarray(value).tolist() for name, value in attrs.items()})


def _same(a: Any, b: Any) -> bool:
    return b is not None and bool(np.array_equal(np.asarray(a), np.asarray(b)))
