"""The best learning-rate schedule of one-pass SGD, by gradient descent through the theory.

Of a linear model on all features, c_k = <v0_k^2> summed over copies, batches of B fresh Gaussian samples, at any B:

    c_k(t+1) = (1 - eta_t lambda_k)^2 c_k + (eta_t^2/B) lambda_k [ lambda_k c_k + mu_k (L + sigma^2) ]
    L = sum_k lambda_k c_k

minimised over eta_0 .. eta_{T-1} within bounds: L(T), with its gradient by the adjoint recursion

    a_k(T) = lambda_k
    a_k(t) = (1 - eta lambda_k)^2 a_k + (eta^2/B) lambda_k [ lambda_k a_k + sum_j mu_j lambda_j a_j ]

    eta_t rate of step t        B batch        sigma^2 noise of labels        mu_k multiplicity

Cost: O(T M) a gradient; L-BFGS-B with bounds takes some hundreds.

Source: A. Atanasov et al., arXiv:2502.05074, for the recursion (N = infinity of `dmft.random_data.sgd`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]
ITERATIONS = 5000
MEMORY = 40  # pairs of steps and gradients that stand for the Hessian
PRECISION = 1e-15  # relative change of the loss at which the search ends


@dataclass(frozen=True)
class Schedule:
    """rates (step,), the loss L (step,) at steps 0 .. T under them, and how often the theory was run."""

    rates: Array
    loss: Array
    evaluations: int


def scheduled_loss(spectrum: Spectrum, rates: Array, *, batch: float, noise: float = 0.0) -> Array:
    """Excess test loss L (step,) of steps 0 .. T under given rates.

    Args:
        spectrum: of data and target.
        rates: eta_t (step,).
        batch: B.
        noise: sigma^2.

    Example:
        >>> from dmft.random_data import power_law
        >>> scheduled_loss(power_law(50, 1.25, 1.5), [0.5, 0.5], batch=4).round(3)
        array([2.331, 1.605, 1.242])
    """
    given = _check.finite_array("rates", rates, ("step",))
    path = _forward(spectrum, given, _check.positive("batch", batch), _check.nonnegative("noise", noise))
    return np.asarray(path @ spectrum.eigenvalues)


def optimal_schedule(
    spectrum: Spectrum,
    steps: int,
    *,
    batch: float,
    noise: float = 0.0,
    largest: float = 2.0,
    start: float = 0.5,
) -> Schedule:
    """The rates that make the loss after the last step as small as it can be.

    Args:
        spectrum: of data and target.
        steps: T.
        batch: B.
        noise: sigma^2.
        largest: upper bound of the rates; the lower one is 0.
        start: the constant rate from which the search starts.

    Raises:
        ValueError, TypeError: arguments out of range.  ArithmeticError: the search did not converge.

    Example:
        >>> from dmft.random_data import power_law
        >>> found = optimal_schedule(power_law(50, 1.25, 1.5), 8, batch=1, noise=0.25)
        >>> bool(found.loss[-1] < scheduled_loss(power_law(50, 1.25, 1.5), [0.5] * 8, batch=1, noise=0.25)[-1])
        True
    """
    T, B, sigma2 = (
        _check.integer("steps", steps, minimum=1),
        _check.positive("batch", batch),
        _check.nonnegative("noise", noise),
    )
    largest = _check.positive("largest", largest)
    if not 0 <= start <= largest:
        raise ValueError(f"start={start} must lie between 0 and largest={largest}.")
    found: Any = minimize(  # type: ignore[call-overload]
        lambda rates: _loss_and_gradient(spectrum, rates, B, sigma2),
        np.full(T, float(start)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, largest)] * T,
        options={"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "maxcor": MEMORY, "ftol": PRECISION, "gtol": 0.0},
    )
    if not np.isfinite(found.fun) or found.nit >= ITERATIONS:
        raise ArithmeticError(f"the search of a schedule did not converge: {found.message}. Take another start.")
    return Schedule(found.x, _forward(spectrum, found.x, B, sigma2) @ spectrum.eigenvalues, int(found.nfev))


def _forward(spectrum: Spectrum, rates: Array, B: float, sigma2: float) -> Array:
    """c (step, mode)."""
    lam, mu = spectrum.eigenvalues, spectrum.copies
    path = np.empty((len(rates) + 1, len(lam)))
    path[0] = spectrum.power
    for t, eta in enumerate(rates):
        c = path[t]
        path[t + 1] = (1 - eta * lam) ** 2 * c + eta**2 / B * lam * (lam * c + mu * (lam @ c + sigma2))
    return path


def _loss_and_gradient(spectrum: Spectrum, rates: Array, B: float, sigma2: float) -> tuple[float, Array]:
    lam, mu = spectrum.eigenvalues, spectrum.copies
    path, a, gradient = _forward(spectrum, rates, B, sigma2), lam.copy(), np.empty(len(rates))
    loss = float(lam @ path[-1])
    for t in range(len(rates) - 1, -1, -1):
        c, eta = path[t], rates[t]
        noise = lam * (lam * c + mu * (lam @ c + sigma2))
        gradient[t] = a @ (-2 * lam * (1 - eta * lam) * c + 2 * eta / B * noise)
        a = (1 - eta * lam) ** 2 * a + eta**2 / B * lam * (lam * a + (mu * lam) @ a)
    return loss, gradient
