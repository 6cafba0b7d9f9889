"""Predictors beside each other: their test losses over draws of data, against richness and the number of samples.

Every result is of one draw of training and test samples.  Over draws of equal sizes

    test_loss         mean, of |f - y|^2 / 2 over test samples
    test_error        mean, of the share of test samples with f y <= 0, where targets are -1 and +1
    <name>_excess     mean of differences from a reference on the same draw, whose errors are smaller than those of
                      either mean: a predictor is better where it is below zero by some standard errors

Standard errors are those over draws.  What is lazy does not depend on richness, and stands at all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema

Array = NDArray[np.float64]
QUANTITIES = ("test_loss", "test_error")


class _Case(NamedTuple):
    """One result: gamma0 (nan for lazy ones), number of training samples, digest of the data; its quantities."""

    gamma0: float
    samples: int
    data: str
    values: tuple[float, float]


def predictors(results: Mapping[str, Iterable[xr.Dataset]], *, reference: str | None = None) -> xr.Dataset:
    """Test losses of predictors, over draws of data.

    Args:
        results: by the name of the predictor, its results: of `dmft.adaptive_kernel`, `dmft.lazy_kernel`, `dmft.solve`,
            `finite_nets.train_ensemble` (last step, mean over its networks) or samplers of posteriors, with single
            outputs and test samples; problems may differ in gamma0, number of samples and draws of data.
        reference: the predictor that others are compared with; by default the first.

    Returns:
        Dataset: test_loss, test_error and their excess over the reference (predictor, gamma0, samples), standard
        errors `_se`, nan where there is a single draw; draws (predictor, gamma0, samples), how many.

    Raises:
        ValueError: no results; results without test samples, or with several outputs; two of one predictor, richness
            and draw; an unknown reference.

    Example:
        >>> found = comparisons.predictors({"limit": [theory], "networks": [nets.isel(width=[-1])]})
        >>> found["test_loss"].dims
        ('predictor', 'gamma0', 'samples')
    """
    cases = {name: [_case(name, result) for result in each] for name, each in results.items()}
    if not cases or not all(cases.values()):
        raise ValueError(f"results of predictors {[name for name, each in cases.items() if not each]} are missing.")
    names = list(cases)
    reference = names[0] if reference is None else reference
    if reference not in cases:
        raise ValueError(f"reference={reference!r} is none of {', '.join(names)}.")
    every = [case for each in cases.values() for case in each]
    gammas = sorted({case.gamma0 for case in every if not np.isnan(case.gamma0)}) or [np.nan]
    counts = sorted({case.samples for case in every})
    draws = [list(dict.fromkeys(case.data for case in every if case.samples == count)) for count in counts]
    values = np.full((len(QUANTITIES), len(names), len(gammas), len(counts), max(map(len, draws))), np.nan)
    for i, name in enumerate(names):
        for case in cases[name]:
            k = counts.index(case.samples)
            at = gammas.index(case.gamma0) if case.gamma0 in gammas else slice(None)
            place = values[:, i, at, k, draws[k].index(case.data)]
            if np.isfinite(place).any():
                raise ValueError(f"two results of {name!r} are of gamma0={case.gamma0:g} and the same data; give one.")
            place[...] = np.reshape(case.values, (-1, *[1] * (place.ndim - 1)))
    dims = ("predictor", "gamma0", "samples")
    variables: dict[str, Any] = {"draws": (dims, np.isfinite(values[0]).sum(-1))}
    for quantity, value in zip(QUANTITIES, values, strict=True):
        excess = value - value[names.index(reference)]
        for label, each in ((quantity, value), (f"{quantity}_excess", excess)):
            mean, error = _mean(each)
            variables |= {label: (dims, mean), f"{label}_se": (dims, error)}
    coords = {"predictor": names, "gamma0": gammas, "samples": counts}
    return xr.Dataset(variables, coords=coords, attrs={"analysis": "predictors", "reference": reference})


def _mean(values: Array) -> tuple[Array, Array]:
    """Over the last axis, of what is there: nan where nothing is; its standard error, nan for one."""
    there = np.isfinite(values)
    count = there.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, values, 0.0).sum(-1) / count
        square = np.where(there, (values - mean[..., None]) ** 2, 0.0).sum(-1)
        return mean, np.sqrt(square / (count * (count - 1.0)))


def _case(name: str, result: xr.Dataset) -> _Case:
    if not isinstance(result, xr.Dataset) or "prediction" not in result:
        raise ValueError(f"a result of {name!r} has no predictions; give Datasets of dmft or finite_nets.")
    result = schema.restored(result)
    test = result["split"].values == "test"
    if "output" in result["prediction"].dims or not test.any():
        raise ValueError(f"a result of {name!r} has several outputs or no test samples; give one output, and some.")
    last = result["prediction"].isel(step=-1) if "step" in result.dims else result["prediction"]
    f, y = last.transpose(..., "sample").values[..., test], result["target"].values[test]
    if not np.isfinite(f).all():
        raise ValueError(f"predictions of {name!r} are not finite; leave out what diverged.")
    if "width" in last.dims and last.sizes["width"] > 1:
        raise ValueError(f"a result of {name!r} has {last.sizes['width']} widths; give one, result.sel(width=[N]).")
    described = json.loads(result.attrs["problem"])
    lazy = str(result.attrs.get("regime", "")).startswith("LAZY")
    values = float(np.mean((f - y) ** 2) / 2), float(np.mean(f * y <= 0)) if set(y) <= {-1.0, 1.0} else np.nan
    return _Case(
        np.nan if lazy else float(described["network"]["gamma0"]),
        int((~test).sum()),
        described["task"]["sha256"],
        values,
    )
