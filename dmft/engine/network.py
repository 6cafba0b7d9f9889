"""Training of a network, written once over programs, populations and weight matrices.

    forward    f_c = <w_c features> / gamma0        features: what the program of the architecture returns
    backward   g = gamma0 N df/dh of every field, from w_c          (`dmft.engine.tape`)
    direction  of W in h = W v / sqrt(N)      D W = sum_a Delta_a g_a v_a^T / sqrt(N)
               of a thin matrix, h = W x      D W = sum_a Delta_a g_a x_a^T
               of a vector b, or a number     D b = sum_a Delta_a g_a          of w       D w = sum_a Delta_a features_a

`dmft.specs.networks` has the programs.  Sums run over the samples and outputs of a batch, and over positions (mixed,
for a bank of matrices), with the factor gamma0 / P (`dmft.specs.parameterization`); directions of frozen layers are
zero.  Inputs enter by their coordinates in an orthonormal basis of their span, K^x = X X^T, in which a thin matrix is
as Gaussian as in any other; the bias of the first layer is one more of them, with the value sigma for every sample.

The direction is linear in g, and so is g in its start w_c: where no gradient kernels are asked for, one backward pass
from sum_c Delta_c w_c replaces those from every w_c ("events" are outputs, or one for the loss).

Parameters move as one vector theta (thin matrices; d and C of every other, `dmft.engine.matrix`; vectors; w), in a
linear space in which an optimiser is one line (`dmft.specs.training`), with x = (theta, slots); the rate of all of them
is eta gamma0^2 N: what ends in a population of N_p neurons moves N / N_p times its direction, whose g are per neuron;
a number, of which g is gamma0 df/dn, has the rate eta gamma0^2:

    x <- A_t x + b_t D                                                     (`dmft.engine.flow` for gradient flow)

Observables, from the fields before the update:

    Phi^l = <features^l features^l>      G^l = <g^l g^l>      of every named layer; positions: a mean, and a sum
    K     = sum over uses of weights: <g g> x.x', <g g> <v v> (mixed alike), <g g> of vectors; Phi of the readout; each
            times N / N_p of the population in which it ends

The sum runs over layers that are trained; a weight that is used twice has its cross terms.

A stream of data is observed on probes, which are not trained on: a pass of their own, at the recorded steps only.  What
a matrix shows to them is Gaussian given all that it has shown before, so that observables of any one step have the
right law whether the matrix remains what it has become (`joint`), or what it showed is forgotten, by writing nothing
down, or on a copy with room for them; predictions, averages of one probe each, come some at a time.  Laws of several
steps together (two-time kernels, trajectories of one network or one neuron, covariances) need a matrix that remembers;
the limit of single steps does not, and training then meets nothing but its batches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dmft.engine.activations import Function, functions
from dmft.engine.form import Form, Rule
from dmft.engine.layers import Layers, over_layers
from dmft.engine.population import Population, alone
from dmft.engine.smoothing import smoothed
from dmft.engine.tape import Tape, Use
from dmft.specs import loss
from dmft.specs.activation import Activation
from dmft.specs.networks.population import Field
from dmft.specs.networks.program import with_numbers
from dmft.specs.networks.sketch import Part, Sketch
from dmft.specs.parameterization import output_scale


class Parameters(NamedTuple):
    """What training moves, each in the order in which the program meets it: thin matrices (input direction, component);
    what each matrix calls `trained`; vectors (component,), numbers (1,) among them; readout (output,
    [position,] component)."""

    reads: tuple[jax.Array, ...]
    matrices: tuple[Any, ...]
    vectors: tuple[jax.Array, ...]
    readout: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """The state of training.

    reads, matrices, vectors, readout: as of `Parameters`.
    populations: in the order in which the program meets them.
    offset: (sample, output), the output at initialisation, which a centered network subtracts.
    slots: what the optimiser remembers.
    carried: (sample, output), the output where it follows the NTK (`dmft.engine.flow`), else None.
    sketch: the parts of the program.
    """

    reads: tuple[jax.Array, ...]
    matrices: tuple[Any, ...]
    readout: jax.Array
    populations: tuple[Population, ...]
    offset: jax.Array
    vectors: tuple[jax.Array, ...] = ()
    slots: tuple[Parameters, ...] = ()
    carried: jax.Array | None = None
    sketch: Sketch = field(kw_only=True, metadata={"static": True})

    @property
    def parameters(self) -> Parameters:
        return Parameters(self.reads, tuple(m.trained for m in self.matrices), self.vectors, self.readout)

    @property
    def ends(self) -> list[tuple[Population, Population]]:
        """The populations (of what is multiplied, of the image) of every matrix."""
        return [(self.populations[source], self.populations[target]) for source, target in self.sketch.ends]

    def over(self, population: Hashable | None) -> Population:
        """The population of this name; of a number, which has none, itself alone."""
        return alone() if population is None else self.populations[self.sketch.place(population)]

    def with_room(self, count: int, normals: int = 0) -> Network:
        """With matrices that have room for `count` more directions, over populations with so many more `normals`."""

        def wider(part: Part, matrix: Any, ends: tuple[Population, Population]) -> Any:
            return over_blocks(part, lambda m: m.with_room(count, *ends, normals), matrix)

        each = zip(self.sketch.matrices, self.matrices, self.ends, strict=True)
        return replace(self, matrices=tuple(wider(*one) for one in each))

    def moved(self, change: Parameters, rate: Any = 1.0) -> Network:
        """With theta + rate * change."""
        return self.with_parameters(jax.tree.map(lambda p, d: p + rate * d, self.parameters, change))

    def with_parameters(self, parameters: Parameters) -> Network:
        """With others in the place of these."""
        reads, trained, vectors, readout = parameters
        matrices = tuple(replace(m, trained=t) for m, t in zip(self.matrices, trained, strict=True))
        return replace(self, reads=reads, matrices=matrices, vectors=vectors, readout=readout)


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass.

    output: (row, output).
    h, features: of every layer (row, [position,] component); gradients: (row, event, [position,] component), or none.
    top: (row, [position,] component), what the readout averages.
    uses: of weights, in the order of the program.
    tape: its record, which goes on where the pass has left the matrices; end: the field on it that is averaged.
    """

    output: jax.Array
    h: Layers
    features: Layers
    gradients: Layers | None
    top: jax.Array
    uses: tuple[Use, ...]
    tape: Tape
    end: Field

    def squares(self, fields: Layers | None, network: Network) -> jax.Array:
        """(layer,): mean squares of fields."""

        def square(population: Population, v: jax.Array) -> jax.Array:
            return jnp.mean(population.squares(v.reshape(-1, v.shape[-1])))

        assert fields is not None
        return over_layers(network.sketch, network.populations, square, fields.held)


