"""Formats of data sets: files to arrays, and which file or array of a name is what.

    .npz          arrays x, y, or x_train, y_train, x_test, y_test (a zip file, known by content)
    IDX           0 0 type n, n big-endian 32-bit sizes, the entries (MNIST and its kin); plain or gzip
    CIFAR-10      records of a label and 3,072 pixels, or Python pickles of both

What a file is says its content; which place it fills say the whole words of its name ("latest" is no test).  Two
candidates for one place are refused.  Foreign parsers of damaged files raise anything: `reading` makes one `DataError`
of it, which names the file, what is wrong and the way out.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmft.errors import DataError
from dmft.specs import _check

PLACES = ("x_train", "y_train", "x_test", "y_test")
TRAIN_WORDS = frozenset({"train", "training"})
TEST_WORDS = frozenset({"test", "testing", "t10k", "val", "valid", "validation"})
ARRAY_WORDS = {"x": frozenset({"x"}), "y": frozenset({"y"})}  # of names in an .npz file
IDX_WORDS = {"x": frozenset({"images", "image", "data"}), "y": frozenset({"labels", "label"})}
IDX_NAME = re.compile(r"idx\d*|ubyte")
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CIFAR_RECORD = 3073  # bytes: a label and 32 x 32 pixels of 3 colours, which come one after the other
CIFAR_SHAPE = (32, 32, 3)
CIFAR_NAME = re.compile(r"(?P<batch>(?P<split>data|test)_batch(_\d+)?)(?P<binary>\.bin)?(\.gz)?")
# by their first bytes, files that are often given another name
SIGNATURES = (
    (b"\x93NUMPY", "a single array (.npy); store inputs and targets together: np.savez(file, x=..., y=...)"),
    (b"\x89HDF", "an HDF5 file; store its arrays with np.savez(file, x=..., y=...)"),
    *((bytes((0x80, n)), "a Python pickle; store its arrays with np.savez(file, x=..., y=...)") for n in range(2, 6)),
)


class Pool(NamedTuple):
    """Raw inputs (sample, feature) and their labels or targets, (sample,) or (sample, output).

    shape: of one input before it was flattened, (position, channel) or (row, column, channel); channels_first: whether
    its channels lead in `x`.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    shape: tuple[int, ...] = ()
    channels_first: bool = False

    @property
    def images(self) -> NDArray[Any]:
        """(sample, *shape)."""
        if not self.channels_first:
            return self.x.reshape(len(self.x), *self.shape)
        *positions, channels = self.shape
        return np.moveaxis(self.x.reshape(len(self.x), channels, *positions), 1, -1)


class Found(NamedTuple):
    """What a source holds; the files it was read from; what kind of source it is."""

    train: Pool
    test: Pool | None
    files: list[Path]
    kind: str


@contextmanager
def reading(path: Path, what: str, way_out: str = "get the file again") -> Iterator[None]:
    """Whatever goes wrong inside becomes a `DataError` about this file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{path} cannot be read as {what} ({' '.join(reason.split()).rstrip('.')}); {way_out}."
        ) from error


def content(path: Path) -> bytes:
    """The bytes of a file, unpacked if they are gzip, whatever its name says."""
    with reading(path, "a file"):
        data = path.read_bytes()
    if not data:
        raise DataError(f"{path} is empty; get the file again.")
    if data[:2] == b"\x1f\x8b":
        with reading(path, "gzip", "it is damaged or truncated: get it again"):
            data = gzip.decompress(data)
    return data


# ---- what is what ----------------------------------------------------------------------------------------------------


def place(name: str, roles: Mapping[str, Collection[str]], *, exactly: bool = False) -> str | None:
    """Of a name, by its whole words: one of `PLACES`; None if it is none (with `exactly`, also if it has other words).

    Raises:
        DataError: a name of both splits.
    """
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    found = [role for role, known in roles.items() if words & set(known)]
    if len(found) != 1 or (exactly and words - TRAIN_WORDS - TEST_WORDS - set(roles[found[0]])):
        return None
    if words & TRAIN_WORDS and words & TEST_WORDS:
        raise DataError(f"{name} is of training and test by its name; say which with names={{...}}.")
    return f"{found[0]}_{'test' if words & TEST_WORDS else 'train'}"


def assign(placed: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Names by place, from pairs (place, name).

    Raises:
        DataError: two names for a place; inputs without targets, or the other way round.
    """
    found: dict[str, str] = {}
    for spot, name in placed:
        if spot in found:
            raise DataError(
                f"{where} has two candidates for {spot}, {found[spot]} and {name}; choose with "
                f"names={_example(found | {spot: name})}."
            )
        found[spot] = name
    for split in ("train", "test"):
        pair = {role: found.get(f"{role}_{split}") for role in "xy"}
        if (pair["x"] is None) != (pair["y"] is None):
            missing, there = ("x", pair["y"]) if pair["x"] is None else ("y", pair["x"])
            raise DataError(
                f"{where} has {there} and no {'labels' if missing == 'y' else 'inputs'} to go with it; add them "
                f"({missing}_{split}), or choose with names={{...}}."
            )
    return found


