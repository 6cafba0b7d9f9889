"""Training of a batch of networks, whatever they are made of: `finite_nets.training.perceptrons` has perceptrons,
`finite_nets.training.programs` any other architecture.

What is trained moves along D, the direction of a pass (`push`), as its optimiser says (`dmft.specs.training`): by a
recurrence of theta and of slots (`finite_nets.training.linear`), or along a flow (`finite_nets.training.flow`).

Every array has the member of the ensemble as its first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.errors import exploded
from dmft.specs import Problem, loss
from dmft.specs.training import Epochs
from dmft.specs.training.entrywise import ENTRYWISE
from dmft.specs.training.flow import EULER, ROSENBROCK
from dmft.specs.training.recurrence import RECURRENCE, Stepping
from finite_nets.device.precision import Precision
from finite_nets.device.products import Products
from finite_nets.device.replays import Replays
from finite_nets.training import entrywise, flow, linear, preconditioned
from finite_nets.training.images import changed
from finite_nets.training.observables import Shown
from finite_nets.training.state import Fields, Met, State, W
from finite_nets.training.traces import Index

AT_ONCE = 2048  # samples that pass together where nothing but outputs is kept of them


class Training(Generic[W]):
    """Trains batches of networks on one problem; its kinds say how networks are drawn, passed through and moved.

    x: inputs of all samples, in coordinates of its kind.
    """

    def __init__(
        self, problem: Problem, device: torch.device, precision: Precision, inputs: NDArray[np.float64]
    ) -> None:
        task, network, training = problem.task, problem.network, problem.training
        dtype = precision.fields
        self.network, self.centered = network, network.centered
        self.loss, self.precision = problem.sample_loss, precision
        self.products = Products(precision, device)
        self.x = torch.tensor(inputs, device=device, dtype=dtype).contiguous()
        self.targets = torch.tensor(task.targets, device=device, dtype=dtype)
        self.n_train, self.outputs = task.n_train, task.targets.shape[1]
        self.observed = problem.observed
        self.training, self.stepping = training, training.stepping
        self.from_outputs = self.outputs == 1 or self.stepping.by_output  # where backward passes of steps start
        self.plans = linear.plans(training.recurrences)
        self.batches = None if training.batches is None else torch.tensor(problem.drawn, device=device)
        self.batch = problem.drawn.shape[1]
        self.changes: Tensor | None = None
        self._image = task.shape
        if isinstance(training.batches, Epochs) and training.batches.changing:
            self.changes = torch.tensor(training.batches.changes(training.steps), device=device)

    # ---- what kinds say ----------------------------------------------------------------------------------------------

    def start(self, width: int, members: Tensor, root_seed: int, steps: int | None = None) -> State[W]:
        """Training of the members with the given seed indices (int64), for so many steps; by default all of the
        problem."""
        raise NotImplementedError

    def evaluate(self, state: State[W], met: Met, *, gradients: bool) -> tuple[Fields, Fields]:
        """Forward through the samples met and backward: their fields, and the fields of those trained on.

        With `gradients` the samples met have a backward pass of all outputs.  That of those trained on is the same
        with and without, so that what is learned depends on what is recorded by rounding at most: it starts from the
        loss, or `from_outputs`, or is left to `descend`.
        """
        raise NotImplementedError

    def outputs_at(self, state: State[W], rows: Index) -> Tensor:
        """(member, sample, output) of samples of the task, neither centered nor carried."""
        raise NotImplementedError

    def push(self, state: State[W], target: W, seen: Fields, coefficients: Tensor, factor: float) -> None:
        """Add to `target` the direction of the pass: `factor` times its sum over samples and outputs.

        `coefficients` (member, sample, output) are Delta, or stand in its place where passes start from outputs.
        """
        raise NotImplementedError

    def descend(self, state: State[W], seen: Fields, keep: float, factor: float) -> None:
        """theta <- keep theta + factor D, with the direction D of the pass; the backward pass is made with it where it
        is yet to come."""
        if keep != 1:
            state.weights.scale(keep)
        self.push(state, state.weights, seen, seen.delta, factor)

    def tangent_kernel(self, state: State[W], a: Fields, b: Fields, shown: Shown | None = None) -> Tensor:
        """K (member, event, event_2) between two passes over the first samples that are observed; `shown` is what
        observables have seen of them, if they are one."""
        raise NotImplementedError

    def neurons(self, state: State[W]) -> Sequence[int]:
        """How many every layer has."""
        raise NotImplementedError

    def gradient_scales(self, state: State[W]) -> Sequence[float]:
        """Factors that make N df/dh of every layer the derivative by the measure of its own neurons."""
        return [1.0] * len(self.neurons(state))

    def preactivations(self, state: State[W], seen: Fields, rows: Sequence[int]) -> list[Tensor]:
        """h of every layer, (member, sample, N), of these rows of a pass whose update has not been made yet."""
        raise NotImplementedError

    def preconditioned_kernel(self, state: State[W], seen: Fields) -> Tensor:
        """K (member, event, event_2) of a pass, in the metric of the step that follows."""
        raise NotImplementedError

    def eigenvalues(self, state: State[W], *, preconditioned: bool = False) -> Tensor:
        """(member, iteration), of the curvature of the loss: `dmft.specs.curvature`, in that metric or in that of
        gradient descent."""
        raise NotImplementedError

    # ---- one update --------------------------------------------------------------------------------------------------

    def counted(self, state: State[W], output: Tensor, rows: Index) -> Tensor:
        """f as the network counts it: minus that at initialisation, or carried.  The first call sets both."""
        if state.offset is None:
            # a centered network meets all samples first
            state.offset = output if self.centered else torch.zeros_like(output[:, :1]).expand(-1, len(self.x), -1)
        output = output - state.offset[:, rows]
        if not self.stepping.follows_output:
            return output
        if state.carried is None:
            state.carried = output
        return state.carried[:, rows]

    def slots(self, weights: W) -> tuple[W, ...]:
        """What the optimiser remembers at the start: nothing; of entrywise ones one more, for the direction."""
        rule: Any = self.training
        count = rule.slots + 1 if self.stepping.by_entry else self.training.recurrences.slots
        return tuple(weights.zeros() for _ in range(count))

    # ---- all steps ---------------------------------------------------------------------------------------------------

    def meet(self, t: int, *, everything: bool) -> Met:
        """The samples of step t: its batch, and with `everything` those observed, too."""
        samples, n = len(self.x), self.n_train
        if self.batches is None:
            return Met(slice(0, samples if everything else n), slice(0, n), self.observed)
        t = min(t, len(self.batches) - 1)  # nothing is learned at T: its loss is that of the last one
        batch = self.batches[t]
        alone = slice(0, len(batch))
        if not everything:
            return Met(batch, alone, slice(0, 0), None if self.changes is None else self.changes[t])
        if self.observed.start == 0:
            return Met(self.observed, batch, self.observed)
        rest = torch.arange(self.observed.start, samples, device=batch.device)
        return Met(torch.cat([batch, rest]), alone, slice(len(batch), None))

    def inputs(self, met: Met) -> Tensor:
        """x of the samples met."""
        x = self.x[met.rows]
        return x if met.changes is None else changed(x, met.changes, self._image)

    def advance(self, state: State[W], t: int, seen: Fields, trained: Fields) -> None:
        """Step t of training, in place, from the fields met and those trained on."""
        STEPS[self.stepping](self, state, seen, trained, t)

    def run(
        self, state: State[W], save_steps: frozenset[int], *, gradients: bool = True, fields: bool = True
    ) -> Iterator[Fields]:
        """Train to the last step of `save_steps`, yielding the fields of observed samples before the update of each.

        Without `gradients` their backward fields are left out; without `fields` all but outputs may be, and are where
        samples are many: they pass by some at a time then.  Members that explode go on; at the end,
        `state.exploded_at` says which did at any step, saved or not, by the loss of its batch.
        """
        last, unseen = max(save_steps), Unseen(self, state)
        everywhere = self.stepping.follows_output
        whole = fields or everywhere or not self.precision.in_parts
        if self.changes is not None or passes_apart(len(self.targets[self.observed]), whole):
            yield from self._run_apart(state, save_steps, unseen, gradients=gradients, fields=fields)
            return
        for t in range(last + 1):
            saved = t in save_steps
            if t and not saved and not everywhere:
                unseen.step(t)
                continue
            met = self.meet(t, everything=saved or everywhere or (t == 0 and self.centered))
            seen, trained = self.evaluate(state, met, gradients=(saved and gradients) or everywhere)
            self.watch(state, trained, t)
            if saved:
                state.coming = partial(self._coming, state, t, trained)
                yield seen.at(met.observed)
                state.coming = None
            if t < last:
                self.advance(state, t, seen, trained)
            del seen, trained  # the next pass takes their memory

    def _run_apart(
        self, state: State[W], save_steps: frozenset[int], unseen: Unseen[W], *, gradients: bool, fields: bool
    ) -> Iterator[Fields]:
        """`run` where the samples observed do not pass together with those trained on."""
        last = max(save_steps)
        if self.centered:
            state.offset = self._outputs(state, 0)
        for t in range(last + 1):
            if t in save_steps:
                state.coming = partial(self._coming, state, t)
                yield self._observe(state, gradients=gradients) if fields else self._outputs_alone(state)
                state.coming = None
            if t < last:
                unseen.step(t)
        _, trained = self.evaluate(state, self.meet(last, everything=False), gradients=False)
        self.watch(state, trained, last)

    def _coming(self, state: State[W], t: int, trained: Fields | None = None) -> list[Tensor]:
        """`State.coming`, from the fields trained on, if there are any yet."""
        if trained is None:
            _, trained = self.evaluate(state, self.meet(t, everything=False), gradients=False)
        of: tuple[Any, Any] = self, state  # programs, which alone have entrywise rules
        return preconditioned.of_step(*of, trained, t)

    def _observe(self, state: State[W], *, gradients: bool) -> Fields:
        met = Met(self.observed, slice(0, 1), slice(None))  # one is passed back through, for nothing
        return self.evaluate(state, met, gradients=gradients)[0]

    def _outputs_alone(self, state: State[W]) -> Fields:
        """Of the samples observed, without features."""
        first = self.observed.start
        output = self._outputs(state, first)
        if state.offset is not None:
            output -= state.offset[:, first:]
        x, target = self.x[first:], self.targets[first:]
        return Fields(x, target, output, loss.descent(torch, self.loss, output, target), [], [])

    def _outputs(self, state: State[W], first: int) -> Tensor:
        """Of all samples from `first` on, some at a time."""
        parts = range(first, len(self.x), AT_ONCE)
        return torch.cat([self.outputs_at(state, slice(i, i + AT_ONCE)) for i in parts], dim=1)

    def watch(self, state: State[W], trained: Fields, t: int | Tensor) -> None:
        """Note members whose loss explodes at step t."""
        batch_loss = loss.values(torch, self.loss, trained.output, trained.target).mean(1)
        if state.initial_loss is None:
            state.initial_loss = batch_loss
        now = exploded(batch_loss, state.initial_loss)
        state.exploded_at.copy_(torch.where(now, state.exploded_at.clamp(max=t), state.exploded_at))


def passes_apart(observed: int, fields: bool) -> bool:
    """Whether so many samples are observed some at a time, apart from those trained on."""
    return observed > AT_ONCE and not fields


class Unseen(Generic[W]):
    """Steps of one run of training of which nothing is recorded: on a GPU, where they repeat, by
    `finite_nets.device.replays`.

    Steps of a recurrence repeat where their plans do; those of an entrywise rule read what depends on the time, their
    number and rates, from the device.
    """

    def __init__(self, trainer: Training[W], state: State[W]) -> None:
        self._trainer, self._state = trainer, state
        self._replays: Replays | None = None
        device, by_entry = trainer.x.device, trainer.stepping.by_entry
        if device.type == "cuda" and (by_entry or trainer.stepping == RECURRENCE):
            self._replays = Replays(device, [state.weights, *state.slots])
            steps = range(len(trainer.plans))
            each = [entrywise.numbers(trainer.training, t) if by_entry else (float(t),) for t in steps]
            self._numbers = torch.tensor(each, dtype=torch.float64, device=device)
            self._now = self._numbers[0].clone()
            self._rows = torch.empty(0) if trainer.batches is None else trainer.batches[0].clone()
            self._changes = torch.empty(0) if trainer.changes is None else trainer.changes[0].clone()

    def step(self, t: int) -> None:
        trainer = self._trainer
        met = trainer.meet(t, everything=False)
        if self._replays is None:
            self._taken(met, t)
            return
        self._now.copy_(self._numbers[t])
        if isinstance(met.rows, Tensor):
            met = met._replace(rows=self._rows.copy_(met.rows))
        if met.changes is not None:
            met = met._replace(changes=self._changes.copy_(met.changes))
        kind = ENTRYWISE if trainer.stepping.by_entry else trainer.plans[t]
        self._replays.step(kind, lambda: self._taken(met, t, self._now))

    def _taken(self, met: Met, t: int, now: Tensor | None = None) -> None:
        of: tuple[Any, Any] = self._trainer, self._state
        trainer, state = of
        seen, trained = trainer.evaluate(state, met, gradients=False)
        trainer.watch(state, trained, t if now is None else now[0])
        if now is None or not trainer.stepping.by_entry:
            trainer.advance(state, t, seen, trained)
        else:
            entrywise.step(trainer, state, trained, *now, replace=False)


STEPS: dict[Stepping, Callable[[Any, State[Any], Fields, Fields, int], None]] = {
    ENTRYWISE: entrywise.descend,
    RECURRENCE: linear.descend,
    EULER: flow.euler,
    ROSENBROCK: flow.rosenbrock,
}
