"""Inputs of a task, centered and scaled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NORMALIZATIONS = ("sphere", "standard", None)


def normalized(
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
