"""Initial states, and one compiled loop over the steps of training.

The loop runs from any step to any later one, so that a driver can report progress and look for trouble between
calls; the bounds are arguments of the compiled code, whose size and compile time do not depend on the number of
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from dmft.engine import flow, forgetting, smoothing
from dmft.engine.bank import revealed_bank
from dmft.engine.coordinates import input_coordinates
from dmft.engine.form import Form, Recurrence, Rule, Start
from dmft.engine.layers import held
from dmft.engine.matrix import revealed
from dmft.engine.network import Network, Pass, Vitals, over_blocks, predictions, vitals
from dmft.engine.population import Population
from dmft.engine.shown import Shown, sizes, two_time_kernels, values
from dmft.running.executables import kept
from dmft.schema import Observable, registered
from dmft.specs.networks.drawing import starts_of
from dmft.specs.networks.program import input_factors, numbers, structure
from dmft.specs.networks.sketch import Part, Sketch
from dmft.specs.parameterization import batch_scale, initial_deviations, layer_variances, require_limit
from dmft.specs.problem import Problem

# what is recorded of passes if nothing is asked for
USUAL = tuple(one for one in registered() if one.of_pass and not one.on_request)


class History(NamedTuple):
    """What the loop has seen.

    vitals: of every step, with a leading step axis.
    values: of observables of the saved steps by name, with a leading axis over them.
    fields: of the saved steps, by the observable that is recorded between steps, too: of every group of layers (saved
        step, [layer,] vector, [position,] component).
    slots: (step,) where a step is saved on these axes; beyond their end if it is not.
    """

    vitals: Vitals
    values: dict[str, jax.Array]
    fields: dict[str, tuple[jax.Array, ...]]
    slots: jax.Array


def rule_of(problem: Problem, *, length: int | None = None, hosted: bool = False) -> Rule:
    """The numbers of a problem that a step needs.  With room for `length` steps, T + 1 by default: those beyond are
    never taken.  What belongs to single samples stays on the host if they are `hosted`, for `rule_of_steps`.

    Raises:
        ValueError: a parameterization without a limit.
    """
    task, training, network = problem.task, problem.training, problem.network
    require_limit(network)
    batches, (inputs, basis) = problem.batches, input_coordinates(problem)
    variances = layer_variances(network, problem.sketch.readout_layer + 1)
    start = initial_deviations(network, inputs.reshape(-1, inputs.shape[-1]), network.bias, variances)
    scale = batch_scale(network.gamma0, batches.shape[1])
    if training.observe == "test":
        rows, share = batches, np.full(batches.shape, scale)
        probes = np.arange(task.n_train, task.n_samples)
    else:
        probes = np.arange(0)
        rows = np.broadcast_to(np.arange(task.n_samples), (training.steps, task.n_samples))
        share = np.zeros((training.steps, task.n_train))
        np.put_along_axis(share, batches, scale, axis=1)
    # of preactivations of the first layer
    size = start.weights[0] * np.sqrt(np.sum(inputs**2) / np.prod(inputs.shape[:-1]))
    by_entry, beyond = training.stepping.by_entry, (length or training.steps + 1) - training.steps
    if by_entry:
        inputs = inputs @ basis
    begun: tuple[Any, ...] = (
        *(np.asarray(start.weights), start.biases, start.along, start.extra, starts_of(network, task.shape)),
        basis if by_entry else None,
    )
    moved: list[Any] = [_at_rest(each, beyond) for each in training.recurrences.step]
    number = jnp.result_type(float)
    rule: dict[str, Any] = {
        "inputs": inputs.astype(number, copy=False),
        "targets": task.targets.astype(number, copy=False),
        # the last step is not followed by an update, and has the rows of the one before
        "rows": _continued(rows, beyond).astype(np.int32),
        "probes": probes.astype(np.int32),
        "looked": np.ones(training.steps + beyond, bool),
        "share": _continued(share, beyond),
        "recurrence": Recurrence(*moved),
        "gamma0": network.gamma0,
        "centered": float(network.centered),
        "numbers": numbers(network),
        "start": Start(*begun),
        "kink_width": smoothing.WIDTH * (size or 1.0),
        "factors": input_factors(network, task.shape) if by_entry else None,
    }
    on_host = {name: rule.pop(name) for name in ("inputs", "targets", "rows") if hosted}
    # for `device_put`, other than for `jnp.asarray`, nothing is compiled
    return Rule(**on_host, **jax.device_put(rule))


def _continued(numbers: NDArray[Any], count: int) -> NDArray[Any]:
    """Those of every step, and of so many more the last."""
    return np.concatenate([numbers, np.repeat(numbers[-1:], count, axis=0)])


def _at_rest(numbers: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Numbers of steps 0..T-1, and of so many from step T on, after which nothing moves."""
    return np.concatenate([numbers, np.zeros((count, *numbers.shape[1:]))])


