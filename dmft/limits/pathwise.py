"""The limit by a second route: the equations of the mean-field limit forward in time, responses from tangents of paths.

For layers l = 1..L, steps t, samples mu (training and test), memory kernels d, c of the optimiser
(`dmft.specs.training`), c_ts = c(t, s) gamma0 / B for batches of B samples, and Delta_a(s) = 0 for samples that are not
in the batch of step s:

    h^l_mu(t) = d_t u^l_mu(t) + sum_{s<t,a}  [c_ts Delta_a(s) Phi^{l-1}_{mu a}(t,s) + d_t A^{l-1}_{mu a}(t,s)] g^l_a(s)
    z^l_mu(t) = d_t r^l_mu(t) + sum_{s<t,a}   c_ts Delta_a(s) G^{l+1}_{mu a}(t,s) phi(h^l_a(s))
                              + sum_{s<=t,a}  d_t B^l_{mu a}(t,s) phi(h^l_a(s))                  g^l = phi'(h^l) z^l
    u^l ~ GP(0, Phi^{l-1}),   r^l ~ GP(0, G^{l+1}),   Phi^0 = K^x,   G^{L+1} = 1,   A^0 = 0,   B^L = 0
    A^l_{mu a}(t,s) = <d phi(h^l_mu(t)) / d r^l_a(s)>            s < t
    B^l_{mu a}(t,s) = <d g^{l+1}_mu(t) / d u^{l+1}_a(s)>         s <= t; at s = t it holds <phi'' z>
    f_mu(t) = <z^L_mu(t) phi(h^L_mu(t))> / gamma0                less its value at t = 0

Source: Bordelon & Pehlevan 2022, with discrete steps of any linear optimiser (theirs has d = 1, c = eta).  Everything
at step t follows from earlier steps: forward through the layers, then backward, without iteration.  Each particle
carries the derivatives of its own path in its own u and r, which follow the same recursions with kernels and responses
held fixed:

    dh(t) = d_t du(t) + sum_{s<t} [...] dg(s)      dz(t) = d_t dr(t) + sum_{s<=t} [...] phi'(h(s)) dh(s)
    dg(t) = phi'(h(t)) dz(t) + phi''(h(t)) z(t) dh(t)

`dmft.engine.matrix` finds the same responses by conditioning, without derivatives; the two share no code.

Assumptions and approximations
    S particles stand for infinitely many neurons.  phi'' exists: no kinks.  Gaussian paths are drawn from kernels with
    `jitter` times their mean diagonal added to it.

Cost: S n^2 numbers of memory and S n^3 operations for each of at most four tangents a layer, n = samples (T + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike

from dmft.engine.activations import functions
from dmft.specs import MLP, Problem, loss
from dmft.specs.activation import Activation
from dmft.specs.parameterization import batch_scale, output_scale
from dmft.specs.training.recurrence import RECURRENCE


class Terms(NamedTuple):
    """Factors of the responses in the equations, 1 in the theory: A; B at s < t; B at s = t."""

    forward: float | jax.Array = 1.0
    backward: float | jax.Array = 1.0
    equal_time: float | jax.Array = 1.0


class Numbers(NamedTuple):
    """What the equations take from a problem.

    input_kernel: (sample, sample_2); targets: (sample,).
    share: (step, sample), gamma0 / B for the samples of the batch, else 0, and 0 at the last step.
    decay: d (step,); memory: c (step, step_2).
    """

    input_kernel: jax.Array
    targets: jax.Array
    share: jax.Array
    decay: jax.Array
    memory: jax.Array
    gamma0: jax.Array


class Gaussian(NamedTuple):
    """A Gaussian process drawn forward in time: Cholesky factor of its kernel, unit rows at steps to come.

    factor: (row, row_2); normals: (row, particle).  A row is a step and a sample.
    """

    factor: jax.Array
    normals: jax.Array


class Tangent(NamedTuple):
    """Derivatives of phi(h) and of g along paths in one of their sources, (row, source row, particle)."""

    phi: jax.Array
    g: jax.Array


class Layer(NamedTuple):
    """Paths of a layer, zero at steps to come.

    phi, g: (row, particle).  fixed: sources without time, u^1 (sample, particle) or the readout (1, particle).
    u, r: the processes; by_u, by_r: the tangents that a neighbour asks for; None where there is none.
    """

    phi: jax.Array
    g: jax.Array
    fixed: tuple[jax.Array, ...]
    u: Gaussian | None
    r: Gaussian | None
    by_u: Tangent | None
    by_r: Tangent | None


State = tuple[tuple[Layer, ...], jax.Array, jax.Array]  # with Delta of past steps, by shares, and the initial output


def pathwise_limit(problem: Problem, normals: Sequence[ArrayLike], *, jitter: float = 1e-12) -> dict[str, jax.Array]:
    """One estimate of the limit of `problem`, from one set of raw normals.  Wants `jax.enable_x64`.

    Args:
        problem: an `MLP` with a smooth activation and one output, any optimiser but a flow, any loss.
        normals: for each layer (draw, particle), iid N(0,1) over particles; `draws_needed` says how many draws.
        jitter: added to the diagonal of kernels, relative to its mean; well above rounding times the rows of a kernel.

    Returns:
        prediction (step, sample), feature_kernel and gradient_kernel (layer, step, sample, sample_2), ntk (step,
        sample, sample_2), before the update of each step.  The output at initialisation, noise in the limit, is
        subtracted from predictions.  Not finite where the dynamics diverges, or where a kernel is not positive for want
        of jitter.

    Raises:
        ValueError: a problem out of scope; normals of another number of layers, particles or draws.
    """
    return _limit(problem, normals, jitter, Terms())


def draws_needed(problem: Problem) -> list[int]:
    """Rows of normals for each layer: in the order of use, sources without time before the others.

    Raises:
        ValueError: a problem out of scope.
    """
    _check_scope(problem)
    samples, depth = problem.task.n_samples, problem.sketch.depth
    rows = samples * (problem.training.steps + 1)
    return [(samples if first else rows) + (1 if last else rows) for first, last in _ends(depth)]


def bytes_needed(problem: Problem, particles: int) -> int:
    """Of memory, by one estimate: tangents, with room for those of one step, and processes.

    Raises:
        ValueError: a problem out of scope.
    """
    draws, samples = draws_needed(problem), problem.task.n_samples
    rows = samples * (problem.training.steps + 1)
    tangents = 2 * sum((not first) + (not last) for first, last in _ends(problem.sketch.depth))
    return 8 * particles * (tangents * rows * (rows + 2 * samples) + 2 * sum(draws))


def _ends(depth: int) -> list[tuple[bool, bool]]:
    """For each layer, whether it is the first and whether it is the last."""
    return [(layer == 0, layer == depth - 1) for layer in range(depth)]


def _limit(problem: Problem, normals: Sequence[ArrayLike], jitter: float, terms: Terms) -> dict[str, jax.Array]:
    task, training = problem.task, problem.training
    drawn = _checked(problem, normals)
    batches, steps = problem.batches, training.steps
    share = np.zeros((steps + 1, task.n_samples))
    np.put_along_axis(share[:steps], batches, batch_scale(problem.network.gamma0, batches.shape[1]), axis=1)
    numbers = Numbers(
        jnp.asarray(task.input_kernel),
        jnp.asarray(task.y),
        jnp.asarray(share),
        jnp.asarray(training.memory.d),
        jnp.asarray(np.pad(training.memory.c, ((0, 0), (0, 1)))),  # nothing is remembered of the last step
        jnp.asarray(problem.network.gamma0),
    )
    seen: dict[str, jax.Array] = _train(
        drawn, numbers, jitter, terms, activation=problem.sketch.activations[0], loss_name=problem.loss
    )
    return seen


def _check_scope(problem: Problem) -> None:
    network, training = problem.network, problem.training
    if type(network) is not MLP:
        raise ValueError(f"network={network!r}: responses along paths are for dmft.MLP; solve it by conditioning.")
    if network.bias or network.frozen:
        raise ValueError(
            f"bias={network.bias}, frozen={network.frozen}: responses along paths are for networks without biases, all "
            "of whose layers are trained; solve it by conditioning."
        )
    if (network.weight_variance, network.bias_variance) != (1.0, 1.0):
        raise ValueError(
            f"weight_variance={network.weight_variance}, bias_variance={network.bias_variance}: responses along paths "
            "are for variances of one; solve it by conditioning."
        )
    if not network.activation.smooth:
        raise ValueError(
            f"activation {network.activation.name!r} has a kink: responses along paths need phi''. "
            "Take a smooth one, e.g. dmft.softplus(), or solve it by conditioning."
        )
    if training.stepping != RECURRENCE:
        raise ValueError(
            f"training is a {type(training).__name__}; responses along paths are for linear optimisers, such as "
            "dmft.GradientDescent: take one with small rates, or solve it by conditioning."
        )
    if training.observe != "all":
        raise ValueError(
            f'observe="{training.observe}": responses along paths are for all samples, observe="all"; leave it out, or '
            "solve the problem by conditioning."
        )
    if problem.task.outputs:
        raise ValueError(
            f"y_train has shape {problem.task.y_train.shape}: responses along paths are for a single output; "
            "give one column of y as (sample,), or solve it by conditioning."
        )


def _checked(problem: Problem, normals: Sequence[ArrayLike]) -> tuple[jax.Array, ...]:
    needed = draws_needed(problem)
    if len(normals) != len(needed):
        raise ValueError(f"normals are for {len(normals)} layers; the network has depth={len(needed)}.")
    arrays = tuple(jnp.asarray(z, dtype=float) for z in normals)
    for layer, (z, draws) in enumerate(zip(arrays, needed, strict=True), 1):
        if z.ndim != 2 or z.shape[0] < draws or z.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"normals of layer {layer} have shape {z.shape}; expected (draw, particle) with at least {draws} draws "
                "(draws_needed) and as many particles in every layer."
            )
    return arrays


# ---- the run -------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("activation", "loss_name"))
def _train(
    normals: tuple[jax.Array, ...],
    numbers: Numbers,
    jitter: float | jax.Array,
    terms: Terms,
    *,
    activation: Activation,
    loss_name: str,
) -> dict[str, jax.Array]:
    """Steps 0..T; observables before each update."""
    steps, samples = numbers.share.shape
    layers = tuple(
        _at_start(z, steps, samples, first, last) for z, (first, last) in zip(normals, _ends(len(normals)), strict=True)
    )

    def body(state: State, t: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        layers, pull, offset = state
        layers, seen = _step(layers, pull, t, numbers, jitter, terms, activation)
        offset = jnp.where(t == 0, seen["prediction"], offset)
        f = seen["prediction"] - offset
        delta = loss.descent(jnp, loss_name, f[:, None], numbers.targets[:, None])[:, 0]
        pull = _write(pull, numbers.share[t] * delta, t)
        return (layers, pull, offset), seen | {"prediction": f}

    start = (layers, jnp.zeros(steps * samples), jnp.zeros(samples))
    _, seen = lax.scan(body, start, jnp.arange(steps))
    return seen | {name: jnp.moveaxis(seen[name], 0, 1) for name in ("feature_kernel", "gradient_kernel")}


def _at_start(normals: jax.Array, steps: int, samples: int, first: bool, last: bool) -> Layer:
    rows, size = steps * samples, normals.shape[1]
    fixed, rest = ([samples] if first else []) + ([1] if last else []), (not first) + (not last)
    ends = [sum(fixed[: i + 1]) for i in range(len(fixed))]
    sources = tuple(normals[end - count : end] for end, count in zip(ends, fixed, strict=True))
    # early steps get the early draws, u before r
    drawn = normals[sum(fixed) : sum(fixed) + rest * rows].reshape(steps, rest, samples, size)
    processes = [Gaussian(jnp.eye(rows), drawn[:, i].reshape(rows, size)) for i in range(rest)]
    zeros, still = jnp.zeros((rows, size)), jnp.zeros((rows, rows, size))
    tangent = Tangent(still, still)
    return Layer(
        zeros,
        zeros,
        sources,
        u=None if first else processes[0],
        r=None if last else processes[-1],
        by_u=None if first else tangent,
        by_r=None if last else tangent,
    )


def _step(
    layers: tuple[Layer, ...],
    pull: jax.Array,
    t: jax.Array,
    numbers: Numbers,
    jitter: float | jax.Array,
    terms: Terms,
    activation: Activation,
) -> tuple[tuple[Layer, ...], dict[str, jax.Array]]:
    """Forward and backward at step t; `pull` (row,) holds shares of Delta_a(s) of the steps before it, else 0."""
    samples, done = len(numbers.input_kernel), list(layers)
    rows, steps = len(pull), len(pull) // samples
    decay, pull = numbers.decay[t], jnp.repeat(numbers.memory[t], samples) * pull
    past = jnp.repeat(jnp.arange(steps) < t, samples)

    # kernel and response of the layer below, (sample, row)
    kernel, response = jnp.tile(numbers.input_kernel, (1, steps)), jnp.zeros((samples, rows))
    derivatives = []
    for i, layer in enumerate(done):
        done[i], found = _forward(layer, t, kernel, kernel * pull + decay * response, decay, jitter, activation)
        derivatives.append(found)
        kernel, response = _rows_of_kernel(done[i].phi, t, samples), jnp.zeros((samples, rows))
        if (by_r := done[i].by_r) is not None:
            response = terms.forward * _mean_rows(by_r.phi, t, samples)

    # of the layer above
    kernel, response = jnp.ones((samples, rows)), jnp.zeros((samples, rows))
    for i in reversed(range(len(done))):
        done[i], z = _backward(done[i], t, kernel, kernel * pull + decay * response, decay, jitter, derivatives[i])
        if i == len(done) - 1:
            output = output_scale(numbers.gamma0) * jnp.mean(z * _read(done[i].phi, t, samples), axis=1)
        kernel, response = _rows_of_kernel(done[i].g, t, samples), jnp.zeros((samples, rows))
        if (by_u := done[i].by_u) is not None:
            response = jnp.where(past, terms.backward, terms.equal_time) * _mean_rows(by_u.g, t, samples)

    return tuple(done), {"prediction": output} | _kernels(done, t, numbers.input_kernel)


class Derivatives(NamedTuple):
    """At one step: phi' and phi'' (sample, particle); dh by u and by r (sample, source row, particle)."""

    slope: jax.Array
    bend: jax.Array
    by_u: jax.Array | None
    by_r: jax.Array | None


