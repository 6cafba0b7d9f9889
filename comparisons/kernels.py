"""Functions of kernels K (..., event, event_2), which are symmetric; NumPy.

alignment           <K, R> / (|K| |R|)                        < , > and | | of Frobenius
centred (CKA)       the same of H K H, H R H, H = 1 - 1 1^T / n                                (Cortes et al. 2012)
unbiased CKA        HSIC_1(K, R) / sqrt(HSIC_1(K, K) HSIC_1(R, R)), of the U-statistic (Song et al. 2012), with the
                    diagonals of K and R left out:
                    HSIC_1 = [tr K R + (1 K 1)(1 R 1) / ((n-1)(n-2)) - 2 (1 K R 1) / (n-2)] / (n (n-3))
distance            |K - R| / |R|
power               of targets y in the top m modes, sum_{k<=m} |v_k . y|^2 / |y|^2, v_k the eigenvectors of K
regression          f(x) = K(x, X) (K(X, X) + ridge <K_aa> 1)^-1 y
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Measure = Callable[[Array, Array], Array]
EVENTS = (-2, -1)
FEWEST_UNBIASED = 4  # events that HSIC_1 needs


def by_event(kernel: xr.DataArray) -> Array:
    """Values ([layer, ]step, event, event_2) of a kernel; an event is a sample, with an output if it has one."""
    values = np.asarray(kernel.values, np.float64)
    if "output" not in kernel.dims:
        return values
    events = kernel.sizes["sample"] * kernel.sizes["output"]
    return values.reshape(*values.shape[:-4], events, events)


def events_of(labelled: xr.Dataset, split: str) -> tuple[Index, Array]:
    """Which events belong to a split, "train" or "test", and their targets (event,)."""
    where = np.flatnonzero(labelled["split"].values == split)
    y = np.asarray(labelled["target"].values, np.float64)
    outputs = y.shape[1] if y.ndim == 2 else 1
    return (where[:, None] * outputs + np.arange(outputs)).ravel(), y[where].ravel()


def alignment(K: Array, R: Array) -> Array:
    """(...), between -1 and 1."""
    return _cosine((K * R).sum(EVENTS), (K * K).sum(EVENTS), (R * R).sum(EVENTS))


def centred_alignment(K: Array, R: Array) -> Array:
    """(...), between 0 and 1 for positive kernels; nan for a kernel that does not vary but for rounding."""
    return alignment(*(np.where(_varies(K, (c := centred(K)) ** 2), c, 0.0) for K in (K, R)))


def unbiased_centred_alignment(K: Array, R: Array) -> Array:
    """(...); may exceed 1 or fall below 0 by noise.  Of at least four events."""
    K, R = _hollow(K), _hollow(R)
    return _cosine(_hsic(K, R), *(np.where(_hsic_varies(A), _hsic(A, A), 0.0) for A in (K, R)))


def distance(K: Array, R: Array) -> Array:
    """(...), relative to R."""
    return np.asarray(np.sqrt(((K - R) ** 2).sum(EVENTS) / (R * R).sum(EVENTS)))


def centred(K: Array) -> Array:
    return np.asarray(K - K.mean(-1, keepdims=True) - K.mean(-2, keepdims=True) + K.mean(EVENTS, keepdims=True))


def _varies(K: Array, centred_squares: Array) -> Array:
    """(..., 1, 1), whether more than rounding is left of a kernel where its mean is taken out."""
    rounding = K.shape[-1] * np.finfo(np.float64).eps
    return np.asarray(centred_squares.sum(EVENTS, keepdims=True) > rounding**2 * (K * K).sum(EVENTS, keepdims=True))


def _hollow(K: Array) -> Array:
    return np.where(np.eye(K.shape[-1], dtype=bool), 0.0, K)


def _hsic(K: Array, R: Array) -> Array:
    n = K.shape[-1]
    K_sums, R_sums = K.sum(-1), R.sum(-1)
    parts = (
        (K * R).sum(EVENTS)
        + K_sums.sum(-1) * R_sums.sum(-1) / ((n - 1) * (n - 2))
        - 2 * (K_sums * R_sums).sum(-1) / (n - 2)
    )
    return np.asarray(parts / (n * (n - 3)))


def _hsic_varies(K: Array) -> Array:
    """(...), whether HSIC_1(K, K), a difference of three sums of about |K|^2 / n^2, is more than their rounding."""
    sizes = (K * K).sum(EVENTS) / K.shape[-1] ** 2
    return np.asarray(_hsic(K, K) > K.shape[-1] * np.finfo(np.float64).eps * sizes)


def _cosine(inner: Array, square: Array, square_2: Array) -> Array:
    """nan where a square is not positive, as noise may make it."""
    scale = square * square_2
    both = (square > 0) & (square_2 > 0)
    return np.asarray(inner / np.sqrt(np.where(both, scale, np.nan)))


def modes(K: Array) -> tuple[Array, Array]:
    """Eigenvalues (..., mode), the largest first, and eigenvectors (..., event, mode)."""
    values, vectors = np.linalg.eigh(K)
    return values[..., ::-1], vectors[..., ::-1]


def projector(K: Array, number: int) -> Array:
    """(..., event, event_2), onto the first modes."""
    v = modes(K)[1][..., :number]
    return np.asarray(np.einsum("...ak,...bk->...ab", v, v))


def power(vectors: Array, y: Array) -> Array:
    """(..., mode), cumulative, of targets y (event,)."""
    shares = np.einsum("...ek,e->...k", vectors, y) ** 2 / (y @ y)
    return np.cumsum(shares, axis=-1)


def regression(K: Array, known: Index, unknown: Index, y: Array, ridge: float) -> Array:
    """Predictions (..., unknown event) from targets y (known event,), for positions `known`, `unknown` of events."""
    inner, outer = K[..., known[:, None], known], K[..., unknown[:, None], known]
    level = ridge * np.einsum("...aa->...", inner) / len(known)
    system = inner + level[..., None, None] * np.eye(len(known))
    right = np.broadcast_to(y, (*system.shape[:-1],))[..., None]
    return np.asarray((outer @ np.linalg.solve(system, right))[..., 0])


def noisy(K: Array, se: Array, *, draws: int = 64) -> Iterator[Array]:
    """A kernel whose entries have independent errors `se` (symmetric), as it might have come out."""
    rng = np.random.default_rng(0)
    for _ in range(draws):
        noise = np.tril(rng.standard_normal(K.shape) * se)
        yield K + noise + np.swapaxes(np.tril(noise, -1), -1, -2)


def noise_of(function: Callable[[Array], Array], K: Array, se: Array, *, draws: int = 64) -> Array:
    """Standard deviation of a function of such a kernel."""
    return np.asarray(np.std([function(drawn) for drawn in noisy(K, se, draws=draws)], axis=0, ddof=1))
