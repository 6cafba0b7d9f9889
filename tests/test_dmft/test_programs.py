"""Programs on the tape of the engine: with ordinary matrices they are networks that JAX differentiates by itself."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dmft
import finite_nets
from dmft.drivers.run import Run
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
    np.testing.assert_allclose(np.reshape(seen.values["ntk"][0], ntk.shape), ntk, rtol=1e-10, atol=1e-12)
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


@dataclass(frozen=True)
class Tied(dmft.Architecture):
    """One matrix, four times."""

    centered: bool = False

    def program(self, net, x):
        u = net.read("W0", x, to=0)
        h = u
        for _ in range(4):
            h = u + net.apply("W", net.activate(dmft.tanh(), h), to=0)
        return net.layer(h, net.activate(dmft.tanh(), h))


def test_a_matrix_that_is_used_several_times_has_room_for_all_that_it_meets():
    x = np.random.default_rng(2).standard_normal((3, 5))
    described = dmft.Problem(Tied(), dmft.Task(x, x[:, 0]), dmft.GradientDescent(0.5, 3))
    run = Run(described, np.arange(4), 512, 1e-4, centered=False)
    assert described.sketch.uses == 4
    assert run.full_capacity == 3 * 4 * 4
    found = dmft.solve(described, particles=512, scrambles=2, tolerance=1e-4, observables=["prediction"])
    assert 12 < found.attrs["directions"] <= 48
    wide = dmft.solve(described, particles=512, scrambles=2, tolerance=1e-4, observables=["prediction"], save_steps=[3])
    np.testing.assert_allclose(found.prediction[-1], wide.prediction[-1], rtol=1e-9)


def summed(xp, h):
    return h / xp.sqrt((h * h).sum(-1)[..., None])


def centred(_, h):
    return h - h.mean(-1)[..., None]


def gated(_, h, g):
    return h * g


@dataclass(frozen=True)
class Wrong(dmft.Architecture):
    """What `how` says is wrong with it."""

    how: str
    gamma0: float = 2.0

    def program(self, net, x):
        h = net.read("W0", x, to="a")
        if self.how in ("summed", "centred"):
            h = net.local(globals()[self.how], h)
        elif self.how == "richness":
            h = self.gamma0 * h
        elif self.how == "two populations":
            h = net.local(gated, h, net.read("V0", x, to="b"))
        elif self.how == "activated vector":
            h = net.local(gated, h, net.activate(dmft.tanh(), net.vector("b", of="a")))
        elif self.how == "average of two":
            h = net.local(gated, h, net.average(h, net.read("V0", x, to="b")))
        features = net.activate(dmft.tanh(), h)
        if self.how == "layer of a number":
            net.layer(net.average(h, h), features)
        elif self.how == "layer aside":
            net.layer(2 * h, features)
        elif self.how == "layer twice":
            net.layer(h, features)
        return net.layer(h, features)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("summed", "another number beside others than alone"),
        ("centred", "another number beside others than alone"),
        ("richness", "reads one of gamma0"),
        ("two populations", "fields of one population"),
        ("activated vector", "not a vector"),
        ("average of two", "no average of products"),
        ("layer of a number", "layer takes a field of rows"),
        ("layer aside", "layer 1 of Wrong does not reach"),
        ("layer twice", "that no other layer has"),
    ],
)
def test_programs_that_would_give_wrong_numbers_are_refused(how, message):
    x = np.random.default_rng(2).standard_normal((3, 5))
    with pytest.raises(ValueError, match=message):
        dmft.Problem(Wrong(how), dmft.Task(x, x[:, 0]), dmft.GradientDescent(0.5, 3))


@dataclass(frozen=True)
class Beside(dmft.Architecture):
    """A field with positions and its mean over them, in one formula or in one sum."""

    summed: bool

    def inputs(self, x):
        return x

    def program(self, net, x):
        h = net.read("W0", x, to=0)
        mean = net.mix(h, np.full(3, 1 / 3))
        together = h + mean if self.summed else net.local(gated, h, mean)
        return net.mix(net.layer(together, net.activate(dmft.tanh(), together)), np.full(3, 1 / 3))


@pytest.mark.parametrize(("summed", "what"), [(True, "added"), (False, "used together")])
def test_fields_with_positions_are_not_combined_with_others(summed, what):
    x = np.random.default_rng(2).standard_normal((3, 3, 5))  # as many samples as positions: shapes alone would fit
    with pytest.raises(ValueError, match=f"fields of 3 and no positions cannot be {what}"):
        dmft.Problem(Beside(summed), dmft.Task(x, x[:, 0, 0]), dmft.GradientDescent(0.5, 3))


def test_a_vector_before_all_matrices_belongs_to_the_first_layer():
    @dataclass(frozen=True)
    class Early(dmft.Architecture):
        def program(self, net, x):
            h = net.vector("b", of=0) + net.read("W0", x, to=0)
            return net.layer(h, net.activate(dmft.tanh(), h))

    assert Early().sketch((3,)).vectors[0].layer == 0


def test_a_weight_that_reaches_nothing_is_refused():
    @dataclass(frozen=True)
    class Lost(dmft.Architecture):
        def program(self, net, x):
            h = net.read("W0", x, to=0)
            net.apply("W1", h, to=0)
            return net.layer(h, net.activate(dmft.tanh(), h))

    with pytest.raises(ValueError, match="W1 .* does not reach what its program returns"):
        Lost().sketch((3,))
