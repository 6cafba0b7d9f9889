"""When results are too uncertain to be left without a word.

The standard error of a quantity is large where it exceeds `LARGE` of the quantity's scale: its largest value in the
result, of a bias also the root of the largest variance beside it (N bias may vanish; at width N the bias is b / N, the
scatter of networks sqrt(V / N)).  What 1/N adds is a correction, of which less is asked: with default settings errors
of N bias of kernels reach three tenths.  Single entries may be smaller than their errors, which say so.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import xarray as xr

from dmft.drivers.run import Run

LARGE = {"limit": 0.2, "fluctuations": 0.5}  # by kind of result
NEAR = 0.15  # errors of all samples below it, in units of the targets, near which networks have either sign
VARIANCE = 0.5  # N Var f of networks, typically
DISTANCE = 3.0  # standard deviations of f that errors have to be off zero
ROUNDING = 1e-10  # of the largest number in a result: below, an error is that of arithmetic


def warn_of_large_errors(result: xr.Dataset, ways_out: str) -> None:
    """A warning that names the quantity whose standard errors are largest in units of its scale, if they are large."""
    largest = {str(name): float(np.max(np.abs(variable.values))) for name, variable in result.data_vars.items()}
    parts: dict[str, float] = {}
    for name, value in largest.items():
        error = largest.get(f"{name}_se", 0.0)
        spread = largest.get(f"{name.removesuffix('_bias')}_variance", 0.0) if name.endswith("_bias") else 0.0
        scale = max(value, math.sqrt(spread))
        if scale > 0 and error > ROUNDING * max(largest.values()):
            parts[name] = error / scale
    worst = max(parts, key=lambda name: parts[name], default=None)
    if worst is not None and parts[worst] > LARGE[result.attrs["kind"]]:
        warnings.warn(
            f"standard errors of {worst} reach {largest[f'{worst}_se']:.2g}, {100 * parts[worst]:.2g} % of its scale "
            f"({worst} is at most {largest[worst]:.2g}): the result is uncertain. {ways_out}",
            stacklevel=5,
        )


def few_particles(run: Run, directions: int) -> bool:
    """Whether the particles of a run are too few for the directions that its matrices have met."""
    return run.particles is not None and 2 * directions > run.particles


def warn_of_few_particles(run: Run, directions: int, besides: str = "") -> None:
    """Where they are; `besides` is a sentence on what follows."""
    if few_particles(run, directions):
        warnings.warn(
            f"the weight matrices met {directions} directions with {run.particles} particles only: standard errors do "
            f"not hold the bias of so few. {besides + ' ' if besides else ''}"
            f"Use particles={1 << (4 * directions - 1).bit_length()} or more.",
            stacklevel=5,
        )


def warn_of_common_flips(run: Run, prediction: np.ndarray[Any, Any]) -> None:
    """Where a rule that jumps, such as the sign, meets errors of all samples near zero: where they pass it, all entries
    flip at once, and networks whose f scatters by more than that are mixtures of two branches.

    prediction: (step, row[, output]) of all steps, of one scramble, the samples trained on first.
    """
    training: Any = run.problem.training
    if not training.stepping.by_entry or not training.flips or run.problem.sample_loss != "squared":
        return
    targets = run.problem.task.targets[: run.form.trained]
    f = prediction[: run.last, : len(targets)].reshape(run.last, *targets.shape)
    if run.form.probes or not len(f):
        return
    errors = abs(targets - f).max(axis=(1, 2))
    t = int(np.argmin(errors))
    if errors[t] < NEAR * abs(targets).max():
        width = DISTANCE**2 * VARIANCE / errors[t] ** 2
        warnings.warn(
            f"the errors of all training samples are at most {errors[t]:.2g} at step {t}, where "
            f"{type(training).__name__} flips all entries at once if they pass zero together: networks, whose f "
            "scatters around the limit, are a mixture of two branches from there on, unless they are much wider than "
            f"about {width:.2g}. The limit holds; what 1/N adds does not at smaller widths. Momentum (dmft.Lion, "
            "dmft.Adam) tames it.",
            stacklevel=5,
        )
