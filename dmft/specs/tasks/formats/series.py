"""Series of the UCR archive: files NAME_TRAIN.ts and NAME_TEST.ts of text.

# comments, @keywords, @data                         then a sample a line:
1.0,2.0,...[:1.5,2.5,...]:label                      channels and the class, apart by colons
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dmft.errors import DataError
from dmft.specs.tasks.formats.places import Found, Pool, content, reading


def from_series(folder: Path, name: str) -> Found:
    """The series NAME of a folder, inputs (sample, position, channel).

    Raises:
        DataError: files that are missing or damaged; series of several lengths, or with missing values.
    """
    paths = [folder / f"{name}_{split}.ts" for split in ("TRAIN", "TEST")]
    train, test = (read_series(path) for path in paths)
    if train.shape != test.shape:
        raise DataError(f"{name}: training series have the shape {train.shape}, test series {test.shape}.")
    return Found(train, test, paths, "series")


def read_series(path: Path) -> Pool:
    """A .ts file of series of equal length."""
    _, found, data = content(path).decode("utf-8", "replace").partition("@data")
    lines = [line.strip() for line in data.splitlines() if line.strip()]
    if not found or not lines:
        raise DataError(f"{path.name} is no .ts file of series: it has no lines after @data.")
    samples, labels = [], []
    with reading(path, "series", "expected values of equal number apart by commas, channels and label by colons"):
        for line in lines:
            *channels, label = line.split(":")
            samples.append([[float(value) for value in channel.split(",")] for channel in channels])
            labels.append(label.strip())
        x = np.array(samples).transpose(0, 2, 1)
    if not np.isfinite(x).all():
        raise DataError(f"{path.name} has missing values; fill them, and store arrays with np.savez.")
    return Pool(x.reshape(len(x), -1), np.array(labels), x.shape[1:])
