"""What directions in the measures contribute to N Var and N bias, of the derivatives of observables along them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dmft import schema
from dmft.engine.form import Form
from dmft.engine.variation import Taylor, taylor
from dmft.finite_width.scalars import recorded
from dmft.running.executables import kept

Derivatives = dict[str, jax.Array]


@kept(static=("form", "steps", "observables", "averages", "covariance"), brief=True)
def contracted(
    found: Taylor,
    targets: jax.Array | NDArray[np.float64],
    *,
    form: Form,
    steps: tuple[int, ...],
    observables: tuple[str, ...],
    averages: schema.Averages,
    covariance: bool,
) -> Derivatives:
    """Sums over directions, before the factor of their source; compiled as a whole, for all problems of one form.

    Args:
        found: along every direction, of all steps.
        targets: (sample, output), of the samples that results hold.
        steps: those that are recorded; observables: those that are asked for, of which `averages` over samples follow
            from predictions.
        covariance: whether predictions are contracted with each other, too.
    """
    first, second = _named(found, targets, form, np.array(steps), observables, averages)
    sums = {}
    for name in first:
        if name != "prediction" or "prediction" in observables:
            sums[f"{name}_variance"] = jnp.sum(first[name] ** 2, axis=0)
            sums[f"{name}_bias"] = jnp.sum(second[name], axis=0) / 2
    if covariance:
        f = first["prediction"]
        flat = f.reshape(len(f), -1)
        sums["prediction_covariance"] = (flat.T @ flat).reshape(f.shape[1:] * 2)
    return sums


def _named(
    found: Taylor, targets: Any, form: Form, steps: NDArray[np.int64], observables: Any, averages: schema.Averages
) -> tuple[Derivatives, Derivatives]:
    """First and second derivatives by name, of the recorded steps, dimensions in the order of the schema."""
    first: Derivatives = {}
    second: Derivatives = {}
    value, *derivatives = (recorded(part, form, steps) for part in found)
    for name in value:
        if name in {*observables, "prediction"}:
            first[name], second[name] = (part[name] for part in derivatives)
    if averages.wanted:
        df = first["prediction"]
        f = jnp.broadcast_to(value["prediction"], df.shape)
        followed = taylor(lambda f: averages(jnp, f, targets), Taylor(f, df, second["prediction"]))
        first |= followed.first
        second |= followed.second
    return first, second
