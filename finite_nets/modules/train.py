"""`train_modules`: any `torch.nn.Module` across widths, in the parameterization that has a limit.

    nets = finite_nets.train_modules(lambda N: MyNetwork(N), task, finite_nets.ModuleTraining(...), widths, seeds)

Members of a width are trained side by side, as many as memory takes, all on the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn

from dmft import schema
from dmft.errors import MemoryEstimateError, exploded
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.running.progress import Bar, progress_bar
from dmft.specs import _check
from finite_nets.device.host import usual_torch
from finite_nets.ensembles.budget import CPU_BATCH, GPU_SHARE
from finite_nets.ensembles.collection import Divergences, Members, check_members
from finite_nets.ensembles.ensemble import device_name, find_device
from finite_nets.ensembles.runner import memory_given_back, out_of_memory
from finite_nets.modules import recording
from finite_nets.modules.data import Data, checked_loss, on_device
from finite_nets.modules.members import Batched, drawn, require_trainable, shape_of, start
from finite_nets.modules.problem import ModuleProblem, described
from finite_nets.modules.rates import MakeModule, Rate, Scaling, made, mean_field_rates
from finite_nets.modules.recording import Recorder
from finite_nets.modules.store import Finished
from finite_nets.modules.training import ModuleTraining, Optimiser, checked_training
from finite_nets.training.trainer import NEVER

OBSERVABLES = ("prediction", "loss", "feature_kernel", *schema.OF_MODULES)
DTYPES = ("float32", "tf32", "bf16")
BINS = (5.0, 100)  # of densities: between -5 and 5
COPIES = 5  # of parameters: their start, gradients and changes
BACKWARD = 3  # times the numbers of a pass, for its gradients
Results = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Run:
    """What all members have in common."""

    make_module: MakeModule
    data: Data
    training: ModuleTraining
    problem: Any  # a `ModuleProblem`, in the place of a `dmft.Problem`
    steps: NDArray[np.int64]
    layers: tuple[str, ...]
    drawn: list[str]  # parameters whose relative change is recorded
    observables: tuple[str, ...]
    bins: tuple[float, int]
    measure: Mapping[str, recording.Measure]
    centered: bool
    dtype: str
    device: torch.device
    root: int
    memory_limit: int | None


@usual_errors
def train_modules(
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
    measure: Mapping[str, recording.Measure] | None = None,
    observed: Sequence[int] | None = None,
    save_steps: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    store: Any = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train modules of the given widths, `seeds` of each, at mean-field rates.

    Args:
        make_module: (width) -> `torch.nn.Module` of PyTorch's own layers, which maps inputs (sample, ...) to outputs
            (sample, output), or for text tokens (sample, position) to (sample, position, character).  Images come as
            (sample, channel, row, column).
        task: a `dmft.Task`, or a `dmft.Text` for its next characters.
        training: a `finite_nets.ModuleTraining`, or a `dmft.GradientDescent`.
        widths, seeds, seed: as of `train_ensemble`.
        loss: of `dmft.Problem`, or "mse".
        gamma0, output, variance, parameterization, roles, factors: start and rates (`finite_nets.mean_field_rates`).
        centered: subtract the outputs at the start, in the loss and in results.
        layers: names of submodules (`dict(module.named_modules())`) whose outputs are recorded.
        observables: some of prediction, loss (with accuracies of classes), and of layers feature_kernel,
            activation_size, activation_change, activation_density; weight_change; by default all but feature_kernel
            and activation_density.
        bins: of densities: how far they reach, and their number.
        measure: by name, functions (module, inputs) -> tensor of the user's own, such as attention maps, of the
            observed inputs; `finite_nets.measured` has them from the result.
        observed: how many training and test samples results hold; (64, 256) at most by default.
        save_steps: the steps to record; by default some 16, closer at the start.
        device, memory_limit, progress: as of `train_ensemble`.
        dtype: "float32", "tf32", or "bf16" (autocast: products in bfloat16, parameters in float32).
        store: a folder in which every finished network is kept, and found again.

    Returns:
        Dataset of kind "ensemble" (`dmft.schema`), with the variables of `finite_nets.modules.recording`; layers and
        parameters have their names as coordinates.  Of loss and accuracy it holds those of the observed samples.
        Networks whose loss explodes are nan, and marked in `diverged`.

    Raises:
        DivergenceError: all networks of a width diverge.
        MemoryEstimateError: one network does not fit.
        ValueError, TypeError: arguments out of range; what `mean_field_rates` refuses; dropout, BatchNorm; outputs of
            another shape than targets.

    Example:
        >>> import torch
        >>> def network(N):
        ...     return torch.nn.Sequential(torch.nn.Linear(3, N), torch.nn.Tanh(), torch.nn.Linear(N, 1))
        >>> training = finite_nets.ModuleTraining(0.5, steps=4)
        >>> found = finite_nets.train_modules(network, problem.task, training, [8, 16], 4, layers=["1"])
        >>> dict(found["activation_change"].sizes)
        {'width': 2, 'seed': 4, 'layer': 1, 'step': 5}
    """
    training, loss = checked_training(training), checked_loss(loss)
    members = check_members(widths, seeds, seed)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not offered; choose one of {', '.join(DTYPES)}.")
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    scaling = Scaling(training.optimiser, gamma0, output, variance, parameterization)
    rates = mean_field_rates(make_module, members.widths, **vars(scaling), roles=roles, factors=factors).at
    where = find_device(device)
    data = on_device(task, loss, observed, training, where)
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    narrow = made(make_module, members.widths[0])
    _require_layers(narrow, names)
    width = members.widths[0]
    description = described(make_module, narrow, rates[width], scaling) | {"centered": centered} | _named(factors)
    problem: Any = ModuleProblem(description, data.observed, training, loss, scaling.gamma0, len(names))
    run = _Run(
        make_module=make_module,
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
        root=members.root,
        memory_limit=memory_limit,
    )
    finished = Finished(store, run.problem.problem_id, _settings(run))
    divergences = Divergences(problem)
    found: dict[int, dict[int, Results]] = {}
    updates = int(run.steps[-1]) * len(members.widths) * len(members.seeds)
    with memory_given_back(where), progress_bar(updates, "networks", "step", progress) as bar:
        for width in members.widths:
            found[width] = finished.read(width, members.seeds)
            bar.update(int(run.steps[-1]) * len(found[width]))
            left = [s for s in members.seeds if s not in found[width]]
            for s, results in _trained(run, width, rates[width], left, bar):
                finished.write(width, s, results)
                found[width][s] = results
            at = np.array([found[width][s]["exploded_at"] for s in members.seeds])
            divergences.add(width, int((at < NEVER).sum()), len(at), float(at.min()))
    return _dataset(run, members, found, divergences.report())


