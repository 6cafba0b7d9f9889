"""How results change with width: laws in 1/N, the onset of deviations from the limit, distances between widths.

    width_law    q(N) = a_0 + a_1 / N [+ a_2 / N^2] at every entry: a_0 is an estimate of the limit that owes nothing to
                 the theory, a_1 of N bias; of N Var, a_0 of its limit
    onset        the first time at which a width is further from the limit than a tolerance
    pointwise    relative root-mean-square distances of predictions, over the samples of a split:
                 of one network of width N from the limit, E |f_e - f_limit|^2; of the mean over networks,
                 |E f - f_limit|^2;
                 of networks of successive widths N, N', E |f_e - f_e'|^2 = |E f - E f'|^2 + Var f + Var f'
                 each over |f_limit|^2 (successive widths: over |E f'|^2 of the wider one), all free of sampling noise.
                 Without a theory the mean over the widest networks, W, stands in for the limit, and distances are
                 fitted by powers of the width, N^s (of means from the widest: of (1/N - 1/W), which falls like 1/N)

Source: Vyas et al. 2023 for the last two.
"""

from __future__ import annotations

import difflib
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from comparisons import estimators, inputs
from comparisons.errors import UnresolvedError
from comparisons.results import Variables, dataset, pair, stacked
from comparisons.samples import FEWEST, held, jackknife, require_enough, samples
from comparisons.scaling import CLEAR, fit_power_law, fit_series
from dmft import schema
from dmft.running.host import usual_errors
from dmft.schema.sources import REQUIRED, by_kind
from dmft.specs import _check

Array = NDArray[np.float64]


@usual_errors
def width_law(ds: xr.Dataset, name: str, *, order: int | str = "auto") -> xr.Dataset:
    """Fit a_0 + a_1/N [+ a_2/N^2] to a variable at every entry, with known errors.

    (Errors of a variance grow with the variance that was found, so that its weighted fit comes out low, by about 4 over
    the number of networks relatively: little against an error, but seen in a mean over thousands of entries.)

    Args:
        ds: holds `<name>` and `<name>_se` with the dimension width: of `statistics` ("prediction_mean",
            "prediction_seed_variance", ...), of `compare` ("prediction_mean", "loss_mean", "prediction_variance", ...)
            or of `bias_variance`.
        name: the variable.
        order: 1 or 2, or "auto" (`comparisons.scaling`).

    Returns:
        Dataset with coefficient(term, ...) and coefficient_se, covariance(term, term_2, ...), chi2 and p_value (...) of
        the fit.  Where `ds` is a comparison, also limit_z(...): a_0 against the theory's limit (of N Var: against the
        predicted one) in units of both errors; and slope_z(...): a_1 against the predicted N bias.

    Raises:
        UnresolvedError: too few widths for the law, or fewer than eight networks a width; the estimate is attached.
        ValueError, TypeError: no such variable, no errors or no widths.

    Example:
        >>> comparisons.width_law(comparison, "loss_mean", order=1)["coefficient"].dims
        ('term', 'step')
    """
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"width_law expects an xarray Dataset, got {type(ds).__name__}.")
    ds = schema.restored(ds)
    known = [str(v) for v in ds.data_vars if f"{v}_se" in ds and "width" in ds[v].dims]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        raise ValueError(
            f"{name!r} is not a variable with errors and widths here; there are {', '.join(near or known) or 'none'}"
            f"{' and others' if near else ''}."
        )
    y, se = (ds[v].transpose("width", ...) for v in (name, f"{name}_se"))
    dims = tuple(map(str, y.dims[1:]))
    try:
        fit = fit_series(ds["width"].values, y.values, se.values, order=order)
    except UnresolvedError as error:
        raise UnresolvedError(f"{name}: {error}", error.estimate) from error
    variables: Variables = pair("coefficient", ("term", *dims), (fit.coefficients, fit.errors))
    variables |= {
        "covariance": (("term", "term_2", *dims), fit.covariance),
        "chi2": (dims, fit.chi2),
        "p_value": (dims, fit.p_value),
    }
    quantity, _, kind = name.rpartition("_")
    for term, key, variable in (
        (0, "limit_z", {"mean": f"{quantity}_limit", "variance": f"{quantity}_variance_limit"}.get(kind)),
        (1, "slope_z", {"mean": f"{quantity}_bias_limit"}.get(kind)),
    ):
        if variable in ds and term <= fit.order:
            difference = fit.coefficients[term] - ds[variable].values
            # what is the same in all networks is fitted to rounding
            rounding = schema.ROUNDING[ds.attrs.get("nets_dtype", "float64")] * abs(y.values).max(axis=0)
            scale = float(ds["width"].min()) ** term
            both = np.sqrt(fit.errors[term] ** 2 + ds[f"{variable}_se"].values ** 2 + (scale * rounding) ** 2)
            variables[key] = (dims, estimators.z_score(difference, both))
    terms = [f"N^-{i}" if i else "1" for i in range(fit.order + 1)]
    found = dataset(
        "width_law", variables, {"term": terms, "term_2": terms}, ds, variable=name, order=fit.order, dof=fit.dof
    )
    few = np.min(ds.attrs["seeds"] if "seeds" in ds.attrs else ds["count"].values if "count" in ds else FEWEST)
    if few < FEWEST:
        raise UnresolvedError(
            f"{name} rests on {few} networks of a width, too few for errors to weigh it by; train at least {FEWEST}.",
            found,
        )
    return found


