"""phi and phi' of every `dmft.specs.Activation`, in JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dmft.specs.activation import Activation

Function = Callable[[jax.Array], jax.Array]


def functions(activation: Activation) -> tuple[Function, Function]:
    """(phi, phi'), coordinatewise; the derivative of ReLU at zero is zero."""
    return lambda h: activation.both(jnp, h)[0], lambda h: activation.both(jnp, h)[1]


def differentiable(value: Function, slope: Function) -> Function:
    """The coordinatewise function `value`, whose derivative by JAX is `slope`."""
    found = jax.custom_jvp(lambda h: value(h))
    found.defjvp(lambda given, moved: (value(*given), slope(*given) * moved[0]))
    return found
