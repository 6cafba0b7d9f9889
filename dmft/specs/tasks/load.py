"""`load_task`: a task drawn from a data set that is on the machine.  Nothing is ever downloaded.

A source (`dmft.specs.tasks.sources`) is a `Pool` of raw inputs and labels, or one for training and another for test.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmft.running.host import usual_errors
from dmft.specs import _check
from dmft.specs.tasks import classes as labels
from dmft.specs.tasks.classes import Classes, Label
from dmft.specs.tasks.formats.places import Pool
from dmft.specs.tasks.given import Task
from dmft.specs.tasks.normalization import NORMALIZATIONS, normalized
from dmft.specs.tasks.sources import source_of

LAYOUTS = (None, "flat", "image")


@usual_errors
def load_task(
    source: str | os.PathLike[str],
    *,
    classes: Sequence[Label | Sequence[Label]] | None = None,
    n_train: int,
    n_test: int = 0,
    seed: int = 0,
    normalize: str | None = "sphere",
    one_hot: bool | None = None,
    balanced: bool = True,
    regression: bool = False,
    names: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
    flatten: bool = True,
    layout: str | None = None,
) -> Task:
    """Draw a task from a data set that is on this machine.

    Args:
        source: "digits", "mnist5k", "fashion_mnist" or another name of `dmft.specs.tasks.sources`, or a path: an `.npz`
            file with arrays `x`, `y` (or `x_train`, `y_train`, `x_test`, `y_test`), a folder of IDX files (plain or
            gzip), of CIFAR-10 batches (binary, or Python pickles with `allow_pickle`), or with a sub-folder of images
            (PNG, JPEG) a class, perhaps in train/ and test/.  Text is read by `dmft.load_text`.
        classes: two labels, of which the first becomes the target -1, the second +1; or more, with one-hot targets
            (sample, output) in their order.  In place of a label a list of them, all of one class: ((0, 2, 4), (1, 3)).
            Numbers also name text, 3 a folder "3", and text numbers.
            May be left out where the labels are two in number, where they are one-hot (all columns are classes then),
            or where they are real-valued (regression: targets are used as they are, also several a sample).
        n_train, n_test: how many samples to draw, as evenly from the classes as the number allows.
        seed: of the draw.
        normalize: "sphere": subtract the mean training input, scale every input to |x|^2 = D, so that K^x has a unit
            diagonal; "standard": zero mean and unit variance of every feature over the training inputs; None: raw.
        one_hot: targets (sample, output) also for two classes; by default for more than two, and where the file has
            one-hot labels and `classes` are left out.
        balanced: False: draw from all samples of the classes alike, so that classes keep their natural frequencies.
        regression: the targets are numbers, whatever values they take (two, or whole numbers).
        names: which array of an `.npz` file, or which IDX file of a folder, is which, where their names do not say:
            {"x": "images", "y": "labels"}, or x_train, y_train, and x_test, y_test if there are any.
        allow_pickle: read CIFAR-10's pickled batches (only NumPy arrays are reconstructed from them).
        flatten: False: images keep their positions, (sample, row, column, channel), as convolutional networks need
            them; arrays `x` of an `.npz` file their axes, (sample, position, channel) or (sample, row, column,
            channel).  Their numbers are normalised as those of vectors are.
        layout: "image" is flatten=False in words, "flat" the default.

    Returns:
        A `Task` whose `provenance` names origin, digest of the source, and every option here.

    Raises:
        ValueError: an unknown name, more samples than there are, classes that do not occur, positions where the source
            has none; `dmft.errors.DataError` for files that are damaged, of another kind or ambiguous, and for numbers
            that are not finite.
        TypeError: classes without an order.
        ImportError, FileNotFoundError: a data set that is not installed; the message names what provides it.

    Example:
        >>> dmft.load_task("digits", classes=(3, 8), n_train=4, n_test=2).x_train.shape
        (4, 64)
    """
    n_train = _check.integer("n_train", n_train, minimum=1)
    n_test = _check.integer("n_test", n_test, minimum=0)
    seed = _check.integer("seed", seed, minimum=0)
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize!r} is unknown; choose one of {NORMALIZATIONS}.")
    if layout not in LAYOUTS:
        raise ValueError(f'layout={layout!r} is unknown; choose "flat" or "image" (positions are kept).')
    flatten = flatten and layout != "image"
    raw = source_of(source, names, allow_pickle)
    raw, columns = labels.labelled(raw) if not regression else (raw, 0)
    known: Classes | None = None
    if regression:
        labels.require_no_classes(raw.train.y, classes, one_hot)
    elif columns and classes is None:
        known, one_hot = labels.checked(raw.train.y, range(columns)), True if one_hot is None else one_hot
    else:
        known = labels.known(raw.train.y, classes, one_hot)
    targets = None if known is None else labels.targets(len(known), len(known) > 2 if one_hot is None else one_hot)
    draws = (n_train, n_test) if raw.test is None else (n_train,)
    rng = np.random.default_rng(seed)
    what = str(source) if raw.test is None else f"training part of {source}"
    train, *rest = labels.draw(raw.train, known, targets, draws, rng, what, balanced=balanced)
    if raw.test is not None:
        rest = labels.draw(raw.test, known, targets, (n_test,), rng, f"test part of {source}", balanced=balanced)
    (test,) = rest
    x_train, x_test = normalized(train.x, test.x, normalize)
    if not flatten:
        x_train, x_test = (_images(part._replace(x=x), what) for part, x in ((train, x_train), (test, x_test)))
    added = {
        "one_hot": (one_hot, None),
        "balanced": (balanced, True),
        "regression": (regression, False),
        "flatten": (flatten, True),
    }
    return Task(
        x_train,
        train.y,
        x_test if n_test else None,
        test.y if n_test else None,
        provenance={
            "name": Path(source).name,
            "origin": raw.origin,
            "source_sha256": raw.sha256,
            "classes": None if known is None else [list(group) if len(group) > 1 else group[0] for group in known],
            "n_train": n_train,
            "n_test": n_test,
            "seed": seed,
            "normalize": normalize,
            # what was added later is named where it is used
            **{name: value for name, (value, default) in added.items() if value != default},
            **({} if names is None else {"names": dict(names)}),
        },
    )


def _images(pool: Pool, what: str) -> NDArray[np.float64]:
    """(sample, [row,] position, channel)."""
    if len(pool.shape) < 2:
        raise ValueError(
            f"{what} holds vectors of {pool.x.shape[1]} features without positions; leave flatten=False out "
            "(and layout=), or store x as (sample, position, channel) or (sample, row, column, channel)."
        )
    return pool.images
