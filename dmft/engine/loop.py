"""Initial states, and one compiled loop over the steps of training.

The loop runs from any step to any later one, so that a driver can report progress and look for trouble between
calls; the bounds are arguments of the compiled code, whose size and compile time do not depend on the number of
steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dmft.engine.basis import pivoted_cholesky, rounding
from dmft.engine.matrix import revealed
from dmft.engine.network import Kernels, Network, Rule, Vitals, kernels, step, vitals
from dmft.engine.population import Population
from dmft.specs.activation import Activation
from dmft.specs.parameterization import batch_scale
from dmft.specs.problem import Problem


class History(NamedTuple):
    """What the loop has seen.

    vitals: of every step, with a leading step axis.
    kernels: of the saved steps, with a leading axis over them.
    features, gradients: of the saved steps, for two-time kernels, tuples over layers of (saved step, sample,
        component); or None.
    slots: (step,) where a step is saved on these axes; beyond their end if it is not.
    """

    vitals: Vitals
    kernels: Kernels
    features: tuple[jax.Array, ...] | None
    gradients: tuple[jax.Array, ...] | None
    slots: jax.Array


def rule_of(problem: Problem) -> Rule:
    """The constants of a problem that a step needs."""
    task, training = problem.task, problem.training
    c = training.learning_rate * batch_scale(problem.network.gamma0, task.n_train)
    return Rule(
        input_kernel=jnp.asarray(task.input_kernel),
        targets=jnp.asarray(task.y),
        c=jnp.where(jnp.arange(task.n_samples) < task.n_train, c, 0.0),
        gamma0=jnp.asarray(problem.network.gamma0),
        centered=jnp.asarray(float(problem.network.centered)),
    )


def draws_needed(depth: int, samples: int, capacity: int) -> list[int]:
    """Raw normals that each population may hand out, for matrices of the given capacity on either side."""
    needed = [2 * capacity] * depth
    needed[0] -= capacity - samples  # h^1 in place of the images of a matrix below
    needed[-1] -= capacity - 1  # the readout in place of a matrix above
    return needed


def limit_network(
    rule: Rule,
    populations: Sequence[Population],
    tolerance: float,
    *,
    capacity: int,
    project: bool = True,
) -> Network:
    """A network at initialisation whose matrices are revealed as they are used.

    Args:
        populations: one a layer, with at least `draws_needed` raw normals, none of them used yet.
        capacity: most directions that either side of a matrix may meet.
    """
    populations = list(populations)
    readout = populations[-1].next_normals(1)[0]
    populations[-1] = populations[-1].spend(1)

    # h^1 ~ N(0, K^x); directions of rounding size are left out, those of tolerance size are not: they cost nothing here
    n_samples = len(rule.targets)
    R, _, rank = pivoted_cholesky(
        rule.input_kernel, rounding(rule.input_kernel) * jnp.mean(rule.input_kernel.diagonal())
    )
    h1 = R @ populations[0].next_normals(n_samples)
    populations[0] = populations[0].spend(rank)

    matrices = tuple(
        revealed(source.size, target.size, (capacity, capacity), tolerance, project=project)
        for source, target in pairwise(populations)
    )
    return Network(h1, matrices, readout, tuple(populations), jnp.zeros(n_samples))


def empty_history(network: Network, saved: Sequence[int], *, two_time: bool = False) -> History:
    """Room for the steps 0..max(saved), of which `saved` (increasing) keep their kernels."""
    depth, (samples, _) = len(network.populations), network.h1.shape
    steps, rows = max(saved) + 1, len(saved)

    def vectors() -> tuple[jax.Array, ...] | None:
        return tuple(jnp.zeros((rows, samples, p.size)) for p in network.populations) if two_time else None

    return History(
        Vitals(
            prediction=jnp.zeros((steps, samples)),
            sizes=jnp.zeros((steps, 2, depth)),
            ranks=jnp.zeros((steps, depth - 1, 2), jnp.int32),
        ),
        Kernels(
            feature_kernel=jnp.zeros((rows, depth, samples, samples)),
            gradient_kernel=jnp.zeros((rows, depth, samples, samples)),
            ntk=jnp.zeros((rows, samples, samples)),
        ),
        vectors(),
        vectors(),
        slots=jnp.full(steps, rows).at[jnp.asarray(saved)].set(jnp.arange(rows)),
    )


@partial(jax.jit, static_argnames=("activation",), donate_argnames=("network", "history"))
def advance(
    network: Network,
    history: History,
    rule: Rule,
    start: jax.Array | int,
    stop: jax.Array | int,
    *,
    activation: Activation,
) -> tuple[Network, History]:
    """Steps `start` .. `stop` - 1 of training, each recorded before its update.  Takes over its first two arguments."""

    def body(t: jax.Array, carry: tuple[Network, History]) -> tuple[Network, History]:
        network, history = carry
        network, fields = step(network, rule, t, activation)
        slot = history.slots[t]
        keep = History(
            vitals=jax.tree.map(lambda room, new: room.at[t].set(new), history.vitals, vitals(network, fields)),
            kernels=_put(history.kernels, slot, kernels(network, rule, fields)),
            features=_put(history.features, slot, fields.features),
            gradients=_put(history.gradients, slot, fields.gradients),
            slots=history.slots,
        )
        return network, keep

    trained: tuple[Network, History] = lax.fori_loop(start, stop, body, (network, history))
    return trained


def _put(room: Any, slot: jax.Array, new: Any) -> Any:
    """`new` in row `slot` of every array of `room`; nothing where there is no room, or no such row."""
    if room is None:
        return room
    return jax.tree.map(lambda old, value: old.at[slot].set(value, mode="drop"), room, new)


def two_time_kernels(vectors: tuple[jax.Array, ...], populations: tuple[Population, ...]) -> jax.Array:
    """(layer, step, sample, step_2, sample_2): averages between all steps of (step, sample, component) a layer."""

    def kernel(v: jax.Array, population: Population) -> jax.Array:
        flat = v.reshape(-1, v.shape[-1])
        return population.inner(flat, flat).reshape(v.shape[:2] * 2)

    return jnp.stack([kernel(v, p) for v, p in zip(vectors, populations, strict=True)])
