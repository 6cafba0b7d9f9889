"""sharpness(step): largest eigenvalue of the Hessian of the training loss in the metric of its descent
(`dmft.specs.curvature`); the limit has it of `dmft.engine.curvature`, networks of `finite_nets.training.curvature`."""

from __future__ import annotations

from dmft.schema.observable import HESSIAN, Observable
from dmft.schema.registry import register
from dmft.specs import Problem


def _refusal(problem: Problem) -> str:
    if problem.training.observe != "test":
        return ""
    return 'sharpness is that of the loss over all training samples, which observe="test" never meets together'


register(Observable("sharpness", None, dims=("step",), needs=HESSIAN, refusal=_refusal))
