"""One run of the causal engine (`dmft.engine`) for a Problem: its settings, sizes, and network at initialisation.

A run is one training of the populations from initialisation to the last step that is asked for
(`dmft.drivers.repetitions`).  Populations are S particles, whose raw normals are one scramble of the Sobol points, or,
for networks without nonlinearity, linear forms, which are exact.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from dmft import schema
from dmft.drivers.numerics import DTYPES
from dmft.drivers.supply import Supply, child
from dmft.engine import loop
from dmft.engine.form import STACKED_FROM, Form, Rule
from dmft.engine.network import Network, most_vectors, probe_block
from dmft.engine.population import Population, linear_forms, particles
from dmft.engine.scrambles import DIMENSIONS
from dmft.running import shared_sizes
from dmft.running.executables import kept
from dmft.schema import Observable
from dmft.specs import Problem

CALLS = 20  # of the compiled loop a run, to begin with: short ones are joined (`dmft.drivers.repetitions.LEAST`)
STORED_NORMALS = 2**28  # bytes of raw normals of a population that are kept; more are made whenever they are asked for
AT_ONCE = 2**27  # bytes of the inputs of a stream that are on the device together


@dataclass(frozen=True)
class Run:
    """What all runs of a driver share.

    steps: to record; training ends with the last of them.
    particles: S, or None for linear forms.
    centered: whether the output at initialisation is subtracted.
    observables: of passes, that are recorded.
    devices: over which the particles are spread.
    in_law: particles are the neurons of networks of that width, in each population as many as it has; all raw normals
        are held, however many.
    curvature: metrics in which eigenvalues of that of the loss are recorded (`dmft.schema.metrics`), none at all, or
        whether it is preconditioned.
    joint: whether observables of several steps are wanted together (of streams, `dmft.engine.form.Form`).
    doubled: half of the particles stand for the other half too: a run with S/2 in the compiled code of one with S.
    smoothed: whether kinks of the activation are rounded (`dmft.engine.smoothing`).
    alone: whether equal blocks are compiled one by one, however many there are: for derivatives backward, which would
        keep the state of all blocks for each of them; those of the curvature, too.
    entries: the type in which learned parts of matrices are kept, where their entries move by rules of their own.
    kept: the most directions that a side of a matrix keeps (`dmft.engine.forgetting`), or None: all of them.
    """

    problem: Problem
    steps: NDArray[np.int64]
    particles: int | None
    tolerance: float
    centered: bool
    two_time: bool = False
    observables: tuple[Observable, ...] = loop.USUAL
    dtype: str = "float64"
    devices: tuple[jax.Device, ...] = ()
    in_law: bool = False
    curvature: tuple[bool, ...] = ()
    joint: bool = True
    doubled: bool = False
    smoothed: bool = False
    alone: bool = False
    entries: str = "float64"
    kept: int | None = None

    @property
    def last(self) -> int:
        """The last step that is computed."""
        return int(self.steps[-1])

    @cached_property
    def counted(self) -> dict[int, int]:
        """Bytes of the state by capacity, as far as `dmft.drivers.room` has counted them."""
        return {}

    @property
    def device(self) -> jax.Device:
        """The first of the devices."""
        return self.devices[0] if self.devices else jax.devices()[0]

    @property
    def where(self) -> tuple[jax.Device, ...]:
        """All devices that it is on."""
        return self.devices or (self.device,)

    @property
    def depth(self) -> int:
        return self.form.sketch.depth

    @cached_property
    def form(self) -> Form:
        form = loop.form_of(self.problem, self.observables, joint=self.joint)
        alone = self.alone or bool(self.curvature)
        entries = self.entries if self.dtype == "float64" else self.dtype
        return replace(form, smoothed=self.smoothed, stacked_from=math.inf if alone else STACKED_FROM, entries=entries)

    @cached_property
    def rule(self) -> Rule:
        """The numbers that a step needs; of a stream that forgets, those of its first steps."""
        return self._numbers if self.kept is None else self.rule_of_steps(0, self.stride)

    @cached_property
    def _numbers(self) -> Rule:
        length = shared_sizes.steps(self.problem.training.steps + 1)
        rule = loop.rule_of(self.problem, length=length, hosted=self.kept is not None)
        looked = np.isin(np.arange(len(rule.looked)), self.steps)
        centered, looked = jax.device_put((float(self.centered), looked))
        return rule._replace(centered=centered, looked=looked)

    @cached_property
    def _probed(self) -> jax.Array:
        placed: jax.Array = jax.device_put(self._numbers.inputs[np.asarray(self._numbers.probes)])
        return placed

    @property
    def stride(self) -> int:
        """Steps of a call of the compiled loop, to begin with; of a stream that forgets no more than those whose
        samples are on the device together."""
        most = -(-(self.last + 1) // CALLS)
        if self.kept is None:
            return most
        known = self._numbers
        return min(most, max(1, AT_ONCE // (known.rows.shape[1] * known.inputs[0].nbytes)))

    def rule_of_steps(self, start: int, stop: int) -> Rule:
        """That of the steps `start` .. `stop` - 1, no more than `stride`.  A stream that forgets takes their samples
        from the host, so that a data set may be larger than the memory of the device."""
        if self.kept is None:
            return self.rule
        rule = loop.rule_of_steps(self._numbers, self._probed, start, stop, self.stride)
        return rule._replace(kept=jax.device_put(np.int32(self.kept)))

    def keeping(self, most: int) -> Run:
        """The same run with other directions that are kept, of the same numbers."""
        run = replace(self, kept=most)
        vars(run).update({name: value for name, value in vars(self).items() if name in ("form", "_numbers", "_probed")})
        return run

    @property
    def length(self) -> int:
        """Steps that histories have room for."""
        return shared_sizes.steps(self.last + 1)

    @property
    def kept_rows(self) -> int:
        """Steps of which histories have room for observables; without more than are recorded where these are fields."""
        return len(self.steps) if self.two_time else shared_sizes.steps(len(self.steps))

    @property
    def slots(self) -> NDArray[np.int32]:
        """Of histories (`dmft.engine.loop.History`)."""
        return loop.slots_of(self.steps, self.length)

    def room(self, capacity: int) -> int:
        """Directions that matrices have room for, to hold so many; no more where normals beyond them are pseudo-random
        (`_stored`)."""
        if self.particles is None or self.in_law or self.curvature or self.kept is not None:
            return capacity
        return shared_sizes.directions(capacity)

    @property
    def block(self) -> int:
        """The most vectors that a matrix meets at once in training."""
        rows = self.form.trained if self.form.probes else self.problem.task.n_samples
        outputs = math.prod(self.problem.task.outputs) if self.form.per_output else 1
        return most_vectors(self.form, rows, (rows if self.form.every_row else self.form.trained) * outputs)

    @property
    def probe_block(self) -> int:
        """The most that it meets at once of the probes of a stream."""
        return probe_block(self.rule, self.form)

    @property
    def look_room(self) -> int:
        """Directions that a look at the probes leaves in a matrix."""
        return self.probe_block if self.form.joint else 0

    @property
    def step_room(self) -> int:
        """The room that a step needs in a matrix."""
        return self.block * self.form.stepping.passes * self.form.sketch.uses + self.look_room

    @property
    def most_directions(self) -> int:
        """That a matrix can meet at most: every vector of every step."""
        each = self.block * self.form.stepping.passes * self.form.sketch.uses
        return each * (self.last + 1) + self.look_room * len(self.steps)

    @property
    def full_capacity(self) -> int:
        """Directions that a matrix can hold at most: those kept, and those of a step."""
        most = self.most_directions
        return most if self.kept is None else self.kept + self.step_room

    @property
    def first_capacity(self) -> int:
        """A first guess of the directions needed; doubled where it does not suffice."""
        most = max(self.block, self.look_room)
        if self.kept is not None:
            return self.full_capacity
        if not self.banks or self.particles is None:
            return min(self.full_capacity, max(128, 16 * most))
        # positions of an image are alike, the more so the more there are; beyond half the particles there is a warning
        guess = min((6 if most <= 256 else 4) * most, self.particles // 2 + self.step_room)
        return min(self.full_capacity, max(128, guess))

    @property
    def banks(self) -> int:
        """Matrices of the largest bank."""
        return max((part.bank for part in self.form.sketch.matrices), default=0)

    def operations(self, capacity: int) -> float:
        """Floating-point operations of a step of training, about (`dmft.drivers.solve`)."""
        size, rows = max(self.sizes(capacity)), self.rule.rows.shape[1]
        first = 36 * rows * math.prod(self.rule.inputs.shape[1:]) * size
        # both passes orthogonalise, project and mix: 8 K + 10 products with the directions of either side
        matrices = self.form.sketch.matrices
        each = (2 * part.count * (8 * (part.bank or 1) + 10) * max(*part.positions, 1) for part in matrices)
        return float(first + size * rows * capacity * sum(each))

    def work(self, runs: int) -> float:
        """Entries (layer, row, particle) of the fields of all steps of so many runs (`dmft.running.effort`)."""
        size, rows = max(self.sizes(self.first_capacity)), self.rule.rows.shape[1]
        layers = 1 + sum(part.count * max(*part.positions, 1) for part in self.form.sketch.matrices)
        return float(runs * (self.last + 1) * layers * rows * size)

    def draws(self, capacity: int) -> list[int]:
        """Raw normals for each population; those that probes take from a copy are besides what training uses, and those
        of what was forgotten and is shown anew beyond all of them (`dmft.engine.normals`)."""
        copied = self.probe_block - self.look_room
        return loop.draws_needed(self.rule, self.form, capacity + copied)

    def rows(self, capacity: int) -> list[int]:
        """Rows of raw normals of each population, one a draw and component of a particle."""
        return [n * group for n, group in zip(self.draws(capacity), self.groups, strict=True)]

    def sizes(self, capacity: int) -> list[int]:
        """Components of the vectors of each population."""
        if self.particles is None:
            return self.draws(capacity)
        if self.in_law:
            return list(self.form.sketch.sizes(self.particles))
        return [self.particles * group for group in self.groups]

    @property
    def groups(self) -> list[int]:
        """Components of a particle of each population; a linear form has one."""
        return [1 if self.particles is None else each.components for each in self.form.sketch.described]

    def network(self, capacity: int, stream: np.random.SeedSequence, room: int | None = None) -> Network:
        """At initialisation; the same for the same capacity and stream, with less `room` in its matrices if asked."""
        populations = self.populations(capacity, stream)
        placed: Network = self.spread(self.initial(populations, room or self.room(capacity)))
        return placed

    def initial(self, populations: list[Population], capacity: int) -> Network:
        begun, used = _begun(self.rule, populations, form=self.form, tolerance=self.tolerance, capacity=capacity)
        spent = (replace(p, used=n) for p, n in zip(populations, used, strict=True))
        network: Network = replace(begun, populations=tuple(spent))
        return network

    def begun(self, capacity: int, stream: np.random.SeedSequence) -> tuple[Network, loop.History]:
        """A network at initialisation, and room for what is seen of it."""
        network = self.network(capacity, stream)
        return network, self.spread(self.empty_history(network))

    def empty_history(self, network: Network) -> loop.History:
        found: loop.History = _room_for(
            network, self.rule, slots=self.slots, form=self.form, rows=self.kept_rows, two_time=self.two_time
        )
        return found

    def seen(self, history: loop.History) -> loop.History:
        """What of a history, of one run or with an axis of runs before all others, is of the steps of this run: on the
        host, but for fields."""
        vitals, values, slots = jax.device_get((history.vitals, history.values, history.slots))
        lead = (slice(None),) * (slots.ndim - 1)

        def first(count: int, tree: Any) -> Any:
            return jax.tree.map(lambda a: a[(*lead, slice(count))], tree)

        return history._replace(vitals=first(self.last + 1, vitals), values=first(len(self.steps), values), slots=slots)

    def populations(self, capacity: int, stream: np.random.SeedSequence) -> list[Population]:
        """None of whose normals are used."""
        if self.particles is None:
            return [linear_forms(n) for n in self.rows(capacity)]
        return [one.population(child(stream, i)) for i, one in enumerate(self.supplies(capacity))]

    def supplies(self, capacity: int) -> list[Supply]:
        """Of particles, the raw normals of every population."""
        assert self.particles is not None
        each = zip(self.rows(capacity), self.rows(self.room(capacity)), self.groups, strict=True)
        return [
            Supply(
                rows=rows,
                room=room,
                size=self.particles,
                group=group,
                kept=self.keeps(room),
                doubled=self.doubled,
                keyed=bool(self.curvature),
                endless=self.kept is not None,
            )
            for rows, room, group in each
        ]

    def blank_populations(self, capacity: int) -> list[Population]:
        """In the shapes of `populations`, as `jax.eval_shape` gives and takes them."""
        rows = self.rows(self.room(capacity))
        if self.particles is None:
            return [jax.eval_shape(partial(linear_forms, n)) for n in rows]
        if self.in_law:  # however many, which no Sobol sequence has
            crowds = zip(rows, self.sizes(capacity), self.groups, strict=True)
            return [
                jax.eval_shape(lambda n=n, size=size, group=group: particles(jnp.zeros((n, size // group)), group))
                for n, size, group in crowds
            ]
        return [one.blank() for one in self.supplies(capacity)]

    def keeps(self, rows: int) -> bool:
        """Whether so many rows of raw normals of a population are kept."""
        if self.particles is None or self.in_law:
            return True
        return rows <= DIMENSIONS and rows * self.particles * DTYPES[self.dtype] <= STORED_NORMALS

    def spread(self, state: Any) -> Any:
        """The arrays over particles spread over the devices, all others on each of them."""
        if len(self.devices) < 2:  # there already
            return state
        mesh = Mesh(np.array(self.devices), ("particles",))

        along = {self.particles * group for group in (1, *self.groups)} if self.particles else {}

        def place(a: Any) -> Any:
            over_particles = a.ndim > 0 and a.shape[-1] in along
            axes = (*[None] * (a.ndim - 1), "particles") if over_particles else ()
            sharding = NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]
            return jax.device_put(a, sharding)

        return jax.tree.map(place, state)


@kept(static=("form", "tolerance", "capacity"), brief=True)
def _begun(
    rule: Rule, populations: list[Population], *, form: Form, tolerance: float, capacity: int
) -> tuple[Network, list[jax.Array]]:
    """A network at initialisation, without its populations, and the raw normals that each of them has spent: compiled
    as a whole, since compiling some forty operations one by one takes seconds."""
    network = loop.limit_network(rule, form, populations, tolerance, capacity=capacity)
    return replace(network, populations=()), [p.used for p in network.populations]


# compiled as a whole, as above
_room_for = kept(static=("form", "rows", "two_time"), brief=True)(loop.room_for)


def of_passes(names: Collection[str], two_time: bool) -> tuple[Observable, ...]:
    """The observables that the engine records: those asked for, and those that two-time results bring."""
    brought = {one.name for one in schema.between_steps(names)} if two_time else set()
    return tuple(one for one in schema.registered() if one.of_pass and one.name in {*names, *brought})
