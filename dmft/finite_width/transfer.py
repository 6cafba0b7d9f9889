"""`transfer`: how far the best value of a hyperparameter moves with width, and how far it scatters.

Along a grid of values v (u = log v, or v), with L(u) the loss of the limit, b(u) = lim N bias of a network's loss and
C(u, u') = lim N Cov of the losses of one network, with the same initial weights at both values:

    E loss_N(u) = L(u) + b(u) / N         u*_N lowest        N (u*_N - u*) -> -b'(u*) / L''(u*)
    one network's optimum is off by       N Var -> d_u d_u' C (u*, u*) / L''(u*)^2
    the optimum of width N0 costs at N    L_N(u*_N0) - L_N(u*_N)  ~  L''(u*) (u*_N0 - u*_N)^2 / 2

The best rate of the limit is that of infinitely many neurons: a parameterization that makes the limit exist makes the
optimum converge, like 1/N in the mean and N^-1/2 for one network.  What may be seen of it on a grid is decided by the
curvature: values within u* +- h have losses within L'' h^2 / 2.

All values share their normals (the same scrambles, and the same directions of `dmft.fluctuations`): their errors are
common, and cancel in slopes along the grid.  Influences of neurons on the loss, one backward pass a value, give C
without draws (`dmft.finite_width.influence`).

Assumptions and approximations
    Leading order in 1/N of the losses; the optimum is that of the curve so found, through cubic splines on the grid
    (`dmft.finite_width.optimum`), which errors do not hold: choose values near each other, a factor of 1.05 to 1.3.  A
    warning says where a parabola would give another one.
    What is lowest is the mean over networks: optima of single networks, averaged, differ from it at the same order 1/N.
    Standard errors are those of the jackknife over scrambles.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import __version__, schema
from dmft.drivers.machine import precision
from dmft.drivers.repetitions import Trained, repetitions
from dmft.drivers.uncertainty import warn_of_few_particles
from dmft.engine.normals import random_key
from dmft.errors import DivergenceError
from dmft.finite_width import optimum
from dmft.finite_width.fluctuations import METHODS, prepared
from dmft.finite_width.influence import Influence
from dmft.finite_width.scalars import Scalars
from dmft.running.estimates import Estimates
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar
from dmft.schema.build import now
from dmft.schema.labels import labelled
from dmft.specs import Problem, _check, vary

Array = NDArray[np.float64]
Variables = dict[str, tuple[tuple[str, ...], Any]]
LOSSES = ("loss", "test_loss")
COARSE = 0.2  # steps of the grid
NETWORKS = 10_000  # curves that are drawn for probabilities


@usual_errors
def transfer(
    problem: Problem,
    over: str,
    values: Iterable[float],
    *,
    widths: Sequence[int],
    of: str = "loss",
    step: int | None = None,
    scale: str | None = None,
    seeds: int = 1,
    draws: int = 256,
    particles: int = 2048,
    scrambles: int = 8,
    seed: int = 0,
    tolerance: float = 1e-3,
    device: str = "auto",
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """The best value of a hyperparameter in the limit and at finite width, its scatter, and what transferring it costs.

    Args:
        problem: network, task, training; its own value of the hyperparameter does not matter.
        over: the hyperparameter, a field of network or training with a number: "learning_rate", "gamma0",
            "weight_decay", "branch_scale", ... (a schedule of rates is replaced by constant ones).
        values: at least three, around the optimum.
        widths: of the networks.
        of: the loss that is lowest at the optimum, "loss" or "test_loss".
        step: of training; the last by default.
        scale: "log", where distances are those of logarithms, or "linear"; "log" by default if all values are positive.
        seeds: networks over which losses are averaged before the best value is looked for, in `scatter` and
            `probability`.
        draws, particles, scrambles, seed, tolerance, device, memory_limit, progress: of `dmft.fluctuations`, of which
            one run is done at every value.

    Returns:
        Dataset of kind "predicted_transfer", each variable with its `_se` but grid_optimum, grid_shift and probability:

            loss_limit, loss_bias (value)                       L, b (of a test loss: test_loss_limit, ...)
            loss_covariance(value, value_2)                     C
            loss_mean(width, value)                             L + b / N
            optimum_limit, optimum(width)                       the best value
            optimum_shift(width)                                u*_N - u*: of logarithms, or of values (attribute scale)
            scatter(width)                                      standard deviation of u* of the mean over `seeds`
                                                                networks
            optimum_bias, optimum_variance                      lim N shift, lim N scatter^2 of one network
            curvature                                           L''(u*)
            regret(source, width)                               loss of the optimum of `source`, a width or inf, above
                                                                that of the best value
            grid_optimum(width), grid_shift(width)              the best of the values, in the mean; shift in steps of
                                                                the grid
            probability(width, value)                           that the mean over `seeds` networks is lowest at this
                                                                value, to leading order

        nan, with a warning, where a curve is lowest at an end of the grid.

    Raises:
        ValueError, TypeError: fewer than three values, or not numbers, or not positive on a logarithmic scale; no such
            field; as `dmft.fluctuations`.
        DivergenceError: training diverges at one of the values, which the message names.

    Source: expansions as of `dmft.fluctuations`.

    Example:
        >>> found = dmft.transfer(problem, "learning_rate", [1, 2, 4], widths=[64], draws=2, particles=64, scrambles=2)
        >>> found["loss_mean"].dims
        ('width', 'value')
    """
    at = _values(over, values)
    if of not in LOSSES:
        raise ValueError(f"of={of!r} is no loss; give one of {', '.join(LOSSES)}.")
    if scale not in (None, *optimum.SCALES):
        raise ValueError(f"scale={scale!r} is unknown; choose one of {', '.join(optimum.SCALES)}.")
    scale = scale or ("log" if at[0] > 0 else "linear")
    if scale == "log" and at[0] <= 0:
        raise ValueError(f"values hold {at[0]:g}, which has no logarithm; give positive ones, or scale='linear'.")
    given = [_check.integer(f"widths[{i}]", n, minimum=1) for i, n in enumerate(widths)]
    seeds = _check.integer("seeds", seeds, minimum=1)
    if not isinstance(problem, Problem):
        raise TypeError(f"transfer expects a dmft.Problem, got {type(problem).__name__}.")
    steps = [problem.training.steps] if step is None else [step]
    settings: dict[str, Any] = {
        "mode": "auto",
        "observables": ["loss"],
        "covariance": False,
        "by_layer": False,
        "draws": draws,
        "deflate": True,
        "distribution": "rademacher",
        "particles": particles,
        "scrambles": scrambles,
        "seed": seed,
        "tolerance": tolerance,
        "save_steps": steps,
        "device": device,
        "memory_limit": memory_limit,
        "progress": progress,
    }
    each = [prepared(problem=one, **settings) for one in vary(problem, **{over: at.tolist()})]
    influences = [one["influence"] for one in each]
    held = schema.held(problem, ("loss",))
    if of not in held:
        raise ValueError(f"of={of!r}: this task has {' and '.join(held)} only; give a task with test samples.")
    curves = _curves(influences, over, at, of, each[0]["scrambles"], seed, progress)
    return _dataset(problem, influences[0], curves, at, given, over=over, of=of, scale=scale, seeds=seeds, seed=seed)


def _values(over: str, values: Any) -> Array:
    """Ascending."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"values={values!r} is not a list; give at least {optimum.FEWEST} values of {over}.")
    at = np.sort(_check.real_array("values", list(values)).astype(np.float64))
    if at.ndim != 1 or len(np.unique(at)) < max(len(at), optimum.FEWEST) or not np.isfinite(at).all():
        raise ValueError(f"values={at.tolist()}: give at least {optimum.FEWEST} different numbers, values of {over}.")
    return at


