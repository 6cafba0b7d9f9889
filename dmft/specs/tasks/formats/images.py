"""Folders of images, one sub-folder a class: CLASS/*.png, or train/CLASS/*.png and test/CLASS/*.png; PNG or JPEG.

Labels are the names of the sub-folders.  Images are read by Pillow; all have one size, and are of three colours if one
of them is, else of one.  Pixels are 0 to 255, of 16 bits of grey with fractions, value / 257 (of 16 bits a colour the
upper eight are read); none is transparent.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.errors import DataError
from dmft.specs.tasks.formats.places import TEST_WORDS, TRAIN_WORDS, Found, Pool, reading

ENDINGS = (".png", ".jpg", ".jpeg")
DEEP = 257  # from 16 bits to 8: 65,535 is 255


def class_folders(folder: Path) -> dict[str, Path]:
    """Sub-folders that hold images, by name."""
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    return {path.name: path for path in found if any(True for _ in images_in(path))}


def images_in(folder: Path) -> Iterable[Path]:
    """The images of a folder, by name."""
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS)


def splits_of(folder: Path) -> dict[str, Path]:
    """Where the classes of "train" and of "test" are; the folder itself is "train" where it holds them."""
    parts = {"train": TRAIN_WORDS, "test": TEST_WORDS}
    named = [path for path in sorted(folder.iterdir()) if path.is_dir() and class_folders(path)]
    found: dict[str, Path] = {}
    for path in named:
        for split, words in parts.items():
            if path.name.lower() in words:
                if split in found:
                    raise DataError(
                        f"{folder.name} has two folders for {split}, {found[split].name} and {path.name}; keep one."
                    )
                found[split] = path
    if found:
        return found
    return {"train": folder} if class_folders(folder) else {}


def from_images(label: str, folders: dict[str, Path]) -> Found:
    """Images of the folders that `splits_of` found.

    Raises:
        DataError: images of several sizes, damaged, or transparent; other classes in the test part.
    """
    files = {
        split: [(name, path) for name, folder in class_folders(root).items() for path in images_in(folder)]
        for split, root in folders.items()
    }
    every = [path for each in files.values() for _, path in each]
    pixels = read_images(every)
    pools, first = {}, 0
    for split, each in files.items():
        part = pixels[first : first + len(each)]
        pools[split] = Pool(part.reshape(len(part), -1), np.array([name for name, _ in each]), pixels.shape[1:])
        first += len(each)
    if "train" not in pools:
        return Found(pools["test"], None, every, "folder of images")
    test = pools.get("test")
    if test is not None and (others := sorted(set(test.y.tolist()) - set(pools["train"].y.tolist()))):
        raise DataError(f"{label}: the test part has the classes {others[:5]}, which the training part has not.")
    return Found(pools["train"], test, every, "folder of images")


def read_images(paths: list[Path]) -> NDArray[Any]:
    """(sample, row, column, channel) of image files, 0 to 255: uint8, or float32 where one has 16 bits of grey.

    Raises:
        ImportError: Pillow is missing.  DataError: damaged files, several sizes, transparent pixels.
    """
    image = pillow()

    def pixels(path: Path) -> NDArray[Any]:
        with reading(path, "an image"), image.open(path) as opened:
            if clear := _transparent(opened):
                raise DataError(
                    f"{path} has {clear} transparent pixels, whose colour is that of what is behind them; put "
                    "the image on a background first, and store it without transparency."
                )
            if opened.mode.startswith("I"):  # which Pillow would cut off at 255
                return np.asarray(opened).astype(np.float32) / DEEP
            return np.asarray(opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB"))

    with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1)) as threads:  # Pillow decodes without the lock
        found = list(threads.map(pixels, paths))
    for path, each in zip(paths, found, strict=True):
        if each.shape[:2] != found[0].shape[:2]:
            (h, w), (rows, columns) = each.shape[:2], found[0].shape[:2]
            raise DataError(
                f"{path} has {h} x {w} pixels and {paths[0].name} {rows} x {columns}; a data set has images of one "
                "size: resize them first."
            )
    channels = max(each.shape[2] if each.ndim == 3 else 1 for each in found)
    shaped = [each if each.ndim == 3 else np.repeat(each[..., None], channels, axis=-1) for each in found]
    return np.stack(shaped)


def _transparent(opened: Any) -> int:
    """How many pixels of an image are not opaque."""
    if opened.mode.startswith("I"):
        return int((np.asarray(opened) == opened.info.get("transparency", -1)).sum())
    if opened.mode.endswith("A") or "transparency" in opened.info:
        return int((np.asarray(opened.convert("RGBA"))[..., 3] < 255).sum())
    return 0


def pillow() -> Any:
    """The module PIL.Image; ImportError that says what to install."""
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("images are read by Pillow, which is missing: pip install pillow") from error
