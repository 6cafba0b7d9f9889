"""The best learning-rate schedule of one-pass SGD, by gradient descent through the theory.

Of a linear model on all features, c_k = <v0_k^2> summed over copies, batches of B fresh Gaussian samples, at any B:

    c_k(t+1) = (1 - eta_t lambda_k)^2 c_k + (eta_t^2/B) lambda_k [ lambda_k c_k + mu_k (L + sigma^2) ]
    L = sum_k lambda_k c_k

minimised over eta_0 .. eta_{T-1} within bounds: log L(T), whose gradient JAX finds by going back through the recursion.
The logarithm lets the search come down from rates at which L explodes.

    eta_t rate of step t        B batch        sigma^2 noise of labels        mu_k multiplicity

Cost: O(T M) a gradient, of which L-BFGS-B takes some hundred.

Source: A. Atanasov et al., arXiv:2502.05074, for the recursion (N = infinity of `dmft.random_data.sgd`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]
ITERATIONS = 5000
MEMORY = 40  # pairs of steps and gradients that stand for the Hessian
STILL = 1e-9  # slope of log L along any rate, at which the search ends
CONVERGED = 1e-6  # the same where rounding ends it


@dataclass(frozen=True)
class Schedule:
    """rates (step,), the loss L (step,) at steps 0 .. T under them, how often the theory was run, and the largest slope
    of log L along a rate that is free to move."""

    rates: Array
    loss: Array
    evaluations: int
    slope: float


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
    eta = _check.finite_array("rates", rates, ("step",))
    B, sigma2 = _check.positive("batch", batch), _check.nonnegative("noise", noise)
    lam, mu, c = spectrum.eigenvalues, spectrum.copies, spectrum.power
    losses = [lam @ c]
    for each in eta:
        c = _step(c, each, lam, mu, B, sigma2)
        losses.append(lam @ c)
    return np.array(losses)


def _step(c: Any, eta: Any, lam: Any, mu: Any, B: float, sigma2: float) -> Any:
    """c after a step, of arrays of NumPy or JAX."""
    return (1 - eta * lam) ** 2 * c + eta**2 / B * lam * (lam * c + mu * (lam @ c + sigma2))


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
    loss = _log_loss(spectrum, B, sigma2)
    if not np.isfinite(loss(np.full(T, float(start)))[0]):
        raise ValueError(f"start={start:g} is beyond stability: its loss leaves the numbers. Start lower.")
    found: Any = minimize(
        loss,
        np.full(T, float(start)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, largest)] * T,
        options={"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "maxcor": MEMORY, "ftol": 0.0, "gtol": STILL},
    )
    rates = found.x
    slope = np.abs(rates - np.clip(rates - loss(rates)[1], 0.0, largest)).max()
    if not slope <= CONVERGED:
        raise ArithmeticError(
            f"the search of a schedule did not converge: slope {slope:.2g}, {found.message} Take another start."
        )
    return Schedule(rates, scheduled_loss(spectrum, rates, batch=B, noise=sigma2), int(found.nfev), float(slope))


def _log_loss(spectrum: Spectrum, B: float, sigma2: float) -> Callable[[Array], tuple[float, Array]]:
    """log L(T) and its gradient, of rates (step,)."""
    import jax

    given = spectrum.power, spectrum.eigenvalues, spectrum.copies, B, sigma2

    def found(rates: Array) -> tuple[float, Array]:
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            value, gradient = _compiled()(rates, *given)
            return float(value), np.asarray(gradient, np.float64)

    return found


@cache
def _compiled() -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def log_loss(rates: Any, power: Any, lam: Any, mu: Any, B: Any, sigma2: Any) -> Any:
        c, _ = jax.lax.scan(lambda c, eta: (_step(c, eta, lam, mu, B, sigma2), None), power, rates)
        return jnp.log(lam @ c)

    return jax.jit(jax.value_and_grad(log_loss))
