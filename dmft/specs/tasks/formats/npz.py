"""Archives of NumPy."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.errors import DataError
from dmft.specs.tasks.formats.idx import IDX_DTYPES
from dmft.specs.tasks.formats.places import Found, assign, chosen_names, content, place, pools, reading

ARRAY_WORDS = {"x": frozenset({"x"}), "y": frozenset({"y"})}  # of names in a file
# by their first bytes, files that are often given another name
SIGNATURES = (
    (b"\x93NUMPY", "a single array (.npy); store inputs and targets together: np.savez(file, x=..., y=...)"),
    (b"\x89HDF", "an HDF5 file; store its arrays with np.savez(file, x=..., y=...)"),
    *((bytes((0x80, n)), "a Python pickle; store its arrays with np.savez(file, x=..., y=...)") for n in range(2, 6)),
)


def from_npz(path: Path, names: Mapping[str, str] | None) -> Found:
    """An .npz file, by content.

    Raises:
        DataError: another kind of file; damaged; arrays that are missing or ambiguous.
    """
    data = content(path)
    if data[:2] != b"PK":
        raise DataError(f"{path.name} is not a file this library reads: it is {_looks_like(data)}.")
    with reading(path, "an .npz file of NumPy", "it is damaged, truncated or not made by np.savez: store it again"):
        file = np.load(io.BytesIO(data), allow_pickle=False)

    def read(name: str) -> NDArray[Any]:
        way_out = (
            "store it again with np.savez, arrays as numbers (those of objects need allow_pickle, and are not read)"
        )
        with reading(path, f"an .npz file with an array {name}", way_out):
            return np.asarray(file[name])

    with file:
        found = (
            assign(((spot, name) for name in file.files if (spot := place(name, ARRAY_WORDS, exactly=True))), path.name)
            if names is None
            else chosen_names(names, file.files, path.name)
        )
        if not found:
            raise DataError(
                f"{path.name} holds {sorted(file.files)}; expected arrays x, y or x_train, y_train, x_test, y_test. "
                'Say which is which: names={"x": ..., "y": ...}.'
            )
        return Found(*pools(read, found, path.name), [path], "file")


def _looks_like(data: bytes) -> str:
    for signature, what in SIGNATURES:
        if data.startswith(signature):
            return what
    if data[:3] in {bytes((0, 0, kind)) for kind in IDX_DTYPES}:
        return "an IDX file; give the folder that holds it and its labels"
    text = min(data[:1000]) > 8  # control characters, of which text has tabs and ends of lines
    kind = "text; read it, e.g. with np.loadtxt" if text else "of no known kind; read it yourself"
    return f"{kind}, and give dmft.Task the arrays, or give an .npz file or a folder of IDX or CIFAR-10 files"
