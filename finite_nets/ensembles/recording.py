"""What is recorded of an ensemble: of every member, or moments over blocks of members."""

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
from finite_nets.ensembles.moments import BlockMoments, Blocks
from finite_nets.training.observables import Shown, two_time_kernels
from finite_nets.training.trainer import Fields, State, Training

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
    def _hessian(self) -> tuple[str, ...]:
        return tuple(name for name in self.observables if schema.need([name], schema.HESSIAN))

    @property
    def recorded(self) -> tuple[str, ...]:
        """Variables that are taken from a network while it trains; predictions always: losses follow from them."""
        names = {"prediction", *self._hessian, *(one.name for one in self.of_passes)}
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

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a variable of one network."""
        return tuple(self.size(dim) for dim in self._dims(name))

    def size(self, dim: str) -> int:
        """Of a dimension of a variable of one network."""
        sizes: dict[str, int] = {
            "step": len(self.steps),
            "sample": self.observed,
            "layer": self.problem.sketch.depth,
            "output": self.problem.task.targets.shape[1],
        }
        return sizes[dim.removesuffix("_2")]

    @property
    def observed(self) -> int:
        """Number of samples in results."""
        hidden: int = self.problem.observed.start
        return self.problem.task.n_samples - hidden

    def _dims(self, name: str) -> tuple[str, ...]:
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
        return self._dims(name).index("step")

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

    # ---- a batch -----------------------------------------------------------------------------------------------------

    def members(self, trainer: Training[Any], state: State[Any]) -> Results:
        """Train a batch to its end; the recorded variables (member, ...), whatever became of the members."""
        seen: dict[str, list[Tensor]] = {}
        for name, value in self._observed(trainer, state):
            seen.setdefault(name, []).append(value)
        return {name: self._over_steps(name, values).cpu().numpy() for name, values in seen.items()}

    def moments(self, trainer: Training[Any], state: State[Any], blocks: Blocks) -> BlockMoments:
        """Train a batch to its end; the moments of its blocks."""
        predictions: list[Tensor] = []
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, value in self._observed(trainer, state):
            if name == "prediction":
                predictions.append(value)
            else:
                seen.setdefault(name, []).append(blocks.moments(value))
        prediction = self._over_steps("prediction", predictions)
        found = {}
        for name, values in seen.items():
            means, squares = zip(*values, strict=True)
            found[name] = self._over_steps(name, list(means)), self._over_steps(name, list(squares))
        for name, value in {"prediction": prediction, **self._of_predictions(trainer, prediction)}.items():
            found[name] = blocks.moments(value)
        found = {name: found[name] for name in self.quantities}
        return blocks.collected(found, blocks.products(prediction) if self.covariance else None)

    def _observed(self, trainer: Training[Any], state: State[Any]) -> Iterator[tuple[str, Tensor]]:
        """Name and values (member, ...) of what is recorded: of one saved step after the other, and of all together
        for two-time kernels, at the end."""
        saved = frozenset(self.steps.tolist())
        histories: list[list[Sequence[Tensor]]] = [[] for _ in self.between_steps]
        for fields in trainer.run(state, saved, gradients=self.gradients):
            shown = Shown(trainer, state, fields)
            yield from self._of_step(trainer, state, fields, shown)
            for one, history in zip(self.between_steps, histories, strict=True):
                assert one.fields is not None
                history.append(one.fields(shown))
            del fields, shown  # the next pass takes their memory
        for one, history in zip(self.between_steps, histories, strict=True):
            layers = [torch.stack(steps) for steps in zip(*history, strict=True)]
            name, width = one.between_steps().name, None if one.mean else state.width
            yield name, two_time_kernels(trainer.products, layers, width).reshape(-1, *self.shape(name))

    def _of_step(
        self, trainer: Training[Any], state: State[Any], fields: Fields, shown: Shown
    ) -> Iterator[tuple[str, Tensor]]:
        outputs, sizes = bool(self.problem.task.outputs), {dim: self.size(dim) for dim in ("layer", "sample", "output")}
        yield "prediction", fields.output if outputs else fields.output[..., 0]
        for one in self.of_passes:
            yield one.name, one.arranged(shown.value(one), sizes, outputs=outputs, leading=1)
        for name in self._hessian:
            yield name, trainer.sharpness(state)

    def _over_steps(self, name: str, values: list[Tensor]) -> Tensor:
        """The values of all steps as one array (member or block, ...)."""
        if "step_2" in self._dims(name):
            return values[0]
        return torch.stack(values, dim=1 + self.step_axis(name))

    def _of_predictions(self, trainer: Training[Any], prediction: Tensor) -> dict[str, Tensor]:
        """Losses and accuracies (member, step)."""
        targets = trainer.targets[trainer.observed].double()
        return schema.of_predictions(self.problem, prediction.double(), self.observables, xp=torch, targets=targets)
