"""What curves along a grid of values say of the lowest one, with errors.

With u* the lowest point of the limit's loss L and w the weights of a slope there over L''(u*), lim N shift is -w . b
and lim N scatter^2 is w . C . w.  Errors are those of the jackknife over the repetitions that curves are means of, each
kind by itself, times what Student's t makes of so few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from dmft.finite_width import optimum
from dmft.finite_width.curves import Curves, Expansion
from dmft.finite_width.samples import Samples

Array = NDArray[np.float64]
Variables = dict[str, tuple[tuple[str, ...], Any]]
Found = TypeVar("Found", Curves, Samples)
ONE_SIGMA = float(ndtr(1.0))
NETWORKS = 10_000  # curves that are drawn for probabilities


def of_curves(
    curves: Curves | Samples, at: Array, of: str, scale: str, seeds: int, rng: np.random.Generator
) -> Variables:
    """The variables of `dmft.transfer`."""
    u, counts = optimum.coordinate(at, scale), curves.independent

    def read(kept: list[NDArray[np.bool_]]) -> Variables:
        found = _found(u, curves.expansion(kept), curves.widths, scale, seeds, curves.leading)
        return {f"{of}{name}" if name.startswith("_") else name: value for name, value in found.items()}

    variables = read(_kept(counts))
    square: dict[str, Any] = dict.fromkeys(variables, 0.0)
    for kind, count in enumerate(counts):
        without = [read(_kept(counts, kind, i)) for i in range(count)] if count > 1 else [variables]  # exact
        factor = stdtrit(count - 1, ONE_SIGMA) if count > 1 else 0.0
        for name in square:
            square[name] += factor**2 * (count - 1) * np.var([one[name][1] for one in without], axis=0)
    variables |= {f"{name}_se": (dims, np.sqrt(square[name])) for name, (dims, _) in variables.items()}
    return variables | _on_grid(at, u, curves.expansion(_kept(counts)), seeds * curves.widths, rng)


def _kept(counts: Sequence[int], kind: int = -1, number: int = -1) -> list[NDArray[np.bool_]]:
    """Which repetitions of each kind: all, but for one."""
    return [np.arange(count) != (number if i == kind else -1) for i, count in enumerate(counts)]


def _found(u: Array, curves: Expansion, n: Array, scale: str, seeds: int, leading: bool) -> Variables:
    """What follows from the curves, without errors; names of losses are to follow that of the loss.

    Scatter is that about the optimum of each width or, to leading order, of the limit.
    """
    L, b, C, mean, spread = curves
    limit, each = optimum.lowest(u, L), optimum.lowest(u, mean)
    w = optimum.slope_weights(u, limit.at) / limit.curvature
    about = optimum.Lowest(*(np.broadcast_to(part, n.shape) for part in limit)) if leading else each
    of_each = optimum.slope_weights(u, about.at) / about.curvature  # (value, width)
    variance = np.einsum("vn,nvw,wn->n", of_each, spread, of_each)
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
        "optimum_variance": ((), w @ C @ w),
        "curvature": ((), limit.curvature),
        "regret": (("source", "width"), optimum.regrets(u, mean, np.append(each.at, limit.at))),
    }


def _on_grid(at: Array, u: Array, curves: Expansion, n: Array, rng: np.random.Generator) -> Variables:
    """What a search among the values finds; n: of every width, over what N Cov of a mean is its spread."""
    mean = curves.mean
    size, axes = np.linalg.eigh(curves.spread)
    roots = axes * np.sqrt(np.maximum(size, 0.0) / n[:, None])[:, None]
    normals = rng.standard_normal((NETWORKS, len(at)))
    chosen = [(curve + normals @ root.T).argmin(-1) for curve, root in zip(mean, roots, strict=True)]
    shift = optimum.in_steps(u, optimum.lowest(u, mean).at, optimum.lowest(u, curves.limit).at)
    shares = [np.bincount(i, minlength=len(at)) / NETWORKS for i in chosen]
    return {
        "grid_optimum": (("width",), at[mean.argmin(-1)]),
        "grid_shift": (("width",), shift),
        "probability": (("width", "value"), np.reshape(shares, mean.shape)),
    }
