"""Infinitely many residual blocks: closed forms, the equations of deep linear networks, extrapolation in depth."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import dmft
from dmft.drivers.depth import _common_layers
from dmft.errors import DivergenceError
from dmft.limits import depth, frozen_kernels

DEPTHS = [2, 4, 8, 16, 32]


def data(samples=2, seed=1):
    x = np.random.default_rng(seed).standard_normal((samples, 5))
    return x / np.sqrt((x**2).mean(1, keepdims=True))


@pytest.fixture(scope="module")
def deeper():
    """The limit of depth of linear networks, and the arguments of their own equations."""
    problem = dmft.Problem(
        dmft.ResidualMLP(3, dmft.linear(), gamma0=1.3), dmft.Task(data(), [1.0, -1.0]), dmft.GradientDescent(0.05, 6)
    )
    found = dmft.depth_limit(problem, depths=[4, 8, 16], observables=["prediction", "loss", "feature_kernel"])
    return found, {"gamma0": 1.3, "learning_rate": 0.05, "steps": 6}


# dmft.relu() is sqrt(2) max(h, 0): with beta0 / sqrt(2), twice the kernels of max(h, 0)
PLAIN = 0.5**0.5


def kernel_at(K, phi, blocks, beta0=1.0):
    network = dmft.ResidualMLP(blocks + 1, phi, branch_scale=beta0 / blocks**0.5)
    return frozen_kernels(network, K).ntk


@pytest.mark.parametrize("beta0", [0.7, 1.5])
def test_kernels_of_infinite_depth_are_closed_forms(beta0):
    x = data(3)
    K, square = x @ x.T / 5, beta0**2
    linear = dmft.infinite_depth_kernels(K, dmft.linear(), beta0=beta0)
    np.testing.assert_allclose(linear.ntk, K * np.exp(square) * (2 + square), rtol=1e-8)
    relu = dmft.infinite_depth_kernels(K, dmft.relu(), beta0=beta0)
    np.testing.assert_allclose(relu.covariance.diagonal(), K.diagonal() * np.exp(square), rtol=1e-8)
    expected = K.diagonal() * np.exp(square) * (2 + square)
    np.testing.assert_allclose(relu.ntk.diagonal(), expected, rtol=1e-8)
    still = dmft.infinite_depth_kernels(K, dmft.linear(), beta0=beta0, exponent=1)
    np.testing.assert_allclose(still.ntk, K * (2 + square), rtol=1e-12)
    with pytest.raises(ValueError, match="exponent=0.25"):
        dmft.infinite_depth_kernels(K, dmft.relu(), exponent=0.25)


def test_recursions_of_finite_depth_approach_the_equation_like_one_over_depth():
    x = np.random.default_rng(1).standard_normal((6, 10))
    K = x @ x.T / 10
    limit = dmft.infinite_depth_kernels(K, dmft.relu(), beta0=PLAIN).ntk
    off = np.array([L * np.linalg.norm(kernel_at(K, dmft.relu(), L, PLAIN) - limit) for L in (16, 32, 64)])
    np.testing.assert_allclose(off / np.linalg.norm(limit), [0.224, 0.228, 0.229], atol=0.002)
    # the twin: branches without 1 / sqrt(L)
    assert np.linalg.norm(kernel_at(K, dmft.relu(), 16, beta0=4.0)) > 10 * np.linalg.norm(limit)


def test_the_edge_of_learning_rates_has_a_limit_of_depth():
    """Data of the prototype: 32 samples, one step of a generator that has drawn other data before."""
    rng = np.random.default_rng(1)
    for size in ((6, 10), (2, 5)):
        rng.normal(size=size)
    x = rng.normal(size=(32, 10))
    x /= np.linalg.norm(x, axis=1)[:, None] / np.sqrt(10)
    K = x @ x.T / 10
    edges = [128 / np.linalg.eigvalsh(kernel_at(K, dmft.relu(), L, PLAIN))[-1] for L in DEPTHS]
    np.testing.assert_allclose(edges, [4.17, 3.98, 3.88, 3.82, 3.79], atol=0.006)
    limit = dmft.infinite_depth_kernels(K, dmft.relu(), beta0=PLAIN).ntk
    assert 128 / np.linalg.eigvalsh(limit)[-1] == pytest.approx(3.76, abs=0.006)


@pytest.mark.parametrize("blocks", [4, 8, 16])  # one by one, and in a loop
def test_deep_linear_networks_are_those_of_their_own_equations(blocks, deeper):
    (limit, given), x = deeper, data()
    found = limit.prediction.sel(depth=blocks).values
    exact = dmft.linear_residual(x @ x.T / 5, [1.0, -1.0], blocks=blocks, **given)
    np.testing.assert_allclose(found, exact, atol=1e-9)
    without = dmft.linear_residual(x @ x.T / 5, [1.0, -1.0], blocks=blocks, **given, response=False)
    assert abs(found - without).max() > 1e-4


def test_small_richness_is_the_lazy_limit_at_infinite_depth():
    x = data()
    K = x @ x.T / 5
    limits = {L: dmft.linear_residual(K, [1, -1], blocks=L, gamma0=1e-3, learning_rate=0.1, steps=5) for L in (8, 16)}
    ntk, f = dmft.infinite_depth_kernels(K, dmft.linear()).ntk, np.zeros(2)
    for _ in range(5):
        f = f + 0.1 / 2 * ntk @ ([1, -1] - f)
    once, twice = limits[16][-1], 2 * limits[16][-1] - limits[8][-1]
    assert abs(twice - f).max() < 2e-3 < abs(once - f).max()


def test_the_limit_of_depth_is_approached_like_one_over_depth(deeper):
    (found, given), x = deeper, data()
    assert list(found.depth.values) == [4, 8, 16, np.inf]
    f = found.prediction.values
    first, second = (abs(f[i + 1] - f[i]).max() for i in (0, 1))
    assert 1.6 < first / second < 2.1  # .054 / .032 for other data; 2 for larger depths
    # far beyond, by their own equations
    far = [dmft.linear_residual(x @ x.T / 5, [1.0, -1.0], blocks=L, **given) for L in (32, 64)]
    expected = 2 * far[1] - far[0]
    off = abs(f[-1] - expected)
    assert off.max() < abs(f[-2] - expected).max() / 5
    assert (off <= found.prediction_se.values[-1] + 1e-12).all()
    assert found.feature_kernel.sizes["layer"] == 5
    dmft.schema.validate(found, "depth_limit")


def test_what_has_no_limit_of_depth_is_refused():
    task, training = dmft.Task(data(), [1.0, -1.0]), dmft.GradientDescent(0.1, 2)
    for network, message in (
        (dmft.MLP(3), "no number of residual blocks"),
        (dmft.ResidualMLP(3, branch_scale=0.5), "branch_scale=0.5 is a number of its own"),
        (dmft.ResidualMLP(3, frozen=(3,)), "by their numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            dmft.depth_limit(dmft.Problem(network, task, training))
    problem = dmft.Problem(dmft.ResidualMLP(3), task, training)
    for depths in ([8], [8, 24]):
        with pytest.raises(ValueError, match="each twice the one before"):
            dmft.depth_limit(problem, depths)
    with pytest.raises(ValueError, match="two_time"):
        dmft.depth_limit(problem, two_time=True)
    for given, message in (
        ({"depths": 8}, "depths=8 is not a list"),
        ({"seed": 0.5}, "seed=0.5 is not an integer"),
        ({"particle": 64, "scramble": 2}, "does not know particle, scramble; it takes arguments of dmft.solve"),
    ):
        with pytest.raises(TypeError, match=message):
            dmft.depth_limit(problem, **given)


def usual_problem():
    return dmft.Problem(
        dmft.ResidualMLP(3, dmft.linear()), dmft.Task(data(), [1.0, -1.0]), dmft.GradientDescent(0.1, 1)
    )


@cache
def of_depth(depth):
    """A result of the usual problem with so many layers, which no seed changes: of frozen kernels."""
    problem = usual_problem()
    return dmft.lazy_limit(replace(problem, network=problem.network.with_blocks(depth - 1)))


def test_depths_have_scrambles_of_their_own(monkeypatch):
    used = []

    def spied(problem, *, seed):
        used.append(seed)
        return of_depth(problem.network.depth)

    monkeypatch.setattr("dmft.drivers.depth.solve", spied)
    for seed in (0, 1, 2):
        found = dmft.depth_limit(usual_problem(), [2, 4], seed=seed)
        assert found.attrs["seed"] == seed
    assert len({*used}) == 6


def test_accuracies_are_those_of_extrapolated_predictions(monkeypatch):
    def shifted(problem, *, seed):
        del seed
        found = of_depth(problem.network.depth)
        share = {2: 0.25, 4: 0.75}[problem.network.depth - 1]
        shares = {"accuracy": 0 * found.loss + share, "accuracy_se": 0 * found.loss}
        return found.assign(shares | {"prediction": 0 * found.prediction + share - 0.6})

    monkeypatch.setattr("dmft.drivers.depth.solve", shifted)
    found = dmft.depth_limit(usual_problem(), [2, 4])
    # predictions of .65 are right for one of two samples; accuracies extrapolate to 1.25
    assert found.prediction.values[-1] == pytest.approx(0.65)
    assert (found.accuracy.values == np.array([0.25, 0.75, 0.5])[:, None]).all()


def test_layers_and_attention_are_those_of_the_same_blocks():
    deep = xr.Dataset({"kernel": ("layer", range(9)), "attention": ("attention_layer", range(4))})
    found = _common_layers(deep, 2, 2)  # of four blocks of two layers and an attention, two
    assert [*found.kernel.values] == [0, 1, 4, 5, 8]
    assert [*found.attention.values] == [0, 2]


@pytest.mark.slow
def test_attention_has_a_limit_of_depth():
    words = np.random.default_rng(0).standard_normal((2, 3, 4))
    problem = dmft.Problem(
        dmft.Transformer(blocks=1, head_dim=2), dmft.Task(words, [-1.0, 1.0]), dmft.GradientDescent(0.2, 1)
    )
    found = dmft.depth_limit(problem, [1, 2], observables=["attention"], particles=64, scrambles=2)
    assert found.attention.sizes["depth"] == 3
    assert found.attention.sizes["attention_layer"] == 1
    np.testing.assert_allclose(found.attention.sum("key"), 1.0)


LINEAR = {"blocks": 2, "gamma0": 1.0, "learning_rate": 0.1, "steps": 3}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"gamma0": 0.0}, ValueError, "gamma0=0.0 must be positive"),
        ({"blocks": 0}, ValueError, "blocks=0 is too small"),
        ({"steps": 2.5}, TypeError, "steps=2.5 is not an integer"),
        ({"learning_rate": 10.0, "steps": 12}, DivergenceError, r"explodes at step \d+.*Lower learning_rate=10"),
        ({"targets": [1.0]}, ValueError, "targets of 1 samples do not fit input_kernel of 2"),
        ({"targets": [1.0, np.nan]}, ValueError, "targets holds 1 non-finite"),
        ({"input_kernel": [[1.0, 0.0]]}, ValueError, "expected as many rows as columns"),
    ],
)
def test_equations_of_deep_linear_networks_refuse_what_they_cannot_take(changed, error, message):
    given = {"input_kernel": np.eye(2), "targets": [1.0, -1.0], **LINEAR}
    assert np.isfinite(dmft.linear_residual(**given)).all()
    with pytest.raises(error, match=message):
        dmft.linear_residual(**given | changed)


def test_kernels_of_infinite_depth_refuse_what_they_cannot_take(monkeypatch):
    for kernel, message in (([[1.0, 0.5]], "as many rows as columns"), ([[1.0, 0.2], [0.5, 1.0]], "its mirror")):
        with pytest.raises(ValueError, match=message):
            dmft.infinite_depth_kernels(kernel, dmft.relu())
    with pytest.raises(TypeError, match="is no Activation"):
        dmft.infinite_depth_kernels([[1.0]], "relu")
    assert np.isfinite(dmft.infinite_depth_kernels([[1e98]], dmft.relu()).ntk).all()
    with pytest.raises(DivergenceError, match=r"reach 1\S* with beta0=3; lower it"):
        dmft.infinite_depth_kernels([[1e98]], dmft.relu(), beta0=3.0)  # exp(9)
    monkeypatch.setattr(depth, "solve_ivp", lambda *_, **__: SimpleNamespace(success=False, message="small steps"))
    with pytest.raises(DivergenceError, match="beta0=1 are not found: small steps"):
        dmft.infinite_depth_kernels([[1.0]], dmft.relu())


def deep(exponent):
    network = dmft.ResidualCNN(4, 1, dmft.tanh(), 1.5, branch_exponent=exponent)
    return dmft.Problem(network, dmft.Task(data()[:, None], [1.0, -1.0]), dmft.GradientDescent(0.15, 8))


# f at steps 2, 4, 8 of 1,000 networks of 48 blocks and of N = 128 and 256 each, extrapolated, and the largest error
OF_NETWORKS = {
    0.5: ([[0.1885, -0.1901], [0.3307, -0.3323], [0.5553, -0.5563]], 0.0018),
    1.0: ([[0.1654, -0.1661], [0.3031, -0.3046], [0.5297, -0.5323]], 0.0016),
}


@pytest.mark.slow
@pytest.mark.parametrize("exponent", OF_NETWORKS)
def test_the_limit_of_depth_is_that_of_deep_wide_networks(exponent):
    found = dmft.depth_limit(deep(exponent), depths=[8, 16, 32], particles=2048, observables=["prediction"])
    limit, se = (found[name].values[-1, [2, 4, 8]] for name in ("prediction", "prediction_se"))

    def z(mean, error):
        return np.sqrt((((limit - mean) / np.hypot(error, se)) ** 2).mean())

    assert z(*OF_NETWORKS[exponent]) < 2
    assert z(*OF_NETWORKS[1.5 - exponent]) > 3  # those of the other exponent
