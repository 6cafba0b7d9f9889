"""Mean-field rates of any module: what each of its parameters starts from and how fast it learns, at every width.

A parameter is what its shape does as the width N grows: `make_module` is called at two widths, and axes whose sizes
differ are those of neurons.  F is the fan-in, the number of entries that a weight V sums over (all axes but the first).

    role        axes that grow                 starts from              rate, SGD            rate, Adam     eps
    input       the first, of (out, in, ...)   N(0, v / F)              eta gamma0^2 N / F   eta gamma0 / F   e'
    hidden      the first and the second       N(0, v / F)              eta gamma0^2 N / F   eta gamma0 / F   e'
    output      the second alone, of Linear    N(0, 1 / (gamma0 F)^2)   eta N / F^2          eta / F          e
                or Conv                        or 0
    embedding   one, of an Embedding, or of    N(0, 1), or its own      eta gamma0^2 N       eta gamma0       e'
                a parameter of one's own       constant values
    vector      one, of a single axis:         its own constant, or 0   eta gamma0^2 N       eta gamma0       e'
                biases, gains
    fixed       none                           its own constant, or 0   eta gamma0^2         eta gamma0       e

with e' = e / (gamma0 N), e the eps of Adam.

This is the table of `dmft.specs.parameterization` in the units of PyTorch, V = s W with W ~ N(0, 1): the rate
eta gamma0^2 N of W is eta gamma0^2 N s^2 of V.  A module of plain layers, trained so, has the limit of the same
`dmft.MLP`.  With momentum rates are those of SGD; weight decay lambda shrinks every parameter by 1 - eta lambda a step.
Of the rows of Adam see Yang & Hu 2021 (muP): entries of gradients are of order 1 / (gamma0 N), but those of outputs,
and Adam divides by them, so that eps has to fall with them.

"standard", the contrast: N(0, v / F) for every weight, the same rate eta for all, eps as given.  It has no limit.

Assumptions: neurons enter sums over N by layers alone.  What a module does itself it scales itself: attention whose
head size grows takes logits q.k / size (not its root), a tied readout 1 / N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from dmft.running.host import usual_errors
from dmft.specs import _check
from finite_nets.ensembles.collection import check_members

MakeModule = Callable[[int], nn.Module]
ROLES = ("input", "hidden", "output", "embedding", "vector", "fixed")
OPTIMISERS = ("sgd", "adam")
PARAMETERIZATIONS = ("mean_field", "standard")
OUTPUTS = ("scaled", "zero")
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)  # whose weights are (out, in, ...)
GROWTH = 0.25  # how far the exponent of an axis in the width may be from 1


@dataclass(frozen=True)
class Scaling:
    """Of all parameters of a module; arguments of `mean_field_rates`."""

    optimiser: str = "sgd"
    gamma0: float = 1.0
    output: str = "scaled"
    variance: float = 1.0
    parameterization: str = "mean_field"

    def __post_init__(self) -> None:
        for name, known in (("optimiser", OPTIMISERS), ("output", OUTPUTS), ("parameterization", PARAMETERIZATIONS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.")
        for name in ("gamma0", "variance"):
            object.__setattr__(self, name, _check.positive(name, getattr(self, name)))


@dataclass(frozen=True)
class Rate:
    """One parameter at one width, at learning rate 1 and eps 1.

    deviation: of its normal start; None where its own values are kept, or zero (`Rates.start`).
    """

    name: str
    role: str
    shape: tuple[int, ...]
    fan_in: int
    deviation: float | None
    rate: float
    eps: float
    axes: tuple[str, ...] = ()  # sizes, of those that grow in units of the width: "2 N"


@dataclass(frozen=True)
class _Grown:
    """What a parameter is, and which of its axes grow."""

    role: str
    growing: tuple[int, ...]

    def axes(self, shape: tuple[int, ...], width: int) -> tuple[str, ...]:
        return tuple(f"{Fraction(n, width)} N" if i in self.growing else str(n) for i, n in enumerate(shape))


@dataclass(frozen=True)
class Rates:
    """The table of a module: `at[width]` lists a `Rate` for each parameter.  Print it."""

    at: Mapping[int, tuple[Rate, ...]]
    scaling: Scaling

    def __str__(self) -> str:
        widths = list(self.at)
        ends = (widths[0], widths[-1]) if len(widths) > 1 else (widths[0],)
        head = ("parameter", "role", *(f"{what} at {n}" for n in ends for what in ("shape", "start", "rate")))
        rows = [head]
        for each in zip(*(self.at[n] for n in ends), strict=True):
            cells = [cell for one in each for cell in (_shape(one.shape), _start(one), f"{one.rate:.3g}")]
            rows.append((each[0].name, each[0].role, *cells))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, sizes, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, f"rates of {self.scaling.optimiser}, times the learning rate"])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "number"


def _start(one: Rate) -> str:
    if one.deviation is None:
        return "own or 0"
    return f"std {one.deviation:.3g}" if one.deviation else "0"


@usual_errors
def mean_field_rates(
    make_module: MakeModule,
    widths: Sequence[int],
    *,
    optimiser: str = "sgd",
    gamma0: float = 1.0,
    output: str = "scaled",
    variance: float = 1.0,
    parameterization: str = "mean_field",
    roles: Mapping[str, str] | None = None,
    factors: Mapping[str, float] | None = None,
) -> Rates:
    """The start and the rate of every parameter of a module, by width.

    Args:
        make_module: (width) -> `torch.nn.Module`, written with PyTorch's own layers.
        widths: N; the first two of them, or one and its double, say how parameters grow.
        optimiser: "sgd" (with or without momentum) or "adam".
        gamma0: richness; small is lazy.
        output: "scaled": outputs start from N(0, 1 / (gamma0 F)^2); "zero": from 0.
        variance: v of input and hidden weights at the start, times fan-in; 2 suits ReLU without normalisation.
        parameterization: "mean_field", or "standard" for contrast.
        roles: by name of a parameter, or pattern such as "*.position", the role where the shapes do not say it.
        factors: by name or pattern, numbers that multiply rates.

    Returns:
        `Rates`; print it for the table of this module.

    Raises:
        ValueError: a module whose shapes do not change with width, or grow otherwise than proportionally to it;
            shared parameters, or with requires_grad=False; transposed convolutions; names of parameters that do not
            occur.
        TypeError: what is no module.

    Example:
        >>> import torch
        >>> print(finite_nets.mean_field_rates(lambda N: torch.nn.Linear(3, N), [8, 16]))
        parameter  role    shape at 8  start at 8  rate at 8  shape at 16  start at 16  rate at 16
        weight     input   8 x 3       std 0.577   2.67       16 x 3       std 0.577    5.33
        bias       vector  8           own or 0    8          16           own or 0     16
        rates of sgd, times the learning rate
    """
    scaling = Scaling(optimiser, gamma0, output, variance, parameterization)
    members = check_members(widths, 1, 0)
    modules = {width: made(make_module, width) for width in members.widths}
    found = parameter_roles(make_module, modules, roles)
    by_pattern("factors", factors, list(found))
    at = {
        width: tuple(
            replace(
                _rate(name, found[name].role, tuple(p.shape), width, scaling, _factor(name, factors)),
                axes=found[name].axes(tuple(p.shape), width),
            )
            for name, p in module.named_parameters()
        )
        for width, module in modules.items()
    }
    return Rates(at, scaling)


def made(make_module: MakeModule, width: int) -> nn.Module:
    """A module on the CPU in single precision, drawn without a trace in the generator of the caller."""
    if isinstance(make_module, nn.Module):
        raise TypeError(
            f"make_module={type(make_module).__name__}(...) is a module; give the function of the width that makes it, "
            "such as lambda N: torch.nn.Sequential(torch.nn.Linear(3, N), ...)."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make_module(int(width))
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"make_module({width}) returned {type(module).__name__}, not a torch.nn.Module; give a function of the "
            "width, such as lambda N: torch.nn.Sequential(torch.nn.Linear(3, N), ...)."
        )
    return module.float()


def parameter_roles(
    make_module: MakeModule, modules: Mapping[int, nn.Module], roles: Mapping[str, str] | None
) -> dict[str, _Grown]:
    """What each parameter is; errors as of `mean_field_rates`."""
    widths = list(modules)[:2] if len(modules) > 1 else [next(iter(modules)), 2 * next(iter(modules))]
    first, second = (modules[n] if n in modules else made(make_module, n) for n in widths)
    shapes = [{name: tuple(p.shape) for name, p in m.named_parameters()} for m in (first, second)]
    calls = " and ".join(f"make_module({n})" for n in widths)
    if [*shapes[0]] != [*shapes[1]]:
        other = sorted(set(shapes[0]) ^ set(shapes[1]))
        raise ValueError(f"{calls} have different parameters, {', '.join(other[:5])}; width may change shapes alone.")
    if not shapes[0]:
        raise ValueError(f"{calls} have no parameters to train.")
    if shapes[0] == shapes[1]:
        raise ValueError(
            f"{calls} have the same shapes: none of {len(shapes[0])} parameters grows with the width. Use the argument "
            "of make_module for the number of neurons of the hidden layers."
        )
    every = [name for name, _ in first.named_parameters(remove_duplicate=False)]
    if shared := [name for name in every if name not in shapes[0]]:
        raise ValueError(f"{shared[0]} is shared with another parameter, whose role it cannot have too; untie them.")
    given = by_pattern("roles", roles, list(shapes[0]))
    for name, role in given.items():
        if role not in ROLES:
            raise ValueError(f"roles[{name!r}]={role!r} is unknown; choose one of {', '.join(ROLES)}.")
    owners = {f"{path}.{name}".lstrip("."): m for path, m in first.named_modules() for name in m._parameters}
    _require_known(first, owners)
    ratio = math.log(widths[1] / widths[0])
    found = {}
    for name, shape in shapes[0].items():
        wider = shapes[1][name]
        role = given.get(name) or _role(name, owners[name], shape, wider, ratio)
        found[name] = _Grown(role, tuple(i for i, (a, b) in enumerate(zip(shape, wider, strict=False)) if a != b))
    return found


def _require_known(module: nn.Module, owners: Mapping[str, nn.Module]) -> None:
    """ValueError for weights whose axes are others, and for parameters that are not to be trained."""
    for name, parameter in module.named_parameters():
        if isinstance(owners[name], nn.modules.conv._ConvTransposeNd):
            raise ValueError(
                f"{name} is of {type(owners[name]).__name__}, whose weights are (in, out, ...), not (out, in, ...): "
                "its fan-in is not known here; use Upsample and a convolution."
            )
        if not parameter.requires_grad:
            raise ValueError(
                f"{name} has requires_grad=False, but every parameter would be trained; keep numbers that stay as they "
                "are with register_buffer, or leave requires_grad at True."
            )


def by_pattern(what: str, given: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """Values by name, from values by pattern; ValueError for patterns that fit none."""
    found: dict[str, Any] = {}
    for pattern, value in (given or {}).items():
        fits = [name for name in names if fnmatchcase(name, pattern)]
        if not fits:
            raise ValueError(f"{what} names {pattern!r}; the parameters are {', '.join(names)}.")
        found |= dict.fromkeys(fits, value)
    return found


def _role(name: str, owner: nn.Module, shape: tuple[int, ...], wider: tuple[int, ...], ratio: float) -> str:
    if len(shape) != len(wider):
        raise ValueError(f"{name} has shapes {shape} and {wider}: width may change sizes, not the number of axes.")
    growing = [axis for axis, (a, b) in enumerate(zip(shape, wider, strict=True)) if a != b]
    for axis in growing:
        exponent = math.log(wider[axis] / shape[axis]) / ratio
        if abs(exponent - 1) > GROWTH:
            raise ValueError(
                f"{name} grows from {shape} to {wider}, like N^{exponent:.2g}; a limit needs numbers of neurons that "
                "are proportional to the width."
            )
    layer = isinstance(owner, LAYERS)
    if not growing:
        return "fixed"
    if len(growing) > 2 or (len(growing) == 2 and growing != [0, 1]):
        raise ValueError(f"{name} of shapes {shape} and {wider} is no matrix of neurons; say what it is with roles=.")
    if len(growing) == 2:
        return "hidden"
    if len(shape) == 1:
        return "vector"
    if layer and growing == [1]:
        return "output"
    return "input" if growing == [0] and not isinstance(owner, nn.Embedding) else "embedding"


def _factor(name: str, factors: Mapping[str, float] | None) -> float:
    fits = [value for pattern, value in (factors or {}).items() if fnmatchcase(name, pattern)]
    return math.prod(_check.positive(f"factors of {name}", value) for value in fits)


def _rate(name: str, role: str, shape: tuple[int, ...], width: int, scaling: Scaling, factor: float) -> Rate:
    """The row of the table at the top of this module."""
    weight = role in ("input", "hidden", "output")
    fan_in = math.prod(shape[1:]) if weight else 1
    gamma0, v = scaling.gamma0, scaling.variance
    if scaling.parameterization == "standard":
        deviation = math.sqrt(v / fan_in) if weight else 1.0 if role == "embedding" else None
        return Rate(name, role, shape, fan_in, deviation, factor, 1.0)
    readout = 0.0 if scaling.output == "zero" else 1 / (gamma0 * fan_in)
    deviation = {"output": readout, "embedding": 1.0}.get(role, math.sqrt(v / fan_in) if weight else None)
    # s^2 of V = s W
    square = 1 / (gamma0 * fan_in) ** 2 if role == "output" else 1 / fan_in
    if scaling.optimiser == "sgd":
        rate, eps = gamma0**2 * (1 if role == "fixed" else width) * square, 1.0
    else:
        rate = 1 / fan_in if role == "output" else gamma0 / fan_in
        eps = 1.0 if role in ("output", "fixed") else 1 / (gamma0 * width)
    return Rate(name, role, shape, fan_in, deviation, factor * rate, eps)
