"""`bias_variance`: what of the excess loss of narrow networks an ensemble removes, and what is the bias of their width.

f_e are predictions of independent networks of width N, L(f) the loss of a predictor (training or test samples):

    L_k = E L( (f_1 + ... + f_k) / k )        expected loss of an ensemble of k networks;   L_1 of a single one
    L_inf = L( E f )                          of the infinite ensemble of networks of width N
    L_1 - L_limit = (L_1 - L_inf)  +  (L_inf - L_limit)
                    variance part     bias of narrower width
                    removed by        not removed
                    an ensemble

For the squared loss L_k = < (E f - y)^2 + Var f / k > / 2, of which mean m and variance s^2 of n networks give the
unbiased estimate < (m - y)^2 - s^2 / n + s^2 / k > / 2.  For other losses L_k is the mean over disjoint groups of k
networks, in several random partitions, and L_inf the jackknife estimate, whose bias is of order 1 / n^2 (the variance
part, of groups of networks like it, is their difference to within a part of its error).

The width that an ensemble is worth is the width N' of a single network of the same loss, L_1(N') = L_k(N), on the line
through L_1 of neighbouring widths against 1/N and, beyond the widest, through the limit's loss at 1/N = 0.

Predicted, with V = lim N Var f and b = lim N (E L_1 - L_limit) of `dmft.fluctuations`, v = < V > / 2 (squared loss):

    variance part  v / N        bias part  (b - v) / N        width an ensemble is worth  N b / (b - v + v / k)

Source: Vyas et al. 2023 for the split; Bordelon & Pehlevan 2023 for the prediction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from comparisons import inputs
from comparisons.results import Variables, dataset, pair, stacked
from comparisons.samples import Members, Sample, held, jackknife, mean_of, pseudo_values, require_enough, samples
from dmft.running.host import usual_errors
from dmft.schema.observed.loss import loss as observed_loss
from dmft.schema.sources import REQUIRED, by_kind
from dmft.specs import _check, loss
from dmft.specs.loss import LOSSES

Array = NDArray[np.float64]
Pair = tuple[Array, Array]
PARTITIONS = 8  # of networks into groups
ENSEMBLES = (1, 2, 4, 8, 16)
SPLITS = {one.name: one.split for one in map(observed_loss.of, ("", "test_"))}
EACH = ("width", "step")


@usual_errors
@by_kind(theory="theory", nets="networks", fluctuations="fluctuations")
def bias_variance(
    theory: xr.Dataset | None = None,
    nets: xr.Dataset = REQUIRED,
    fluctuations: xr.Dataset | None = None,
    *,
    ensembles: Sequence[int] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Losses of single networks, of ensembles and of the infinite ensemble, at every width and step.

    Args:
        theory: the limit of the same problem: adds the bias part, and widths beyond the widest.  Results may be
            given in any order.
        nets: of kind "ensemble" or "moments", with predictions and losses; at least eight networks, or blocks, a width.
        fluctuations: of the same problem, with predictions and losses: adds what is predicted (squared loss).
        ensembles: sizes k, at most half of the networks of a width for losses other than the squared one; by default
            those of 1, 2, 4, 8, 16 that are.
        seed: of the partitions into groups, for losses other than the squared one.

    Returns:
        Dataset with, for q = loss and, where there are test samples, test_loss, each with `_se`:

            q_ensemble(width, ensemble, step)       L_k
            q_infinite(width, step)                 L_inf
            q_variance_part(width, step)            L_1 - L_inf
            q_bias_part(width, step)                L_inf - L_limit, with the theory
            q_limit(step)
            q_worth(width, ensemble, step)          N', its error as if L_k and L_1 were independent; nan where L_1
                                                    does not fall with width there, inf where L_k is not above the
                                                    limit's loss
            q_variance_part_predicted, q_bias_part_predicted (width, step), q_worth_predicted(width, ensemble, step)

    Raises:
        SchemaError: inputs of another form.
        ValueError, TypeError: different problems, steps or samples; too few networks; no predictions; ensembles that
            are not whole numbers above 0; moments for a loss that needs every network.

    Example:
        >>> parts = comparisons.bias_variance(nets, theory)
        >>> parts["loss_variance_part"].dims
        ('width', 'step')
    """
    nets = inputs.check_networks(nets)
    if not held(nets, "prediction"):
        raise ValueError("the networks have no predictions; record them, with observables=['prediction', 'loss'].")
    counts = require_enough(nets)
    problem = json.loads(nets.attrs["problem"])
    quadratic = LOSSES[problem["loss"]].quadratic
    if ensembles is None:
        most = max(ENSEMBLES) if quadratic else min(counts) // 2
        ensembles = [k for k in ENSEMBLES if k <= most]
    if not isinstance(ensembles, Iterable) or not list(ensembles):
        raise ValueError(f"ensembles={ensembles!r} is not a list of sizes; give e.g. ensembles=[1, 4, 16].")
    sizes = sorted({_check.integer(f"ensembles[{i}]", k, minimum=1) for i, k in enumerate(ensembles)})
    quantities = [q for q, split in SPLITS.items() if (nets["split"] == split).any()]
    if theory is not None:
        theory = inputs.check_theory(theory, nets, quantities)
    if fluctuations is not None:
        fluctuations = inputs.check_fluctuations(fluctuations, nets)

    shape = (nets.sizes["step"], *_targets(nets).shape)  # of one network's predictions, with an axis of outputs
    predictions = [samples(nets, "prediction", i).reshaped(shape) for i in range(len(counts))]
    variables: Variables = {}
    for q in quantities:
        part = np.flatnonzero(nets["split"].values == SPLITS[q])
        target = _targets(nets)[part]
        if quadratic:
            found = [_squared(one, part, target, sizes) for one in predictions]
        else:
            inputs.check_networks(nets, members=f"the ensembles' loss {problem['loss']!r}")
            places = len(np.unique(nets["position"])) if "position" in nets.coords else 0
            each_loss = loss.of_positions(problem["loss"], places)
            found = [_general(one, part, target, each_loss, sizes, seed) for one in predictions]
        for name, dims in (("ensemble", ("width", "ensemble", "step")), ("infinite", EACH), ("variance_part", EACH)):
            variables |= pair(f"{q}_{name}", dims, stacked([one[name] for one in found]))
        single = stacked([one["single"] for one in found])
        limit = None
        if theory is not None:
            limit = theory[q].values, theory[f"{q}_se"].values
            variables |= pair(f"{q}_limit", ("step",), limit)
            infinite, infinite_se = (variables[f"{q}_infinite{end}"][1] for end in ("", "_se"))
            variables |= pair(f"{q}_bias_part", EACH, (infinite - limit[0], np.hypot(infinite_se, limit[1])))
        ensemble = variables[f"{q}_ensemble"][1], variables[f"{q}_ensemble_se"][1]
        worth = _worth(nets["width"].values, single, ensemble, limit)
        variables |= pair(f"{q}_worth", ("width", "ensemble", "step"), worth)
        needed = ("prediction_variance", f"{q}_bias")
        if fluctuations is not None and quadratic and all(name in fluctuations for name in needed):
            variables |= _predicted(fluctuations, q, nets["width"].values, sizes)
    sources = [ds for ds in (nets, theory, fluctuations) if ds is not None]
    return dataset("bias_variance", variables, {"ensemble": sizes}, *sources, seeds=counts, loss=problem["loss"])


