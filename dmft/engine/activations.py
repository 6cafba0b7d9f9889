"""phi, phi' and phi'' of every `dmft.specs.Activation`, in JAX."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from dmft.specs.activation import Activation

Function = Callable[[jax.Array], jax.Array]


def _gaussian_cdf(h: jax.Array) -> jax.Array:
    return (1 + erf(h / math.sqrt(2))) / 2


def _gaussian_pdf(h: jax.Array) -> jax.Array:
    return jnp.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)


def functions(activation: Activation) -> tuple[Function, Function]:
    """(phi, phi'), coordinatewise; the derivative of ReLU at zero is zero."""
    a = activation.gain
    table: dict[str, tuple[Function, Function]] = {
        "tanh": (lambda h: jnp.tanh(a * h) / a, lambda h: 1 - jnp.tanh(a * h) ** 2),
        "relu": (lambda h: math.sqrt(2) * jnp.maximum(h, 0), lambda h: math.sqrt(2) * (h > 0)),
        "erf": (erf, lambda h: 2 / math.sqrt(math.pi) * jnp.exp(-(h**2))),
        "gelu": (lambda h: h * _gaussian_cdf(h), lambda h: _gaussian_cdf(h) + h * _gaussian_pdf(h)),
        "softplus": (lambda h: jax.nn.softplus(a * h) / a, lambda h: jax.nn.sigmoid(a * h)),
        "linear": (lambda h: h, jnp.ones_like),
    }
    return table[activation.name]


def bend(activation: Activation, h: jax.Array) -> jax.Array:
    """phi''(h); that of ReLU is 0, without its jump at the kink."""
    if activation.name in ("relu", "linear"):
        return jnp.zeros_like(h)
    value: jax.Array = jax.jvp(functions(activation)[1], (h,), (jnp.ones_like(h),))[1]
    return value
