"""Batches of CIFAR-10: records of a label and 3,072 pixels, or Python pickles of both."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dmft.errors import DataError
from dmft.specs.tasks.formats.places import Found, Pool, content, pool, reading

CIFAR_RECORD = 3073  # bytes: a label and 32 x 32 pixels of 3 colours, which come one after the other
CIFAR_SHAPE = (32, 32, 3)
CIFAR_NAME = re.compile(r"(?P<batch>(?P<split>data|test)_batch(_\d+)?)(?P<binary>\.bin)?(\.gz)?")


def from_cifar(
    label: str, files: Mapping[str, Path], cifar: Mapping[str, re.Match[str]], *, allow_pickle: bool
) -> Found:
    batches: dict[str, str] = {}
    for name, match in cifar.items():
        if (other := batches.setdefault(match["batch"], name)) != name:
            raise DataError(f"{label} has two candidates for {match['batch']}, {other} and {name}; keep one of them.")
    binary = {bool(match["binary"]) for match in cifar.values()}
    if len(binary) > 1:
        raise DataError(f"{label} holds CIFAR-10 batches in binary form and as pickles; keep one of them.")
    if binary == {False} and not allow_pickle:
        raise DataError(
            f"{label} holds CIFAR-10 as Python pickles, which are only read on request: pass allow_pickle=True if you "
            "trust the files, or use the binary version of the data set."
        )
    read = _read_cifar_binary if binary == {True} else _read_cifar_pickle
    parts = {name: read(files[name]) for name in batches.values()}
    train = [part for name, part in parts.items() if cifar[name]["split"] == "data"]
    test = [part for name, part in parts.items() if cifar[name]["split"] == "test"]
    joined = train[0]._replace(x=np.concatenate([p.x for p in train]), y=np.concatenate([p.y for p in train]))
    kind = f"CIFAR-10 {'binary' if binary == {True} else 'pickle'} folder"
    return Found(joined, test[0] if test else None, [files[name] for name in batches.values()], kind)


def _read_cifar_binary(path: Path) -> Pool:
    data = np.frombuffer(content(path), np.uint8)
    if len(data) % CIFAR_RECORD:
        raise DataError(
            f"{path.name} holds {len(data)} bytes, not a multiple of 3,073; the file is damaged or truncated: get "
            "it again."
        )
    records = data.reshape(-1, CIFAR_RECORD)
    return Pool(records[:, 1:], records[:, 0], CIFAR_SHAPE, channels_first=True)


class _ArraysOnly(pickle.Unpickler):
    """Reconstructs NumPy arrays and plain containers; refuses every other global."""

    ALLOWED = frozenset(
        {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),  # protocol 5
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        module = re.sub(r"^numpy\.core\.", "numpy._core.", module)  # of NumPy 1
        if (module, name) not in self.ALLOWED:
            raise DataError(f"the pickle asks for {module}.{name}, which no CIFAR-10 batch needs; it was not read.")
        return super().find_class(module, name)


def _read_cifar_pickle(path: Path) -> Pool:
    data = content(path)
    with reading(path, "a pickle of CIFAR-10", "it is damaged, truncated or of another kind: get it again"):
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    if not isinstance(batch, dict):
        raise DataError(f"{path.name} holds a {type(batch).__name__}, not the dictionary of a CIFAR-10 batch.")
    # keys of Python 2 are bytes, of Python 3 text
    named = {key.decode(errors="replace") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if missing := {"data", "labels"} - set(named):
        raise DataError(
            f"{path.name} holds {', '.join(map(str, named))} and no {' or '.join(sorted(missing))}; expected a batch "
            "of CIFAR-10 with data and labels."
        )
    with reading(path, "a batch of CIFAR-10", "expected arrays data and labels"):
        x, y = np.asarray(named["data"]), np.asarray(named["labels"])
    found = pool(x, y, ["data", "labels"], path.name)
    return found._replace(shape=CIFAR_SHAPE, channels_first=True) if x.shape[1:] == (CIFAR_RECORD - 1,) else found
