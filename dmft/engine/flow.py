"""Gradient flow d theta / dt = eta D on a grid of times, step dt, with tau = eta dt / P.

"euler": theta' = theta + eta dt D, and an output of its own that follows the NTK, f' = f + tau K Delta(f).

"rosenbrock": ROS2 (Verwer, Spee, Blom & Hundsdorfer 1999), of second order for any approximate Jacobian A of the
direction, and L-stable: fast modes that have relaxed do not limit the step.  With A = -J^T H J of Gauss and Newton (J =
df/dtheta, H the curvature of the loss) all linear systems live in the space of training samples and outputs:

    k1 = J^T a,                  a = (1 + gamma tau H K)^-1 Delta
    k2 = J*^T Delta* - J^T b,    b = (1 + gamma tau H K)^-1 (gamma tau H K* Delta* + 2 a)
    theta' = theta + eta dt (3 k1 + k2) / 2            gamma = 1 - 1/sqrt(2)

where a star stands for theta* = theta + eta dt k1, and K* = J J*^T is the NTK between the two.  The weights move along
the directions of two passes, with other coefficients than Delta: a memory kernel like that of any optimiser.  The
difference from the first stage, eta dt (k1 + k2) / 2, changes the output by

    e = tau (K (a - b) + K* Delta*) / 2,

the error that would be made by a step of first order: `adaptive_flow` chooses steps by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dmft.engine import entrywise
from dmft.engine.form import Form, Rule
from dmft.engine.network import Network, Pass, descend, direction, evaluate, observe
from dmft.engine.ntk import tangent_kernel
from dmft.specs import loss
from dmft.specs.training.entrywise import ENTRYWISE
from dmft.specs.training.flow import EULER, ROSENBROCK
from dmft.specs.training.recurrence import RECURRENCE, Stepping

GAMMA = 1 - 1 / np.sqrt(2)


def observed_step(
    network: Network, rule: Rule, t: jax.Array | int, form: Form, record: Callable[[Network, Pass], Any]
) -> tuple[Network, Pass, Any]:
    """Step `t` of training; the pass before the update, over the rows trained on; what `record` makes of the pass over
    the observed rows and the state after it: of a stream, zeros where its probes are not looked at."""
    if not form.probes:
        network, seen = step(network, rule, t, form)
        return network, seen, record(network, seen)

    def look(network: Network) -> tuple[Network | None, Any]:
        if form.in_turn < form.probes:
            return None, _in_turn(network, rule, t, form, record)
        after, seen = observe(network, rule, t, form)
        return after if form.joint else None, record(after, seen)

    def pass_by(network: Network) -> tuple[Network | None, Any]:
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: look(network)[1]))
        return network if form.joint else None, nothing

    after, found = lax.cond(rule.looked[t], look, pass_by, network)
    network, seen = step(network if after is None else after, rule, t, form)
    return network, seen, found


def _in_turn(
    network: Network, rule: Rule, t: jax.Array | int, form: Form, record: Callable[[Network, Pass], Any]
) -> Any:
    """What `record` makes of probes, some at a time, one after another along the first axis of all that it returns."""
    some = replace(form, probes=form.in_turn)
    turns = -(-form.probes // form.in_turn)
    probes = jnp.resize(rule.probes, (turns, form.in_turn))  # the last ones are filled up

    def of_some(probes: jax.Array) -> Any:
        return record(*observe(network, rule._replace(probes=probes), t, some))

    found = lax.map(of_some, probes)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: form.probes], found)


def step(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass]:
    """Step `t` of training; the pass is that before the update."""
    return STEPS[form.stepping](network, rule, t, form)


def _euler(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass]:
    network, seen, change = evaluate(network, rule, t, form)
    rate = rule.recurrence.b[t, 0]
    K = tangent_kernel(network, seen, seen, form)[:, :, : form.trained]
    assert network.carried is not None
    # rows are all samples in their order: a flow takes the full batch
    carried = network.carried + rate / rule.gamma0 * jnp.tensordot(K, change, axes=2)
    network = replace(network, carried=carried)
    return network.moved(direction(network, seen, change, form), rate), seen


def _rosenbrock(network: Network, rule: Rule, t: jax.Array | int, form: Form) -> tuple[Network, Pass]:
    network, seen, _ = rosenbrock(network, rule, t, rule.recurrence.b[t, 0], form)
    return network, seen


def rosenbrock(
    network: Network, rule: Rule, t: jax.Array | int, rate: jax.Array, form: Form
) -> tuple[Network, Pass, jax.Array]:
    """One step of ROS2 with eta dt = `rate`; the pass before it, and its e (trained row, output)."""
    start, seen, change = evaluate(network, rule, t, form)
    n, outputs = change.shape
    tau, share = rate / rule.gamma0 * rule.share[t][0], rule.share[t][0]
    delta = change.ravel() / share
    K = tangent_kernel(start, seen, seen, form, n).reshape(n * outputs, -1)
    H = _block_diagonal(loss.curvature(jnp, form.loss, seen.output[:n], rule.targets[rule.rows[t][:n]]))
    system = jnp.eye(n * outputs) + GAMMA * tau * H @ K
    a = jnp.linalg.solve(system, delta)

    def along(seen: Pass, coefficients: jax.Array, network: Network) -> Network:
        return network.moved(direction(network, seen, share * coefficients.reshape(n, outputs), form), rate)

    trial, trial_seen, trial_change = evaluate(along(seen, a, start), rule, t + 1, form)
    trial_delta = trial_change.ravel() / share
    # the coordinates of the first pass are still those of its vectors: bases only grow
    K_trial = tangent_kernel(trial, seen, trial_seen, form, n).reshape(n * outputs, -1)
    response = K_trial @ trial_delta
    b = jnp.linalg.solve(system, GAMMA * tau * H @ response + 2 * a)
    end = along(trial_seen, trial_delta / 2, along(seen, (a - b) / 2, trial))
    error = tau / 2 * (K @ (a - b) + response)
    return end, seen, error.reshape(n, outputs)


STEPS: dict[Stepping, Callable[[Network, Rule, jax.Array | int, Form], tuple[Network, Pass]]] = {
    RECURRENCE: descend,
    ENTRYWISE: entrywise.descend,
    EULER: _euler,
    ROSENBROCK: _rosenbrock,
}


def _block_diagonal(blocks: jax.Array) -> jax.Array:
    """(row output, row_2 output_2) from blocks (row, output, output_2)."""
    n, c, _ = blocks.shape
    return (jnp.eye(n)[:, None, :, None] * blocks[:, :, None, :]).reshape(n * c, n * c)