@dataclass(frozen=True)
class Curves:
    """Along the grid, of every scramble: the loss of the limit and its N bias (scramble, value), influences of neurons
    on it (scramble, value, neuron); the most directions that matrices met."""

    limit: Array
    bias: Array
    influence: Array
    directions: int

    @property
    def covariance(self) -> Array:
        """(scramble, value, value_2): N Cov."""
        return self.influence @ self.influence.swapaxes(1, 2)


def _curves(
    influences: list[Influence], over: str, at: Array, of: str, scrambles: int, seed: int, progress: bool | None
) -> Curves:
    """All of it."""
    first = influences[0].run
    limit, done = [], Estimates()
    with precision(first.dtype, first.device):
        total = len(at) * scrambles * (first.last + 1)
        with progress_bar(total, f"limit over {over}", "step", progress) as bar:
            for value, influence in zip(at, influences, strict=True):
                # in the limit the output at initialisation vanishes; kinks are those of the problem
                centered = influence.run.problem.training.observe == "all"
                run = replace(influence.run, centered=centered, smoothed=False)
                found = []
                try:
                    # with the room that sufficed for the values before, on which the normals depend
                    known = Estimates(capacity=done.capacity)
                    for trained in repetitions(
                        run, seed, scrambles, bar, memory_limit=influence.memory_limit, done=known
                    ):
                        prediction = np.asarray(trained.history.vitals.prediction, np.float64)[run.steps]
                        found.append(schema.of_predictions(run.problem, prediction)[of][-1])
                        done.add({}, trained.capacity, trained.directions)
                        del trained
                except DivergenceError as error:
                    raise DivergenceError(f"at {over}={value:g}, which leave out of values: {error}") from error
                limit.append(found)
        moved = [
            _moved(replace(one, directions=done.directions), f"{over}={value:g}", of, scrambles, seed, done, progress)
            for value, one in zip(at, influences, strict=True)
        ]
    bias, influence_on = (np.stack(part, axis=1) for part in zip(*moved, strict=True))
    return Curves(np.array(limit).T, bias, influence_on, done.directions)


