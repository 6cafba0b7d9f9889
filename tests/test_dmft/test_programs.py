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
from dmft.specs.networks.program import traced

WIDTH = 14


def divided(xp, h, square, gain):
    return xp.tanh(gain * h / xp.sqrt(square + 0.3))


@dataclass(frozen=True)
class Normalised(dmft.Architecture):
    """A stream of neurons, divided by its size before it is shown; W1 is used twice, with a bias and a trained gain."""

    gamma0: float = 1.0
    centered: bool = True
    frozen: tuple = ()
    gain: float = traced(default=1.2)

    def program(self, net, x):
        h, gain = net.read("W0", x, to="stream"), net.number("gain", start=self.gain)
        for _ in range(2):
            features = net.layer(h, net.local(divided, h, net.average(h, h), gain))
            h = h + 0.7 * (net.apply("W1", features, to="stream") + 0.4 * net.vector("b1", of="stream"))
        return net.layer(h, net.local(divided, h, net.average(h, h), gain))


def rates(theta):
    """Of every weight in units of eta gamma0^2: N of those of neurons, 1 of the gain."""
    return [1 if w.size == 1 else WIDTH for w in theta]


def forward(theta, x, gamma0):
    first, hidden, gain, bias, readout = theta
    h = x @ first

    def shown(h):
        return jnp.tanh(gain * h / jnp.sqrt((h**2).mean(-1, keepdims=True) + 0.3))

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
        first, hidden, bias, readout = (
            rng.standard_normal(shape) for shape in ((4, WIDTH), (WIDTH, WIDTH), (WIDTH,), (outputs, WIDTH))
        )
        theta = [first, hidden, np.array([1.2]), bias, readout]
        given = [jnp.asarray(a.copy()) for a in theta]  # the loop takes them over
        start = network.Network(
            reads=(given[0],),
            matrices=(matrix.Explicit(given[1]),),
            vectors=(given[2], given[3]),
            readout=given[4],
            populations=(population.particles(np.zeros((0, WIDTH))),),
            offset=jnp.asarray(np.zeros((4, outputs))),
            sketch=form.sketch,
        )
        room = loop.empty_history(start, rule, form, range(6))
        end, seen = loop.advance(start, room, rule, 0, 6, form=form)
        # the gain comes before W1
        trained = [r * (not (i in (1, 3) and described.network.frozen)) for i, r in enumerate(rates(theta))]

        @jax.jit
        def kernel(theta):
            jacobians = jax.jacobian(forward)(theta, x, gamma0)
            flat = jnp.concatenate(
                [t**0.5 * j.reshape(4, outputs, -1) for t, j in zip(trained, jacobians, strict=True)], -1
            )
            return gamma0**2 * jnp.einsum("acp,bdp->acbd", flat, flat)

        @jax.jit
        def step(theta):
            """Outputs, and the weights after them."""

            def loss(theta):
                f = forward(theta, x, gamma0) - offset
                return ((f[:3] - y) ** 2).sum() / 6, f

            pushes, f = jax.grad(loss, has_aux=True)(theta)
            return f, [w - 0.7 * gamma0**2 * t * g for w, t, g in zip(theta, trained, pushes, strict=True)]

        gamma0, x, y = 1.3, np.asarray(rule.inputs), np.asarray(rule.targets)[:3]
        offset = np.asarray(jax.jit(forward)(theta, x, gamma0)) * float(described.network.centered)
        expected, ntk = [], kernel(theta)
        for _ in range(6):
            gain = theta[2]
            f, theta = step(theta)
            expected.append(f)
        assert [w.shape for w in end.vectors] == [(1,), (WIDTH,)]
        np.testing.assert_allclose(end.vectors[0], gain, rtol=1e-12)
        assert abs(gain - 1.2) > 0.01
    np.testing.assert_allclose(np.reshape(seen.vitals.prediction, (6, 4, outputs)), expected, atol=1e-13)
    np.testing.assert_allclose(np.reshape(seen.values["ntk"][0], ntk.shape), ntk, rtol=1e-10, atol=1e-12)
    assert np.abs(np.asarray(expected)[-1] - np.asarray(expected)[0]).max() > 0.1


