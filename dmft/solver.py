"""`solve`: from a Problem to the Dataset of its infinite-width limit.

The causal engine (`dmft.engine`) gives one estimate of every order parameter for each set of S particles.  Independent
scrambles of the Sobol points give independent estimates; their mean is reported, with its standard error.

Assumptions and approximations
    S particles stand for infinitely many neurons: the error falls nearly like 1/S, its random part is reported, its
    bias (of order 1/S) is not seen in practice.  Directions smaller than `tolerance` are dropped from the weight
    matrices: relative errors of kernels of order tolerance^2.  The output at initialisation vanishes in the limit,
    centered or not, so that the limit is always computed with it subtracted (the estimate of the same number with
    less noise).

Cost of a scramble: about 36 S k P floating-point operations for each step and hidden matrix, k the number of
directions met (at most P (T+1)); 64 S k bytes of memory for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import memory, schema
from dmft.engine import loop
from dmft.engine.network import Observables
from dmft.engine.population import sobol_normals
from dmft.errors import DivergenceError
from dmft.progress import Bar, progress_bar
from dmft.specs import Problem, _check

DIVERGED = 1e6  # loss, in units of the larger of its initial value and 1
CALLS = 20  # of the compiled loop a scramble: progress and checks in between


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
    """The infinite-width limit of `problem`, by Monte Carlo over particles (exact discrete gradient descent).

    Args:
        problem: network, task, training.
        particles: S, a power of two; the error falls nearly like 1/S, time and memory grow like S.
        scrambles: independent repetitions, at least 2; their scatter gives the standard errors.
        seed: of the scrambles.
        tolerance: relative size below which a direction met by a weight matrix is dropped.
        two_time: add `feature_kernel_two_time` and `gradient_kernel_two_time`, between all saved steps.
        save_steps: the steps to record; all of 0..T by default.
        device: "auto" (a GPU if JAX has one), "cpu" or "gpu".
        memory_limit: in bytes; by default what is available on the device.
        progress: show a bar; by default on a terminal only.

    Returns:
        Dataset of kind "limit" (`dmft.schema`): prediction, loss, test_loss, feature_kernel, gradient_kernel, ntk,
        and for each `<name>_se`, the standard error of the mean over scrambles.

    Raises:
        DivergenceError: non-finite or exploding dynamics, naming step and layer.
        MemoryEstimateError: when the estimate exceeds the limit, with both numbers.
        ValueError, TypeError: arguments out of range.

    Source: Bordelon & Pehlevan 2022 for the limit; solved forward in time by conditioning (`dmft.engine.matrix`).
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"solve expects a dmft.Problem, got {type(problem).__name__}.")
    particles = _check.integer("particles", particles, minimum=2)
    if particles & (particles - 1):
        lower = 1 << (particles.bit_length() - 1)
        raise ValueError(
            f"particles={particles} is not a power of two, as Sobol points need; use {lower} or {2 * lower}."
        )
    scrambles = _check.integer("scrambles", scrambles, minimum=2)
    seed = _check.integer("seed", seed, minimum=0)
    tolerance = _check.positive("tolerance", tolerance)
    steps = schema.saved_steps(problem, save_steps)

    runs: list[dict[str, NDArray[Any]]] = []
    capacity = _first_capacity(problem)
    total = scrambles * (problem.training.steps + 1)
    where = _device(device)
    with (
        jax.enable_x64(True),
        jax.default_device(where),
        progress_bar(total, "theory", "step", progress) as bar,
    ):
        for stream in np.random.SeedSequence(seed).spawn(scrambles):
            values = None
            while values is None:
                _refuse_if_too_large(problem, particles, capacity, two_time, where, memory_limit)
                values = _scramble(problem, particles, capacity, tolerance, two_time, steps, stream, bar)
                if values is None:
                    capacity = min(2 * capacity, _full_capacity(problem))
            runs.append(values)

    averages: dict[str, NDArray[Any]] = {}
    for name in schema.VARIABLES:
        if name in runs[0]:
            stack = np.stack([run[name] for run in runs])
            averages[name] = stack.mean(0)
            averages[f"{name}_se"] = stack.std(0, ddof=1) / np.sqrt(scrambles)
    return schema.build(
        "limit",
        problem,
        averages,
        steps=steps,
        attrs={
            "producer": "dmft.solve",
            "method": "causal particles, revealed Gaussian matrices",
            "dtype": "float64",
            "device": f"{where.platform}: {where.device_kind}",
            "seed": seed,
            "particles": particles,
            "scrambles": scrambles,
            "tolerance": tolerance,
            "directions": max(int(run["ranks"].max(initial=0)) for run in runs),
        },
    )


def _device(name: str) -> jax.Device:
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f'device={name!r} is unknown; use "auto", "cpu" or "gpu".')
    try:
        return jax.devices(None if name == "auto" else name)[0]
    except RuntimeError as error:
        raise ValueError(f'device={name!r}: JAX has only {jax.devices()[0].platform} devices; use "auto".') from error


