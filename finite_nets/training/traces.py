"""What a pass of a program leaves (`finite_nets.training.tape`), and the part of the NTK that is made of two of them.

K_ab = sum_uses sum_yy' <g_ay g_by'> <v_ay v_by'>          x . x' in place of < > for a read, 1 for a vector
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dmft.specs.networks.population import Field, Formula, on_units
from finite_nets.device.products import Products

Index = slice | Tensor


class Use(NamedTuple):
    """A use of a weight in a program, whose positions are one if it has none.

    number: of the weight (`Numbers`); given: (member or 1, row, position, input), None for a vector; gradient: (member,
    row, start, position, N).
    """

    number: int
    given: Tensor | None
    gradient: Tensor

    def at(self, index: Index) -> Use:
        """Of a part of the rows."""
        return Use(self.number, None if self.given is None else self.given[:, index], self.gradient[:, index])


class Note(NamedTuple):
    """What a program shows observables: a formula of fields, of which these are the values (member, row, ...)."""

    name: str
    formula: Formula
    fields: list[Field]
    values: list[Tensor]

    def at(self, index: Index) -> Note:
        """Of a part of the rows."""
        return self._replace(values=[v[:, index] for v in self.values])

    def units(self) -> Tensor:
        """(member, row, [position,] unit)."""
        found: Tensor = on_units(self.formula, torch, self.fields, self.values)
        return found


class Trace(NamedTuple):
    """What a pass leaves: h of every layer, (member, row, [position,] N); what the readout averages, (member, row, N),
    with all positions side by side; the uses of weights; what it shows."""

    h: list[Tensor]
    end: Tensor
    uses: list[Use]
    notes: list[Note]

    def at(self, index: Index) -> Trace:
        """Of a part of the rows."""
        uses, notes = [use.at(index) for use in self.uses], [note.at(index) for note in self.notes]
        return Trace([h[:, index] for h in self.h], self.end[:, index], uses, notes)


def tangent_kernel(
    products: Products, a: Trace, b: Trace, factors: Sequence[float], inputs: Sequence[float]
) -> Tensor | float:
    """(member, row, start, row_2, start_2): the part of all weights but the readout in the NTK between two passes.

    factors: m of the weights by number; 0 for those that are not trained.  inputs: by number, what products of what
    was given are multiplied by: 1 for reads, 1 / N for matrices.
    """
    total: Tensor | float = 0.0
    for number in dict.fromkeys(use.number for use in a.uses):
        if factors[number]:
            pair = [joined([use for use in trace.uses if use.number == number]) for trace in (a, b)]
            total = total + factors[number] * _part(products, pair[0], pair[1], inputs[number])
    return total


def joined(uses: Sequence[Use]) -> Use:
    """All uses of a weight as one, at more positions; of a vector the sum over positions."""
    gradients = side_by_side([use.gradient for use in uses], dim=3)
    given = [use.given for use in uses if use.given is not None]
    if not given:
        return Use(uses[0].number, None, gradients.sum(3, keepdim=True))
    return Use(uses[0].number, side_by_side(given, dim=2), gradients)


def side_by_side(parts: Sequence[Tensor], dim: int) -> Tensor:
    """All of them along one axis; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _part(products: Products, a: Use, b: Use, scale: float) -> Tensor:
    """sum_yy' <g_ay g_by'> <v_ay v_by'>, by rows of `a` where there are positions."""
    g, h = a.gradient, b.gradient
    members, rows, starts, positions, width = g.shape
    shape = (starts, positions, len(h[0]), *h.shape[2:4])
    flat = h.flatten(1, 3)
    without = positions == h.shape[3] == 1
    at_once = rows if without else 1
    found = []
    for first in range(0, rows, at_once):
        part = slice(first, first + at_once)
        G = products.image(g[:, part].flatten(1, 3), flat, scale=1 / width).reshape(members, -1, *shape)
        if a.given is None or b.given is None:
            found.append(G[:, :, :, 0, :, :, 0])
            continue
        v, w = a.given[:, part], b.given
        V = (scale * (v.flatten(1, 2) @ w.flatten(1, 2).mT)).reshape(len(v), -1, positions, *w.shape[1:3])
        found.append(
            G[:, :, :, 0, :, :, 0] * V[:, :, None, 0, :, None, 0]
            if without
            else torch.einsum("maiybjz,maybz->maibj", G, V.expand(members, *V.shape[1:]))
        )
    return torch.cat(found, dim=1)
