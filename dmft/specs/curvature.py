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

and reports the largest eigenvalue of that matrix after ITERATIONS products with A.

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

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 16


def start_coefficients(samples: int, outputs: int) -> NDArray[np.float64]:
    """a, (training sample, output)."""
    return np.random.default_rng(0).standard_normal((samples, outputs))
