"""preconditioned_ntk(step, sample, sample_2): the tangent kernel in the metric of an adaptive optimiser,

    theta <- theta - eta M dloss/dtheta      M = gamma0^2 N P_ij      P_ij = 1 / (sqrt(v) + eps) of the step to come
    K = sum over weights of <J^a_ij P_ij J^b_ij>

by which a small step without momentum moves outputs by (eta / P) K Delta.  The limit has it of
`dmft.engine.preconditioned`, networks of `finite_nets.training.preconditioned`.
"""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import BACKWARD
from dmft.schema.registry import observable
from dmft.schema.seen import Seen


@observable(
    dims=("step", "sample", "sample_2"),
    long_name="tangent kernel in the metric of an adaptive optimiser",
    label="preconditioned NTK",
    symbol="K^P",
    needs=BACKWARD,
    per_output=True,
    smooth=False,
    preconditioned=True,
)
def preconditioned_ntk(seen: Seen) -> Any:
    return seen.preconditioned_kernel()
