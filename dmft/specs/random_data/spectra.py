"""Spectra: the covariance of random data, and how the target lies in it.

    psi ~ N(0, diag lambda_k),   y = w* . psi + noise            each eigenvalue mu_k times

    power law     lambda_k = k^-b,   lambda_k w*_k^2 = k^-a,   k = 1 .. modes          b the capacity, a the source
                  loss curves see beta = (a - 1) / b: sum_{lambda_k < 1/t} lambda_k w*_k^2 ~ t^-beta
    isotropic     lambda_k = 1,   sum w*^2 = 1
    measured      K / n = U diag(lambda) U^T,   lambda_k w*_k^2 = (u_k . y)^2 / n      of a kernel on n samples

    lambda_k   eigenvalues (mode,)          w*_k^2   power of the target, summed over the mu_k copies (mode,)
    mu_k       multiplicities (mode,)       M        number of modes, sum mu_k

Beyond a few thousand modes `power_law` takes modes spaced evenly in log k, each standing for the mu_k = dk around it,
so that k = 1e11 costs no more than k = 1e4.

Source: B. Bordelon, A. Atanasov, C. Pehlevan, arXiv:2402.01092 and 2409.17858 (a, b, beta); A. Canatar, B. Bordelon,
C. Pehlevan, Nat. Commun. 12, 2914 (2021) (kernels of real data).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.specs import _check

Array = NDArray[np.float64]
EXACT_MODES = 4096  # up to which a power law has a mode for each k
PER_DECADE = 400  # of modes that are spaced evenly in log k, beyond the first EXACT_MODES / 4
FLOOR = 1e-13  # of the largest eigenvalue of a measured kernel, below which others are rounding


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of the data's covariance, and the target's power in each.

    Args:
        eigenvalues: lambda_k, (mode,), positive.
        power: w*_k^2, (mode,), summed over the copies of an eigenvalue.
        multiplicity: mu_k, (mode,), how many modes have this eigenvalue; one each by default.

    Raises:
        ValueError, TypeError: other shapes, negative or non-finite numbers, a zero eigenvalue.

    Example:
        >>> Spectrum([1.0, 0.5], [0.3, 0.7], [10, 20]).modes
        30.0
    """

    eigenvalues: Array
    power: Array
    multiplicity: Array | None = None

    def __post_init__(self) -> None:
        lam = _check.finite_array("eigenvalues", self.eigenvalues, ("mode",))
        copies = np.ones(len(lam)) if self.multiplicity is None else self.multiplicity
        given: dict[str, Any] = {"eigenvalues": lam, "power": self.power, "multiplicity": copies}
        for name, value in given.items():
            array = _check.finite_array(name, value, ("mode",))
            if len(array) != len(lam):
                raise ValueError(f"{name} has {len(array)} entries for {len(lam)} eigenvalues; give one for each.")
            bad = array < 0 if name == "power" else array <= 0
            if bad.any():
                at = int(np.argmax(bad))
                raise ValueError(
                    f"{name}[{at}]={array[at]:g} must be {'at least 0' if name == 'power' else 'positive'}; modes "
                    "without variance are left out."
                )
            object.__setattr__(self, name, array)

    @property
    def copies(self) -> Array:
        """mu_k (mode,)."""
        assert self.multiplicity is not None
        return self.multiplicity

    @property
    def modes(self) -> float:
        """M = sum_k mu_k."""
        return float(self.copies.sum())

    @property
    def trace(self) -> float:
        """sum_k mu_k lambda_k, the mean square of an input."""
        return float(self.copies @ self.eigenvalues)

    @property
    def signal(self) -> float:
        """sum_k lambda_k w*_k^2, the variance of the target without its noise: the loss of the zero predictor."""
        return float(self.eigenvalues @ self.power)

    def coarse(self, per_decade: float) -> Spectrum:
        """The spectrum with modes within 1 / per_decade of a decade of each other as one, at their mean eigenvalue:
        sums over modes of smooth functions change by the square of that relative width."""
        place = np.floor(per_decade * np.log10(self.eigenvalues)).astype(np.int64)
        _, group = np.unique(place, return_inverse=True)
        copies = np.asarray(np.bincount(group, self.copies), np.float64)
        lam = np.bincount(group, self.copies * self.eigenvalues) / copies
        signal = np.bincount(group, self.eigenvalues * self.power)
        return Spectrum(lam, signal / lam, copies)

    def scaled(self, scale: float) -> Spectrum:
        """The spectrum with every mode `scale` times and the same target power: that of a problem of this scale."""
        return Spectrum(self.eigenvalues, self.power, self.copies * scale)

    def __repr__(self) -> str:
        return f"Spectrum({self.modes:g} modes, trace {self.trace:.4g}, signal {self.signal:.4g})"