def _named(factors: Mapping[str, float] | None) -> dict[str, Any]:
    return {"factors": dict(factors)} if factors else {}


def _settings(run: _Run) -> dict[str, Any]:
    return {
        "seed": run.root,
        "dtype": run.dtype,
        "steps": run.steps.tolist(),
        "layers": run.layers,
        "observables": sorted(run.observables),
        "bins": run.bins,
        "measure": list(run.measure),
    }


def _require_layers(module: nn.Module, names: Sequence[str]) -> None:
    require_trainable(module)
    known = [name for name, _ in module.named_modules() if name]
    for name in names:
        if name not in known:
            raise ValueError(f"layers holds {name!r}; the submodules are {', '.join(known)}.")


def _observables(asked: Sequence[str] | None, layers: bool) -> tuple[str, ...]:
    if asked is None:
        costly = ("feature_kernel", "activation_density")
        chosen = tuple(name for name in OBSERVABLES if name not in costly)
    else:
        chosen = (asked,) if isinstance(asked, str) else tuple(asked)
        if not chosen or not set(chosen) <= set(OBSERVABLES):
            raise ValueError(f"observables={asked!r}: give a list with any of {', '.join(OBSERVABLES)}.")
        if not layers and (lost := [n for n in chosen if n == "feature_kernel" or n.startswith("activation")]):
            raise ValueError(f"{lost[0]} is of layers; name some, layers=[...], or leave it out.")
    return chosen


def _bins(bins: Any) -> tuple[float, int]:
    reach, count = bins
    return _check.positive("bins[0]", reach), _check.integer("bins[1]", count, minimum=1)


def _steps(training: ModuleTraining) -> list[int]:
    """Some 16 of all, closer at the start."""
    even, early = np.linspace(0, training.steps, 9), np.geomspace(1, training.steps, 9)
    return [int(t) for t in np.unique(np.concatenate([even, early]).round())]


