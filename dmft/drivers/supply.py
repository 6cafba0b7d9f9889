"""The raw normals that a population of particles begins with: one scramble of the Sobol points each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from dmft.engine.normals import Sobol, Stored, blank, sobol, sobol_of, stored
from dmft.engine.population import Population, particles
from dmft.engine.scrambles import DIMENSIONS, Scrambled
from dmft.running.compiling import setting


@dataclass(frozen=True)
class Supply:
    """Of one population.

    rows: of raw normals; room: of arrays that hold more, which are not asked for.
    size, group: particles, and components of each, which take as many rows a draw.
    kept: whether they are held, or made whenever they are asked for.
    doubled: half of the particles stand for the other half too.
    keyed, endless: pseudo-random rows may follow, those of a copy or its own.
    """

    rows: int
    room: int
    size: int
    group: int
    kept: bool
    doubled: bool = False
    keyed: bool = False
    endless: bool = False

    @property
    def full(self) -> Supply:
        """Of all that arrays have room for: the same for more than one number of rows, and code that is compiled."""
        return replace(self, rows=min(self.room, DIMENSIONS) if self.rows <= DIMENSIONS else self.room)

    def population(self, stream: np.random.SeedSequence) -> Population:
        """None of whose normals are used."""
        return self._of(sobol(self.rows, self.size, stream, self.room))

    def of(self, scramble: Scrambled) -> Population:
        """As `population`, of what is drawn; to be compiled."""
        return self._of(sobol_of(scramble, self.rows, self.size))

    def blank(self) -> Population:
        """In the shapes of `population`, with all the room, as `jax.eval_shape` gives and takes them."""
        return _blank(self, x64=setting("enable_x64"))

    def _of(self, source: Sobol, values: jax.Array | None = None) -> Population:
        if self.doubled:
            source = source.doubled()
        if not self.kept:
            return particles(source.with_tail() if self.endless else source, self.group)
        keyed = self.keyed or self.endless
        held = Stored(stored(source) if values is None else values, source.key if keyed else None)
        return particles(held.with_tail(source.index) if self.endless else held, self.group)


@lru_cache(maxsize=64)
def _blank(supply: Supply, *, x64: bool) -> Population:
    del x64  # on which types depend
    rows, size = supply.room, supply.size
    shapes: Population = jax.eval_shape(
        lambda: supply._of(blank(rows, size), jnp.zeros((rows, size)) if supply.kept else None)
    )
    return shapes


def child(stream: np.random.SeedSequence, i: int) -> np.random.SeedSequence:
    """Of a run, the seed of a population: named, not spawned, as a second attempt must find the same."""
    return np.random.SeedSequence(stream.entropy, spawn_key=(*stream.spawn_key, i))
