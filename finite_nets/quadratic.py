"""Networks of quadratic perceptrons, every neuron of them: what `dmft.random_data.quadratic` closes in two moments.

    h_i = w_i . x,   f = sum_i (h_i + (e/2) h_i^2) / (gamma0 N) [- f_0],   D_i = gamma0 <r (1 + e h_i) x>

with x = inputs / sqrt D, residuals r = y - f and averages over the training samples; the directions D_i drive the
recurrence of the optimiser.  Where the population is trained on, averages over x are those of a Gaussian.  Test losses
of a teacher are closed in the moments of the weights; predictions, losses and kernels of samples are those of neurons.

A member is a function of (root seed, width, seed index) alone: parameter 0 are its weights (neuron, feature).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from dmft import schema
from dmft.random_data import quadratic
from dmft.specs import Problem
from finite_nets.ensembles.collection import Members
from finite_nets.ensembles.simulated import Draws, at_once, simulated
from finite_nets.random_data.learned import mixed

Array = NDArray[np.float64]
WEIGHTS = 0
FIELDS = 4  # arrays (neuron, sample) that are held at once


def ensemble(
    problem: Problem,
    members: Members,
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory_limit: int | None,
    **others: Any,
) -> xr.Dataset:
    """Networks of all widths; arguments and result as of `finite_nets.ensembles.simulated`, memory_limit in bytes."""
    data = _Data(problem, device, dtype)

    def train(width: int, draws: Draws, seen: NDArray[np.int64]) -> dict[str, Array]:
        return _train(problem, data, draws(WEIGHTS, width, data.x.shape[1]), seen)

    def together(width: int) -> int:
        samples, features = data.x.shape
        components = problem.training.recurrences.slots + 3
        return at_once(
            width * (components * features + FIELDS * samples) + quadratic.KERNELS * samples**2 + 4 * features**2,
            device=device,
            dtype=dtype,
            limit=memory_limit,
            what=f"one network of width {width} with {features} features and {samples} samples",
            ways_out="take smaller widths, or fewer samples",
        )

    return simulated(problem, members, train, together, device=device, dtype=dtype, **others)


class _Data:
    """Inputs over sqrt(D) (sample, feature) and targets (sample,) as tensors; the direction of the teacher."""

    def __init__(self, problem: Problem, device: torch.device, dtype: torch.dtype) -> None:
        given = quadratic.Data(problem)
        each: dict[str, Any] = {"device": device, "dtype": dtype}
        self.x, self.y = torch.as_tensor(given.x, **each), torch.as_tensor(given.y.copy(), **each)
        self.trained, self.sampled = given.trained, given.sampled
        self.direction = None if given.teacher is None else torch.as_tensor(given.teacher.direction, **each)


def _train(problem: Problem, data: _Data, w: Tensor, seen: NDArray[np.int64]) -> dict[str, Array]:
    """(member, step, ...) by variable, of weights (member, neuron, feature) at the start."""
    model: Any = problem.network
    A, b = problem.training.recurrences
    state = torch.cat([w[None], w.new_zeros((b.shape[1] - 1, *w.shape))])
    start, x = quadratic.moments(w), data.x[data.trained]
    h = w @ data.x.mT
    f_0 = _output(h, model) if model.centered else 0.0
    kernel_0 = _kernel(_slope(h[..., data.trained], model), x)
    rows: list[dict[str, Array]] = []
    recorded = set(seen.tolist())
    for t in range(int(seen[-1]) + 1):
        w = state[0]
        h = w @ data.x.mT
        f, slope = _output(h, model) - f_0, _slope(h[..., data.trained], model)
        r = (data.y - f)[:, data.trained]
        error = None
        if data.direction is not None and (t in recorded or not data.sampled):
            error = quadratic.error_of_teacher(data.direction, quadratic.moments(w), start, model)
        if t in recorded:
            row = _row(problem, data, f, r, error)
            if data.sampled:
                kernel = _kernel(slope, x)
                row["target_alignment"] = quadratic.target_alignment(kernel, data.y[data.trained])
                row["ntk_change"] = quadratic.relative_change(kernel, kernel_0)
            rows.append({name: value.double().cpu().numpy() for name, value in row.items()})
        if t < seen[-1]:
            if data.sampled:
                direction = (slope * (r / r.shape[-1])[:, None]) @ x
            else:
                b1, B1 = quadratic.descent_of_population(*cast("tuple[Tensor, Tensor]", error))
                direction = b1[:, None] + model.curvature * w @ B1
            direction = model.gamma0 * direction
            state = mixed(A[t], state) if len(b[t]) > 1 else state * float(A[t, 0, 0])
            for component, weight in enumerate(b[t]):
                state[component].add_(direction, alpha=float(weight))
    return {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}


def _output(h: Tensor, model: Any) -> Tensor:
    """(member, sample) of h (member, neuron, sample)."""
    found: Tensor = (h + model.curvature / 2 * h.square()).mean(-2) / model.gamma0
    return found


def _slope(h: Tensor, model: Any) -> Tensor:
    found: Tensor = 1 + model.curvature * h
    return found


def _kernel(slope: Tensor, x: Tensor) -> Tensor:
    """The NTK (member, sample, sample_2) of slopes 1 + e h (member, neuron, sample)."""
    found: Tensor = (x @ x.mT) * (slope.mT @ slope) / slope.shape[-2]
    return found


def _row(problem: Problem, data: _Data, f: Tensor, r: Tensor, error: Any) -> dict[str, Any]:
    """Losses (member,), and predictions (member, sample) of a task."""
    if error is None:
        targets = problem.task.targets
        return {"prediction": f, **schema.of_predictions(problem, f, xp=torch, targets=f.new_tensor(targets))}
    found = quadratic.losses_of_teacher(*error)
    return {"loss": r.square().mean(-1) / 2 if data.sampled else found["test_loss"], **found}
