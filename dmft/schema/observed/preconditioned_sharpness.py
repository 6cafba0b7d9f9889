"""preconditioned_sharpness(step): largest eigenvalue of M^(1/2) H M^(1/2), in the metric M of an adaptive optimiser
(`dmft.schema.observed.preconditioned_ntk`); full-batch training goes on near 2 (1 + beta1) / ((1 - beta1) eta),
38 / eta of beta1 = .9.  Source: Cohen et al. 2022, whose preconditioner has the factor 1 - beta1^t besides."""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import HESSIAN
from dmft.schema.registry import observable


@observable(dims=("step",), needs=HESSIAN, preconditioned=True)
def preconditioned_sharpness(eigenvalues: Any) -> Any:
    return eigenvalues[..., -1]