def rule_of_steps(hosted: Rule, probed: jax.Array, start: int, stop: int, most: int) -> Rule:
    """That of the steps `start` .. `stop` - 1 of a stream, no more than `most`, with the samples that these meet alone:
    numbered anew, those of the steps first, then probes, whose inputs are `probed`.  All such rules have one shape."""
    rows = np.asarray(hosted.rows)[start:stop]
    met, place = np.resize(rows, (most, rows.shape[1])).ravel(), np.zeros(hosted.rows.shape, np.int32)
    place[start:stop] = np.arange(rows.size).reshape(rows.shape)
    probes = np.asarray(hosted.probes)
    return hosted._replace(
        inputs=jnp.concatenate([jnp.asarray(np.asarray(hosted.inputs)[met]), probed]),
        targets=jnp.asarray(np.asarray(hosted.targets)[np.concatenate([met, probes])]),
        rows=jnp.asarray(place),
        probes=jnp.arange(met.size, met.size + probes.size, dtype=jnp.int32),
    )


def form_of(problem: Problem, observables: Sequence[Observable] = USUAL, *, joint: bool = True) -> Form:
    """What of a problem shapes the compiled code, where these observables are recorded; `joint` as in `Form`."""
    task, network = problem.task, problem.network
    training: Any = problem.training
    by_entry, stream = training.stepping.by_entry, training.observe == "test"
    return Form(
        network=structure(network),
        shape=task.shape,
        loss=problem.sample_loss,
        stepping=training.stepping,
        slots=training.slots if by_entry else training.recurrences.slots,
        trained=problem.batches.shape[1] if stream else task.n_train,
        probes=task.n_test if stream else 0,
        joint=joint or not stream,
        observables=tuple(observables),
        frozen=network.frozen,
        single=not task.outputs,
        program=problem.program_digest,
        rule=training.rule if by_entry else None,
    )


def draws_needed(rule: Rule, form: Form, capacity: int) -> list[int]:
    """Raw normals that each population may hand out, for matrices of the given capacity on either side: for thin
    matrices their inputs, for others the images of both sides, for vectors one, for the readout one an output
    and position that it reads."""
    sketch = form.sketch
    needed = [0] * len(sketch.populations)
    for part in sketch.reads:
        needed[sketch.place(part.target)] += len(rule.start.along)
    for part in sketch.matrices:
        needed[sketch.place(part.target)] += capacity * (part.bank or 1) * part.count
        needed[sketch.place(part.source)] += capacity * (part.bank or 1) * part.count
    for part in sketch.vectors:
        if part.target is not None:
            needed[sketch.place(part.target)] += part.count
    outputs = sketch.rows_of_readout(rule.targets.shape[1])
    needed[sketch.place(sketch.readout)] += outputs * math.prod(sketch.flattened)
    return needed


