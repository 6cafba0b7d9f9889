"""`solve`: from a Problem to the Dataset of its infinite-width limit.

The causal engine (`dmft.engine`) gives one estimate of every order parameter for each set of S particles.  Independent
scrambles of the Sobol points give independent estimates; their mean is reported, with its standard error.  Networks
without nonlinearity need no particles: their fields are linear forms in the raw normals, and the limit is exact.

Assumptions and approximations
    S particles stand for infinitely many neurons: the error falls like S^-0.7 to S^-0.9, and its random part is
    reported.  Its bias, of order 1/S, was measured at a tenth of the scatter of one scramble, a third of the standard
    error of eight, while S is well above the number of directions met; a warning says when it is not.  Directions
    smaller than `tolerance` are dropped from the weight matrices: relative errors of kernels of order tolerance^2.  The
    output at initialisation vanishes in the limit, centered or not, so that the limit is always computed with it
    subtracted (an estimate of the same number with less noise).

Cost of a scramble: 36 S k P floating-point operations for each step and hidden matrix and 48 S k bytes for each hidden
matrix, k the room for directions (at most P (T+1), else a power of two times 128 or 8 P).
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np
import xarray as xr

from dmft import schema
from dmft.engine import loop
from dmft.moments import Arrays, Moments
from dmft.progress import progress_bar
from dmft.run import TOLERANCES, Run, Trained, check_particles, check_tolerance, find_device, warn_of_few_particles
from dmft.specs import Problem, _check


def solve(
    problem: Problem,
    *,
    particles: int = 4096,
    scrambles: int = 8,
    seed: int = 0,
    tolerance: float = 3e-3,
    two_time: bool = False,
    save_steps: Iterable[int] | None = None,
    device: str = "auto",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """The infinite-width limit of `problem` (exact discrete gradient descent).

    By Monte Carlo over particles, or exactly where the activation is `dmft.linear()`.

    Args:
        problem: network, task, training.
        particles: S, a power of two; the error falls like S^-0.7 to S^-0.9, time and memory grow like S.
        scrambles: independent repetitions, at least 2; their scatter gives the standard errors.
        seed: of the scrambles.  (Linear networks use none of these three, and no tolerance above rounding.)
        tolerance: relative size below which a direction met by a weight matrix is dropped, 1e-7 to 3e-2.
        two_time: add `feature_kernel_two_time` and `gradient_kernel_two_time`, between all saved steps.
        save_steps: the steps to record; all of 0..T by default.  Training ends with the last of them.
        device: "auto" (a GPU if JAX has one), "cpu" or "gpu".
        memory_limit: in bytes; by default what is available on the device.
        progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "limit" (`dmft.schema`): prediction, loss, test_loss, feature_kernel, gradient_kernel, ntk, and
        for each `<name>_se`, the standard error of the mean over scrambles (Student's t with scrambles - 1 degrees of
        freedom; 0 for linear networks).

    Raises:
        DivergenceError: non-finite or exploding dynamics, naming step and layer.
        MemoryEstimateError: when the estimate exceeds the limit, with both numbers.
        ValueError, TypeError: arguments out of range.

    Source: Bordelon & Pehlevan 2022 for the limit; solved forward in time by conditioning (`dmft.engine.matrix`).
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"solve expects a dmft.Problem, got {type(problem).__name__}.")
    particles = check_particles(particles)
    scrambles = _check.integer("scrambles", scrambles, minimum=2)
    seed = _check.integer("seed", seed, minimum=0)
    tolerance = check_tolerance(tolerance)
    if memory_limit is not None:
        memory_limit = _check.integer("memory_limit", memory_limit, minimum=1)
    steps, where = schema.saved_steps(problem, save_steps), find_device(device)
    exact = problem.network.activation.name == "linear"
    if exact:
        run, scrambles = Run(problem, steps, None, TOLERANCES[0], centered=True, two_time=two_time), 1
    else:
        run = Run(problem, steps, particles, tolerance, centered=True, two_time=two_time)

    directions, memory_needed, moments = 0, 0, Moments()
    with (
        jax.enable_x64(True),
        jax.default_device(where),
        progress_bar(scrambles * (run.last + 1), "theory", "step", progress) as bar,
    ):
        for trained in run.repetitions(seed, scrambles, bar, device=where, memory_limit=memory_limit):
            moments.add(_values(run, trained))
            directions = max(directions, trained.directions)
            memory_needed = run.bytes_needed(trained.capacity, where)
    warn_of_few_particles(run, directions)
    numerics = {"particles": particles, "scrambles": scrambles, "tolerance": tolerance}
    return schema.build(
        "limit",
        problem,
        moments.mean_and_error(exact=exact),
        steps=run.steps,
        attrs={
            "producer": "dmft.solve",
            "method": "causal linear forms, exact" if exact else "causal particles, revealed Gaussian matrices",
            "dtype": "float64",
            "device": f"{where.platform}: {where.device_kind}",
            "seed": seed,
            **({"tolerance": run.tolerance} if exact else numerics),
            "directions": directions,
            "memory_estimate": memory_needed,
        },
    )


def _values(run: Run, trained: Trained) -> Arrays:
    """The variables of the schema, as one run estimates them."""
    history = trained.history
    values = {name: np.asarray(value) for name, value in history.kernels._asdict().items()}
    values["prediction"] = np.asarray(history.vitals.prediction)[run.steps]
    values |= schema.losses(run.problem, values["prediction"])
    for name, vectors in (("feature", history.features), ("gradient", history.gradients)):
        values[f"{name}_kernel"] = np.moveaxis(values[f"{name}_kernel"], 0, 1)  # to (layer, step, ...)
        if vectors is not None:
            two_time = loop.two_time_kernels(vectors, trained.network.populations)
            values[f"{name}_kernel_two_time"] = np.asarray(two_time)
    return {name: values[name] for name in schema.VARIABLES if name in values}
