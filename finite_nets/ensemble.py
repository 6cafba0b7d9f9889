"""`train_ensemble`: from a Problem to the Dataset of networks of several widths.

Networks of one width are trained side by side as batched matrix products, as many at once as memory (on a CPU: the
cache) takes.  A member is a function of (root seed, width, seed index) and the problem alone, whatever the batches
and the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from dmft import memory, schema
from dmft.errors import DivergenceError
from dmft.progress import progress_bar
from dmft.specs import Problem, _check
from finite_nets.network import Fields, Trainer, initialise
from finite_nets.observables import kernels, ntk, two_time_kernels
from finite_nets.random import MEMBER_BITS, SEED_BITS

DTYPES = {"float32": torch.float32, "float64": torch.float64}
OBSERVABLES = ("prediction", "loss", "feature_kernel", "gradient_kernel", "ntk")
DIVERGED = 1e6  # loss, in units of the larger of its initial value and 1
CPU_BATCH = 64 * 2**20  # bytes of weights trained at once: beyond the caches a larger batch gains nothing
GPU_SHARE = 0.5  # of the free memory for a batch


def train_ensemble(
    problem: Problem,
    *,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    observables: Sequence[str] = OBSERVABLES,
    two_time: bool = False,
    save_steps: Iterable[int] | None = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train networks of the given widths on `problem`, `seeds` of each.

    Args:
        problem: network, task, training: the same that the theory solves. widths: N, different whole numbers.
        seeds: how many members a width, or the seed indices themselves. seed: the root seed; a member depends on
        it, its width and its seed index only. device: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU if there is
        one. dtype: "float32" or "float64", of weights and results. observables: which variables to record, among
        prediction, loss (with test_loss), feature_kernel, gradient_kernel, ntk. two_time: add
        `feature_kernel_two_time` and `gradient_kernel_two_time`, between all saved steps. save_steps: the steps to
        record; all of 0..T by default. memory_limit: in bytes, for the results and a batch; by default what is
        available. progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "ensemble" (`dmft.schema`) with leading dimensions width and seed.

    Raises:
        DivergenceError: networks whose loss explodes or is not finite, with their width, step and number.
        MemoryEstimateError: when results or a single network do not fit, with the numbers.
        ValueError, TypeError: arguments out of range.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"train_ensemble expects a dmft.Problem, got {type(problem).__name__}.")
    width_list = _distinct("widths", widths, minimum=1)
    seed_list = _distinct(
        "seeds", range(_check.integer("seeds", seeds, minimum=1)) if isinstance(seeds, int) else seeds
    )
    seed = _check.integer("seed", seed, minimum=0)
    for name, largest, bits in (("seed", seed, SEED_BITS), ("seeds", max(seed_list), MEMBER_BITS)):
        if largest >= 2**bits:
            raise ValueError(f"{name}={largest} must be below 2^{bits}.")
    plan = Plan(problem, schema.saved_steps(problem, save_steps), _known_observables(observables), two_time)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not offered; choose one of {', '.join(DTYPES)}.")
    where = _device(device)
    trainer = Trainer(problem, where, DTYPES[dtype])

    memory.require(
        plan.result_bytes(dtype) * len(width_list) * len(seed_list),
        limit=memory_limit,
        available=memory.available_on_host(),
        what=f"the results of {len(width_list)} widths with {len(seed_list)} networks each",
        ways_out="record fewer save_steps or observables, or train fewer seeds",
    )
    results = plan.allocate((len(width_list), len(seed_list)), dtype)
    with (
        progress_bar(len(width_list) * len(seed_list), "networks", "net", progress) as bar,
        _full_precision(),
        torch.inference_mode(),
    ):
        for i, width in enumerate(width_list):
            size = _batch_size(plan, width, where, dtype, memory_limit)
            for start in range(0, len(seed_list), size):
                members = torch.tensor(seed_list[start : start + size], device=where)
                weights = initialise(
                    trainer.depth, trainer.x.shape[1], width, members, root_seed=seed, dtype=DTYPES[dtype]
                )
                for name, value in plan.record(trainer, trainer.run(weights, frozenset(plan.steps.tolist()))).items():
                    results[name][i, start : start + size] = value
                _raise_if_diverged(plan, results["prediction"][i, start : start + size], width, seed_list[start:])
                bar.update(len(members))

    if "loss" in plan.observables:
        results |= {k: v.astype(dtype) for k, v in schema.losses(problem, results["prediction"]).items()}
    if "prediction" not in plan.observables:
        del results["prediction"]
    return schema.build(
        "ensemble",
        problem,
        results,
        steps=plan.steps,
        coords={"width": np.array(width_list), "seed": np.array(seed_list)},
        attrs={
            "producer": "finite_nets.train_ensemble",
            "dtype": dtype,
            "device": "cpu" if where.type == "cpu" else f"cuda: {torch.cuda.get_device_name(where)}",
            "seed": seed,
        },
    )


@dataclass(frozen=True)
class Plan:
    """What is recorded of each network, and the memory that it takes."""

    problem: Problem
    steps: NDArray[np.int64]
    observables: frozenset[str]
    two_time: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each recorded variable of one network; predictions always, since the checks need them."""
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
        """Of one network while it trains: weights and one temporary copy, fields, random bits, results."""
        blocks = 6 * self.problem.network.depth * self.problem.task.n_samples * width * np.dtype(dtype).itemsize
        history = 2 * self.problem.network.depth * len(self.steps) if self.two_time else 0
        history *= self.problem.task.n_samples * width * np.dtype(dtype).itemsize
        return 2 * self.weight_bytes(width, dtype) + blocks + history + 2 * self.result_bytes(dtype)

    def allocate(self, leading: tuple[int, int], dtype: str) -> dict[str, NDArray[Any]]:
        return {name: np.full(leading + shape, np.nan, dtype) for name, shape in self.shapes().items()}

    def record(self, trainer: Trainer, training: Iterator[tuple[int, Fields]]) -> dict[str, NDArray[Any]]:
        """Train a batch to its end and return the recorded variables (member, ...)."""
        wanted = set(self.shapes())
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in wanted if not name.endswith("two_time")}
        features, gradients = [], []
        for _, fields in training:
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