def limit_network(
    rule: Rule,
    form: Form,
    populations: Sequence[Population],
    tolerance: float,
    *,
    capacity: int,
    project: bool = True,
) -> Network:
    """A network at initialisation whose matrices are revealed as they are used.

    Args:
        populations: of the program, with at least `draws_needed` raw normals, none of them used yet.
        capacity: most directions that either side of a matrix may meet.
    """
    sketch, populations = form.sketch, list(populations)
    shape, start = (len(rule.inputs), rule.targets.shape[1]), rule.start

    def draw(population: Any, count: int) -> jax.Array:
        place = sketch.place(population)
        drawn = populations[place].next_normals(count)
        populations[place] = populations[place].spend(count)
        return drawn

    def thin(layer: int, normals: jax.Array) -> jax.Array:
        scaled = start.weights[layer] * normals
        if not layer and form.network.bias:
            # a direction of the inputs, with a variance of its own
            scaled = scaled + start.extra * jnp.outer(start.along, start.along @ normals)
        return scaled if start.basis is None else start.basis.T @ scaled

    outputs = sketch.rows_of_readout(shape[1])
    drawn = draw(sketch.readout, outputs * math.prod(sketch.flattened))
    readout = start.weights[-1] * drawn.reshape(outputs, *sketch.flattened, -1)
    reads = tuple(thin(part.layer, draw(part.target, len(start.along))) for part in sketch.reads)
    starts = iter(start.numbers)

    def thin_rows(part: Part, count: int) -> jax.Array:
        """(row, component): of vectors, or numbers."""
        if part.target is None:
            return jnp.stack([next(starts) for _ in range(count)]).astype(float)[:, None]
        return start.biases * draw(part.target, count)

    vectors, matrices = _vectors(sketch, thin_rows), list[Any]()
    for part, (source, target) in zip(sketch.matrices, sketch.ends, strict=True):
        ends = populations[source].size, populations[target].size, (capacity, capacity), tolerance
        make = partial(revealed_bank, part.bank) if part.bank else revealed
        ratio = sketch.share(part.source) / sketch.share(part.target)
        own = {"ratio": ratio, "entries": form.entries if form.entry_matrices else None}

        def begun(initial: jax.Array, make: Any = make, ends: Any = ends, own: Any = own) -> Any:
            return make(*ends, project=project, initial=initial, **own)

        matrices.append(over_blocks(part, begun, start.weights[jnp.asarray(part.layers or part.layer)]))
    carried = jnp.zeros(shape) if form.stepping.follows_output else None
    network = Network(
        reads, tuple(matrices), readout, tuple(populations), jnp.zeros(shape), vectors, carried=carried, sketch=sketch
    )
    slots = tuple(jax.tree.map(jnp.zeros_like, network.parameters) for _ in range(form.slots))
    network = replace(network, slots=slots)
    return network if rule.kept is None else forgetting.begun(network)


def _vectors(sketch: Sketch, draw: Callable[[Part, int], jax.Array]) -> tuple[jax.Array, ...]:
    """Those of the program, where `draw` gives so many rows; of blocks that are held together, block by block."""
    together: dict[Hashable, list[int]] = {}
    for i, part in enumerate(sketch.vectors):
        blocks = part.place[0] if part.place is not None and part.layers else None
        together.setdefault(i if blocks is None else (blocks, part.target), []).append(i)
    found: dict[int, jax.Array] = {}
    for indices in together.values():
        first = sketch.vectors[indices[0]]
        drawn = draw(first, first.count * len(indices))
        for i, place in enumerate(indices):
            found[place] = drawn[i :: len(indices)] if first.layers else drawn[0]
    return tuple(found[i] for i in range(len(sketch.vectors)))


def observed_shapes(rule: Rule, form: Form) -> dict[str, tuple[int, ...]]:
    """Of the prediction and of every observable of a step that is recorded."""
    known = sizes(rule, form)
    each = (known["sample"],) if form.single else (known["sample"], known["output"])
    return {"prediction": each} | {one.name: one.shape(known, outputs=not form.single) for one in form.observables}


def empty_history(network: Network, rule: Rule, form: Form, saved: Sequence[int], *, two_time: bool = False) -> History:
    """Room for the steps 0..max(saved), of which `saved` (increasing) keep their observables."""
    slots = jnp.asarray(slots_of(saved, max(saved) + 1))
    found: History = _room_for(network, rule, form=form, slots=slots, rows=len(saved), two_time=two_time)
    return found


def slots_of(saved: Sequence[int] | NDArray[np.int64], length: int) -> NDArray[np.int32]:
    """Of `History`: where each of so many steps is kept, of which `saved` are."""
    slots = np.full(length, np.iinfo(np.int32).max, np.int32)
    slots[np.asarray(saved)] = np.arange(len(saved))
    return slots


