"""What the networks of a sweep have in common beside their problem."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dmft import schema
from dmft.specs import Problem
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import precision
from finite_nets.ensembles.recording import Plan
from finite_nets.ensembles.runner import Runner


def formulas_of(names: Collection[str], problem: Problem) -> tuple[str, ...]:
    """Of observables of one's own among them: the name and the digest of the formula."""
    with usual_torch(torch.device("cpu")):
        return tuple(f"{name} {digest}" for name, digest in sorted(schema.digests(names, problem, torch).items()))


@dataclass(frozen=True)
class Settings:
    """What all networks of a problem in a store share; arguments of `plan_sweep`, and what the formulas of observables
    of one's own are known by."""

    seed: int
    dtype: str
    observables: tuple[str, ...]
    save_steps: tuple[int, ...]
    two_time: bool = False
    covariance: bool = False
    members: bool = False
    formulas: tuple[str, ...] = ()

    def plan(self, problem: Problem) -> Plan:
        """What is recorded of a network."""
        steps = np.array(self.save_steps, dtype=np.int64)
        return Plan(problem, steps, frozenset(self.observables), self.two_time, self.covariance)

    def require_formulas(self, problem: Problem) -> None:
        """ValueError where this process has other formulas of observables."""
        if self.formulas != (here := formulas_of(self.observables, problem)):
            raise ValueError(
                f"the formulas of observables have changed since the sweep was planned: {', '.join(self.formulas)} "
                f"then, {', '.join(here)} here. Run it with the code of then, or plan it anew."
            )

    def runner(self, problem: Problem, block: int, device: torch.device, memory_limit: int | None) -> Runner:
        """What trains such networks of a problem, in blocks of that size."""
        return Runner(
            self.plan(problem),
            precision(self.dtype),
            device,
            self.seed,
            block=None if self.members else block,
            memory_limit=memory_limit,
        )

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found | {"observables": sorted(found["observables"])}  # in whatever order they were asked for

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        """TypeError for other fields."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        return cls(**fields)
