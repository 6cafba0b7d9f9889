"""Sharpness: how strongly the training loss is curved where gradient descent moves.

    step        theta <- theta - eta M dloss/dtheta         M = gamma0^2 N m_l in layer l, 0 where it is frozen
    sharpness   the largest eigenvalue of A = M^(1/2) H M^(1/2),      H = d^2 loss / dtheta^2

of the loss over all training samples, before the update of a step (`dmft.specs.parameterization` has M).  Gradient
descent without momentum and weight decay is stable below 2/eta, and full-batch training with large steps ends near that
("edge of stability", Cohen, Kaur, Li, Kolter & Talwalkar 2021).  With J = df/dtheta and the curvature C of the loss in
outputs,

    A = M^(1/2) (J^T C J - sum_a Delta_a d^2 f_a/dtheta^2) M^(1/2) / P

whose first part (Gauss & Newton) has the eigenvalues of C K / P; the second is of the same order where training is
rich.  Both are computed, without forming A, by the iteration of Lanczos (1950): from a start q_1 it builds orthonormal
directions q_j, in which A is tridiagonal,

    A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1}

and the sharpness is the largest eigenvalue of that matrix after ITERATIONS products with A.  Others of its eigenvalues
are there for observables, too (`dmft.schema.observable`).

    start       M^(1/2) J^T a: what a step would be with fixed numbers a in the place of Delta, iid N(0, 1) once drawn

It is a function of the network's own fields, and the same for networks of every width and for the limit, in which each
alpha and beta converges.

Assumptions and approximations
    Largest among the eigenvalues that such a start finds.  The result is a lower bound; where the largest eigenvalue is
    isolated it was measured to be within 1e-3 of it (tests/test_finite_nets/test_curvature.py).  The second part of A
    has a band of directions that change single neurons, whose edge grows with width like their most extreme weights,
    as sqrt(log N).  It does not matter while the largest eigenvalue, which many neurons share, stands above it; where
    it does not (large residuals Delta at large gamma0, at the first steps) the edge itself has no limit, that of the
    result is reached by enormous widths only, and S particles stand for a network of width S.  (Measured, 3 samples,
    gamma0 = 1, step 0: .91, .92, .97 at widths 64, 128, 1024; .99, 1.04, 1.05 with 1024, 4096, 16384 particles,
    standard errors .02.  From step 4 on, where the largest is isolated: .7220 with 4096, .7217 with 16384.)
    The second derivative of an activation with a kink (ReLU) is taken to be 0 where it exists, as by automatic
    differentiation: the jumps of phi' are left out.  ReLU networks come close to their limit slowly: after two steps
    3.6(3) % above it at width 256, 1.4(3) % at 1024, .3(3) % at 4096 (5 samples).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 16


class Operator(Protocol):
    """A, on directions q that an array library keeps as it likes: of one network, or, with an axis before all others,
    of a batch of them."""

    def start(self) -> Any:
        """M^(1/2) J^T a."""

    def image(self, q: Any) -> Any:
        """What the inner product with q is a sum over."""

    def product(self, image: Any) -> Any:
        """A q, from the image of q."""

    def kept(self, q: Any, j: Any) -> Any:
        """q_1 .. q_j, the last of which this is."""

    def overlap(self, q: Any, image: Any) -> Any:
        """The inner product of a direction, or of several, (..., direction), with one that has this image."""

    def less(self, q: Any, met: Any, coefficients: Any) -> Any:
        """q - sum_i coefficients_i met_i."""

    def times(self, q: Any, factor: Any) -> Any:
        """Of a direction, or of an image."""


def begun(xp: Any, operator: Operator) -> tuple[Any, Any, Any]:
    """q_1, its image, and the square that the start had."""
    q = operator.start()
    image = operator.image(q)
    square = operator.overlap(q, image)
    q, image, _ = _normalised(xp, operator, q, image, square)
    return q, image, square


def iterated(xp: Any, operator: Operator, q: Any, image: Any, j: Any) -> tuple[Any, Any, Any, Any]:
    """q_{j+1} and its image, alpha_j and beta_j (j from 0), from q_j and its image.  What A q leaves is orthogonalised
    twice to all before."""
    met = operator.kept(q, j)
    u = operator.product(image)
    image = operator.image(u)
    before, alpha = operator.overlap(u, image), 0.0
    for _ in range(2):
        on_met = operator.overlap(met, image)
        u = operator.less(u, met, on_met)
        image = operator.image(u)
        alpha = alpha + on_met[..., j]
    u, image, beta = _normalised(xp, operator, u, image, before)
    return u, image, alpha, beta


def _normalised(xp: Any, operator: Operator, u: Any, image: Any, before: Any) -> tuple[Any, Any, Any]:
    """Of unit length, with its image, and the length that it had: 0, and zeros, where nothing but rounding is left of
    the square `before`."""
    square = operator.overlap(u, image)
    # the comparison keeps what is not a number
    length = xp.sqrt(xp.where(square <= xp.finfo(square.dtype).eps * before, 0.0, square))
    factor = xp.where(length == 0, 0.0, 1 / length)
    return operator.times(u, factor), operator.times(image, factor), length


def eigenvalues(
    alpha: NDArray[np.float64], beta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(..., iteration): those of tridiagonal matrices (..., iteration), ascending, nan where one is not finite; and the
    last components of eigenvectors, which times the last beta are the residuals in A."""
    healthy = np.isfinite(np.stack([alpha, beta])).all(axis=(0, -1))
    alpha, beta = (np.where(np.expand_dims(healthy, -1), a, 0.0) for a in (alpha, beta))
    T = np.zeros((*alpha.shape, alpha.shape[-1]))
    i = np.arange(alpha.shape[-1])
    T[..., i, i] = alpha
    T[..., i[1:], i[:-1]] = T[..., i[:-1], i[1:]] = beta[..., :-1]
    values, vectors = np.linalg.eigh(T)
    return np.where(np.expand_dims(healthy, -1), values, np.nan), np.abs(vectors[..., -1, :])


def roots(update: Sequence[Any], output: Any, samples: int) -> tuple[Any, ...]:
    """M^(1/2) of every layer, from `dmft.specs.parameterization.Scales`: c over eta, `update` for so many samples, is M
    times the scale of outputs over the samples."""
    return tuple((c * samples / output) ** 0.5 for c in update)


def start_coefficients(samples: int, outputs: int) -> NDArray[np.float64]:
    """a, (training sample, output)."""
    return np.random.default_rng(0).standard_normal((samples, outputs))
