"""Accuracies under squared loss, on request, in the limit, networks, moments and their comparison."""

import numpy as np
import pytest

import comparisons
import dmft
import finite_nets

X = np.random.default_rng(0).standard_normal((12, 4))
SIGNS, CLASSES = np.sign(X[:, 0]), np.eye(3)[np.argmax(X[:, :3], axis=1)]


def problem(y):
    task = dmft.Task(X[:8], y[:8], X[8:], y[8:])
    return dmft.Problem(dmft.MLP(1, dmft.linear(), centered=False), task, dmft.GradientDescent(0.5, 4))


@pytest.mark.parametrize("y", [SIGNS, CLASSES, 2 * CLASSES - 1], ids=["signs", "one-hot", "several signs"])
def test_accuracies_follow_from_predictions_on_both_sides(y):
    names = ["prediction", "loss", "accuracy"]
    theory = dmft.solve(problem(y), observables=names)
    nets = finite_nets.train_ensemble(problem(y), widths=[16, 32], seeds=20, observables=names, dtype="float64")
    right = (
        (np.sign(nets.prediction) == np.sign(nets.target))
        if y.ndim == 1
        else nets.prediction.argmax("output") == nets.target.argmax("output")
    )
    for name, split in (("accuracy", "train"), ("test_accuracy", "test")):
        share = right.sel(sample=nets.split == split).mean("sample")
        np.testing.assert_allclose(nets[name], share.transpose(*nets[name].dims), atol=1e-12)
    assert 0.3 < theory.accuracy[-1] <= 1
    table = comparisons.compare(theory, nets)
    assert {"accuracy_mean", "test_accuracy_deviation"} <= set(table.data_vars)
    moments = finite_nets.train_ensemble(
        problem(y), widths=[16], seeds=20, observables=["accuracy"], keep="moments", dtype="float64"
    )
    found = comparisons.statistics(moments)
    assert set(found.data_vars) >= {"accuracy_mean", "test_accuracy_mean"}
    assert "loss_mean" not in found
    np.testing.assert_allclose(found.accuracy_mean.sel(width=16), nets.accuracy.sel(width=16).mean("seed"), atol=1e-12)


def test_accuracy_is_on_request_and_of_classes_alone():
    assert "accuracy" not in dmft.solve(problem(SIGNS))
    with pytest.raises(ValueError, match="accuracy is for targets that are classes"):
        dmft.solve(problem(X[:, 0]), observables=["accuracy"])
    with pytest.raises(ValueError, match="accuracy is recorded by dmft.solve"):
        dmft.fluctuations(problem(SIGNS), observables=["accuracy"])