def _targets(nets: xr.Dataset) -> Array:
    """(sample, output)."""
    y = np.asarray(nets["target"].values, np.float64)
    return y if y.ndim == 2 else y[:, None]


# ---- estimates -------------------------------------------------------------------------------------------------------


def _squared(x: Sample, part: NDArray[np.intp], target: Array, sizes: Sequence[int]) -> dict[str, Pair]:
    """The estimates of one width, unbiased, from means and variances."""

    def losses(mean: Array, variance: Array, n: float) -> Array:
        m, s2 = mean[..., part, :], variance[..., part, :]
        infinite = (((m - target) ** 2 - s2 / n) / 2).sum(-1).mean(-1)
        spread = (s2 / 2).sum(-1).mean(-1)
        return np.stack([infinite, spread, infinite + spread, *(infinite + spread / k for k in sizes)])

    value, se = jackknife(losses, x)
    named = dict(zip(("infinite", "variance_part", "single"), zip(value[:3], se[:3], strict=True), strict=True))
    return named | {"ensemble": (value[3:], se[3:])}


def _general(
    x: Sample, part: NDArray[np.intp], target: Array, name: str, sizes: Sequence[int], seed: int
) -> dict[str, Pair]:
    """The estimates of one width for any loss, from every network."""
    assert isinstance(x, Members)
    f = x.x[..., part, :]  # (member, step, sample, output)
    if max(sizes) > len(f) // 2:
        raise ValueError(
            f"ensembles of {max(sizes)} among {len(f)} networks of a width: give at most {len(f) // 2}, so that there "
            "are two groups, or train more seeds."
        )

    def of(f: Array) -> Array:
        return np.asarray(loss.values(np, name, f, target).mean(-1))

    rng = np.random.default_rng(seed)
    alone = Members(of(f)).mean()
    ensemble = [alone if k == 1 else _grouped(of, f, k, rng) for k in sizes]
    single = pseudo_values(lambda mean, _variance, _n: mean, of(f))
    infinite = pseudo_values(lambda mean, _variance, _n: of(mean), f)
    return {
        "ensemble": stacked(ensemble),
        "infinite": mean_of(infinite),
        "single": alone,
        "variance_part": mean_of(single - infinite),
    }


