"""Arrays of every named layer: those of one group of `Sketch.groups` are held together, with an axis of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmft.engine.population import Population
from dmft.specs.networks.sketch import Sketch

Groups = tuple[tuple[int, ...], ...]


class Layers(Sequence[jax.Array]):
    """Of every layer an array, as a sequence; `held`: of every group one, of several layers with their axis first."""

    def __init__(self, groups: Groups, held: Sequence[jax.Array]) -> None:
        self.groups, self.held = groups, tuple(held)
        self._places = {layer: (i, j) for i, group in enumerate(groups) for j, layer in enumerate(group)}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, layer: Any) -> Any:
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(len(self)))]
        i, j = self._places[range(len(self))[layer]]
        return self.held[i] if len(self.groups[i]) == 1 else self.held[i][j]

    def map(self, formula: Callable[[jax.Array], jax.Array]) -> Layers:
        """`formula` of every array."""
        each = zip(self.groups, self.held, strict=True)
        return Layers(self.groups, [formula(a) if len(group) == 1 else jax.vmap(formula)(a) for group, a in each])


def held(groups: Groups, fields: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """What `Layers` hold, of any sequence of arrays of layers."""
    if isinstance(fields, Layers) and fields.groups == groups:
        return fields.held
    return tuple(
        fields[group[0]] if len(group) == 1 else jnp.stack([fields[layer] for layer in group]) for group in groups
    )


def over_layers(
    sketch: Sketch,
    populations: Sequence[Population],
    formula: Callable[..., jax.Array],
    *fields: Sequence[jax.Array],
    axis: int = 0,
) -> jax.Array:
    """(layer, ...): `formula` of the population of each layer, and its arrays; `axis`: that of layers in what is held
    of several."""
    found = []
    for group, *arrays in zip(sketch.groups, *fields, strict=True):
        one = partial(formula, populations[sketch.place(sketch.layers[group[0]][0])])
        found.append(one(*arrays)[None] if len(group) == 1 else jax.vmap(one, in_axes=axis)(*arrays))
    order, whole = np.concatenate(sketch.groups), jnp.concatenate(found)
    return whole if np.all(order[1:] > order[:-1]) else whole[np.argsort(order)]
