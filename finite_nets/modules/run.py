"""What the members of a run of `train_modules` have in common, checked; and how many of them fit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dmft import schema
from dmft.running import memory
from dmft.specs import _check
from finite_nets.device.free_memory import free_memory
from finite_nets.device.host import usual_torch
from finite_nets.ensembles.budget import CPU_BATCH, GPU_SHARE
from finite_nets.ensembles.collection import Members, check_members
from finite_nets.ensembles.ensemble import find_device
from finite_nets.modules.data import Data, checked_loss, on_device
from finite_nets.modules.identity import source_of
from finite_nets.modules.members import drawn, require_trainable, sizes_of
from finite_nets.modules.problem import ModuleProblem, described
from finite_nets.modules.rates import MakeModule, Rate, Scaling, made, mean_field_rates
from finite_nets.modules.recording import Measure
from finite_nets.modules.training import ModuleTraining, checked_training

OBSERVABLES = ("prediction", "loss", "feature_kernel", *(name for name in schema.OF_MODULES if name != "measured"))
COSTLY = ("feature_kernel", "activation_density")  # recorded if they are asked for
DTYPES = ("float32", "tf32", "bf16")
BINS = (5.0, 100)  # of densities: between -5 and 5
COPIES = 5  # of parameters: their start, gradients and changes
RESULTS = 3  # copies of what is recorded
BACKWARD = 3  # times the numbers of a pass, for its gradients


@dataclass(frozen=True)
class Run:
    """Of all members.

    problem: a `ModuleProblem`, in the place of a `dmft.Problem`.
    drawn: the parameters whose relative change is recorded.
    """

    make_module: MakeModule
    members: Members
    rates: Mapping[int, tuple[Rate, ...]]
    data: Data
    training: ModuleTraining
    problem: Any
    steps: NDArray[np.int64]
    layers: tuple[str, ...]
    drawn: list[str]
    observables: tuple[str, ...]
    bins: tuple[float, int]
    measure: Mapping[str, Measure]
    centered: bool
    dtype: str
    device: torch.device
    memory_limit: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on, beside the problem."""
        return {
            "seed": self.members.root,
            "dtype": self.dtype,
            "steps": self.steps.tolist(),
            "layers": self.layers,
            "observables": sorted(self.observables),
            "bins": self.bins,
            "measure": {name: source_of(function) for name, function in self.measure.items()},
        }

    def require_memory(self) -> None:
        """MemoryEstimateError for results that do not fit."""
        samples, steps = self.data.observed.n_samples, len(self.steps)
        each = steps * self.data.observed.targets.size
        if "feature_kernel" in self.observables:
            each += len(self.layers) * steps * samples**2
        memory.require(
            RESULTS * 4 * each * len(self.members.widths) * len(self.members.seeds),
            limit=self.memory_limit,
            available=memory.available_on_host(),
            what=f"the results of {len(self.members.widths)} widths with {len(self.members.seeds)} networks each",
            ways_out="observe fewer samples, record fewer save_steps, layers or observables, or train fewer seeds",
        )

    def module(self, width: int) -> nn.Module:
        """On the device."""
        return made(self.make_module, width).to(self.device)

    def at_once(self, module: nn.Module, width: int) -> tuple[int, int]:
        """How many members of this width to train side by side, and bytes of each.

        Raises:
            MemoryEstimateError: not one fits.
        """
        batch = self.data.n_train if self.training.batch is None else self.training.batch
        with usual_torch(self.device):
            shape, numbers, shown = sizes_of(module, self.data.seen[:2], self.layers)
        _require_outputs(self, shape)
        parameters = sum(p.numel() for p in module.parameters())
        copies = COPIES + (2 if self.training.optimiser == "adam" else int(self.training.momentum > 0))
        kept = 2 * len(self.data.seen) * shown
        needed = 4 * (copies * parameters + BACKWARD * batch * numbers + kept)
        available = free_memory(self.device)
        target = CPU_BATCH if self.device.type == "cpu" else int(GPU_SHARE * available)
        memory.require(
            needed,
            limit=self.memory_limit,
            available=available,
            what=f"one module of width {width}",
            ways_out="lower the width, take smaller batches, or observe fewer samples",
        )
        if self.memory_limit is not None:
            target = min(target, self.memory_limit)
        return max(1, target // needed), needed


def prepared(
    make_module: MakeModule,
    task: Any,
    training: Any,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    *,
    loss: str = "squared",
    gamma0: float = 1.0,
    output: str = "scaled",
    variance: float = 1.0,
    centered: bool = False,
    parameterization: str = "mean_field",
    roles: Mapping[str, str] | None = None,
    factors: Mapping[str, float] | None = None,
    layers: Sequence[str] = (),
    observables: Sequence[str] | None = None,
    bins: tuple[float, int] = BINS,
    measure: Mapping[str, Measure] | None = None,
    observed: Sequence[int] | None = None,
    save_steps: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    memory_limit: int | None = None,
) -> Run:
    """Arguments and errors as of `train_modules`."""
    training, loss = checked_training(training), checked_loss(loss)
    members = check_members(widths, seeds, seed)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not offered; choose one of {', '.join(DTYPES)}.")
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    scaling = Scaling(training.optimiser, gamma0, output, variance, parameterization)
    rates = mean_field_rates(make_module, members.widths, **vars(scaling), roles=roles, factors=factors).at
    width, where = members.widths[0], find_device(device)
    data = on_device(task, loss, observed, training, where)
    training.indices(data.n_train)  # refuses too few samples
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    narrow = made(make_module, width)
    _require_layers(narrow, names)
    description = described(
        make_module, narrow, rates[width], scaling, data.seen[:1].cpu(), data.observed.targets.shape[1]
    )
    description |= {"centered": centered} | _named(factors)
    if centered and save_steps is not None and 0 not in list(save_steps):
        raise ValueError(f"centered=True subtracts the outputs of step 0; add it to save_steps={list(save_steps)}.")
    problem: Any = ModuleProblem(description, data.observed, training, loss, scaling.gamma0, len(names))
    return Run(
        make_module=make_module,
        members=members,
        rates=rates,
        data=data,
        training=training,
        problem=problem,
        steps=schema.saved_steps(problem, _steps(training) if save_steps is None else save_steps),
        layers=names,
        drawn=drawn(narrow, rates[width]),
        observables=_observables(observables, bool(names)),
        bins=_bins(bins),
        measure=dict(measure or {}),
        centered=centered,
        dtype=dtype,
        device=where,
        memory_limit=memory_limit,
    )


def _named(factors: Mapping[str, float] | None) -> dict[str, Any]:
    return {"factors": dict(factors)} if factors else {}


def _require_layers(module: nn.Module, names: Sequence[str]) -> None:
    require_trainable(module)
    known = [name for name, _ in module.named_modules() if name]
    for name in names:
        if name not in known:
            raise ValueError(f"layers holds {name!r}; the submodules are {', '.join(known)}.")


def _observables(asked: Sequence[str] | None, layers: bool) -> tuple[str, ...]:
    if asked is None:
        chosen = tuple(name for name in OBSERVABLES if name not in COSTLY)
    else:
        chosen = (asked,) if isinstance(asked, str) else tuple(asked)
        if not chosen or not set(chosen) <= set(OBSERVABLES):
            raise ValueError(f"observables={asked!r}: give a list with any of {', '.join(OBSERVABLES)}.")
        if not layers and (lost := [n for n in chosen if n == "feature_kernel" or n.startswith("activation")]):
            raise ValueError(f"{lost[0]} is of layers; name some, layers=[...], or leave it out.")
    return chosen


def _bins(bins: Any) -> tuple[float, int]:
    if np.shape(bins) != (2,):
        raise ValueError(f"bins={bins!r} is no pair of a reach and a number; give e.g. bins={BINS}.")
    reach, count = bins
    return _check.positive("bins[0]", reach), _check.integer("bins[1]", count, minimum=1)


def _steps(training: ModuleTraining) -> list[int]:
    """Some 16 of all, closer at the start."""
    even, early = np.linspace(0, training.steps, 9), np.geomspace(1, training.steps, 9)
    return [int(t) for t in np.unique(np.concatenate([even, early]).round())]


def _require_outputs(run: Run, shape: tuple[int, ...]) -> None:
    """ValueError for a module whose outputs are not those of the targets."""
    outputs = run.data.observed.targets.shape[1]
    if run.data.tokens:
        expected: tuple[int, ...] = (2, run.data.seen.shape[1], outputs)
        good = shape == expected
    else:
        expected = (2, outputs)
        good = shape == expected or (outputs == 1 and shape == (2,))
    if not good:
        raise ValueError(
            f"the module returns the shape {shape} for 2 samples; targets need {expected}, "
            f"{'(sample, position, character)' if run.data.tokens else '(sample, output)'}."
        )