def _grouped(of: Callable[[Array], Array], f: Array, k: int, rng: np.random.Generator) -> Pair:
    """Mean loss of ensembles of k: groups of a partition are independent, so that their scatter gives the error of one
    partition, a cautious one of the mean over partitions."""
    count = len(f) // k
    means, errors = [], []
    for _ in range(PARTITIONS):
        groups = f[rng.permutation(len(f))[: count * k]].reshape(count, k, *f.shape[1:]).mean(1)
        each = of(groups)
        means.append(each.mean(0))
        errors.append(each.std(0, ddof=1) / np.sqrt(count))
    # of two groups the error itself is short on average, its square is not
    return np.mean(means, axis=0), np.sqrt(np.mean(np.square(errors), axis=0))


# ---- the width that an ensemble is worth -----------------------------------------------------------------------------


def _worth(widths: NDArray[Any], single: Pair, ensemble: Pair, limit: Pair | None) -> Pair:
    """N' (width, ensemble, step) and its error, from L_1 (width, step) and L_k (width, ensemble, step)."""
    inverse, value, se = 1.0 / np.asarray(widths, float), *single
    if limit is not None:
        inverse = np.append(inverse, 0.0)
        value, se = np.concatenate([value, limit[0][None]]), np.concatenate([se, limit[1][None]])
    order = np.argsort(inverse)[::-1]
    inverse, value, se = inverse[order], value[order], se[order]
    found, errors = np.full_like(ensemble[0], np.nan), np.full_like(ensemble[0], np.nan)
    for index in np.ndindex(found.shape):
        step = index[2]
        found[index], errors[index] = _on_line(
            inverse,
            value[:, step],
            se[:, step],
            float(ensemble[0][index]),
            float(ensemble[1][index]),
            limit is not None,
        )
    return found, errors


def _on_line(
    inverse: Array, curve: Array, curve_se: Array, loss: float, loss_se: float, to_limit: bool
) -> tuple[float, float]:
    """Where the line through `curve` against 1/N takes the value `loss`: N and its error."""
    if to_limit and loss <= curve[-1]:
        return np.inf, np.nan
    # the last crossing: wider networks than that are better
    for i in range(len(curve) - 2, -1, -1):
        (low, high), (left, right) = curve[[i + 1, i]], inverse[[i + 1, i]]
        if not low <= loss <= high or low == high:
            continue
        share = (loss - low) / (high - low)
        x = left + share * (right - left)
        if x <= 0:
            return np.inf, np.nan
        line_se = np.hypot((1 - share) * curve_se[i + 1], share * curve_se[i])
        x_se = np.hypot(loss_se, line_se) * (right - left) / (high - low)
        return 1 / x, x_se / x**2
    return np.nan, np.nan


def _predicted(fluctuations: xr.Dataset, q: str, widths: NDArray[Any], sizes: Sequence[int]) -> Variables:
    part = fluctuations.isel(sample=np.flatnonzero(fluctuations["split"].values == SPLITS[q]))
    outputs = [dim for dim in ("output",) if dim in part["prediction_variance"].dims]
    v, v_se = (part[f"prediction_variance{e}"].mean("sample").sum(outputs).values / 2 for e in ("", "_se"))
    b, b_se = (fluctuations[f"{q}_bias{e}"].values for e in ("", "_se"))
    n, k = np.asarray(widths, float)[:, None], np.asarray(sizes, float)[:, None]
    left, left_se = b - v, np.hypot(b_se, v_se)
    bottom = left + v / k  # (ensemble, step)
    clear = (b > 0) & (v > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.where(clear, np.where(bottom > 0, b / bottom, np.inf), np.nan)
        relative = np.hypot(b_se * abs(1 / b - 1 / bottom), v_se * (1 - 1 / k) / bottom)
        worth_se = np.where(np.isfinite(worth), worth * relative, np.nan)
    each = ("width", "ensemble", "step")
    return (
        pair(f"{q}_variance_part_predicted", EACH, (v / n, v_se / n))
        | pair(f"{q}_bias_part_predicted", EACH, (left / n, left_se / n))
        | pair(f"{q}_worth_predicted", each, (n[:, None] * worth, n[:, None] * worth_se))
    )
