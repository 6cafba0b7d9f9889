"""Kernel predictors beside each other: means, errors and paired differences, from results whose losses are known."""

from dataclasses import replace

import numpy as np
import pytest

import comparisons
import dmft
import finite_nets
from dmft.limits import frozen_kernels


def problem(draw=0, gamma0=1.0, samples=4):
    rng = np.random.default_rng(draw)
    x, y = rng.standard_normal((samples + 5, 6)), np.sign(rng.standard_normal(samples + 5))
    task = dmft.Task(x[:samples], y[:samples], x[samples:], y[samples:])
    network = dmft.MLP(1, dmft.linear(), gamma0=gamma0, centered=False)
    return dmft.Problem(network, task, dmft.GradientDescent(0.2, 30, weight_decay=0.02))


def test_lazy_regression_is_that_with_initial_kernels():
    described = replace(problem(), network=dmft.MLP(2, dmft.relu(), weight_variance=(1.0, 2.0, 3.0)))
    task, n = described.task, described.task.n_train
    kernels = frozen_kernels(described.network, x=task.x)
    for kind, K in (("bayes", 3 * kernels.feature[-1]), ("flow", kernels.ntk)):
        found = dmft.lazy_kernel(described, kind=kind, ridge=0.1)
        expected = K[:, :n] @ np.linalg.solve(K[:n, :n] + 0.1 * np.eye(n), task.y_train)
        np.testing.assert_allclose(found["prediction"], expected, rtol=1e-10)
    # the posterior forgets its features as gamma0 falls: the adaptive kernel of a linear network, with T = ridge / P
    linear = dmft.Problem(dmft.MLP(2, dmft.linear(), gamma0=1e-4), task, described.training)
    adaptive = dmft.adaptive_kernel(linear, kind="bayes", temperature=0.1 / n)
    lazy = dmft.lazy_kernel(linear, kind="bayes", ridge=0.1)
    np.testing.assert_allclose(adaptive["prediction"], lazy["prediction"], atol=1e-6)
    rich = dmft.adaptive_kernel(replace(linear, network=dmft.MLP(2, dmft.linear())), kind="bayes", temperature=0.1 / n)
    assert abs(rich["prediction"] - lazy["prediction"]).max() > 0.05
    with pytest.raises(ValueError, match="no inverse"):
        dmft.lazy_kernel(replace(linear, task=dmft.Task(np.ones((3, 1)), [1, 1, -1])), ridge=0.0)


def test_a_tuned_ridge_is_the_best_for_samples_that_are_left_out():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((15, 6))
    y = x[:, 0] + 0.5 * rng.standard_normal(15)  # that can be learned, with noise
    task = dmft.Task(x[:12], y[:12], x[12:], y[12:])
    described = replace(problem(), task=task)
    found = dmft.lazy_kernel(described, kind="flow", ridge="tuned")

    def left_out(ridge):
        losses = []
        for a in range(12):
            others = [*range(a), *range(a + 1, 12)]
            without = dmft.Task(task.x[others], task.y[others], task.x[[a]], task.y[[a]])
            losses.append(dmft.lazy_kernel(replace(described, task=without), kind="flow", ridge=ridge)["test_loss"])
        return float(np.mean(losses))

    best = found.attrs["ridge"]
    np.testing.assert_allclose(left_out(best), found.attrs["left_out_loss"], rtol=1e-9)
    assert found.attrs["left_out_loss"] < min(left_out(best / 2), left_out(2 * best))
    same = dmft.lazy_kernel(described, kind="flow", ridge=best)
    np.testing.assert_allclose(found["prediction"], same["prediction"], rtol=1e-12)
    with pytest.raises(TypeError, match="ridge='tune' is not a number"):
        dmft.lazy_kernel(described, ridge="tune")


