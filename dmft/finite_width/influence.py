"""The influence of single neurons on a run, contracted to variances and biases of wide networks.

With the derivatives F' and F'' of an observable in the measure of each layer (`dmft.engine.variation`) and the
fluctuation dM of one neuron (`dmft.engine.directions`):

    N Cov(q, q')    = sum_l E[F_q'[dM^l] F_q''[dM^l]]         N bias = (1/2) sum_l E[F''[dM^l, dM^l]]

A population of n N units that are independent of each other (n = 1 but for populations of other widths, or of units of
several neurons: `dmft.specs.networks.population.Population`) has dM^l / sqrt(n) in the place of dM^l.

`along` averages over directions, all layers moved at once or one after the other.  Observables depend on few of the
directions much: backward passes of random combinations find an orthonormal set of these, which are followed exactly,
and the random directions are left with the rest (Meyer et al. 2021, "Hutch++"); both estimates stay unbiased.
`by_gradients` has F' for every neuron, (1/S) sum_i (F_i' - mean)^2 for particles, and needs no average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmft import schema
from dmft.drivers.machine import available_bytes
from dmft.drivers.repetitions import Trained
from dmft.drivers.run import Run
from dmft.engine.directions import symmetric_pairs
from dmft.engine.network import Network
from dmft.engine.variation import Measures, Observables, Taylor, gradients, perturb, vary
from dmft.errors import DivergenceError
from dmft.finite_width.contraction import contracted
from dmft.finite_width.measures import (
    NEGLIGIBLE,
    all_of_layer,
    at_random,
    first_of,
    network_moved,
    of_batches,
    orthonormal,
    random_combinations,
    scaled,
    those_leading,
    two_keys,
)
from dmft.finite_width.scalars import Scalars, no_observables
from dmft.running import effort, memory
from dmft.running.executables import kept
from dmft.running.moments import Arrays
from dmft.running.progress import Bar

CPU_BATCH = 2**24  # bytes of directions followed at once on a CPU: more than its caches hold gains nothing
CPU_BACKWARD = 8  # scalars at once on a CPU, which share the forward pass
GPU_SHARE = 0.4  # of the free memory of a GPU
LEADING_SHARE = {False: 1 / 2, True: 3 / 4}  # of the directions, without rounded kinks and with them
BEND = 1e-3  # of a random direction, between two first derivatives whose difference is a second one
BEND_BATCH = 2  # scalars whose second derivatives are taken along one direction
AT_ONCE = 512  # directions or scalars at most
# forward passes that a direction (forward and exact mode, to second order), half or scalar takes
PASSES = {"forward": 4, "exact": 4, "finite": 2, "reverse": 2}
COPIES = {"forward": 8, "exact": 8, "finite": 4, "reverse": 4}  # of the state that one of them takes (measured)


class Source(NamedTuple):
    """Directions whose contributions are added with a common factor.

    layer: the first that they move, by which contributions are told apart; `directions(start, stop, room)` makes some
    of `number`, and zeros beyond them.
    """

    layer: int
    number: int
    scale: float
    directions: Callable[[int, int, int], Measures]


@dataclass(frozen=True)
class Influence:
    """What is asked of every scramble: arguments of `dmft.fluctuations`, `draws` those of one scramble.

    directions: the least that matrices have room for, so that code of several problems is compiled once.
    """

    run: Run
    mode: str
    observables: tuple[str, ...]
    covariance: bool
    by_layer: bool
    draws: int
    deflate: bool
    distribution: str
    memory_limit: int | None
    directions: int = 0

    def estimate(self, trained: Trained, key: jax.Array, scrambles: int, bar: Bar) -> Arrays:
        """One estimate of all variables of the result."""
        network = self.network(trained)
        bar.total = self.steps(scrambles, trained)

        def advance(done: int) -> None:
            bar.update(done * (self.run.last + 1))

        if self.mode == "reverse":
            parts = self.by_gradients(network, trained.history.vitals.prediction, advance)
        else:
            sources = self._sources(network, trained, key)
            advance(self.deflated)
            parts = self.along(sources, network, advance)
        found = {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}
        if self.by_layer:
            variances = [name for name in found if name.endswith("_variance")]
            found |= {f"{name}_by_layer": np.stack([part[name] for part in parts]) for name in variances}
        for name, value in found.items():
            if not np.isfinite(value).all():
                raise DivergenceError(
                    f"{name} is not finite: the response of training to its initial weights leaves the finite numbers. "
                    f"Lower {self.run.problem.training.largest_step}, or record fewer steps. "
                    f"{self.run.problem.task.unusual_size}".rstrip()
                )
        return found

    @property
    def deflated(self) -> int:
        """Directions of a scramble that backward passes find, as many as there are of these."""
        share = LEADING_SHARE[self.run.smoothed] if self.mode == "forward" and self.deflate else 0.0
        return int(share * self.draws)

    def followed(self, trained: Trained | None = None) -> int | None:
        """Directions, or scalars, of a scramble; in exact mode those that `trained` has met, None without it."""
        if self.mode == "reverse":
            return Scalars(self.run, self._wanted, no_observables(self.run).prediction).count
        if self.mode == "exact":
            used = None if trained is None else [int(p.used) for p in trained.network.populations]
            return None if used is None else sum(n * (n + 1) // 2 for n in used)
        return self.draws * (self.run.depth if self.by_layer else 1)

    def steps(self, scrambles: int, trained: Trained | None = None) -> int | None:
        """Of training, of all runs together: one a scramble, and one a direction, scalar or backward pass."""
        followed = self.followed(trained)
        if followed is None:
            return None
        return scrambles * (1 + self.deflated + followed) * (self.run.last + 1)

    def passes(self, trained: Trained | None = None) -> float:
        """Forward passes that a scramble is worth, its training among them; inf in exact mode before it is trained."""
        followed = self.followed(trained)
        return math.inf if followed is None else 1 + 2 * self.deflated + PASSES[self.mode] * followed

    def work(self, scrambles: int) -> float:
        """Entries of the fields of all scrambles, as far as is known before them, for as much code as that of a
        training is (`dmft.running.effort`)."""
        return self.run.work(scrambles) * self.passes() / effort.DERIVATIVES

    @property
    def _wanted(self) -> set[str]:
        """Whose scalars reverse mode follows."""
        return {*self.observables, "prediction"} if self.covariance else set(self.observables)

    @property
    def _following(self) -> tuple[schema.Observable, ...]:
        """What is asked for of what follows from predictions."""
        return schema.following(self.run.problem, self.observables, smooth=True)

    def network(self, trained: Trained) -> Network:
        """The beginning of a run that was trained."""
        return self.begun(trained.capacity, trained.stream, trained.directions)

    def begun(self, capacity: int, stream: np.random.SeedSequence, directions: int) -> Network:
        """At the start of a run, its measures written out, with no more room than the `directions` it meets need."""
        # every call of a matrix needs room for a whole block
        most = max(directions, self.directions) + self.run.step_room
        network = self.run.network(capacity, stream, self.run.room(min(capacity, most)))
        populations = (
            replace(p, measure=jax.device_put(np.eye(p.size) if self.mode == "exact" else np.full(p.units, p.measure)))
            for p in network.populations
        )
        return replace(network, populations=tuple(populations))

    @property
    def _spreads(self) -> list[float]:
        """1 / sqrt(n) of every population; the components of linear forms are independent."""
        described = self.run.form.sketch.described
        return [(each.width if self.mode == "exact" else each.members) ** -0.5 for each in described]

    # ---- averages over directions ------------------------------------------------------------------------------------

    def along(self, sources: list[Source], network: Network, advance: Callable[[int], None]) -> list[Arrays]:
        """The contributions of each layer, or of all together."""
        at_once = min(self._at_once(network, self.mode), max(source.number for source in sources))
        parts: dict[int, Arrays] = {source.layer: {} for source in sources}
        for source in sources:
            part = parts[source.layer]
            for start in range(0, source.number, at_once):
                stop = min(start + at_once, source.number)
                directions = source.directions(start, stop, at_once)  # those of zero contribute nothing
                for name, value in self._contraction(self._derivatives(network, directions)).items():
                    part[name] = part.get(name, 0.0) + source.scale * np.asarray(value)
                advance(stop - start)
        return list(parts.values())

    def _sources(self, network: Network, trained: Trained, key: jax.Array) -> list[Source]:
        sizes = tuple(p.units for p in network.populations)
        layers = tuple(range(len(sizes)))
        if self.mode == "exact":
            pairs = [symmetric_pairs(int(p.used)) for p in trained.network.populations]
            return [
                Source(layer, len(ab), 1.0, partial(all_of_layer, pairs=ab, layer=layer, sizes=sizes))
                for layer, ab in enumerate(pairs)
            ]
        sources = []
        found = self.deflated
        slopes = self._probe(network, found, key) if found else None
        for moved in [(layer,) for layer in layers] if self.by_layer else [layers]:
            leading = orthonormal(slopes, moved) if slopes else None
            make = partial(
                at_random, key=key, moved=moved, sizes=sizes, distribution=self.distribution, leading=leading
            )
            left = self.draws - found
            sources.append(Source(moved[0], left, sizes[0] / left, make))
            if leading:
                sources.append(Source(moved[0], found, 1.0, partial(those_leading, leading=leading)))
        return sources

    def _probe(self, network: Network, found: int, key: jax.Array) -> Measures:
        """Derivatives, in all measures, of random combinations of the observables, `found` in all: they span, nearly,
        the directions on which any of them depends much.

        Averages whose mean vanishes (of g and h, say, between the two passes through a matrix) enter observables by
        their squares: no first derivative knows them, and second derivatives, N bias, are made of them.  Where kinks
        are rounded, half of the directions are changes of derivatives along random directions of the measures.
        """
        sizes = tuple(p.units for p in network.populations)
        every = tuple(range(len(sizes)))
        pilot_key, key = two_keys(key, len(sizes))
        # one would do for weights; as many at once as in `along`, so that the same compiled code serves
        pilots = min(self._at_once(network, self.mode), self.draws - found)
        pilot = at_random(
            0, pilots, pilots, key=pilot_key, moved=every, sizes=sizes, distribution=self.distribution, leading=None
        )
        weights = self._weights(first_of(self._derivatives(network, pilot).first))
        slopes: list[Measures] = []
        bends: list[Measures] = []
        curved = self.run.smoothed
        count = self._combinations
        at_once = self.backward_at_once(network)
        for start in range(0, count, at_once):
            combinations = random_combinations(key, start, weights, count=at_once)
            _, slope = self._gradients(network, combinations)
            slopes.append(slope)
            if curved:
                along = scaled(pilot, self._spreads)
                moved = network_moved(network, [BEND * d[start // at_once % pilots] for d in along])
                _, slope_there = self._gradients(moved, combinations)
                bends.append(jax.tree.map(lambda here, there: (there - here) / BEND, slope, slope_there))
        # all of the first half, then as many bends as are wanted
        parts = ((slopes, count), (bends, found - count))
        return scaled(of_batches([batches for batches, _ in parts], tuple(n for _, n in parts)), self._spreads)

    @property
    def _combinations(self) -> int:
        """Random combinations of observables whose slopes `_probe` takes."""
        return -(-self.deflated // 2) if self.run.smoothed else self.deflated

    def backward_at_once(self, network: Network) -> int:
        """Of these combinations, how many at the same time: what is compiled."""
        most = max(self._combinations, 1)
        return min(self._at_once(network, "reverse"), most, BEND_BATCH if self.run.smoothed else most)

    def _weights(self, response: Observables) -> Observables:
        """One over the typical response of the observables of each step and layer; 0 for what is not asked for."""
        asked = {*self.observables} | ({"prediction"} if self.covariance or self._following else set())
        every = np.arange(self.run.length)
        saved = np.isin(every, self.run.steps)
        if self.run.smoothed:  # of all that is known on the way: what is asked for may have few entries
            asked, saved = {"prediction", *response.values}, every <= self.run.last

        def weighted(name: str, given: jax.Array) -> Any:
            value = np.asarray(given)
            entries = tuple(range(2 if "layer" in schema.quantities()[name].dims else 1, value.ndim))
            size = np.sqrt(np.mean(value**2, axis=entries, keepdims=True))
            wanted = saved.reshape(-1, *[1] * (value.ndim - 1)) & (name in asked) & (size > NEGLIGIBLE * size.max())
            return np.broadcast_to(np.where(wanted, 1 / np.where(wanted, size, 1.0), 0.0), value.shape)

        others = {name: weighted(name, value) for name, value in response.values.items()}
        return Observables(weighted("prediction", response.prediction), others)

    def _derivatives(self, network: Network, directions: Measures) -> Taylor:
        run, form, spreads = self.run, self.run.form, self._spreads
        directions = run.spread(scaled(directions, spreads))  # wherever they come from: compiled once
        if self.mode == "finite":
            size = 1 / max(1.0, *spreads)  # with which all weights stay positive
            found: Taylor = perturb(network, run.rule, directions, size, run.last, length=run.length, form=form)
        else:
            found = vary(network, run.rule, directions, run.last, length=run.length, form=form)
        return found

    def _gradients(self, network: Network, combinations: Observables) -> tuple[Observables, Measures]:
        run = self.run
        found: tuple[Observables, Measures]
        found = gradients(network, run.rule, combinations, run.last, length=run.length, form=run.form)
        return found

    @cached_property
    def _contraction(self) -> Callable[[Taylor], dict[str, jax.Array]]:
        """What directions contribute, of their derivatives."""
        problem = self.run.problem
        return partial(
            contracted,
            targets=problem.task.targets[problem.observed],
            form=self.run.form,
            steps=tuple(self.run.steps.tolist()),
            observables=self.observables,
            averages=schema.Averages.of(problem, self._following),
            covariance=self.covariance,
        )

    # ---- influence functions -----------------------------------------------------------------------------------------

    def by_gradients(self, network: Network, prediction: jax.Array, advance: Callable[[int], None]) -> list[Arrays]:
        """The contributions of each population's neurons; `prediction` (step, sample[, output]) is that of the run."""
        scalars = Scalars(self.run, self._wanted, prediction)
        at_once = min(self._at_once(network, self.mode), scalars.count)
        depth = len(network.populations)
        variances = np.zeros((depth, scalars.count))
        of_predictions: list[Measures] = []
        for start in range(0, scalars.count, at_once):
            stop = min(start + at_once, scalars.count)
            combinations = scalars.combinations(start, start + at_once)
            slopes = tuple(s[: stop - start] for s in self.influences(network, combinations))
            variances[:, start:stop] = [np.asarray(jnp.sum(s**2, axis=1)) for s in slopes]
            if self.covariance and start < scalars.predictions:
                of_predictions.append(tuple(s[: scalars.predictions - start] for s in slopes))
            advance(stop - start)
        parts = []
        for layer in range(depth):
            part = {f"{name}_variance": value for name, value in scalars.named(variances[layer]).items()}
            if self.covariance:
                of_layer = jnp.concatenate([batch[layer] for batch in of_predictions])
                shape = (len(self.run.steps), *prediction.shape[1:]) * 2
                part["prediction_covariance"] = np.asarray(of_layer @ of_layer.T).reshape(shape)
            parts.append(part)
        return parts

    def influences(self, network: Network, combinations: Observables) -> Measures:
        """Of every population (scalar, neuron): N Cov of two scalars is the sum of products of their influences."""
        _, slopes = self._gradients(network, combinations)
        influences: Measures = _influences(slopes, exact=self.mode == "exact")
        return scaled(influences, self._spreads)

    def some(self, network: Network, count: int) -> Any:
        """What is found along so many directions, or of so many scalars, all of them zero: to see what it takes."""
        run = self.run
        if self.mode == "reverse":
            nothing = jax.tree.map(lambda a: jnp.zeros((count, *a.shape)), no_observables(run))
            return self._gradients(network, nothing)
        return self._derivatives(network, tuple(jnp.zeros((count, *p.measure.shape)) for p in network.populations))

    def at_once(self, network: Network, followed: int) -> int:
        """How many of those that are `followed` are so at the same time."""
        random = self.draws - self.deflated
        most = followed if self.mode in ("exact", "reverse") else max(random, self.deflated)
        return min(self._at_once(network, self.mode), most)

    def bytes_of_one(self, network: Network, mode: str) -> int:
        """That one direction, or scalar, takes."""
        state = (network.reads, network.matrices, network.vectors, network.readout)
        measures = [p.measure for p in network.populations]
        return COPIES[mode] * _bytes(state) + 3 * _bytes(measures) + 6 * _bytes(no_observables(self.run))

    def _at_once(self, network: Network, mode: str) -> int:
        """How many directions, or scalars, to follow at the same time."""
        needed = self.bytes_of_one(network, mode)
        if self.run.device.platform == "cpu":
            available, target = memory.available_on_host(), CPU_BATCH
        else:
            available = available_bytes(self.run.device)
            target = int(GPU_SHARE * available)
        memory.require(
            needed,
            limit=self.memory_limit,
            available=available,
            what="one direction of the fluctuations",
            ways_out="lower particles, raise tolerance, record fewer save_steps, or use fewer samples",
        )
        most = int(np.clip(min(target, self.memory_limit or target) // needed, 1, AT_ONCE))
        return CPU_BACKWARD if mode == "reverse" and self.run.device.platform == "cpu" else most


@kept(static=("exact",), brief=True)
def _influences(slopes: Measures, *, exact: bool) -> Measures:
    if exact:
        return tuple((s + s.swapaxes(1, 2)).reshape(len(s), -1) / 2**0.5 for s in slopes)
    return tuple((s - s.mean(axis=1, keepdims=True)) / s.shape[1] ** 0.5 for s in slopes)


def _bytes(tree: Any) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
