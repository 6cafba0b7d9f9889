"""IDX files: 0 0 type n, n big-endian 32-bit sizes, the entries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.errors import DataError
from dmft.specs.tasks.formats.places import Found, Pool, content, pools

IDX_WORDS = {"x": frozenset({"images", "image", "data"}), "y": frozenset({"labels", "label"})}
IDX_NAME = re.compile(r"idx\d*|ubyte")
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def is_idx(name: str) -> bool:
    return any(IDX_NAME.fullmatch(word) for word in re.findall(r"[a-z0-9]+", name.lower()))


def from_idx(label: str, files: Mapping[str, Path], found: Mapping[str, str]) -> Found:
    train, test = pools(lambda name: read_idx(files[name]), found, label)
    train, test = _of_one_colour(train), test and _of_one_colour(test)
    return Found(train, test, [files[name] for name in found.values()], "IDX folder")


def _of_one_colour(images: Pool) -> Pool:
    """Images (row, column) with their channel."""
    return images._replace(shape=(*images.shape, 1)) if len(images.shape) == 2 else images


def read_idx(path: Path) -> NDArray[Any]:
    """An IDX file, of any of its types.

    Raises:
        DataError: another kind of file, or a damaged one.
    """
    data = content(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_DTYPES:
        raise DataError(
            f"{path.name} is not an IDX file: it starts with {data[:4].hex()}, not with 0000 and a type of 08, 09, 0b, "
            "0c, 0d or 0e; get the file again."
        )
    dtype, n_dims = np.dtype(IDX_DTYPES[data[2]]), data[3]
    start = 4 + 4 * n_dims
    sizes = np.frombuffer(data[4 : min(start, len(data) - len(data) % 4)], ">u4").tolist()
    shape = tuple(sizes)
    # with Python's integers: those of a damaged file may overflow others
    count = int(np.prod(np.array(shape, dtype=object))) if shape else 1
    if len(shape) < n_dims or len(data) - start != count * dtype.itemsize:
        raise DataError(
            f"{path.name} says shape {shape} of {dtype.itemsize} bytes an entry and holds {max(len(data) - start, 0)} "
            "bytes; the file is damaged or truncated: get it again."
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