@usual_errors
def onset(comparison: xr.Dataset, quantity: str = "loss", *, tolerance: float = 0.05, of: str = "error") -> xr.Dataset:
    """When each width leaves the limit: the first time at which its distance exceeds `tolerance`.

    Args:
        comparison: from `comparisons.compare`; or from `pointwise`, for predictions, of a limit or, without one, of the
            widest networks.
        quantity: "loss", "prediction", "feature_kernel", ...; of `pointwise` it is the prediction.
        tolerance: of the distance, relative to the limit: of kernels and of `pointwise` at the same step, of others to
            the largest of all steps (losses and predictions may vanish).
        of: "error" (bias of narrower width: the mean over networks) or "distance" (one network).

    Returns:
        Dataset with onset(width[, layer]), a time (of the coordinate `time`), on a line between recorded steps; nan
        where the distance never exceeds the tolerance by two standard errors; onset_early and onset_late, the times of
        the distance plus and minus its standard error (late: nan if that never exceeds it).  Of `pointwise` they are
        (width, split), or (narrow, split).

    Raises:
        SchemaError, ValueError: not a comparison; a quantity that it does not hold.

    Example:
        >>> comparisons.onset(comparison, tolerance=0.05).sizes["width"]
        4
    """
    if of not in ("error", "distance"):
        raise ValueError(f"of={of!r} is unknown; choose 'error' (of the mean over networks) or 'distance' (of one).")
    tolerance = _check.positive("tolerance", tolerance)
    if isinstance(comparison, xr.Dataset) and comparison.attrs.get("analysis") == "pointwise":
        quantity, (distance, se) = "prediction", _pointwise_distance(comparison, of)
    else:
        comparison = schema.validate(comparison, "comparison")
        distance, se = _distance_of(comparison, quantity, of)
    time = comparison["time"].values
    shape, dims = distance.shape[:-1], distance.dims[:-1]
    found = {key: np.full(shape, np.nan) for key in ("onset", "onset_early", "onset_late")}
    for index in np.ndindex(shape):
        d, e = distance.values[index], se.values[index]
        if (d - CLEAR * e > tolerance).any():
            for key, curve in (("onset", d), ("onset_early", d + e), ("onset_late", d - e)):
                found[key][index] = estimators.first_above(time, curve, tolerance)
    variables: Variables = {key: (tuple(map(str, dims)), value) for key, value in found.items()}
    return dataset("onset", variables, {}, comparison, quantity=quantity, tolerance=tolerance, of=of)


