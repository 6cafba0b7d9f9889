"""The influence of single neurons on a run, contracted to variances and biases of wide networks.

With the derivatives F' and F'' of an observable in the measure of each layer (`dmft.engine.variation`) and the
fluctuation dM of one neuron (`dmft.engine.directions`):

    N Cov(q, q')    = sum_l E[F_q'[dM^l] F_q''[dM^l]]         N bias = (1/2) sum_l E[F''[dM^l, dM^l]]

`along` averages over directions, all layers moved at once or one after the other; `by_gradients` has F' for every
neuron, (1/S) sum_i (F_i' - mean)^2 for particles, and needs no average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from dmft import memory, schema
from dmft.engine.directions import random_directions, symmetric_directions, symmetric_pairs
from dmft.engine.network import Network
from dmft.engine.variation import Measures, Observables, Taylor, gradients, perturb, taylor, vary
from dmft.errors import DivergenceError
from dmft.moments import Array, Arrays
from dmft.progress import Bar
from dmft.run import Run, Trained, available_bytes

OBSERVABLES = ("prediction", "loss", "feature_kernel", "gradient_kernel", "ntk")
CPU_BATCH = 2**24  # bytes of directions followed at once on a CPU: more than its caches hold gains nothing
GPU_SHARE = 0.4  # of the free memory of a GPU
AT_ONCE = 512  # directions or scalars at most
COPIES = {"forward": 8, "exact": 8, "finite": 4, "reverse": 4}  # of the state that one of them takes (measured)


class Source(NamedTuple):
    """Directions whose contributions are added with a common factor; `directions(start, stop)` makes some of them."""

    number: int
    scale: float
    directions: Callable[[int, int], Measures]


@dataclass(frozen=True)
class Influence:
    """What is asked of every scramble: arguments of `dmft.fluctuations`, `draws` those of one scramble."""

    run: Run
    mode: str
    observables: tuple[str, ...]
    covariance: bool
    by_layer: bool
    draws: int
    distribution: str
    device: jax.Device
    memory_limit: int | None

    def estimate(self, trained: Trained, key: jax.Array, scrambles: int, bar: Bar) -> Arrays:
        """One estimate of all variables of the result."""
        network = self._network(trained)

        def advance(done: int, total: int) -> None:
            bar.total = scrambles * (1 + total) * (self.run.last + 1)
            bar.update(done * (self.run.last + 1))

        if self.mode == "reverse":
            parts = self.by_gradients(network, trained.history.vitals.prediction, advance)
        else:
            parts = self.along(self._sources(trained, key), network, advance)
        found = {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}
        if self.by_layer:
            variances = [name for name in found if name.endswith("_variance")]
            found |= {f"{name}_by_layer": np.stack([part[name] for part in parts]) for name in variances}
        for name, value in found.items():
            if not np.isfinite(value).all():
                raise DivergenceError(
                    f"{name} is not finite: the response of training to its initial weights leaves the finite numbers. "
                    f"Lower learning_rate={self.run.problem.training.learning_rate}, or record fewer steps."
                )
        return found

    def _network(self, trained: Trained) -> Network:
        """At the start of the run, its measures written out."""
        network = self.run.network(trained.capacity, trained.stream)
        populations = (
            replace(p, measure=jnp.eye(p.size) if self.mode == "exact" else jnp.full(p.size, p.measure))
            for p in network.populations
        )
        return replace(network, populations=tuple(populations))

    # ---- averages over directions ------------------------------------------------------------------------------------

    def along(self, sources: list[Source], network: Network, advance: Callable[[int, int], None]) -> list[Arrays]:
        """The contributions of each source."""
        total = sum(source.number for source in sources)
        room = self._at_once(network)
        parts = []
        for source in sources:
            at_once = min(room, source.number)
            part: Arrays = {}
            for start in range(0, source.number, at_once):
                stop = min(start + at_once, source.number)
                # always the same shape, compiled once: directions of zero contribute nothing
                missing = at_once - (stop - start)
                padded = (jnp.pad(d, [(0, missing), *[(0, 0)] * (d.ndim - 1)]) for d in source.directions(start, stop))
                first, second = self._named(self._derivatives(network, tuple(padded)))
                for name, value in self._contracted(first, second).items():
                    part[name] = part.get(name, 0.0) + source.scale * np.asarray(value)
                advance(stop - start, total)
            parts.append(part)
        return parts

    def _sources(self, trained: Trained, key: jax.Array) -> list[Source]:
        sizes = [p.size for p in trained.network.populations]
        layers = range(len(sizes))
        if self.mode == "exact":
            pairs = [symmetric_pairs(int(p.used)) for p in trained.network.populations]
            return [
                Source(len(ab), 1.0, partial(_all_directions, pairs=ab, layer=layer, sizes=sizes))
                for layer, ab in enumerate(pairs)
            ]
        make = partial(_some_directions, key=key, sizes=sizes, distribution=self.distribution)
        together = [(layer,) for layer in layers] if self.by_layer else [tuple(layers)]
        return [Source(self.draws, sizes[0] / self.draws, partial(make, moved=moved)) for moved in together]

    def _derivatives(self, network: Network, directions: Measures) -> Taylor:
        run, activation = self.run, self.run.problem.network.activation
        if self.mode == "finite":
            found: Taylor = perturb(network, run.rule, directions, 1.0, last=run.last, activation=activation)
        else:
            found = vary(network, run.rule, directions, last=run.last, activation=activation)
        return found

    def _named(self, found: Taylor) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """First and second derivatives by name, of the recorded steps, dimensions in the order of the schema."""
        first: dict[str, jax.Array] = {}
        second: dict[str, jax.Array] = {}
        value, *derivatives = (self._recorded(part) for part in found)
        for name in {*self.observables, "prediction"} - {"loss"}:
            first[name], second[name] = (part[name] for part in derivatives)
        if "loss" in self.observables:
            df = first["prediction"]
            f = jnp.broadcast_to(value["prediction"], df.shape)
            losses = taylor(partial(schema.losses, self.run.problem), Taylor(f, df, second["prediction"]))
            first |= losses.first
            second |= losses.second
        return first, second

    def _contracted(self, first: dict[str, jax.Array], second: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Sums over directions, before the factor of their source."""
        found = {}
        for name in first:
            if name != "prediction" or "prediction" in self.observables:
                found[f"{name}_variance"] = jnp.sum(first[name] ** 2, axis=0)
                found[f"{name}_bias"] = jnp.sum(second[name], axis=0) / 2
        if self.covariance:
            f = first["prediction"]
            flat = f.reshape(len(f), -1)
            found["prediction_covariance"] = (flat.T @ flat).reshape(f.shape[1:] * 2)
        return found

    def _recorded(self, seen: Observables) -> dict[str, jax.Array]:
        """By name, of the recorded steps, with axes (..., layer, step, ...); directions may lead."""
        steps = self.run.steps
        return {
            "prediction": seen.prediction[..., steps, :],
            "feature_kernel": jnp.moveaxis(seen.feature_kernel[..., steps, :, :, :], -4, -3),
            "gradient_kernel": jnp.moveaxis(seen.gradient_kernel[..., steps, :, :, :], -4, -3),
            "ntk": seen.ntk[..., steps, :, :],
        }

    # ---- influence functions -----------------------------------------------------------------------------------------

    def by_gradients(
        self, network: Network, prediction: jax.Array, advance: Callable[[int, int], None]
    ) -> list[Arrays]:
        """The contributions of each layer's neurons; `prediction` (step, sample) is that of the run."""
        scalars = _Scalars(self, prediction)
        at_once = min(self._at_once(network), scalars.count)
        size, depth = network.populations[0].size, len(network.populations)
        variances = np.zeros((depth, scalars.count))
        kept: list[Measures] = []
        for start in range(0, scalars.count, at_once):
            stop = min(start + at_once, scalars.count)
            combinations = scalars.combinations(start, start + at_once)
            _, slopes = gradients(
                network, self.run.rule, combinations, last=self.run.last, activation=self.run.problem.network.activation
            )
            slopes = tuple(s[: stop - start] - s[: stop - start].mean(axis=1, keepdims=True) for s in slopes)
            variances[:, start:stop] = [np.asarray(jnp.sum(s**2, axis=1)) / size for s in slopes]
            if self.covariance and start < scalars.predictions:
                kept.append(tuple(s[: scalars.predictions - start] for s in slopes))
            advance(stop - start, scalars.count)
        parts = []
        for layer in range(depth):
            part = {f"{name}_variance": value for name, value in scalars.named(variances[layer]).items()}
            if self.covariance:
                slopes = jnp.concatenate([batch[layer] for batch in kept])
                shape = (len(self.run.steps), self.run.problem.task.n_samples) * 2
                part["prediction_covariance"] = np.asarray(slopes @ slopes.T / size).reshape(shape)
            parts.append(part)
        return parts

    def _at_once(self, network: Network) -> int:
        """How many directions, or scalars, to follow at the same time."""
        state = (network.h1, network.matrices, network.readout)
        needed = COPIES[self.mode] * _bytes(state) + 6 * _bytes(_nothing(self.run))
        if self.device.platform == "cpu":
            available, target = memory.available_on_host(), CPU_BATCH
        else:
            available = available_bytes(self.device)
            target = int(GPU_SHARE * available)
        memory.require(
            needed,
            limit=self.memory_limit,
            available=available,
            what="one direction of the fluctuations",
            ways_out="lower particles, raise tolerance, record fewer save_steps, or use fewer samples",
        )
        return int(np.clip(min(target, self.memory_limit or target) // needed, 1, AT_ONCE))


class _Scalars:
    """The scalars of reverse mode, as linear combinations of the observables of a run: single entries (of symmetric
    kernels the upper ones), predictions first, then losses, linearised."""

    def __init__(self, influence: Influence, prediction: jax.Array) -> None:
        run, wanted = influence.run, set(influence.observables)
        empty, self._unravel = ravel_pytree(_nothing(run))
        self._length = empty.size
        places = influence._recorded(self._unravel(jnp.arange(empty.size, dtype=float)))
        self._places = {name: np.asarray(place).astype(int) for name, place in places.items() if name in wanted}
        if influence.covariance:
            self._places["prediction"] = np.asarray(places["prediction"]).astype(int)
        for name in self._places.keys() - {"prediction"}:
            self._places[name] = np.minimum(self._places[name], self._places[name].swapaxes(-1, -2))
        self._entries = np.unique(np.concatenate([p.ravel() for p in self._places.values()] or [np.zeros(0, int)]))
        self.predictions = self._places["prediction"].size if "prediction" in self._places else 0

        self._losses: dict[str, jax.Array] = {}
        if "loss" in wanted:
            slopes = jax.jacobian(partial(schema.losses, run.problem))(prediction)
            self._losses = {name: s[run.steps].reshape(len(run.steps), -1) for name, s in slopes.items()}
        self.count = len(self._entries) + len(run.steps) * len(self._losses)

    def combinations(self, start: int, stop: int) -> Observables:
        """Coefficients of the scalars `start`..`stop` - 1, zero beyond the last."""
        entries = self._entries[start:stop]
        rows = jnp.zeros((stop - start, self._length)).at[jnp.arange(len(entries)), entries].set(1.0)
        if self._losses and stop > len(self._entries):
            slopes = jnp.concatenate(list(self._losses.values()))
            first = max(start, len(self._entries))
            slopes = slopes[first - len(self._entries) : stop - len(self._entries)]
            at = jnp.arange(len(slopes)) + first - start
            # predictions lead the observables
            rows = rows.at[at, : slopes.shape[1]].set(slopes)
        combinations: Observables = jax.vmap(self._unravel)(rows)
        return combinations

    def named(self, values: Array) -> Arrays:
        """Values of all scalars (scalar,), by name of observable, with its dimensions."""
        named = {name: values[np.searchsorted(self._entries, place)] for name, place in self._places.items()}
        losses = values[len(self._entries) :].reshape(len(self._losses), -1)
        return named | dict(zip(self._losses, losses, strict=True))


def _nothing(run: Run) -> Observables:
    """Zeros in the shape of the observables of a run."""
    steps, samples, depth = run.last + 1, run.problem.task.n_samples, run.problem.network.depth
    kernels = jnp.zeros((steps, depth, samples, samples))
    return Observables(jnp.zeros((steps, samples)), kernels, kernels, jnp.zeros((steps, samples, samples)))


def _bytes(tree: Any) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _some_directions(
    start: int, stop: int, *, key: jax.Array, moved: tuple[int, ...], sizes: list[int], distribution: str
) -> Measures:
    """Random ones that move the layers `moved`; direction i depends on the key, its layer and i alone."""

    def of_layer(layer: int) -> jax.Array:
        if layer not in moved:
            return jnp.zeros((stop - start, sizes[layer]))
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, layer)))(jnp.arange(start, stop))
        found: jax.Array = random_directions(keys, size=sizes[layer], distribution=distribution)
        return found

    return tuple(of_layer(layer) for layer in range(len(sizes)))


def _all_directions(start: int, stop: int, *, pairs: NDArray[np.int64], layer: int, sizes: list[int]) -> Measures:
    """Those of the index pairs, which move one layer of linear forms."""
    moved = symmetric_directions(jnp.asarray(pairs[start:stop]), size=sizes[layer])
    still = (jnp.zeros((stop - start, size, size)) for size in sizes)
    return tuple(moved if i == layer else zero for i, zero in enumerate(still))
