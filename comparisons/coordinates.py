"""Coordinate check of a user's own PyTorch module: what must not change with its width N, and the part that does.

    start     size of what a part makes before training     of order one (the output may fall, or be zero)
    update    what its own parameters add to it, at the first step at which they add anything: of order one
    output    what training adds to it: of order one

(`finite_nets.coordinates` measures them.)  Each is fitted in two ways, of which the one of smaller chi^2 is taken:

    flat    a + b / N          power    A N^s, if |s| is 0.2 and twice its error at least, over the wider half of widths

and, to be read, by a + b N^-p with p free.  What a part is given may have the wrong size already: a start counts as its
own where its gain, the size that it makes over that which it is given, grows with it.  Where starts are wrong updates
are not judged: gradients run through all of them.

Errors are those over seeds, with one per cent of the value besides; no smaller than half the middle one over widths.

Source: G. Yang et al., Tensor Programs V, 2022 (arXiv:2203.03466) for the check; the verdicts are of this library.

Assumptions and approximations
    A few updates of one batch.  Sizes are root mean squares over all entries: a fault of few neurons may hide.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from comparisons.errors import UnresolvedError
from comparisons.scaling import fit_power_law, fit_series
from dmft.running.host import usual_errors
from dmft.text import with_error

Array = NDArray[np.float64]

OUTPUT = "(output)"
FEWEST_WIDTHS, FEWEST_SEEDS = 3, 2
MOVES = 0.2  # exponents beyond which a quantity changes with width
HALVES = 0.2  # how near to a multiple of 1/2 an exponent is one
SYSTEMATIC = 0.01  # of a value, besides its error
FLOOR = 0.5  # of the middle error
POWERS = np.linspace(0.25, 3.0, 56)  # p that are tried
CLEAR = 2.0  # errors


class Trend(NamedTuple):
    """How a quantity goes with width.

    kind: "zero", "flat", "power", or "not finite"; slope s with its error; limit a with its error; p of a + b N^-p.
    """

    kind: str
    slope: float
    slope_se: float
    limit: float
    limit_se: float
    p: float

    @property
    def exponent(self) -> float:
        """Zero where it is flat, or a multiple of 1/2 if it is near one."""
        if self.kind != "power":
            return 0.0
        half = round(2 * self.slope) / 2
        return half if abs(half - self.slope) < HALVES and half else self.slope

    @property
    def text(self) -> str:
        """For a table."""
        if self.kind == "power":
            return f"N^{with_error(self.slope, self.slope_se)}"
        return with_error(self.limit, self.limit_se) if self.kind == "flat" else self.kind


NOTHING = Trend("zero", 0.0, 0.0, 0.0, 0.0, np.nan)


@dataclass(frozen=True)
class Verdict:
    """On one part of a module.

    fault: "", "start", "update", "frozen", "tied" or "unjudged"; exponent: with which it goes with N.
    """

    module: str
    start: Trend
    update: Trend | None
    fault: str
    exponent: float
    text: str


@dataclass(frozen=True)
class CoordinateCheck:
    """What a coordinate check has found.  Print it.

    Args:
        verdicts: one for each part, in the order in which they are called.
        dataset: the measured sizes (`finite_nets.coordinates`), for the figure `own_coordinate_check`.

    Example:
        >>> comparisons.CoordinateCheck((), None).passed
        True
    """

    verdicts: tuple[Verdict, ...]
    dataset: Any

    @property
    def faults(self) -> dict[str, Verdict]:
        """Parts to repair, by name."""
        return {each.module: each for each in self.verdicts if each.fault not in ("", "unjudged")}

    @property
    def passed(self) -> bool:
        """Whether there is nothing to repair."""
        return not self.faults

    def __str__(self) -> str:
        columns = [["module"], ["start"], ["update"]]
        for each in self.verdicts:
            cells = (each.module, each.start.text, "" if each.update is None else each.update.text)
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell)
        sizes = [max(map(len, column)) for column in columns]
        texts = ["verdict", *(each.text for each in self.verdicts)]
        rows = zip(*columns, texts, strict=True)
        return "\n".join(
            "  ".join([*(c.ljust(n) for c, n in zip(row[:3], sizes, strict=True)), row[3]]) for row in rows
        )

    def to_json(self, path: str | Path | None = None) -> str:
        """The verdicts as JSON, written to a file if there is a path."""
        rows = [
            {
                "module": each.module,
                "fault": each.fault,
                "exponent": each.exponent,
                "verdict": each.text,
                "start": each.start._asdict(),
                "update": None if each.update is None else each.update._asdict(),
            }
            for each in self.verdicts
        ]
        text = json.dumps(_plain({"passed": self.passed, "modules": rows}), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text


@usual_errors
def coordinate_check(
    make_module: Callable[[int], Any],
    data: Any,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    *,
    optimizer: Callable[[Any, int], Any],
    **options: Any,
) -> CoordinateCheck:
    """Check which parts of a PyTorch module change with its width, and say what they miss.

    Args:
        make_module: (width) -> `torch.nn.Module`, with its own start.
        data: inputs and targets (x, y) of one batch, or a `dmft.Task`.
        widths: N, three at least; some octaves, from 64 on.
        seeds: modules of each width, two at least.
        optimizer: (module, width) -> `torch.optim.Optimizer`.
        options: further ones of `finite_nets.coordinates`: loss, steps, seed, device.

    Raises:
        UnresolvedError: fewer than three widths or two seeds.
        ValueError, TypeError: as `finite_nets.coordinates`.

    Example:
        >>> import torch
        >>> def network(N):
        ...     return torch.nn.Sequential(torch.nn.Linear(3, N), torch.nn.Tanh(), torch.nn.Linear(N, 1))
        >>> descent = lambda module, N: torch.optim.SGD(module.parameters(), lr=0.1)
        >>> x, y = np.ones((5, 3)), np.ones((5, 1))
        >>> check = comparisons.coordinate_check(network, (x, y), [64, 256, 1024], 3, optimizer=descent)
        >>> {name: fault.exponent for name, fault in check.faults.items()}
        {'0': -0.5, '2': 1.0}
    """
    import finite_nets  # here: its networks load PyTorch

    return judged(finite_nets.coordinates(make_module, data, widths, seeds, optimizer=optimizer, **options))


def judged(ds: xr.Dataset) -> CoordinateCheck:
    """The verdicts on what `finite_nets.coordinates` measured."""
    for dim, fewest in (("width", FEWEST_WIDTHS), ("seed", FEWEST_SEEDS)):
        if ds.sizes[dim] < fewest:
            raise UnresolvedError(
                f"{ds.sizes[dim]} {dim}s do not tell how sizes go with width; give {fewest} at least."
            )
    names = ds["module"].values.tolist()
    starts = {name: _trend(ds["size"].sel(module=name, step=0)) or NOTHING for name in names}
    gains = {name: _trend(ds["gain"].sel(module=name)) for name in names}
    updates = {name: _update(ds, name) for name in names}
    entries = {name: ds["entries"].sel(module=name).values for name in names}
    grown = [i for i, name in enumerate(names) if entries[name].min() < entries[name].max()]
    found: dict[str, tuple[str, float, str]] = {}
    for i, name in enumerate(names):
        trained = bool(ds["moved"].sel(module=name).notnull().all())
        if trained and entries[name].min() == entries[name].max() and any(j > i for j in grown):
            text = f"has {entries[name][0]} entries at every N: make its width proportional to N"
            found[name] = "tied", 0.0, text
        elif trained and float(ds["moved"].sel(module=name).max()) == 0:
            text = "frozen: parameters of it do not move; give them to the optimizer, with requires_grad=True"
            found[name] = "frozen", 0.0, text
        elif (s := _start_fault(name, starts[name], gains[name], after=any(j > i for j in grown))) != 0:
            text = f"{_goes(s)} at the start: its start or its multiplier misses a factor {_power(-s)}"
            found[name] = "start", s, text
    wrong = [name for name in names if name in found and found[name][0] == "start"]
    for name in names:  # the whole comes last
        update = updates[name]
        if name in found or update is None:
            continue
        if wrong or (name == OUTPUT and found):
            first = wrong[0] if wrong else next(iter(found))
            found[name] = "unjudged", 0.0, f"not judged before {first} is repaired"
        elif update.kind == "zero":
            found[name] = "frozen", 0.0, "does not learn: its parameters move, what it makes does not"
        elif update.kind == "not finite":
            found[name] = "update", np.inf, "is not finite at large N: lower its rate, or repair what comes before"
        elif update.kind == "power":
            found[name] = "update", update.exponent, _of_update(update.exponent)
    return CoordinateCheck(
        tuple(
            Verdict(name, starts[name], updates[name], *found.get(name, ("", 0.0, "flat within 1/N"))) for name in names
        ),
        ds,
    )


# ---- what a part does ----------------------------------------------------------------------------------------------


def _update(ds: xr.Dataset, name: str) -> Trend | None:
    """What its own parameters add, of the whole all that training does, at the first step at which there is something;
    None without parameters."""
    values = ds["change" if name == OUTPUT else "own"].sel(module=name)
    if values.isnull().any(("width", "seed")).all():
        return None
    later = values.isel(step=slice(1, None))
    met = (later > 0).all(("width", "seed")).values
    return _trend(later.isel(step=int(met.argmax()) if met.any() else -1))


def _start_fault(name: str, start: Trend, gain: Trend | None, *, after: bool) -> float:
    """The exponent of what is wrong with a start, or zero.  `after`: whether neurons follow."""
    if start.kind != "power" or name == OUTPUT or (start.slope < 0 and not after):
        return 0.0
    if gain is None:  # of what reads tokens
        return start.exponent
    return gain.exponent if gain.kind == "power" and gain.slope * start.slope > 0 else 0.0


def _of_update(exponent: float) -> str:
    learns = "grows" if exponent > 0 else "vanishes"
    missing = f"its rate or multiplier misses a factor {_power(-exponent)}"
    return f"{_goes(exponent)}: {missing} (what it learns {learns} with N)"


def _goes(exponent: float) -> str:
    return f"{'grows' if exponent > 0 else 'falls'} like {_power(exponent)}"


def _power(exponent: float) -> str:
    return f"N^{exponent:.2g}"


# ---- trends --------------------------------------------------------------------------------------------------------


def _trend(values: xr.DataArray) -> Trend | None:
    """Of (width, seed); None of what does not exist."""
    y = values.transpose("width", "seed").values.astype(float)
    if np.isnan(y).all():
        return None
    if not np.isfinite(y).all():
        return Trend("not finite", np.nan, np.nan, np.nan, np.nan, np.nan)
    if not y.any():
        return NOTHING
    n, mean = values["width"].values.astype(float), y.mean(axis=1)
    relative = y.std(axis=1, ddof=1) / np.sqrt(y.shape[1]) / np.maximum(mean, np.finfo(float).tiny)
    se = mean * np.hypot(np.maximum(relative, FLOOR * np.median(relative)), SYSTEMATIC)
    se = np.maximum(se, np.finfo(float).tiny)
    (limit, limit_se), flat = _offset(n, mean, se, 1.0)
    every, wide = fit_power_law(n, mean, se), slice(-max(FEWEST_WIDTHS, math.ceil(len(n) / 2)), None)
    power = fit_power_law(n[wide], mean[wide], se[wide])
    chi2 = np.array([_offset(n, mean, se, p)[1] for p in POWERS])
    p = float(POWERS[chi2.argmin()]) if len(n) > FEWEST_WIDTHS else np.nan
    dof = len(n) - 2
    moves = abs(power.slope) > MOVES + CLEAR * power.slope_se
    better = every.chi2_per_dof * dof < flat or limit < CLEAR * limit_se
    kind = "power" if moves and better else "flat"
    return Trend(kind, power.slope, power.slope_se, limit, limit_se, p)


def _offset(n: Array, y: Array, se: Array, p: float) -> tuple[tuple[float, float], float]:
    """a of a + b N^-p with its error, and chi^2."""
    found = fit_series(n**p, y, se, order=1)
    return (float(found.coefficients[0]), float(found.errors[0])), float(found.chi2)


def _plain(value: Any) -> Any:
    """Without numbers that JSON has not."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
