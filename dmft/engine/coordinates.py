"""Coordinates of inputs in the span of all of them."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr

from dmft.engine.basis import rounding
from dmft.specs.parameterization import with_bias
from dmft.specs.problem import Problem

MANY = 4096  # rows of inputs, beyond which their span is not looked for
KEPT = 2**23  # bytes of inputs, up to which their coordinates are, which have twice as many at most
Coordinates = tuple[NDArray[np.float64], NDArray[np.float64]]
_last: dict[str, Coordinates] = {}  # of the inputs that were asked for last, by their digest


def input_coordinates(problem: Problem) -> Coordinates:
    """X (sample, [position,] direction of their span) with X X^T = K^x + bias^2, and these directions (direction of the
    span, input direction), orthonormal; directions of rounding size are left out.  Of many samples these are the
    features, the largest first."""
    given = problem.network.inputs(problem.task.x)
    x = with_bias(given.reshape(-1, given.shape[-1]), problem.network.bias)
    if len(x) > max(MANY, x.shape[1]):
        squares = np.sum(x**2, axis=0)
        features = np.argsort(-squares, stable=True)[: np.count_nonzero(squares > rounding(x) * squares.sum())]
        return x[:, features].reshape(*given.shape[:-1], -1), np.eye(x.shape[1])[features]
    X, directions = _of_span(x)
    return X.reshape(*given.shape[:-1], -1), directions


def _of_span(x: NDArray[np.float64]) -> Coordinates:
    """Of few samples: one problem after the other has the same, and a library that shares its small products among
    many cores takes as long as all the rest of what comes before a training."""
    if x.nbytes > KEPT:
        return _factored(x)
    digest = hashlib.sha256(repr(x.shape).encode())
    digest.update(np.ascontiguousarray(x).data)
    found = _last.get(digest.hexdigest())
    if found is None:
        found = _factored(x)
        _last.clear()
        _last[digest.hexdigest()] = found
    return found


def _factored(x: NDArray[np.float64]) -> Coordinates:
    Q, R, order = qr(x.T, mode="economic", pivoting=True)  # of the Gram matrix a Cholesky factor of the same pivots
    squares = np.diagonal(R) ** 2
    live = squares > rounding(x) * np.mean(np.sum(x**2, axis=1))
    signs, X = np.sign(np.diagonal(R)[live]), np.empty((len(x), int(live.sum())))
    X[order] = (R[: len(live)][live] * signs[:, None]).T
    directions = signs[:, None] * Q.T[: len(live)][live]
    for each in (X, directions):
        each.setflags(write=False)
    return X, directions
