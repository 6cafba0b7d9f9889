"""`coordinates`: sizes of what every part of a module makes, and of what training adds, at several widths.

The module, its start and its optimiser are the user's own: nothing is drawn or scaled here.  With h(t) what a part
makes at step t of fixed inputs x, all of them of one batch,

    size      root mean square of h(t)                          change    of h(t) - h(0), whatever has changed it
    gain      of h(0) over that of what the part is given       own       of part_t(inputs at 0) - h(0): by its own
                                                                          parameters alone

over samples and entries.  `comparisons.coordinate_check` says what they should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import dmft
from dmft.running.host import usual_errors
from dmft.schema.build import now
from dmft.specs import Task, _check
from finite_nets.device.host import usual_torch
from finite_nets.ensembles.collection import check_members
from finite_nets.ensembles.ensemble import find_device
from finite_nets.modules.data import _as_pytorch
from finite_nets.modules.members import require_trainable
from finite_nets.modules.rates import MakeModule

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {"mse": nn.functional.mse_loss, "cross_entropy": nn.functional.cross_entropy}
OUTPUT = "(output)"
QUANTITIES = ("size", "change", "own")
Given = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a call


@usual_errors
def coordinates(
    make_module: MakeModule,
    data: Any,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    *,
    optimizer: Callable[[nn.Module, int], torch.optim.Optimizer],
    loss: str | Loss | None = None,
    steps: int = 4,
    seed: int = 0,
    device: str = "auto",
) -> xr.Dataset:
    """Train a few steps at each width, and measure every part of the module on the batch that it is trained on.

    Args:
        make_module: (width) -> `torch.nn.Module`, with its own start.
        data: inputs and targets (x, y), arrays or tensors of one batch; or a `dmft.Task`: all its training samples.
        widths: N, different whole numbers.
        seeds: how many modules a width, or the seed indices themselves.
        optimizer: (module, width) -> `torch.optim.Optimizer` of that module.
        loss: "mse", "cross_entropy", or a function (output, target) -> number; by default the second for whole-numbered
            targets.
        steps: updates.
        seed: the root seed; a module is made after `torch.manual_seed` of it, the width and the seed index.
        device: "cpu", "gpu", "cuda:1", ...; "auto" takes a GPU if there is one.

    Returns:
        Dataset: size, change and own (width, seed, module, step); gain and moved (width, seed, module), moved the
        largest change of an entry of that own parameter which moves least; entries(width, module), numbers of a
        sample.  Parts are submodules without parts of their own, or with parameters of their own, by name in the order
        in which they are called, and the whole, "(output)".  What does not exist is nan: own and moved of what has no
        parameters.

    Raises:
        ValueError, TypeError: arguments out of range; dropout, BatchNorm; modules whose parts change with the width.

    Example:
        >>> import torch
        >>> def network(N):
        ...     return torch.nn.Sequential(torch.nn.Linear(3, N), torch.nn.Tanh(), torch.nn.Linear(N, 1))
        >>> descent = lambda module, N: torch.optim.SGD(module.parameters(), lr=0.1)
        >>> x, y = np.ones((5, 3)), np.ones((5, 1))
        >>> finite_nets.coordinates(network, (x, y), [8, 16, 32], 2, optimizer=descent)["module"].values.tolist()
        ['0', '1', '2', '(output)']
    """
    members, steps = check_members(widths, seeds, seed), _check.integer("steps", steps, minimum=1)
    if not callable(optimizer):
        raise TypeError(
            f"optimizer={optimizer!r} is no function; give (module, width) -> torch.optim.Optimizer, such as "
            "lambda module, N: torch.optim.SGD(module.parameters(), lr=0.1)."
        )
    where = find_device(device)
    x, y = _tensors(data, where)
    measure = _loss(loss, y)
    found: list[list[_Measured]] = []
    with usual_torch(where), torch.inference_mode(False), torch.enable_grad():
        for width in members.widths:
            row = []
            for index in members.seeds:
                with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
                    torch.manual_seed(int(np.random.SeedSequence([seed, width, index]).generate_state(1)[0]))
                    module = _made(make_module, width).to(where)
                    row.append(_Measured(module, _optimizer(optimizer, module, width), measure, x, y, steps))
            found.append(row)
    return _dataset(found, members.widths, members.seeds, steps, str(where), seed)


class _Measured:
    """One module, trained: what the Dataset holds of it, by part."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, x: Tensor, y: Tensor, steps: int
    ) -> None:
        require_trainable(module)
        parts = {name: part for name, part in module.named_modules() if name and _is_part(part)}
        with torch.no_grad(), _caught(parts) as calls:
            begun = module(x)
        _require_outputs(begun, y)
        self.names = [*calls, OUTPUT]
        before = {name: out for name, (_, out) in calls.items()} | {OUTPUT: begun}
        theta = {name: [p.detach().clone() for p in parts[name].parameters(recurse=False)] for name in calls}
        empty: list[list[list[float]]] = [[[] for _ in range(steps + 1)] for _ in QUANTITIES]
        self.size, self.change, self.own = empty
        self.gain = [_gain(args, out) for (args, _), out in calls.values()] + [np.nan]
        self.entries = [before[name].numel() // len(x) for name in self.names]
        for t in range(steps + 1):
            if t:
                optimizer.zero_grad()
                torch.autograd.backward(loss(module(x), y))
                optimizer.step()
            with torch.no_grad(), _caught(parts) as now:
                after = {OUTPUT: module(x)} | {name: out for name, (_, out) in now.items()}
            with torch.no_grad():
                for name in self.names:
                    self.size[t].append(_rms(after[name]))
                    self.change[t].append(_rms(after[name] - before[name]))
                    self.own[t].append(np.nan)
                    if theta.get(name):
                        args, options = calls[name][0]
                        self.own[t][-1] = _rms(_first(parts[name](*args, **options)) - before[name])
        self.moved = [_moved(parts[name], theta[name]) if theta.get(name) else np.nan for name in self.names]


def _dataset(
    found: Sequence[Sequence[_Measured]],
    widths: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    device: str,
    seed: int,
) -> xr.Dataset:
    names = found[0][0].names
    for width, row in zip(widths, found, strict=True):
        if row[0].names != names:
            other = sorted(set(names) ^ set(row[0].names)) or ["their order"]
            raise ValueError(
                f"make_module({widths[0]}) and make_module({width}) call different parts: {', '.join(other[:5])}; "
                "width may change shapes alone."
            )
    each = ("width", "seed")
    variables: dict[str, Any] = {
        name: ((*each, "step", "module"), [[getattr(one, name) for one in row] for row in found]) for name in QUANTITIES
    }
    for name in ("gain", "moved"):
        variables[name] = ((*each, "module"), [[getattr(one, name) for one in row] for row in found])
    variables["entries"] = (("width", "module"), [row[0].entries for row in found])
    ds = xr.Dataset(
        variables,
        {"width": list(widths), "seed": list(seeds), "step": np.arange(steps + 1), "module": names},
        {
            "producer": "finite_nets.coordinates",
            "device": device,
            "seed": seed,
            "version": dmft.__version__,
            "created": now(),
        },
    )
    return ds.transpose(*each, "module", "step").sortby("width")


def _moved(part: nn.Module, before: Sequence[Tensor]) -> float:
    """The largest change of an entry, of the parameter of which it is the smallest."""
    pairs = zip(part.parameters(recurse=False), before, strict=True)
    return min(float((p.detach() - p0).abs().max()) for p, p0 in pairs)


def _is_part(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))


