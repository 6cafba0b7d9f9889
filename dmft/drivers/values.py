"""The variables of the schema, as one run estimates them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dmft import schema
from dmft.drivers.repetitions import Trained
from dmft.drivers.run import Run
from dmft.engine import loop
from dmft.running.moments import Arrays

LOST = "lost"  # beside the observables


def values_of(run: Run, trained: Trained, observables: tuple[str, ...]) -> Arrays:
    """The variables of the schema, as one run estimates them."""
    # on the host: what follows compiles nothing
    history = trained.history._replace(values=jax.tree.map(np.asarray, trained.history.values))
    state = trained.network if history.fields else trained.state
    recorded = loop.recorded(state, history, run.rule, run.form)
    unwanted = {one.name for one in run.observables} - {*observables}
    values: dict[str, Any] = {name: value for name, value in recorded.items() if name not in unwanted}
    if history.vitals.lost is not None:
        values[LOST] = np.asarray(history.vitals.lost)
    values |= _of_predictions(run, np.asarray(history.vitals.prediction)[run.steps], observables)
    if trained.eigenvalues is not None:
        found = dict(zip(run.curvature, np.asarray(trained.eigenvalues), strict=True))
        values |= schema.of_eigenvalues(found, observables)
    return {name: np.asarray(values[name], np.float64) for name in (*schema.quantities(), LOST) if name in values}


def _of_predictions(run: Run, prediction: Any, observables: tuple[str, ...]) -> Arrays:
    """Prediction, losses and accuracies of the recorded steps, as far as they are asked for."""
    prediction = np.asarray(prediction, np.float64)
    values = {"prediction": prediction} if "prediction" in observables else {}
    return values | schema.of_predictions(run.problem, prediction, observables)