def _distance_of(comparison: xr.Dataset, quantity: str, of: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Relative distances (..., step) and their errors."""
    name = f"{quantity}_{of}"
    if name not in comparison:
        there = [q for q in schema.quantities() if f"{q}_{of}" in comparison]
        raise ValueError(f"quantity={quantity!r} is not in this comparison, which holds {', '.join(there)}.")
    distance, se = (comparison[v].transpose(..., "step") for v in (name, f"{name}_se"))
    if schema.quantities()[quantity].kernel:
        return distance, se
    limit = comparison[f"{quantity}_limit"]
    inner = [dim for dim in limit.dims if dim != "step"]
    scale = float(((limit**2).mean(inner) ** 0.5).max())
    return distance / scale, se / scale


def _pointwise_distance(found: xr.Dataset, of: str) -> tuple[xr.DataArray, xr.DataArray]:
    """The same of `pointwise`; 0 where predictions vanish."""
    name = of if of in found else {"error": "widest_error", "distance": "widest"}[of]
    distance, se = (found[v].transpose(..., "step").fillna(0.0) for v in (name, f"{name}_se"))
    return distance, se


@usual_errors
@by_kind(theory="theory", nets="networks")
def pointwise(theory: xr.Dataset | None = None, nets: xr.Dataset = REQUIRED) -> xr.Dataset:
    """Distances of predictions from the limit and between successive widths, relative, for training and test samples.

    Args:
        theory: the limit of the same problem; results may be given in any order.
        nets: of kind "ensemble" or "moments", with predictions; at least eight networks, or blocks, a width.

    Returns:
        Dataset over the splits "train" and "test", as far as there are any, each with `_se`: distance, error
        (width, split, step), of one network and of the mean over networks from the limit, with the theory; successive,
        successive_error (wider, split, step), of one network of a width from one of the next wider width, and of their
        means, with the labels `narrower` beside `wider`.  nan where predictions vanish (a centered network at t = 0).
        Without a theory also widest, widest_error (narrow, split, step), of one network of a width from the mean over
        the widest, and of their means; and of all four the fitted exponents `<name>_exponent` (split, step), nan where
        distances do not resolve them.

    Raises:
        SchemaError, ValueError: as of `comparisons.compare`; neither a theory nor a second width.

    Example:
        >>> comparisons.pointwise(nets, theory).sizes["width"]
        4
        >>> comparisons.pointwise(nets)["widest"].sizes["narrow"]
        3
    """
    nets = inputs.check_networks(nets)
    if not held(nets, "prediction"):
        raise ValueError("the networks have no predictions; record them, with observables=['prediction', ...].")
    counts = require_enough(nets)
    if theory is None and nets.sizes["width"] < 2:
        raise ValueError(
            "one width without a theory has nothing to be compared with; give the theory, or train more widths."
        )
    if theory is not None:
        theory = inputs.check_theory(theory, nets, ["prediction"])
    order = np.argsort(nets["width"].values)
    x = [samples(nets, "prediction", int(i)) for i in order]
    names = [s for s in ("train", "test") if (nets["split"] == s).any()]
    parts = [np.flatnonzero(nets["split"].values == s) for s in names]
    inner = tuple(range(1, len(nets["prediction" if "prediction" in nets else "prediction_mean"].dims) - 2))

    def over(values: Array) -> Array:
        """(split, step): mean over samples, sum over outputs, of (step, sample[, output])."""
        return np.stack([values[:, part].sum(axis=inner) / len(part) for part in parts])

    variables: Variables = {}
    if theory is not None:
        limit, limit_se = theory["prediction"].values, theory["prediction_se"].values
        square = over(limit**2 - limit_se**2)
        rows: dict[str, list[Any]] = {"distance": [], "error": []}
        for one in x:
            single = jackknife(lambda m, v, n: over((m - limit) ** 2 + v * (1 - 1 / n) - limit_se**2), one)
            common = jackknife(lambda m, v, n: over((m - limit) ** 2 - v / n - limit_se**2), one)
            from_limit = 2 * over(abs(one.mean()[0] - limit) * limit_se)
            for name, (value, se) in (("distance", single), ("error", common)):
                rows[name].append(_ratio(value, np.hypot(se, from_limit), square))
        for name, each in rows.items():
            variables |= pair(name, ("width", "split", "step"), stacked(each))
    sorted_widths = nets["width"].values[order]
    coords: dict[str, Any] = {"split": names, "width": sorted_widths}
    if len(x) > 1:
        for name, own in (("successive", 1.0), ("successive_error", 0.0)):
            between = [_between(a, b, over, (own, own)) for a, b in pairwise(x)]
            variables |= pair(name, ("wider", "split", "step"), stacked(between))
        coords |= {"wider": sorted_widths[1:], "narrower": ("wider", sorted_widths[:-1])}
    if theory is None:
        for name, own in (("widest", 1.0), ("widest_error", 0.0)):
            between = [_between(one, x[-1], over, (own, 0.0)) for one in x[:-1]]
            variables |= pair(name, ("narrow", "split", "step"), stacked(between))
        coords["narrow"] = sorted_widths[:-1]
        variables |= _exponents(variables, sorted_widths)
    coords = {k: v for k, v in coords.items() if k != "width" or theory is not None}
    bare = nets.drop_vars([c for c in ("split", "width") if c in nets.coords])
    of_theory = {} if theory is None else schema.theory_attrs(theory)
    return dataset("pointwise", variables, coords, bare, seeds=[counts[i] for i in order], **of_theory)


def _exponents(distances: Variables, widths: NDArray[Any]) -> Variables:
    """s of distances ~ N^s, (split, step), of those from the next wider width and from the widest."""
    found: Variables = {}
    narrow = widths[:-1].astype(np.float64)
    for name in ("successive", "successive_error", "widest", "widest_error"):
        # a/N - a/W of two means is a times this over one
        at = 1 / (1 / narrow - 1 / widths[-1]) if name == "widest_error" else narrow
        value, se = (distances[f"{name}{end}"][1] for end in ("", "_se"))
        fits = np.full((2, *value.shape[1:]), np.nan)
        for index in np.ndindex(value.shape[1:]):
            y, error = value[:, *index], se[:, *index]
            if len(at) > 1 and np.isfinite(y).all() and (error > 0).all():
                fits[:, *index] = fit_power_law(at, y, error)[:2]
        found |= pair(f"{name}_exponent", ("split", "step"), (fits[0], fits[1]))
    return found


def _between(a: Any, b: Any, over: Any, own: tuple[float, float]) -> tuple[Array, Array]:
    """Relative distance of two independent samples; `own` weighs the variance of each."""
    (mean_a, _), (mean_b, _) = a.mean(), b.mean()
    (var_a, _), (var_b, _) = a.variance(), b.variance()

    def scale(mean: Array, variance: Array, n: float) -> Array:
        square = over(mean**2 - variance / n)
        return np.where(square > 0, square, np.nan)

    def of(side_a: tuple[Array, Array, float], side_b: tuple[Array, Array, float]) -> Array:
        (m, v, n), (m_b, v_b, n_b) = side_a, side_b
        return np.asarray(over((m - m_b) ** 2 + v * (own[0] - 1 / n) + v_b * (own[1] - 1 / n_b)) / scale(*side_b))

    all_a, all_b = (mean_a, var_a, a.count), (mean_b, var_b, b.count)
    # the jackknife over one side, with the other at hand: errors of independent samples add in squares
    _, from_a = jackknife(lambda m, v, n: of((m, v, n), all_b), a)
    _, from_b = jackknife(lambda m, v, n: of(all_a, (m, v, n)), b)
    unit = scale(*all_b)
    return _ratio(of(all_a, all_b) * unit, np.hypot(from_a, from_b) * unit, unit)


def _ratio(square: Array, se: Array, scale: Array) -> tuple[Array, Array]:
    """The root of square / scale with its error; nan where there is no scale."""
    scale = np.where(scale > 0, scale, np.nan)
    value, error = estimators.root(np.nan_to_num(square / scale), np.nan_to_num(se / scale))
    return np.where(np.isnan(scale), np.nan, value), np.where(np.isnan(scale), np.nan, error)
