"""What a step of training needs of a problem: its numbers, and what shapes the compiled code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax

from dmft.schema import BACKWARD, Observable
from dmft.specs.networks.sketch import Sketch
from dmft.specs.training import Stepping

PROBES_AT_ONCE = 1024  # in a look at them of which only predictions are recorded
STACKED_FROM = 8  # equal blocks: fewer take less time one by one, and as much to compile


class Recurrence(NamedTuple):
    """Of an optimiser: change (step, component, component_2) and b (step, component), theta first, then slots."""

    change: jax.Array
    b: jax.Array


class Start(NamedTuple):
    """Standard deviations at initialisation (`dmft.specs.parameterization.Deviations`): weights (layer,); biases; along
    (input direction,) and extra, of the bias of the first layer.  numbers: what these are, in their order.  basis
    (direction of their span, input direction): in whose coordinates thin matrices are drawn, where inputs have
    others."""

    weights: jax.Array
    biases: jax.Array
    along: jax.Array
    extra: jax.Array
    numbers: tuple[jax.Array, ...] = ()
    basis: jax.Array | None = None


class Rule(NamedTuple):
    """The numbers of a problem that a step needs.

    inputs: X (sample, [position,] input direction), the bias of the first layer among them; targets: (sample, output).
    rows: (step, row), the samples met at a step, those to train on first.
    probes: (probe,), the samples on which a stream is observed, or none; looked: (step,), whether it is.
    share: (step, trained row), gamma0 / P for the samples of the batch, else 0.
    recurrence: A_t - 1 in the component of theta, A_t in slots, and b_t; nothing moves at the last step.  Of a flow
        rates eta dt are b (step, 0), and tau is rate * share / gamma0.
    numbers: traced numbers of the architecture (`dmft.specs.networks.program`), by field.
    start: how initial parameters are made of normals.
    kink_width: w, by which kinks are rounded where they are.
    factors: s (input direction,), of what reads them, where entries move by rules of their own.
    kept: the most directions that a side of a matrix keeps, or None: all of them.
    """

    inputs: jax.Array
    targets: jax.Array
    rows: jax.Array
    probes: jax.Array
    looked: jax.Array
    share: jax.Array
    recurrence: Recurrence
    gamma0: jax.Array
    centered: jax.Array
    numbers: dict[str, jax.Array]
    start: Start
    kink_width: jax.Array
    factors: jax.Array | None = None
    kept: jax.Array | None = None


@dataclass(frozen=True)
class Form:
    """What of a problem shapes the compiled code.

    network: the architecture without its numbers; shape: of one input.
    stepping: what a step is made of; slots: how many the optimiser has.
    trained: how many of a step's rows are trained on.
    probes: how many a stream has; 0 where the rows themselves are observed.
    joint: whether observables of several steps are wanted together: matrices then remember what probes have met.
    observables: of passes, that are recorded.
    frozen: layers that are not trained.
    single: whether targets have no axis of outputs; nor have observables then.
    smoothed: whether kinks of the activation are rounded (`dmft.engine.smoothing`).
    program: what the code of an architecture of one's own is known by, whose functions may be edited.
    rule: of an entrywise optimiser, else None; entries: the type in which learned parts of matrices, and what it
        remembers of them, are kept.
    stacked_from: so many equal blocks (`net.blocks`) or more are held together, and compiled as one.
    """

    network: Any
    shape: tuple[int, ...]
    loss: str
    stepping: Stepping
    slots: int
    trained: int
    probes: int
    joint: bool
    observables: tuple[Observable, ...]
    frozen: tuple[int, ...]
    single: bool
    smoothed: bool = False
    program: str = ""
    rule: Any = None
    entries: str = "float64"
    stacked_from: float = STACKED_FROM

    @cached_property
    def sketch(self) -> Sketch:
        """The parts of the program, those of many equal blocks together."""
        found: Sketch = self.network.sketch(self.shape)
        return found.stacked(self.stacked_from)

    @property
    def in_turn(self) -> int:
        """Probes that are looked at together: all of them where averages between them, or several steps, are wanted."""
        return self.probes if self.joint or self.observables else min(self.probes, PROBES_AT_ONCE)

    @property
    def peeks(self) -> bool:
        """Whether a look at probes asks each matrix once, so that nothing need be written down for it."""
        sketch = self.sketch
        return not (self.joint or self.gradients or sketch.uses > 1 or any(part.bank for part in sketch.matrices))

    @property
    def entry_matrices(self) -> bool:
        """Whether entries of matrices move by rules of their own."""
        return self.stepping.by_entry and not self.rule.by_matrix

    @property
    def per_output(self) -> bool:
        """Whether backward passes start from every output, not from the loss."""
        return self.stepping.by_output or self.every_row

    @property
    def every_row(self) -> bool:
        """Whether backward passes start from all rows, not from those trained on."""
        return self.stepping.follows_output or (self.gradients and not self.probes)

    @property
    def gradients(self) -> bool:
        """Whether backward passes from every output are recorded."""
        return any(one.needs == BACKWARD for one in self.observables)
