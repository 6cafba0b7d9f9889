"""A table of runs at few bits, one a row, of a CSV file, a mapping of columns or a Dataset."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.float64]

SIZES = ("parameters", "tokens")
CHANNELS = ("weights", "activations", "kv")  # that are looked for if none are named
POST, LOSS = "post", "loss"
FULL = np.inf  # bits of what is not rounded


def read_runs(
    runs: Any, columns: Mapping[str, str] | None, channels: Sequence[str] | None, *, optional: bool = False
) -> xr.Dataset:
    """The table as a Dataset (run) of the columns that are used; errors as of `fit_precision`.

    optional: whether channels that are named may be missing.
    """
    given, named = _columns(runs), dict(columns or {})
    sought = [*SIZES, *(CHANNELS if channels is None else channels), POST, LOSS]
    if unknown := [name for name in named if name not in sought]:
        raise ValueError(f"columns names {unknown[0]!r}; choose among {', '.join(sorted({*sought}))}.")
    asked = {*SIZES, *named} | ({*channels} if channels is not None and not optional else set())
    found: dict[str, Any] = {}
    for name in dict.fromkeys(sought):
        column = named.get(name, name)
        if column in given:
            found[name] = ("run", _numbers(name, column, given[column]))
        elif name in asked:
            there = ", ".join(map(str, given)) or "none"
            raise ValueError(
                f"the table has no column {column!r} for {name}; its columns are {there}. Say which is meant, "
                f"columns={{{name!r}: ...}}."
            )
    ds = xr.Dataset(found)
    if not ds.sizes["run"]:
        raise ValueError("the table has no runs.")
    return ds


def _columns(runs: Any) -> dict[str, Any]:
    if isinstance(runs, xr.Dataset):
        every = xr.broadcast(*(runs[name].drop_vars(list(runs[name].coords)) for name in runs.variables))
        return {str(name): each.values.ravel() for name, each in zip(runs.variables, every, strict=True)}
    if isinstance(runs, (str, Path)):
        with Path(runs).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        return {name.strip(): [row[name] for row in rows] for name in reader.fieldnames or ()}
    if hasattr(runs, "items"):
        found = {str(name): np.asarray(value) for name, value in runs.items()}
        shapes = {name: value.shape for name, value in found.items()}
        if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
            raise ValueError(f"columns of a table are lists of one length; these have shapes {shapes}.")
        return found
    raise TypeError(
        f"runs={type(runs).__name__} is no table; give the path of a CSV file, a mapping of columns or a Dataset."
    )


def _numbers(name: str, column: str, values: Any) -> Array:
    """Positive numbers; of bits, where there is none, infinite."""
    bits = name not in (*SIZES, LOSS)
    found = np.empty(len(values))
    for row, value in enumerate(values):
        text = str("" if value is None else value).strip()
        if bits and text.lower() in ("", "nan", "none"):
            found[row] = FULL
            continue
        try:
            found[row] = float(text)
        except ValueError:
            raise ValueError(f"{column!r} of run {row} (from 0) is {text!r}, not a number.") from None
        if not found[row] > 0 or (np.isinf(found[row]) and not bits):
            what = "bits must be positive, or empty for full precision" if bits else f"{name} must be positive"
            raise ValueError(f"{column!r} of run {row} (from 0) is {text}; {what}.")
    return found
