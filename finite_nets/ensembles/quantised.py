"""`quantise`: what an ensemble loses when its trained weights are rounded to few bits.

    found = finite_nets.quantise(problem, widths=[64, 256], seeds=8, bits=[3, 4, 6])
    found["test_loss"].mean("seed")                      # (width, step, post)

Networks are rounded at saved steps, for the losses of these alone; training goes on with the weights that it had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

import dmft
from dmft import schema
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from dmft.schema.build import now
from dmft.schema.labels import labelled
from dmft.specs import Problem
from dmft.specs.random_data import RandomModel
from finite_nets.device.host import usual_torch
from finite_nets.device.precision import precision
from finite_nets.device.rounding import Quantisation, check_bits
from finite_nets.ensembles.collection import Divergences, check_members
from finite_nets.ensembles.ensemble import device_name, find_device, with_quantisation
from finite_nets.ensembles.recording import Plan
from finite_nets.ensembles.runner import Indices, Runner, memory_given_back
from finite_nets.training.programs import ProgramTrainer
from finite_nets.training.state import NEVER

DIMS = ("width", "seed", "step", "post")
Losses = dict[str, NDArray[np.float64]]


@usual_errors
def quantise(
    problem: Problem,
    *,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    bits: Sequence[int],
    activations: int | None = None,
    ends: bool = True,
    quantisation: Quantisation | None = None,
    save_steps: Iterable[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train networks, and find their losses with weights rounded to each number of bits.

    Args:
        problem: network, task, training: the same that the theory solves.
        widths: N, different whole numbers.
        seeds: how many networks a width, or the seed indices themselves.
        bits: of all matrices, the readout among them; networks that are not rounded come with them.
        activations: bits of what matrices multiply, in the rounded networks; None for full precision.
        ends: whether what reads inputs and the readout are rounded, too.
        quantisation: a `finite_nets.Quantisation` of training; by default full precision.
        save_steps: the steps after which weights are rounded; by default the last.
        seed: the root seed; networks are those of `train_ensemble` with Quantisation() or with `quantisation`.
        device, dtype, memory_limit, progress: as of `train_ensemble`.

    Returns:
        Dataset: the losses, and accuracies of classes, of `dmft.schema` as (width, seed, step, post); the coordinate
        post has the bits, infinite for networks that are not rounded, parameters(width) the number of their weights
        and tokens(step) that of the samples met so far, as `comparisons.fit_precision` asks for.  Networks that diverge
        are nan.

    Raises:
        ValueError, TypeError: bits that are not 2 to 16; as `train_ensemble` with a quantisation.
        DivergenceError, MemoryEstimateError: as `train_ensemble`.

    Example:
        >>> found = finite_nets.quantise(problem, widths=[8, 16], seeds=4, bits=[2, 4])
        >>> dict(found["test_loss"].sizes)
        {'width': 2, 'seed': 4, 'step': 1, 'post': 3}
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"quantise expects a dmft.Problem, got {type(problem).__name__}.")
    if isinstance(problem.network, RandomModel):
        raise ValueError(f"{type(problem.network).__name__} has no weights that could be rounded; take a network.")
    rounded = [Quantisation(check_bits(f"bits[{i}]", b), activations, ends) for i, b in enumerate(bits)]
    if problem.changing:
        raise ValueError(f"{problem.training.batches} change images; leave flip and crop out for rounded networks.")
    if not rounded or len({each.weights for each in rounded}) < len(rounded):
        raise ValueError(f"bits={list(bits)} must hold different numbers, at least one.")
    members = check_members(widths, seeds, seed, problem)
    steps = schema.saved_steps(problem, [problem.training.steps] if save_steps is None else save_steps)
    plan = Plan(problem, steps, frozenset(["loss"]))
    numbers = with_quantisation(precision(dtype), Quantisation() if quantisation is None else quantisation, plan)
    where = find_device(device)
    runner = Runner(plan, numbers, where, members.root, block=None, memory_limit=memory_limit)
    divergences, counts = Divergences(problem), dict.fromkeys(members.widths, 0)
    shape = (len(members.widths), len(members.seeds), len(steps), len(rounded) + 1)
    found: Losses = {}
    with memory_given_back(where), progress_bar(shape[0] * shape[1], "networks", "net", progress) as bar:
        for i, width in enumerate(members.widths):

            def work(part: Indices, width: int = width) -> tuple[Losses, NDArray[np.float64], int]:
                return _of_batch(runner, width, part, rounded)

            for first, (losses, exploded_at, count) in runner.batches(width, members.seeds, work):
                bad, counts[width] = exploded_at < NEVER, count
                divergences.add(width, int(bad.sum()), len(bad), float(exploded_at.min()))
                for name, values in losses.items():
                    values[bad] = np.nan
                    every = found.setdefault(name, np.full(shape, np.nan))
                    every[i, first : first + len(bad)] = values
                bar.update(len(bad))
    coords = {
        "width": list(members.widths),
        "seed": list(members.seeds),
        "step": steps,
        "post": [*(float(each.weights or np.inf) for each in rounded), np.inf],
        "parameters": ("width", list(counts.values())),
        "tokens": ("step", steps * problem.drawn.shape[1]),
        "time": ("step", problem.training.times[steps]),
    }
    attrs = {
        "analysis": "quantise",
        "problem": problem.to_json(arrays=False),
        "problem_id": problem.problem_id,
        "version": dmft.__version__,
        "created": now(),
        "producer": "finite_nets.quantise",
        "dtype": dtype,
        "device": device_name(where),
        "seed": members.root,
        "rounded": rounded[-1].text,
        "quantisation": "full precision" if quantisation is None else quantisation.text,
        "diverged": divergences.report(),
    }
    return labelled(xr.Dataset({name: (DIMS, value) for name, value in found.items()}, coords, attrs))


def _of_batch(
    runner: Runner, width: int, seeds: Indices, rounded: Sequence[Quantisation]
) -> tuple[Losses, NDArray[np.float64], int]:
    """Losses (member, step, post) by name, the steps at which members explode, and how many weights one has."""
    plan, trainer = runner.plan, runner.trainer
    assert isinstance(trainer, ProgramTrainer)  # as of all that may be rounded
    with usual_torch(runner.device, tf32=runner.precision.name == "tf32"):
        state, seen = runner.begin(width, seeds), []
        steps = plan.steps.tolist()
        for t, fields in zip(steps, trainer.run(state, frozenset(steps), gradients=False), strict=True):
            met = trainer.meet(t, everything=True)
            outputs = [trainer.outputs_of(state, met, each)[:, met.observed] for each in rounded]
            seen.append(torch.stack([*outputs, fields.output], dim=1).double().cpu().numpy())
        exploded_at = state.exploded_at.double().cpu().numpy()
        count = sum(tensor[0].numel() for tensor in state.weights.tensors)
    prediction: Any = np.stack(seen, axis=1)  # (member, step, post, sample, output)
    prediction = prediction if plan.problem.task.outputs else prediction[..., 0]
    with np.errstate(all="ignore"):  # of networks that diverged
        return schema.of_predictions(plan.problem, prediction, plan.observables), exploded_at, count
