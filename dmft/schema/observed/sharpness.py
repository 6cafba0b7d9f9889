"""sharpness(step): largest eigenvalue of the Hessian of the training loss in the metric of its descent
(`dmft.specs.curvature`); the limit has it of `dmft.engine.curvature`, networks of `finite_nets.training.curvature`."""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import HESSIAN
from dmft.schema.registry import observable


@observable(dims=("step",), needs=HESSIAN)
def sharpness(eigenvalues: Any) -> Any:
    return eigenvalues[..., -1]
