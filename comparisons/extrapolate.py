"""`extrapolate`: what networks do at infinite width, from ensembles of wide ones, where no theory is solved.

    E q_N = q + b / N + c / N^2 ...      or q + b N^-p      of means over the networks of every width, entry by entry

Which law, and from which width on, is not chosen but averaged over (`comparisons.averaged_laws`): errors are those of
finite ensembles and of that choice.  Networks of all widths are independent; one network at all of its steps and
samples is not: entries have each its own error, and err together.

Losses and accuracies of the prediction that is averaged over all networks of a width have a law of their own, with the
same limit: there networks are all alike.  They are those of infinitely many networks: of all and of halves of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from comparisons import averaged_laws, doubts, inputs
from comparisons.averaged_laws import LAWS, Averaged, Law
from comparisons.errors import UnresolvedError
from comparisons.results import Variables, dataset, pair
from comparisons.samples import Members, Sample, error_of, held, samples
from dmft import schema
from dmft.running.host import usual_errors
from dmft.specs import _check, loss

Array = NDArray[np.float64]
FEWEST = 8  # degrees of freedom of the scatter over networks, all widths together
GROUPS, FEWEST_GROUPS = 10, 4  # of networks in the jackknife: at most, and for an error at all
HALVINGS = 4  # of networks
FEWEST_WIDTHS = 3
SPLITS = {"": "train", "test_": "test"}
OF_PREDICTIONS = {"loss": loss.values, "accuracy": loss.correct}


class Widths(NamedTuple):
    """Means of one quantity: width (width,), ascending; mean, variance over networks (width, ...); counts (width,);
    fall (2, ...), the exponent with which that variance falls, and its error."""

    width: NDArray[np.int64]
    mean: Array
    variance: Array
    counts: NDArray[np.int64]
    fall: tuple[Array, Array]


@usual_errors
def extrapolate(
    nets: xr.Dataset | Sequence[xr.Dataset],
    quantities: Sequence[str] | None = None,
    *,
    fluctuations: xr.Dataset | None = None,
    ensembled: bool = True,
    laws: Sequence[Law] = tuple(LAWS),
) -> xr.Dataset:
    """The limit of infinite width of what networks of several widths do, with errors.

    Args:
        nets: of kind "ensemble" or "moments", or a list of such results of one problem with other widths in each, e.g.
            many narrow networks and a few wide ones, or samples in law (`finite_nets.sample_in_law`).
        quantities: names of what they hold, such as "test_accuracy", "prediction" (the logits), "feature_kernel"; by
            default all that has a single number at every step.
        fluctuations: of the same problem (`dmft.fluctuations`): N bias of quantities is taken as known from there.
        ensembled: add losses and accuracies of predictions averaged over networks, as `<name>_infinite`, where
            predictions were recorded.
        laws: among "1/N", "1/N + 1/N^2", "N^-p", and numbers p of laws N^-p with that p.

    Returns:
        Dataset with, of every quantity q: q_limit (...) and q_limit_se; q_limit_statistical_se, q_limit_model_se, the
        parts of that error; q_mean (width, ...) and q_mean_se, of the widths; q_bias and q_bias_se, N (E q_N - q) of
        the laws in 1/N; q_exponent and q_exponent_se, p of N^-p, nan where it is not resolved; q_weight (law, ...);
        q_chi2, q_dof, q_p_value, of the law with the largest weight; q_variance_exponent and its error, s of the
        variance over networks ~ N^s (of numbers that need not be normal); count(width), of networks, and
        diverged(width), of those that are left out.  Weights are nan of laws that cannot be tried, p values where such
        a law has the largest.  Means and limits of accuracies are within 0 and 1.

    Raises:
        UnresolvedError: fewer than three widths, or too few networks for errors.
        SchemaError, ValueError, TypeError: results of another kind or of several problems, a width twice, or all of
            whose networks diverged, quantities that they do not hold, laws that are unknown.

    Assumptions and approximations: smooth laws in the widths that are given.  What changes only beyond them no error
    knows.  Accuracies are those on the test samples at hand: the limit's, not that of other samples.  Where the
    variance over networks falls more slowly than 1/N, errors of few networks follow the power with which it does.
    Three widths try no law of three constants (1/N + 1/N^2, N^-p): the limit is the average over these, too, and its
    error, up to six times as large, holds how they differ.  Of synthetic ensembles it covers .74 to .91 where means
    have an expansion in 1/N, .68 to .76 for N^-.7, but .37 to .68 for N^-.5: take a fourth width.

    Warns: where no law describes the widths (p below .001 at most entries); which laws three widths cannot try; where
        losses of networks scatter by a variance that does not fall like 1/N, as where some of them pass an instability
        and others do not; where networks diverged: the limit is that of the others, of each width another selection;
        where an accuracy goes beyond 0 or 1 by more than its error.

    Example:
        >>> found = comparisons.extrapolate(nets, ["test_loss"])
        >>> found["test_loss_limit"].dims, found["test_loss_mean"].dims
        (('step',), ('width', 'step'))
    """
    ensembled = _check.boolean("ensembled", ensembled)
    parts = _parts(nets)
    chosen = _laws(laws)
    if fluctuations is not None:
        fluctuations = inputs.check_fluctuations(fluctuations, parts[0])
    names = _quantities(parts[0], quantities)
    for i, part in enumerate(parts):
        inputs.check_quantities(part, f"nets[{i}]", [_held_as(part, name) for name in names])
    variables: Variables = {}
    for name in names:
        at = _of_width(parts, name)
        dims = tuple(str(dim) for dim in parts[0][_held_as(parts[0], name)].dims[2:])
        slope = None
        if fluctuations is not None and f"{name}_bias" in fluctuations:
            slope = (fluctuations[f"{name}_bias"].values, fluctuations[f"{name}_bias_se"].values)
        variables |= _named(name, dims, at, chosen, slope)
    if ensembled and all(held(part, "prediction") for part in parts):
        for name in (name for name in names if name.removeprefix("test_") in OF_PREDICTIONS):
            found = _infinite(parts, name)
            if found is not None:
                variables |= _named(f"{name}_infinite", ("step",), found, chosen, None, at.width)
    coords = {"width": at.width, "law": [str(law) if isinstance(law, str) else f"N^-{law:g}" for law in chosen]}
    variables |= {"count": (("width",), at.counts), "diverged": (("width",), _diverged(parts))}
    clean = [part.drop_dims(["width", "seed", "block"], errors="ignore") for part in parts[:1]]
    doubts.warn(variables, names, coords)
    doubts.bound(variables)
    return dataset("extrapolate", variables, coords, *clean, networks=int(at.counts.sum()))


def _named(
    name: str, dims: tuple[str, ...], at: Widths, laws: list[Law], slope: Any, widths: NDArray[np.int64] | None = None
) -> Variables:
    """All that is found of one quantity; nan at those of the `widths` of which nothing is known."""
    error = np.sqrt(at.variance / at.counts.reshape(-1, *[1] * len(dims)))
    found: Averaged = averaged_laws.averaged(at.width.astype(float), at.mean, error, laws, slope)
    return {
        **pair(f"{name}_limit", dims, (found.limit, found.error)),
        f"{name}_limit_statistical_se": (dims, found.statistical),
        f"{name}_limit_model_se": (dims, found.model),
        **pair(f"{name}_mean", ("width", *dims), (_among(widths, at.width, at.mean), _among(widths, at.width, error))),
        **pair(f"{name}_bias", dims, (found.slope, found.slope_se)),
        **pair(f"{name}_exponent", dims, (found.exponent, found.exponent_se)),
        **pair(f"{name}_variance_exponent", dims, at.fall),
        f"{name}_weight": (("law", *dims), found.weights),
        f"{name}_chi2": (dims, found.chi2),
        f"{name}_dof": (dims, found.dof),
        f"{name}_p_value": (dims, found.p_value),
    }


def _among(widths: NDArray[np.int64] | None, own: NDArray[np.int64], values: Array) -> Array:
    """Values (width, ...) of some widths, at all of them."""
    if widths is None:
        return values
    found = np.full((len(widths), *values.shape[1:]), np.nan)
    found[np.searchsorted(widths, own)] = values
    return found


# ---- what is given ---------------------------------------------------------------------------------------------------


def _parts(nets: Any) -> list[xr.Dataset]:
    """Ensembles of one problem, with at least three widths in all, none of them twice."""
    given = [nets] if isinstance(nets, xr.Dataset) else list(nets) if isinstance(nets, list | tuple) else None
    if not given:
        raise TypeError(f"extrapolate expects an ensemble or a list of ensembles, got {type(nets).__name__} {nets!r}.")
    parts = [inputs.check_networks(part) for part in given]
    for i, part in enumerate(parts[1:], start=1):
        schema.require_same_problem(**{"nets[0]": parts[0], f"nets[{i}]": part})
        schema.require_same_labels(**{"nets[0]": parts[0], f"nets[{i}]": part})
    widths = [int(width) for part in parts for width in part["width"].values]
    if twice := sorted({width for width in widths if widths.count(width) > 1}):
        raise ValueError(f"width {twice[0]} is there more than once; give each width in one ensemble.")
    if len(widths) < FEWEST_WIDTHS:
        raise UnresolvedError(f"{len(widths)} width(s) do not say how results change with width; give at least three.")
    return parts


def _laws(laws: Any) -> list[Law]:
    if isinstance(laws, str):
        raise TypeError(f"laws={laws!r} is no list of laws; give laws=[{laws!r}].")
    chosen = [law if isinstance(law, str) else _check.positive("laws", law) for law in laws]
    chosen = ["1/N" if law == 1 else law for law in chosen]
    for law in chosen:
        if isinstance(law, str) and law not in LAWS:
            raise ValueError(f"laws has {law!r}; choose among {', '.join(LAWS)}, and numbers p of N^-p.")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"laws={laws!r} must name different laws, at least one.")
    return chosen


def _held_as(nets: xr.Dataset, name: str) -> str:
    return name if nets.attrs["kind"] == "ensemble" else f"{name}_mean"


def _quantities(nets: xr.Dataset, names: Sequence[str] | None) -> list[str]:
    """What to extrapolate; by default what is one number at every step."""
    there = [name for name in schema.quantities() if held(nets, name)]
    if names is None:
        if scalars := [name for name in there if nets[_held_as(nets, name)].dims[2:] == ("step",)]:
            return scalars
        raise ValueError(f"the networks hold no single numbers, but {', '.join(there)}; name quantities.")
    if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"quantities={names!r} is no list of names; there are {', '.join(there)}.")
    if not list(names):
        raise ValueError(f"quantities={names!r} names nothing; leave it out, or name some of {', '.join(there)}.")
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"the networks hold no {', '.join(missing)}, but {', '.join(there)}; name it in observables.")
    return list(dict.fromkeys(names))


def _diverged(parts: Sequence[xr.Dataset]) -> NDArray[np.int64]:
    """How many networks of every width, ascending, are left out because they diverged."""
    found = {
        int(width): int(part["diverged"].values[i].sum()) if "diverged" in part else 0
        for part in parts
        for i, width in enumerate(part["width"].values)
    }
    return np.array([found[width] for width in sorted(found)])


def _of_width(parts: Sequence[xr.Dataset], name: str) -> Widths:
    """Means and variances over the networks of every width."""
    found, each = [], []
    for part in parts:
        for i, width in enumerate(part["width"].values):
            x = samples(part, name, i)
            if not x.count:
                raise ValueError(f"all networks of width {width} diverged; leave this width out.")
            # of one network nothing is known of its scatter
            mean, se = (x.x[0], 0 * x.x[0]) if isinstance(x, Members) and x.count == 1 else x.mean()
            found.append((int(width), mean, se**2 * x.count, x.count, x.count - 1))
            each.append(x)
    return _sorted(found, spread_of_variances(each))


def spread_of_variances(each: Sequence[Sample]) -> Array | float:
    """The variance of variances over that of normal numbers, (kurtosis - 1) / 2, all widths together: losses are
    skewed.  Not below one."""
    known = [x for x in each if (x.count if isinstance(x, Members) else len(x.counts)) >= FEWEST_GROUPS]
    if not known:
        return 1.0
    found = [x.variance() for x in known]
    freedom = [x.count - 1 for x in known]
    relative = [np.divide(se, s2, out=np.zeros_like(s2), where=s2 > 0) ** 2 for s2, se in found]
    # of variances with nu degrees of freedom 2 / nu, of normal numbers
    return np.maximum(sum(r * nu**2 / 2 for r, nu in zip(relative, freedom, strict=True)) / sum(freedom), 1.0)


def _sorted(found: list[tuple[int, Array, Array, int, int]], spread: Array | float = 1.0) -> Widths:
    """From width, mean, variance of a network, number of them, degrees of freedom of that variance."""
    found.sort(key=lambda one: one[0])
    width, mean, variance, count, freedom = map(np.array, zip(*found, strict=True))
    if sum(freedom) < FEWEST:
        raise UnresolvedError(
            f"{sum(count)} networks of {len(width)} widths, too few for errors; train more, best narrow ones."
        )
    known = width.astype(float), variance, freedom
    together = averaged_laws.variances_together(*known)
    fall = averaged_laws.exponent_of_variances(*known, spread)
    return Widths(width, mean, together, count, fall)


# ---- predictions averaged over networks ------------------------------------------------------------------------------


def _infinite(parts: Sequence[xr.Dataset], name: str) -> Widths | None:
    """A loss or an accuracy of infinitely many networks of the widths that have two or more; None if these are few."""
    found, first = [], parts[0]
    problem = json.loads(first.attrs["problem"])["loss"]
    places = len(np.unique(first["position"])) if "position" in first.coords else 0
    kind = loss.of_positions(problem, places)
    prefix = "test_" if name.startswith("test_") else ""
    formula = OF_PREDICTIONS[name.removeprefix("test_")]
    here = np.flatnonzero(first["split"].values == SPLITS[prefix])
    target = np.asarray(first["target"].values, np.float64)
    target = (target if target.ndim == 2 else target[:, None])[here]

    def of(mean: Array) -> Array:
        f = mean if "output" in first.dims else mean[..., None]
        return np.asarray(formula(np, kind, f[:, here], target).mean(-1))

    for part in parts:
        for i, width in enumerate(part["width"].values):
            x = samples(part, "prediction", i)
            each, sizes = (x.x, np.ones(x.count)) if isinstance(x, Members) else (x.means, x.counts.astype(float))
            if len(each) < 2:
                continue
            value = _of_infinitely_many(of, each, sizes)
            groups = np.array_split(np.arange(len(each)), min(GROUPS, len(each)))
            if len(groups) < FEWEST_GROUPS:
                found.append((int(width), value, np.zeros_like(value), x.count, 0))
                continue
            kept = [np.setdiff1d(np.arange(len(each)), group) for group in groups]
            left_out = np.stack([_of_infinitely_many(of, each[rest], sizes[rest]) for rest in kept])
            found.append((int(width), value, error_of(left_out) ** 2 * x.count, x.count, len(groups) - 1))
    if len(found) < FEWEST_WIDTHS or sum(freedom for *_, freedom in found) < FEWEST:
        return None
    return _sorted(found)


def _of_infinitely_many(of: Callable[[Array], Array], each: Array, sizes: Array) -> Array:
    """What `of` makes of the mean of predictions (network or block, ...), without its part of order 1 / networks: that
    is smaller in all of them than in halves.  (The jackknife's differences between nearly all would be few samples.)"""
    rng, halves, shares = np.random.default_rng(0), [], []
    for _ in range(HALVINGS):
        order = rng.permutation(len(each))
        for half in np.array_split(order, 2):
            halves.append(of(np.average(each[half], axis=0, weights=sizes[half])))
            shares.append(sizes.sum() / sizes[half].sum())
    more = np.mean(shares)
    return np.asarray((more * of(np.average(each, axis=0, weights=sizes)) - np.mean(halves, axis=0)) / (more - 1))