def _trained(
    run: _Run, width: int, rates: Sequence[Rate], seeds: Sequence[int], bar: Bar
) -> Iterator[tuple[int, Results]]:
    """Results of members, batch by batch; a batch that does not fit in memory is halved."""
    module = made(run.make_module, width).to(run.device)
    most, first = len(seeds), 0
    while first < len(seeds):
        count = min(_at_once(run, module, width), most, len(seeds) - first)
        part = list(seeds[first : first + count])
        try:
            found = _train(run, module, width, rates, part, bar)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            reason, found = str(error).splitlines()[0], None
        if found is not None:
            yield from zip(part, found, strict=True)
            first += count
            continue
        # after the handler: its traceback holds the memory of the batch
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        if count == 1:
            raise MemoryEstimateError(f"one module of width {width} does not fit in memory: {reason}")
        most = count // 2


def _at_once(run: _Run, module: nn.Module, width: int) -> int:
    """How many members of this width to train side by side."""
    batch = run.data.n_train if run.training.batch is None else run.training.batch
    with usual_torch(run.device):
        shape, numbers = shape_of(module, run.data.seen[:2])
    _require_outputs(run, shape)
    parameters = sum(p.numel() for p in module.parameters())
    copies = COPIES + (2 if run.training.optimiser == "adam" else int(run.training.momentum > 0))
    kept = 2 * len(run.data.seen) * numbers if run.layers else 0
    needed = 4 * (copies * parameters + BACKWARD * batch * numbers + kept)
    if run.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(run.device)
        available = free + torch.cuda.memory_reserved(run.device) - torch.cuda.memory_allocated(run.device)
        target = int(GPU_SHARE * available)
    else:
        available, target = memory.available_on_host(), CPU_BATCH
    memory.require(
        needed,
        limit=run.memory_limit,
        available=available,
        what=f"one module of width {width}",
        ways_out="lower the width, take smaller batches, or observe fewer samples",
    )
    if run.memory_limit is not None:
        target = min(target, run.memory_limit)
    return max(1, target // needed)


def _require_outputs(run: _Run, shape: tuple[int, ...]) -> None:
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


def _train(
    run: _Run, module: nn.Module, width: int, rates: Sequence[Rate], seeds: Sequence[int], bar: Bar
) -> list[Results]:
    """Train members together; what was recorded of each."""
    data, training = run.data, run.training
    with usual_torch(run.device, tf32=run.dtype == "tf32"), torch.inference_mode(False), torch.no_grad():
        indices = torch.tensor(seeds, device=run.device)
        parameters = start(module, rates, width, indices, run.root)
        begun = {name: value.clone() for name, value in parameters.items()} if run.centered else None
        batched = Batched(module, run.problem.loss, run.device, half=run.dtype == "bf16", tokens=data.tokens)
        edges = recording.bin_edges(run.bins).to(run.device)
        chunk = max(len(next(iter(training.indices(data.n_train)))), 32)
        recorder = Recorder(module, batched.forward, data.seen, run.layers, run.observables, edges, run.measure, chunk)
        seen: dict[str, list[NDArray[Any]]] = {}
        optimiser, batches = Optimiser(training, rates, parameters), training.indices(data.n_train)
        saved, last = set(run.steps.tolist()), int(run.steps[-1])
        exploded_at = torch.full((len(seeds),), NEVER, device=run.device)
        initial = torch.zeros_like(exploded_at)
        for t in range(last + 1):
            if t in saved:
                for name, value in recorder.step(parameters, run.drawn):
                    seen.setdefault(name, []).append(value.cpu().numpy())
            if t == last:
                break
            batch = data.batch(next(batches), training, t)
            gradients, value = batched.gradients(parameters, batch, begun)
            initial = value if t == 0 else initial
            exploded_at = torch.where(exploded(value, initial), exploded_at.clamp(max=t), exploded_at)
            optimiser.step(t, gradients)
            bar.update(len(seeds))
        found = {name: np.stack(values, axis=1) for name, values in seen.items()}  # (member, step, ...)
        at = exploded_at.double().cpu().numpy()
    prediction = recording.as_predictions(found["prediction"], scalar=not data.observed.outputs)
    found["prediction"] = prediction - prediction[:, :1] if run.centered else prediction
    bad = ~np.isfinite(found["prediction"]).reshape(*found["prediction"].shape[:2], -1).all(axis=2)
    at = np.minimum(at, np.where(bad.any(axis=1), run.steps[bad.argmax(axis=1)], NEVER))
    shapes = {f"shape {name}": np.array(shape) for name, shape in recorder.shapes.items()}
    return [
        {name: value[i] for name, value in found.items()} | shapes | {"exploded_at": at[i]} for i in range(len(seeds))
    ]


def _dataset(run: _Run, members: Members, found: dict[int, dict[int, Results]], diverged: int) -> xr.Dataset:
    """The Dataset of kind "ensemble"."""
    first = found[members.widths[0]][members.seeds[0]]
    gone = np.array([[found[w][s]["exploded_at"] < NEVER for s in members.seeds] for w in members.widths])
    values: Results = {}
    for name in [name for name in first if name != "exploded_at" and not name.startswith("shape ")]:
        each = np.stack([np.stack([found[w][s][name] for s in members.seeds]) for w in members.widths])
        each[gone] = np.nan
        dims = ("step", *schema.dims("ensemble", name, outputs=bool(run.problem.task.outputs))[2:])
        layered = "layer" in dims  # recorded as (step, layer, ...)
        values[name] = np.moveaxis(each, 3, 2) if layered else each
    with np.errstate(all="ignore"):  # of members that diverged
        wanted = ("loss",) if "loss" in run.observables else ()
        following = schema.of_predictions(run.problem, values["prediction"].astype(np.float64), wanted)
    values |= {name: np.where(gone[..., None], np.nan, value) for name, value in following.items()}
    if "prediction" not in run.observables:
        del values["prediction"]
    if gone.any():
        values["diverged"] = gone
    coords: dict[str, Any] = {"width": np.array(members.widths), "seed": np.asarray(members.seeds)}
    if any("layer" in schema.dims("ensemble", name) for name in values):
        coords["module"] = ("layer", np.array(run.layers))
    if "activation_density" in values:
        coords["bin"] = recording.centres(recording.bin_edges(run.bins).numpy().astype(np.float64))
    if "weight_change" in values:
        coords["parameter"] = run.drawn
    shapes = {name.removeprefix("shape "): first[name].tolist() for name in first if name.startswith("shape ")}
    if "measured" in values:
        sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        coords["entry"] = np.arange(sum(sizes.values()))
        coords["measure"] = ("entry", np.repeat(list(sizes), list(sizes.values())))
    attrs: dict[str, Any] = {"seed": members.root, "producer": "finite_nets.train_modules", "dtype": run.dtype}
    return schema.build(
        "ensemble",
        run.problem,
        values,
        steps=run.steps,
        coords=coords,
        attrs=attrs | {"device": device_name(run.device), "diverged": diverged, "shapes": json.dumps(shapes)},
    )


def measured(nets: xr.Dataset, name: str) -> xr.DataArray:
    """What a function of the user's own returned in `train_modules(..., measure={name: function})`.

    Args:
        nets: the result.
        name: of the function.

    Returns:
        DataArray (width, seed, step, ...), with the axes that the function returned.

    Raises:
        ValueError: nothing was measured under this name.

    Example:
        >>> import torch
        >>> network, training = (lambda N: torch.nn.Linear(3, N)), finite_nets.ModuleTraining(0.5, steps=1)
        >>> finite_nets.measured(problem, "size")
        Traceback (most recent call last):
        ...
        TypeError: measured expects the Dataset of train_modules, got Problem.
    """
    if not isinstance(nets, xr.Dataset):
        raise TypeError(f"measured expects the Dataset of train_modules, got {type(nets).__name__}.")
    shapes = json.loads(nets.attrs.get("shapes", "{}"))
    if name not in shapes or "measured" not in nets:
        raise ValueError(f"{name!r} was not measured; there are {', '.join(shapes) or 'none'}: give measure={{...}}.")
    part = nets["measured"].isel(entry=np.flatnonzero(nets["measure"].values == name))
    dims = [f"axis_{i}" for i in range(len(shapes[name]))]
    leading = ("width", "seed", "step")
    values = part.transpose(*leading, "entry").values.reshape(*part.shape[:3], *shapes[name])
    return xr.DataArray(values, dims=(*leading, *dims), coords={dim: nets[dim] for dim in leading}, name=name)
