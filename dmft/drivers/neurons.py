"""`neurons`: preactivations of single neurons in the limit, those of its particles.

Every particle is a draw of the limit's law of a neuron, h^l(t) jointly over samples and steps.  At initialisation

    h^1 ~ N(0, K^x + sigma^2),      h^{l+1} ~ N(0, Phi^l + sigma^2)

(in a residual network h^{l+1} adds b^2 (Phi^l + sigma^2) to the covariance); training leaves the Gaussian law, where
the richness gamma0 is not small, by the terms of past gradients g^l in h^l (theory of `dmft.engine`).

Of a stream of data the steps are joint, too: what probes have met at one recorded step, the matrices remember at the
others (in `dmft.solve` they forget it, so that its particles have the same law, and other numbers).

Assumptions and approximations: those of `dmft.solve`.  Particles of one scramble are spread more evenly than
independent ones, so that errors of averages follow from the scrambles, not from the number of particles.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.machine import find_devices, precision
from dmft.drivers.numerics import DTYPES, check_numerics
from dmft.drivers.repetitions import repetitions
from dmft.drivers.run import Run
from dmft.drivers.uncertainty import few_particles, warn_of_few_particles
from dmft.engine.form import Form, Rule
from dmft.engine.layers import over_layers
from dmft.engine.network import Network, observe
from dmft.running import effort, memory
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from dmft.specs import Problem
from dmft.specs.parameterization import require_limit

DTYPE = "float64"


@usual_errors
def neurons(
    problem: Problem,
    *,
    particles: int = 4096,
    scrambles: int = 4,
    seed: int = 0,
    tolerance: float = 3e-3,
    save_steps: Iterable[int] | None = None,
    samples: Iterable[int] | None = None,
    device: str = "auto",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Preactivations of the neurons of the infinite-width limit of `problem`.

    Args:
        problem: network, task, training, loss.
        particles: S, neurons of a scramble, a power of two.
        scrambles: independent repetitions, at least 2, for errors of averages.
        seed: of the scrambles; those of `dmft.solve` with the same seed (but for streams of data, see above).
        tolerance: relative size below which a direction met by a weight matrix is dropped, 1e-7 to 3e-2.
        save_steps: the steps to record; by default the first and the last.  Training ends with the last of them.
        samples: indices of the samples to record; by default all that are observed.
        device: "auto" (a GPU if JAX has one), "cpu" or "gpu".
        memory_limit: in bytes; by default what is available on the device.
        progress: show a bar; by default in terminals and notebooks, elsewhere a line now and then of long work.

    Returns:
        Dataset of kind "particles" (`dmft.schema`): preactivation(layer, step, sample, neuron), the particles of one
        scramble after those of another, with the coordinate scramble(neuron).

    Raises:
        DivergenceError: non-finite or exploding dynamics, naming step and layer.
        MemoryEstimateError: when the estimate exceeds the limit, with both numbers.
        ValueError, TypeError: arguments out of range.

    Source: Bordelon & Pehlevan 2022 for the limit.

    Example:
        >>> dmft.neurons(problem, particles=256, scrambles=2)["preactivation"].dims
        (...'sample'...)
    """
    return _computed(**prepared(**locals()))


def prepared(
    *,
    problem: Problem,
    particles: int,
    scrambles: int,
    seed: int,
    tolerance: float,
    save_steps: Iterable[int] | None,
    samples: Iterable[int] | None,
    device: str,
    memory_limit: int | None,
    progress: bool | None,
) -> dict[str, Any]:
    """The arguments of `neurons`, checked: what is to be computed."""
    if not isinstance(problem, Problem):
        raise TypeError(f"neurons expects a dmft.Problem, got {type(problem).__name__}.")
    schema.require_no_positions(problem, "neurons")
    require_limit(problem.network)
    particles, scrambles, seed, tolerance, memory_limit = check_numerics(
        particles, scrambles, seed, tolerance, memory_limit
    )
    steps = schema.saved_steps(problem, sorted({0, problem.training.steps}) if save_steps is None else save_steps)
    chosen = schema.observed_samples(problem, samples)
    (where,) = find_devices(device)
    # as in `solve`: the output at initialisation vanishes in the limit
    centered = problem.training.observe == "all"
    run = Run(problem, steps, particles, tolerance, centered, observables=(), dtype=DTYPE, devices=(where,))
    return {
        "run": run,
        "chosen": chosen,
        "scrambles": scrambles,
        "seed": seed,
        "memory_limit": memory_limit,
        "progress": progress,
        "results": _require_room(run, len(chosen), scrambles, memory_limit),
    }


def _require_room(run: Run, samples: int, scrambles: int, memory_limit: int | None) -> tuple[int, ...]:
    """The shape of the result, if it fits in memory."""
    assert run.particles is not None
    particles, shape = run.particles, (run.depth, len(run.steps), samples, scrambles, run.particles)
    memory.require(
        int(np.prod(shape)) * DTYPES[DTYPE],
        limit=memory_limit,
        available=memory.available_on_host(),
        what=f"the preactivations of {scrambles * particles} particles",
        ways_out="lower particles or scrambles, or record fewer save_steps or samples",
    )
    return shape


def _computed(
    *,
    run: Run,
    chosen: NDArray[np.int64],
    scrambles: int,
    seed: int,
    memory_limit: int | None,
    progress: bool | None,
    results: tuple[int, ...],
) -> xr.Dataset:
    """What is prepared, done."""
    problem, steps, where, shape = run.problem, run.steps, run.device, results
    particles, tolerance = shape[-1], run.tolerance
    found, rows = np.empty(shape), chosen - problem.observed.start
    directions = 0
    with (
        precision(DTYPE, where),
        effort.for_work(run.work(scrambles)),
        progress_bar(scrambles * (run.last + 1), "theory", "step", progress) as bar,
    ):
        scramble = 0

        def look(network: Network, t: int) -> None:
            at = int(np.searchsorted(steps, t))
            found[:, at, :, scramble] = np.asarray(_preactivations(network, run.rule, t, form=run.form))[:, rows]

        for trained in repetitions(run, seed, scrambles, bar, memory_limit=memory_limit, look=look):
            directions = max(directions, trained.directions)
            scramble += 1
            del trained
    crowded = {"in_law": f"networks of width {particles}"} if few_particles(run, directions) else {}
    warn_of_few_particles(run, directions, f"The neurons are, in law, those of networks of width {particles}.")
    return schema.build(
        "particles",
        problem,
        {"preactivation": found.reshape(*shape[:3], -1)},
        steps=steps,
        samples=chosen,
        coords=_coordinates(scrambles, particles),
        attrs={
            "producer": "dmft.neurons",
            "device": f"{where.platform}: {where.device_kind}",
            "particles": particles,
            "scrambles": scrambles,
            "tolerance": tolerance,
            "dtype": DTYPE,
            "seed": seed,
            "directions": directions,
            **crowded,
        },
    )


@partial(jax.jit, static_argnames=("form",))
def _preactivations(network: Network, rule: Rule, t: jax.Array | int, *, form: Form) -> jax.Array:
    """(layer, observed row, particle): h of step `t`, by a pass whose effect on the state is not kept."""
    _, seen = observe(network, rule, t, form)
    return over_layers(network.sketch, network.populations, lambda _, h: h, seen.h.held)


def _coordinates(scrambles: int, particles: int) -> dict[str, Any]:
    scramble: NDArray[np.int64] = np.repeat(np.arange(scrambles), particles)
    return {"neuron": np.arange(scrambles * particles), "scramble": ("neuron", scramble)}