def test_losses_are_means_over_draws_and_excesses_are_paired():
    draws, gammas = range(3), (0.5, 2.0)
    lazy = [dmft.lazy_kernel(problem(draw), kind="flow", ridge=0.1) for draw in draws]
    rich = [dmft.adaptive_kernel(problem(draw, gamma0), kind="flow") for draw in draws for gamma0 in gammas]
    found = comparisons.predictors({"lazy": lazy, "rich": rich})
    losses = np.array([ds["test_loss"] for ds in lazy])
    others = np.reshape([ds["test_loss"] for ds in rich], (3, 2))
    at = found.sel(samples=4)
    np.testing.assert_allclose(at["test_loss"].sel(predictor="lazy"), losses.mean())  # at every gamma0
    np.testing.assert_allclose(at["test_loss"].sel(predictor="rich"), others.mean(0))
    difference = others - losses[:, None]
    np.testing.assert_allclose(at["test_loss_excess"].sel(predictor="rich"), difference.mean(0))
    error = difference.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(at["test_loss_excess_se"].sel(predictor="rich"), error)
    unpaired = np.sqrt(losses.var(ddof=1) / 3 + others.var(0, ddof=1) / 3)
    assert (abs(at["test_loss_excess_se"].sel(predictor="rich") - unpaired) > 1e-3).all()
    wrong = np.mean([(ds["prediction"] * ds["target"] <= 0)[4:].mean() for ds in lazy])
    np.testing.assert_allclose(at["test_error"].sel(predictor="lazy"), wrong)
    assert (at["draws"] == 3).all()


def test_networks_stand_beside_predictors_of_other_sizes():
    nets = finite_nets.train_ensemble(problem(), widths=[16], seeds=3, observables=["prediction"])
    more = dmft.lazy_kernel(problem(samples=8), kind="flow", ridge=0.1)
    found = comparisons.predictors({"networks": [nets], "lazy": [more]})
    f = nets["prediction"].isel(step=-1, width=0)[:, 4:]
    loss = ((f - nets["target"][4:]) ** 2).mean() / 2
    np.testing.assert_allclose(found["test_loss"].sel(predictor="networks", samples=4), loss)
    assert np.isnan(found["test_loss"].sel(predictor="networks", samples=8)).all()
    assert np.isnan(found["test_loss_se"]).all()  # of one draw


def test_wrong_sides_are_those_of_classes():
    task = problem().task
    for y, sided in ((task.y, True), (2.0 * task.y, False)):
        described = replace(problem(), task=dmft.Task(task.x[:4], y[:4], task.x[4:], y[4:]))
        found = comparisons.predictors({"lazy": [dmft.lazy_kernel(described, ridge=0.1)]})
        assert np.isfinite(found["test_error"].item()) == sided
        assert np.isfinite(found["test_loss"].item())


def test_what_does_not_go_together_is_refused():
    lazy = dmft.lazy_kernel(problem(), ridge=0.1)
    with pytest.raises(ValueError, match="two results"):
        comparisons.predictors({"lazy": [lazy, lazy]})
    with pytest.raises(ValueError, match="none of lazy"):
        comparisons.predictors({"lazy": [lazy]}, reference="rich")
    with pytest.raises(ValueError, match="missing"):
        comparisons.predictors({"lazy": []})
    gone = lazy.copy()
    gone["prediction"] = gone["prediction"].where(gone["sample"] != 6)
    with pytest.raises(ValueError, match="'gone' are not finite; leave out what diverged"):
        comparisons.predictors({"lazy": [lazy], "gone": [gone]})
    nets = finite_nets.train_ensemble(problem(), widths=[4, 8], seeds=2, observables=["prediction"])
    with pytest.raises(ValueError, match=r"'nets' has 2 widths; give one, result\.sel\(width=\[N\]\)"):
        comparisons.predictors({"nets": [nets]})
    two = dmft.lazy_kernel(replace(problem(), task=dmft.Task(np.eye(3), np.eye(3), np.eye(3), np.eye(3))), ridge=0.1)
    with pytest.raises(ValueError, match="several outputs"):
        comparisons.predictors({"two": [two]})
    alone = replace(problem(), task=dmft.Task(np.eye(2), [1.0, -1.0]))
    with pytest.raises(ValueError, match="no test samples"):
        comparisons.predictors({"lazy": [dmft.lazy_kernel(alone, ridge=0.1)]})
