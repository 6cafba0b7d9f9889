"""`transfer`: how far the best value of a hyperparameter moves with width, and how far it scatters.

Along a grid of values v (u = log v, or v), with L(u) the loss of the limit, b(u) = lim N bias of a network's loss and
C(u, u') = lim N Cov of the losses of one network, with the same initial weights at both values:

    E loss_N(u) = L(u) + b(u) / N         u*_N lowest        N (u*_N - u*) -> -b'(u*) / L''(u*)
    one network's optimum is off by       N Var -> d_u d_u' C (u*, u*) / L''(u*)^2
    the optimum of width N0 costs at N    L_N(u*_N0) - L_N(u*_N)  ~  L''(u*) (u*_N0 - u*_N)^2 / 2

The best rate of the limit is that of infinitely many neurons: a parameterization that makes the limit exist makes the
optimum converge, like 1/N in the mean and N^-1/2 for one network.  What may be seen of it on a grid is decided by the
curvature: values within u* +- h have losses within L'' h^2 / 2.

Two routes lead there (`by`).  Derivatives of the limit (`dmft.fluctuations`; `dmft.finite_width.curves`) give b and C:
all widths follow, to leading order.  Samples, networks of each width (`dmft.finite_width.samples`), hold all orders of
1/N, kinks and jumps, in curves and their lowest points: for narrow networks, and for entrywise rules and Muon, of which
derivatives say little.  Their scatter is to leading order about the lowest point of each width: in the closed form of
one step .175, .129 and .064 at N = 8, 16 and 64, where lowest points of single networks scatter by .195, .147, .067.

All values share their normals (the same scrambles, and the same directions of `dmft.fluctuations`, or the same
networks): their errors are common, and cancel in slopes along the grid.  Influences of neurons on the loss, one
backward pass a value, give C without draws (`dmft.finite_width.influence`).

Depth and the size of batches are further axes (`across`; `dmft.finite_width.across`): each depth and each size has an
optimum of its own, and residual networks whose branches have a limit of infinite depth one of that, too.

Assumptions and approximations
    By derivatives the leading order in 1/N of the losses; errors hold nothing of the next, and a warning says where
    shifts are too large for one order.
    The optimum is that of the curve so found, through cubic splines on the grid (`dmft.finite_width.optimum`), which
    errors do not hold: choose values near each other, a factor of 1.05 to 1.3.  A warning says where a parabola would
    give another one.
    What is lowest is the mean over networks: optima of single networks, averaged, differ from it at the same order 1/N.
    Errors are those of the jackknife over scrambles, and over groups of networks, times what Student's t makes of so
    few: the value is within one of them in 68 of 100 cases, if they scatter like Gaussians.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import __version__, schema
from dmft.drivers.uncertainty import warn_of_few_particles
from dmft.finite_width import optimum
from dmft.finite_width.across import joined, levels, with_orders
from dmft.finite_width.curves import curves_along
from dmft.finite_width.optima import Found, of_curves
from dmft.finite_width.samples import GROUPS, samples_along
from dmft.running.host import usual_errors
from dmft.schema.build import now
from dmft.schema.labels import labelled
from dmft.specs import Problem, _check

Array = NDArray[np.float64]
LOSSES = ("loss", "test_loss")
BY = ("derivatives", "samples")
COARSE = 0.2  # steps of the grid
NEXT_ORDER = 0.25  # of a shift


@usual_errors
def transfer(
    problem: Problem,
    over: str,
    values: Iterable[float],
    *,
    widths: Sequence[int],
    across: Mapping[str, Sequence[int]] | None = None,
    orders: int = 4,
    of: str = "loss",
    step: int | None = None,
    scale: str | None = None,
    seeds: int = 1,
    by: str | None = None,
    members: int = 1024,
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
        across: {"depth": [4, 8, 16]} or {"batch_size": [2, 4, 8]}: the same at each of these numbers of residual
            blocks, or of samples in a batch, of as many steps; each has a best value of its own.
        orders: sequences of batches over which losses are averaged (across batch_size).
        of: the loss that is lowest at the optimum, "loss" or "test_loss".
        step: of training; the last by default.
        scale: "log", where distances are those of logarithms, or "linear"; "log" by default if all values are positive.
        seeds: networks over which losses are averaged before the best value is looked for, in `scatter` and
            `probability`.
        by: "derivatives" or "samples" (see the top of this module); by default the second for entrywise rules and Muon,
            the first for all others.
        members: networks of each width (by samples).
        draws: of `dmft.fluctuations`, of which one run is done at every value (by derivatives).
        particles, scrambles, seed, tolerance, device, memory_limit, progress: of `dmft.fluctuations`, or
            of `dmft.solve`.

    Returns:
        Dataset of kind "predicted_transfer", each variable with its `_se` but grid_optimum, grid_shift and probability:

            loss_limit, loss_bias (value)                       L, b (of a test loss: test_loss_limit, ...)
            loss_covariance(value, value_2)                     C
            loss_mean(width, value)                             L + b / N, or m_N of samples
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

        nan, with a warning, where a curve is lowest at an end of the grid.  Across depth or batch_size all of it with
        that dimension first, of which `.sel(depth=8)` is again what is returned without `across`, and

            depth_regret(depth_source, depth)                   loss of the limit, at one depth, at the best value of
            batch_size_regret(...)                              another, above the lowest
            order_scatter(batch_size)                           standard deviation of the limit's u* between sequences
                                                                of batches, which `scatter` does not hold; errors are
                                                                those for the sequences that were taken

        Of depths that double depth=inf is the limit, by extrapolation: residual networks whose branches have one.

    Raises:
        ValueError, TypeError: fewer than three values, or not numbers, or not positive on a logarithmic scale; no such
            field; another axis than these; as `dmft.fluctuations`.
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
    held = schema.held(problem, ("loss",))
    if of not in held:
        raise ValueError(f"of={of!r}: this task has {' and '.join(held)} only; give a task with test samples.")
    what: dict[str, Any] = {"over": over, "of": of, "scale": scale, "seeds": seeds}
    if "batch_size" not in (across or {}):
        _check.without_effect(transfer, {"orders": orders}, "anything but across batch_size")
    by = by or ("samples" if problem.training.stepping.by_entry else "derivatives")
    if by not in BY:
        raise ValueError(f"by={by!r} is unknown; choose one of {', '.join(BY)}.")
    if by == "samples":
        _check.without_effect(transfer, {"draws": draws}, "networks, by='samples'")
        members = _check.integer("members", members, minimum=2 * GROUPS)
        along: Any = partial(samples_along, members=members)
    else:
        _check.without_effect(transfer, {"members": members}, "anything but by='samples'")
        along = curves_along
    if across is None:
        return _dataset(problem, [along(problem, over, at, of, given, settings)], at, given, **what, seed=seed)
    found = {}
    axis, each = levels(problem, across, _check.integer("orders", orders, minimum=1), seed)
    for level in each:
        own = settings | {"seed": level.seed}
        several = [along(one, over, at, of, given, own) for one in level.problems]
        what["place"] = f" at {axis}={level.label}"
        one = _dataset(level.problems[0], several, at, given, **what, seed=level.seed)
        found[level.label] = with_orders(one, several) if axis == "batch_size" else one
    return joined(axis, found, of)


def _values(over: str, values: Any) -> Array:
    """Ascending."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"values={values!r} is not a list; give at least {optimum.FEWEST} values of {over}.")
    at = np.sort(_check.real_array("values", list(values)).astype(np.float64))
    if at.ndim != 1 or len(np.unique(at)) < max(len(at), optimum.FEWEST) or not np.isfinite(at).all():
        raise ValueError(f"values={at.tolist()}: give at least {optimum.FEWEST} different numbers, values of {over}.")
    return at


