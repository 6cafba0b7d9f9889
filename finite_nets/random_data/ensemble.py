"""From a problem of random data to the Dataset of members at several scales, as many trained together as fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.errors import exploded
from dmft.running import memory
from dmft.specs import GradientFlow, Problem
from dmft.specs.random_data import RandomData
from finite_nets.device.free_memory import free_memory
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import Precision
from finite_nets.ensembles.collection import Divergences, Members
from finite_nets.random_data.data import Draws, Sizes
from finite_nets.random_data.network import EVALUATIONS, Network

Array = NDArray[np.float64]
SHARE = 0.4  # of the memory that is there, for a batch of members
AT_ONCE = {"cpu": 2**23, "cuda": 2**31}  # numbers of a batch of members: what a cache, or a GPU, takes
COPIES = 2  # of what members hold, with temporaries
OF_FLOW = 64  # evaluations of a step of a flow: some need more


def ensemble(
    problem: Problem,
    members: Members,
    *,
    steps: NDArray[np.int64],
    device: torch.device,
    numbers: Precision,
    memory_limit: int | None,
    finished: Callable[[int], Any],
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Losses of members, whose scales take the place of widths.

    Args:
        problem: a model of random data.
        members: scales, seed indices and the root seed.
        steps: the recorded steps.
        device, numbers: where, and in which precision.
        memory_limit: in bytes, of a batch of members; None for a share of what is available.
        finished: called with the number of members of each batch.
        attrs: what the producer says of itself.

    Returns:
        Dataset of kind "ensemble" (`dmft.schema`): loss and test_loss (width, seed, step); nan where `diverged`.

    Raises:
        MemoryEstimateError: a single member does not fit.  DivergenceError: all members of a scale diverge.
        ValueError: sizes that are not whole at a scale.
    """
    seeds = np.asarray(members.seeds, np.int64)
    seen = np.union1d([0], steps)  # networks are judged by where they began, recorded or not
    found, divergences = np.zeros((2, len(members.widths), len(seeds), len(seen))), Divergences(problem)
    with usual_torch(device, tf32=numbers.name == "tf32"):
        for i, scale in enumerate(members.widths):
            at_once = _at_once(problem, scale, device, numbers.fields, memory_limit)
            for first in range(0, len(seeds), at_once):
                part = seeds[first : first + at_once]
                draw = Draws(torch.as_tensor(part, device=device), members.root, scale, numbers.fields)
                found[:, i, first : first + len(part)] = _trained(problem, scale, draw, seen, device, numbers.fields)
                finished(len(part))
    train, test = found / 2
    gone = (exploded(test, test[..., :1]) | exploded(train, train[..., :1])).any(axis=-1)
    for scale, row in zip(members.widths, gone, strict=True):
        divergences.add(scale, int(row.sum()), row.size)
    recorded = np.isin(seen, steps)
    values = {"loss": train[..., recorded], "test_loss": test[..., recorded]}
    if gone.any():
        values = {name: np.where(gone[..., None], np.nan, value) for name, value in values.items()}
        values["diverged"] = gone
    coords = {"width": np.array(members.widths), "seed": seeds}
    attrs = {**attrs, "seed": members.root, "diverged": divergences.report()}
    return schema.build("ensemble", problem, values, steps=steps, coords=coords, attrs=attrs)


def _kind(problem: Problem) -> type[Network]:
    """The simulation that the model names."""
    model: Any = problem.network
    found: type[Network] = model.reading("simulation")
    return found


def _at_once(problem: Problem, scale: int, device: torch.device, dtype: torch.dtype, limit: int | None) -> int:
    """How many members are trained together."""
    sizes = Sizes(cast("RandomData", problem.task), scale, torch.device("cpu"), dtype)
    steps = problem.training.steps
    evaluations = min(OF_FLOW * steps, EVALUATIONS) if isinstance(problem.training, GradientFlow) else steps
    numbers = COPIES * (_kind(problem).numbers(problem.network, sizes, evaluations) + sizes.rows * sizes.modes)
    available = free_memory(device)
    memory.require(
        numbers * dtype.itemsize,
        limit=limit,
        available=available,
        what=f"one network of scale {scale} with {sizes.modes} modes and {sizes.rows} samples",
        ways_out="take smaller scales, or fewer modes",
    )
    fits = int((limit or SHARE * available) // (numbers * dtype.itemsize))
    return max(1, min(fits, AT_ONCE[device.type] // numbers))


def _trained(
    problem: Problem, scale: int, draw: Draws, steps: NDArray[np.int64], device: torch.device, dtype: torch.dtype
) -> Array:
    """Train and test mean squares (2, member, step)."""
    kind, training, model = _kind(problem), problem.training, problem.network
    sizes = Sizes(cast("RandomData", problem.task), scale, device, dtype)
    if isinstance(training, GradientFlow):
        found = kind.flow(model, sizes, training, draw, steps)
    else:
        found = kind(model, sizes, training, draw).course(steps)
    return np.asarray(found.cpu().numpy(), np.float64)
