"""`from_predictions`: results of training code of one's own as an ensemble of this library.

    nets = finite_nets.from_predictions(problem, widths=[64, 256], seeds=100, prediction=train)

What networks must do to have the limit of `problem`: `dmft.specs.parameterization`; docs/howto/own_networks.md trains
some with `torch.optim.SGD`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.errors import exploded
from dmft.running.progress import progress_bar
from dmft.specs import Problem, _check
from finite_nets.ensembles.collection import Collection, Members, check_members
from finite_nets.ensembles.recording import Plan

START = 1e-5  # of the largest prediction: rounding of float32, where a centered output starts from zero


def from_predictions(
    problem: Problem,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    prediction: Any,
    *,
    save_steps: Iterable[int] | None = None,
    seed: int = 0,
    device: str = "unknown",
    producer: str = "finite_nets.from_predictions",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """An ensemble from predictions of networks that were trained elsewhere, for every analysis that needs no more.

    Args:
        problem: what the networks were trained on, and how.
        widths: N, different whole numbers.
        seeds: how many networks a width, or a number for each that tells it from the others.
        prediction: (width, seed, step, sample), or (width, seed, step, sample, output) where targets have outputs; or a
            function of a width and a seed that returns the predictions of one network.  An array of NumPy or PyTorch,
            of the outputs before the update of each step, of all samples of the task, training before test (where
            problem.training.observe is "test", of test samples alone).  If problem.network is centered these are
            f(t) - f(0): whoever trains subtracts.
        save_steps: the steps that it holds; all of 0..T by default.
        seed: the root seed, for the record.
        device, producer: where and by what it was trained, for the record.
        memory_limit: in bytes, for the results; by default what is available.
        progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "ensemble" (`dmft.schema`) with prediction, losses and, for classes, accuracies.  Networks whose
        predictions are not finite, or whose loss explodes, are masked and counted: nan, where `diverged` marks them.

    Raises:
        DivergenceError: all networks of a width diverge.
        MemoryEstimateError: the results do not fit.
        ValueError, TypeError: shapes, steps or numbers that are not those of the problem; a centered network that does
            not start from zero.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"from_predictions expects a dmft.Problem, got {type(problem).__name__}.")
    members = check_members(widths, seeds, seed)
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    plan = Plan(problem, schema.saved_steps(problem, save_steps), frozenset(["prediction", "loss"]))
    given = _networks(prediction, members, plan)
    first = next(given)
    collection = Collection(plan, members, first.dtype.name, memory_limit)
    total = len(members.widths) * len(members.seeds)
    with progress_bar(total, "networks", "net", progress) as bar:
        for i in range(total):
            row, column = divmod(i, len(members.seeds))
            values = first if i == 0 else next(given)
            exploded_at = _exploded_at(plan, values)
            if np.isinf(exploded_at[0]):
                _require_start(plan, values)
            collection.put(members.widths[row], column, {"prediction": values[None]}, exploded_at)
            bar.update()
    diverged = collection.divergences.report()
    return collection.dataset(producer=producer, dtype=first.dtype.name, device=device, diverged=diverged)


def _networks(prediction: Any, members: Members, plan: Plan) -> Iterator[NDArray[Any]]:
    """The predictions (step, sample, ...) of one network after the other."""
    shape, dims = plan.shape("prediction"), ("step", "sample", *["output"] * bool(plan.problem.task.outputs))
    if not callable(prediction):
        leading = (len(members.widths), len(members.seeds))
        whole = _numbers("prediction", prediction, (*leading, *shape), ("width", "seed", *dims))
        yield from whole.reshape(-1, *shape)
        return
    call: Callable[[int, int], Any] = prediction
    for width in members.widths:
        for seed in members.seeds:
            yield _numbers(f"prediction({width}, {seed})", call(width, seed), shape, dims)


def _numbers(name: str, values: Any, shape: tuple[int, ...], dims: tuple[str, ...]) -> NDArray[Any]:
    """An array of that shape in float32 or float64."""
    if hasattr(values, "detach"):  # of PyTorch
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be read as an array of numbers: {error}.") from error
    if array.dtype.kind not in "iuf" or isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} holds {type(values).__name__} of {array.dtype}; give real numbers.")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}, that is ({', '.join(dims)}).")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _exploded_at(plan: Plan, prediction: NDArray[Any]) -> NDArray[np.float64]:
    """(1,): the recorded step at which one network's numbers are not finite, or its loss exploded; infinite for a
    healthy one."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is looked for
        loss = schema.observed_loss(plan.problem, prediction.astype(np.float64))
    bad = exploded(loss, loss[0]) | ~np.isfinite(prediction).reshape(len(prediction), -1).all(axis=1)
    return np.array([plan.steps[bad.argmax()] if bad.any() else np.inf])


def _require_start(plan: Plan, prediction: NDArray[Any]) -> None:
    """ValueError for a network that is centered by its description and not by its predictions."""
    if not plan.problem.network.centered or plan.steps[0] != 0:
        return
    start = float(abs(prediction[0]).max())
    if start > START * float(abs(prediction).max()):
        raise ValueError(
            f"a prediction of step 0 is {start:.3g}, but the network of this problem is centered: its output is "
            "f(t) - f(0). Subtract f(0), in training too, or describe the network with centered=False."
        )
