"""The figure of adaptive kernels draws what `comparisons.predictors` has found."""

import numpy as np

import comparisons
import dmft
from figures import adaptive_kernels


def test_predictors_are_drawn_against_richness_and_samples():
    found = {adaptive_kernels.LAZY_NTK: [], adaptive_kernels.FLOW: []}
    for draw in range(2):
        for gamma0, samples in adaptive_kernels.settings((0.5, 1.0), (4, 20)):
            rng = np.random.default_rng(draw)
            x, y = rng.standard_normal((samples + 5, 30)), np.sign(rng.standard_normal(samples + 5))
            task = dmft.Task(x[:samples], y[:samples], x[samples:], y[samples:])
            training = dmft.GradientDescent(1.0, 1, weight_decay=0.03)
            described = dmft.Problem(dmft.MLP(1, dmft.linear(), gamma0=gamma0), task, training)
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
