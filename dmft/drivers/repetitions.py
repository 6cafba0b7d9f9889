"""Repetitions of a run: independent trainings from initialisation to the last step, one for each scramble.

Room for directions is guessed.  A training for which it turns out too small is repeated with twice as much, with which
the others begin.  Where nobody looks at networks on the way, several go side by side (`dmft.drivers.layout`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers import layout
from dmft.drivers.layout import Layout
from dmft.drivers.room import require_memory
from dmft.drivers.run import Run
from dmft.engine import curvature, loop, preconditioned, together
from dmft.engine.form import Rule
from dmft.engine.network import Network, Vitals
from dmft.errors import DivergenceError, NotConvergedError, exploded
from dmft.running import effort
from dmft.running.checkpoint import Checkpoint
from dmft.running.estimates import Estimates
from dmft.running.progress import Bar
from dmft.specs import Problem
from dmft.specs.curvature import ITERATIONS

LEAST = 0.5  # seconds of a call of the compiled loop, which takes some ms to begin
LONGER = 8  # times as many steps, at most, has a call that follows
SLOW = 1e10  # floating-point operations a second that any device does
AT_FIRST = 1000  # steps of the first call, at most, which have operations to begin besides
LOST_AT_MOST = 0.2  # of kernels between samples, in directions that are forgotten
Look = Callable[[Network, int], None]


@dataclass
class Trained:
    """A run: the capacity that sufficed, its seeds, what was seen; eigenvalues (metric, saved step,
    iteration) of the curvature, where they are recorded.

    state: at its end, of a run, or of several of which this is that at `place`; laid: how they were laid out.
    """

    capacity: int
    stream: np.random.SeedSequence
    state: Network
    history: loop.History
    eigenvalues: jax.Array | None = None
    place: int | None = None
    laid: Layout = field(default_factory=Layout)

    @property
    def network(self) -> Network:
        """The state at its end; of several runs the populations alone (`dmft.drivers.layout.member`)."""
        return self.state if self.place is None else layout.member(self.state, self.place)

    @property
    def directions(self) -> int:
        """The most that a side of a weight matrix has met."""
        return int(np.asarray(self.history.vitals.ranks).max(initial=0))


def repetitions(
    run: Run,
    seed: int,
    count: int,
    bar: Bar,
    *,
    memory_limit: int | None,
    done: Estimates | None = None,
    checkpoint: Checkpoint | None = None,
    look: Look | None = None,
    beside: bool = False,
) -> Iterator[Trained]:
    """Independent runs, one for each scramble.

    Memory is for one of them, or those side by side: delete what was yielded before the next is asked for.

    Args:
        done: what is known of repetitions that have ended, which are left out.
        checkpoint: where the state is kept and found.
        look: is shown the network before each recorded step, which is its to read, not to keep; once more in a run
            that is repeated.
        beside: whether runs may go side by side, and over devices: all of these are held until the last is yielded.
            One after the other with a checkpoint, or where one is looked at.

    Raises:
        DivergenceError, MemoryEstimateError.
    """
    finished = 0 if done is None else done.moments.count
    capacity = (done.capacity if done else None) or run.first_capacity
    require_memory(run, capacity, memory_limit, bar)
    bar.update(finished * (run.last + 1))
    streams = np.random.SeedSequence(seed).spawn(count)[finished:]
    alone = not beside or look is not None or checkpoint is not None

    def chosen() -> Layout:
        return Layout() if alone else layout.choose(run, capacity, len(streams), memory_limit)

    laid, pace = chosen(), Pace(_stride(run, capacity))
    while streams:
        these, later = streams[: laid.together], streams[laid.together :]
        if laid.plain:
            trained = _train(run, capacity, these[0], bar, checkpoint, look)
            found = None if trained is None else [Trained(capacity, these[0], *trained)]
            del trained
        else:
            found = _trained_together(run, capacity, these, bar, laid, pace)
        if found is None:
            capacity = min(2 * capacity, run.full_capacity)
            require_memory(run, capacity, memory_limit, bar)
            laid = chosen()
            continue
        streams = later
        while found:
            yield found.pop(0)


def _stride(run: Run, capacity: int) -> int:
    """Steps of a call of the compiled loop, to begin with: of a small problem what any device does in no time."""
    if run.kept is not None:
        return run.stride
    return max(run.stride, min(AT_FIRST, int(LEAST * SLOW / run.operations(capacity))))


@dataclass
class Pace:
    """Steps of a call of the compiled loop: one that is short makes those that follow longer."""

    steps: int

    def stop(self, first: int, end: int) -> int:
        """Of a call that begins with step `first`, of those before `end`: calls to come are equally long."""
        calls = max(round((end - first) / self.steps), 1)
        return first - (first - end) // calls

    def took(self, steps: int, seconds: float) -> None:
        """Of a call of so many steps."""
        self.steps = steps * max(1, min(LONGER, int(LEAST / seconds)))


def _trained_together(
    run: Run,
    capacity: int,
    streams: list[np.random.SeedSequence],
    bar: Bar,
    laid: Layout,
    pace: Pace,
) -> list[Trained] | None:
    """As `_train`, of several runs; always of the same number, so that all are compiled once."""
    rule = laid.everywhere(run.rule)
    networks, histories = laid.begun(run, rule, capacity, [streams[i % len(streams)] for i in range(laid.together)])
    counted, at = bar.n, np.zeros(laid.groups, np.int32)
    while (first := int(at.min())) <= run.last:
        # with room for every vector of every step nothing stops the loop
        most = np.iinfo(np.int32).max if capacity == run.full_capacity else capacity - run.step_room
        stop, start = pace.stop(first, run.last + 1), time.perf_counter()
        with effort.for_products(effort.IN_PLACE if laid.partly else None):
            networks, histories, reached = together.advance_together(
                networks,
                histories,
                rule,
                at,
                stop,
                most,
                form=run.form,
                mesh=laid.mesh,
                partly=laid.partly,
                by_kernels=laid.by_kernels,
            )
        loss, sizes, at = jax.device_get((histories.vitals.loss, histories.vitals.sizes, reached))
        done = int(at.min())
        if done < stop:
            bar.update(counted - bar.n)
            return None
        for i in range(len(streams)):
            _raise_if_diverged(run.problem, loss[i], sizes[i], done)
        bar.update((done - first) * len(streams))
        pace.took(stop - first, time.perf_counter() - start)
    seen = run.seen(histories)._replace(fields=jax.device_get(histories.fields))
    return [
        Trained(capacity, stream, networks, jax.tree.map(lambda a, i=i: a[i], seen), None, i, laid)
        for i, stream in enumerate(streams)
    ]


def _train(
    run: Run, capacity: int, stream: np.random.SeedSequence, bar: Bar, checkpoint: Checkpoint | None, look: Look | None
) -> tuple[Network, loop.History, jax.Array | None] | None:
    """From initialisation to the last step; None if `capacity` directions do not suffice."""
    network, history = run.begun(capacity, stream)
    eigenvalues = jnp.zeros((len(run.curvature), len(run.steps), ITERATIONS)) if run.curvature else None
    first = 0
    if checkpoint is not None:
        begin = network, history, eigenvalues
        (network, history, eigenvalues), first = checkpoint.resumed(begin, capacity)
    stride, begun = run.stride if checkpoint else _stride(run, capacity), bar.n
    bar.update(first)
    pauses = {*range(first, run.last + 1, stride), run.last + 1}
    looked_at = look is not None or eigenvalues is not None
    looks = {t for t in run.steps.tolist() if t >= first} if looked_at else set()
    spans = list(itertools.pairwise(sorted(pauses | looks)))
    rule = run.rule_of_steps(*spans[0])
    for (start, stop), following in zip(spans, [*spans[1:], None], strict=True):
        if look is not None and start in looks:
            look(network, start)
        if eigenvalues is not None and start in looks:
            at = run.steps.tolist().index(start)
            eigenvalues = eigenvalues.at[:, at].set(_eigenvalues(run, rule, network, start))
        with effort.for_products(None if run.kept is None else effort.UNTUNED):
            network, history = loop.advance(network, history, rule, start, stop, form=run.form)
        if following is not None:  # sent while the device computes
            rule = run.rule_of_steps(*following)
        ranks = np.asarray(history.vitals.ranks)
        # with room for all that the last step may add to what the one before it left, every call had its room
        if capacity < run.full_capacity and ranks[max(stop - 2, 0)].max(initial=0) + run.step_room > capacity:
            bar.update(begun - bar.n)
            return None
        _raise_if_diverged(run.problem, history.vitals.loss, history.vitals.sizes, stop)
        if run.kept is not None:
            _raise_if_lost(run.kept, history.vitals, stop)
        bar.update(stop - start)
        if checkpoint is not None and stop <= run.last:
            checkpoint.reached((network, history, eigenvalues), capacity, stop)
    return network, run.seen(history), eigenvalues


def _eigenvalues(run: Run, rule: Rule, network: Network, t: int) -> NDArray[np.float64]:
    """(metric, iteration)."""
    made = [preconditioned.of_descent if each else curvature.plain for each in run.curvature]
    found = np.stack([curvature.eigenvalues(network, rule, t, form=run.form, made=each) for each in made])
    if not np.isfinite(found).all():
        names = ", ".join(one.name for one in schema.registered() if one.needs == schema.HESSIAN)
        raise DivergenceError(
            f"the curvature of the loss at step {t} is not finite; raise particles={run.particles}, or leave out of "
            f"the observables what needs it ({names})."
        )
    return found


def _raise_if_lost(kept: int, seen: Vitals, stop: int) -> None:
    """Name the place where too much of kernels is in directions that are forgotten, in the median over steps
    below `stop`: of few samples a step's kernel may be small by chance."""
    lost = np.median(np.asarray(seen.lost)[:stop], axis=0)
    if (largest := lost.max(initial=0.0)) > LOST_AT_MOST:
        matrix, side = np.argwhere(lost == largest)[0]
        of = ("features that", "gradients that the transpose of")[side]
        raise NotConvergedError(
            f"directions={kept} are too few: {largest:.2g} of kernels between samples, in the median over {stop} "
            f"steps, are in directions that were forgotten, of {of} hidden matrix {matrix + 1} meets; more than "
            f"{LOST_AT_MOST}. Keep more, or leave directions out."
        )


def _raise_if_diverged(problem: Problem, losses: Any, sizes: Any, stop: int) -> None:
    """Name the first step below `stop` whose loss exploded or whose numbers are not finite, and the layer.

    losses: (step,); sizes: (step, side, layer), <h^2> and <g^2>.
    """
    loss = np.asarray(losses, np.float64)[:stop]
    sizes = np.asarray(sizes)[:stop].max(axis=1)  # (step, layer): the larger of both
    bad = exploded(loss, loss[0]) | ~np.isfinite(sizes).all(axis=1)
    if bad.any():
        step = int(np.argmax(bad))
        growth = np.where(np.isfinite(sizes[step]), sizes[step] / np.maximum(sizes[0], 1e-300), np.inf)
        layer = int(np.argmax(growth)) + 1
        raise DivergenceError(
            f"the limit diverges at step {step}: loss {loss[step]:.3g} (initially {loss[0]:.3g}), fields of layer "
            f"{layer} grown {growth[layer - 1]:.3g} times. Lower {problem.training.largest_step}, or "
            f"gamma0={problem.network.gamma0}. {problem.task.unusual_size}".rstrip()
        )
