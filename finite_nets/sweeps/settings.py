"""What the networks of a sweep have in common beside their problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dmft.specs import Problem
from finite_nets.device.precision import precision
from finite_nets.ensembles.recording import Plan
from finite_nets.ensembles.runner import Runner


@dataclass(frozen=True)
class Settings:
    """What all networks of a problem in a store share; arguments of `plan_sweep`."""

    seed: int
    dtype: str
    observables: tuple[str, ...]
    save_steps: tuple[int, ...]
    two_time: bool = False
    covariance: bool = False
    members: bool = False

    def plan(self, problem: Problem) -> Plan:
        """What is recorded of a network."""
        steps = np.array(self.save_steps, dtype=np.int64)
        return Plan(problem, steps, frozenset(self.observables), self.two_time, self.covariance)

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
