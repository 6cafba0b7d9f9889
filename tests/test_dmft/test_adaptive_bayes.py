"""The posterior of wide networks: closed forms, populations of neurons, and oracles of two samples."""

import numpy as np
import pytest
from scipy.optimize import root

import dmft
from dmft.adaptive_kernels import bayes
from dmft.adaptive_kernels.linear import LinearPosterior
from dmft.errors import NotConvergedError

RELU = dmft.relu(0.5**0.5)  # max(h, 0)


def posed(depth=1, activation=RELU, gamma0=1.0, *, n=6, tests=3, dimension=8, outputs=(), **others):
    """The problem of the measured numbers: six samples with random signs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, dimension))
    y = np.sign(rng.normal(size=(n, *outputs)))
    task = dmft.Task(x, y, rng.normal(size=(tests, dimension)), np.zeros((tests, *outputs)))
    network = dmft.MLP(depth, activation, gamma0=gamma0, **others)
    return dmft.Problem(network, task, dmft.GradientDescent(0.1, steps=1))


def off(found, expected):
    """Relative distance."""
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


def single(gamma0):
    """One sample of small norm, three layers: a transition of first order."""
    return LinearPosterior(np.full((1, 1), 1e-3), np.ones((1, 1)), 3, gamma0, 1.0, (1.0,) * 4)


def least(posterior):
    """The branch of least action."""
    return min(posterior.branches(), key=posterior.action)


def test_three_roots_of_a_deep_linear_posterior_two_with_equal_actions():
    posterior = single(40**0.5)
    np.testing.assert_allclose(posterior.roots(), [0.046, 4.06, 9.85], rtol=0.02)
    actions = [posterior.action(chi) for chi in posterior.branches()]
    np.testing.assert_allclose([actions[0], actions[2]], [19.979, 19.981], atol=2e-3)
    assert actions[1] > actions[0] + 0.05  # the barrier between them
    assert least(single(38**0.5)) < 1 < 5 < least(single(42**0.5))
    assert len(single(3.0).roots()) == 1


@pytest.mark.parametrize("outputs", [(), (3,)])
def test_the_closed_form_is_stationary(outputs):
    """Equations (1) and (2) with Gaussian tilted laws, with variances and a scale; not with other gains."""
    problem = posed(2, dmft.linear(1.3), outputs=outputs, weight_variance=(1.0, 0.5, 2.0))
    task, noise = problem.task, 6 / 120
    kernel, y = task.input_kernel, task.targets[:6]
    posterior = LinearPosterior(kernel[:6, :6], y, 2, 1.0, noise, (1.0, 0.5, 2.0), 1.3)
    chi = least(posterior)

    def deviation(chi):
        found = posterior.order_parameters(kernel, chi)
        first, second = found["feature_kernel"][:, :6, :6]
        below, above = found["feature_dual"][:, :6, :6]
        r = np.linalg.solve(2.0 * second + noise * np.eye(6), y)
        C = 0.5 * first
        tilted = np.linalg.inv(np.linalg.inv(C) + 1.69 * above)
        return max(
            off(first, 1.69 * np.linalg.inv(np.linalg.inv(kernel[:6, :6]) + 1.69 * below)),
            off(second, 1.69 * tilted),
            off(above, -2.0 * r @ r.T),
            off(below, 0.5 * (np.linalg.inv(C) - np.linalg.inv(C) @ tilted @ np.linalg.inv(C))),
            off(found["prediction"], 2.0 * found["feature_kernel"][1][:, :6] @ r),
        )

    assert deviation(chi) < 1e-9
    assert deviation(1.1 * chi) > 1e-2
    found = dmft.adaptive_kernel(problem, temperature=1 / 120)
    assert off(found["feature_kernel"], posterior.order_parameters(kernel, chi)["feature_kernel"]) < 1e-12


def test_small_gamma0_is_regression_on_the_initial_kernel():
    problem = posed(2, dmft.linear(), gamma0=1e-4)
    kernel = problem.task.input_kernel
    lazy = kernel[:, :6] @ np.linalg.solve(kernel[:6, :6] + np.eye(6) / 20, problem.task.y_train)
    assert off(dmft.adaptive_kernel(problem, temperature=1 / 120)["prediction"], lazy) < 1e-6
    rich = dmft.adaptive_kernel(posed(2, dmft.linear()), temperature=1 / 120)
    assert off(rich["prediction"], lazy) > 0.1


# ---- ReLU and two samples: the radius of h integrates exactly, and one angle is left -----------------------------------


def by_angles(problem, noise):
    """Kernels, r of the saddle point: equations (1) and (2) by a sum over angles, solved for all duals at once."""
    depth, gamma0 = problem.network.depth, problem.network.gamma0
    angle = 2 * np.pi * (np.arange(4000) + 0.5) / 4000
    ways = np.array([np.cos(angle), np.sin(angle)])
    kernel, y = problem.task.input_kernel[:2, :2], problem.task.y_train

    def symmetric(entries):
        return np.array([[entries[0], entries[1]], [entries[1], entries[2]]])

    def passed(unknown):
        r, duals = unknown[:2], [symmetric(each) for each in unknown[2:].reshape(-1, 3)]
        duals.append(-(gamma0**2) * np.outer(r, r))
        C, kernels, wanted = kernel, [], []
        for layer, dual in enumerate(duals):
            h = np.linalg.cholesky(C) @ ways
            phi = np.maximum(h, 0)
            curvature = 1 + np.sum(phi * (dual @ phi), 0)
            if curvature.min() <= 0:
                return None
            weight = 2 / curvature**2 / np.sum(1 / curvature)
            if layer:
                wanted.append(np.linalg.solve(C, (h * weight) @ ((h > 0) * (dual @ phi)).T))
            C = (phi * weight) @ phi.T
            kernels.append(C)
        off_duals = [((a + a.T) / 2 - b)[np.triu_indices(2)] for a, b in zip(wanted, duals, strict=False)]
        return kernels, np.concatenate([C @ r + noise * r - y, *off_duals])

    start = np.zeros(2 + 3 * (depth - 1))
    for stage in np.linspace(0, 1, 21)[1:]:
        full, gamma0 = gamma0, gamma0 * stage
        start = root(lambda a: np.full(len(a), 1e3) if passed(a) is None else passed(a)[1], start, tol=1e-11).x
        residual = np.abs(passed(start)[1]).max()
        gamma0 = full
    assert residual < 1e-8
    return passed(start)[0], start[:2]


@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_populations_find_the_saddle_point_of_two_samples(depth):
    problem = posed(depth, gamma0=1.0, n=2, tests=1, dimension=4)
    kernels, r = by_angles(problem, 2 / 40)
    tolerance = 0.02 if depth == 1 else 0.005
    found = dmft.adaptive_kernel(
        problem, temperature=1 / 40, sets=4, tolerance=tolerance, population=128 if depth == 1 else 1024, device="cpu"
    )
    for layer, kernel in enumerate(kernels):
        assert off(found["feature_kernel"][layer, :2, :2], kernel) < 2 * tolerance
    assert off(found["prediction_dual"][:2], r) < 6 * tolerance  # a small difference of large numbers
    lazy, _ = by_angles(posed(depth, gamma0=1e-4, n=2, tests=1, dimension=4), 2 / 40)
    assert off(lazy[-1], kernels[-1]) > 0.2
    assert max(found.attrs[name] for name in ("error", "drift")) < tolerance


@pytest.mark.slow
def test_populations_are_those_of_the_closed_form_and_of_the_lazy_limit():
    problem = posed(2, dmft.linear())
    exact = dmft.adaptive_kernel(problem, temperature=1 / 120)
    found = dmft.adaptive_kernel(problem, temperature=1 / 120, sampled=True, device="cpu")
    for name in ("feature_kernel", "feature_dual", "prediction"):
        assert off(found[name], exact[name].values) < 0.02
    assert abs(found["action"] - exact["action"]) < 4 * found["action_se"] + 0.01
    lazy = posed(2, gamma0=1e-3)
    initial = dmft.lazy_limit(lazy)["feature_kernel"][:, 0].values
    assert off(dmft.adaptive_kernel(lazy, temperature=1 / 120, device="cpu")["feature_kernel"], initial) < 0.02
    assert off(exact["feature_kernel"], dmft.lazy_limit(problem)["feature_kernel"][:, 0].values) > 0.3


def test_what_has_not_converged_is_refused_with_the_estimate(monkeypatch):
    monkeypatch.setattr(bayes, "ROUNDS", 1)
    problem = posed(1, gamma0=1.0, n=2, tests=1, dimension=4)
    with pytest.raises(NotConvergedError, match="Raise population, sets or tolerance") as caught:
        dmft.adaptive_kernel(problem, temperature=1 / 40, sets=4, tolerance=1e-5, population=128, device="cpu")
    assert caught.value.estimate.attrs["result"] == "not converged"
    assert caught.value.estimate.attrs["error"] > 1e-5


def test_what_is_no_number_has_not_converged():
    report = {"error": 0.01, "drift": 0.01, "correction": 0.1, "relaxation": 40.0}
    assert bayes._converged(report, 0.02)
    for name in report:
        assert not bayes._converged(report | {name: np.nan}, 0.02), name
    assert not bayes._converged(report | {"correction": 0.3}, 0.02)
    assert not bayes._converged(report | {"relaxation": 20.0}, 0.02)


def test_what_has_no_such_end_is_refused():
    cases = [
        ({"bias": 1.0}, {}, "without biases"),
        ({"frozen": (0,)}, {}, "all of whose layers learn"),
        ({"weight_variance": (1.0, 0.0)}, {}, "give positive ones"),
        ({}, {"temperature": 0.0}, "must be positive"),
        ({}, {"population": 8}, "at least 96"),
        ({}, {"colour": 8}, "no setting 'colour'"),
        ({}, {"kind": "fish"}, "choose one of bayes, flow"),
    ]
    for network, settings, words in cases:
        with pytest.raises((ValueError, TypeError), match=words):
            dmft.adaptive_kernel(posed(**network), **{"temperature": 0.1} | settings)
    with pytest.raises(
        ValueError, match="population=2048, seed=3 are not for deep linear networks, which have a closed"
    ):
        dmft.adaptive_kernel(posed(2, dmft.linear()), temperature=0.1, population=2048, seed=3, device="cpu")
    with pytest.raises(ValueError, match=r"gamma0=1e\+09 has no growth of kernels below 1e\+08; take a smaller gamma0"):
        dmft.adaptive_kernel(posed(1, dmft.linear(), gamma0=1e9), temperature=0.1)
    residual = dmft.Problem(dmft.ResidualMLP(2), posed().task, dmft.GradientDescent(0.1, 1))
    with pytest.raises(ValueError, match=r"dmft\.MLP"):
        dmft.adaptive_kernel(residual, temperature=0.1)