def room_for(network: Network, rule: Rule, form: Form, slots: jax.Array, *, rows: int, two_time: bool) -> History:
    """Room for as many steps as there are `slots`, and observables of so many `rows`."""
    sketch, matrices = form.sketch, sum(part.count for part in form.sketch.matrices)
    steps, known, shapes = len(slots), sizes(rule, form), observed_shapes(rule, form)

    def vectors(one: Observable) -> tuple[jax.Array, ...]:
        count = known["sample"] * (known["output"] if one.per_output else 1)

        def room(group: tuple[int, ...]) -> jax.Array:
            population, positions = sketch.layers[group[0]]
            size = network.populations[sketch.place(population)].size
            together = (len(group),) if len(group) > 1 else ()
            return jnp.zeros((rows, *together, count, *((positions,) if positions else ()), size))

        return tuple(map(room, sketch.groups))

    return History(
        Vitals(
            prediction=jnp.zeros((steps, *shapes["prediction"])),
            loss=jnp.zeros(steps),
            sizes=jnp.zeros((steps, 2, sketch.depth)),
            ranks=jnp.zeros((steps, matrices, 2), jnp.int32),
            lost=None if rule.kept is None else jnp.zeros((steps, matrices, 2)),
        ),
        values={one.name: jnp.zeros((rows, *shapes[one.name])) for one in form.observables},
        fields={one.name: vectors(one) for one in form.observables if two_time and one.fields},
        slots=slots,
    )


# compiled as a whole: its operations one by one take ten times as long
_room_for = jax.jit(room_for, static_argnames=("form", "rows", "two_time"))


@kept(static=("form",), donated=("network", "history"))
def advance(
    network: Network,
    history: History,
    rule: Rule,
    start: jax.Array | int,
    stop: jax.Array | int,
    *,
    form: Form,
) -> tuple[Network, History]:
    """Steps `start` .. `stop` - 1 of training, each recorded before its update.  Takes over its first two arguments."""
    trained: tuple[Network, History] = lax.fori_loop(start, stop, partial(step, rule, form), (network, history))
    return trained


def step(rule: Rule, form: Form, t: jax.Array, carry: tuple[Network, History]) -> tuple[Network, History]:
    """Step `t`, recorded."""
    network, history = carry

    def record(network: Network, seen: Pass) -> tuple[jax.Array, dict[str, Any]]:
        shown, kept = Shown(network, rule, seen, t, form), history.fields
        return predictions(seen, form), {
            "values": values(network, rule, seen, t, form),
            "fields": {
                one.name: held(form.sketch.groups, one.fields(shown))
                for one in form.observables
                if one.fields and one.name in kept
            },
        }

    network, seen, (prediction, found) = flow.observed_step(network, rule, t, form, record)
    lost = None
    if rule.kept is not None:
        network, lost = forgetting.forgotten(network, seen, rule.kept, form)
    now, slot = vitals(network, rule, t, seen, prediction, form)._replace(lost=lost), history.slots[t]
    kept = {name: _put(getattr(history, name), slot, new) for name, new in found.items()}
    every = jax.tree.map(lambda room, new: room.at[t].set(new), history.vitals, now)
    return network, history._replace(vitals=every, **kept)


def _put(room: Any, slot: jax.Array, new: Any) -> Any:
    """`new` in row `slot` of every array of `room`; nothing where there is no such row."""
    return jax.tree.map(lambda old, value: old.at[slot].set(value, mode="drop"), room, new)


def recorded(network: Network, history: History, rule: Rule, form: Form) -> dict[str, jax.Array]:
    """Observables of passes of the saved steps, and between them, by the name of their variable and with its
    dimensions; `network` is the state at the end."""
    found = {one.name: one.over_steps(history.values[one.name]) for one in form.observables}
    for one in form.observables:
        if one.name in history.fields:
            kept, two = history.fields[one.name], one.between_steps()
            whole = two.shape({**sizes(rule, form), "step": len(kept[0])}, outputs=not form.single, step=True)
            found[two.name] = two_time_kernels(kept, network, mean=one.mean).reshape(whole)
    return found
