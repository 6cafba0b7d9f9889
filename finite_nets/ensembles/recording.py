"""What is recorded of an ensemble: of every member, or moments over blocks of members."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft import schema
from dmft.specs import Problem, loss
from finite_nets.ensembles.moments import BlockMoments, Blocks
from finite_nets.training.observables import two_time_kernels
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

    @property
    def recorded(self) -> tuple[str, ...]:
        """Variables that are taken from a network while it trains; predictions always: losses follow from them."""
        names = {"prediction"} | (self.observables - {"loss", "accuracy"})
        if self.two_time:
            names |= {"feature_kernel_two_time", "gradient_kernel_two_time"}
        return tuple(sorted(names))

    @property
    def quantities(self) -> tuple[str, ...]:
        """Variables that results hold."""
        names = {name for name in self.recorded if name != "prediction" or name in self.observables}
        names |= set(schema.losses_held(self.problem, self.observables))
        if self.covariance:
            names.add("prediction")
        return tuple(name for name in schema.VARIABLES if name in names)

    @property
    def gradients(self) -> bool:
        """Whether backward fields of all samples and outputs are needed for what is recorded."""
        return self.two_time or bool({"gradient_kernel", "ntk"} & self.observables)

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
        if self.observables & {"loss", "accuracy"}:
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
        wanted, features, gradients = set(self.recorded), [], []
        saved = frozenset(self.steps.tolist())
        for fields in trainer.run(state, saved, gradients=self.gradients):
            for name, value in self._of_step(trainer, state, fields).items():
                if name in wanted:
                    # events are samples and outputs, if results have those
                    shape, axis = self.shape(name), self.step_axis(name)
                    yield name, value.reshape(-1, *shape[:axis], *shape[axis + 1 :])
            if self.two_time:
                features.append(fields.features)
                gradients.append(fields.gradients)
            del fields  # the next pass takes their memory
        if self.two_time:
            counts = trainer.gradient_counts(state)
            for name, history, each in (("feature", features, None), ("gradient", gradients, counts)):
                layers = [torch.stack(steps) for steps in zip(*history, strict=True)]
                variable = f"{name}_kernel_two_time"
                yield variable, two_time_kernels(trainer.products, layers, each).reshape(-1, *self.shape(variable))

    def _of_step(self, trainer: Training[Any], state: State[Any], fields: Fields) -> dict[str, Tensor]:
        values = {"prediction": fields.output, **trainer.kernels(state, fields, fields, self.observables)}
        if "sharpness" in self.observables:
            values["sharpness"] = trainer.sharpness(state)
        return values

    def _over_steps(self, name: str, values: list[Tensor]) -> Tensor:
        """The values of all steps as one array (member or block, ...)."""
        return values[0] if name.endswith("two_time") else torch.stack(values, dim=1 + self.step_axis(name))

    def _of_predictions(self, trainer: Training[Any], prediction: Tensor) -> dict[str, Tensor]:
        """Losses and accuracies (member, step)."""
        kinds = schema.kinds_of_predictions(self.problem, self.observables)
        if not kinds:
            return {}
        task = self.problem.task
        f = (prediction if task.outputs else prediction[..., None]).double()
        y = trainer.targets[trainer.observed].double()
        each = {"loss": loss.values(torch, self.problem.loss, f, y)} if "loss" in kinds else {}
        if "accuracy" in kinds:
            each["accuracy"] = loss.correct(torch, f, y)
        splits = schema.splits(self.problem)
        return {
            f"{prefix}{name}": value[..., part].double().mean(-1)
            for name, value in each.items()
            for prefix, part in splits.items()
        }