def _forward(
    layer: Layer,
    t: jax.Array,
    covariance: jax.Array,
    memory: jax.Array,
    decay: jax.Array,
    jitter: float | jax.Array,
    activation: Activation,
) -> tuple[Layer, Derivatives]:
    """h and its tangents at step t, given rows (sample, row) of the kernel of u and of the coefficients of g, and d."""
    phi, dphi = functions(activation)
    if layer.u is None:  # the rows of K^x are the same at every step
        process, u = None, _cholesky(covariance[:, : len(covariance)], jitter) @ layer.fixed[0]
    else:
        process, u = _draw(layer.u, covariance, t, jitter)
    h = decay * u + memory @ layer.g
    slope, bend = jax.jvp(dphi, (h,), (jnp.ones_like(h),))
    by_u = None if layer.by_u is None else _apply(memory, layer.by_u.g) + decay * _unit(memory, t)
    by_r = None if layer.by_r is None else _apply(memory, layer.by_r.g)
    layer = layer._replace(
        phi=_write(layer.phi, phi(h), t),
        u=process,
        by_u=_with_phi(layer.by_u, slope, by_u, t),
        by_r=_with_phi(layer.by_r, slope, by_r, t),
    )
    return layer, Derivatives(slope, bend, by_u, by_r)


def _backward(
    layer: Layer,
    t: jax.Array,
    covariance: jax.Array,
    memory: jax.Array,
    decay: jax.Array,
    jitter: float | jax.Array,
    at: Derivatives,
) -> tuple[Layer, jax.Array]:
    """g and its tangents at step t, and z, given rows of the kernel of r and of the coefficients of phi(h), and d."""
    process, r = (None, layer.fixed[-1]) if layer.r is None else _draw(layer.r, covariance, t, jitter)
    z = decay * r + memory @ layer.phi

    def with_g(tangent: Tangent | None, dh: jax.Array | None, source: jax.Array | float) -> Tangent | None:
        if tangent is None or dh is None:
            return None
        dz = _apply(memory, tangent.phi) + source
        return tangent._replace(g=_write(tangent.g, at.slope[:, None] * dz + (at.bend * z)[:, None] * dh, t))

    layer = layer._replace(
        g=_write(layer.g, at.slope * z, t),
        r=process,
        by_u=with_g(layer.by_u, at.by_u, 0.0),
        by_r=with_g(layer.by_r, at.by_r, decay * _unit(memory, t)),
    )
    return layer, z


