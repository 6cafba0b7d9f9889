"""What is recorded of an ensemble, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmft import memory, schema
from dmft.specs import GradientFlow, Problem
from finite_nets.network import Fields, Trainer
from finite_nets.observables import kernels, ntk, two_time_kernels
from finite_nets.random import GENERATOR_BYTES

CPU_BATCH = 64 * 2**20  # bytes trained at once: beyond the caches a larger batch gains nothing
GPU_SHARE = 0.5  # of the free memory for a batch


@dataclass(frozen=True)
class Plan:
    """What is recorded of each network, and the memory that it takes."""

    problem: Problem
    steps: NDArray[np.int64]
    observables: frozenset[str]
    two_time: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each recorded variable of one network; predictions always, since losses follow from them."""
        steps, samples = len(self.steps), self._observed
        sizes = {"step": steps, "sample": samples, "layer": self.problem.network.depth, "output": self._outputs}
        names = {"prediction"} | (self.observables - {"loss"})
        if self.two_time:
            names |= {"feature_kernel_two_time", "gradient_kernel_two_time"}
        return {name: tuple(sizes[dim.removesuffix("_2")] for dim in self._dims(name)) for name in sorted(names)}

    @property
    def gradients(self) -> bool:
        """Whether backward fields of all samples and outputs are needed for what is recorded."""
        return self.two_time or bool({"gradient_kernel", "ntk"} & self.observables)

    @property
    def _outputs(self) -> int:
        outputs: int = self.problem.task.targets.shape[1]
        return outputs

    @property
    def _observed(self) -> int:
        """Number of samples in results."""
        hidden: int = self.problem.observed.start
        return self.problem.task.n_samples - hidden

    def _dims(self, name: str) -> tuple[str, ...]:
        """Of one network's variable."""
        return schema.dims("limit", name, outputs=bool(self.problem.task.outputs))

    def result_bytes(self, dtype: str) -> int:
        """Of one network."""
        return sum(int(np.prod(shape)) for shape in self.shapes().values()) * np.dtype(dtype).itemsize

    def weight_bytes(self, width: int, dtype: str) -> int:
        """Of one network."""
        task, depth = self.problem.task, self.problem.network.depth
        inputs = min(task.dimension, task.n_samples)
        return width * (inputs + (depth - 1) * width + self._outputs) * np.dtype(dtype).itemsize

    def working_bytes(self, width: int, dtype: str) -> int:
        """Of one network while it trains: weights, a velocity and one temporary copy; three fields of each sample and
        event (for two-time kernels those of all saved steps, as a list, stacked and flattened); what a flow solves;
        results."""
        training, network, outputs = self.problem.training, self.problem.network, self._outputs
        scheme = training.scheme if isinstance(training, GradientFlow) else "descent"
        batch = self.problem.batches.shape[1]
        samples = self._observed + (batch if self.problem.observed.start else 0)
        events = samples * outputs
        if not self.gradients and scheme != "euler":  # backward passes of the batch; from the loss, unless a flow's
            events = batch * (outputs if scheme == "rosenbrock" else 1)
        fields, kernels = samples + events, 0
        if scheme == "rosenbrock":  # a second pass, and the system with its factors
            fields, kernels = fields + batch * (1 + outputs), (network.depth + 6) * (batch * outputs) ** 2
        elif scheme == "euler":
            kernels = (network.depth + 3) * events * batch * outputs
        history = len(self.steps) * self._observed * (1 + outputs) if self.two_time else 0
        field = network.depth * width * np.dtype(dtype).itemsize
        copies = 3 if training.momentum else 2
        in_float64 = kernels * np.dtype(np.float64).itemsize
        total = copies * self.weight_bytes(width, dtype) + 3 * field * (fields + history)
        return total + in_float64 + 2 * self.result_bytes(dtype)

    def allocate(self, leading: tuple[int, int], dtype: str) -> dict[str, NDArray[Any]]:
        return {name: np.full(leading + shape, np.nan, dtype) for name, shape in self.shapes().items()}

    def record(self, trainer: Trainer, training: Iterator[Fields]) -> dict[str, NDArray[Any]]:
        """Train a batch to its end and return the recorded variables (member, ...)."""
        shapes = self.shapes()
        wanted = set(shapes)
        step_axis = {name: self._dims(name).index("step") for name in wanted}
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in wanted if not name.endswith("two_time")}
        features, gradients = [], []
        for fields in training:
            values = {"prediction": fields.output}
            if wanted & {"feature_kernel", "ntk"}:
                values["feature_kernel"] = kernels(fields.features)
            if wanted & {"gradient_kernel", "ntk"}:
                values["gradient_kernel"] = kernels(fields.gradients)
            if "ntk" in wanted:
                values["ntk"] = ntk(
                    trainer.input_kernel, values["feature_kernel"], values["gradient_kernel"], trainer.branch
                )
            for name in seen:
                # events are samples and outputs, if results have those
                one_step = shapes[name][: step_axis[name]] + shapes[name][step_axis[name] + 1 :]
                seen[name].append(values[name].reshape(-1, *one_step))
            if self.two_time:
                features.append(fields.features)
                gradients.append(fields.gradients)
        batch = {name: torch.stack(steps, dim=1 + step_axis[name]) for name, steps in seen.items()}
        for name, history in (("feature", features), ("gradient", gradients)):
            if self.two_time:
                layers = [torch.stack(steps) for steps in zip(*history, strict=True)]
                variable = f"{name}_kernel_two_time"
                batch[variable] = two_time_kernels(layers).reshape(-1, *shapes[variable])
        return {name: value.cpu().numpy() for name, value in batch.items()}

    def batch_size(self, width: int, device: torch.device, dtype: str, memory_limit: int | None) -> int:
        """How many networks of this width to train at once.

        Raises:
            MemoryEstimateError: if there is no room for one.
        """
        needed, random_bits = self.working_bytes(width, dtype), GENERATOR_BYTES[device.type]
        if device.type == "cuda":
            available, _ = torch.cuda.mem_get_info(device)
            target = int(GPU_SHARE * available)
        else:
            available, target = memory.available_on_host(), CPU_BATCH
        memory.require(
            needed + (random_bits if memory_limit is None else 0),
            limit=memory_limit,
            available=available,
            what=f"one network of width {width}",
            ways_out="lower the width, use dtype='float32', or fewer samples",
        )
        if memory_limit is not None:
            target = min(target, memory_limit)
        return max(1, target // needed)
