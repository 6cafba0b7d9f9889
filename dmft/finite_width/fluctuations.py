"""`fluctuations`: what width N adds to the limit at leading order, from the limit's own solution.

With the projection of `dmft.engine.matrix`, S particles are in law a network of width S: an observable q is one
function of the empirical measure of neurons in each layer, and its expansion around the limit (`dmft.engine.variation`)
gives

    <name>_variance     lim N Var(q_N)                 <name>_bias     lim N (E q_N - q_infinity)

Modes
    forward     Taylor coefficients to second order along directions in the measures: all observables at once.  Half of
                the directions are those that matter most, the others random; the relative error of a variance is
                sqrt(2 / draws) for random ones alone, ten times less with both.  Kinks of the activation are rounded
                (`dmft.engine.smoothing`), and the directions that matter, three quarters, are those of first and of
                second derivatives: errors of a bias are then those of scrambles, at initialisation a tenth of those
                of finite mode at equal cost.
    reverse     one backward pass a scalar gives its influence function, the effect of every neuron; contracting two of
                them gives the covariance, with no draws.  No bias.  Kinks are rounded.
    finite      differences between runs in which a random half of the particles has left and the other half counts
                twice, or the reverse: neurons that cross a kink of the activation are counted, at the price of
                corrections of relative order S^-1/2 (kinks) and S^-1.  Error sqrt(2 / draws), as for random
                directions above; that of a bias does not fall with draws alone: the scatter of particles near a kink
                enters it like S^1/4.  An independent check of the others.
    exact       linear networks: all directions instead of random ones.

Assumptions and approximations
    Leading order in 1/N, at fixed steps and samples: corrections are of relative order 1/N, with coefficients that grow
    with depth, richness and time.  Errors of the Monte Carlo are reported; a bias of order directions/S is not, and a
    warning says when particles are few.  Directions below `tolerance` are dropped (effect on a variance: below 1e-3 of
    it at 3e-3 on the problem of the tests).  Rounded kinks shift variances by 1 to 2 % of them, biases by a per cent
    of the terms they are made of; that is not in the standard errors.  Late in rich training of networks with kinks
    second derivatives have heavy tails: one scramble can dominate a bias, and its standard error says so.
    Of a stream of data, matrices remember what probes have met at recorded
    steps, which covariances of several steps need: directions count as many more.

Cost, in forward passes of one scramble (`dmft.drivers.solve`): about 4 for a direction to second order, 2 for a random
half in finite mode, 2 for a scalar of reverse mode or a backward pass of deflation.

Source: Bordelon & Pehlevan 2023 for the quantities; von Mises 1947 for the expansion in measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import xarray as xr

from dmft import schema
from dmft.drivers.machine import find_devices, precision
from dmft.drivers.numerics import TOLERANCES, check_numerics
from dmft.drivers.repetitions import repetitions
from dmft.drivers.run import Run, of_passes
from dmft.drivers.uncertainty import warn_of_few_particles, warn_of_large_errors
from dmft.engine import loop
from dmft.engine.directions import DISTRIBUTIONS
from dmft.engine.normals import random_key
from dmft.finite_width.influence import Influence
from dmft.finite_width.measures import key_of
from dmft.running import effort
from dmft.running.estimates import Estimates
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from dmft.specs import Problem, _check

FEWEST_ENTRIES = 25  # of the readout, at which an entrywise rule is steep, for derivatives to be those of many
METHODS = {
    "forward": "weight derivatives of causal particles: Taylor coefficients in random directions",
    "reverse": "weight derivatives of causal particles: influence functions by backward passes",
    "finite": "finite perturbations of the weights of causal particles: random halves left out",
    "exact": "metric derivatives of causal linear forms: Taylor coefficients in all directions",
}


@usual_errors
def fluctuations(
    problem: Problem,
    *,
    mode: str = "auto",
    observables: Sequence[str | schema.Observable] | None = None,
    covariance: bool = False,
    by_layer: bool = False,
    draws: int = 256,
    deflate: bool = True,
    distribution: str = "rademacher",
    particles: int = 2048,
    scrambles: int = 4,
    seed: int = 0,
    tolerance: float = 1e-3,
    save_steps: Iterable[int] | None = None,
    device: str = "auto",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """lim N Var and lim N bias of the observables of networks of width N on `problem`.

    Args:
        problem: network, task, training.
        mode: "forward", "reverse", "finite" or "exact" (see the top of this module); "auto" takes "exact" for
            `dmft.linear()`, "forward" for all others.
        observables: which, among prediction, loss (with test_loss), feature_kernel, gradient_kernel, ntk,
            preactivation_kernel, participation_ratio, and smooth ones of a user's own (`dmft.observable`); the cost of
            reverse mode grows with their number; by default those of `dmft.solve`.
        covariance: add `prediction_covariance`, lim N Cov between all recorded steps and samples.
        by_layer: add `<name>_variance_by_layer`, the parts that come from the random draw of each layer's neurons
            (forward and finite mode then follow `draws` directions for each layer by itself).
        draws: directions, shared out over the scrambles (forward and finite mode).
        deflate: choose half of the directions (three quarters for activations with kinks) by as many backward passes,
            those that matter most, and leave the random ones with the rest (forward mode); False takes random ones
            alone.
        distribution: of the directions, "rademacher" or "gaussian" (forward mode).
        particles: S, a power of two.
        scrambles: independent repetitions, at least 2; their scatter gives the standard errors.
        seed: of the scrambles and the directions.
        tolerance: relative size below which a direction met by a weight matrix is dropped, 1e-7 to 3e-2.
        save_steps: the steps to record; all of 0..T by default.
        device: "auto" (a GPU if JAX has one), "cpu" or "gpu".
        memory_limit: in bytes; by default what is available on the device.
        progress: show a bar; by default in terminals and notebooks, elsewhere a line now and then of long work.

    Returns:
        Dataset of kind "fluctuations" (`dmft.schema`): for each observable `<name>_variance` and `<name>_bias` (not in
        reverse mode) with the dimensions of the observable, and their `_se`, standard errors of the mean over scrambles
        (Student's t with scrambles - 1 degrees of freedom; 0 in exact mode; without the error of a gradient flow's
        finite steps).  A warning says where one is large (`dmft.drivers.uncertainty`).

    Raises:
        ValueError: exact mode for a nonlinear activation; arguments out of range.
        DivergenceError: training, or its response to the measures, leaves the finite numbers.
        MemoryEstimateError: when the estimate exceeds the limit, with both numbers.

    Example:
        >>> found = dmft.fluctuations(problem, particles=256, scrambles=2, observables=["prediction"])
        >>> found["prediction_variance"].dims
        ('step', 'sample')
    """
    return _computed(**prepared(**locals()))


def prepared(
    *,
    problem: Problem,
    mode: str,
    observables: Sequence[str | schema.Observable] | None,
    covariance: bool,
    by_layer: bool,
    draws: int,
    deflate: bool,
    distribution: str,
    particles: int,
    scrambles: int,
    seed: int,
    tolerance: float,
    save_steps: Iterable[int] | None,
    device: str,
    memory_limit: int | None,
    progress: bool | None,
) -> dict[str, Any]:
    """The arguments of `fluctuations`, checked: what is to be computed."""
    if not isinstance(problem, Problem):
        raise TypeError(f"fluctuations expects a dmft.Problem, got {type(problem).__name__}.")
    mode = _mode(mode, problem)
    if mode == "finite" and distribution != "rademacher":
        raise ValueError(f"distribution={distribution!r}: mode='finite' leaves out halves; it needs 'rademacher'.")
    observables = schema.observables(observables, problem, "dmft.fluctuations")
    sketch = problem.sketch
    if by_layer and tuple(population for population, _ in sketch.layers) != sketch.populations:
        raise ValueError("by_layer=True: the layers of this network share their neurons, which have one part.")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution={distribution!r} is unknown; choose one of {', '.join(DISTRIBUTIONS)}.")
    particles, scrambles, seed, tolerance, memory_limit = check_numerics(
        particles, scrambles, seed, tolerance, memory_limit
    )
    draws = _check.integer("draws", draws, minimum=1)
    _require_derivatives(problem, particles)
    steps, where, centered = schema.saved_steps(problem, save_steps), find_devices(device), problem.network.centered
    exact = mode == "exact"
    smoothed = mode in ("forward", "reverse") and not all(phi.smooth for phi in sketch.activations)
    scrambles = 1 if exact else scrambles
    run = Run(
        problem,
        steps,
        None if exact else particles,
        TOLERANCES[0] if exact else tolerance,
        centered,
        observables=_recorded(observables, smoothed),
        devices=where,
        smoothed=smoothed,
        alone=mode == "reverse",
    )
    influence = Influence(
        run=run,
        mode=mode,
        observables=observables,
        covariance=covariance,
        by_layer=by_layer,
        draws=-(-draws // scrambles),
        deflate=deflate,
        distribution=distribution,
        memory_limit=memory_limit,
    )
    return {"influence": influence, "scrambles": scrambles, "seed": seed, "progress": progress}


def _computed(*, influence: Influence, scrambles: int, seed: int, progress: bool | None) -> xr.Dataset:
    """What is prepared, done."""
    run, mode, memory_limit = influence.run, influence.mode, influence.memory_limit
    problem, exact, particles = run.problem, mode == "exact", run.particles
    distribution, deflate = influence.distribution, influence.deflate
    done = Estimates()
    with (
        precision(run.dtype, run.device),
        effort.for_work(influence.work(scrambles)),
        progress_bar(influence.steps(scrambles), "fluctuations", "step", progress) as bar,
    ):
        for trained in repetitions(run, seed, scrambles, bar, memory_limit=memory_limit):
            key = key_of(random_key(seed), done.moments.count)
            done.add(influence.estimate(trained, key, scrambles, bar), trained.capacity, trained.directions)
            del trained
    warn_of_few_particles(run, done.directions)
    numerics: dict[str, Any] = {} if exact else {"particles": particles, "scrambles": scrambles}
    if mode in ("forward", "finite"):
        numerics |= {"draws": influence.draws * scrambles, "distribution": distribution}
    if mode == "forward":
        numerics["deflate"] = int(deflate)
    if run.smoothed:
        numerics["kink_width"] = float(run.rule.kink_width)
    found = schema.build(
        "fluctuations",
        problem,
        done.moments.mean_and_error(exact=exact),
        steps=run.steps,
        attrs={
            "producer": "dmft.fluctuations",
            "mode": mode,
            "method": METHODS[mode],
            "dtype": "float64",
            "device": f"{run.device.platform}: {run.device.device_kind}",
            "seed": seed,
            **numerics,
            "tolerance": run.tolerance,
            "directions": done.directions,
        },
    )
    at_random = f"draws={influence.draws * scrambles}, " if "draws" in numerics else ""
    warn_of_large_errors(found, f"Raise {at_random}particles={particles}, or scrambles={scrambles}.")
    return found


def _recorded(observables: Sequence[str], smoothed: bool) -> tuple[schema.Observable, ...]:
    """Those of passes to record: what is asked for; where kinks are rounded, all usual ones that cost no further
    passes."""
    asked = of_passes(observables, two_time=False)
    if not smoothed:
        return asked
    backward = schema.need(observables, schema.BACKWARD)
    free = [one.name for one in loop.USUAL if backward or one.needs != schema.BACKWARD]
    return of_passes((*observables, *free), two_time=False)


def _require_derivatives(problem: Problem, particles: int) -> None:
    """ValueError where derivatives in the measures miss pairs of neurons at which an entrywise rule all but jumps: its
    slope is there of order 1 / eps, where |G| is below eps.  That holds for about a part eps of all entries, with G of
    order 1, fewest in the readout, S eps.  (Measured: variances are right for S eps = 25, of matrices S^2 eps = 6,500,
    and up to 25 % too small with S^2 eps = .07; in between it was not looked.)"""
    training: Any = problem.training
    if not training.stepping.by_entry:
        return
    name, eps = type(training).__name__, training.derivable
    if eps is None:
        raise ValueError(
            f"{name} does not say where it is smooth; set `derivable` in it: to inf if first derivatives see all of "
            "it, to the size of scaled gradients below which it is smooth, or to 0 if it jumps."
        )
    if particles * eps >= FEWEST_ENTRIES:
        return
    if not eps:
        raise ValueError(
            f"{name} jumps where the gradient of an entry changes its sign, which no derivative sees: variances would "
            "come out wrong. Sample networks in law (finite_nets.sample_in_law), which is exact for any rule, or train "
            "them."
        )
    raise ValueError(
        f"{name} with eps={eps:g} all but jumps where the gradient of an entry changes its sign, and of "
        f"particles={particles} only some {particles * eps:.2g} are there in the readout, too few for derivatives: "
        f"variances would come out wrong. Take eps of {FEWEST_ENTRIES / particles:.2g} or more, sample networks in law "
        "(finite_nets.sample_in_law), which is exact for any rule, or train them."
    )


def _mode(mode: str, problem: Problem) -> str:
    linear = problem.linear
    if mode == "auto":
        return "exact" if linear else "forward"
    if mode not in METHODS:
        raise ValueError(f"mode={mode!r} is unknown; choose one of auto, {', '.join(METHODS)}.")
    if mode == "exact" and problem.training.stepping.by_entry:
        raise ValueError(
            f"mode='exact' is for linear networks, and what {type(problem.training).__name__} makes of pairs of "
            "neurons is not linear; use mode='auto'."
        )
    if mode == "exact" and not linear:
        what = next((phi.name for phi in problem.sketch.activations if phi.name != "linear"), "a formula of it")
        raise ValueError(f"mode='exact' is for linear networks, and {what} is not linear; use mode='auto'.")
    return mode
