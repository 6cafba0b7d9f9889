"""Groups and arrays of a store on disk, in the format Zarr version 3.

They appear whole or not at all, under another name first; nothing in them is code, and they are read with the codecs
that are named here and no others.
"""

from __future__ import annotations

import importlib
import json
import os
import reprlib
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dmft.errors import StoreError
from dmft.running.paths import PARTIAL
from dmft.schema.build import now

CODECS = ("bytes", "zstd", "crc32c")
DTYPES = ("float64", "float32", "int64", "bool")
UNFINISHED = ".new-"  # groups that are being made
Found = TypeVar("Found")


def is_unfinished(path: Path) -> bool:
    """Whether it is a file or group that is being written, or was when its writer was killed."""
    return path.name.startswith(UNFINISHED) or path.name.endswith(PARTIAL)


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def zarr_module() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "stores need Zarr: install the extra, pip install '.[store]' in a checkout (zarr >= 3.1.6)."
        ) from error
    return zarr


def created() -> dict[str, str]:
    return {"created": now()}


def make_whole(path: Path, fill: Callable[[Path], None]) -> None:
    """A group that appears whole or not at all; somebody else's, if it has appeared meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        fill(new)
        new.rename(path)
    except OSError:
        if not (path / "zarr.json").exists():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_whole(file: Path, text: str) -> None:
    """A file that is replaced at once."""
    new = file.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        new.write_text(text)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def first_axis(path: Path) -> tuple[int, int]:
    """Entries of a chunk along the first axis of an array, and chunks along it."""
    content = metadata_of(path)
    try:
        chunk = int(content["chunk_grid"]["configuration"]["chunk_shape"][0])
        return chunk, int(content["shape"][0]) // chunk
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise StoreError(f"{path}/zarr.json is damaged: it lacks a shape, or that of its chunks.") from error


def last_chunk(path: Path) -> int:
    """Along the first axis of an array; -1 if there is none."""
    folder = path / "c"
    return max((int(name) for name in os.listdir(folder) if name.isdigit()), default=-1) if folder.exists() else -1


def create_group(path: Path, attributes: dict[str, Any]) -> None:
    zarr_module().create_group(path, attributes=attributes, zarr_format=3)


def create_array(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, dims: Sequence[str]) -> Any:
    codecs = importlib.import_module("zarr.codecs")
    return zarr_module().create_array(
        path,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value={"int64": 0, "bool": False}.get(dtype, np.nan),
        compressors=(codecs.ZstdCodec(level=1), codecs.Crc32cCodec()),
        dimension_names=list(dims)[: len(shape)],
        zarr_format=3,
    )


def open_array(path: Path) -> Any:
    """An array, opened for reading and writing.

    Raises:
        StoreError: not one of a store, or one that would need other codecs.
    """
    content = metadata_of(path)
    listed = content.get("codecs")
    listed = listed if isinstance(listed, list) else [listed]
    codecs = [str(codec.get("name") if isinstance(codec, dict) else codec) for codec in listed]
    if content.get("node_type") != "array" or not set(codecs) <= set(CODECS) or content.get("data_type") not in DTYPES:
        raise StoreError(
            f"{path} is no array of a store: {content.get('node_type')} of {content.get('data_type')} with codecs "
            f"{codecs}; expected {', '.join(DTYPES)} and codecs among {', '.join(CODECS)}."
        )
    try:
        array = zarr_module().open_array(path, mode="r+", zarr_format=3)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{path}/zarr.json is damaged: {error}") from error
    return array.with_config({"write_empty_chunks": True})  # a chunk says that it was written, whatever it holds


def attributes_of(path: Path) -> dict[str, Any]:
    """Of a group."""
    content = metadata_of(path)
    attributes = content.get("attributes", {})
    if content.get("node_type") != "group" or not isinstance(attributes, dict):
        raise StoreError(f"{path} is no group of a store.")
    return attributes


def attribute_of(path: Path, name: str, kind: type[Found]) -> Found:
    """One attribute of a group."""
    value = attributes_of(path).get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise StoreError(f"{path} is damaged: its {name} is {reprlib.repr(value)}.")
    return value


def metadata_of(path: Path) -> dict[str, Any]:
    file = path / "zarr.json"
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise StoreError(f"{path} is not part of a store in the format Zarr 3: it has no zarr.json.") from error
    except ValueError as error:
        raise StoreError(f"{file} is damaged: {error}.") from error
    if not isinstance(content, dict) or content.get("zarr_format") != 3:
        raise StoreError(f"{path} is not in the format Zarr 3.")
    return content
