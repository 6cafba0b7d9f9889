"""Losses ell(f, y) of one sample, with outputs f_c, summed over c where it shows no sum of its own.

    squared         (f_c - y_c)^2 / 2
    logistic        log(1 + exp(-y_c f_c))               y_c = -1, +1
    hinge           max(0, 1 - y_c f_c)                  y_c = -1, +1
    cross_entropy   log sum_c exp f_c - sum_c y_c f_c    y_c >= 0, sum_c y_c = 1

    descent     Delta_c = -d ell / d f_c                 curvature   H_cc' = d^2 ell / d f_c d f_c'

The formulas serve NumPy, JAX and PyTorch: the first argument is the module (numpy, jax.numpy, torch).  Predictions and
targets are (..., sample, output).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOSSES = ("squared", "logistic", "hinge", "cross_entropy")
CLASSIFICATION = ("logistic", "hinge", "cross_entropy")


def values(xp: Any, loss: str, f: Any, y: Any) -> Any:
    """ell, (..., sample)."""
    if loss == "squared":
        each = (f - y) ** 2 / 2
    elif loss == "logistic":
        each = xp.logaddexp(0 * f, -y * f)
    elif loss == "hinge":
        each = _positive(xp, 1 - y * f)
    else:
        top = xp.amax(f, axis=-1, keepdims=True)
        log_sum = xp.log(xp.exp(f - top).sum(axis=-1)) + top[..., 0]
        return log_sum - (y * f).sum(axis=-1)
    return each.sum(axis=-1)


def descent(xp: Any, loss: str, f: Any, y: Any) -> Any:
    """Delta, (..., sample, output)."""
    if loss == "squared":
        return y - f
    if loss == "logistic":
        return y * _sigmoid(xp, -y * f)
    if loss == "hinge":
        return xp.where(y * f < 1, y + 0 * f, 0 * f)
    return y - _softmax(xp, f)


def curvature(xp: Any, loss: str, f: Any, y: Any) -> Any:
    """H, (..., sample, output, output_2)."""
    if loss == "squared":
        return _diagonal(xp, 1 + 0 * f)
    if loss == "logistic":
        p = _sigmoid(xp, y * f)
        return _diagonal(xp, p * (1 - p))
    if loss == "hinge":
        return _diagonal(xp, 0 * f)
    p = _softmax(xp, f)
    return _diagonal(xp, p) - p[..., :, None] * p[..., None, :]


def correct(xp: Any, f: Any, y: Any) -> Any:
    """Share of a sample that is classified correctly, (..., sample): 1 or 0, less than 1 where classes tie.

    The class is the largest output, or the sign of a single one; with signs as targets of several outputs, the largest.
    """
    if f.shape[-1] == 1:
        agree = f[..., 0] * y[..., 0]
        return (1 + xp.sign(agree)) / 2
    one = xp.ones_like(f)  # counted in the dtype of f
    top = one * (f == xp.amax(f, axis=-1, keepdims=True))
    right = y == xp.amax(y, axis=-1, keepdims=True)
    return (top * right).sum(axis=-1) / top.sum(axis=-1)


def of_classes(y: NDArray[np.float64]) -> bool:
    """Whether targets (sample, output) are classes: signs of a single output, or one-hot rows of several."""
    if y.shape[1] == 1:
        return bool(np.isin(y, (-1.0, 1.0)).all())
    return bool(np.isin(y, (0.0, 1.0)).all() and (y.sum(axis=1) == 1).all()) or bool(
        np.isin(y, (-1.0, 1.0)).all() and ((y > 0).sum(axis=1) == 1).all()
    )


def check_targets(loss: str, y: NDArray[np.float64]) -> None:
    """ValueError if targets (sample, output) do not suit the loss."""
    if loss in ("logistic", "hinge"):
        if not np.isin(y, (-1.0, 1.0)).all():
            bad = y[~np.isin(y, (-1.0, 1.0))][0]
            raise ValueError(f"loss={loss!r} needs targets -1 or +1; found {bad}. For one-hot targets give 2 y - 1.")
    elif loss == "cross_entropy" and (y.shape[1] < 2 or (y < 0).any() or not np.allclose(y.sum(axis=1), 1)):
        raise ValueError(
            f'loss="cross_entropy" needs targets (sample, output) of at least two outputs, probabilities of the '
            f"classes, e.g. one-hot; found shape {y.shape} with sums from {y.sum(axis=1).min():g} to "
            f'{y.sum(axis=1).max():g}. For targets -1 and +1 take loss="logistic".'
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
