"""`limit_by_paths`: the limit by the second route of `dmft.limits.pathwise`, as a Dataset beside that of `dmft.solve`.

Independent scrambles of Sobol points give independent estimates, whose mean and standard error are reported.  Cost of
a scramble: S (T P)^3, S particles, P samples, T steps: for tests of `dmft.solve`, with which it shares no formula.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import xarray as xr

from dmft import schema
from dmft.drivers.machine import available_bytes, find_devices, precision
from dmft.drivers.numerics import TOLERANCES, check_numerics
from dmft.engine.normals import sobol, stored
from dmft.errors import DivergenceError, exploded
from dmft.limits import pathwise
from dmft.running import memory
from dmft.running.host import usual_errors
from dmft.running.moments import Arrays, Moments
from dmft.running.progress import progress_bar
from dmft.specs import Problem
from dmft.specs.parameterization import require_limit


@usual_errors
def limit_by_paths(
    problem: Problem,
    *,
    particles: int = 4096,
    scrambles: int = 8,
    seed: int = 0,
    observables: Collection[str] | None = None,
    save_steps: Iterable[int] | None = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """The infinite-width limit of `problem`, with responses from tangents along the path of every particle.

    Args:
        problem: an `MLP` with a smooth activation and one output, any optimiser but a flow, any loss.
        particles: S, a power of two.
        scrambles: independent repetitions, at least 2; their scatter gives the standard errors.
        seed: of the scrambles.
        observables: what to record, among prediction, loss (with test_loss), feature_kernel, gradient_kernel, ntk; all
            of them by default.
        save_steps: the steps to record; all of 0..T by default.
        memory_limit: in bytes; by default what is available.
        progress: show a bar; by default in terminals and notebooks, elsewhere a line now and then of long work.

    Returns:
        Dataset of kind "limit" (`dmft.schema`), each `<name>` with `<name>_se`.

    Raises:
        DivergenceError: exploding dynamics, or a kernel that is not positive.
        MemoryEstimateError: when the estimate exceeds the limit, with both numbers.
        ValueError, TypeError: a problem out of scope, with the argument that puts it there; arguments out of range.

    Source: Bordelon & Pehlevan 2022.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"limit_by_paths expects a dmft.Problem, got {type(problem).__name__}.")
    require_limit(problem.network)
    particles, scrambles, seed, _, memory_limit = check_numerics(
        particles, scrambles, seed, TOLERANCES[0], memory_limit
    )
    names, steps = schema.observables(observables, problem, "dmft.solve"), schema.saved_steps(problem, save_steps)
    if beyond := [name for name in names if name not in schema.OBSERVABLES]:
        raise ValueError(f"observables={observables!r}: limit_by_paths has no {', '.join(beyond)}; leave it out.")
    draws, needed = pathwise.draws_needed(problem), pathwise.bytes_needed(problem, particles)
    (where,) = find_devices("auto")
    memory.require(
        needed,
        limit=memory_limit,
        available=available_bytes(where),
        what=f"the tangents of {particles} particles",
        ways_out="lower particles, or take fewer steps or samples",
    )
    moments = Moments()
    with precision("float64", where), progress_bar(scrambles, "paths", "scramble", progress) as bar:
        for stream in np.random.SeedSequence(seed).spawn(scrambles):
            sources = [sobol(n, particles, s) for n, s in zip(draws, stream.spawn(len(draws)), strict=True)]
            found = pathwise.pathwise_limit(problem, [stored(source) for source in sources])
            moments.add(_values(problem, found, steps.tolist(), names))
            bar.update()
    return schema.build(
        "limit",
        problem,
        moments.mean_and_error(),
        steps=steps,
        attrs={
            "producer": "dmft.limits.by_paths.limit_by_paths",
            "method": "causal particles, tangents of their paths",
            "device": f"{where.platform}: {where.device_kind}",
            "dtype": "float64",
            "seed": seed,
            "particles": particles,
            "scrambles": scrambles,
            "memory_estimate": needed,
        },
    )


def _values(problem: Problem, found: dict[str, Any], steps: list[int], names: Collection[str]) -> Arrays:
    """What is asked for of one estimate, at the recorded steps.

    Raises:
        DivergenceError.
    """
    held = schema.quantities()
    # axes before that of steps: layers, of kernels of a layer
    at_steps = {name: np.take(np.asarray(v), steps, axis=held[name].dims.index("step")) for name, v in found.items()}
    values: Arrays = {name: value for name, value in at_steps.items() if name in names}
    values |= schema.of_predictions(problem, at_steps["prediction"], names)
    with np.errstate(over="ignore", invalid="ignore"):  # what is looked for
        loss = schema.observed_loss(problem, np.asarray(found["prediction"]))
    if exploded(loss, loss[0]).any() or not all(np.isfinite(value).all() for value in values.values()):
        raise DivergenceError(
            f"the paths diverge, or a kernel is not positive. Lower {problem.training.largest_step}, or raise the "
            f"number of particles. {problem.task.unusual_size}".rstrip()
        )
    return values
