"""`neurons`: preactivations of single neurons of networks of several widths, as many neurons of each.

They are h of every layer that the network names, before the update of a saved step; of perceptrons

    h^1 = W^0 x / sqrt(D) + sigma b^0      h^{l+1} = [h^l +] b (W^l phi(h^l) / sqrt(N) + sigma b^l)

The neurons of one network depend on each other, to the order 1/N that sums over them resolve: their coordinate `member`
says which network each belongs to, for errors by networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from dmft import schema
from dmft.errors import DivergenceError
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from dmft.specs import Problem, _check
from finite_nets.device.precision import precision
from finite_nets.ensembles.collection import Divergences, check_members
from finite_nets.ensembles.ensemble import device_name, find_device
from finite_nets.ensembles.recording import Plan, Recorder
from finite_nets.ensembles.runner import Batch, Runner, memory_given_back
from finite_nets.training.state import NEVER, Fields, State
from finite_nets.training.trainer import Training

NAME = "preactivation"


@usual_errors
def neurons(
    problem: Problem,
    *,
    widths: Sequence[int],
    neurons: int = 2**14,
    seed: int = 0,
    save_steps: Iterable[int] | None = None,
    samples: Iterable[int] | None = None,
    dtype: str = "float32",
    device: str = "auto",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train networks of the given widths on `problem` and keep the preactivations of their neurons.

    Args:
        problem: network, task, training: the same that the theory solves.
        widths: N, different whole numbers.
        neurons: how many of each width and layer: those of neurons / N networks, rounded up (of the last one not all).
            At least 8 N of the largest width for the errors of `comparisons.densities`, which go by networks.
        seed: the root seed; networks are those of `finite_nets.train_ensemble` with the seed indices 0, 1, ...
        save_steps: the steps to record; by default the first and the last.  Training ends with the last of them.
        samples: indices of the samples to record; by default all that are observed.
        dtype: "float32", "float64", "tf32" or "bf16" (`finite_nets.device.precision` says what each is).
        device: "cpu", "gpu", "cuda:1", ...; "auto" takes a GPU if there is one.
        memory_limit: in bytes, for the results and a batch; by default what is available.
        progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "neurons" (`dmft.schema`): preactivation(width, layer, step, sample, neuron), with the
        coordinate member(width, neuron), the seed index of the network.  In place of networks that diverge those with
        the next indices are trained; a warning says how many did.

    Raises:
        DivergenceError: more networks of a width diverge than are asked for.
        MemoryEstimateError: when results or a single network do not fit, with the numbers.
        ValueError, TypeError: arguments out of range; layers with positions.

    Example:
        >>> finite_nets.neurons(problem, widths=[16], neurons=64)["preactivation"].dims
        (...'sample'...)
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"neurons expects a dmft.Problem, got {type(problem).__name__}.")
    neurons = _check.integer("neurons", neurons, minimum=1)
    schema.require_no_positions(problem, "neurons")
    members = check_members(widths, 1, seed, problem)
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    numbers, where = precision(dtype), find_device(device)
    steps = schema.saved_steps(problem, sorted({0, problem.training.steps}) if save_steps is None else save_steps)
    chosen = schema.observed_samples(problem, samples)
    rows = tuple((chosen - problem.observed.start).tolist())
    shape = (len(members.widths), problem.sketch.depth, len(steps), len(rows), neurons)
    memory.require(
        math.prod(shape) * np.dtype(numbers.results).itemsize + 8 * shape[0] * neurons,
        limit=memory_limit,
        available=memory.available_on_host(),
        what=f"the preactivations of {neurons} neurons of {len(members.widths)} widths",
        ways_out="keep fewer neurons, or record fewer save_steps or samples",
    )
    found, member = np.empty(shape, numbers.results), np.empty((shape[0], neurons), np.int64)
    divergences = Divergences(problem)
    total = sum(math.ceil(neurons / width) for width in members.widths)
    with memory_given_back(where), progress_bar(total, "networks", "net", progress) as bar:
        for i, width in enumerate(members.widths):
            plan = NeuronPlan(problem, steps, frozenset({"prediction"}), rows=rows, width=width)
            runner = Runner(plan, numbers, where, members.root, block=None, memory_limit=memory_limit)
            crowd = Crowd(found[i], member[i], width, divergences)
            while crowd.missing:
                first = crowd.tried
                for batch in runner.members(width, range(first, first + crowd.missing)):
                    bar.update(crowd.put(batch, first + batch.first))
                if crowd.diverged > (wanted := math.ceil(neurons / width)):
                    raise DivergenceError(
                        f"{crowd.diverged} of {crowd.tried} networks of width {width} diverge, more than the {wanted} "
                        f"that are asked for. {divergences.way_out}"
                    )
    return schema.build(
        "neurons",
        problem,
        {NAME: found},
        steps=steps,
        samples=chosen,
        coords={
            "width": np.array(members.widths),
            "neuron": np.arange(neurons),
            "member": (("width", "neuron"), member),
        },
        attrs={
            "producer": "finite_nets.neurons",
            "dtype": dtype,
            "device": device_name(where),
            "seed": members.root,
            "diverged": divergences.report(),
        },
    )


@dataclass(frozen=True, kw_only=True)
class NeuronPlan(Plan):
    """Preactivations of networks of one width.

    rows: which of the observed samples.
    """

    rows: tuple[int, ...]
    width: int

    @property
    def recorded(self) -> tuple[str, ...]:
        return (NAME,)

    def shape(self, name: str) -> tuple[int, ...]:
        if name == NAME:
            return (self.problem.sketch.depth, len(self.steps), len(self.rows), self.width)
        return super().shape(name)

    def dims(self, name: str) -> tuple[str, ...]:
        return ("layer", "step", "sample", "neuron") if name == NAME else super().dims(name)

    def recorder(self, trainer: Training[Any], state: State[Any]) -> NeuronRecorder:
        return NeuronRecorder(self, trainer, state, self.rows)


class NeuronRecorder(Recorder):
    """Takes preactivations of these rows alone."""

    def __init__(self, plan: Plan, trainer: Training[Any], state: State[Any], rows: tuple[int, ...]) -> None:
        super().__init__(plan, trainer, state)
        self._rows = rows

    def step(self, fields: Fields) -> Iterator[tuple[str, Tensor]]:
        yield NAME, torch.stack(self.trainer.preactivations(self.state, fields, self._rows), dim=1)


@dataclass
class Crowd:
    """The neurons of one width, filled network by network; of those that diverge none are taken.

    values: (layer, step, sample, neuron); member: (neuron,); both are filled in place.
    """

    values: NDArray[np.floating]
    member: NDArray[np.int64]
    width: int
    divergences: Divergences
    filled: int = 0
    tried: int = 0
    diverged: int = 0

    @property
    def missing(self) -> int:
        """How many networks more it takes."""
        return math.ceil((len(self.member) - self.filled) / self.width)

    def put(self, batch: Batch, first: int) -> int:
        """The networks with seed indices from `first` on; how many were healthy."""
        bad = batch.exploded_at < NEVER
        self.tried += len(bad)
        self.diverged += int(bad.sum())
        self.divergences.add(self.width, int(bad.sum()), len(bad), float(batch.exploded_at.min()))
        for i in np.flatnonzero(~bad):
            part = slice(self.filled, min(self.filled + self.width, len(self.member)))
            self.values[..., part] = batch.results[NAME][i, ..., : part.stop - part.start]
            self.member[part] = first + i
            self.filled = part.stop
        return len(bad) - int(bad.sum())
