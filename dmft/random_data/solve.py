"""From a problem of random data to the Dataset of its limit: what its theory finds (`dmft.random_data.theory`), in the
schema.

    loss(step)        |v1|^2 / (2 P), of one pass that of the batch to come, of the population (L + sigma^2)/2
    test_loss(step)   (L + sigma^2)/2, L = error_correlation(t, t)             ell = (f - y)^2 / 2, as everywhere
    order parameters and responses (step, step_2) and, of layers, (layer, step, step_2): `named`, without the 1/2; of
    flows correlations alone, on request (two_time)
    test_bias, variance_of_features, variance_of_data, variance_of_both(step), of RandomFeatures: parts of the excess
    test loss, and ensemble_test_loss of so many draws averaged, with the noise of the labels

Nothing is sampled: standard errors are 0.  Errors of circles and contours: `dmft.random_data.random_features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dmft import schema
from dmft.random_data.theory import CORRELATIONS, Theory
from dmft.specs import Problem, _check
from dmft.specs.random_data import RandomData

Array = NDArray[np.float64]


def solve(
    problem: Problem, *, steps: NDArray[np.int64], two_time: bool, ensembles: tuple[int, int] | None
) -> xr.Dataset:
    """The limit, at recorded steps.

    Args:
        problem: a model of random data with its data and training.
        steps: the recorded ones.
        two_time: order parameters of a flow, too.
        ensembles: E_A draws of features times E_D of data that are averaged, of RandomFeatures.

    Returns:
        Dataset of kind "limit" (`dmft.schema`).
    """
    model: Any = problem.network
    theory: Theory = model.reading("theory")(problem)
    found = theory.flow(steps, two_time=two_time) if theory.flows else theory.descent(steps)
    noise = cast("RandomData", problem.task).noise
    values = {"loss": found.train / 2, "test_loss": (found.test + noise) / 2}
    values |= {named(name): value for name, value in found.between.items()}
    if ensembles is not None:
        values |= _split(theory, steps, ensembles)
    attrs: dict[str, Any] = {"producer": "dmft.solve", "method": found.method}
    attrs |= {"features_averaged": ensembles[0], "data_averaged": ensembles[1]} if ensembles else {}
    return schema.exact(problem, values, steps=steps, attrs=attrs)


def named(order_parameter: str) -> str:
    """The variable of results: error_correlation of "error"; responses have their names."""
    return f"{order_parameter}_correlation" if order_parameter in CORRELATIONS else order_parameter


def _split(theory: Theory, steps: NDArray[np.int64], ensembles: tuple[int, int]) -> dict[str, Array]:
    """Bias, variances and the loss of an ensemble, by variable."""
    if not isinstance(ensembles, Sequence) or len(ensembles) != 2:
        raise TypeError(f"ensembles={ensembles!r} is no pair; give (draws of features, draws of data), e.g. (4, 1).")
    E_A, E_D = (_check.integer(f"ensembles[{i}]", each, minimum=1) for i, each in enumerate(ensembles))
    split = theory.split(steps)
    return {
        "test_bias": split.bias / 2,
        "variance_of_features": split.of_features / 2,
        "variance_of_data": split.of_data / 2,
        "variance_of_both": split.of_both / 2,
        "ensemble_test_loss": (split.ensemble(E_A, E_D) + theory.data.noise) / 2,
    }
