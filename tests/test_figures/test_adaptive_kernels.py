"""The figure of adaptive kernels draws what `comparisons.predictors` has found."""

import numpy as np

import comparisons
import dmft
from figures import adaptive_kernels


def problem(draw, gamma0, samples):
    rng = np.random.default_rng(draw)
    x, y = rng.standard_normal((samples + 5, 30)), np.sign(rng.standard_normal(samples + 5))
    task = dmft.Task(x[:samples], y[:samples], x[samples:], y[samples:])
    training = dmft.GradientDescent(1.0, 1, weight_decay=0.03)
    return dmft.Problem(dmft.MLP(1, dmft.linear(), gamma0=gamma0), task, training)


def test_predictors_are_drawn_against_richness_and_samples():
    found = {adaptive_kernels.LAZY_NTK: [], adaptive_kernels.FLOW: []}
    for draw in range(2):
        for gamma0, samples in adaptive_kernels.settings((0.5, 1.0), (4, 20)):
            described = problem(draw, gamma0, samples)
            found[adaptive_kernels.FLOW].append(dmft.adaptive_kernel(described, kind="flow"))
            if gamma0 == 1.0:
                found[adaptive_kernels.LAZY_NTK].append(dmft.lazy_kernel(described, kind="flow", ridge=0.1))
    ds = comparisons.predictors(found)
    figure = adaptive_kernels.figure(ds)
    errors, losses, samples = figure.axes
    drawn = [line.get_ydata() for line in losses.lines]
    for name in found:
        row = ds["test_loss"].sel(predictor=name, samples=20)
        assert any(np.array_equal(y, row) for y in drawn)
    assert errors.get_xlabel() == losses.get_xlabel() != samples.get_xlabel()
    assert any(np.array_equal(line.get_xdata(), [4, 20]) for line in samples.lines)


def test_the_posterior_is_drawn_against_its_temperature_too():
    found = {}
    for temperature in (0.01, 0.03, 0.1):
        results = found[temperature] = {}
        gammas = (0.5, 1.0) if temperature == 0.03 else (1.0,)
        for draw in range(2):
            for each in [adaptive_kernels.posterior(problem(draw, g, 20), temperature=temperature) for g in gammas]:
                results.setdefault(adaptive_kernels.BAYES, []).extend(each.values())
            for name, result in adaptive_kernels.lazy(problem(draw, 1.0, 20), temperature=temperature).items():
                results.setdefault(name, []).append(result)
    ds = adaptive_kernels.gathered(found)
    assert ds.sizes == {"temperature": 3, "predictor": 3, "gamma0": 2, "samples": 1}
    assert np.isnan(ds["test_loss"].sel(gamma0=0.5, temperature=0.1, predictor=adaptive_kernels.BAYES)).all()
    by_temperature = adaptive_kernels.figure(ds).axes[3]
    for name in (adaptive_kernels.BAYES, adaptive_kernels.LAZY_NNGP):
        row = ds["test_loss"].sel(predictor=name, gamma0=1.0, samples=20)
        mean = np.mean([[float(one["test_loss"]) for one in results[name][-2:]] for results in found.values()], 1)
        if name == adaptive_kernels.LAZY_NNGP:
            np.testing.assert_allclose(row, mean)
        assert any(np.array_equal(line.get_ydata(), row) for line in by_temperature.lines)
    excess = ds["test_loss_excess"].sel(gamma0=1.0)
    assert (excess.sel(predictor=adaptive_kernels.LAZY_NNGP) == 0).all()
    assert (abs(excess.sel(predictor=adaptive_kernels.BAYES)) > 0).all()
