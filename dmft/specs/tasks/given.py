"""Data: training inputs with their targets and, optionally, test inputs with theirs."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft import faces
from dmft.specs import _check
from dmft.specs.parameterization import input_kernel

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
INPUTS = {  # axes of inputs, by their number
    2: ("sample", "feature"),
    3: ("sample", "position", "channel"),
    4: ("sample", "row", "column", "channel"),
}
# of the mean diagonal of K^x, the variance of the first fields: below, any network is nearly linear; above, one that
# can saturate does so nearly everywhere (fields of standard deviation .1, 5); standardised data have 1, bytes some 10^4
SIZES = (1e-2, 25.0)


@dataclass(frozen=True, eq=False)
class Task:
    """Training and test samples; for two classes the targets are -1 and +1, for more they are one-hot.

    Args:
        x_train: training inputs, (sample, feature), or with positions, (sample, position, channel) or (sample, row,
            column, channel); the parameterization divides x.x' by the number of input numbers, so entries of order one
            are natural.  Images of one colour have one channel: x[..., None].
        y_train: targets, (sample,) for a single output, (sample, output) for several; whole numbers of an integer type
            only where they are -1, 0 and 1 (others may be labels of classes).
        x_test, y_test: test inputs of the same shape and their targets, both or neither.
        provenance: where the data come from (JSON-like); not part of the identity of the task.

    Everything that lists samples lists the training samples first, then the test samples.

    Raises:
        ValueError: wrong shapes or lengths, non-finite numbers, masked entries, labels of classes in place of targets,
            a test set of another shape.
        TypeError: what is no array of real numbers.

    Warns: where the inputs are far from size one (`SIZES`).

    Example:
        >>> dmft.Task([[1.0, 0.0], [0.0, 1.0]], [-1, 1], x_test=[[1.0, 1.0]], y_test=[1]).n_test
        1
    """

    x_train: NDArray[np.float64]
    y_train: NDArray[np.float64]
    x_test: NDArray[np.float64] | None = None
    y_test: NDArray[np.float64] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.x_test is None) != (self.y_test is None):
            missing = "y_test" if self.y_test is None else "x_test"
            raise ValueError(f"{missing} is missing; give x_test and y_test together, or neither.")
        self._set_pair("train", self.x_train, self.y_train)
        if self.x_test is not None and self.y_test is not None:
            self._set_pair("test", self.x_test, self.y_test)
            if self.x_test.shape[1:] != self.shape:
                test, train = (sizes(x.shape[1:]) for x in (self.x_test, self.x_train))
                raise ValueError(
                    f"x_test has {test} and x_train {train.removesuffix(' features')}; prepare both in the same way, "
                    f"{expected_inputs(self.x_train.ndim)}."
                )
            if self.y_test.shape[1:] != self.y_train.shape[1:]:
                raise ValueError(
                    f"y_test has shape {self.y_test.shape} and y_train {self.y_train.shape}; give the same outputs."
                )
        try:
            provenance = json.loads(json.dumps(dict(self.provenance)))
        except (TypeError, ValueError) as error:
            raise TypeError(f"provenance={self.provenance!r} cannot be written as JSON: {error}.") from error
        object.__setattr__(self, "provenance", provenance)
        if not math.isfinite(self.mean_square):
            raise ValueError(
                f"x_train has entries up to {np.abs(self.x_train).max():.3g}, whose squares are no finite numbers; "
                "scale the inputs to entries of order one."
            )
        if self.unusual_size:
            warnings.warn(self.unusual_size, stacklevel=3)

    def _set_pair(self, split: str, x: ArrayLike, y: ArrayLike) -> None:
        x = _check.real_array(f"x_{split}", x)
        if x.ndim not in INPUTS:
            raise ValueError(f"x_{split} has shape {x.shape}; expected {expected_inputs()}.")
        x = _check.finite_array(f"x_{split}", x, INPUTS[x.ndim])
        y = _check.real_array(f"y_{split}", y)
        _refuse_labels(f"y_{split}", y)
        y = _check.finite_array(f"y_{split}", y, ("sample", "output") if y.ndim == 2 else ("sample",))
        if len(x) != len(y):
            raise ValueError(f"y_{split} has {len(y)} targets for {len(x)} inputs in x_{split}; give one per input.")
        object.__setattr__(self, f"x_{split}", x)
        object.__setattr__(self, f"y_{split}", y)

    @property
    def n_train(self) -> int:
        return len(self.x_train)

    @property
    def n_test(self) -> int:
        return 0 if self.x_test is None else len(self.x_test)

    @property
    def n_samples(self) -> int:
        return self.n_train + self.n_test

    @property
    def dimension(self) -> int:
        """Number D of input numbers: features, or positions times channels."""
        return math.prod(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input: (feature,), (position, channel) or (row, column, channel)."""
        return self.x_train.shape[1:]

    @property
    def x(self) -> NDArray[np.float64]:
        """(sample, feature) or (sample, [row,] position, channel): training inputs, then test inputs."""
        return self.x_train if self.x_test is None else np.concatenate([self.x_train, self.x_test])

    @property
    def outputs(self) -> tuple[int, ...]:
        """() for a single output, (C,) where targets have an axis of outputs."""
        return self.y_train.shape[1:]

    @property
    def targets(self) -> NDArray[np.float64]:
        """(sample, output): y with its axis of outputs, of length 1 for a single one."""
        return self.y.reshape(self.n_samples, -1)

    @property
    def y(self) -> NDArray[np.float64]:
        """(sample,) or (sample, output): training targets, then test targets."""
        return self.y_train if self.y_test is None else np.concatenate([self.y_train, self.y_test])

    @property
    def input_kernel(self) -> NDArray[np.float64]:
        """K^x = x.x'/D, (sample, sample_2), over training then test samples."""
        return input_kernel(self.x)

    @cached_property
    def mean_square(self) -> float:
        """Of the entries of the training inputs: the mean diagonal of their K^x."""
        with np.errstate(over="ignore"):  # what is looked for
            return float(np.mean(self.x_train**2))

    @property
    def unusual_size(self) -> str:
        """A sentence on the training inputs where they are far from size one; empty where they are not."""
        size = self.mean_square
        if SIZES[0] <= size <= SIZES[1]:
            return ""
        if size == 0:
            return "All training inputs are zero."
        return (
            f"The inputs are far from size one: the mean diagonal of K^x = x.x'/D is {size:.3g}, and preactivations of "
            f"the first layer have standard deviation {math.sqrt(size):.3g}. Divide the inputs by that, or let "
            "dmft.load_task normalise them."
        )

    @property
    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The arrays that are there, by field name."""
        return {name: value for name in ARRAYS if (value := getattr(self, name)) is not None}

    @property
    def settings(self) -> dict[str, Any]:
        """What JSON holds beside the arrays: nothing."""
        return {}

    @classmethod
    def stored(cls, arrays: Mapping[str, NDArray[np.float64]], described: Mapping[str, Any]) -> Task:
        """The data that JSON describes."""
        return cls(**arrays, provenance=described.get("provenance", {}))

    @cached_property
    def sha256(self) -> str:
        """Digest of names, shapes and float64 bytes of the arrays."""
        digest = hashlib.sha256()
        for name, array in self.arrays.items():
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.astype("<f8").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        values = np.unique(self.y)
        rows = {
            "training samples": self.n_train,
            "test samples": self.n_test,
            **({"features": self.dimension} if len(self.shape) == 1 else {"inputs": sizes(self.shape)}),
            "outputs": self.outputs[0] if self.outputs else 1,
            "targets": values.tolist() if len(values) <= faces.MOST else f"{values[0]:.4g} to {values[-1]:.4g}",
            "from": {name: value for name, value in self.provenance.items() if name != "name"} or None,
            "sha256": f"{self.sha256[:12]}...",
        }
        return faces.table(rows, f"Task {self.provenance.get('name', '')}".rstrip())

    def __repr__(self) -> str:
        name = self.provenance.get("name", "")
        return (
            f"Task({name + ': ' if name else ''}{self.n_train} training and {self.n_test} test samples, "
            f"{sizes(self.shape)}, "
            f"{f'{self.outputs[0]} outputs, ' if self.outputs else ''}sha256 {self.sha256[:12]})"
        )


def sizes(shape: tuple[int, ...]) -> str:
    """The shape of an input in words: "64 features", "8 x 8 positions of 1 channel"."""
    *positions, last = shape
    if not positions:
        return f"{last} features"
    return f"{' x '.join(map(str, positions))} positions of {last} channel{'s' * (last != 1)}"


def expected_inputs(axes: int | None = None) -> str:
    """The axes of inputs in words, all that there may be or those of this number."""
    names = [f"({', '.join(dims)})" for n, dims in INPUTS.items() if axes in (None, n)]
    return " or ".join(names)


def _refuse_labels(name: str, y: NDArray[Any]) -> None:
    """ValueError for whole numbers of an integer type that may be labels of classes: nothing says that they are not."""
    single = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    if y.dtype.kind not in "iu" or not single or np.isin(y, (-1, 0, 1)).all():
        return
    values = np.unique(y)
    targets = f"np.where(y == {values[-1]}, 1.0, -1.0)" if len(values) == 2 else "np.eye(classes)[y], one-hot"
    raise ValueError(
        f"{name} holds the integers {', '.join(map(str, values[:5]))}{', ...' * (len(values) > 5)}, which may be "
        f"labels of classes or numbers. For classes give their targets, {targets}; for a regression give floats, "
        "y.astype(float)."
    )
