"""Classes of a task: which labels they are made of, their targets, and samples drawn from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs.tasks.formats.places import Pool
from dmft.specs.tasks.sources import Source

SIGNS = ((-1.0, 1.0), (0.0, 1.0))  # two floats that are labels of classes

Label = Any  # a number, a truth value or text
Classes = tuple[tuple[Label, ...], ...]  # the labels of each class


def labelled(raw: Source) -> tuple[Source, int]:
    """One-hot labels (sample, class) as the numbers of their columns, and how many columns there are; else 0."""
    parts = [part for part in (raw.train, raw.test) if part is not None]
    if not all(part.y.ndim == 2 and _is_one_hot(part.y) for part in parts):
        return raw, 0
    train, *test = [part._replace(y=part.y.argmax(axis=1)) for part in parts]
    return Source(train, test[0] if test else None, raw.origin, raw.sha256), raw.train.y.shape[1]


def _is_one_hot(y: NDArray[Any]) -> bool:
    return bool(((y == 0) | (y == 1)).all() and ((y != 0).sum(axis=1) == 1).all())


def require_no_classes(y: NDArray[Any], classes: Any, one_hot: bool | None) -> None:
    """Refuse what belongs to classes, and labels that are text."""
    for name, value in (("classes", classes), ("one_hot", one_hot)):
        if value is not None:
            raise ValueError(
                f"{name}={value!r} is for classes, and the targets are those of a regression; leave it out."
            )
    if y.dtype.kind == "U":
        raise ValueError("the labels are text, which a regression cannot take; choose classes, or store numbers.")


def known(y: NDArray[Any], classes: Any, one_hot: bool | None) -> Classes | None:
    """The labels of the classes in their order; None for regression."""
    if y.ndim == 2:
        require_no_classes(y, classes, one_hot)
        return None
    if classes is not None:
        return checked(y, classes)
    present = np.unique(y)
    real = np.issubdtype(y.dtype, np.floating)
    if len(present) == 2:
        if real and tuple(present) not in SIGNS:
            raise ValueError(
                f"the targets take the two values {present[0]} and {present[1]}: for two classes, -1 and +1, give "
                f"classes=({present[0].item()}, {present[1].item()}); to use them as they are, regression=True."
            )
        return (present[0].item(),), (present[1].item(),)
    if real and not np.array_equal(y, np.round(y)):
        require_no_classes(y, classes, one_hot)
        return None
    raise ValueError(
        f"the labels take {len(present)} values; choose two or more of them, e.g. {_example(present)} (or, if they are "
        "targets of a regression, give regression=True)."
    )


def _example(present: NDArray[Any]) -> str:
    first, second = present[[0, min(1, len(present) - 1)]].tolist()
    return f"classes=({first!r}, {second!r})"


def checked(y: NDArray[Any], classes: Any) -> Classes:
    """Groups of labels, each of which occurs."""
    present = np.unique(y).tolist()
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise TypeError(f"classes={classes!r} is not a list of labels; give e.g. {_example(np.unique(y))}.")
    what, text = f"classes={classes!r}", y.dtype.kind == "U"
    groups = tuple(tuple(_stored(one, text=text) for one in _group(label, what)) for label in _ordered(classes, what))
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


def _stored(label: Label, *, text: bool) -> Label:
    """A number as the data have it: whole ones as text, such as names of folders, and text as the number it reads."""
    if text:
        return str(label) if type(label) is int else label
    for kind in (int, float) if isinstance(label, str) else ():
        with suppress(ValueError):
            return kind(label)
    return label


def targets(classes: int, one_hot: bool) -> NDArray[np.float64]:
    """(class, ...): the target of each class."""
    if not one_hot and classes > 2:
        raise ValueError(f"one_hot=False with {classes} classes; targets -1 and +1 are for two.")
    return np.eye(classes) if one_hot else np.array([-1.0, 1.0])


def draw(
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