@contextmanager
def _caught(parts: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Given, Tensor]]]:
    """What parts are given and make in a pass, at their first call, by name in the order of calls."""
    caught: dict[str, tuple[Given, Tensor]] = {}

    def catching(name: str) -> Callable[..., None]:
        def catch(_module: nn.Module, args: Any, options: dict[str, Any], output: Any) -> None:
            if name not in caught and isinstance(_first(output), Tensor):
                kept = tuple(each.detach().clone() if isinstance(each, Tensor) else each for each in args)
                caught[name] = (kept, options), _first(output).detach().clone()

        return catch

    handles = [part.register_forward_hook(catching(name), with_kwargs=True) for name, part in parts.items()]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _gain(given: tuple[Any, ...], out: Tensor) -> float:
    """Of sizes; nan where nothing of a size is given."""
    if not given or not isinstance(given[0], Tensor) or not given[0].is_floating_point():
        return float("nan")
    size = _rms(given[0])
    return _rms(out) / size if size else float("nan")


def _rms(h: Tensor) -> float:
    return float(h.double().square().mean().sqrt())


# ---- arguments ----------------------------------------------------------------------------------------------------


def _tensors(data: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    if isinstance(data, Task):
        x = _as_pytorch(torch.tensor(data.x_train, dtype=torch.float32))
        return x.to(device), torch.tensor(data.targets[: data.n_train], dtype=torch.float32, device=device)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(f"data={type(data).__name__} is no pair (x, y) of inputs and targets, and no dmft.Task.")
    x, y = (torch.as_tensor(part) for part in data)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"data has {len(x)} inputs and {len(y)} targets; give as many of both, at least one.")
    return _single(x).to(device), _single(y).to(device)


def _single(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values.long()


def _loss(loss: str | Loss | None, y: Tensor) -> Loss:
    if loss is None:
        loss = "mse" if y.is_floating_point() else "cross_entropy"
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r} is unknown; choose {', '.join(LOSSES)}, or give a function (output, target).")
    return LOSSES[loss]


def _made(make_module: MakeModule, width: int) -> nn.Module:
    """As the user draws it."""
    module = make_module(int(width)) if callable(make_module) and not isinstance(make_module, nn.Module) else None
    if not isinstance(module, nn.Module):
        raise TypeError(
            "make_module must be a function of the width that returns a torch.nn.Module, such as lambda N: "
            "torch.nn.Sequential(torch.nn.Linear(3, N), ...)."
        )
    return module


def _optimizer(optimizer: Any, module: nn.Module, width: int) -> torch.optim.Optimizer:
    found = optimizer(module, width)
    if not isinstance(found, torch.optim.Optimizer):
        raise TypeError(f"optimizer(module, {width}) returned {type(found).__name__}, not a torch.optim.Optimizer.")
    return found


def _require_outputs(output: Any, y: Tensor) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(f"the module returns {type(output).__name__}, not a tensor of outputs.")
    if len(output) != len(y) or (y.is_floating_point() and output.shape != y.shape):
        raise ValueError(f"the module returns the shape {tuple(output.shape)}; the targets have {tuple(y.shape)}.")
