"""A population: the neurons of one layer.  A vector over it is a row of numbers; averages of products are

    <a b> = sum_ij a_i M_ij b_j

with the population's measure M: 1/S for S particles, each standing for a neuron (weights omega_i on the diagonal where
they differ), or for a unit of several neurons, its components, which share its weight; the identity for linear forms,
where a vector is its coefficients on the raw normals, <xi_i xi_j> = delta_ij (exact, for networks without
nonlinearity).  Derivatives in M give the fluctuations of finite networks.

Two things are asked of a population: averages of products, and raw iid N(0,1) variables that nobody has used before.
The variables of particles are the dimensions of one scrambled Sobol sequence of S points, handed out in the order in
which they are asked for, so that the early steps of training get the best dimensions; a unit of N_k components takes
N_k dimensions a draw.  One sequence, not one for each use: separately scrambled copies of a sequence are not
independent, and they would meet in this population's averages.
The raw normals of linear forms are the unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from dmft.engine.normals import Sobol, Stored, Tailed
from dmft.engine.rows import Rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Population:
    """The neurons of a layer, as particles or as linear forms.

    normals: the source of raw normals (draw, unit), in the order of use, with as many rows a draw as a unit has
        components.
    used: how many draws have been used up.
    measure: M of units; one number or (unit,) where it is diagonal, else (component, component_2) of linear forms.
    forms: whether components are raw normals, which more normals make more of.
    group: components of a unit; they stand side by side.
    """

    normals: Stored | Sobol | Tailed
    used: jax.Array
    measure: jax.Array
    forms: bool = field(default=False, metadata={"static": True})
    group: int = field(default=1, metadata={"static": True})

    @property
    def size(self) -> int:
        """Components of a vector: those of S particles, or forms."""
        return self.normals.size * self.group

    @property
    def units(self) -> int:
        """Particles S, or forms."""
        return self.normals.size

    @property
    def weights(self) -> jax.Array:
        """Of components in averages, one number or (component,), where M is diagonal."""
        if self.group == 1:
            return self.measure
        return jnp.repeat(self.measure / self.group, self.group) if self.measure.ndim else self.measure / self.group

    def inner(self, a: jax.Array, b: jax.Array | Rows) -> jax.Array:
        """<a b>, (vector, vector_2), for a (vector, component) and b (vector_2, component)."""
        rows = b if isinstance(b, Rows) else Rows(b)
        # the one weight of all components is cheaper on the few products than on the many components
        return self.weights * rows.across(a) if self.measure.ndim == 0 else rows.across(self.weighted(a))

    def along(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """(vector, vector_2): the sum over equal positions of <a b>, for a and b (vector, [position,] component)."""
        if a.ndim == 2:
            return self.inner(a, b)
        return self.weighted(a).reshape(len(a), -1) @ b.reshape(len(b), -1).T

    def squares(self, a: jax.Array) -> jax.Array:
        """<a a>, (vector,), for a (vector, component)."""
        return jnp.sum(self.weighted(a) * a, axis=1)

    def overlap(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """sum_a <a_a b_a>, (...,), for a (..., vector, component) and b (vector, component)."""
        return jnp.sum(a * self.weighted(b), axis=(-2, -1))

    def weighted(self, a: jax.Array) -> jax.Array:
        return a @ self.measure if self.measure.ndim == 2 else a * self.weights

    def next_normals(self, count: int) -> jax.Array:
        """(count, component): the next unused normals; `spend` marks those that were taken."""
        if self.group == 1:
            return self.normals.rows(self.used, count)
        rows = self.normals.rows(self.used * self.group, count * self.group)
        return rows.reshape(count, self.group, -1).swapaxes(1, 2).reshape(count, -1)

    def spend(self, count: jax.Array | int) -> Population:
        return replace(self, used=self.used + count)

    def with_more(self, count: int) -> Population:
        """With `count` more raw normals: of particles pseudo-random ones, once all others are used; of forms new ones,
        for which `widened` vectors have room."""
        if not self.forms:
            assert not isinstance(self.normals, Tailed)
            return replace(self, normals=self.normals.with_tail())
        # made by the code that is compiled, not a constant in it
        return replace(self, normals=Stored(jnp.eye(self.size + count)), used=jnp.asarray(self.size, jnp.int32))

    def widened(self, a: jax.Array, count: int) -> jax.Array:
        """Vectors (..., component) over the population with `count` more raw normals."""
        return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, count)]) if self.forms else a


def particles(normals: ArrayLike | Stored | Sobol | Tailed, group: int = 1) -> Population:
    """Equally weighted particles with the given raw normals (draw, particle), none of them used yet; with so many of
    them a draw as each particle has components, `group`."""
    source = normals if isinstance(normals, Stored | Sobol | Tailed) else Stored(jnp.asarray(normals))
    none_used, measure = jax.device_put((np.int32(0), 1 / source.size))
    return Population(source, none_used, measure, group=group)


def alone() -> Population:
    """That of a number: one component, which is its own average."""
    return particles(jnp.zeros((0, 1)))


def linear_forms(count: int) -> Population:
    """The linear forms in `count` raw normals."""
    # placed, not compiled one by one
    number = jnp.result_type(float)
    units, none_used, measure = jax.device_put((np.eye(count, dtype=number), np.int32(0), np.ones((), number)))
    return Population(Stored(units), none_used, measure, forms=True)
