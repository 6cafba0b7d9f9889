"""What is recorded of an ensemble: which variables, of which shapes, how they are taken, what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft import schema
from dmft.specs import Problem
from finite_nets.training.observables import Shown, two_time_kernels
from finite_nets.training.state import Fields, State
from finite_nets.training.trainer import Training

Results = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Plan:
    """What is recorded of each network.

    covariance: for moments, also the products of deviations of predictions over (step, sample).
    """

    problem: Problem
    steps: NDArray[np.int64]
    observables: frozenset[str]
    two_time: bool = False
    covariance: bool = False

    def __post_init__(self) -> None:
        schema.require_known(self.observables)

    @cached_property
    def of_passes(self) -> tuple[schema.Observable, ...]:
        """Observables asked for that have a formula of what a pass has shown."""
        return tuple(one for one in schema.registered() if one.of_pass and one.name in self.observables)

    @cached_property
    def between_steps(self) -> tuple[schema.Observable, ...]:
        """Those that are recorded between all steps."""
        return schema.between_steps(self.observables) if self.two_time else ()

    @property
    def of_hessian(self) -> tuple[str, ...]:
        """Those that need the Hessian of the loss."""
        return tuple(name for name in self.observables if schema.need([name], schema.HESSIAN))

    @property
    def recorded(self) -> tuple[str, ...]:
        """Variables that are taken from a network while it trains; predictions always: losses follow from them."""
        names = {"prediction", *self.of_hessian, *(one.name for one in self.of_passes)}
        return tuple(sorted(names | {one.between_steps().name for one in self.between_steps}))

    @property
    def quantities(self) -> tuple[str, ...]:
        """Variables that results hold."""
        names = {name for name in self.recorded if name != "prediction" or name in self.observables}
        names |= set(schema.held(self.problem, self.observables))
        if self.covariance:
            names.add("prediction")
        return tuple(name for name in schema.quantities() if name in names)

    @property
    def gradients(self) -> bool:
        """Whether backward fields of all samples and outputs are needed for what is recorded."""
        return any(one.needs == schema.BACKWARD for one in (*self.of_passes, *self.between_steps))

    @property
    def fields(self) -> bool:
        """Whether anything but outputs is needed of the samples observed."""
        return bool(self.of_passes or self.between_steps)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a variable of one network."""
        return tuple(self.size(dim) for dim in self.dims(name))

    def size(self, dim: str) -> int:
        """Of a dimension of a variable of one network."""
        sizes: dict[str, int] = {
            "step": len(self.steps),
            "sample": self.observed,
            **self.problem.sketch.dimensions,
            "output": self.problem.task.targets.shape[1],
        }
        return sizes[dim.removesuffix("_2")]

    @property
    def observed(self) -> int:
        """Number of samples in results."""
        hidden: int = self.problem.observed.start
        return self.problem.task.n_samples - hidden

    def dims(self, name: str) -> tuple[str, ...]:
        """Of one network's variable."""
        return schema.dims("limit", name, outputs=bool(self.problem.task.outputs))

    def dtype_of(self, name: str, results: str) -> str:
        """Of a variable of one network, where what is recorded has the dtype `results`: losses are float64."""
        return results if name in self.recorded else "float64"

    def with_losses(self, recorded: Results, diverged: NDArray[np.bool_]) -> Results:
        """The quantities of members (..., member, ...) from what was recorded of them; nan where they diverged."""
        found = dict(recorded)
        if schema.following(self.problem, self.observables):
            prediction = found["prediction"].astype(np.float64)
            gone = diverged[..., None]
            with np.errstate(all="ignore"):  # of members that diverged
                of_predictions = schema.of_predictions(self.problem, prediction, self.observables)
            found |= {name: np.where(gone, np.nan, value) for name, value in of_predictions.items()}
        return {name: found[name] for name in self.quantities}

    def step_axis(self, name: str) -> int:
        """Where the steps stand among the dimensions of a variable of one network."""
        return self.dims(name).index("step")

    def numbers(self, names: Sequence[str]) -> int:
        """How many of these variables make up one network."""
        return sum(math.prod(self.shape(name)) for name in names)

    def member_bytes(self, dtype: str) -> int:
        """Of the results of one network in a Dataset: what is recorded, in `dtype`, losses in float64, and whether it
        diverged."""
        found = {*self.recorded, *self.quantities}
        return 1 + sum(np.dtype(self.dtype_of(name, dtype)).itemsize * math.prod(self.shape(name)) for name in found)

    def moment_numbers(self) -> int:
        """How many make up one block of moments."""
        return 2 * self.numbers(self.quantities) + self.pair_numbers() + 2

    def pair_numbers(self) -> int:
        """How many products of deviations of predictions a block has."""
        return self.numbers(["prediction"]) ** 2 if self.covariance else 0

    def recorder(self, trainer: Training[Any], state: State[Any]) -> Recorder:
        """Of a batch in training."""
        return Recorder(self, trainer, state)


class Recorder:
    """Takes what is recorded of a batch in training: names and values (member, ...)."""

    def __init__(self, plan: Plan, trainer: Training[Any], state: State[Any]) -> None:
        self.plan, self.trainer, self.state = plan, trainer, state
        self._histories: list[list[Sequence[Tensor]]] = [[] for _ in plan.between_steps]

    def step(self, fields: Fields) -> Iterator[tuple[str, Tensor]]:
        """Of a saved step, from the fields of the observed samples."""
        plan, outputs = self.plan, bool(self.plan.problem.task.outputs)
        shown = Shown(self.trainer, self.state, fields)
        sizes = plan.problem.sketch.dimensions | {dim: plan.size(dim) for dim in ("sample", "output")}
        yield "prediction", fields.output if outputs else fields.output[..., 0]
        for one in plan.of_passes:
            yield one.name, one.arranged(shown.value(one), sizes, outputs=outputs, leading=1)
        if plan.of_hessian:
            each = schema.metrics(plan.of_hessian)
            found = {which: self.trainer.eigenvalues(self.state, preconditioned=which) for which in each}
            yield from schema.of_eigenvalues(found, plan.of_hessian).items()
        for one, history in zip(plan.between_steps, self._histories, strict=True):
            assert one.fields is not None
            history.append(one.fields(shown))

    def between_steps(self) -> Iterator[tuple[str, Tensor]]:
        """Of all saved steps together, at the end."""
        for one, history in zip(self.plan.between_steps, self._histories, strict=True):
            layers = [torch.stack(steps) for steps in zip(*history, strict=True)]
            name, counts = one.between_steps().name, None if one.mean else self.trainer.neurons(self.state)
            found = two_time_kernels(self.trainer.products, layers, counts)
            yield name, found.reshape(-1, *self.plan.shape(name))
