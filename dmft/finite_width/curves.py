"""Loss of the limit, its N bias and its N covariance along a grid of values, with the same normals at every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.machine import precision
from dmft.drivers.repetitions import Trained, repetitions
from dmft.engine.normals import random_key
from dmft.errors import DivergenceError
from dmft.finite_width.fluctuations import prepared
from dmft.finite_width.influence import Influence
from dmft.finite_width.scalars import Scalars
from dmft.running import effort
from dmft.running.estimates import Estimates
from dmft.running.progress import progress_bar
from dmft.specs import Problem, vary

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Of every scramble: the loss of the limit and its N bias (scramble, value), N covariance (scramble, value,
    value_2); the most directions that matrices met."""

    limit: Array
    bias: Array
    covariance: Array
    directions: int

    @classmethod
    def mean(cls, several: Sequence[Curves]) -> Curves:
        """Of problems whose scrambles are the same."""
        each = ([getattr(one, name) for one in several] for name in ("limit", "bias", "covariance"))
        limit, bias, covariance = (np.mean(part, axis=0) for part in each)
        return cls(limit, bias, covariance, max(one.directions for one in several))


def curves_along(
    problem: Problem, over: str, at: Array, of: str, settings: Mapping[str, Any]
) -> tuple[Curves, Influence]:
    """The curves of one problem over the values `at` of a field, by `dmft.fluctuations` with these settings; and what
    was asked of a value."""
    each = [prepared(problem=one, **settings) for one in vary(problem, **{over: at.tolist()})]
    influences = [one["influence"] for one in each]
    seed, scrambles, progress = settings["seed"], each[0]["scrambles"], settings["progress"]
    first = influences[0].run
    limit, done = [], Estimates()
    with precision(first.dtype, first.device), effort.for_work(len(at) * influences[0].work(scrambles)):
        total = len(at) * scrambles * (first.last + 1)
        with progress_bar(total, f"limit over {over}", "step", progress) as bar:
            for value, influence in zip(at, influences, strict=True):
                # in the limit the output at initialisation vanishes; kinks are those of the problem
                centered = influence.run.problem.training.observe == "all"
                run = replace(influence.run, centered=centered, smoothed=False)
                found = []
                try:
                    # with the room that sufficed for the values before, on which the normals depend
                    known = Estimates(capacity=done.capacity)
                    for trained in repetitions(
                        run, seed, scrambles, bar, memory_limit=influence.memory_limit, done=known
                    ):
                        prediction = np.asarray(trained.history.vitals.prediction, np.float64)[run.steps]
                        found.append(schema.of_predictions(run.problem, prediction)[of][-1])
                        done.add({}, trained.capacity, trained.directions)
                        del trained
                except DivergenceError as error:
                    raise DivergenceError(f"at {over}={value:g}, which leave out of values: {error}") from error
                limit.append(found)
        moved = [
            _moved(replace(one, directions=done.directions), f"{over}={value:g}", of, scrambles, seed, done, progress)
            for value, one in zip(at, influences, strict=True)
        ]
    bias, on_loss = (np.stack(part, axis=1) for part in zip(*moved, strict=True))
    return Curves(np.array(limit).T, bias, on_loss @ on_loss.swapaxes(1, 2), done.directions), influences[0]


def _moved(
    influence: Influence, what: str, of: str, scrambles: int, seed: int, done: Estimates, progress: bool | None
) -> tuple[Array, Array]:
    """N bias of the loss (scramble,), and influences on it (scramble, neuron)."""
    biases, on_loss = [], []
    with progress_bar(influence.steps(scrambles), f"finite width, {what}", "step", progress) as bar:
        known = Estimates(capacity=done.capacity)
        runs = repetitions(influence.run, seed, scrambles, bar, memory_limit=influence.memory_limit, done=known)
        for number, trained in enumerate(runs):
            key = jax.random.fold_in(random_key(seed), number)
            biases.append(float(influence.estimate(trained, key, scrambles, bar)[f"{of}_bias"][-1]))
            on_loss.append(_on_loss(influence, trained, of))
            del trained
    return np.array(biases), np.array(on_loss)


def _on_loss(influence: Influence, trained: Trained, of: str) -> Array:
    """Influences on the loss of the neurons of all populations, one after the other."""
    network = influence.network(trained)
    scalars = Scalars(influence.run, {"loss"}, trained.history.vitals.prediction)
    which = int(scalars.named(np.arange(scalars.count, dtype=float))[of][-1])
    # as many as the derivatives of `Influence.along` take at once: compiled already
    combinations = scalars.combinations(which, which + influence.backward_at_once(network))
    return np.concatenate([np.asarray(layer[0]) for layer in influence.influences(network, combinations)])
