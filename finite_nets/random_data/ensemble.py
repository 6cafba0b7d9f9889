"""From a problem of random data to the Dataset of members at several scales, as many trained together as fit."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from dmft.specs import GradientFlow, Problem
from dmft.specs.random_data import RandomData
from finite_nets.ensembles.collection import Members
from finite_nets.ensembles.simulated import Draws, at_once, simulated
from finite_nets.random_data.data import Sizes
from finite_nets.random_data.network import EVALUATIONS, Network

Array = NDArray[np.float64]
COPIES = 2  # of what members hold, with temporaries
OF_FLOW = 64  # evaluations of a step of a flow: some need more


def ensemble(
    problem: Problem,
    members: Members,
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory_limit: int | None,
    **others: Any,
) -> xr.Dataset:
    """Losses of members, whose scales take the place of widths.

    Args:
        problem: a model of random data.
        members: scales, seed indices and the root seed.
        device, dtype: where, and in which numbers.
        memory_limit: in bytes, of a batch of members; None for a share of what is available.
        others: of `finite_nets.ensembles.simulated`.

    Returns:
        Dataset of kind "ensemble" (`dmft.schema`), loss and test_loss (width, seed, step), nan where `diverged`; or of
        kind "moments".

    Raises:
        MemoryEstimateError: a single member does not fit.  DivergenceError: all members of a scale diverge.
        ValueError: sizes that are not whole at a scale.
    """

    def train(scale: int, draws: Draws, seen: NDArray[np.int64]) -> dict[str, Array]:
        losses, test_losses = _trained(problem, scale, draws, seen, device, dtype) / 2
        return {"loss": losses, "test_loss": test_losses}

    return simulated(
        problem,
        members,
        train,
        lambda scale: _at_once(problem, scale, device, dtype, memory_limit),
        device=device,
        dtype=dtype,
        **others,
    )


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
    return at_once(
        COPIES * (_kind(problem).numbers(problem.network, sizes, evaluations) + sizes.rows * sizes.modes),
        device=device,
        dtype=dtype,
        limit=limit,
        what=f"one network of scale {scale} with {sizes.modes} modes and {sizes.rows} samples",
        ways_out="take smaller scales, or fewer modes",
    )


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
