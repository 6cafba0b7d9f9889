"""A population: the neurons of one layer.  A vector over it is a row of numbers; averages of products are

    <a b> = sum_ij a_i M_ij b_j

with the population's measure M: 1/S for S particles, each standing for a neuron (weights omega_i on the diagonal where
they differ); the identity for linear forms, where a vector is its coefficients on the raw normals, <xi_i xi_j> =
delta_ij (exact, for networks without nonlinearity).  Derivatives in M give the fluctuations of finite networks.

Two things are asked of a population: averages of products, and raw iid N(0,1) variables that nobody has used before.
The variables of particles are the dimensions of one scrambled Sobol sequence of S points, handed out in the order in
which they are asked for, so that the early steps of training get the best dimensions.  One sequence, not one for each
use: separately scrambled copies of a sequence are not independent, and they would meet in this population's averages.
The raw normals of linear forms are the unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import qmc

SOBOL_BITS = 30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Population:
    """The neurons of a layer, as particles or as linear forms.

    normals: (draw, component), raw normals in the order of use.
    used: how many rows have been used up.
    measure: M; one number or (component,) where it is diagonal, else (component, component_2).
    """

    normals: jax.Array
    used: jax.Array
    measure: jax.Array

    @property
    def size(self) -> int:
        """Components of a vector: particles S, or forms."""
        return self.normals.shape[1]

    def inner(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """<a b>, (vector, vector_2), for a (vector, component) and b (vector_2, component)."""
        return self._weighted(a) @ b.T

    def squares(self, a: jax.Array) -> jax.Array:
        """<a a>, (vector,), for a (vector, component)."""
        return jnp.sum(self._weighted(a) * a, axis=1)

    def _weighted(self, a: jax.Array) -> jax.Array:
        return a @ self.measure if self.measure.ndim == 2 else a * self.measure

    def next_normals(self, count: int) -> jax.Array:
        """(count, component): the next unused normals; `spend` marks those that were taken."""
        return lax.dynamic_slice_in_dim(self.normals, self.used, count, axis=0)

    def spend(self, count: jax.Array | int) -> Population:
        return replace(self, used=self.used + count)


def particles(normals: ArrayLike) -> Population:
    """Equally weighted particles with the given raw normals (draw, particle), none of them used yet."""
    z = jnp.asarray(normals)
    return Population(z, jnp.zeros((), jnp.int32), jnp.asarray(1 / z.shape[1]))


def linear_forms(count: int) -> Population:
    """The linear forms in `count` raw normals."""
    return Population(jnp.eye(count), jnp.zeros((), jnp.int32), jnp.ones(()))


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
