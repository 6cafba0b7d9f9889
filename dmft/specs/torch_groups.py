"""`torch_groups`: the table of `dmft.specs.parameterization` as param groups for an ordinary call of `torch.optim`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from dmft.specs import _check
from dmft.specs.networks.program import input_factors
from dmft.specs.networks.sketch import Part
from dmft.specs.parameterization import (
    entry_gradient,
    entry_step,
    hidden_scale,
    matrix_step,
    norm_step,
    output_scale,
    position_scale,
)
from dmft.specs.problem import Problem
from dmft.specs.training.entrywise import RMSprop

UNITS = ("linear", "unit")


def torch_groups(problem: Problem, width: int, *, units: str = "linear", step: int = 0) -> list[dict[str, Any]]:
    """What `torch.optim.Adam` and its kin have to be given at a width, one group for each weight that is trained.

    Add "params" to each, and pass the list: torch.optim.AdamW(groups, betas=(beta1, beta2)).

    Args:
        problem: with an entrywise optimiser, such as `dmft.Adam`.
        width: N.
        units: "linear", those of `torch.nn.Linear` and its kin, whose weights have the factors of the forward pass in
            them (W~ = s W of variance 1 / fan-in; of the readout, 1 / (gamma0 N)^2); "unit", weights N(0, 1).
        step: of a schedule; its rate is that of this step.

    Returns:
        name, lr, weight_decay (decoupled), where the rule has them eps, in units of the gradient, and clip_value (for
        `torch.nn.utils.clip_grad_value_`).  Frozen weights are left out: give them to no optimiser.  Of `dmft.Muon`
        matrices between neurons have no eps and are for `torch.optim.Muon`, all others for Adam.  It moves matrices
        by sqrt(max(1, rows / columns)) lr (adjust_lr_fn "original", its default), and lr is divided by that here.  An
        input whose directions differ in s, as with a bias of the first layer or learned positions, has a group for
        each s, whose columns of W^0 are called "W0[first:last]".  `dmft.NormalizedDescent` is `torch.optim.SGD` of
        gradients divided by their norm, of each parameter or of all of them together (`torch.nn.utils.get_total_norm`),
        or by `floor`, which each group has, where the norm is below it.

    Raises:
        ValueError, TypeError: an optimiser that is linear in the gradient, whose rate is eta gamma0^2 N for all weights
            N(0, 1); `dmft.RMSprop` with decay, which that of PyTorch couples to the gradient; norms that PyTorch has no
            like of; arguments out of range.

    Example:
        >>> adam = dmft.Problem(dmft.MLP(2), problem.task, dmft.Adam(0.1, steps=3, eps=1e-2, weight_decay=0.5))
        >>> for group in dmft.torch_groups(adam, width=100):
        ...     print(group["name"], *(f"{group[key]:.3g}" for key in ("lr", "eps", "weight_decay")))
        W0 0.0333 0.0001 1.5
        W1 0.001 0.0001 50
        w 0.001 0.01 50
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"torch_groups expects a dmft.Problem, got {type(problem).__name__}.")
    training: Any = problem.training
    if not training.stepping.by_entry:
        raise ValueError(
            f"{type(training).__name__} has one rate for all weights N(0, 1), eta gamma0^2 N; torch_groups is for "
            "entrywise optimisers, such as dmft.Adam."
        )
    if isinstance(training, RMSprop) and training.weight_decay:
        raise ValueError(
            f"weight_decay={training.weight_decay:g} of RMSprop is decoupled from the gradient, and that of "
            "torch.optim.RMSprop is coupled to it: it would train other networks. Take weight_decay=0, or dmft.Adam "
            "with beta1=0 (torch.optim.AdamW), which corrects the bias of the average of G^2 besides."
        )
    if units not in UNITS:
        raise ValueError(f"units={units!r} is unknown; choose one of {', '.join(UNITS)}.")
    width = _check.integer("width", width, minimum=1)
    step = _check.integer("step", step, minimum=0)
    if step >= training.steps:
        raise ValueError(f"step={step}: the problem has steps 0..{training.steps - 1}.")
    sketch, network, rate = problem.sketch, problem.network, float(training.rates[step])
    sizes = sketch.sizes(width)
    top = sizes[sketch.place(sketch.readout)]

    def trained(part: Part) -> bool:
        return part.layer not in network.frozen

    def decay(lr: float) -> float:
        return rate * training.weight_decay / lr if lr else 0.0

    def group(name: str, s: float, stored: float, rows: int, count: int = width) -> dict[str, Any]:
        """Of weights that are multiplied by s, of which PyTorch has `stored` times as much, that end in so many
        neurons."""
        if training.divided_by:
            step, unit = norm_step(network.gamma0, width, rows if training.divided_by == "weight" else count)
            lr, unit = rate * step * stored, unit / stored
            return {"name": name, "lr": lr, "floor": training.floor * unit, "weight_decay": decay(lr)}
        lr = rate * entry_step(network.gamma0, s) * stored
        found: dict[str, Any] = {"name": name, "lr": lr}
        unit = entry_gradient(network.gamma0, count, s) / stored
        if hasattr(training, "eps"):
            found["eps"] = training.eps * unit
        found["weight_decay"] = decay(lr)
        if training.clip is not None:
            found["clip_value"] = training.clip * unit
        return found

    linear = units == "linear"
    groups, factors = [], input_factors(network, problem.task.shape)
    edges = [0, *(i for i in range(1, len(factors)) if factors[i] != factors[i - 1]), len(factors)]
    if training.divided_by:
        several = len(edges) > 2 and any(map(trained, sketch.reads))
        numbers = any(trained(part) and part.target is None for part in sketch.vectors)
        _require_norms(training, units, several=several, numbers=numbers)
    for part in filter(trained, sketch.reads):
        rows = sizes[sketch.place(part.target)]
        for first, last in pairwise(edges):
            name = part.name if len(edges) == 2 else f"{part.name}[{first}:{last}]"
            s = float(factors[first])
            bias = network.bias if linear and network.bias and last == len(factors) else 1.0
            groups.append(group(name, s, bias * s if linear else 1.0, rows))
    for part, (source, target) in zip(sketch.matrices, sketch.ends, strict=True):
        if not trained(part):
            continue
        rows, columns = sizes[target], max(part.bank, 1) * sizes[source]
        s = hidden_scale(columns)
        if training.divided_by or not training.by_matrix:
            groups.append(group(part.name, s, s if linear else 1.0, rows))
            continue
        stored, adjusted = s if linear else 1.0, max(1.0, rows / columns) ** 0.5
        lr = rate * matrix_step(network.gamma0, rows) * stored / adjusted
        groups.append({"name": part.name, "lr": lr, "weight_decay": decay(lr)})
    if sketch.readout_layer not in network.frozen:
        s = position_scale(sketch.flattened)
        groups.append(group("w", s, s * output_scale(network.gamma0, top) if linear else 1.0, top))
    for part in filter(trained, sketch.vectors):
        if part.target is None:
            groups.append(group(part.name, 1.0, 1.0, 1, 1))
        else:
            rows = sizes[sketch.place(part.target)]
            groups.append(group(part.name, 1.0, network.bias if linear and network.bias else 1.0, rows))
    return groups


def _require_norms(training: Any, units: str, *, several: bool, numbers: bool) -> None:
    """ValueError where the norms that an optimiser divides by are none that PyTorch has, or another optimiser's."""
    name = f"{type(training).__name__}(norm={training.divided_by!r})"
    if training.divided_by == "all" and (units == "linear" or numbers):
        what = "numbers, which move in other units" if numbers else 'weights in units="linear", of which it is another'
        way = "freeze them" if numbers else 'take units="unit"'
        raise ValueError(f"{name} has one norm of all gradients, and there are {what}: {way}, or take norm='weight'.")
    if training.divided_by == "weight" and several:
        raise ValueError(
            f"{name} has one norm of all of W0, whose columns differ in s, as those of a bias do, and are several "
            "parameters in PyTorch; take norm='all' with units=\"unit\", or bias=0."
        )
    if training.momentum and training.weight_decay:
        raise ValueError(
            f"weight_decay={training.weight_decay:g} of {name} is decoupled from momentum={training.momentum:g}, and "
            "that of torch.optim.SGD enters it: it would train other networks. Take one of them alone."
        )
