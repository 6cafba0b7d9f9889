"""The samples of each step, and the rates: how they are made, and what they have to be."""

from __future__ import annotations

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


def checked_batches(value: ArrayLike, steps: int) -> tuple[tuple[int, ...], ...]:
    """Indices (step, position) of training samples, as tuples."""
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