def _example(found: Mapping[str, str]) -> str:
    chosen = {spot: found.get(spot, "...") for spot in ("x_train", "y_train")}
    chosen |= {spot: name for spot, name in found.items() if spot not in chosen}
    return repr(chosen)


def chosen_names(names: Mapping[str, str], known: Collection[str], where: str) -> dict[str, str]:
    """The caller's choice, checked: by place, names among the known ones.

    Raises:
        ValueError, TypeError: no such place, a place twice (x is x_train), no such name, half a pair.
    """
    if not isinstance(names, Mapping):
        raise TypeError(f'names={names!r} is not a dictionary; give e.g. names={{"x": "images", "y": "labels"}}.')
    pairs = []
    for key, name in names.items():
        spot = f"{key}_train" if key in ("x", "y") else key
        if spot not in PLACES:
            raise ValueError(f"names has the key {key!r}; choose among x, y, {', '.join(PLACES)}.")
        if name not in known:
            raise DataError(f"{where} holds no {name!r} (names[{key!r}]); it holds {', '.join(sorted(known))}.")
        pairs.append((spot, name))
    found = assign(pairs, "names")
    if "x_train" not in found:
        raise ValueError(f"names={dict(names)} names no training samples; give x and y, or x_train and y_train.")
    return found


def pools(read: Callable[[str], NDArray[Any]], found: Mapping[str, str], where: str) -> tuple[Pool, Pool | None]:
    """Training and test samples; where there are test samples alone, all are one pool.

    Raises:
        DataError: what `pool` refuses; a test part of another kind.
    """
    by_split = {
        split: pool(read(x := found[f"x_{split}"]), read(y := found[f"y_{split}"]), [x, y], where)
        for split in ("train", "test")
        if f"x_{split}" in found
    }
    train, test = by_split.get("train"), by_split.get("test")
    if train is None:
        assert test is not None  # as `assign` found
        return test, None
    if test is not None and (train.x.shape[1], train.y.shape[1:]) != (test.x.shape[1], test.y.shape[1:]):
        raise DataError(
            f"{where}: training samples have {train.x.shape[1]} features and targets of shape {train.y.shape}, test "
            f"samples {test.x.shape[1]} and {test.y.shape}; prepare both in the same way."
        )
    return train, test


def pool(x: NDArray[Any], y: NDArray[Any], names: list[str], where: str) -> Pool:
    """Inputs flattened to (sample, feature), whose shape is noted, with their labels or targets, (sample,) or (sample,
    output)."""
    if x.ndim < 2 or y.ndim not in (1, 2) or len(x) != len(y) or 0 in (x.size, y.size):
        raise DataError(
            f"{where}: inputs {names[0]} of shape {x.shape} and labels {names[1]} of shape {y.shape}; expected "
            "(sample, ...) and (sample,) or (sample, output)."
        )
    for name, array in zip(names, (x, y), strict=True):
        # labels may be text
        if array.dtype.kind not in ("biuf" if array is x else "biufU"):
            raise DataError(
                f"{where}: {name} has dtype {array.dtype}, which holds no real numbers; convert it before it is "
                "stored, e.g. with .astype(float)" + (" or .real." if array.dtype.kind == "c" else ".")
            )
        if array.dtype.kind == "f":
            try:
                _check.require_finite(f"{where}: {name}", array)
            except ValueError as error:
                raise DataError(str(error)) from error
    return Pool(x.reshape(len(x), -1), y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y, x.shape[1:])


# ---- .npz ------------------------------------------------------------------------------------------------------------


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


# ---- folders ---------------------------------------------------------------------------------------------------------


def from_folder(folder: Path, names: Mapping[str, str] | None, *, allow_pickle: bool) -> Found:
    """A folder of IDX files or of CIFAR-10 batches.

    Raises:
        DataError: neither; both; damaged or ambiguous files; pickles without `allow_pickle`.
    """
    label = folder.absolute().name
    with reading(folder, "a folder", "make it readable"):
        files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    if names is not None:
        return _from_idx(label, files, chosen_names(names, files, label))
    idx = {name: place(name, IDX_WORDS) for name in files if _is_idx(name)}
    placed = [(spot, name) for name, spot in idx.items() if spot]
    cifar = {name: match for name in files if (match := CIFAR_NAME.fullmatch(name))}
    if placed and cifar:
        raise DataError(
            f"{label} holds IDX files ({placed[0][1]}) and CIFAR-10 batches ({min(cifar)}); give each a folder of "
            "its own."
        )
    if placed:
        return _from_idx(label, files, assign(placed, label))
    if any(match["split"] == "data" for match in cifar.values()):
        return _from_cifar(label, files, cifar, allow_pickle=allow_pickle)
    raise DataError(
        f"{label} holds neither IDX files (*images-idx3-ubyte*) nor CIFAR-10 batches (data_batch_1)"
        + (
            f"; of IDX files with other names say which is which: names={{'x': {next(iter(files))!r}, 'y': ...}}."
            if files
            else "; it is empty of files."
        )
    )


def _is_idx(name: str) -> bool:
    return any(IDX_NAME.fullmatch(word) for word in re.findall(r"[a-z0-9]+", name.lower()))


def _from_idx(label: str, files: Mapping[str, Path], found: Mapping[str, str]) -> Found:
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


def _from_cifar(
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
