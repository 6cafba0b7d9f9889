"""What is recorded of an ensemble, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmft import memory, schema
from dmft.specs import Problem
from finite_nets.network import Fields, Trainer
from finite_nets.observables import kernels, ntk, two_time_kernels
from finite_nets.random import GENERATOR_BYTES

OBSERVABLES = ("prediction", "loss", "feature_kernel", "gradient_kernel", "ntk")
CPU_BATCH = 64 * 2**20  # bytes trained at once: beyond the caches a larger batch gains nothing
GPU_SHARE = 0.5  # of the free memory for a batch


def known_observables(names: Sequence[str]) -> frozenset[str]:
    """The argument `observables` of a producer, or the error that says what is wrong with it."""
    if isinstance(names, str) or not names or set(names) - set(OBSERVABLES):
        raise ValueError(f"observables={names!r}: give a list with any of {', '.join(OBSERVABLES)}.")
    return frozenset(names)


@dataclass(frozen=True)
class Plan:
    """What is recorded of each network, and the memory that it takes."""

    problem: Problem
    steps: NDArray[np.int64]
    observables: frozenset[str]
    two_time: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each recorded variable of one network; predictions always, since losses follow from them."""
        depth, samples, steps = self.problem.network.depth, self.problem.task.n_samples, len(self.steps)
        sizes = {"step": steps, "sample": samples, "layer": depth, "sample_2": samples, "step_2": steps}
        names = {"prediction"} | (self.observables - {"loss"})
        if self.two_time:
            names |= {"feature_kernel_two_time", "gradient_kernel_two_time"}
        return {name: tuple(sizes[dim] for dim in schema.VARIABLES[name]) for name in sorted(names)}

    def result_bytes(self, dtype: str) -> int:
        """Of one network."""
        return sum(int(np.prod(shape)) for shape in self.shapes().values()) * np.dtype(dtype).itemsize

    def weight_bytes(self, width: int, dtype: str) -> int:
        """Of one network."""
        task, depth = self.problem.task, self.problem.network.depth
        inputs = min(task.dimension, task.n_samples)
        return width * (inputs + (depth - 1) * width + 1) * np.dtype(dtype).itemsize

    def working_bytes(self, width: int, dtype: str) -> int:
        """Of one network while it trains: weights and one temporary copy, fields (for two-time kernels those of all
        saved steps, as a list, stacked and flattened), results."""
        field = self.problem.network.depth * self.problem.task.n_samples * width * np.dtype(dtype).itemsize
        history = 2 * 3 * len(self.steps) if self.two_time else 0
        return 2 * self.weight_bytes(width, dtype) + (6 + history) * field + 2 * self.result_bytes(dtype)

    def allocate(self, leading: tuple[int, int], dtype: str) -> dict[str, NDArray[Any]]:
        return {name: np.full(leading + shape, np.nan, dtype) for name, shape in self.shapes().items()}

    def record(self, trainer: Trainer, training: Iterator[Fields]) -> dict[str, NDArray[Any]]:
        """Train a batch to its end and return the recorded variables (member, ...)."""
        wanted = set(self.shapes())
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in wanted if not name.endswith("two_time")}
        features, gradients = [], []
        for fields in training:
            values = {"prediction": fields.output}
            if wanted & {"feature_kernel", "ntk"}:
                values["feature_kernel"] = kernels(fields.features)
            if wanted & {"gradient_kernel", "ntk"}:
                values["gradient_kernel"] = kernels(fields.gradients)
            if "ntk" in wanted:
                values["ntk"] = ntk(trainer.input_kernel, values["feature_kernel"], values["gradient_kernel"])
            for name in seen:
                seen[name].append(values[name])
            if self.two_time:
                features.append(fields.features)
                gradients.append(fields.gradients)
        batch = {name: torch.stack(steps, dim=1 + schema.VARIABLES[name].index("step")) for name, steps in seen.items()}
        for name, history in (("feature", features), ("gradient", gradients)):
            if self.two_time:
                layers = [torch.stack(steps) for steps in zip(*history, strict=True)]
                batch[f"{name}_kernel_two_time"] = two_time_kernels(layers)
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