def _kernels(layers: Sequence[Layer], t: jax.Array, input_kernel: jax.Array) -> dict[str, jax.Array]:
    """Phi, G (layer, sample, sample_2) and K = sum_l G^{l+1} Phi^l at step t."""
    samples = len(input_kernel)
    phi, g = (
        jnp.stack([a @ a.T / a.shape[1] for a in (_read(field, t, samples) for field in fields)])
        for fields in ([layer.phi for layer in layers], [layer.g for layer in layers])
    )
    below = jnp.concatenate([input_kernel[None], phi])
    above = jnp.concatenate([g, jnp.ones_like(g[:1])])
    return {"feature_kernel": phi, "gradient_kernel": g, "ntk": jnp.sum(below * above, axis=0)}


# ---- Gaussian processes --------------------------------------------------------------------------------------------


def _draw(
    process: Gaussian, covariance: jax.Array, t: jax.Array, jitter: float | jax.Array
) -> tuple[Gaussian, jax.Array]:
    """The next rows of the Cholesky factor, and the process at step t given its past, (sample, particle).

    covariance: (sample, row), of step t with the steps up to t.
    """
    samples, rows = covariance.shape
    past = jnp.arange(rows) < t * samples
    known = solve_triangular(process.factor, jnp.where(past, covariance, 0.0).T, lower=True).T
    now = lax.dynamic_slice_in_dim(covariance, t * samples, samples, axis=1)
    new = _cholesky(now, jitter, less=known @ known.T)
    known = lax.dynamic_update_slice(known, new, (0, t * samples))
    return process._replace(factor=_write(process.factor, known, t)), known @ process.normals