def _moved(
    influence: Influence, what: str, of: str, scrambles: int, seed: int, done: Estimates, progress: bool | None
) -> tuple[Array, Array]:
    """N bias of the loss (scramble,), and influences on it (scramble, neuron)."""
    biases, on_loss = [], []
    with progress_bar(influence.steps(scrambles), f"finite width, {what}", "step", progress) as bar:
        known = Estimates(capacity=done.capacity)
        runs = repetitions(influence.run, seed, scrambles, bar, memory_limit=influence.memory_limit, done=known)
        for number, trained in enumerate(runs):
            key = jax.random.fold_in(random_key(seed), number)
            biases.append(float(influence.estimate(trained, key, scrambles, bar)[f"{of}_bias"][-1]))
            on_loss.append(_on_loss(influence, trained, of))
            del trained
    return np.array(biases), np.array(on_loss)


def _on_loss(influence: Influence, trained: Trained, of: str) -> Array:
    """Influences on the loss of the neurons of all populations, one after the other."""
    network = influence.network(trained)
    scalars = Scalars(influence.run, {"loss"}, trained.history.vitals.prediction)
    which = int(scalars.named(np.arange(scalars.count, dtype=float))[of][-1])
    # as many as the derivatives of `Influence.along` take at once: compiled already
    combinations = scalars.combinations(which, which + influence.backward_at_once(network))
    return np.concatenate([np.asarray(layer[0]) for layer in influence.influences(network, combinations)])


# ---- what the curves say ---------------------------------------------------------------------------------------------


