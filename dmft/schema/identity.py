"""Whose entries these are: what tells networks, blocks of them and particles apart after Datasets were joined.

Attributes of joined Datasets are those of the first one (`xarray.concat`), and labels can be given anew.  Two
coordinates along all dimensions of the entries go with each of them, whatever is done with the others:

    entry_problem     the problem_id, as a whole number
    entry_id          which entry of which draw: digest(problem_id, root seed, law) + label, modulo 2^64; law: one for
                      networks that are trained, whoever trains them, others for other producers

Results of other problems among the entries, and the same entry twice, are seen in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from dmft.errors import SchemaError

TRAINED = ("finite_nets.train_ensemble", "finite_nets.sweep")  # the same networks
PROBLEM, ENTRY = "entry_problem", "entry_id"
ENTRIES: dict[str, tuple[str, ...]] = {  # by kind; the last is the one that tells the entries of a width apart
    "ensemble": ("width", "seed"),
    "posterior": ("width", "seed"),
    "moments": ("width", "block"),
    "neurons": ("width", "neuron"),
    "particles": ("neuron",),
}


def coordinates(kind: str, ds: xr.Dataset, problem_id: str, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The coordinates of a new result of this kind, with the labels of its dimensions and the attributes `seed` (the
    root seed) and `producer`; none for other kinds."""
    dims = ENTRIES.get(kind, ())
    if not dims:
        return {}
    shape = tuple(ds.sizes[dim] for dim in dims)
    law = "" if attrs["producer"] in TRAINED else attrs["producer"]
    digest = hashlib.sha256(f"{problem_id} {attrs['seed']} {law}".encode()).digest()
    start = np.frombuffer(digest, "<u8", 1)
    ids = start + ds[dims[-1]].values.astype(np.uint64)  # numbers above 2^64 wrap around
    return {
        PROBLEM: (dims, np.full(shape, int(problem_id, 16), np.uint64)),
        ENTRY: (dims, np.broadcast_to(ids, shape).copy()),
    }


def require_own_entries(kind: str, ds: xr.Dataset) -> None:
    """SchemaError if entries are of other problems than the result says, or the same entry is there twice.

    Results of versions that did not write the coordinates are not looked at.
    """
    dims = ENTRIES.get(kind, ())
    if not dims or not {PROBLEM, ENTRY} <= set(ds.coords):
        return
    found = np.unique(ds[PROBLEM].values)
    others = [f"{int(number):016x}" for number in found if f"{int(number):016x}" != ds.attrs["problem_id"]]
    if others:
        raise SchemaError(
            f"the Dataset says that it is of the problem {ds.attrs['problem_id']} and holds entries of "
            f"{', '.join(others)}: results of several problems were joined. Keep them apart, or use dmft.stack."
        )
    ids = ds[ENTRY].transpose(..., dims[-1]).values
    for width, row in zip(ds["width"].values if "width" in dims else [None], np.atleast_2d(ids), strict=True):
        repeated = len(row) - len(np.unique(row))
        if repeated:
            of = "" if width is None else f" of width {width}"
            raise SchemaError(
                f"the Dataset holds {repeated} {dims[-1]}(s){of} twice, under other labels: errors would come out too "
                "small. Join results of different seeds, or of different root seeds, only."
            )
