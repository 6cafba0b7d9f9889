"""Independent runs side by side in one compiled loop, which asks a device for as many operations as one run: where
these are hundreds of small ones a step, eight runs take the time of one.

Arrays have an axis of runs before all others.  Runs may be divided over devices, and the particles of a run over those
that are left.  The loop stops before a step for which there might be no room for directions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from dmft.engine.basis import largest
from dmft.engine.form import Form, Rule
from dmft.engine.loop import History, step
from dmft.engine.network import Network
from dmft.running.executables import kept

RUNS, PARTICLES = "runs", "particles"  # axes of devices
TOGETHER = "together"  # of runs that are side by side on one


@kept(static=("form", "mesh", "partly", "by_kernels"), donated=("networks", "histories"))
def advance_together(
    networks: Network,
    histories: History,
    rule: Rule,
    start: jax.Array,
    stop: jax.Array,
    most: jax.Array,
    *,
    form: Form,
    mesh: Mesh | None = None,
    partly: bool = False,
    by_kernels: bool = False,
) -> tuple[Network, History, jax.Array]:
    """As `advance`, of runs side by side, whose arrays have an axis of runs before all others; before `stop` once a
    matrix has met more than `most` directions.

    Args:
        start: (1,), of every device that has RUNS of its own.
        mesh: of devices, with axes RUNS, over which runs are divided, and PARTICLES, over which those of a run are.
        partly, by_kernels: whether products leave out room for directions that is empty, and how (`dmft.engine.rows`).

    Returns:
        networks and histories, and the step before which they are, in the shape of `start`.
    """

    State = tuple[jax.Array, Network, History]

    def one(state: State, numbers: tuple[Any, ...], together: str | None = None) -> State:
        rule, stop, most = numbers

        def going(state: State) -> jax.Array:
            t, network, _ = state
            met = [jnp.max(matrix.ranks) for matrix in network.matrices]
            most_met = jnp.max(jnp.stack(met)) if met else jnp.zeros((), jnp.int32)
            running: jax.Array = (t < stop) & (largest(most_met, together) <= most)
            return running

        def body(state: State) -> State:
            t, network, history = state
            return t + 1, *step(rule, form, t, (network, history))

        t, network, history = state
        known = _named(network, together=together, partly=partly, by_kernels=by_kernels)
        t, network, history = lax.while_loop(going, body, (t, known, history))
        return t, _named(network, together=None, partly=False, by_kernels=False), history

    def beside(start: jax.Array, networks: Network, histories: History, *numbers: Any) -> State:
        if len(histories.slots) > 1:
            axes = None, 0, 0
            mapped = jax.vmap(partial(one, together=TOGETHER), in_axes=(axes, None), out_axes=axes, axis_name=TOGETHER)
            t, network, history = mapped((start[0], networks, histories), numbers)
            return t[None], network, history
        alone = jax.tree.map(lambda a: a[0], (networks, histories))
        end: State = jax.tree.map(lambda a: a[None], one((start[0], *alone), numbers))
        return end

    arguments = start, networks, histories, rule, stop, most
    if mesh is None:
        reached, networks, histories = beside(*arguments)
    else:
        runs, all_of = PartitionSpec(RUNS), PartitionSpec()  # type: ignore[no-untyped-call]
        specs, outs = (runs, runs, runs, all_of, all_of, all_of), (runs, runs, runs)
        divided = jax.shard_map(beside, mesh=mesh, in_specs=specs, out_specs=outs, axis_names={RUNS}, check_vma=False)
        reached, networks, histories = divided(*arguments)
    return networks, histories, reached


def _named(network: Network, **known: Any) -> Network:
    """With matrices that know the axis of the runs that go beside this one, and which room they multiply."""
    return replace(network, matrices=tuple(replace(m, **known) for m in network.matrices))
