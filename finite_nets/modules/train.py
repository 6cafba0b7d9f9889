"""`train_modules`: any `torch.nn.Module` across widths, in the parameterization that has a limit.

    nets = finite_nets.train_modules(lambda N: MyNetwork(N), task, finite_nets.ModuleTraining(...), widths, seeds)

Members of a width are trained side by side, as many as memory takes, all on the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from dmft import schema
from dmft.errors import MemoryEstimateError, exploded
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from finite_nets.device.host import usual_torch
from finite_nets.ensembles.collection import Divergences
from finite_nets.ensembles.runner import memory_given_back, out_of_memory
from finite_nets.modules import recording
from finite_nets.modules.members import Batched, start
from finite_nets.modules.rates import MakeModule
from finite_nets.modules.recording import Recorder
from finite_nets.modules.results import Results, dataset
from finite_nets.modules.run import BINS, Run, prepared
from finite_nets.modules.store import Finished, UnderWay
from finite_nets.modules.training import Optimiser
from finite_nets.training.state import NEVER


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
        store: a folder in which every finished network is kept, and every minute the state of those that train:
            training that was stopped goes on from there, to the same numbers on the same device, where as many
            networks fit side by side as before.

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
    run = prepared(
        make_module,
        task,
        training,
        widths,
        seeds,
        loss=loss,
        gamma0=gamma0,
        output=output,
        variance=variance,
        centered=centered,
        parameterization=parameterization,
        roles=roles,
        factors=factors,
        layers=layers,
        observables=observables,
        bins=bins,
        measure=measure,
        observed=observed,
        save_steps=save_steps,
        seed=seed,
        device=device,
        dtype=dtype,
        memory_limit=memory_limit,
    )
    run.require_memory()
    members, last = run.members, int(run.steps[-1])
    finished = Finished(store, run.problem.problem_id, run.settings)
    divergences = Divergences(run.problem)
    found: dict[int, dict[int, Results]] = {}
    updates = last * len(members.widths) * len(members.seeds)
    with memory_given_back(run.device), progress_bar(updates, "networks", "step", progress) as bar:
        for width in members.widths:
            found[width] = finished.read(width, members.seeds)
            bar.update(last * len(found[width]))
            left = [s for s in members.seeds if s not in found[width]]
            for s, results in trained(run, width, left, finished, bar.update):
                finished.write(width, s, results)
                found[width][s] = results
            at = np.array([found[width][s]["exploded_at"] for s in members.seeds])
            divergences.add(width, int((at < NEVER).sum()), len(at), float(at.min()))
    return dataset(run, found, divergences.report())


def trained(
    run: Run, width: int, seeds: Sequence[int], finished: Finished, report: Callable[[int], Any]
) -> Iterator[tuple[int, Results]]:
    """Results of members, batch by batch; a batch that does not fit in memory is halved."""
    module = run.module(width)
    most, first = len(seeds), 0
    while first < len(seeds):
        count = min(run.at_once(module, width)[0], most, len(seeds) - first)
        part = list(seeds[first : first + count])
        under_way = finished.under_way(width, part)
        try:
            found = train_together(run, module, width, part, under_way, report)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            reason, found = str(error).splitlines()[0], None
        if found is not None:
            yield from zip(part, found, strict=True)
            under_way.done()
            first += count
            continue
        # after the handler: its traceback holds the memory of the batch
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        if count == 1:
            raise MemoryEstimateError(f"one module of width {width} does not fit in memory: {reason}")
        most = count // 2


def train_together(
    run: Run, module: nn.Module, width: int, seeds: Sequence[int], under_way: UnderWay, report: Callable[[int], Any]
) -> list[Results]:
    """Train members side by side, from where they are under way; what was recorded of each.  `report` hears of
    updates."""
    data, training, rates = run.data, run.training, run.rates[width]
    with usual_torch(run.device, tf32=run.dtype == "tf32"), torch.inference_mode(False), torch.no_grad():
        indices = torch.tensor(seeds, device=run.device)
        parameters = start(module, rates, width, indices, run.members.root)
        begun = {name: value.clone() for name, value in parameters.items()} if run.centered else None
        batched = Batched(module, run.problem.loss, run.device, half=run.dtype == "bf16", tokens=data.tokens)
        edges = recording.bin_edges(run.bins).to(run.device)
        chunk = max(len(next(iter(training.indices(data.n_train)))), 32)
        recorder = Recorder(module, batched.forward, data.seen, run.layers, run.observables, edges, run.measure, chunk)
        seen: dict[str, list[torch.Tensor]] = {}
        optimiser = Optimiser(training, rates, parameters)
        saved, last = set(run.steps.tolist()), int(run.steps[-1])
        exploded_at = torch.full((len(seeds),), NEVER, device=run.device)
        initial, begin = torch.zeros_like(exploded_at), 0
        recorder.begin(parameters, run.drawn)
        if (before := under_way.read()) is not None:
            begin = before["step"]
            seen = before["seen"]
            for mine, its in zip([*optimiser.state, initial, exploded_at], before["moved"], strict=True):
                mine.copy_(its)
            report(begin * len(seeds))
        del before
        batches = islice(training.indices(data.n_train), begin, None)
        for t in range(begin, last + 1):
            if t in saved:
                for name, value in recorder.step(parameters, run.drawn):
                    seen.setdefault(name, []).append(value.cpu())
            if t == last:
                break
            batch = data.batch(next(batches), training, t)
            gradients, value = batched.gradients(parameters, batch, begun)
            initial = value if t == 0 else initial
            exploded_at = torch.where(exploded(value, initial), exploded_at.clamp(max=t), exploded_at)
            optimiser.step(t, gradients)
            report(len(seeds))
            if under_way.due:
                under_way.write({"step": t + 1, "seen": seen, "moved": [*optimiser.state, initial, exploded_at]})
        found = {name: torch.stack(values, dim=1).numpy() for name, values in seen.items()}  # (member, step, ...)
        at = exploded_at.double().cpu().numpy()
    prediction = recording.as_predictions(found["prediction"], scalar=not data.observed.outputs)
    found["prediction"] = prediction - prediction[:, :1] if run.centered else prediction
    bad = ~np.isfinite(found["prediction"]).reshape(*found["prediction"].shape[:2], -1).all(axis=2)
    with np.errstate(all="ignore"):  # of networks that diverged
        losses = schema.observed_loss(run.problem, found["prediction"].astype(np.float64))
    first = losses[:, 0] if run.steps[0] == 0 else initial.double().cpu().numpy()
    bad |= exploded(losses, first[:, None])  # the last update too, after which no batch follows
    at = np.minimum(at, np.where(bad.any(axis=1), run.steps[bad.argmax(axis=1)], NEVER))
    shapes = {f"shape {name}": np.array(shape) for name, shape in recorder.shapes.items()}
    return [
        {name: value[i] for name, value in found.items()} | shapes | {"exploded_at": at[i]} for i in range(len(seeds))
    ]
