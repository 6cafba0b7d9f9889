"""Directions in the measures of populations: random, those that matter most, or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from dmft.engine.directions import random_directions, symmetric_directions
from dmft.engine.network import Network
from dmft.engine.variation import Measures
from dmft.running.executables import kept

NEGLIGIBLE = 1e-8  # relative size of what is rounding


# each compiled as a whole: one by one, their operations take longer to compile than to run


@kept(static=("counts",), brief=True)
def of_batches(parts: Sequence[Sequence[Measures]], counts: tuple[int, ...]) -> Measures:
    """Of the batches of every part the first so many, one part after the other; parts may have none."""
    joined = (
        tuple(jnp.concatenate(layer)[:count] for layer in zip(*batches, strict=True))
        for batches, count in zip(parts, counts, strict=True)
        if batches
    )
    return tuple(jnp.concatenate(layer) for layer in zip(*joined, strict=True))


@kept(brief=True)
def first_of(tree: Any) -> Any:
    """The first of those that every array of the tree has on its leading axis."""
    return jax.tree.map(lambda a: a[0], tree)


@kept(brief=True)
def key_of(key: jax.Array, number: jax.Array | int) -> jax.Array:
    """One of many."""
    return jax.random.fold_in(key, number)


@kept(brief=True)
def two_keys(key: jax.Array, number: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Made of one of many."""
    first, second = jax.random.split(jax.random.fold_in(key, number))
    return first, second


@kept(static=("count",), brief=True)
def random_combinations(key: jax.Array, start: jax.Array | int, weights: Any, *, count: int) -> Any:
    """So many from number `start` on, on a leading axis, of normals times the weights (step, ...); those of a step are
    the same however many steps there is room for."""
    leaves, tree = jax.tree.flatten(weights)
    keys = jax.random.split(jax.random.fold_in(key, start), len(leaves))

    def of(k: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.moveaxis(jax.random.normal(k, (len(w), count, *w.shape[1:]), dtype=float), 1, 0) * w

    return jax.tree.unflatten(tree, list(map(of, keys, leaves)))


def scaled(measures: Measures, factors: list[float]) -> Measures:
    """Every population's by its factor."""
    return tuple(m if f == 1 else f * m for m, f in zip(measures, factors, strict=True))


def network_moved(network: Network, direction: list[jax.Array]) -> Network:
    """With measures M + dM."""
    populations = zip(network.populations, direction, strict=True)
    return replace(network, populations=tuple(replace(p, measure=p.measure + d) for p, d in populations))


# of every source of directions the numbers start .. stop - 1, and zeros up to `room` of them: of one compiled shape


def at_random(
    start: int,
    stop: int,
    room: int,
    *,
    key: jax.Array,
    moved: tuple[int, ...],
    sizes: tuple[int, ...],
    distribution: str,
    leading: Measures | None,
) -> Measures:
    """Those that move the layers `moved`, orthogonal to `leading`; number i depends on the key, its layer and i."""
    found: Measures = _at_random(key, start, stop, count=room, moved=moved, sizes=sizes, distribution=distribution)
    return found if leading is None else _without(found, leading)


@kept(static=("count", "moved", "sizes", "distribution"), brief=True)
def _at_random(
    key: jax.Array,
    start: jax.Array | int,
    stop: jax.Array | int,
    *,
    count: int,
    moved: tuple[int, ...],
    sizes: tuple[int, ...],
    distribution: str,
) -> Measures:
    numbers = start + jnp.arange(count)
    found = [jnp.zeros((count, size)) for size in sizes]
    for size in dict.fromkeys(sizes[layer] for layer in moved):
        alike = [layer for layer in moved if sizes[layer] == size]
        keys = [jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, layer)))(numbers) for layer in alike]
        # of all layers of a size at once, which is compiled in the time of one
        drawn = random_directions(jnp.concatenate(keys), size=size, distribution=distribution)
        for layer, each in zip(alike, drawn.reshape(len(alike), count, size), strict=True):
            found[layer] = jnp.where((numbers < stop)[:, None], each, 0.0)
    return tuple(found)


@kept(brief=True)
def _without(directions: Measures, leading: Measures) -> Measures:
    known = sum(d @ q.T for d, q in zip(directions, leading, strict=True))
    return tuple(d - known @ q for d, q in zip(directions, leading, strict=True))


@kept(static=("moved",), brief=True)
def orthonormal(slopes: Measures, moved: tuple[int, ...]) -> Measures:
    """An orthonormal basis of the slopes (slope, particle), each without its mean, in the layers `moved` together."""
    centred = [s - s.mean(axis=1, keepdims=True) if i in moved else jnp.zeros_like(s) for i, s in enumerate(slopes)]
    Q, R = jnp.linalg.qr(jnp.concatenate(centred, axis=1).T)
    size = abs(R.diagonal())
    Q = jnp.where(size > NEGLIGIBLE * size.max(), Q, 0.0)  # what rounding alone would point to
    return tuple(jnp.split(Q.T, len(slopes), axis=1))


def those_leading(start: int, stop: int, room: int, *, leading: Measures) -> Measures:
    """Unit vectors, in the units of one neuron's fluctuation: dM = q / sqrt(S) has scale 1."""
    del stop  # all that there are
    found: Measures = _units(leading, start, count=room)
    return found


@kept(static=("count",), brief=True)
def _units(leading: Measures, start: jax.Array | int, *, count: int) -> Measures:
    padded = (jnp.pad(q, [(0, count), (0, 0)]) for q in leading)
    return tuple(lax.dynamic_slice_in_dim(q, start, count) / np.sqrt(q.shape[1]) for q in padded)


def all_of_layer(
    start: int, stop: int, room: int, *, pairs: NDArray[np.int64], layer: int, sizes: tuple[int, ...]
) -> Measures:
    """Those of the index pairs, which move one layer of linear forms."""
    found: Measures = _of_layer(np.resize(pairs[start:stop], (room, 2)), stop - start, layer=layer, sizes=sizes)
    return found


@kept(static=("layer", "sizes"), brief=True)
def _of_layer(
    pairs: jax.Array | NDArray[np.int64], count: jax.Array | int, *, layer: int, sizes: tuple[int, ...]
) -> Measures:
    found = [jnp.zeros((len(pairs), size, size)) for size in sizes]
    moved = symmetric_directions(jnp.asarray(pairs), size=sizes[layer])
    found[layer] = jnp.where((jnp.arange(len(pairs)) < count)[:, None, None], moved, 0.0)
    return tuple(found)
