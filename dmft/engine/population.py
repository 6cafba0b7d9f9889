"""A population: the neurons of one layer, here as S particles.

    <a b> = (1/S) sum_i a_i b_i

Two things are asked of it: averages of products, and raw iid N(0,1) variables that nobody has used before.  The
variables of a population are the dimensions of one scrambled Sobol sequence of S points, handed out in the order in
which they are asked for, so that the early steps of training get the best dimensions.  One sequence, not one for each
use: separately scrambled copies of a sequence are not independent, and they would meet in this population's averages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

SOBOL_BITS = 30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Particles:
    """S particles with their raw normals.

    normals: (draw, particle), iid N(0,1), in the order of use.
    used: how many rows have been used up.
    """

    normals: jax.Array
    used: jax.Array

    @property
    def size(self) -> int:
        """S."""
        return self.normals.shape[1]

    def inner(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """<a b>, (vector, vector_2), for a (vector, particle) and b (vector_2, particle)."""
        return a @ b.T / self.size

    def squares(self, a: jax.Array) -> jax.Array:
        """<a a>, (vector,), for a (vector, particle)."""
        return jnp.sum(a**2, axis=1) / self.size

    def next_normals(self, count: int) -> jax.Array:
        """(count, particle): the next unused normals; `spend` marks those that were taken."""
        return lax.dynamic_slice_in_dim(self.normals, self.used, count, axis=0)

    def spend(self, count: jax.Array | int) -> Particles:
        return replace(self, used=self.used + count)


def particles(normals: NDArray[np.float64] | jax.Array) -> Particles:
    """A population with the given raw normals (draw, particle), none of them used yet."""
    return Particles(jnp.asarray(normals), jnp.zeros((), jnp.int32))


def sobol_normals(draws: int, size: int, seed: np.random.SeedSequence) -> NDArray[np.float64]:
    """(draw, particle): normals from one scrambled Sobol sequence of `size` points.

    SciPy's sequence ends at 21,201 dimensions; pseudo-random numbers serve beyond.
    """
    rng = np.random.default_rng(seed)
    dimensions = min(draws, qmc.Sobol.MAXDIM)
    points = qmc.Sobol(dimensions, scramble=True, bits=SOBOL_BITS, rng=rng).random(size)
    # the points are multiples of 2^-bits: half a unit more keeps the quantile of 0 finite
    points += 0.5 ** (SOBOL_BITS + 1)
    normals = np.empty((draws, size))
    ndtri(points.T, out=normals[:dimensions])
    normals[dimensions:] = rng.standard_normal((draws - dimensions, size))
    return normals
