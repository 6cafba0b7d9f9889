"""Folders of files: IDX, batches of CIFAR-10, or images, one sub-folder a class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dmft.errors import DataError
from dmft.specs.tasks.formats.cifar import CIFAR_NAME, from_cifar
from dmft.specs.tasks.formats.idx import IDX_WORDS, from_idx, is_idx
from dmft.specs.tasks.formats.images import from_images, splits_of
from dmft.specs.tasks.formats.places import Found, assign, chosen_names, place, reading


def from_folder(folder: Path, names: Mapping[str, str] | None, *, allow_pickle: bool) -> Found:
    """A folder of IDX files, of CIFAR-10 batches, or with sub-folders of images.

    Raises:
        DataError: neither; both; damaged or ambiguous files; pickles without `allow_pickle`.
    """
    label = folder.absolute().name
    with reading(folder, "a folder", "make it readable"):
        files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        images = splits_of(folder) if names is None else {}
    if names is not None:
        return from_idx(label, files, chosen_names(names, files, label))
    idx = {name: place(name, IDX_WORDS) for name in files if is_idx(name)}
    placed = [(spot, name) for name, spot in idx.items() if spot]
    cifar = {name: match for name in files if (match := CIFAR_NAME.fullmatch(name))}
    if placed and cifar:
        raise DataError(
            f"{label} holds IDX files ({placed[0][1]}) and CIFAR-10 batches ({min(cifar)}); give each a folder of "
            "its own."
        )
    if placed:
        return from_idx(label, files, assign(placed, label))
    if any(match["split"] == "data" for match in cifar.values()):
        return from_cifar(label, files, cifar, allow_pickle=allow_pickle)
    if images:
        return from_images(label, images)
    raise DataError(
        f"{label} holds neither IDX files (*images-idx3-ubyte*) nor CIFAR-10 batches (data_batch_1), nor sub-folders "
        "of images (CLASS/*.png)"
        + (
            f"; of IDX files with other names say which is which: names={{'x': {next(iter(files))!r}, 'y': ...}}."
            if files
            else "; it is empty of files."
        )
    )