def evaluate(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass, jax.Array]:
    """Forward and backward through the rows of step `t`; the state with what its matrices have shown, the pass, and
    Delta (trained row, output) times share."""
    rows = rule.rows[t]
    tape, end, output = _forward(network, rule, rule.inputs[rows], form)
    offset = jnp.where(t == 0, rule.centered * output, network.offset[rows])
    network = replace(network, offset=network.offset.at[rows].set(offset))
    output = output - offset
    if network.carried is not None:
        start = jnp.where(t == 0, output, network.carried[rows])
        network, output = replace(network, carried=network.carried.at[rows].set(start)), start

    trained = rows[: form.trained]
    descent = loss.descent(jnp, form.loss, output[: form.trained], rule.targets[trained])
    change = descent * rule.share[t][:, None]
    count = len(rows) if form.every_row else form.trained
    if form.per_output:
        starts = every_output(network.readout, count, form.sketch.read)
    else:
        starts = from_loss(change, network.readout, form.sketch.read)
    gradients = tape.backward(end, starts)
    return _shown(network, tape), _seen(tape, end, output, gradients), change


def observe(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass]:
    """Forward and backward through the observed rows of step `t`; the state with what its matrices have shown (of a
    copy with more room, or nothing, where what probes meet is not kept) and the pass.  Of probes, backward only where
    gradients are recorded, from every output."""
    if not form.probes:
        return evaluate(network, rule, t, form)[:2]
    if form.peeks:
        network = replace(network, matrices=tuple(m.peeked for m in network.matrices))
    elif not form.joint:
        network = network.with_room(probe_block(rule, form))
    tape, end, output = _forward(network, rule, rule.inputs[rule.probes], form)
    gradients = None
    if form.gradients:
        gradients = tape.backward(end, every_output(network.readout, form.probes, form.sketch.read))
    return _shown(network, tape), _seen(tape, end, output, gradients)


def most_vectors(form: Form, rows: int, events: int) -> int:
    """That a matrix meets at once in a pass of so many rows forward, and of so many events (row, start) backward."""
    positions = [part.positions for part in form.sketch.matrices]
    forward, backward = (max((each[i] for each in positions), default=0) or 1 for i in (1, 0))
    return max(rows * forward, events * backward)


def probe_block(rule: Rule, form: Form) -> int:
    """The most vectors of probes that a matrix meets at once."""
    probes = form.in_turn
    events = probes * (rule.targets.shape[1] if form.gradients else 0)
    return form.sketch.uses * most_vectors(form, probes, events)


