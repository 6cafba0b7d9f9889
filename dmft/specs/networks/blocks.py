"""Blocks of equal form, one after the other: what interpreters share of `net.blocks(count, block, h)`.

A block is `block(net, h)`, a field of the population and positions of h, made of h and of weights of its own, which it
names as if it were alone: those of the third block of a program are called "name.3".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from dmft.specs.networks.population import Field

Make = Callable[[Any, Field], Field]


class Block:
    """The interpreter that a block is given: another one, in which weights have the number of the block."""

    def __init__(self, net: Any, number: int) -> None:
        self._net, self._number = net, number

    def apply(self, name: str, v: Field, *, to: Hashable, mix: Any = None) -> Field:
        return self._net.apply(self._named(name), v, to=to, mix=mix)  # type: ignore[no-any-return]

    def vector(self, name: str, *, of: Hashable) -> Field:
        return self._net.vector(self._named(name), of=of)  # type: ignore[no-any-return]

    def number(self, name: str, *, start: float = 1.0) -> Field:
        return self._net.number(self._named(name), start=start)  # type: ignore[no-any-return]

    def read(self, name: str, x: Any, *, to: Hashable) -> Field:
        del x, to
        raise ValueError(f"a block reads {name!r}; read it before net.blocks, which goes on from a field.")

    def blocks(self, count: int, block: Make, h: Field) -> Field:
        del count, block, h
        raise ValueError("a block is made of blocks; let one net.blocks follow another.")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)

    def _named(self, name: str) -> str:
        return f"{name}.{self._number}"


class InTurn:
    """Interpreters for which blocks are nothing but a loop."""

    _blocks = 0  # met so far

    def blocks(self, count: int, block: Make, h: Field) -> Field:
        for _ in range(count):
            self._blocks += 1
            h = block(Block(self, self._blocks), h)
        return h


@dataclass
class Inside:
    """A block that is being met.

    first: number of the first of the blocks that follow each other; number: its own.
    known: h, and the fields that have been made; form: what made them, the same in each block.
    """

    first: int
    number: int
    known: set[int]
    form: list[Hashable] = field(default_factory=list)
    layers: int = 0

    def place(self, name: str) -> tuple[int, str]:
        """Of weights of this name; ValueError if they are not the block's own."""
        alone = self.alone(name)
        if alone == name:
            raise ValueError(f"a block of net.blocks uses {name!r} of another interpreter than the one it is given.")
        return self.first, alone

    def alone(self, name: str) -> str:
        return name.removesuffix(f".{self.number}")

    def next_layer(self) -> tuple[int, int]:
        self.layers += 1
        return self.first, self.layers
