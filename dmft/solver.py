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
matrix, k the room for directions (at most P (T+1), else a power of two times 128 or 16 P).  Of a stream of data P
counts the samples of a batch: probes are met at recorded steps only, each time in a copy of the matrices that is
dropped, unless two-time kernels are asked for (`dmft.engine.network`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import __version__, memory, schema
from dmft.checkpoint import Checkpoint
from dmft.engine import loop, pathwise
from dmft.engine.network import layers
from dmft.engine.normals import sobol, stored
from dmft.errors import DivergenceError, exploded
from dmft.host import usual_errors
from dmft.moments import Arrays
from dmft.progress import Bar, progress_bar
from dmft.run import (
    DTYPES,
    TOLERANCES,
    Run,
    Trained,
    available_bytes,
    check_numerics,
    few_particles,
    find_devices,
    observed_loss,
    precision,
    recorded_kernels,
    warn_of_few_particles,
)
from dmft.specs import MLP, GradientFlow, Problem, ResidualMLP
from dmft.specs.parameterization import require_limit
from dmft.uncertainty import warn_of_large_errors

HALVED = 2  # scrambles with half of the particles, where these are few
STILL = 1e-12  # of the smallest step, a step that changes nothing
ORDERS = {"rosenbrock": 2, "euler": 1}  # of the schemes of gradient flows
METHODS = {
    "conditioning": "causal particles, revealed Gaussian matrices",
    "pathwise": "causal particles, tangents of their paths",
}


@usual_errors
def solve(
    problem: Problem,
    *,
    particles: int = 4096,
    scrambles: int = 8,
    seed: int = 0,
    tolerance: float = 3e-3,
    observables: Sequence[str] | None = None,
    responses: str = "conditioning",
    two_time: bool = False,
    save_steps: Iterable[int] | None = None,
    dtype: str = "float64",
    device: str = "auto",
    devices: int = 1,
    checkpoint: str | Path | None = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
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
            gradient_kernel, ntk, sharpness, accuracy (where targets are classes; the losses for classes bring it); by
            default the first five for a single output, the first three for several, whose gradient kernels and NTK cost
            a backward pass an output.  sharpness costs some 19 passes a recorded step, and room for as many more
            directions (`dmft.engine.curvature`).
        responses: "conditioning" (`dmft.engine.matrix`), or "pathwise": the independent estimator by tangents along
            the path of every particle (`dmft.engine.pathwise`), for tests: cost S (T P)^3.
        two_time: add `feature_kernel_two_time` and `gradient_kernel_two_time`, between all saved steps.
        save_steps: the steps to record; all of 0..T by default.  Training ends with the last of them.
        dtype: "float64", or "float32": half the memory, and directions below 3.5e-3 are rounding.
        device: "auto" (a GPU if JAX has one), "cpu" or "gpu".
        devices: how many devices to spread the particles over; the same numbers but for rounding.
        checkpoint: a file in which the state is kept, at most every minute, and from which the same call goes on after
            it was killed; removed at the end.
        memory_limit: in bytes; by default what is available on the device.
        progress: show a bar; by default in terminals and notebooks, elsewhere a line now and then of long work.

    Returns:
        Dataset of kind "limit" (`dmft.schema`): the observables, and for each `<name>_se`, the standard error of the
        mean over scrambles (Student's t with scrambles - 1 degrees of freedom; 0 for linear networks).  A warning says
        where one is large (`dmft.uncertainty`).  Of linear networks under a gradient flow of two steps or more the
        attribute step_error, the largest error of predictions by the finite steps (inf where steps twice as long
        diverge).

    Raises:
        DivergenceError: non-finite or exploding dynamics, naming step and layer.
        MemoryEstimateError: when the estimate exceeds the limit, with both numbers.
        ValueError, TypeError: arguments out of range; a checkpoint of another computation.

    Source: Bordelon & Pehlevan 2022 for the limit; solved forward in time by conditioning (`dmft.engine.matrix`).
    """
    return _computed(**prepared(**locals()))


def prepared(
    *,
    problem: Problem,
    particles: int,
    scrambles: int,
    seed: int,
    tolerance: float,
    observables: Sequence[str] | None,
    responses: str,
    two_time: bool,
    save_steps: Iterable[int] | None,
    dtype: str,
    device: str,
    devices: int,
    checkpoint: str | Path | None,
    memory_limit: int | None,
    progress: bool | None,
) -> dict[str, Any]:
    """The arguments of `solve`, checked: what is to be computed."""
    if not isinstance(problem, Problem):
        raise TypeError(f"solve expects a dmft.Problem, got {type(problem).__name__}.")
    require_limit(problem.network)
    particles, scrambles, seed, tolerance, memory_limit = check_numerics(
        particles, scrambles, seed, tolerance, memory_limit
    )
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not offered; choose one of {', '.join(DTYPES)}.")
    if responses not in METHODS:
        raise ValueError(f"responses={responses!r} is unknown; choose one of {', '.join(METHODS)}.")
    observables = schema.observables(observables, problem, offered=schema.PRODUCED)
    steps, where = schema.saved_steps(problem, save_steps), find_devices(device, devices)
    exact = problem.sketch.linear and responses == "conditioning"
    if responses == "pathwise" and (two_time or len(where) > 1 or dtype != "float64"):
        raise ValueError('responses="pathwise" is for tests: two_time=False, devices=1 and dtype="float64" only.')
    if responses == "pathwise" and "sharpness" in observables:
        raise ValueError(
            'sharpness needs the weight matrices of responses="conditioning"; responses="pathwise" has none.'
        )
    if "sharpness" in observables and type(problem.network) not in (MLP, ResidualMLP):
        raise ValueError(
            f"sharpness is offered for MLP and ResidualMLP, not for {type(problem.network).__name__}; leave it out of "
            "the observables."
        )
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
        kernels=recorded_kernels(observables, two_time),
        dtype=dtype,
        devices=() if exact else where,
        sharpness="sharpness" in observables,
        # the limit of a single step does not depend on what probes have shown at others
        joint=two_time,
    )
    return {
        "run": run,
        "where": where,
        "scrambles": 1 if exact else scrambles,
        "particles": particles,
        "seed": seed,
        "observables": observables,
        "responses": responses,
        "checkpoint": checkpoint,
        "memory_limit": memory_limit,
        "progress": progress,
    }


def _computed(
    *,
    run: Run,
    where: tuple[jax.Device, ...],
    scrambles: int,
    particles: int,
    seed: int,
    observables: tuple[str, ...],
    responses: str,
    checkpoint: str | Path | None,
    memory_limit: int | None,
    progress: bool | None,
) -> xr.Dataset:
    """What is prepared, done."""
    problem, steps, exact = run.problem, run.steps, run.particles is None
    two_time, dtype = run.two_time, run.dtype
    flow = exact and isinstance(problem.training, GradientFlow) and run.last > 1 and "prediction" in observables
    numerics: dict[str, Any] = {} if exact else {"particles": particles, "scrambles": scrambles}
    numerics |= {"tolerance": run.tolerance, "dtype": dtype, "seed": seed, "responses": responses}
    fingerprint = {
        "problem_id": problem.problem_id,
        "version": __version__,
        "steps": steps.tolist(),
        "observables": list(observables),
        "two_time": two_time,
        **numerics,
    }
    saved = Checkpoint(checkpoint, fingerprint)
    with (
        precision(dtype, where[0]),
        progress_bar((scrambles + flow) * (run.last + 1), "theory", "step", progress) as bar,
    ):
        produce = _by_conditioning if responses == "conditioning" else _by_paths
        memory_needed = produce(run, seed, scrambles, observables, bar, saved, memory_limit)
        found = saved.moments.mean_and_error(exact=exact)
        if flow:
            numerics["step_error"] = _step_error(run, found["prediction"], bar, memory_limit)
        in_law = _in_law(run, seed, observables, bar, saved) if few_particles(run, saved.directions) else {}
    warn_of_few_particles(run, saved.directions, _said(in_law) if in_law else "")
    result = schema.build(
        "limit",
        problem,
        found,
        steps=run.steps,
        attrs={
            "producer": "dmft.solve",
            "method": "causal linear forms, exact" if exact else METHODS[responses],
            "device": f"{where[0].platform}: {where[0].device_kind}" + (f" x {len(where)}" if len(where) > 1 else ""),
            **numerics,
            "directions": saved.directions,
            **in_law,
            "memory_estimate": memory_needed,
        },
    )
    saved.remove()
    warn_of_large_errors(result, f"Raise particles={particles}, or scrambles={scrambles}.")
    return result


def _by_conditioning(
    run: Run,
    seed: int,
    scrambles: int,
    observables: tuple[str, ...],
    bar: Bar,
    saved: Checkpoint,
    memory_limit: int | None,
) -> int:
    """All scrambles, into `saved`; the memory that was needed."""
    for trained in run.repetitions(seed, scrambles, bar, saved, memory_limit=memory_limit):
        saved.finished(_values(run, trained, observables), trained.capacity, trained.directions)
        del trained
    return run.bytes_needed(saved.capacity or run.first_capacity)


def _in_law(run: Run, seed: int, observables: tuple[str, ...], bar: Bar, saved: Checkpoint) -> dict[str, Any]:
    """Attributes of a result with few particles: what it is in law, and how far its first variable is from the limit
    (see above): the root mean square over its entries, without the share of the noise, whose size comes with it;
    infinite where half as many particles diverge."""
    attrs: dict[str, Any] = {"in_law": f"networks of width {run.particles}"}
    # sharpness draws on pseudo-random normals, which are not doubled
    name = next((name for name in saved.moments.mean if name != "sharpness"), None)
    if name is None:
        return attrs
    half, halves = replace(run, doubled=True, sharpness=False), Checkpoint(None, {})
    halves.capacity = saved.capacity
    bar.total = (saved.moments.count + HALVED) * (run.last + 1)
    try:
        for trained in half.repetitions(seed, HALVED, bar, halves, memory_limit=None):
            halves.finished(_values(half, trained, observables), trained.capacity, trained.directions)
            del trained
        found, others = saved.moments.mean_and_error(), halves.moments.mean_and_error()
        noise = float(np.mean(found[f"{name}_se"] ** 2 + others[f"{name}_se"] ** 2))
        distance = np.sqrt(max(float(np.mean((others[name] - found[name]) ** 2)) - noise, 0.0))
    except DivergenceError:
        distance, noise = np.inf, np.inf
    return attrs | {
        "distance_from_limit": float(distance),
        "distance_from_limit_noise": float(np.sqrt(noise)),
        "distance_from_limit_of": name,
    }


def _said(in_law: dict[str, Any]) -> str:
    """The attributes of `_in_law` as a sentence."""
    if "distance_from_limit" not in in_law:
        return f"This is, in law, the result of {in_law['in_law']}."
    distance, noise = in_law["distance_from_limit"], in_law["distance_from_limit_noise"]
    by = f"by about {distance:.2g} +- {noise:.1g} (root mean square)"
    return (
        f"This is, in law, the result of {in_law['in_law']}, whose {in_law['distance_from_limit_of']} differs from the "
        f"limit's {by if np.isfinite(distance) else 'much: half as many particles diverge'}."
    )


def _values(run: Run, trained: Trained, observables: tuple[str, ...]) -> Arrays:
    """The variables of the schema, as one run estimates them."""
    history = trained.history
    values: dict[str, Any] = {}
    for name, value in history.kernels._asdict().items():
        if value is not None and name in observables:
            values[name] = np.asarray(value) if name == "ntk" else np.moveaxis(np.asarray(value), 0, 1)
    for name, vectors in (("feature", history.features), ("gradient", history.gradients)):
        if vectors is not None:
            two_time = loop.two_time_kernels(vectors, layers(trained.network), mean=name == "feature")
            values[f"{name}_kernel_two_time"] = _by_sample(run, np.asarray(two_time), name == "gradient")
    values |= of_predictions(run, np.asarray(history.vitals.prediction)[run.steps], observables)
    if trained.sharpness is not None:
        values["sharpness"] = trained.sharpness
    return {name: np.asarray(values[name], np.float64) for name in schema.VARIABLES if name in values}


def of_predictions(run: Run, prediction: Any, observables: tuple[str, ...]) -> Arrays:
    """Prediction, losses and accuracies of the recorded steps, as far as they are asked for."""
    prediction = np.asarray(prediction, np.float64)
    values = {"prediction": prediction} if "prediction" in observables else {}
    return values | schema.of_predictions(run.problem, prediction, observables)


def _step_error(run: Run, prediction: NDArray[np.float64], bar: Bar, memory_limit: int | None) -> float:
    """The largest error of predictions (recorded step, ...) of a flow by its finite steps.

    Steps two by two are one step of a second run, of as many steps (those left over stand still), so that nothing is
    compiled anew; an odd last one stays as it is.
    """
    training = run.problem.training
    assert isinstance(training, GradientFlow)
    sizes = np.broadcast_to(np.asarray(training.step_size), training.steps)
    pairs = np.add.reduceat(sizes[: run.last], np.arange(0, run.last, 2))
    still = np.full(training.steps - len(pairs), STILL * pairs.min())
    coarse = replace(training, step_size=tuple(np.concatenate([pairs, still])))
    other = replace(run, problem=replace(run.problem, training=coarse), sharpness=False)
    try:
        (trained,) = other.repetitions(0, 1, bar, Checkpoint(None, {}), memory_limit=memory_limit)
    except DivergenceError:
        return float("inf")
    common = np.flatnonzero((run.steps % 2 == 0) | (run.steps == run.last))
    seen = np.asarray(trained.history.vitals.prediction)[-(-run.steps[common] // 2)]
    return float(abs(seen - prediction[common]).max() / (2 ** ORDERS[training.scheme] - 1))


def _by_sample(run: Run, kernel: Any, gradients: bool) -> Any:
    """Axes of vectors split into samples and outputs, where there are several."""
    if not (gradients and run.problem.task.outputs):
        return kernel
    layer, step, events = kernel.shape[:3]
    outputs = run.problem.task.outputs[0]
    return kernel.reshape(layer, *(step, events // outputs, outputs) * 2)


def _by_paths(
    run: Run,
    seed: int,
    scrambles: int,
    observables: tuple[str, ...],
    bar: Bar,
    saved: Checkpoint,
    memory_limit: int | None,
) -> int:
    """As `_by_conditioning`, with the responses of `dmft.engine.pathwise`."""
    assert run.particles is not None  # tangents are those of particles
    draws, needed = pathwise.draws_needed(run.problem), pathwise.bytes_needed(run.problem, run.particles)
    memory.require(
        needed,
        limit=memory_limit,
        available=available_bytes(run.device),
        what=f"the tangents of {run.particles} particles",
        ways_out='lower particles, take fewer steps or samples, or responses="conditioning"',
    )
    for stream in np.random.SeedSequence(seed).spawn(scrambles)[saved.moments.count :]:
        sources = [sobol(n, run.particles, s) for n, s in zip(draws, stream.spawn(len(draws)), strict=True)]
        found = pathwise.pathwise_limit(run.problem, [stored(source) for source in sources])
        values: dict[str, Any] = {}
        for name in run.kernels:
            step_axis = 0 if name == "ntk" else 1
            values[name] = np.take(np.asarray(found[name]), run.steps, axis=step_axis)
        values |= of_predictions(run, np.asarray(found["prediction"])[run.steps], observables)
        loss = observed_loss(run.problem, found["prediction"])
        if exploded(loss, loss[0]).any() or not all(np.isfinite(value).all() for value in values.values()):
            raise DivergenceError(
                "the paths diverge, or a kernel is not positive. Lower "
                f"{run.problem.training.largest_step}, or raise particles={run.particles}. "
                f"{run.problem.task.unusual_size}".rstrip()
            )
        saved.finished(values, 0, 0)
        bar.update(run.last + 1)
    return needed