def _forward(network: Network, rule: Rule, x: jax.Array, form: Form) -> tuple[Tape, Field, jax.Array]:
    """The record of the program on inputs `x`, what it returned, and the output (not centered)."""

    def activation(phi: Activation) -> tuple[Function, Function]:
        return smoothed(phi, rule.kink_width) if form.smoothed else functions(phi)

    sketch = form.sketch
    tape = Tape(sketch, form.shape, network.parameters, network.matrices, network.populations, activation)
    end = with_numbers(form.network, rule.numbers).program(tape, x)
    top = network.over(sketch.readout)
    output = top.along(rows_read(end.value, form.sketch.read), network.readout).reshape(len(x), -1)
    return tape, end, output * output_scale(rule.gamma0)


def rows_read(a: jax.Array, positions: int) -> jax.Array:
    """What is averaged (row, [position,] component), or what an output has, of the rows that the readout meets: those
    of samples, or with so many `positions` of each of them."""
    return a.reshape(-1, *a.shape[2:]) if positions else a


def every_output(readout: jax.Array, rows: int, positions: int) -> jax.Array:
    """(row, output, [position,] component): cotangents of what is averaged, from every output; where the readout meets
    so many `positions`, outputs are (position, output of it)."""
    if positions:
        readout = jnp.einsum("xy,cn->xcyn", jnp.eye(positions), readout).reshape(-1, positions, readout.shape[-1])
    return jnp.broadcast_to(readout, (rows, *readout.shape))


def from_loss(change: jax.Array, readout: jax.Array, positions: int) -> jax.Array:
    """(row, 1, [position,] component): the sum of these with the coefficients `change` (row, output)."""
    each = change.reshape(len(change), positions, -1) if positions else change
    return jnp.tensordot(each, readout, 1)[:, None]


def _shown(network: Network, tape: Tape) -> Network:
    return replace(network, matrices=tuple(tape.matrices), populations=tuple(tape.populations))


def _seen(tape: Tape, end: Field, output: jax.Array, gradients: list[jax.Array] | None) -> Pass:
    groups = tape.sketch.groups
    h, features = (Layers(groups, [pair[i].value for pair in tape.layers]) for i in (0, 1))
    backward = None if gradients is None else Layers(groups, gradients)
    return Pass(output, h, features, backward, end.value, tuple(tape.uses), tape, end)


def pushed(events: jax.Array, change: jax.Array, form: Form) -> jax.Array:
    """(trained row, ...): sum of cotangents over outputs, with the coefficients `change` (trained row, output) unless
    the pass has started from them."""
    n = form.trained
    if not form.per_output:
        return events[:, 0]
    if change.shape[1] > 1:
        return jnp.einsum("ac,ac...->a...", change, events[:n])
    return change.reshape(n, *[1] * (events.ndim - 2)) * events[:n, 0]


def direction(network: Network, seen: Pass, change: jax.Array, form: Form, *, matrices: bool = True) -> Parameters:
    """D for the pass `seen` and coefficients `change` (trained row, output): share times Delta, or another in its place
    where passes are per output; without `matrices`, None in their places."""
    n = form.trained

    def moved_by(use: Use, given: jax.Array, g: jax.Array, matrix: Any) -> Any:
        """Of one weight: from what it met, for a matrix its coordinates, and the cotangents, or theirs."""
        g = pushed(g, change, form)
        if use.kind == "vector":
            return g.reshape(-1, g.shape[-1]).sum(axis=0)
        given = given[:n]
        if use.kind == "read":
            return given.reshape(-1, given.shape[-1]).T @ g.reshape(-1, g.shape[-1])
        if use.mix is None:
            return matrix.outer(given.reshape(-1, given.shape[-1]), g.reshape(-1, g.shape[-1]))
        return matrix.outer(given, g, use.mix)

    sketch = form.sketch
    parts: dict[tuple[str, int], Any] = {}
    for use in seen.uses if matrices else [use for use in seen.uses if use.kind != "matrix"]:
        matrix = network.matrices[use.index] if use.kind == "matrix" else None
        found = (use.inputs, use.outputs) if use.kind == "matrix" else (use.met, use.gradient)
        moved = over_blocks(use.part, partial(moved_by, use), *found, matrix)
        moved = per_neuron(moved, sketch.share(use.part.target))
        key = (use.kind, use.index)
        parts[key] = jax.tree.map(jnp.add, parts[key], moved) if key in parts else moved

    def all_of(kind: str, count: int) -> tuple[Any, ...]:
        return tuple(parts.get((kind, i)) for i in range(count))

    whole = Parameters(
        all_of("read", len(sketch.reads)),
        all_of("matrix", len(sketch.matrices)),
        all_of("vector", len(sketch.vectors)),
        per_neuron(
            jnp.tensordot(change.reshape(-1, len(network.readout)).T, rows_read(seen.top[:n], sketch.read), 1),
            sketch.share(sketch.readout),
        ),
    )
    return trained_part(whole, form)


