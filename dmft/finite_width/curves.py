"""The loss along a grid of values: of the limit, and by derivatives its N bias and N covariance, with the same normals
at every value.

Assumptions and approximations: influences of S particles have an error of their own, whose square is in N covariances:
too large by a term of order 1/S, which matters where covariances are small, along slopes near an optimum.  (N scatter^2
of the digits of the tests: .298(20) .269(10) .239(4) .231(6) .211(4) .210(2) with S = 256 to 8,192, some .208 + 31 / S.
With half of the particles beside, 2 C_S - C_S/2 is free of it, but scatters so much more that nothing is won.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.machine import precision
from dmft.drivers.repetitions import Trained, repetitions
from dmft.drivers.run import Run
from dmft.engine.normals import random_key
from dmft.errors import DivergenceError
from dmft.finite_width.fluctuations import METHODS, prepared
from dmft.finite_width.influence import Influence
from dmft.finite_width.measures import key_of
from dmft.finite_width.scalars import Scalars
from dmft.running import effort
from dmft.running.estimates import Estimates
from dmft.running.progress import progress_bar
from dmft.specs import Problem, vary

Array = NDArray[np.float64]


class Expansion(NamedTuple):
    """The loss of the limit (value,), lim N bias (value,) and lim N covariance (value, value_2); the mean over networks
    (width, value), and N covariance (width, value, value_2), of every width."""

    limit: Array
    bias: Array
    covariance: Array
    mean: Array
    spread: Array


@dataclass(frozen=True)
class Curves:
    """By derivatives, of every scramble: the loss of the limit and its N bias (scramble, value), its N covariance
    (scramble, value, value_2).

    run: of one of the values; directions: the most that matrices met; attrs: how they were made.
    """

    limit: Array
    bias: Array
    covariance: Array
    widths: Array
    run: Run
    directions: int
    attrs: dict[str, Any]
    leading: ClassVar[bool] = True  # order in 1/N

    @classmethod
    def mean(cls, several: Sequence[Curves]) -> Curves:
        """Of problems whose scrambles are the same."""
        each = ([getattr(one, name) for one in several] for name in ("limit", "bias", "covariance"))
        limit, bias, covariance = (np.mean(part, axis=0) for part in each)
        directions = max(one.directions for one in several)
        return replace(several[0], limit=limit, bias=bias, covariance=covariance, directions=directions)

    @property
    def independent(self) -> tuple[int, ...]:
        """Numbers of repetitions, of each kind of them."""
        return (len(self.limit),)

    def expansion(self, kept: Sequence[NDArray[np.bool_]]) -> Expansion:
        """Of some of the repetitions of each kind, to leading order in 1/N."""
        (scrambles,) = kept
        L, b, C = (each[scrambles].mean(0) for each in (self.limit, self.bias, self.covariance))
        return Expansion(L, b, C, L + b / self.widths[:, None], np.broadcast_to(C, (len(self.widths), *C.shape)))


def limits_along(
    runs: Sequence[Run],
    over: str,
    at: Array,
    of: str,
    *,
    seed: int,
    scrambles: int,
    memory_limit: int | None,
    progress: bool | None,
) -> tuple[Array, Estimates]:
    """The loss (scramble, value) of a run at every value, and what is known of the runs.  Wants `precision`."""
    limit, done, first = [], Estimates(), runs[0]
    with progress_bar(len(at) * scrambles * (first.last + 1), f"limit over {over}", "step", progress) as bar:
        for value, run in zip(at, runs, strict=True):
            found = []
            try:
                # with the room that sufficed for the values before, on which the normals depend
                known = Estimates(capacity=done.capacity)
                for trained in repetitions(run, seed, scrambles, bar, memory_limit=memory_limit, done=known):
                    prediction = np.asarray(trained.history.vitals.prediction, np.float64)[run.steps]
                    found.append(schema.of_predictions(run.problem, prediction)[of][-1])
                    done.add({}, trained.capacity, trained.directions)
                    del trained
            except DivergenceError as error:
                raise DivergenceError(f"at {over}={value:g}, which leave out of values: {error}") from error
            limit.append(found)
    return np.array(limit).T, done


def curves_along(
    problem: Problem, over: str, at: Array, of: str, widths: Sequence[int], settings: Mapping[str, Any]
) -> Curves:
    """The curves of one problem over the values `at` of a field, by `dmft.fluctuations` with these settings."""
    each = [prepared(problem=one, **settings) for one in vary(problem, **{over: at.tolist()})]
    influences = [one["influence"] for one in each]
    seed, scrambles, progress = settings["seed"], each[0]["scrambles"], settings["progress"]
    first = influences[0]
    # in the limit the output at initialisation vanishes; kinks are those of the problem
    runs = [replace(one.run, centered=one.run.problem.training.observe == "all", smoothed=False) for one in influences]
    with precision(first.run.dtype, first.run.device), effort.for_work(len(at) * first.work(scrambles)):
        limit, done = limits_along(
            runs, over, at, of, seed=seed, scrambles=scrambles, memory_limit=first.memory_limit, progress=progress
        )
        moved = [
            _moved(replace(one, directions=done.directions), f"{over}={value:g}", of, scrambles, seed, done, progress)
            for value, one in zip(at, influences, strict=True)
        ]
    bias, on_loss = (np.stack(part, axis=1) for part in zip(*moved, strict=True))
    return Curves(
        limit,
        bias,
        on_loss @ on_loss.swapaxes(1, 2),
        np.array(widths, float),
        first.run,
        done.directions,
        {"mode": first.mode, "method": METHODS[first.mode]}
        | ({} if first.mode == "exact" else {"draws": first.draws * scrambles}),
    )


def _moved(
    influence: Influence, what: str, of: str, scrambles: int, seed: int, done: Estimates, progress: bool | None
) -> tuple[Array, Array]:
    """N bias of the loss (scramble,), and influences on it (scramble, neuron)."""
    biases, on_loss = [], []
    with progress_bar(influence.steps(scrambles), f"finite width, {what}", "step", progress) as bar:
        known = Estimates(capacity=done.capacity)
        runs = repetitions(influence.run, seed, scrambles, bar, memory_limit=influence.memory_limit, done=known)
        for number, trained in enumerate(runs):
            key = key_of(random_key(seed), number)
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
