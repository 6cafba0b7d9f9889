"""Norms of directions D = gamma0 s G in which parameters move (`dmft.specs.training.normalized`):

    n^2 = sum_j <D_ij^2>_i / gamma0^2      of each weight: over what comes in, the average over the neurons i it ends in

In orthonormal bases, D = Q_B C Q_F^T, that is the sum of squares of C over gamma0^2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dmft.engine.form import Form, Rule
from dmft.engine.matrix import Learned
from dmft.engine.network import Network, Parameters, over_blocks
from dmft.engine.population import Population


def normalized(network: Network, push: Parameters, rule: Rule, form: Form) -> Parameters:
    """D divided by the norm that the optimiser says, of each weight or of all."""
    sketch = form.sketch
    parts = [*sketch.reads, *sketch.matrices, *sketch.vectors]
    given = [*push.reads, *push.matrices, *push.vectors]
    squares = [
        over_blocks(part, partial(_square, network.over(part.target), part in sketch.matrices), a)
        for part, a in zip(parts, given, strict=True)
    ]
    squares.append(_square(network.over(sketch.readout), False, push.readout))
    if form.rule.divided_by == "all":
        shares = [*(sketch.share(part.target) for part in parts), sketch.share(sketch.readout)]
        squares = [sum(jnp.sum(share * each) for share, each in zip(shares, squares, strict=True))] * len(squares)

    def scaled(square: jax.Array, a: Any) -> Any:
        """Of one weight, or of blocks that have norms of their own."""
        factor = form.rule.factor(jnp, square / rule.gamma0**2)
        return jax.tree.map(lambda leaf: factor.reshape(*factor.shape, *[1] * (leaf.ndim - factor.ndim)) * leaf, a)

    found = iter([scaled(*each) for each in zip(squares, [*given, push.readout], strict=True)])
    reads, matrices, vectors = (tuple(next(found) for _ in each) for each in (push.reads, push.matrices, push.vectors))
    return Parameters(reads, matrices, vectors, next(found))


def _square(population: Population, matrix: bool, a: Any) -> jax.Array:
    """sum_j <D_ij^2>_i of a weight that ends in a population; explicit matrices have their outputs before inputs."""
    if isinstance(a, Learned):
        return jnp.sum(a.change**2)
    a = a.swapaxes(-1, -2) if matrix else a
    return jnp.sum(population.squares(a.reshape(-1, a.shape[-1])))