def over_blocks(part: Part, formula: Callable[..., Any], *given: Any) -> Any:
    """`formula` of what belongs to a part, with an axis of blocks before all others where it is that of many."""
    return jax.vmap(formula)(*given) if part.layers else formula(*given)


def per_neuron(change: Any, share: float) -> Any:
    """A direction, or a part of the NTK, of what ends in a population of `share` times N neurons."""
    return change if share == 1 else jax.tree.map(lambda a: a / share, change)


def trained_part(change: Parameters, form: Form) -> Parameters:
    """The change of parameters without that of frozen layers."""
    sketch = form.sketch

    def free(part: Part, change: Any) -> Any:
        blocks = trained_blocks(part, form)
        if all(blocks):
            return change
        if not any(blocks):
            return jax.tree.map(jnp.zeros_like, change)
        return over_blocks(part, lambda one, each: jax.tree.map(lambda a: one * a, each), jnp.asarray(blocks), change)

    def kept(parts: tuple[Part, ...], given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(free, parts, given))

    return Parameters(
        kept(sketch.reads, change.reads),
        kept(sketch.matrices, change.matrices),
        kept(sketch.vectors, change.vectors),
        jnp.zeros_like(change.readout) if sketch.readout_layer in form.frozen else change.readout,
    )


def unless_frozen(after: Parameters, before: Parameters, form: Form) -> Parameters:
    """Parameters after a step, but those of frozen layers as they were before."""
    sketch = form.sketch

    def chosen(part: Part, after: Any, before: Any) -> Any:
        blocks = trained_blocks(part, form)
        if all(blocks) or not any(blocks):
            return after if any(blocks) else before

        def of_block(free: jax.Array, *pair: Any) -> Any:
            return jax.tree.map(lambda new, old: jnp.where(free > 0, new, old), *pair)

        return over_blocks(part, of_block, jnp.asarray(blocks), after, before)

    def each(parts: tuple[Part, ...], after: tuple[Any, ...], before: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(chosen, parts, after, before))

    return Parameters(
        each(sketch.reads, after.reads, before.reads),
        each(sketch.matrices, after.matrices, before.matrices),
        each(sketch.vectors, after.vectors, before.vectors),
        before.readout if sketch.readout_layer in form.frozen else after.readout,
    )


def trained_blocks(part: Part, form: Form) -> tuple[float, ...]:
    """(block,), 1 where the weights of a part are trained, 0 where they are frozen; of one block for single weights."""
    return tuple(float(layer not in form.frozen) for layer in part.layers or (part.layer,))


def descend(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass]:
    """Step `t` of a linear optimiser: the recurrence of theta and slots."""
    network, seen, change = evaluate(network, rule, t, form)
    push = direction(network, seen, change, form)
    A, b, x = rule.recurrence.change[t], rule.recurrence.b[t], (network.parameters, *network.slots)

    def row(i: int) -> Parameters:
        def combined(pushed: jax.Array, *parts: jax.Array) -> jax.Array:
            return sum((A[i, j] * part for j, part in enumerate(parts)), b[i] * pushed)

        return trained_part(jax.tree.map(combined, push, *x), form)

    moved, *slots = (row(i) for i in range(len(x)))
    return replace(network, slots=tuple(slots)).moved(moved), seen


# ---- observables -----------------------------------------------------------------------------------------------------


class Vitals(NamedTuple):
    """Numbers of every step: prediction (observed row[, output]), 0 where a stream is not looked at; loss, of the rows
    trained on, and sizes (2, layer), mean squares of h and g, which tell where training diverges; ranks (matrix, 2),
    directions met by either side; lost (matrix, 2), of what is forgotten (`dmft.engine.forgetting`), if anything is."""

    prediction: jax.Array
    loss: jax.Array
    sizes: jax.Array
    ranks: jax.Array
    lost: jax.Array | None = None


def predictions(seen: Pass, form: Form) -> jax.Array:
    """Of the pass over the observed rows, (row[, output])."""
    return seen.output[:, 0] if form.single else seen.output


def vitals(network: Network, rule: Rule, t: jax.Array | int, seen: Pass, prediction: jax.Array, form: Form) -> Vitals:
    """Of step `t`, from its pass `seen` over the rows trained on; `network` is the state after it."""
    ranks = [jnp.atleast_2d(matrix.ranks.T) for matrix in network.matrices]
    each = loss.values(jnp, form.loss, seen.output[: form.trained], rule.targets[rule.rows[t][: form.trained]])
    return Vitals(
        prediction=prediction,
        loss=jnp.mean(each),
        sizes=jnp.stack([seen.squares(seen.h, network), seen.squares(seen.gradients, network)]),
        ranks=jnp.concatenate(ranks) if ranks else jnp.zeros((0, 2), jnp.int32),
    )
