"""Directions in which the empirical measure of a population's neurons fluctuates.

N neurons drawn from a population have the measure M + dM / sqrt(N), where dM has mean zero and the covariance of one
draw.  For a quadratic form in dM, such as F'[dM]^2 or F''[dM, dM], the mean over dM is `scale` times the sum over a set
of directions:

    particles       dM_i = xi_i / S with xi of unit variance, sum_i xi_i = 0, and no other correlations: random
                    directions estimate it without bias, with scale S / (number of directions)
    linear forms    dM_ab = x_a x_b - delta_ab, x iid N(0,1): E dM_ab dM_cd = delta_ac delta_bd + delta_ad delta_bc,
                    which is sum_e D_e D_e over the symmetric matrices D_e of entries sqrt(2) on the diagonal, 1 beside
                    it: all of them give it exactly, with scale 1
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

DISTRIBUTIONS = ("rademacher", "gaussian")


@partial(jax.jit, static_argnames=("size", "distribution"))
def random_directions(keys: jax.Array, *, size: int, distribution: str) -> jax.Array:
    """(direction, particle), of a population of `size` particles, each from its own key.

    "rademacher": signs, as many of one as of the other.  Along such a direction half of the particles leave and
    the others count twice.
    """
    if distribution == "rademacher":
        # of a type that is not weak: `vary` would be compiled for either
        signs = jnp.where(jnp.arange(size) % 2, 1.0, -1.0).astype(float) * jnp.sqrt((size - 1) / size)
        return jax.vmap(lambda key: jax.random.permutation(key, signs))(keys) / size
    xi = jax.vmap(lambda key: jax.random.normal(key, (size,), dtype=float))(keys)
    return (xi - xi.mean(axis=1, keepdims=True)) / size


def symmetric_pairs(used: int) -> NDArray[np.int64]:
    """(direction, 2): the indices a <= b of all directions among the first `used` normals of a population."""
    return np.stack(np.triu_indices(used), axis=1)


@partial(jax.jit, static_argnames=("size",))
def symmetric_directions(pairs: jax.Array, *, size: int) -> jax.Array:
    """(direction, form, form_2): the symmetric matrices D of the index pairs, in a population of `size` forms."""
    a, b = pairs.T
    rows = jnp.arange(len(pairs))
    value = jnp.where(a == b, jnp.sqrt(2.0) / 2, 1.0)
    return jnp.zeros((len(pairs), size, size)).at[rows, a, b].add(value).at[rows, b, a].add(value)
