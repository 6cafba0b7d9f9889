"""The samples of each step, and the rates: how they are made, and what they have to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.specs import _check

OBSERVE = ("all", "test")


def random_batches(n_train: int, size: int, steps: int, *, seed: int = 0) -> NDArray[np.int64]:
    """(step, position): batches of shuffled epochs; the last n_train % size samples of each epoch rest.

    Example:
        >>> batches = dmft.random_batches(n_train=6, size=2, steps=4)
        >>> batches.shape, sorted(batches[:3].ravel().tolist())
        ((4, 2), [0, 1, 2, 3, 4, 5])
    """
    n_train = _check.integer("n_train", n_train, minimum=1)
    size, steps = _batch_size(size, n_train), _check.integer("steps", steps, minimum=1)
    rng = np.random.default_rng(_check.integer("seed", seed, minimum=0))
    per_epoch = n_train // size
    epochs = [
        rng.permutation(n_train)[: per_epoch * size].reshape(per_epoch, size) for _ in range(-(-steps // per_epoch))
    ]
    return np.concatenate(epochs)[:steps]


@dataclass(frozen=True)
class Epochs:
    """Batches of shuffled epochs in a word, for long training on large data, and what happens to their images.

    The same batches as `random_batches` with this size and seed.  Images that are flipped or shifted are other samples
    at every step, the same for all networks: only networks are trained on them, and the limit by extrapolation
    (`comparisons.extrapolate`).

    Args:
        size: samples of a batch.
        seed: of batches and images.
        flip: mirror each image from left to right with probability 1/2.
        crop: shift each image by up to so many pixels along rows and columns, fewer than these have; what comes in is
            0, the mean.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> dmft.GradientDescent(0.1, steps=600, batches=dmft.Epochs(32, flip=True)).batches.changing
        True
    """

    size: int
    seed: int = 0
    flip: bool = False
    crop: int = 0

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("seed", 0), ("crop", 0)):
            object.__setattr__(self, name, _check.integer(name, getattr(self, name), minimum=least))
        object.__setattr__(self, "flip", _check.boolean("flip", self.flip))

    @property
    def changing(self) -> bool:
        """Whether images are flipped or shifted."""
        return self.flip or self.crop > 0

    def indices(self, n_train: int, steps: int) -> NDArray[np.int64]:
        """(step, position): as of `random_batches`; not to be written to."""
        return _epochs(n_train, self.size, steps, self.seed)

    def changes(self, steps: int) -> NDArray[np.int16]:
        """(step, position, 3): whether an image is flipped, and by how many rows and columns it moves."""
        rng = np.random.default_rng([self.seed, 1])  # other numbers than those of the batches
        found = np.zeros((steps, self.size, 3), np.int16)
        if self.flip:
            found[..., 0] = rng.integers(0, 2, found.shape[:2])
        if self.crop:
            found[..., 1:] = rng.integers(-self.crop, self.crop + 1, (*found.shape[:2], 2))
        return found


Batches = tuple[tuple[int, ...], ...] | Epochs


@lru_cache(maxsize=4)
def _epochs(n_train: int, size: int, steps: int, seed: int) -> NDArray[np.int64]:
    found = random_batches(n_train, size, steps, seed=seed)
    found.flags.writeable = False
    return found


def learning_rates(
    peak: float, steps: int, *, warm_up: int = 0, shape: str = "cosine", last: float = 0.0, constant: int = 1
) -> tuple[float, ...]:
    """Rates of a schedule: a linear rise over the first steps, then a fall.

    Args:
        peak: the largest rate.
        steps: number of updates.
        warm_up: how many of them the rise takes.
        shape: of the fall: "cosine", "linear", or "constant" for none.
        last: where the fall would be one step after its end, as a part of the peak: 0 to 1.
        constant: after the rise the rate changes every so many steps, e.g. once an epoch.  (A GPU repeats steps of one
            rate as they were recorded: of small networks that saves most of the time.)

    Returns:
        `learning_rate` of a training.

    Raises:
        ValueError, TypeError: naming the argument that is out of range, or that the shape does not use.

    Example:
        >>> [round(rate, 2) for rate in dmft.learning_rates(1.0, steps=6, warm_up=2)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    peak, steps = _check.positive("peak", peak), _check.integer("steps", steps, minimum=1)
    warm_up, constant = _check.integer("warm_up", warm_up, minimum=0), _check.integer("constant", constant, minimum=1)
    last = _check.nonnegative("last", last)
    if shape not in FALLS:
        raise ValueError(f"shape={shape!r} is unknown; choose one of {', '.join(FALLS)}.")
    if warm_up >= steps:
        raise ValueError(f"warm_up={warm_up} leaves none of the steps={steps}; take a shorter one, or more steps.")
    if last > 1:
        raise ValueError(f"last={last} is a part of the peak, which is the largest rate; give a number from 0 to 1.")
    if shape == "constant" and (last or constant > 1):
        unused = f"last={last}" if last else f"constant={constant}"
        raise ValueError(f'{unused} is for a fall, and shape="constant" has none; leave it out, or take "cosine".')
    if 1 < constant >= steps - warm_up:
        raise ValueError(
            f"constant={constant} leaves one rate for all of the {steps - warm_up} steps after the rise; take fewer, "
            'or say shape="constant".'
        )
    t = np.arange(steps)
    held = (t - warm_up) // constant * constant
    fallen = FALLS[shape](np.clip(held / (steps - warm_up), 0, 1))
    rising = np.minimum((t + 1) / warm_up, 1.0) if warm_up else np.ones(steps)
    rates = peak * np.where(t < warm_up, rising, last + (1 - last) * fallen)
    return tuple(rates.tolist())


FALLS: dict[str, Any] = {  # from 1 at 0 to 0 at 1
    "cosine": lambda s: (1 + np.cos(np.pi * s)) / 2,
    "linear": lambda s: 1 - s,
    "constant": np.ones_like,
}


def one_pass(n_train: int, size: int) -> NDArray[np.int64]:
    """(step, position): consecutive batches, each sample in one of them (online learning); n_train // size steps.

    Example:
        >>> dmft.one_pass(n_train=6, size=2).tolist()
        [[0, 1], [2, 3], [4, 5]]
    """
    n_train = _check.integer("n_train", n_train, minimum=1)
    size = _batch_size(size, n_train)
    return np.arange(n_train // size * size).reshape(-1, size)


def _batch_size(size: int, n_train: int) -> int:
    size = _check.integer("size", size, minimum=1)
    if size > n_train:
        raise ValueError(f"size={size} is more than the n_train={n_train} samples; take a smaller batch.")
    return size


def checked_rates(name: str, value: float | ArrayLike, steps: int, *, zeros: bool = False) -> float | tuple[float, ...]:
    """One rate, or one for each step, of which some may be zero if `zeros` says so, but not all."""
    if np.ndim(value) == 0:
        return _check.positive(name, value.item() if isinstance(value, np.ndarray) else value)
    check = _check.nonnegative if zeros else _check.positive
    rates = tuple(check(f"{name}[{i}]", rate) for i, rate in enumerate(_check.real_array(name, value).tolist()))
    if len(rates) != steps:
        raise ValueError(f"{name} has {len(rates)} entries for {steps} steps; give one number, or one for each step.")
    if not any(rates):
        raise ValueError(f"{name} is zero at every step: nothing would be learned; give at least one positive rate.")
    return rates


def checked_batches(value: ArrayLike | Epochs | Mapping[str, Any], steps: int) -> Batches:
    """Indices (step, position) of training samples, as tuples; or `Epochs`, perhaps as JSON describes them."""
    if isinstance(value, Mapping):
        value = Epochs(**value)
    if isinstance(value, Epochs):
        return value
    try:
        indices = _check.real_array("batches", value)
    except TypeError as error:
        if isinstance(error.__cause__, ValueError):  # NumPy's, of ragged lists
            raise ValueError("batches are of different sizes; give as many samples at every step.") from error
        raise
    if indices.ndim != 2 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"batches has shape {indices.shape} and dtype {indices.dtype}; expected integers (step, position)."
        )
    if len(indices) != steps:
        raise ValueError(f"batches holds {len(indices)} batches for {steps} steps; give one for each.")
    if indices.shape[1] == 0 or indices.min() < 0:
        raise ValueError("batches must hold at least one sample each, and no negative index.")
    repeated = [t for t, batch in enumerate(indices) if len(np.unique(batch)) < len(batch)]
    if repeated:
        raise ValueError(f"the batch of step {repeated[0]} holds a sample twice; the samples of a batch must differ.")
    return tuple(tuple(batch) for batch in indices.tolist())


def checked_observe(value: str) -> str:
    """One of `OBSERVE`."""
    if value not in OBSERVE:
        raise ValueError(f"observe={value!r} is unknown; choose one of {', '.join(OBSERVE)}.")
    return value