def _distinct(name: str, values: Any, minimum: int = 0) -> list[int]:
    """The values as a list of different whole numbers."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name}={values!r} is not a list; give e.g. {name}=[64, 128].")
    found = [_check.integer(f"{name}[{i}]", value, minimum=minimum) for i, value in enumerate(values)]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name}={found} must hold different numbers, at least one.")
    return found


def _known_observables(names: Sequence[str]) -> frozenset[str]:
    unknown = sorted(set(names) - set(OBSERVABLES))
    if unknown or not names:
        raise ValueError(f"observables={list(names)}: choose among {', '.join(OBSERVABLES)}.")
    return frozenset(names)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'device={name!r} is unknown; use "auto", "cpu", "cuda" or "cuda:1".') from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f'device={name!r} is not supported; use "auto", "cpu", "cuda" or "cuda:1".')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device={name!r}: PyTorch sees {torch.cuda.device_count()} CUDA device(s); use device="cpu".')
    return device


def _batch_size(plan: Plan, width: int, device: torch.device, dtype: str, memory_limit: int | None) -> int:
    """How many networks of this width to train at once."""
    needed = plan.working_bytes(width, dtype)
    if device.type == "cuda":
        available, _ = torch.cuda.mem_get_info(device)
        target = int(GPU_SHARE * available)
    else:
        available, target = memory.available_on_host(), CPU_BATCH
    memory.require(
        needed,
        limit=memory_limit,
        available=available,
        what=f"one network of width {width}",
        ways_out="lower the width, use dtype='float32', or fewer samples",
    )
    if memory_limit is not None:
        target = min(target, memory_limit)
    return max(1, target // needed)


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in float32: no TF32, whatever the caller has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _raise_if_diverged(plan: Plan, prediction: NDArray[Any], width: int, seeds: list[int]) -> None:
    """Name the first step at which members (member, step, sample) exploded, and how many did."""
    loss = schema.losses(plan.problem, prediction.astype(np.float64))["loss"]
    bad = ~(np.isfinite(loss) & (loss <= DIVERGED * np.maximum(loss[:, :1], 1.0)))
    if bad.any():
        column = int(np.argmax(bad.any(axis=0)))
        member = int(np.argmax(bad[:, column]))
        raise DivergenceError(
            f"{int(bad.any(axis=1).sum())} of {len(loss)} networks of width {width} diverge, the first at step "
            f"{plan.steps[column]} (seed index {seeds[member]}, loss {loss[member, column]:.3g}). "
            f"Lower learning_rate={plan.problem.training.learning_rate}, or gamma0={plan.problem.network.gamma0}."
        )
