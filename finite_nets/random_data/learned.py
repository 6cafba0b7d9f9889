"""Matrices and vectors that learn, by the recurrence of any linear optimiser (`dmft.specs.training.recurrence`).

What a step adds to a matrix has rank one, q h^T, and initial weights do not decay, so that

    W(t) v = W(0) v + sum_{s<t} c(t, s) q_s (h_s . v)

W(0) is read, and nothing is written: a step of a network takes two products of each matrix with a vector, whatever the
optimiser remembers.  Vectors keep themselves and their slots.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.specs import Training
from finite_nets.random_data.data import applied


class Learned:
    """Matrices of a batch of members: W(0) (member, row, column), None for the unit matrix, and what was added."""

    def __init__(self, start: Tensor | None, added: tuple[Tensor, Tensor], memory: Tensor) -> None:
        self.start, self._memory, self._t = start, memory, 0
        self._left, self._right = added

    @classmethod
    def of(cls, start: Tensor, memory: Tensor) -> Learned:
        members, rows, columns = start.shape
        steps = memory.shape[1]
        added = start.new_empty((members, steps, rows)), start.new_empty((members, steps, columns))
        return cls(start, added, memory)

    @classmethod
    def of_unit(cls, like: Tensor, memory: Tensor) -> Learned:
        """The unit matrix, of the size of a vector (member, row)."""
        members, rows = like.shape
        left, right = (like.new_empty((members, memory.shape[1], rows)) for _ in range(2))
        return cls(None, (left, right), memory)

    def apply(self, v: Tensor) -> Tensor:
        """W v."""
        return self._with_added(v if self.start is None else applied(self.start, v), v, self._right, self._left)

    def apply_t(self, v: Tensor) -> Tensor:
        """W^T v."""
        return self._with_added(v if self.start is None else applied(self.start.mT, v), v, self._left, self._right)

    def _with_added(self, found: Tensor, v: Tensor, seen: Tensor, written: Tensor) -> Tensor:
        t = self._t
        if not t:
            return found
        weights = applied(seen[:, :t], v).mul_(self._memory[t, :t])
        together: Tensor = torch.baddbmm(found[:, None], weights[:, None], written[:, :t])
        return together[:, 0]

    def step(self, left: Tensor, right: Tensor) -> None:
        """The direction of this step, left right^T."""
        self._left[:, self._t], self._right[:, self._t] = left, right
        self._t += 1


class Vector:
    """Vectors of a batch of members, with what the optimiser remembers: (component, member, entry)."""

    def __init__(self, start: Tensor, training: Training) -> None:
        A, b = training.recurrences
        self._A, self._b, self._t = A, start.new_tensor(b)[..., None, None], 0
        self._all = torch.cat([start[None], start.new_zeros((b.shape[1] - 1, *start.shape))])

    @property
    def now(self) -> Tensor:
        current: Tensor = self._all[0]
        return current

    def step(self, direction: Tensor) -> None:
        self._all = mixed(self._A[self._t], self._all) + self._b[self._t] * direction
        self._t += 1


def mixed(A: NDArray[np.float64], components: Tensor) -> Tensor:
    """A x, x (component, ...).  No product of matrices: those of TF32 would round weights."""
    rows = [sum(float(a) * one for a, one in zip(row, components, strict=True) if a) for row in A]
    return torch.stack([row if isinstance(row, Tensor) else torch.zeros_like(components[0]) for row in rows])


def memory_of(training: Training, like: Tensor) -> Tensor:
    """c(t, s) (step, step_2) on the device."""
    return like.new_tensor(training.memory.c)