def _dataset(
    problem: Problem,
    influence: Influence,
    curves: Curves,
    at: Array,
    widths: list[int],
    *,
    over: str,
    of: str,
    scale: str,
    seeds: int,
    seed: int,
) -> xr.Dataset:
    run, exact, scrambles = influence.run, influence.mode == "exact", len(curves.limit)
    warn_of_few_particles(run, curves.directions)
    samples = [curves.limit, curves.bias, curves.covariance]

    def of_scrambles(kept: NDArray[np.bool_]) -> Variables:
        L, b, C = (each[kept].mean(0) for each in samples)
        found = _found(at, L, b, C, np.array(widths, float), scale, seeds)
        return {f"{of}{name}" if name.startswith("_") else name: value for name, value in found.items()}

    variables = of_scrambles(np.ones(scrambles, bool))
    without = [of_scrambles(np.arange(scrambles) != i) for i in range(scrambles)] if not exact else [variables]
    for name, (dims, _) in list(variables.items()):
        each = np.stack([one[name][1] for one in without])
        variables[f"{name}_se"] = dims, np.sqrt((len(each) - 1) * each.var(axis=0))
    L, mean, C = (variables[f"{of}_{name}"][1] for name in ("limit", "mean", "covariance"))
    variables |= _on_grid(at, L, mean, C, seeds * np.array(widths, float), scale, np.random.default_rng(seed))
    ds = xr.Dataset(
        variables, coords={"value": at, "value_2": at, "width": widths, "source": np.array([*widths, np.inf])}
    )
    _warn_of_ends(ds, over)
    if (apart := optimum.off_parabola(optimum.coordinate(at, scale), L)) > COARSE:
        warnings.warn(
            f"the optimum of the limit and that of a parabola through three of the values are {apart:.3g} steps of the "
            f"grid apart, more than {COARSE}: how curves run between values is a guess. Give values nearer to each "
            f"other, around {over}={ds['optimum_limit'].item():.3g}.",
            stacklevel=4,
        )
    numerics = (
        {} if exact else {"particles": run.particles, "scrambles": scrambles, "draws": influence.draws * scrambles}
    )
    ds.attrs = {
        "kind": "predicted_transfer",
        "producer": "dmft.transfer",
        "problem": problem.to_json(arrays=False),
        "problem_id": problem.problem_id,
        "over": over,
        "of": of,
        "scale": scale,
        "step": run.last,
        "seeds": seeds,
        "mode": influence.mode,
        "method": METHODS[influence.mode],
        "seed": seed,
        "version": __version__,
        "dtype": run.dtype,
        "device": f"{run.device.platform}: {run.device.device_kind}",
        "created": now(),
        **numerics,
        "tolerance": run.tolerance,
        "directions": curves.directions,
    }
    return labelled(ds)


def _found(at: Array, L: Array, b: Array, C: Array, n: Array, scale: str, seeds: int) -> Variables:
    """What follows from the curves, without errors; names of losses are to follow that of the loss."""
    u = optimum.coordinate(at, scale)
    mean = L + b / n[:, None]
    limit, each = optimum.lowest(u, L), optimum.lowest(u, mean)
    w = optimum.slope_weights(u, limit.at) / limit.curvature
    variance = w @ C @ w
    sources = np.append(each.at, limit.at)
    return {
        "_limit": (("value",), L),
        "_bias": (("value",), b),
        "_covariance": (("value", "value_2"), C),
        "_mean": (("width", "value"), mean),
        "optimum_limit": ((), optimum.value_at(limit.at, scale)),
        "optimum": (("width",), optimum.value_at(each.at, scale)),
        "optimum_shift": (("width",), each.at - limit.at),
        "scatter": (("width",), np.sqrt(variance / n / seeds)),
        "optimum_bias": ((), -(w @ b)),
        "optimum_variance": ((), variance),
        "curvature": ((), limit.curvature),
        "regret": (("source", "width"), optimum.regrets(u, mean, sources)),
    }


def _on_grid(at: Array, L: Array, mean: Array, C: Array, n: Array, scale: str, rng: np.random.Generator) -> Variables:
    """What a search among the values finds; n: of every width, over what N Cov of a mean is C."""
    u = optimum.coordinate(at, scale)
    size, axes = np.linalg.eigh(C)
    noise = (rng.standard_normal((NETWORKS, len(at))) * np.sqrt(np.maximum(size, 0.0))) @ axes.T
    chosen = [(curve + noise / np.sqrt(each)).argmin(-1) for each, curve in zip(n, mean, strict=True)]
    shift = optimum.in_steps(u, optimum.lowest(u, mean).at, optimum.lowest(u, L).at)
    shares = [np.bincount(i, minlength=len(at)) / NETWORKS for i in chosen]
    return {
        "grid_optimum": (("width",), at[mean.argmin(-1)]),
        "grid_shift": (("width",), shift),
        "probability": (("width", "value"), np.reshape(shares, mean.shape)),
    }


def _warn_of_ends(ds: xr.Dataset, over: str) -> None:
    where = [f"width {n}" for n in ds["width"].values[np.isnan(ds["optimum"].values)]]
    where = ["the limit"] * bool(np.isnan(ds["optimum_limit"])) + where
    if where:
        ends = f"{ds['value'].values[0]:g} and {ds['value'].values[-1]:g}"
        warnings.warn(
            f"the loss of {', '.join(where)} is lowest at an end of the values of {over}, {ends}: its optimum is nan. "
            "Give values beyond that end.",
            stacklevel=5,
        )
