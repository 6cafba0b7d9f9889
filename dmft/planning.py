"""`plan`: what a computation of this package will take, before it is begun.

Sizes follow from the problem and the arguments.  Directions and time do not: they are measured on the first steps of
one scramble, on the device that is meant, of which the first compiles.

Assumptions and approximations
    A step costs the same whatever it meets, since rooms have fixed shapes.  Directions that matrices will have met are
    extrapolated by the power law of the last two measurements, which overestimates where training settles; rooms are
    doubled until these have place, and the time of a step grows like the room.  Of linear networks in exact mode
    directions are counted, not estimated.  Runs side by side on a GPU are taken to last as long as one after the other:
    those of a few samples take far less.  Recording sharpness, and results on the host, are not in the time.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dmft import faces
from dmft.drivers import layout, neurons, second_runs, solve
from dmft.drivers.layout import Layout
from dmft.drivers.machine import precision
from dmft.drivers.repetitions import Trained, repetitions
from dmft.drivers.room import require_memory
from dmft.drivers.run import Run
from dmft.engine import loop
from dmft.finite_width import fluctuations
from dmft.finite_width.influence import Influence
from dmft.running import effort, memory
from dmft.running.host import usual_errors
from dmft.running.progress import progress_bar, readable_time
from dmft.specs import Problem

DRIVERS: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]]]] = {
    "solve": (solve.solve, solve.prepared),
    "fluctuations": (fluctuations.fluctuations, fluctuations.prepared),
    "neurons": (neurons.neurons, neurons.prepared),
}
PATIENCE = 2.0  # seconds after which no further steps are measured
PROBED = 16  # steps that are measured at most


@dataclass(frozen=True)
class Plan:
    """What a computation would take; its text is for reading.

    of: "solve", "fluctuations" or "neurons".
    particles: S; None for linear forms, which are exact.
    scrambles: independent repetitions; together: so many of them at once, on all devices (`dmft.drivers.layout`).
    followed: directions or scalars that each of them follows through training, backward passes of deflation among them;
        0 but for fluctuations.
    steps: of training, of all runs together: what the progress bar counts.
    directions: that a matrix is expected to meet; room: for so many.
    device_memory, host_memory: bytes on each device, and on the host besides.
    operations: floating-point operations, about.
    compile_seconds: time until the first step was done, compiled code of earlier processes made use of.
    seconds: estimated time of all the rest on this device.
    """

    of: str
    problem_id: str
    device: str
    particles: int | None
    scrambles: int
    together: int
    followed: int
    steps: int
    directions: int
    room: int
    device_memory: int
    host_memory: int
    operations: float
    compile_seconds: float
    seconds: float

    def __str__(self) -> str:
        rows = self._rows()
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return faces.table(self._rows(), "Plan")

    def _rows(self) -> dict[str, str]:
        """Labels and what they say."""
        crowd = "exact linear forms" if self.particles is None else f"{self.particles:,} particles"
        at_once = "one after the other" if self.together == 1 else f"{self.together} at once"
        repeated = "" if self.particles is None else f", {self.scrambles} scrambles, {at_once}"
        followed = f", {self.followed:,} directions followed in each" if self.followed else ""
        return {
            f"{self.of} of": self.problem_id,
            "with": crowd + repeated + (followed if self.particles else followed.removesuffix(" in each")),
            "steps": f"{self.steps:,} in all, about {self.operations:.1e} floating-point operations",
            "directions": f"about {self.directions:,} met by a matrix, with room for {self.room:,}",
            "memory": f"{memory.readable(self.device_memory)}, and {memory.readable(self.host_memory)} for results",
            "time": f"about {readable_time(self.seconds)} on {self.device}, "
            f"after {readable_time(self.compile_seconds)} to compile",
        }


@usual_errors
def plan(problem: Problem, of: str = "solve", **arguments: Any) -> Plan:
    """What `dmft.solve`, `dmft.fluctuations` or `dmft.neurons` would take: steps, memory, operations, time.

    Args:
        problem: network, task, training, loss.
        of: "solve", "fluctuations" or "neurons".
        arguments: those that would be given to that function.

    Returns:
        The plan; print it to see.  Nothing but a few first steps is computed (of linear networks' fluctuations, one
        training, whose length says how many directions there are).

    Raises:
        What that function would raise before its first step, in the same words: MemoryEstimateError, ValueError,
        TypeError.  ValueError: another name.

    Example:
        >>> print(dmft.plan(problem, particles=256, scrambles=2))
        solve of    ...
        with        256 particles, 2 scrambles, one after the other
        ...
    """
    if of not in DRIVERS:
        raise ValueError(f"of={of!r} is unknown; choose one of {', '.join(DRIVERS)}.")
    driver, prepared = DRIVERS[of]
    try:
        given = inspect.signature(driver).bind(problem, **arguments)
    except TypeError as error:
        raise TypeError(f"dmft.{of} does not take these arguments: {error}.") from error
    given.apply_defaults()
    work = prepared(**given.arguments)
    influence: Influence | None = work.get("influence")
    run: Run = work["run"] if influence is None else influence.run
    limit = work["memory_limit"] if influence is None else influence.memory_limit
    where = run.device if run.devices else work["where"][0]
    scrambles, whole = work["scrambles"], run if influence is None else influence
    with precision(run.dtype, where), effort.for_work(whole.work(scrambles)):
        beside = of == "solve" and work["checkpoint"] is None
        return _planned(of, run, influence, scrambles, work["seed"], limit, where, beside=beside)


def _planned(
    of: str,
    run: Run,
    influence: Influence | None,
    scrambles: int,
    seed: int,
    limit: int | None,
    where: jax.Device,
    *,
    beside: bool,
) -> Plan:
    stream = np.random.SeedSequence(seed).spawn(1)[0]
    if influence is not None and influence.mode == "exact":
        first = _probed(run, stream, limit)  # compiles
        trained = _whole(run, seed, limit)
        found = first._replace(capacity=trained.capacity, directions=trained.directions)
    else:
        trained, found = None, _probed(run, stream, limit)
    length = run.last + 1
    laid = layout.choose(run, found.capacity, scrambles, limit) if beside else Layout()
    runs = scrambles + (0 if run.kept is None else second_runs.HALVED)  # with half of the directions, too
    seconds, compiled = runs / laid.groups * found.step * length, found.compiled
    on_device, on_host = laid.memory_estimate(run, found.capacity)
    passes, followed = 1.0, 0
    if influence is not None:
        chosen = influence.followed(trained)
        assert chosen is not None
        followed, passes = influence.deflated + chosen, influence.passes(trained)
        begun, each, needed = _followed(influence, chosen, stream, found)
        compiled += begun
        seconds += scrambles * followed * each * length
        on_device += needed
    return Plan(
        of=of,
        problem_id=run.problem.problem_id,
        device=f"{where.platform}: {where.device_kind}",
        particles=run.particles,
        scrambles=scrambles,
        together=laid.together,
        followed=followed,
        steps=(runs + scrambles * followed) * length,
        directions=found.directions,
        room=found.capacity,
        device_memory=on_device,
        host_memory=on_host,
        operations=float((runs + scrambles * (passes - 1)) * length * run.operations(found.capacity)),
        compile_seconds=compiled,
        seconds=seconds,
    )


class Probed(NamedTuple):
    """The room that is expected to suffice, directions that are expected; seconds to compile, and of a step."""

    capacity: int
    directions: int
    compiled: float
    step: float


def _probed(run: Run, stream: np.random.SeedSequence, limit: int | None) -> Probed:
    """The first steps of one scramble, measured.

    Raises:
        MemoryEstimateError: a run does not fit, as far as is known.
    """
    capacity = run.first_capacity
    require_memory(run, capacity, limit)
    begun = time.perf_counter()
    state = run.begun(capacity, stream)
    done, ranks, taken = 0, [(0, 0)], []
    for stop in (1, 2, 4, 8, PROBED):
        stop = min(stop, run.last + 1, done + run.stride)
        rule = run.rule_of_steps(done, stop)
        started = time.perf_counter()
        state = jax.block_until_ready(  # type: ignore[no-untyped-call]
            loop.advance(*state, rule, done, stop, form=run.form)
        )
        now = time.perf_counter()
        taken.append((now - started) / max(stop - done, 1))
        ranks.append((stop, int(np.asarray(state[1].vitals.ranks)[:stop].max(initial=0))))
        if len(taken) == 1:
            begun = now - begun
        done = stop
        if done > run.last or (len(taken) > 1 and now - started > PATIENCE):  # the first compiles
            break
    directions = _extrapolated(ranks[-2], ranks[-1], run.last + 1, run.full_capacity)
    room = capacity
    while room < run.full_capacity and directions + run.step_room > room:
        room = min(2 * room, run.full_capacity)
        require_memory(run, room, limit)
    step = min(taken[1:] or taken)
    return Probed(room, directions, max(begun - step, 0.0), step * room / capacity)


def _extrapolated(before: tuple[int, int], last: tuple[int, int], end: int, most: int) -> int:
    """Directions at step `end`, from those at two steps: by a power law between them, not above `most`."""
    (t0, r0), (t1, r1) = before, last
    if t1 >= end or r1 == 0:
        return r1
    power = 1.0 if r0 == 0 else min(np.log(r1 / r0) / np.log(t1 / t0), 1.0)
    return min(int(r1 * (end / t1) ** power), most)


def _whole(run: Run, seed: int, limit: int | None) -> Trained:
    """One training, to its end."""
    with progress_bar(None, "plan", "step", False) as bar:
        return next(repetitions(run, seed, 1, bar, memory_limit=limit))


def _followed(
    influence: Influence, followed: int, stream: np.random.SeedSequence, found: Probed
) -> tuple[float, float, int]:
    """Directions followed through the first steps: seconds to compile, of a direction's step, and bytes of all that are
    followed at once."""
    run = influence.run
    short = replace(influence, run=replace(run, steps=np.array([min(run.last, PROBED // 4)])))
    network = short.begun(found.capacity, stream, found.directions)
    at_once = influence.at_once(network, followed)
    work: Callable[[], Any] = partial(short.some, network, at_once)
    times = []
    for _ in range(2):
        started = time.perf_counter()
        jax.block_until_ready(work())  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - started)
    each = times[1] / (at_once * (short.run.last + 1))
    return max(times[0] - times[1], 0.0), each, at_once * influence.bytes_of_one(network, influence.mode)
