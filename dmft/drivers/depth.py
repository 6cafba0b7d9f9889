"""`depth_limit`: residual networks of infinitely many blocks, from those of finitely many.

    q_L = q + a / L + O(1 / L^2)          q is 2 q_{2L} - q_L, but for O(1 / L^2)

Each depth is a problem of its own (`Architecture.with_blocks`), whose branches are beta0 L^-alpha and whose weights of
branches learn at L^{2 alpha - 1} times the rate of all others (`dmft.specs.parameterization`): for these there is a
limit.  Every depth is solved; the two largest are extrapolated.

Standard errors of the limit hold both: that of particles, of the combination, and how far the last extrapolation is
from the one before, or, with two depths, from the larger depth.

Assumptions and approximations: an expansion in 1 / L, which holds where the depths are large enough (`dmft.solve` of
the depths themselves are in the result, to be looked at).  Depths have scrambles of their own: blocks of one depth
have no counterpart among those of another whose normals they could share, since each matrix draws normals in the order
in which its own directions come, so that errors of different depths are independent.  Accuracies, and what else of
predictions is not smooth, are those of the extrapolated predictions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.solve import solve
from dmft.running.host import usual_errors
from dmft.specs import Problem, _check, vary

ENDS = {"layer": 1, "attention_layer": 0}  # of these, so many behind the last block


@usual_errors
def depth_limit(problem: Problem, depths: Sequence[int] = (8, 16, 32), **numerics: Any) -> xr.Dataset:
    """The limit of infinite width and then of infinitely many residual blocks.

    Args:
        problem: of a ResidualMLP with its usual branch_scale, a ResidualCNN or a Transformer, of any number of blocks
            (those of a ResidualMLP are taken with branches 1 / sqrt(blocks), for 1 / sqrt(depth)).
        depths: numbers of blocks, at least two, each twice the one before; the error is O(1 / depths[-1]^2).
        numerics: as of `dmft.solve`, but for two_time and checkpoint.

    Returns:
        Dataset of kind "depth_limit" (`dmft.schema`): what `dmft.solve` returns, with a first dimension `depth`: the
        depths and infinity.  Layers are those of the smallest depth; of others the ones at the same fraction of it.

    Raises:
        TypeError: depths that are no list, options that `dmft.solve` does not have.
        ValueError: networks without residual blocks, or with branches that have no limit; depths that do not double;
            and what `dmft.solve` raises.

    Source: Bordelon, Noci, Li, Hanin & Pehlevan 2023; Bordelon, Chaudhry & Pehlevan 2024 (alpha).

    Example:
        >>> task = dmft.Task([[1.0, 0.5], [0.2, -1.0]], [1.0, -1.0])
        >>> deep = dmft.Problem(dmft.ResidualMLP(3, dmft.linear()), task, dmft.GradientDescent(0.1, 2))
        >>> dmft.depth_limit(deep, depths=[2, 4])["depth"].values
        array([ 2.,  4., inf])
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"depth_limit expects a dmft.Problem, got {type(problem).__name__}.")
    if not isinstance(depths, (list, tuple, range, np.ndarray)):
        raise TypeError(f"depths={depths!r} is not a list of numbers of blocks; give e.g. [8, 16, 32].")
    counts = [_check.integer("depths", count, minimum=1) for count in depths]
    if len(counts) < 2 or any(b != 2 * a for a, b in pairwise(counts)):
        raise ValueError(f"depths={counts} are not two or more, each twice the one before; give e.g. [8, 16, 32].")
    if refused := {"two_time", "checkpoint"} & numerics.keys():
        raise ValueError(f"depth_limit does not take {', '.join(sorted(refused))}; use dmft.solve at one depth.")
    if unknown := numerics.keys() - inspect.signature(solve).parameters.keys():
        raise TypeError(f"depth_limit does not know {', '.join(sorted(unknown))}; it takes arguments of dmft.solve.")
    seed = _check.integer("seed", numerics.pop("seed", 0), minimum=0)
    problems = vary(problem, network=[problem.network.with_blocks(count) for count in counts])
    found = [solve(one, seed=seed_of(seed, count), **numerics) for one, count in zip(problems, counts, strict=True)]
    common = [_common_layers(one, count // counts[0], counts[0]) for one, count in zip(found, counts, strict=True)]
    names = [name for name in found[0].data_vars if f"{name}_se" in found[0]]
    values: dict[str, Any] = {}
    for name in map(str, names):
        each = np.stack([one[name].values for one in common])
        errors = np.stack([one[f"{name}_se"].values for one in common])
        limit, error = extrapolated(each, errors)
        values[name] = np.concatenate([each, limit[None]])
        values[f"{name}_se"] = np.concatenate([errors, error[None]])
    if "prediction" in values:
        known = schema.quantities()
        shares = [name for name in values if name in known and not known[name].smooth]
        asked = [name.removeprefix("test_") for name in shares]
        whole = schema.of_predictions(problems[0], values["prediction"][-1], asked)
        values |= {name: np.concatenate([values[name][:-1], whole[name][None]]) for name in shares if name in whole}
    kept = ("dtype", "device", "particles", "scrambles", "tolerance", "memory_estimate")
    attrs = {name: found[-1].attrs[name] for name in kept if name in found[-1].attrs}
    return schema.build(
        "depth_limit",
        problems[0],
        values,
        steps=found[0]["step"].values,
        attrs=attrs | {"producer": "dmft.depth_limit", "method": "Richardson extrapolation in 1 / depth", "seed": seed},
        coords={"depth": np.array([*counts, np.inf])},
    )


def extrapolated(each: NDArray[np.float64], errors: NDArray[np.float64]) -> tuple[Any, Any]:
    """The limit of estimates (depth, ...) at depths that double, and its error."""
    limit = 2 * each[-1] - each[-2]
    before = 2 * each[-2] - each[-3] if len(each) > 2 else each[-1]
    return limit, np.sqrt(4 * errors[-1] ** 2 + errors[-2] ** 2 + (limit - before) ** 2)


def seed_of(seed: int, blocks: int) -> int:
    """Of the scrambles of a depth: those of other seeds and depths have nothing to do with them."""
    return int(np.random.SeedSequence((seed, blocks)).generate_state(1)[0])


def _common_layers(found: xr.Dataset, ratio: int, blocks: int) -> xr.Dataset:
    """Those at the places of the layers of so many blocks: of block b, block ratio * b."""
    places = {}
    for dim, ends in ENDS.items():
        if size := found.sizes.get(dim, 0):
            inside = (size - ends) // (blocks * ratio)
            layers = [ratio * block * inside + i for block in range(blocks) for i in range(inside)]
            places[dim] = [*layers, *range(size - ends, size)]
    return found.isel(places)
