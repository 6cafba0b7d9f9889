"""How the loss of a run depends on the numbers of its problem: one backward pass through all its steps.

    V = sum_t sum_a c_ta ell(f_a(t), y_a)          dV / d(numbers of a `Rule`)

Raw normals stay as they are (common normals), and so do the decisions which directions are new
(`dmft.engine.basis.decompose`), of which V does not depend but for what the tolerance drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dmft.engine.form import Form, Rule
from dmft.engine.loop import limit_network
from dmft.engine.population import Population
from dmft.engine.variation import run_from
from dmft.specs import loss


@partial(jax.jit, static_argnames=("last", "form", "capacity"))
def slopes(
    rule: Rule,
    populations: Sequence[Population],
    targets: jax.Array,
    weights: jax.Array,
    tolerance: float,
    *,
    last: int,
    form: Form,
    capacity: int,
) -> tuple[jax.Array, Rule]:
    """V, and its derivatives in the numbers of the rule, None in the place of what is no floating-point number.

    Args:
        populations: of the program, none of their normals used.
        targets: (sample, output), of the samples that are observed.
        weights: c (step, sample), of the steps 0..last.
    """

    def summed(numbers: Rule) -> jax.Array:
        whole: Rule = jax.tree.map(lambda a, b: b if a is None else a, numbers, rule, is_leaf=lambda a: a is None)
        seen = run_from(limit_network(whole, form, populations, tolerance, capacity=capacity), whole, last, form)
        f = seen.prediction[..., None] if form.single else seen.prediction
        return jnp.sum(weights * loss.values(jnp, form.loss, f, targets))

    numbers: Any = jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) else None, rule)
    found: tuple[jax.Array, Rule] = jax.value_and_grad(summed)(numbers)
    return found
