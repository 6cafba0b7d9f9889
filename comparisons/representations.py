"""`representations`: how like the limit's kernels those of networks are, by layer and step.

Of every network, and of the mean kernel over networks (what an infinite ensemble represents), `comparisons.kernels`:

    alignment, cka, unbiased_cka      1 for kernels that are equal but for a factor (CKA: and a constant)
    distance                          relative Frobenius distance, 0 for equal kernels
    target_alignment                  alignment of K with y y^T, training samples: how much of the task is represented

Without a theory the mean kernel over the widest networks stands in for the limit, and the narrower ones are compared.

Statistics of the mean kernel are free of their bias of order 1 / (number of networks) (jackknife).  Errors are those of
the networks; those of the limit enter the distance of the mean and its own alignment with the targets, and are second
order in similarities near one.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from comparisons import estimators, inputs, kernels
from comparisons.results import Variables, dataset, pair, stacked
from comparisons.samples import Members, Sample, held, mean_of, pseudo_values, require_enough, samples
from dmft import schema
from dmft.running.host import usual_errors
from dmft.schema.sources import REQUIRED, by_kind

Array = NDArray[np.float64]


@usual_errors
@by_kind(theory="theory", nets="networks")
def representations(
    theory: xr.Dataset | None = None, nets: xr.Dataset = REQUIRED, quantity: str = "feature_kernel"
) -> xr.Dataset:
    """Similarity of networks' kernels to the limit's, for every width, layer and step.

    Args:
        theory: the limit of the same problem; it and the networks may be given in any order.  Without one the widest
            networks stand in for it.
        nets: of kind "ensemble", at least eight networks a width; of kind "moments", for statistics of the mean kernel
            alone.
        quantity: "feature_kernel", "gradient_kernel", "ntk" (which has no layers), or another kernel that was recorded;
            for several outputs an event is a sample, with an output where the kernel has those.

    Returns:
        Dataset with, for m = alignment, cka, unbiased_cka (of four samples or more), distance, target_alignment, each
        with `_se`: m(width[, layer], step), mean over networks, and m_of_mean, of the mean kernel; of the last also
        target_alignment_limit([layer, ]step).  nan where a kernel vanishes.

    Raises:
        SchemaError: inputs of another form.
        ValueError: an unknown quantity, or one that is not there; different problems, steps or samples; fewer than
            eight networks of a width; neither a theory nor a second width.

    Source: Cortes et al. 2012, Kornblith et al. 2019 (CKA); Song et al. 2012 (unbiased); Vyas et al. 2023 (across
    widths).

    Example:
        >>> comparisons.representations(nets, theory).sizes["layer"]
        1
        >>> comparisons.representations(nets)["cka"].sizes["width"]
        3
    """
    if quantity not in schema.kernels():
        raise ValueError(f"quantity={quantity!r} is not a kernel; choose one of {', '.join(schema.kernels())}.")
    nets = inputs.check_networks(nets)
    if not held(nets, quantity):
        raise ValueError(f"the networks have no {quantity}; record it, with observables=['{quantity}', ...].")
    counts = require_enough(nets)
    if theory is None:
        nets, counts, reference = _widest(nets, counts, quantity)
    else:
        reference = inputs.check_theory(theory, nets, [quantity])
    limit, limit_se = (kernels.by_event(reference[f"{quantity}{end}"]) for end in ("", "_se"))
    dims = ("layer", "step") if "layer" in reference[quantity].dims else ("step",)
    measures = {"alignment": kernels.alignment, "cka": kernels.centred_alignment, "distance": kernels.distance}
    if limit.shape[-1] >= kernels.FEWEST_UNBIASED:
        measures["unbiased_cka"] = kernels.unbiased_centred_alignment
    of_kernel = {name: partial(_against, measure, limit) for name, measure in measures.items()}
    train, y = kernels.events_of(reference, "train")
    # events of feature kernels are samples, which for several outputs have no target of their own
    if len(train) and limit.shape[-1] == reference["target"].size:
        of_kernel["target_alignment"] = partial(_to_targets, train, y)

    variables: Variables = {}
    x = [samples(nets, quantity, i).reshaped(limit.shape) for i in range(len(counts))]
    with np.errstate(divide="ignore", invalid="ignore"):  # of kernels that vanish
        for name, function in of_kernel.items():
            if all(isinstance(one, Members) for one in x):
                each = [Members(function(one.x)).mean() for one in x if isinstance(one, Members)]
                variables |= pair(name, ("width", *dims), stacked(each))
            if name == "distance":
                of_mean = [_distance_of_mean(one, limit, limit_se) for one in x]
            else:
                of_mean = [mean_of(pseudo_values(lambda m, _v, _n, f=function: f(m), one)) for one in x]  # type: ignore[misc]
            variables |= pair(f"{name}_of_mean", ("width", *dims), stacked(of_mean))
        if "target_alignment" in of_kernel:
            function = of_kernel["target_alignment"]
            error = kernels.noise_of(function, limit, limit_se)
            variables |= pair("target_alignment_limit", dims, (function(limit), error))
    sources, of = ([nets], {"reference": "widest"}) if theory is None else ([nets, reference], {})
    return dataset("representations", variables, {}, *sources, seeds=counts, quantity=quantity, **of)


def _widest(nets: xr.Dataset, counts: list[int], quantity: str) -> tuple[xr.Dataset, list[int], xr.Dataset]:
    """The narrower widths with their numbers of networks; and the mean over the widest, in the place of a limit."""
    if nets.sizes["width"] < 2:
        raise ValueError(
            "one width without a theory has nothing to be compared with; give the theory, or train more widths."
        )
    widest = int(np.argmax(nets["width"].values))
    narrower = [i for i in range(len(counts)) if i != widest]
    one = nets.isel(width=widest)
    name = quantity if quantity in nets else f"{quantity}_mean"
    like = one[name].isel({dim: 0 for dim in ("seed", "block") if dim in one[name].dims})
    mean, se = samples(nets, quantity, widest).mean()
    found = {quantity: like.copy(data=mean), f"{quantity}_se": like.copy(data=se)}
    reference = xr.Dataset(found).assign_coords({name: one[name] for name in ("split", "target")})
    return nets.isel(width=narrower), [counts[i] for i in narrower], reference


def _against(measure: kernels.Measure, limit: Array, K: Array) -> Array:
    return measure(K, limit)


def _distance_of_mean(x: Sample, limit: Array, limit_se: Array) -> tuple[Array, Array]:
    """The root of an unbiased square, as `comparisons.compare` has it: its noise is of order 1 / sqrt(networks), of
    which the jackknife removes half."""
    square, se = estimators.squared_bias(x, limit, limit_se, kernels.EVENTS)
    norm = (limit**2).sum(kernels.EVENTS)
    return estimators.root(square / norm, se / norm)


def _to_targets(index: NDArray[np.intp], y: Array, K: Array) -> Array:
    return kernels.alignment(K[..., index[:, None], index], np.outer(y, y))
