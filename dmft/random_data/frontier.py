"""Compute-optimal frontiers: the smallest loss at compute C, by minimisation of exact curves over numbers of features.

    lazy       C = N t        the population's gradient flow           contours (`dmft.random_data.random_features`)
    rich       C = N t        the same with features that learn        closed flow on what N features see (`projected`)
    one pass   C = N steps    SGD with B fresh samples a step          recursion (`schedule`) on what N features see

The local slopes of these are what `dmft.random_data.exponents` predicts.

    N features        t time        B batch

Cost: some ten to twenty curves a point; one pass O(C/N) steps each.

Source: B. Bordelon, A. Atanasov, C. Pehlevan, arXiv:2402.01092 and 2409.17858.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from dmft.random_data.projected import rich_flow
from dmft.random_data.random_features import gradient_flow
from dmft.random_data.schedule import scheduled_loss
from dmft.random_data.seen import seen_by_features
from dmft.random_data.sgd import require_stable_sgd
from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]
Loss = Callable[[float, float], float]  # of N features and C/N
WIDE, NEXT = 100.0, 10.0  # by which factors the first minimum may be from the guess, and others from that before
AT_BOUND = 1e-3  # relative to the range of log N, closer than which a minimum is no minimum
PRECISION = {"lazy": 1e-4, "rich": 3e-3}  # of log N, in which the loss is a parabola
RESOLUTION = 20.0  # of the closed flow, whose error in the loss, some per cent, is the same everywhere on a frontier


@dataclass(frozen=True)
class Frontier:
    """compute (point,), the smallest loss there, and the number of features that reaches it."""

    compute: Array
    loss: Array
    features: Array


def compute_frontier(
    spectrum: Spectrum,
    compute: ArrayLike,
    *,
    richness: float = 0.0,
    batch: float | None = None,
    learning_rate: float | None = None,
    guess: float = 10.0,
) -> Frontier:
    """The smallest excess loss at compute C = N t, by minimisation of the exact curve over N.

    Args:
        spectrum: of data and target.
        compute: C, (point,).
        richness: G of features that learn under the population's flow.
        batch, learning_rate: of SGD with fresh samples, in place of the flow; compute is N times its steps then.
        guess: a number of features next to which the first minimum is looked for, a factor of 100 to both sides.

    Raises:
        ArithmeticError: no minimum there; the message names the end that it ran to.
        DivergenceError: a rate beyond stability at infinitely many features.
        ValueError, TypeError: arguments out of range.

    Example:
        >>> from dmft.random_data import power_law
        >>> frontier = compute_frontier(power_law(1e5, 1.5, 1.75), [1e3])
        >>> frontier.features.round(0)
        array([56.])
    """
    C = _check.finite_array("compute", compute, ("point",))
    if not (C > 0).all():
        raise ValueError(f"compute holds {C[~(C > 0)][0]:g}; costs are positive.")
    curve, precision = _curve(spectrum, richness, batch, learning_rate)
    near, reach, losses, sizes = _check.positive("guess", guess), WIDE, np.empty(len(C)), np.empty(len(C))
    for i in np.argsort(C):

        def loss(log_n: float, c: float = float(C[i])) -> float:
            n = np.exp(log_n)
            return float(np.log(curve(n, c / n)))

        low, high = np.log(near / reach), np.log(min(near * reach, 0.99 * spectrum.modes))
        found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": precision})
        at = float(found.x)
        if min(at - low, high - at) < AT_BOUND * (high - low):
            raise ArithmeticError(
                f"at compute={C[i]:g} the loss has no minimum between {np.exp(low):.3g} and {np.exp(high):.3g} "
                f"features; give another guess."
            )
        losses[i], sizes[i] = np.exp(found.fun), np.exp(at)
        near, reach = sizes[i], NEXT
    return Frontier(C, losses, sizes)


def _curve(spectrum: Spectrum, richness: float, batch: float | None, learning_rate: float | None) -> tuple[Loss, float]:
    """The loss of N features after C/N, and how precise a minimum is looked for."""
    if (batch is None) != (learning_rate is None) or (batch is not None and richness):
        raise ValueError(
            f"batch={batch} and learning_rate={learning_rate} are of SGD, together and without richness={richness:g}; "
            "leave both out for a flow."
        )
    if batch is not None and learning_rate is not None:
        B, eta = _check.positive("batch", batch), _check.positive("learning_rate", learning_rate)
        require_stable_sgd(spectrum, eta, B, None, None)
        return (lambda n, steps: _one_pass(spectrum, n, steps, B, eta)), PRECISION["rich"]
    if G := _check.nonnegative("richness", richness):
        flow = {"richness": G, "resolution": RESOLUTION}
        return (lambda n, t: float(rich_flow(spectrum, [t], features=n, **flow).test[0])), PRECISION["rich"]
    return (lambda n, t: float(gradient_flow(spectrum, [t], features=n).test[0])), PRECISION["lazy"]


def _one_pass(spectrum: Spectrum, features: float, steps: float, B: float, eta: float) -> float:
    """Between steps, a geometric mean."""
    seen, last = seen_by_features(spectrum, features), int(np.ceil(steps))
    losses = seen.rest + scheduled_loss(seen.spectrum, np.full(last, eta), batch=B, noise=seen.rest)[-2:]
    part = 1 - (last - steps)
    return float(np.exp((1 - part) * np.log(losses[0]) + part * np.log(losses[1])))