def _cholesky(kernel: jax.Array, jitter: float | jax.Array, less: jax.Array | float = 0.0) -> jax.Array:
    """Of kernel - less, with `jitter` of the kernel's mean diagonal added."""
    samples = len(kernel)
    factor: jax.Array = jnp.linalg.cholesky(kernel - less + jitter * jnp.trace(kernel) / samples * jnp.eye(samples))
    return factor


# ---- rows of a step ------------------------------------------------------------------------------------------------


def _write(history: jax.Array, values: jax.Array, t: jax.Array) -> jax.Array:
    """The history (row, ...) with the rows of step t set."""
    return lax.dynamic_update_slice_in_dim(history, values, t * len(values), axis=0)


def _read(history: jax.Array, t: jax.Array, samples: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(history, t * samples, samples, axis=0)


def _rows_of_kernel(field: jax.Array, t: jax.Array, samples: int) -> jax.Array:
    """<field(t) field(s)>, (sample, row)."""
    return _read(field, t, samples) @ field.T / field.shape[1]


def _mean_rows(tangent: jax.Array, t: jax.Array, samples: int) -> jax.Array:
    """A response: the average over particles of a tangent at step t, (sample, row)."""
    return jnp.mean(_read(tangent, t, samples), axis=-1)


def _apply(memory: jax.Array, tangent: jax.Array) -> jax.Array:
    """sum over rows: (sample, row) with (row, source row, particle)."""
    return jnp.tensordot(memory, tangent, axes=1)


def _unit(memory: jax.Array, t: jax.Array) -> jax.Array:
    """Derivative of a source at step t in itself, (sample, source row, 1)."""
    samples = len(memory)
    one = lax.dynamic_update_slice(jnp.zeros_like(memory), jnp.eye(samples), (0, t * samples))
    return one[:, :, None]


def _with_phi(tangent: Tangent | None, slope: jax.Array, dh: jax.Array | None, t: jax.Array) -> Tangent | None:
    if tangent is None or dh is None:
        return None
    return tangent._replace(phi=_write(tangent.phi, slope[:, None] * dh, t))
