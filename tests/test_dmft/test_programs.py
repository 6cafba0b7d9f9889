"""Programs on the tape of the engine: with ordinary matrices they are networks that JAX differentiates by itself."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dmft
import finite_nets
from dmft.engine import loop, matrix, network, population

WIDTH = 14


def divided(xp, h, square):
    return xp.tanh(h / xp.sqrt(square + 0.3))


@dataclass(frozen=True)
class Normalised(dmft.Architecture):
    """A stream of neurons, divided by its size before it is shown; W1 is used twice, with a bias between."""

    gamma0: float = 1.0
    centered: bool = True
    frozen: tuple = ()

    def program(self, net, x):
        h = net.read("W0", x, to="stream")
        for _ in range(2):
            features = net.layer(h, net.local(divided, h, net.average(h, h)))
            h = h + 0.7 * (net.apply("W1", features, to="stream") + 0.4 * net.vector("b1", of="stream"))
        return net.layer(h, net.local(divided, h, net.average(h, h)))


def forward(theta, x, gamma0):
    first, hidden, bias, readout = theta
    h = x @ first

    def shown(h):
        return jnp.tanh(h / jnp.sqrt((h**2).mean(-1, keepdims=True) + 0.3))

    for _ in range(2):
        h = h + 0.7 * (shown(h) @ hidden.T / WIDTH**0.5 + 0.4 * bias)
    return shown(h) @ readout.T / (gamma0 * WIDTH)


def problem(outputs, **options):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 6))
    y = x[:, :outputs] if outputs > 1 else x[:, 0]
    task = dmft.Task(x[:3], y[:3], x[3:], y[3:])
    return dmft.Problem(Normalised(1.3, **options), task, dmft.GradientDescent(0.7, 5))


@pytest.mark.parametrize(("outputs", "options"), [(1, {}), (2, {"centered": False}), (1, {"frozen": (1,)})], ids=str)
def test_a_program_is_the_network_that_is_differentiated_automatically(outputs, options):
    described, rng = problem(outputs, **options), np.random.default_rng(0)
    with jax.enable_x64(True):
        rule, form = loop.rule_of(described), loop.form_of(described)
        theta = [rng.standard_normal(shape) for shape in ((4, WIDTH), (WIDTH, WIDTH), (WIDTH,), (outputs, WIDTH))]
        given = [jnp.asarray(a) for a in theta]  # the loop takes them over
        theta = [jnp.array(a) for a in theta]
        start = network.Network(
            reads=(given[0],),
            matrices=(matrix.Explicit(given[1]),),
            vectors=(given[2],),
            readout=given[3],
            populations=(population.particles(np.zeros((0, WIDTH))),),
            offset=jnp.zeros((4, outputs)),
            sketch=form.sketch,
        )
        room = loop.empty_history(start, rule, form, range(6))
        _, seen = loop.advance(start, room, rule, 0, 6, form=form)
        gamma0, x, y = 1.3, rule.inputs, rule.targets[:3]
        offset = forward(theta, x, gamma0) * float(described.network.centered)
        expected, ntk = [], None
        trained = [0.0 if i in (1, 2) and described.network.frozen else 1.0 for i in range(4)]
        for _ in range(6):

            def loss(theta):
                return (((forward(theta, x, gamma0) - offset)[:3] - y) ** 2).sum() / 6

            expected.append(forward(theta, x, gamma0) - offset)
            if ntk is None:
                jacobians = jax.jacobian(forward)(theta, x, gamma0)
                flat = jnp.concatenate(
                    [t * j.reshape(4, outputs, -1) for t, j in zip(trained, jacobians, strict=True)], -1
                )
                ntk = gamma0**2 * WIDTH * jnp.einsum("acp,bdp->acbd", flat, flat)
            pushes = jax.grad(loss)(theta)
            theta = [w - 0.7 * gamma0**2 * WIDTH * t * g for w, t, g in zip(theta, trained, pushes, strict=True)]
    np.testing.assert_allclose(np.reshape(seen.vitals.prediction, (6, 4, outputs)), expected, atol=1e-13)
    np.testing.assert_allclose(np.reshape(seen.kernels.ntk[0], ntk.shape), ntk, rtol=1e-10, atol=1e-12)
    assert np.abs(np.asarray(expected)[-1] - np.asarray(expected)[0]).max() > 0.1


def test_the_limit_of_a_program_is_that_of_its_networks():
    described = problem(1)
    theory = dmft.solve(described, particles=2048, scrambles=4, observables=["prediction"])
    nets = finite_nets.train_ensemble(described, widths=[64, 128], seeds=1500, observables=["prediction"])
    mean, error = nets.prediction.mean("seed"), nets.prediction.std("seed") / 1500**0.5
    limit = 2 * mean.sel(width=128) - mean.sel(width=64)
    spread = np.sqrt(4 * error.sel(width=128) ** 2 + error.sel(width=64) ** 2 + theory.prediction_se**2)
    z = ((limit - theory.prediction) / spread).isel(step=slice(1, None)).values
    assert np.sqrt((z**2).mean()) < 2
    assert np.abs(z).max() < 4
    lost = dmft.solve(problem(1, frozen=(1,)), particles=1024, scrambles=2, observables=["prediction"])
    wrong = ((limit - lost.prediction) / spread).isel(step=slice(1, None)).values
    assert np.abs(wrong).max() > 6


def test_a_weight_that_reaches_nothing_is_refused():
    @dataclass(frozen=True)
    class Lost(dmft.Architecture):
        def program(self, net, x):
            h = net.read("W0", x, to=0)
            net.apply("W1", h, to=0)
            return net.layer(h, net.activate(dmft.tanh(), h))

    with pytest.raises(ValueError, match="W1 .* does not reach what its program returns"):
        Lost().sketch((3,))
