"""How the best value of a hyperparameter moves and scatters with width."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import brentq

import comparisons
import dmft
import finite_nets
from dmft.engine import variation
from dmft.errors import DivergenceError
from dmft.finite_width import optimum
from dmft.finite_width import transfer as module

RATES = np.array([0.3, 0.4, 0.5, 0.6, 0.7])
FEW = {"particles": 1024, "scrambles": 8, "draws": 32}


def one_step():
    """A linear network of two layers, one sample, one step: f = c (<h h> + <w w>) + c^2 <h w> with c = eta."""
    task = dmft.Task(np.ones((1, 2)), [1.0])
    return dmft.Problem(dmft.MLP(1, dmft.linear()), task, dmft.GradientDescent(0.5, steps=1))


def nonlinear():
    x = np.random.default_rng(0).standard_normal((3, 4))
    return dmft.Problem(dmft.MLP(1, dmft.tanh()), dmft.Task(x, [-1, 1, 1]), dmft.GradientDescent(1.0, steps=1))


def test_lowest_points_of_polynomials_are_exact():
    u = np.array([-2.0, -1.0, 0.5, 1.0, 2.0])
    a = np.array([[0.3], [-0.4], [0.0]])  # of the cubic terms
    found = optimum.lowest(u, (u - 0.2) ** 2 + a * (u - 0.2) ** 3 / 10)
    np.testing.assert_allclose(found.at, 0.2, atol=1e-12)
    np.testing.assert_allclose(found.curvature, 2.0, atol=1e-12)
    np.testing.assert_allclose(found.value, 0.0, atol=1e-12)
    rising = optimum.lowest(u, np.stack([u, -u, -(u**2)]))
    assert np.isnan(rising.at).all()
    # of two minima the lower one
    wavy = np.array([0.0, -1.0, 0.0, -2.0, 0.0])
    assert optimum.lowest(np.arange(5.0), wavy).at == pytest.approx(3.3, abs=0.05)


def test_one_step_of_a_linear_network_in_closed_form(monkeypatch):
    widths = [16, 64]
    found = dmft.transfer(one_step(), "learning_rate", RATES, widths=widths, scale="linear", progress=False)
    eta, other = RATES, RATES[:, None]
    np.testing.assert_allclose(found.loss_limit, (2 * eta - 1) ** 2 / 2, atol=1e-12)
    np.testing.assert_allclose(found.loss_bias, 2 * eta**2 + eta**4 / 2, rtol=1e-10)
    covariance = (2 * eta - 1) * (2 * other - 1) * (4 * eta * other + (eta * other) ** 2)
    np.testing.assert_allclose(found.loss_covariance, covariance, atol=1e-10)
    np.testing.assert_allclose(found.optimum_limit, 0.5, rtol=1e-10)
    np.testing.assert_allclose(found.curvature, 4.0, rtol=1e-8)
    # -b' / L'' and f'^2 Var f / L''^2; the spline of b, of fourth order, is not exact
    np.testing.assert_allclose(found.optimum_bias, -2.25 / 4, rtol=2e-3)
    np.testing.assert_allclose(found.optimum_variance, 4 * (1 + 1 / 16) / 16, rtol=2e-3)
    exact = [brentq(lambda e, n=n: 2 * (2 * e - 1) + (4 * e + 2 * e**3) / n, 0.3, 0.6) for n in widths]
    np.testing.assert_allclose(found.optimum, exact, rtol=1e-4)
    np.testing.assert_allclose(found.scatter, np.sqrt(found.optimum_variance.values / widths))
    np.testing.assert_allclose(found.grid_shift, (np.array(exact) - 0.5) / 0.1, rtol=2e-3)
    # what the limit's optimum costs, to leading order L'' shift^2 / 2
    cost = found.regret.sel(source=np.inf)
    np.testing.assert_allclose(cost, 4 * found.optimum_shift**2 / 2, rtol=0.2)
    np.testing.assert_allclose(found.regret.sel(source=widths).values.diagonal(), 0.0, atol=1e-12)
    np.testing.assert_allclose(found.probability.sum("value"), 1.0)
    assert found.probability.sel(value=0.5, width=64) > 0.5
    assert not any(found[name].any() for name in found if name.endswith("_se"))

    # without the bias nothing moves
    curves = module._curves
    monkeypatch.setattr(module, "_curves", lambda *a: dataclasses.replace(c := curves(*a), bias=0 * c.bias))
    still = dmft.transfer(one_step(), "learning_rate", RATES, widths=widths, scale="linear", progress=False)
    np.testing.assert_allclose(still.optimum_shift, 0.0, atol=1e-12)
    assert (abs(found.optimum_shift) > 0.005).all()


def test_particles_share_normals_and_compiled_code_along_the_grid(monkeypatch):
    problem, rates = nonlinear(), [9.0, 11.0, 13.0, 15.0]
    before = {f: f._cache_size() for f in (variation.vary, variation.gradients)}
    kept = []
    curves = module._curves
    monkeypatch.setattr(module, "_curves", lambda *a: kept.append(curves(*a)) or kept[-1])
    found = dmft.transfer(problem, "learning_rate", rates, widths=[4096], **FEW, progress=False)
    assert all(f._cache_size() == count + 1 for f, count in before.items())

    # what the drivers of single problems say, of the same scrambles and directions
    (one,) = dmft.vary(problem, learning_rate=[rates[1]])
    alone = dmft.fluctuations(one, **FEW, observables=["loss"], save_steps=[1], progress=False)
    at = found.isel(value=1, value_2=1)
    np.testing.assert_allclose(at.loss_bias, alone.loss_bias[-1], rtol=1e-8)
    np.testing.assert_allclose(at.loss_bias_se, alone.loss_bias_se[-1], rtol=1e-8)
    # without draws, against random directions
    assert abs(at.loss_covariance - alone.loss_variance[-1]) < 4 * alone.loss_variance_se[-1]
    theory = dmft.solve(one, particles=1024, scrambles=8, tolerance=1e-3, observables=["loss"], progress=False)
    np.testing.assert_allclose(at.loss_limit, theory.loss[-1], rtol=1e-6)

    # normals that differ from value to value: errors do not cancel
    (common,) = kept
    mixed = [np.stack([np.roll(c[:, i], i, axis=0) for i in range(4)], 1) for c in (common.limit, common.bias)]
    independent = dataclasses.replace(common, limit=mixed[0], bias=mixed[1])
    monkeypatch.setattr(module, "_curves", lambda *a: independent)
    other = dmft.transfer(problem, "learning_rate", rates, widths=[4096], **FEW, progress=False)
    np.testing.assert_allclose(other.loss_mean, found.loss_mean, rtol=1e-10)
    assert other.optimum_limit_se > 2 * found.optimum_limit_se
    assert other.optimum_bias_se > 1.5 * found.optimum_bias_se


def test_other_hyperparameters_ends_and_divergence():
    problem = one_step()
    settings = {"widths": [32], "progress": False}
    with pytest.warns(UserWarning, match="the limit.* is lowest at an end of the values of gamma0, 0.5 and 2"):
        flat = dmft.transfer(problem, "gamma0", [0.5, 1, 2], **settings)
    assert np.isnan(flat.optimum_limit)
    (fast,) = dmft.vary(problem, learning_rate=[0.55])
    decayed = dmft.transfer(fast, "weight_decay", [0.0, 0.1, 0.2], widths=[1024], progress=False)
    assert 0 < decayed.optimum_limit < 0.2
    assert decayed.attrs["scale"] == "linear"
    with pytest.warns(UserWarning, match="a parabola through three of the values"):
        dmft.transfer(problem, "learning_rate", [0.1, 0.2, 0.9, 1.2], **settings)
    for values, message in (
        ([0.5, 1.0], "give at least 3 different numbers, values of learning_rate"),
        ("12", "is not a list"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            dmft.transfer(problem, "learning_rate", values, **settings)
    with pytest.raises(ValueError, match="this task has loss only; give a task with test samples"):
        dmft.transfer(problem, "learning_rate", RATES, of="test_loss", **settings)
    with pytest.raises(ValueError, match="no logarithm; give positive ones, or scale='linear'"):
        dmft.transfer(problem, "weight_decay", [0, 1, 2], scale="log", **settings)
    with pytest.raises(DivergenceError, match="at learning_rate=1e\\+80, which leave out of values"):
        dmft.transfer(problem, "learning_rate", [0.5, 1, 1e80], **settings)


@pytest.mark.slow
def test_four_thousand_networks_have_the_optima_that_are_predicted():
    """Digits, threes against eights: where parabolas through three rates are lowest."""
    task = dmft.load_task("digits", classes=(3, 8), n_train=4, n_test=0)
    problem = dmft.Problem(dmft.MLP(2, dmft.tanh()), task, dmft.GradientDescent(1.0, steps=5))
    rates, widths = [1.6, 2.0, 2.4], [16, 32, 64, 128]
    theory = dmft.transfer(problem, "learning_rate", rates, widths=widths, scale="linear", draws=128, scrambles=4)
    recorded = {"observables": ["loss"], "save_steps": [5]}
    nets = [
        finite_nets.train_ensemble(one, widths=widths, seeds=4000, **recorded)
        for one in dmft.vary(problem, learning_rate=rates)
    ]
    found = comparisons.transfer(nets, theory, over="learning_rate")
    np.testing.assert_allclose(theory.optimum_limit, 1.988, atol=0.02)
    np.testing.assert_allclose(theory.optimum, [1.857, 1.889, 1.922, 1.948], atol=0.02)
    np.testing.assert_allclose(found.optimum, [1.832, 1.878, 1.912, 1.945], atol=0.01)
    assert (abs(found.optimum_z[1:]) < 3).all()
    # against the limit's alone
    assert ((found.optimum_limit - found.optimum)[:3] > 3 * found.optimum_se[:3]).all()
