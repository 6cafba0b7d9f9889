"""phi, phi' and phi'' of every `dmft.specs.Activation`, in JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dmft.specs.activation import Activation

Function = Callable[[jax.Array], jax.Array]


def functions(activation: Activation) -> tuple[Function, Function]:
    """(phi, phi'), coordinatewise; the derivative of ReLU at zero is zero."""
    return lambda h: activation.both(jnp, h)[0], lambda h: activation.both(jnp, h)[1]


def bend(activation: Activation, h: jax.Array) -> jax.Array:
    """phi''(h), without what jumps of phi' add to it."""
    value: jax.Array = jax.jvp(functions(activation)[1], (h,), (jnp.ones_like(h),))[1]
    return value