def test_the_limit_of_a_program_is_that_of_its_networks():
    described = problem(1)
    theory = dmft.solve(described, particles=1024, scrambles=4, observables=["prediction"])
    nets = finite_nets.train_ensemble(described, widths=[32, 64], seeds=1000, observables=["prediction"])
    mean, error = nets.prediction.mean("seed"), nets.prediction.std("seed") / 1000**0.5
    limit = 2 * mean.sel(width=64) - mean.sel(width=32)
    spread = np.sqrt(4 * error.sel(width=64) ** 2 + error.sel(width=32) ** 2 + theory.prediction_se**2)
    z = ((limit - theory.prediction) / spread).isel(step=slice(1, None)).values
    assert np.sqrt((z**2).mean()) < 2
    assert np.abs(z).max() < 4
    # the twin: a gain off by a twelfth
    other = dmft.solve(problem(1, gain=1.1), particles=1024, scrambles=2, observables=["prediction"])
    wrong = ((limit - other.prediction) / spread).isel(step=slice(1, None)).values
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


def test_numbers_start_where_the_network_says_in_one_compiled_code():
    one, other = problem(1), problem(1, gain=0.4)
    assert one.problem_id != other.problem_id
    assert loop.form_of(one).network == loop.form_of(other).network
    assert [float(*loop.rule_of(each).start.numbers) for each in (one, other)] == pytest.approx([1.2, 0.4])
    nets = finite_nets.train_ensemble(other, widths=[WIDTH], seeds=1, observables=["feature_kernel"], save_steps=[0])
    wide = finite_nets.train_ensemble(one, widths=[WIDTH], seeds=1, observables=["feature_kernel"], save_steps=[0])
    assert (nets.feature_kernel[..., 0, 0, 0] < 0.5 * wide.feature_kernel[..., 0, 0, 0]).all()


def test_a_program_that_trains_a_number_has_no_frozen_kernels():
    with pytest.raises(ValueError, match="trains the number 'gain', from 1.2 on"):
        dmft.lazy_limit(problem(1))


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
        elif self.how == "activated number":
            h = net.local(gated, h, net.activate(dmft.tanh(), net.number("n")))
        elif self.how == "average of numbers":
            h = net.local(gated, h, net.average(net.number("n"), net.number("n")))
        elif self.how == "two starts":
            h = net.local(gated, net.local(gated, h, net.number("n", start=2)), net.number("n", start=3))
        elif self.how == "no start":
            h = net.local(gated, h, net.number("n", start=float("inf")))
        elif self.how == "number and vector":
            h = net.local(gated, net.local(gated, h, net.number("n")), net.vector("n", of="a"))
        elif self.how == "number aside":
            net.number("n")
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
        ("activated number", "activate takes a field of rows, not a vector or a number"),
        ("average of numbers", "no average of products"),
        ("two starts", "number 'n' starts at 2 in one place, at 3 in another"),
        ("no start", "number 'n' starts at inf; give a finite number"),
        ("number and vector", "'n' is used for two different weights"),
        ("number aside", "n of Wrong does not reach what its program returns"),
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


@dataclass(frozen=True)
class Biased(dmft.Architecture):
    """A perceptron of one layer."""

    bias: float = 0.7
    bias_variance: float = 0.0
    weight_variance: float = 2.0

    def program(self, net, x):
        h = net.read("W0", x, to=0)
        return net.layer(h, net.activate(dmft.tanh(), h))


def test_the_bias_of_ones_own_has_a_variance_of_its_own():
    x = np.random.default_rng(2).standard_normal((3, 2))

    def limit(network):
        described = dmft.Problem(network, dmft.Task(x, x[:, 0]), dmft.GradientDescent(0.5, 2))
        found = dmft.solve(described, particles=64, scrambles=2, observables=["feature_kernel"], save_steps=[0])
        return found.feature_kernel.values

    known = dmft.MLP(1, dmft.tanh(), bias=0.7, bias_variance=0.0, weight_variance=2.0)
    np.testing.assert_allclose(limit(Biased()), limit(known), rtol=1e-12)
    assert abs(limit(Biased(bias_variance=2.0)) - limit(known)).max() > 0.01
