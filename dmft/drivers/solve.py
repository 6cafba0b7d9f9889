"""`solve`: from a Problem to the Dataset of its infinite-width limit.

The causal engine (`dmft.engine`) gives one estimate of every order parameter for each set of S particles.  Independent
scrambles of the Sobol points give independent estimates; their mean is reported, with its standard error.  Networks
without nonlinearity need no particles: their fields are linear forms in the raw normals, and the limit is exact.

Assumptions and approximations
    S particles stand for infinitely many neurons: the error falls like S^-0.65 to S^-0.85, and its random part is
    reported.  Its bias, of order 1/S, was measured at a tenth of the scatter of one scramble, a third of the standard
    error of eight, for a few samples and S well above the number of directions met.
    With hundreds of samples it exceeds the standard errors of what is averaged over them: .003 of a training loss of
    2.05 at S = 4,096 with 600 samples, .001 at 16,384 (pseudo-random particles had less): raise S until it is settled.
    Where S is below twice the number of directions, a warning and the attribute `in_law` say that the result is that of
    networks of width S (which S particles are in law, `dmft.engine.matrix`), and `distance_from_limit` how far from the
    limit: networks approach it like 1/N, so that q_S - q is q_{S/2} - q_S, for which two scrambles run again with S/2
    particles.
    Directions smaller than `tolerance` are dropped from the weight matrices: relative errors of kernels of order
    tolerance^2.  The output at initialisation vanishes in the limit, centered or not, so that the limit is always
    computed with it subtracted (an estimate of the same number with less noise).

    Standard errors are those of particles alone.  A gradient flow takes finite steps: theory, fluctuations and networks
    of a problem take the same ones, and differ from the exact flow together.  For linear networks the attribute
    step_error says by how much predictions do, from a second run in which two steps at a time are one (Richardson: the
    difference over 2^p - 1, p the order of the scheme); others may be compared with a problem of finer steps.

Cost of a scramble: 36 S k P floating-point operations for each step and hidden matrix and 48 S k bytes for each hidden
matrix, k the room for directions (at most P (T+1), else a power of two times 128 or 16 P; where products are large, in
four stages up to it).  On a GPU scrambles go side by side where they fit (`dmft.drivers.layout`).  Of a stream of data
P counts the samples of a batch: probes are met at recorded steps only, each time in a copy of the matrices that is
dropped, unless two-time kernels are asked for (`dmft.engine.network`).  A bound on the directions that are kept makes
cost independent of the number of samples (`dmft.engine.forgetting`); k is then that bound and P more, operations are
52 S k P, and samples come from the host some steps at a time (`Run.rule_of_steps`).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from dmft import __version__, schema
from dmft.drivers import second_runs
from dmft.drivers.layout import Layout
from dmft.drivers.machine import find_devices, precision
from dmft.drivers.numerics import DTYPES, TOLERANCES, check_numerics
from dmft.drivers.repetitions import repetitions
from dmft.drivers.run import Run, of_passes
from dmft.drivers.uncertainty import (
    few_particles,
    warn_of_common_flips,
    warn_of_few_particles,
    warn_of_large_errors,
)
from dmft.drivers.values import LOST, values_of
from dmft.running import effort
from dmft.running.checkpoint import Checkpoint
from dmft.running.estimates import Estimates
from dmft.running.host import usual_errors
from dmft.running.moments import Arrays
from dmft.running.progress import progress_bar
from dmft.specs import GradientFlow, Problem, _check
from dmft.specs.parameterization import require_limit
from dmft.specs.random_data import RandomModel

METHODS = {True: "causal linear forms, exact", False: "causal particles, revealed Gaussian matrices"}  # by exactness


@usual_errors
def solve(
    problem: Problem,
    *,
    particles: int = 4096,
    scrambles: int = 8,
    seed: int = 0,
    tolerance: float = 3e-3,
    observables: Sequence[str | schema.Observable] | None = None,
    two_time: bool = False,
    save_steps: Iterable[int] | None = None,
    directions: int | None = None,
    dtype: str = "float64",
    device: str = "auto",
    devices: int = 1,
    checkpoint: str | Path | None = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
    ensembles: tuple[int, int] | None = None,
) -> xr.Dataset:
    """The infinite-width limit of `problem`.

    By Monte Carlo over particles, or exactly where the activation is `dmft.linear()`.

    Args:
        problem: network, task, training, loss.
        particles: S, a power of two; the error falls like S^-0.65 to S^-0.85, time and memory grow like S.
        scrambles: independent repetitions, at least 2; their scatter gives the standard errors.
        seed: of the scrambles.  (Linear networks use none of these three, and no tolerance above rounding.)
        tolerance: relative size below which a direction met by a weight matrix is dropped, 1e-7 to 3e-2.
        observables: what to record, among prediction, loss (with test_loss and accuracies), feature_kernel,
            gradient_kernel, ntk, preactivation_kernel, participation_ratio, sharpness, those of a user's own
            (`dmft.observable`), accuracy (where targets are classes; the losses for classes bring it); by
            default the first five for a single output, the first three for several, whose gradient kernels and NTK cost
            a backward pass an output.  sharpness costs some 19 passes a recorded step, and room for as many more
            directions (`dmft.engine.curvature`).
        two_time: add `feature_kernel_two_time` and `gradient_kernel_two_time`, between all saved steps.
        save_steps: the steps to record; all of 0..T by default.  Training ends with the last of them.
        directions: of a stream (batches, `observe="test"`), the most that each side of a weight matrix keeps from step
            to step, at least two batches; those in which what was met is smallest are forgotten
            (`dmft.engine.forgetting`).  All by default; a single hidden layer has no such matrix, and forgets nothing.
        dtype: "float64", or "float32": half the memory, and directions below 3.5e-3 are rounding.
        device: "auto" (a GPU if JAX has one), "cpu" or "gpu".
        devices: how many devices to use: scrambles go over them first, and the particles of each over those that are
            left, or where a run does not fit on one; the same numbers but for rounding.
        checkpoint: a file in which the state is kept, at most every minute, and from which the same call goes on after
            it was killed; removed at the end.
        memory_limit: in bytes; by default what is available on the device.
        progress: show a bar; by default in terminals and notebooks, elsewhere a line now and then of long work.
        ensembles: of `dmft.RandomFeatures`, so many draws of features times so many of data are averaged.  (Models of
            random data take save_steps and two_time besides; they are solved without particles, and refuse the others.)

    Returns:
        Dataset of kind "limit" (`dmft.schema`): the observables, and for each `<name>_se`, the standard error of the
        mean over scrambles (Student's t with scrambles - 1 degrees of freedom; 0 for linear networks).  A warning says
        where one is large (`dmft.drivers.uncertainty`).  Where directions are forgotten the attribute kernels_lost says
        (by step, the most of all matrices) what part of kernels between samples was in them, and truncation_error, with
        its noise, how far two scrambles with half of the directions are from the result; truncation_<name> by how much
        losses and accuracies change then, with errors; noise_<name> what they have by the scatter of predictions of S
        particles, most of their bias of order 1/S, where predictions are recorded (exact of a squared error, to leading
        order of others; of n scrambles an estimate with n - 1 degrees of freedom).  Of linear networks under a
        gradient flow of two steps or more the attribute step_error, the largest error of predictions by the finite
        steps (inf where steps twice as long diverge).  Of models of random data losses, order parameters and responses
        (`dmft.random_data.solve`).

    Raises:
        DivergenceError: non-finite or exploding dynamics, naming step and layer.
        MemoryEstimateError: when the estimate exceeds the limit, with both numbers.
        NotConvergedError: more than a fifth of kernels is in directions that are forgotten.
        ValueError, TypeError: arguments out of range; a checkpoint of another computation.

    Source: Bordelon & Pehlevan 2022 for the limit; solved forward in time by conditioning (`dmft.engine.matrix`).

    Example:
        >>> theory = dmft.solve(problem, particles=256, scrambles=2)
        >>> theory["prediction"].dims, theory["loss"].sizes["step"]
        (('step', 'sample'), 3)
    """
    if isinstance(problem, Problem) and isinstance(problem.network, RandomModel):
        return _of_random_data(**locals())
    return _computed(**prepared(**locals()))


def _of_random_data(
    problem: Problem,
    save_steps: Iterable[int] | None,
    two_time: bool,
    ensembles: tuple[int, int] | None,
    **others: Any,
) -> xr.Dataset:
    """What the solver that the model names makes of the problem."""
    model: Any = problem.network
    if others["observables"] is not None:
        raise ValueError(
            f"observables={others['observables']!r} are of networks with neurons; {type(model).__name__} records its "
            "losses, order parameters and responses without being asked."
        )
    why = f"{type(model).__name__}, which is solved without particles; it takes save_steps, two_time and ensembles"
    _check.without_effect(solve, others, why)
    steps = schema.saved_steps(problem, save_steps)
    solver = importlib.import_module(model.solver)
    found: xr.Dataset = solver.solve(problem, steps=steps, two_time=two_time, ensembles=ensembles)
    return found


def prepared(
    *,
    problem: Problem,
    particles: int,
    scrambles: int,
    seed: int,
    tolerance: float,
    observables: Sequence[str | schema.Observable] | None,
    two_time: bool,
    save_steps: Iterable[int] | None,
    directions: int | None,
    dtype: str,
    device: str,
    devices: int,
    checkpoint: str | Path | None,
    memory_limit: int | None,
    progress: bool | None,
    ensembles: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The arguments of `solve`, checked: what is to be computed."""
    if not isinstance(problem, Problem):
        raise TypeError(f"solve expects a dmft.Problem, got {type(problem).__name__}.")
    if ensembles is not None:
        raise ValueError(
            f"ensembles={ensembles} are of dmft.RandomFeatures; for networks see comparisons.bias_variance."
        )
    require_limit(problem.network)
    particles, scrambles, seed, tolerance, memory_limit = check_numerics(
        particles, scrambles, seed, tolerance, memory_limit
    )
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not offered; choose one of {', '.join(DTYPES)}.")
    observables = schema.observables(observables, problem, "dmft.solve")
    steps, where = schema.saved_steps(problem, save_steps), find_devices(device, devices)
    if schema.need(observables, schema.HESSIAN) and problem.sketch.read:
        raise ValueError(
            "sharpness of the limit is offered where one field is read, not every position; leave it out, or train "
            "networks, which have it."
        )
    exact = problem.linear
    if exact and len(where) > 1:
        raise ValueError(f"devices={devices}: linear networks are solved without particles; use devices=1.")
    if particles % len(where):
        raise ValueError(f"particles={particles} cannot be spread evenly over devices={devices}.")
    run = Run(
        problem,
        steps,
        None if exact else particles,
        TOLERANCES[0] if exact else tolerance,
        # in the limit the output at initialisation vanishes
        centered=problem.training.observe == "all",
        two_time=two_time,
        observables=of_passes(observables, two_time),
        dtype=dtype,
        devices=() if exact else where,
        curvature=schema.metrics(observables),
        # the limit of a single step does not depend on what probes have shown at others
        joint=two_time,
        entries="float32",
    )
    return {
        "run": _forgetting(run, directions),
        "where": where,
        "scrambles": 1 if exact else scrambles,
        "particles": particles,
        "seed": seed,
        "observables": observables,
        "checkpoint": checkpoint,
        "memory_limit": memory_limit,
        "progress": progress,
    }


def _forgetting(run: Run, directions: int | None) -> Run:
    """The run whose matrices keep no more than so many directions, where there are matrices that would meet more."""
    if directions is None:
        return run
    most = _check.integer("directions", directions, minimum=1)
    if run.particles is None:
        raise ValueError(f"directions={most}: linear networks are solved without particles; leave directions out.")
    if not run.form.probes:
        raise ValueError(
            f'directions={most} bounds what matrices remember of a stream: give observe="test" to the training, whose '
            "samples are met in their own batches alone then, or leave directions out; tolerance=3e-2 has the fewest."
        )
    if run.form.joint:
        raise ValueError(f"directions={most} forgets what two_time compares between steps; leave one of them out.")
    if run.step_room < 2:
        raise ValueError(
            f"directions={most} with batches of one sample: what forgetting costs is seen between samples of a batch. "
            "Give batches of two samples or more, or leave directions out."
        )
    if most < 2 * run.step_room:
        raise ValueError(
            f"directions={most} is less than two batches, whose vectors are {run.step_room} each; give at least "
            f"{2 * run.step_room}, or take smaller batches."
        )
    return replace(run, kept=most) if run.form.sketch.matrices and most < run.full_capacity else run


def _computed(
    *,
    run: Run,
    where: tuple[jax.Device, ...],
    scrambles: int,
    particles: int,
    seed: int,
    observables: tuple[str, ...],
    checkpoint: str | Path | None,
    memory_limit: int | None,
    progress: bool | None,
) -> xr.Dataset:
    """What is prepared, done."""
    problem, steps, exact = run.problem, run.steps, run.particles is None
    two_time, dtype = run.two_time, run.dtype
    flow = exact and isinstance(problem.training, GradientFlow) and run.last > 1 and "prediction" in observables
    numerics: dict[str, Any] = {} if exact else {"particles": particles, "scrambles": scrambles}
    numerics |= {"tolerance": run.tolerance, "dtype": dtype, "seed": seed}
    fingerprint = {
        "problem_id": problem.problem_id,
        "version": __version__,
        "steps": steps.tolist(),
        "observables": list(observables),
        "two_time": two_time,
        **({} if run.kept is None else {"kept": run.kept}),
        **numerics,
    }
    if checkpoint is not None:
        with jax.enable_x64(True):
            formulas = schema.digests(observables, problem, jnp)
        fingerprint |= {f"formula of {name}": digest for name, digest in formulas.items()}
    saved = None if checkpoint is None else Checkpoint(checkpoint, fingerprint)
    done = Estimates() if saved is None else saved.estimates
    with (
        precision(dtype, where[0]),
        effort.for_work(run.work(scrambles)),
        progress_bar((scrambles + flow) * (run.last + 1), "theory", "step", progress) as bar,
    ):
        every, laid = None, Layout()
        runs = repetitions(
            run, seed, scrambles, bar, memory_limit=memory_limit, done=done, checkpoint=saved, beside=True
        )
        first: list[Arrays] = []  # of a stream that forgets, to be compared scramble by scramble
        for trained in runs:
            values = values_of(run, trained, observables)
            if run.kept is not None and len(first) == done.moments.count < second_runs.HALVED:
                first.append(values)
            done.add(values, trained.capacity, trained.directions)
            every, laid = np.asarray(trained.history.vitals.prediction), trained.laid
            if saved is not None:
                saved.finished()
            del trained
        capacity = done.capacity or run.first_capacity
        memory_needed = laid.bytes_needed(run, capacity)
        found = done.moments.mean_and_error(exact=exact)
        lost, _ = found.pop(LOST, None), found.pop(f"{LOST}_se", None)
        if flow:
            numerics["step_error"] = second_runs.step_error(run, found["prediction"], bar, memory_limit)
        in_law = (
            second_runs.in_law(run, seed, observables, bar, done, memory_limit)
            if few_particles(run, done.directions)
            else {}
        )
        forgotten = (
            {} if lost is None else second_runs.forgotten(run, lost, seed, observables, bar, done, memory_limit, first)
        )
    warn_of_few_particles(run, done.directions, second_runs.said(in_law) if in_law else "")
    if every is not None:
        warn_of_common_flips(run, every)
    result = schema.build(
        "limit",
        problem,
        found,
        steps=run.steps,
        attrs={
            "producer": "dmft.solve",
            "method": METHODS[exact],
            "device": f"{where[0].platform}: {where[0].device_kind}" + (f" x {len(where)}" if len(where) > 1 else ""),
            **numerics,
            "directions": done.directions,
            **in_law,
            **forgotten,
            "memory_estimate": memory_needed,
        },
    )
    if saved is not None:
        saved.remove()
    warn_of_large_errors(result, f"Raise particles={particles}, or scrambles={scrambles}.")
    return result
