"""Losses ell(f, y) of one sample, with outputs f_c, summed over c where it shows no sum of its own.

    squared         (f_c - y_c)^2 / 2
    logistic        log(1 + exp(-y_c f_c))               y_c = -1, +1
    hinge           max(0, 1 - y_c f_c)                  y_c = -1, +1
    cross_entropy   log sum_c exp f_c - sum_c y_c f_c    y_c >= 0, sum_c y_c = 1

    descent     Delta_c = -d ell / d f_c                 curvature   H_cc' = d^2 ell / d f_c d f_c'

A loss is an entry of `LOSSES`; nothing else asks for its name.  The formulas serve NumPy, JAX and PyTorch: the first
argument is the module (numpy, jax.numpy, torch).  Predictions and targets are (..., sample, output).

Where a network has outputs at each of X positions, side by side, ell is the sum over positions of that of the outputs
of each: such a loss goes by the name "cross_entropy/X" (`of_positions`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Formula = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Loss:
    """ell(f, y) of one sample.

    Args:
        values: (xp, f, y) -> ell, (..., sample).
        descent: (xp, f, y) -> Delta, (..., sample, output).
        curvature: (xp, f, y) -> H, (..., sample, output, output_2).
        check: (targets) -> None, or the ValueError of targets (sample, output) that do not suit it.
        for_classes: whether targets are classes: results have accuracies, too.
        quadratic: whether its second derivative is a constant: expectations are those of mean and variance.
        jumps: whether Delta jumps.
    """

    values: Formula
    descent: Formula
    curvature: Formula
    check: Callable[[NDArray[np.float64]], None]
    for_classes: bool = False
    quadratic: bool = False
    jumps: bool = False


def of_positions(loss: str, count: int) -> str:
    """The name of a loss of samples with outputs at so many positions; 0: of their own.

    Example:
        >>> f, y = np.log([[1, 3, 1, 1]]), np.array([[0, 1, 1, 0]])  # two outputs at two positions
        >>> np.exp(-dmft.specs.loss.values(np, dmft.specs.loss.of_positions("cross_entropy", 2), f, y)).round(3)
        array([0.375])
    """
    return f"{loss}/{count}" if count else loss


def _found(name: str) -> tuple[Loss, int]:
    """A loss, and the number of positions whose outputs are side by side."""
    loss, _, count = name.partition("/")
    return LOSSES[loss], int(count or 1)


def values(xp: Any, loss: str, f: Any, y: Any) -> Any:
    """ell, (..., sample)."""
    found, count = _found(loss)
    if count == 1:
        return found.values(xp, f, y)
    return found.values(xp, _by_position(f, count), _by_position(y, count)).sum(-1)


def descent(xp: Any, loss: str, f: Any, y: Any) -> Any:
    """Delta, (..., sample, output)."""
    found, count = _found(loss)
    if count == 1:
        return found.descent(xp, f, y)
    return found.descent(xp, _by_position(f, count), _by_position(y, count)).reshape(f.shape)


def curvature(xp: Any, loss: str, f: Any, y: Any) -> Any:
    """H, (..., sample, output, output_2)."""
    found, count = _found(loss)
    if count == 1:
        return found.curvature(xp, f, y)
    each = found.curvature(xp, _by_position(f, count), _by_position(y, count))  # (..., position, output, output_2)
    blocks = _diagonal(xp, xp.moveaxis(each, -3, -1))  # (..., output, output_2, position, position_2)
    whole = xp.moveaxis(blocks, (-2, -4, -1, -3), (-4, -3, -2, -1))
    return whole.reshape(*f.shape, f.shape[-1])


def correct(xp: Any, loss: str, f: Any, y: Any) -> Any:
    """Share of a sample that is classified correctly, (..., sample): 1 or 0, or between where classes tie, or where
    several positions are classified.

    The class is the largest output, or the sign of a single one; with signs as targets of several outputs, the largest.
    """
    _, count = _found(loss)
    if count > 1:
        return _correct(xp, _by_position(f, count), _by_position(y, count)).mean(-1)
    return _correct(xp, f, y)


def _by_position(a: Any, count: int) -> Any:
    """(..., position, output) of outputs at so many positions side by side."""
    return a.reshape(*a.shape[:-1], count, a.shape[-1] // count)


def _correct(xp: Any, f: Any, y: Any) -> Any:
    if f.shape[-1] == 1:
        agree = f[..., 0] * y[..., 0]
        return (1 + xp.sign(agree)) / 2
    one = xp.ones_like(f)  # counted in the dtype of f
    top = one * (f == xp.amax(f, axis=-1, keepdims=True))
    right = y == xp.amax(y, axis=-1, keepdims=True)
    return (top * right).sum(axis=-1) / top.sum(axis=-1)


def of_classes(loss: str, y: NDArray[np.float64]) -> bool:
    """Whether targets (sample, output) are classes: signs of a single output, or one-hot rows of several."""
    y = _of_each(loss, y)
    if y.shape[1] == 1:
        return bool(np.isin(y, (-1.0, 1.0)).all())
    return bool(np.isin(y, (0.0, 1.0)).all() and (y.sum(axis=1) == 1).all()) or bool(
        np.isin(y, (-1.0, 1.0)).all() and ((y > 0).sum(axis=1) == 1).all()
    )


# ---- the losses ------------------------------------------------------------------------------------------------------


def _logistic_curvature(xp: Any, f: Any, y: Any) -> Any:
    p = _sigmoid(xp, y * f)
    return _diagonal(xp, p * (1 - p))


def _cross_entropy(xp: Any, f: Any, y: Any) -> Any:
    top = xp.amax(f, axis=-1, keepdims=True)
    log_sum = xp.log(xp.exp(f - top).sum(axis=-1)) + top[..., 0]
    return log_sum - (y * f).sum(axis=-1)


def _cross_entropy_curvature(xp: Any, f: Any, y: Any) -> Any:
    del y
    p = _softmax(xp, f)
    return _diagonal(xp, p) - p[..., :, None] * p[..., None, :]


def _any_numbers(y: NDArray[np.float64]) -> None:
    del y


def _signs(y: NDArray[np.float64]) -> None:
    if not np.isin(y, (-1.0, 1.0)).all():
        bad = y[~np.isin(y, (-1.0, 1.0))][0]
        raise ValueError(f"needs targets -1 or +1; found {bad}. For one-hot targets give 2 y - 1.")


def _probabilities(y: NDArray[np.float64]) -> None:
    if y.shape[1] < 2 or (y < 0).any() or not np.allclose(y.sum(axis=1), 1):
        raise ValueError(
            "needs targets (sample, output) of at least two outputs, probabilities of the classes, e.g. one-hot; found "
            f"shape {y.shape} with sums from {y.sum(axis=1).min():g} to {y.sum(axis=1).max():g}. For targets -1 and +1 "
            'take loss="logistic".'
        )


def _positive(xp: Any, a: Any) -> Any:
    return xp.where(a > 0, a, 0 * a)


def _sigmoid(xp: Any, a: Any) -> Any:
    return xp.exp(-xp.logaddexp(0 * a, -a))


def _softmax(xp: Any, f: Any) -> Any:
    e = xp.exp(f - xp.amax(f, axis=-1, keepdims=True))
    return e / e.sum(axis=-1)[..., None]


def _diagonal(xp: Any, a: Any) -> Any:
    """(..., n) on the diagonal of (..., n, n)."""
    index = xp.cumsum(xp.ones_like(a), axis=-1)  # made from `a`: on its device
    same = index[..., :, None] == index[..., None, :]
    return xp.where(same, a[..., :, None] + 0 * a[..., None, :], 0 * a[..., :, None])


LOSSES = {
    "squared": Loss(
        values=lambda xp, f, y: ((f - y) ** 2 / 2).sum(axis=-1),
        descent=lambda xp, f, y: y - f,
        curvature=lambda xp, f, y: _diagonal(xp, 1 + 0 * f),
        check=_any_numbers,
        quadratic=True,
    ),
    "logistic": Loss(
        values=lambda xp, f, y: xp.logaddexp(0 * f, -y * f).sum(axis=-1),
        descent=lambda xp, f, y: y * _sigmoid(xp, -y * f),
        curvature=_logistic_curvature,
        check=_signs,
        for_classes=True,
    ),
    "hinge": Loss(
        values=lambda xp, f, y: _positive(xp, 1 - y * f).sum(axis=-1),
        descent=lambda xp, f, y: xp.where(y * f < 1, y + 0 * f, 0 * f),
        curvature=lambda xp, f, y: _diagonal(xp, 0 * f),
        check=_signs,
        for_classes=True,
        jumps=True,
    ),
    "cross_entropy": Loss(
        values=_cross_entropy,
        descent=lambda xp, f, y: y - _softmax(xp, f),
        curvature=_cross_entropy_curvature,
        check=_probabilities,
        for_classes=True,
    ),
}


def check_targets(loss: str, y: NDArray[np.float64]) -> None:
    """ValueError if targets (sample, output) do not suit the loss."""
    found, count = _found(loss)
    try:
        found.check(_of_each(loss, y))
    except ValueError as error:
        name = repr(loss.partition("/")[0]) + (f", of each of {count} positions," if count > 1 else "")
        raise ValueError(f"loss={name} {error}") from None


def _of_each(loss: str, y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Targets of every position of every sample, one after the other."""
    _, count = _found(loss)
    return y.reshape(-1, y.shape[1] // count)
