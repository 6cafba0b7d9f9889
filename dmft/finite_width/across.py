"""`dmft.transfer` along a second axis: depth, or the size of batches.

    depth L        residual blocks, with branches as of `dmft.depth_limit`, for which there is a limit of L -> infinity:
                       q_L = q + a / L + O(1 / L^2)        q is 2 q_{2L} - q_L, but for O(1 / L^2)
                   of everything, best values too.  Depths have scrambles of their own.
    batch_size B   as many steps, each on B of the samples (`dmft.random_batches`).  At infinite width the loss of one
                   sequence of batches is a number, another one for another sequence: losses are means over some, and
                   what is best for one scatters by an amount that no width removes, `order_scatter` (nan of a single
                   one, such as that of all samples).

With L_b(u) the loss of the limit at level b (a depth, or a size) and u*_b its lowest point, the best value of level a
costs at level b

    L_b(u*_a) - L_b(u*_b)      error  |L_b'(u*_a)| hypot(se u*_a, se u*_b)

and infinite depth may be the level a, not b: extrapolated curves, unlike their lowest points, are not known that well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.depth import extrapolated, seed_of
from dmft.finite_width import optimum
from dmft.finite_width.curves import Curves
from dmft.finite_width.samples import Samples
from dmft.schema.labels import labelled
from dmft.specs import Problem, _check, random_batches

Array = NDArray[np.float64]
AXES = ("depth", "batch_size")


@dataclass(frozen=True)
class Level:
    """One depth or size: problems over which losses are averaged, and the seed of their scrambles."""

    label: int
    problems: tuple[Problem, ...]
    seed: int


def levels(problem: Problem, across: Mapping[str, Sequence[int]], orders: int, seed: int) -> tuple[str, list[Level]]:
    """The axis, and its levels, ascending.

    Raises:
        TypeError, ValueError: not one axis with at least two numbers; a network without a limit of infinite depth;
            more samples in a batch than there are; a problem that has batches already.
    """
    if not isinstance(across, Mapping) or len(across) != 1 or not set(across) <= set(AXES):
        raise ValueError(f'across={across!r} is not one of {{"depth": [4, 8, 16]}} and {{"batch_size": [2, 4, 8]}}.')
    ((axis, given),) = across.items()
    if not isinstance(given, (list, tuple, range, np.ndarray)):
        raise TypeError(f"across={across!r}: {axis} is not a list of numbers; give e.g. [4, 8, 16].")
    labels = sorted(_check.integer(axis, each, minimum=1) for each in given)
    if len(set(labels)) < max(len(labels), 2):
        raise ValueError(f"across={across!r}: give at least two different numbers of {axis}.")
    if axis == "depth":
        deep = [replace(problem, network=problem.network.with_blocks(count)) for count in labels]
        return axis, [Level(count, (one,), seed_of(seed, count)) for count, one in zip(labels, deep, strict=True)]
    if problem.training.batches is not None:
        raise ValueError(
            "across batch_size the batches of the problem would be replaced; leave batches out of its training."
        )
    return axis, [Level(size, _batched(problem, size, orders), seed) for size in labels]


def _batched(problem: Problem, size: int, orders: int) -> tuple[Problem, ...]:
    """Trained on several sequences of batches; of all samples there is one."""
    training: Any = problem.training
    samples, steps = problem.task.n_train, training.steps
    if size == samples:
        return (problem,)
    each = (random_batches(samples, size, steps, seed=order) for order in range(orders))
    return tuple(replace(problem, training=replace(training, batches=batches)) for batches in each)


def with_orders(ds: xr.Dataset, several: Sequence[Curves] | Sequence[Samples]) -> xr.Dataset:
    """The prediction of one size of batches, with how its best value scatters between their sequences; nan of one."""
    u = optimum.coordinate(ds["value"].values, ds.attrs["scale"])
    best = [optimum.lowest(u, one.limit.mean(axis=0)).at for one in several]
    return ds.assign(order_scatter=np.std(best, ddof=1) if len(best) > 1 else np.nan).assign_attrs(orders=len(best))


def joined(axis: str, found: Mapping[int, xr.Dataset], of: str) -> xr.Dataset:
    """Predictions by level as one Dataset, with what transfers between them, and depths that double extrapolated."""
    each, attrs = list(found.values()), [json.dumps(one.attrs) for one in found.values()]
    identities = [one.attrs["problem_id"] for one in each]
    labels: list[float] = list(found)
    if axis == "depth" and all(b == 2 * a for a, b in pairwise(labels)):
        each.append(_infinitely_deep(each))
        labels.append(np.inf)
        identities.append("")
        attrs.append(json.dumps({"producer": "dmft.transfer", "method": "Richardson extrapolation in 1 / depth"}))
    ds = xr.concat(
        [one.drop_attrs() for one in each],
        xr.DataArray(labels, dims=axis, name=axis),
        data_vars="all",
        coords="different",
        compat="equals",
        join="exact",
    )
    ds = ds.assign_coords(
        {"problem_id": (axis, identities), schema.ATTRIBUTES: (axis, attrs), f"{axis}_source": labels}
    )
    scale = found[int(labels[0])].attrs["scale"]
    u, curves = optimum.coordinate(ds["value"].values, scale), ds[f"{of}_limit"].values[: len(found)]
    at = optimum.coordinate(ds["optimum_limit"].values, scale)
    at_se = ds["optimum_limit_se"].values / (ds["optimum_limit"].values if scale == "log" else 1.0)
    slopes = np.stack([optimum.slopes(u, curve, at) for curve in curves], axis=-1)
    regret = np.full((len(labels), len(labels)), np.nan), np.full((len(labels), len(labels)), np.nan)
    regret[0][:, : len(found)] = optimum.regrets(u, curves, at)
    regret[1][:, : len(found)] = abs(slopes) * np.hypot(at_se[:, None], at_se[: len(found)])
    dims = (f"{axis}_source", axis)
    ds[f"{axis}_regret"], ds[f"{axis}_regret_se"] = (dims, regret[0]), (dims, regret[1])
    shared = [one.attrs for one in found.values()]
    ds.attrs = {
        name: value
        for name, value in shared[0].items()
        if name not in ("problem", "problem_id") and all(one.get(name) == value for one in shared)
    }
    return labelled(ds)


def _infinitely_deep(each: Sequence[xr.Dataset]) -> xr.Dataset:
    """What has errors, extrapolated; nan of what is not smooth."""
    limit = each[-1].copy()
    for name in limit.data_vars:
        if f"{name}_se" in limit:
            both = (np.stack([one[end].values for one in each]) for end in (name, f"{name}_se"))
            limit[name].values, limit[f"{name}_se"].values = extrapolated(*both)
        elif not str(name).endswith("_se"):
            limit[name] = limit[name] * np.nan
    return limit
