"""From a problem of random data to the Dataset of its limit: which theory, and its numbers in the schema.

    RandomFeatures    full batch or population, constant rate    frequencies       gradient flow    contours, any time
                      schedules, batches, weight decay           marching
    ProjectedLinear   marching                                   gradient flow (population, N = infinity)   closed
    DeepLinear        marching

    loss(step)        |v1|^2 / (2 P), of one pass that of the batch to come, of the population (L + sigma^2)/2
    test_loss(step)   (L + sigma^2)/2, L = error_correlation(t, t)             ell = (f - y)^2 / 2, as everywhere
    order parameters and responses (step, step_2) and, of layers, (layer, step, step_2): `ORDER`, without the 1/2; of
    flows of random features on request (two_time)
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
from dmft.random_data import deep_linear, projected, random_features
from dmft.random_data.ensembles import bias_variance
from dmft.random_data.sgd import require_stable_sgd
from dmft.specs import GradientDescent, GradientFlow, Problem, _check
from dmft.specs.random_data import DeepLinear, ProjectedLinear, RandomData, RandomFeatures

Array = NDArray[np.float64]
ORDER = {  # variables of results, by the fields of what the theories return
    "error": "error_correlation",
    "residual": "residual_correlation",
    "feature": "feature_correlation",
    "readout": "readout_correlation",
    "gradient": "gradient_correlation",
    "forward": "forward_correlation",
    "backward": "backward_correlation",
    "data_response": "data_response",
    "feature_response": "feature_response",
    "forward_response": "forward_response",
    "backward_response": "backward_response",
}
FREQUENCIES, MARCHING, FLOW, CLOSED = (
    "generating functions",
    "causal marching, exact",
    "inverse Laplace transforms",
    "closed flow, implicit Euler",
)


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
    model, data = problem.network, cast("RandomData", problem.task)
    flow = isinstance(problem.training, GradientFlow)
    if isinstance(model, RandomFeatures):
        found, method = _flow(problem, model, data, steps, two_time) if flow else _features(problem, model, data, steps)
    elif isinstance(model, ProjectedLinear):
        found, method = (_rich_flow if flow else _projected)(problem, model, data, steps)
    else:
        found, method = _deep(problem, cast("DeepLinear", model), data, steps)
    values = {"loss": found.pop("train") / 2, "test_loss": (found.pop("test") + data.noise) / 2, **found}
    if ensembles is not None:
        values |= _split(problem, data, steps, ensembles)
    zeros = {f"{name}_se": np.broadcast_to(np.zeros(()), value.shape) for name, value in values.items()}
    attrs = {"producer": "dmft.solve", "method": method, "dtype": "float64", "device": "cpu", "seed": 0}
    attrs |= {"features_averaged": ensembles[0], "data_averaged": ensembles[1]} if ensembles else {}
    return schema.build("limit", problem, values | zeros, steps=steps, attrs=attrs)


def _at(found: Any, steps: NDArray[np.int64]) -> dict[str, Array]:
    """Losses and order parameters at the recorded steps, by variable."""
    values = {"train": found.train[steps], "test": found.test[steps]}
    return values | {
        name: getattr(found, field)[..., steps[:, None], steps]
        for field, name in ORDER.items()
        if hasattr(found, field)
    }


def _sizes(model: RandomFeatures | ProjectedLinear, data: RandomData) -> dict[str, Any]:
    """What theories of features are given beside the spectrum."""
    return {"features": model.features, "samples": data.samples, "noise": data.noise}


def _constant(problem: Problem) -> bool:
    """Whether the optimiser is a heavy ball of one rate."""
    training = problem.training
    if not isinstance(training, GradientDescent) or training.decays:
        return False
    return isinstance(training.learning_rate, float)


def _features(
    problem: Problem, model: RandomFeatures, data: RandomData, steps: NDArray[np.int64]
) -> tuple[dict[str, Array], str]:
    training, last = cast("Any", problem.training), int(steps[-1])
    if data.batch is None and last and _constant(problem):
        descent = random_features.gradient_descent(
            data.spectrum,
            steps=last,
            learning_rate=training.learning_rate,
            momentum=training.momentum,
            **_sizes(model, data),
        )
        return _at(descent, steps), FREQUENCIES
    if data.batch is not None and _constant(problem) and not training.momentum:
        require_stable_sgd(data.spectrum, training.learning_rate, data.batch, model.features, data.samples)
    return _projected(problem, model, data, steps)


def _projected(
    problem: Problem, model: RandomFeatures | ProjectedLinear, data: RandomData, steps: NDArray[np.int64]
) -> tuple[dict[str, Array], str]:
    richness = model.richness if isinstance(model, ProjectedLinear) else 0.0
    found = projected.march(data.spectrum, problem.training, batch=data.batch, richness=richness, **_sizes(model, data))
    return _at(found, steps), MARCHING


def _deep(
    problem: Problem, model: DeepLinear, data: RandomData, steps: NDArray[np.int64]
) -> tuple[dict[str, Array], str]:
    found = deep_linear.march_deep(
        data.spectrum,
        problem.training,
        depth=model.depth,
        ratio=model.ratio,
        gamma0=model.gamma0,
        branch=model.branch,
        samples=data.samples,
        batch=data.batch,
        noise=data.noise,
    )
    return _at(found, steps), MARCHING


def _flow(
    problem: Problem, model: RandomFeatures, data: RandomData, steps: NDArray[np.int64], two_time: bool
) -> tuple[dict[str, Array], str]:
    times, sizes = problem.training.times[steps], _sizes(model, data)
    found = random_features.gradient_flow(data.spectrum, times, **sizes)
    values = {"train": found.train, "test": found.test}
    if two_time:
        between = random_features.flow_between(data.spectrum, times, **sizes)
        values |= {ORDER[name]: value for name, value in between.items()}
    return values, FLOW


def _rich_flow(
    problem: Problem, model: ProjectedLinear, data: RandomData, steps: NDArray[np.int64]
) -> tuple[dict[str, Array], str]:
    times = problem.training.times[steps]
    found = projected.rich_flow(data.spectrum, times, richness=model.richness, noise=data.noise, resolution=400.0)
    return {"train": found.train, "test": found.test}, CLOSED


def _split(
    problem: Problem, data: RandomData, steps: NDArray[np.int64], ensembles: tuple[int, int]
) -> dict[str, Array]:
    """Bias, variances and the loss of an ensemble, by variable."""
    model, training = problem.network, cast("Any", problem.training)
    if not isinstance(model, RandomFeatures) or data.batch is not None:
        raise ValueError(
            f"ensembles={ensembles} are of RandomFeatures without a batch; {type(model).__name__} with batch="
            f"{data.batch} has no split into bias and variances here."
        )
    if not isinstance(ensembles, Sequence) or len(ensembles) != 2:
        raise TypeError(f"ensembles={ensembles!r} is no pair; give (draws of features, draws of data), e.g. (4, 1).")
    E_A, E_D = (_check.integer(f"ensembles[{i}]", each, minimum=1) for i, each in enumerate(ensembles))
    course: dict[str, Any]
    if isinstance(training, GradientFlow):
        course, at = {"times": training.times[steps]}, np.arange(len(steps))
    elif _constant(problem):
        last = max(int(steps[-1]), 1)
        course, at = {"steps": last, "learning_rate": training.learning_rate, "momentum": training.momentum}, steps
    else:
        raise ValueError("ensembles are there for one learning rate without weight decay, and for flows.")
    split = bias_variance(data.spectrum, **course, **_sizes(model, data))
    return {
        "test_bias": split.bias[at] / 2,
        "variance_of_features": split.of_features[at] / 2,
        "variance_of_data": split.of_data[at] / 2,
        "variance_of_both": split.of_both[at] / 2,
        "ensemble_test_loss": (split.ensemble(E_A, E_D)[at] + data.noise) / 2,
    }