# ---- what the curves say ---------------------------------------------------------------------------------------------


def _dataset(
    problem: Problem,
    several: Sequence[Found],
    at: Array,
    widths: list[int],
    *,
    over: str,
    of: str,
    scale: str,
    seeds: int,
    seed: int,
    place: str = "",
) -> xr.Dataset:
    """Of curves of one problem, or of several over which losses are averaged."""
    curves = several[0].mean(several)
    run = curves.run
    warn_of_few_particles(run, curves.directions)

    variables = of_curves(curves, at, of, scale, seeds, np.random.default_rng(seed))
    ds = xr.Dataset(
        variables, coords={"value": at, "value_2": at, "width": widths, "source": np.array([*widths, np.inf])}
    )
    _warn_of_ends(ds, over, place)
    if curves.leading:
        _warn_of_next_orders(ds, over, place)
    if (apart := optimum.off_parabola(optimum.coordinate(at, scale), variables[f"{of}_limit"][1])) > COARSE:
        warnings.warn(
            f"the optimum of the limit{place} and that of a parabola through three of the values are {apart:.3g} steps "
            f"of the grid apart, more than {COARSE}: how curves run between values is a guess. Give values nearer to "
            f"each other, around {over}={ds['optimum_limit'].item():.3g}.",
            stacklevel=4,
        )
    numerics = {} if run.particles is None else {"particles": run.particles, "scrambles": curves.independent[0]}
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
        "seed": seed,
        "version": __version__,
        "dtype": run.dtype,
        "device": f"{run.device.platform}: {run.device.device_kind}",
        "created": now(),
        **curves.attrs,
        **numerics,
        "tolerance": run.tolerance,
        "directions": curves.directions,
    }
    return labelled(ds)


def _warn_of_ends(ds: xr.Dataset, over: str, place: str) -> None:
    where = [f"width {n}" for n in ds["width"].values[np.isnan(ds["optimum"].values)]]
    where = ["the limit"] * bool(np.isnan(ds["optimum_limit"])) + where
    if where:
        ends = f"{ds['value'].values[0]:g} and {ds['value'].values[-1]:g}"
        warnings.warn(
            f"the loss of {', '.join(where)}{place} is lowest at an end of the values of {over}, {ends}: its optimum "
            "is nan. Give values beyond that end.",
            stacklevel=5,
        )


def _warn_of_next_orders(ds: xr.Dataset, over: str, place: str) -> None:
    """Where the lowest point of L + b / N is not where the first order in 1/N has it."""
    first = ds["optimum_bias"] / ds["width"]
    apart = abs(ds["optimum_shift"] - first)
    far = (apart > NEXT_ORDER * abs(first)) & (apart > 2 * ds["optimum_shift_se"])
    if far.any():
        widths = ", ".join(str(n) for n in ds["width"].values[far.values])
        warnings.warn(
            f"at width {widths}{place} the lowest point of L + b / N is off the shift of first order in 1/N by up to "
            f"{(apart / abs(first)).values[far.values].max():.0%} of it: next orders, which are not in the errors, are "
            f"not small. Sample such networks, by='samples', for the best {over} of all orders.",
            stacklevel=5,
        )