def _full_capacity(problem: Problem) -> int:
    """Directions that a matrix can meet at most: every sample at every step."""
    return problem.task.n_samples * (problem.training.steps + 1)


def _first_capacity(problem: Problem) -> int:
    """A first guess of the directions needed; doubled where it does not suffice."""
    return min(_full_capacity(problem), max(128, 8 * problem.task.n_samples))


def _scramble(
    problem: Problem,
    particles: int,
    capacity: int,
    tolerance: float,
    two_time: bool,
    steps: NDArray[np.int64],
    stream: np.random.SeedSequence,
    bar: Bar,
) -> dict[str, NDArray[Any]] | None:
    """One independent estimate of the variables of the schema at `steps`, and of the `ranks` of the matrices;
    None if these met more directions than `capacity`."""
    depth, samples, last = problem.network.depth, problem.task.n_samples, problem.training.steps
    rule = loop.rule_of(problem)._replace(centered=jnp.ones(()))
    # children are named, not spawned: a second attempt must find the same seeds
    seeds = [np.random.SeedSequence(stream.entropy, spawn_key=(*stream.spawn_key, layer)) for layer in range(depth)]
    draws = loop.draws_needed(depth, samples, capacity)
    normals = tuple(jnp.asarray(sobol_normals(n, particles, s)) for n, s in zip(draws, seeds, strict=True))
    network = loop.limit_network(rule, normals, tolerance, capacity=capacity)
    history = loop.empty_history(network, last, two_time=two_time)

    stride, begun = -(-(last + 1) // CALLS), bar.n
    for start in range(0, last + 1, stride):
        stop = min(start + stride, last + 1)
        network, history = loop.advance(network, history, rule, start, stop, activation=problem.network.activation)
        before_last_step = history.observables.ranks[max(stop - 2, 0)].max(initial=0)
        if capacity < _full_capacity(problem) and before_last_step > capacity - samples:
            bar.update(begun - bar.n)
            return None
        _raise_if_diverged(problem, history.observables, stop)
        bar.update(stop - start)

    values = {name: np.asarray(value)[steps] for name, value in history.observables._asdict().items()}
    values |= schema.losses(problem, values["prediction"])
    for name, vectors in (("feature", history.features), ("gradient", history.gradients)):
        values[f"{name}_kernel"] = np.moveaxis(values[f"{name}_kernel"], 0, 1)  # to (layer, step, ...)
        if vectors is not None:
            saved = tuple(v[steps] for v in vectors)
            values[f"{name}_kernel_two_time"] = np.asarray(loop.two_time_kernels(saved, network.populations))
    return values


def _raise_if_diverged(problem: Problem, seen: Observables, stop: int) -> None:
    """Name the first step below `stop` whose loss exploded or whose numbers are not finite, and the layer."""
    loss = schema.losses(problem, np.asarray(seen.prediction[:stop]))["loss"]
    sizes = np.asarray(seen.sizes[:stop]).max(axis=1)  # (step, layer): the larger of <h^2> and <g^2>
    exploded = ~(np.isfinite(loss) & np.isfinite(sizes).all(axis=1) & (loss <= DIVERGED * max(loss[0], 1.0)))
    if exploded.any():
        step = int(np.argmax(exploded))
        growth = np.where(np.isfinite(sizes[step]), sizes[step] / np.maximum(sizes[0], 1e-300), np.inf)
        layer = int(np.argmax(growth)) + 1
        raise DivergenceError(
            f"the limit diverges at step {step}: loss {loss[step]:.3g} (initially {loss[0]:.3g}), fields of layer "
            f"{layer} grown {growth[layer - 1]:.3g} times. Lower learning_rate={problem.training.learning_rate}, "
            f"or gamma0={problem.network.gamma0}."
        )


def memory_estimate(problem: Problem, particles: int, capacity: int, two_time: bool = False) -> int:
    """Bytes of one scramble: its state, and the blocks (sample, particle) that a step holds besides."""
    depth, samples, last = problem.network.depth, problem.task.n_samples, problem.training.steps

    def state() -> Any:
        normals = tuple(jnp.zeros((n, particles)) for n in loop.draws_needed(depth, samples, capacity))
        network = loop.limit_network(loop.rule_of(problem), normals, 0.0, capacity=capacity)
        return network, loop.empty_history(network, last, two_time=two_time)

    kept = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(state)))
    blocks: int = (4 * depth + 8) * samples * particles * 8
    return int(kept) + blocks


def _refuse_if_too_large(
    problem: Problem, particles: int, capacity: int, two_time: bool, where: jax.Device, memory_limit: int | None
) -> None:
    stats = where.memory_stats()
    available = stats["bytes_limit"] - stats["bytes_in_use"] if stats else memory.available_on_host()
    memory.require(
        memory_estimate(problem, particles, capacity, two_time),
        limit=memory_limit,
        available=available,
        what=f"the limit with {particles} particles and {capacity} directions",
        ways_out="lower particles, raise tolerance, or use fewer samples" + (", or two_time=False" if two_time else ""),
    )
