"""Frozen kernels of programs of one's own: against networks at initialisation, and where there are none."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from test_populations import Attention, Branched, Funnel

import dmft
import finite_nets
from dmft.limits import distance_from_lazy, frozen_kernels
from dmft.limits.frozen import why_unclosed
from dmft.limits.lazy import has_lazy_limit
from dmft.specs.networks.sketch import Sketch

KERNELS = ("feature_kernel", "gradient_kernel", "ntk")
TANH = dmft.tanh()


@dataclass(frozen=True)
class Added(dmft.Architecture):
    """Activations that are added, a bias that is used twice, a last layer that is Gaussian, other variances."""

    weight_variance: tuple = (1.2, 0.8, 1.5, 0.7)
    bias_variance: float = 0.6
    frozen: tuple = (1,)
    bias: float = 0.3

    def program(self, net, x):
        h = net.read("W0", x, to="a") + 0.5 * net.vector("b", of="a")
        v = net.layer(h, net.activate(dmft.erf(), h))
        h = net.apply("W1", v, to="a") + 0.4 * net.vector("b", of="a")
        v = v + 0.8 * net.layer(h, net.activate(dmft.erf(), h))
        u = net.apply("W2", v, to=dmft.Population("b", width=0.5))
        return net.layer(u, u)


def problem(network):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 3, 4) if isinstance(network, Funnel) else (3, 5))
    return dmft.Problem(network, dmft.Task(x, [1.0, -1.0, 1.0]), dmft.GradientDescent(0.3, 4))


def scores(described, found, seeds=400):
    """Differences from networks of two widths, extrapolated, by their standard errors: the largest of every kernel."""
    nets = finite_nets.train_ensemble(
        described, widths=[32, 64], seeds=seeds, observables=KERNELS, save_steps=[0], dtype="float64"
    )
    largest = {}
    for name, value in zip(KERNELS, (found.feature, found.gradient, found.ntk), strict=True):
        values = nets[name].isel(step=0)
        mean, error = values.mean("seed").values, values.std("seed", ddof=1).values / seeds**0.5
        off = abs(2 * mean[1] - mean[0] - value) / np.hypot(2 * error[1], error[0])
        largest[name] = off[np.isfinite(off)].max()
    return largest


@pytest.mark.parametrize("network", [Added(), Funnel(centered=True)], ids=["added", "positions and widths"])
def test_kernels_are_those_of_wide_networks(network, monkeypatch):
    described = problem(network)
    found = frozen_kernels(network, x=described.task.x)
    assert max(scores(described, found).values()) < 4.5  # of some forty correlated entries
    monkeypatch.setattr(Sketch, "share", lambda *_: 1.0)  # the twin: all populations as wide as the network
    twin = scores(described, frozen_kernels(network, x=described.task.x))
    assert max(twin["gradient_kernel"], twin["ntk"]) > 10


def test_a_program_of_ones_own_is_the_perceptron_that_it_says():
    @dataclass(frozen=True)
    class Perceptron(dmft.Architecture):
        def program(self, net, x):
            h = net.read("W0", x, to=0)
            h = net.apply("W1", net.layer(h, net.activate(TANH, h)), to=1)
            return net.layer(h, net.activate(TANH, h))

    x = np.random.default_rng(3).standard_normal((4, 6))
    mine, known = (
        frozen_kernels(Perceptron(), x=x),
        frozen_kernels(dmft.MLP(2, TANH), dmft.Task(x, x[:, 0]).input_kernel),
    )
    for name, value in vars(known).items():
        np.testing.assert_allclose(vars(mine)[name], value, rtol=1e-12, atol=1e-15)


def test_lazy_training_of_ones_own_is_that_of_small_richness():
    def described(gamma0):
        return replace(problem(Funnel(gamma0, centered=True)), training=dmft.GradientDescent(2.0, 4))

    lazy = dmft.lazy_limit(described(0.03)).prediction
    theory = dmft.solve(described(0.03), particles=2048, scrambles=4, observables=["prediction"])
    bound = 5 * theory.prediction_se.max() + 2e-3
    assert abs(theory.prediction - lazy).max() < bound
    assert abs(lazy).max() > 0.2
    rich = dmft.solve(described(3.0), particles=2048, scrambles=2, observables=["prediction"])
    assert abs(rich.prediction - lazy).max() > 10 * bound
    assert "prediction_change" in distance_from_lazy(theory, described(0.03))


@dataclass(frozen=True)
class Unclosed(dmft.Architecture):
    """What `how` says."""

    how: str

    def program(self, net, x):
        h = net.read("W0", x, to=0)
        v = net.activate(TANH, h)
        if self.how == "twice":
            v = net.activate(TANH, net.apply("W", net.activate(TANH, net.apply("W", v, to=0)), to=0))
        elif self.how == "activated":
            v = net.activate(TANH, v)
        elif self.how == "skipped":
            v = v + h
        return net.layer(h, v)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("twice", "uses the matrix 'W' more than once"),
        ("activated", "takes an activation of a field that is not Gaussian"),
        ("skipped", "adds a field and its activation, or two different activations"),
    ],
)
def test_kernels_that_do_not_close_are_refused(how, reason):
    described = problem(Unclosed(how))
    with pytest.raises(
        ValueError, match=f"lazy_limit: the program of Unclosed {reason}.*; use dmft.solve with a small"
    ):
        dmft.lazy_limit(described)
    assert reason in why_unclosed(Unclosed(how), (5,))
    assert not has_lazy_limit(described)


def test_formulas_and_averages_are_named():
    assert "has the formula attended in net.local" in why_unclosed(Attention(), (2, 6))
    assert "uses averages over neurons" in why_unclosed(Branched(), (5,))
    assert why_unclosed(dmft.CNN(2, 3), (5, 2)) == why_unclosed(dmft.MLP(2, TANH), (5,)) == ""


def test_what_is_read_has_to_be_given():
    with pytest.raises(ValueError, match="takes input_kernel or x, one of them"):
        frozen_kernels(dmft.MLP(2, TANH))
    with pytest.raises(ValueError, match="CNN may need more of inputs than their products input_kernel; give x="):
        frozen_kernels(dmft.CNN(2, 3), np.eye(3))
