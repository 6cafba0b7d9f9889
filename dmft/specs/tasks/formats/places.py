"""What formats of data sets share: reading files, and which file or array of a name is what.

What a file is says its content; which place it fills say the whole words of its name ("latest" is no test).  Two
candidates for one place are refused.  Foreign parsers of damaged files raise anything: `reading` makes one `DataError`
of it, which names the file, what is wrong and the way out.
"""

from __future__ import annotations

import gzip
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
