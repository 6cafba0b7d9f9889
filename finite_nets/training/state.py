"""What training holds of a batch of networks: what it moves and remembers, the samples of a step, the fields of a pass.

Every array has the member of the ensemble as its first axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Self, TypeVar

from torch import Tensor

from dmft.specs.parameterization import Scales
from finite_nets.device.fields import Layer
from finite_nets.training.traces import Index, Trace

NEVER = math.inf  # the step at which a healthy member explodes


class Moved:
    """What training moves; a linear space.  readout: (member, output, N); share: of that N in the width of networks."""

    readout: Tensor
    share: float = 1.0

    def parts(self) -> list[Any]:
        """What is trained: tensors, or what has their `mul_` and `add_`."""
        raise NotImplementedError

    def zeros(self) -> Self:
        raise NotImplementedError

    def copy(self) -> Self:
        raise NotImplementedError

    def tensors_moved(self) -> list[Tensor]:
        """All that steps change in place."""
        raise NotImplementedError

    @property
    def phase(self) -> Hashable:
        """What steps change besides tensors."""
        return ()

    def enter(self, phase: Any) -> None:
        """Set it."""

    def scale(self, factor: float) -> None:
        for part in self.parts():
            part.mul_(factor)

    def add(self, other: Self, factor: float) -> None:
        for part, change in zip(self.parts(), other.parts(), strict=True):
            part.add_(change, alpha=factor)


W = TypeVar("W", bound=Moved)


@dataclass
class State(Generic[W]):
    """Networks in training.

    slots: what the optimiser remembers.
    offset: (member, sample, output), the output at initialisation, which a centered network subtracts; zero for others.
    carried: (member, sample, output), the output where it follows the NTK (`finite_nets.training.flow`), else None.
    exploded_at: (member,), the step at which the loss of its batch exploded (`dmft.errors`); infinite for the healthy.
    initial_loss: (member,), of the first batch.
    coming: makes what an adaptive optimiser will multiply gradients by in the step that follows, of the weights by
        number (`finite_nets.training.preconditioned`), while a step is recorded.
    """

    weights: W
    scales: Scales
    exploded_at: Tensor
    slots: tuple[W, ...] = ()
    offset: Tensor | None = None
    carried: Tensor | None = None
    initial_loss: Tensor | None = None
    coming: Callable[[], list[Tensor]] | None = None

    @property
    def width(self) -> int:
        return round(self.weights.readout.shape[-1] / self.weights.share)


class Met(NamedTuple):
    """The samples of a step: `rows` of the task, and which of these are trained on and which are observed.

    changes: (row, 3), what happens to the images (`finite_nets.training.images`), or None.
    """

    rows: Index
    trained: Index
    observed: slice
    changes: Tensor | None = None


class Fields(NamedTuple):
    """A forward and backward pass before the update, over some samples.

    target: (sample, output); output, delta: (member, sample, output), f as the network counts it and Delta.
    features: a list over layers of (member, sample, N), or N at every position; gradients: of (member, sample, start,
    N), where starts are the outputs or, alone, the loss; no layers where there was no backward pass.
    trace: of a program, what else its pass has left.
    layers: with phi', where the backward pass is yet to come, with the update (`Training.descend`); else none.
    """

    x: Tensor
    target: Tensor
    output: Tensor
    delta: Tensor
    features: list[Tensor]
    gradients: list[Tensor]
    trace: Trace | None = None
    layers: Sequence[Layer] = ()

    def at(self, index: Index) -> Fields:
        """Of a part of the samples."""
        features, gradients = ([field[:, index] for field in fields] for fields in (self.features, self.gradients))
        return Fields(
            self.x[index],
            self.target[index],
            self.output[:, index],
            self.delta[:, index],
            features,
            gradients,
            None if self.trace is None else self.trace.at(index),
        )
