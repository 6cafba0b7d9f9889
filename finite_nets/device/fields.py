"""Fields of a layer, (member, row, N), and what is kept of them from one pass to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmft.specs import Activation


class Field(NamedTuple):
    """A field, and the largest number of each of its rows, (member, row), where who made it has noted them."""

    values: Tensor
    sizes: Tensor | None = None

    def at(self, index: Any) -> Field:
        """Of some samples."""
        return Field(self.values[:, index], None if self.sizes is None else self.sizes[:, index])

    def sized(self) -> Sized:
        """With the sizes found, where they are not noted."""
        return Sized(self.values, largest(self.values) if self.sizes is None else self.sizes)


class Sized(NamedTuple):
    """A field with its sizes."""

    values: Tensor
    sizes: Tensor

    def at(self, index: Any) -> Sized:
        """Of some samples."""
        return Sized(self.values[:, index], self.sizes[:, index])


def field(x: Tensor | Field) -> Field:
    return x if isinstance(x, Field) else Field(x)


def largest(x: Tensor) -> Tensor:
    """The largest number of each row, (member, row)."""
    one = x[:1] if x.stride(0) == 0 else x  # members share it
    found: Tensor = torch.linalg.vector_norm(one, float("inf"), dim=2)
    return found.expand(len(x), -1)


class Slope(NamedTuple):
    """phi'(h) of a layer as it is kept: itself or, where `of` says of which activation, as phi(h) that it is found of
    again, a field less to write and to read."""

    kept: Tensor
    of: Activation | None = None

    def at(self, index: Any) -> Slope:
        """Of some samples."""
        return self._replace(kept=self.kept[:, index])

    def values(self) -> Tensor:
        return self.kept if self.of is None else SLOPES[self.of.name](self.kept, self.of.gain)


SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "tanh": lambda phi, gain: 1 - (gain * phi) ** 2,
    "relu": lambda phi, _: 2**0.5 * (phi > 0).to(phi.dtype),
    "softplus": lambda phi, gain: -torch.expm1(-gain * phi),
    "linear": lambda phi, _: torch.ones_like(phi),
}
"""phi' of phi(h) and a gain, of activations whose slope is a function of it."""


class Layer(NamedTuple):
    """y where it was asked for, phi(y) and phi'(y)."""

    y: Tensor | None
    phi: Field
    slope: Slope

    def at(self, index: Any) -> Layer:
        """Of some samples, without y."""
        return Layer(None, self.phi.at(index), self.slope.at(index))