def power_law(modes: float, capacity: float, source: float) -> Spectrum:
    """lambda_k = k^-capacity, lambda_k w*_k^2 = k^-source for k = 1 .. modes.

    Args:
        modes: how many; up to `EXACT_MODES` one for each k, more (1e11, say) evenly spaced in log k from
            k = EXACT_MODES / 4 on, with multiplicities.
        capacity: b above 1, how fast eigenvalues fall.
        source: a above 1, how fast the target's variance falls; loss curves see beta = (a - 1) / b.

    Raises:
        ValueError: a spectrum or a target that is not summable: its trace would be set by the number of modes.

    Example:
        >>> power_law(1e11, capacity=1.5, source=1.75)
        Spectrum(1e+11 modes, trace 2.612, signal 1.962)
    """
    modes = _check.positive("modes", modes)
    for name, value, what in (("capacity", capacity, "eigenvalues"), ("source", source, "target")):
        _check.positive(name, value)
        if value <= 1:
            raise ValueError(
                f"{name}={value:g}: the {what} of such a power law are not summable, and every result would depend on "
                f"modes={modes:g}. Take {name} > 1, or give eigenvalues and power of your own to Spectrum."
            )
    if modes <= EXACT_MODES:
        edges = np.arange(1.0, _check.integer("modes", int(modes), minimum=1) + 2) - 0.5
        k = np.arange(1.0, int(modes) + 1)
    else:
        exact = EXACT_MODES // 4
        count = int(np.ceil(PER_DECADE * np.log10(modes / exact)))
        tail = np.geomspace(exact + 0.5, modes + 0.5, count + 1)
        edges = np.concatenate([np.arange(0.5, exact + 0.5), tail])
        k = np.concatenate([np.arange(1.0, exact + 1), np.sqrt(tail[1:] * tail[:-1])])
    copies = np.diff(edges)
    lam = _cell_mean(edges, k, capacity)
    return Spectrum(lam, copies * _cell_mean(edges, k, source) / lam, copies)


def _cell_mean(edges: Array, k: Array, exponent: float) -> Array:
    """k^-exponent of single modes, and its mean over the cell of those that stand for many."""
    wide = np.diff(edges) > 1 + 1e-9
    mean = k**-exponent
    lo, hi = edges[:-1][wide], edges[1:][wide]
    mean[wide] = (lo ** (1 - exponent) - hi ** (1 - exponent)) / ((exponent - 1) * (hi - lo))
    return mean


def isotropic(modes: float) -> Spectrum:
    """White inputs in so many dimensions, and a target of unit power.

    Args:
        modes: the dimension D.

    Example:
        >>> isotropic(50).signal
        1.0
    """
    return Spectrum(np.ones(1), np.ones(1), np.array([_check.positive("modes", modes)]))


def measured(kernel: ArrayLike, targets: ArrayLike) -> Spectrum:
    """The spectrum of a kernel on a user's samples, and where their targets lie in it.

    Args:
        kernel: K (sample, sample_2), symmetric without negative eigenvalues, e.g. the NTK of `dmft.lazy_limit`, or
            x @ x.T of inputs themselves.
        targets: y (sample,), or (sample, output), whose powers add up; nothing is subtracted from them.

    Returns:
        Eigenvalues of K / n, descending; those below `FLOOR` of the largest are raised to it, so that what of the
        target lies there stays in the loss.

    Raises:
        ValueError, TypeError: shapes that do not fit, a kernel that is not symmetric or clearly not positive.

    Example:
        >>> x, y = np.random.default_rng(0).standard_normal((5, 8)), np.ones(5)
        >>> round(measured(x @ x.T, y).signal, 6)  # mean square of the targets
        1.0
    """
    K = _check.finite_array("kernel", kernel, ("sample", "sample_2"))
    y = _check.real_array("targets", targets)
    y = _check.finite_array("targets", y, ("sample", "output") if y.ndim == 2 else ("sample",))
    if K.shape[0] != K.shape[1] or len(y) != len(K):
        raise ValueError(f"kernel has shape {K.shape} and targets {y.shape}; give (n, n) and (n,) or (n, output).")
    if not np.allclose(K, K.T, rtol=1e-8, atol=1e-8 * np.abs(K).max()):
        raise ValueError("kernel is not symmetric; give K(x_i, x_j) of one set of samples.")
    values, U = np.linalg.eigh((K + K.T) / (2 * len(K)))
    if not values[-1] > 0 or values[0] < -1e-6 * values[-1]:
        raise ValueError(
            f"kernel has eigenvalues from {values[0]:.3g} to {values[-1]:.3g}; a kernel has none below zero."
        )
    lam = np.maximum(values, FLOOR * values[-1])[::-1]
    signal = ((U.T @ y.reshape(len(y), -1)) ** 2).sum(axis=1)[::-1] / len(y)
    return Spectrum(lam, signal / lam)
