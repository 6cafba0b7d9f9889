"""Normalised descent: networks against SGD of divided gradients, the limit against explicit networks and by width."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from test_entrywise import CPU, DOUBLE, Y, explicit, of_images, of_words, perceptron

import dmft
import finite_nets
from dmft.drivers.run import Run
from dmft.drivers.uncertainty import warn_of_common_flips
from finite_nets.training.programs import trainer_of


def trained_by_sgd(problem, units, width, wrong=1.0):
    """Predictions (step, sample) of the perceptron of `finite_nets` without biases: weights move by lr times gradients
    over their length, as PyTorch has it."""
    net, training = problem.network, problem.training
    start = [w[0] for w in trainer_of(problem, CPU, DOUBLE).draw(width, torch.tensor([0]), 0)]
    factors = [problem.task.dimension**-0.5, *[width**-0.5] * (net.depth - 1), 1 / (net.gamma0 * width)]
    stored = factors if units == "linear" else [1.0] * len(factors)
    leaves = [(k * p).requires_grad_() for k, p in zip(stored, start, strict=True)]
    x, y, found, V = torch.tensor(problem.task.x), torch.tensor(problem.task.y), [], [0.0] * len(leaves)
    for t in range(training.steps + 1):
        *matrices, w = (p * (f / k) for p, f, k in zip(leaves, factors, stored, strict=True))
        h = x.T
        for matrix in matrices:
            h = torch.tanh(0.8 * (matrix @ h)) / 0.8
        f = (w @ h)[0]
        found.append(f.detach())
        if t == training.steps:
            return np.array([f - found[0] for f in found])
        batch = problem.batches[t].tolist()
        slopes = torch.autograd.grad(((f - found[0])[batch] - y[batch]).square().mean() / 2, leaves)
        whole = torch.nn.utils.get_total_norm(slopes)
        groups = dmft.torch_groups(problem, width, units=units, step=t)
        assert [g["name"] for g in groups] == ["W0", "W1", "W2", "w"]
        with torch.no_grad():
            for i, (p, slope, group) in enumerate(zip(leaves, slopes, groups, strict=True)):
                length = whole if training.norm == "all" else slope.norm()
                V[i] = training.momentum * V[i] + slope / max(length, wrong * group["floor"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * V[i])
    raise AssertionError


@pytest.mark.parametrize(
    ("units", "training"),
    [
        ("linear", dmft.NormalizedDescent((0.2, 0.0, 0.2, 0.1), 4, floor=0.4, momentum=0.5)),
        ("unit", dmft.NormalizedDescent(0.3, 4, norm="all", floor=0.9, batches=dmft.random_batches(3, 2, 4))),
        ("linear", dmft.NormalizedDescent(0.2, 4, weight_decay=0.3)),
    ],
    ids=["each", "all", "decay"],
)
def test_networks_are_those_of_torch_with_divided_gradients(units, training):
    problem, width = perceptron(training, depth=3, gamma0=1.7), 12
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=1, dtype="float64", observables=["prediction"])
    found = trained_by_sgd(problem, units, width)
    np.testing.assert_allclose(nets.prediction[0, 0], found, rtol=1e-11, atol=1e-13)  # rounding of some steps
    assert abs(found[-1] - found[0]).max() > 0.1
    if training.floor:  # it was met, in some steps of some weights
        assert abs(trained_by_sgd(problem, units, width, wrong=1.2) - found).max() > 1e-3


EXPLICIT = {
    "perceptron": lambda: perceptron(
        dmft.NormalizedDescent(0.2, 3, floor=0.3, momentum=0.5, weight_decay=0.2), depth=3, bias=0.5
    ),
    "images": lambda: replace(of_images(), training=dmft.NormalizedDescent(0.1, 3)),
    "words": lambda: replace(of_words(), training=dmft.NormalizedDescent(0.05, 3, norm="all")),
}


@pytest.mark.parametrize(
    "name", ["perceptron", *(pytest.param(name, marks=pytest.mark.slow) for name in ("images", "words"))]
)
def test_with_explicit_matrices_the_engine_trains_ordinary_networks(name):
    problem = EXPLICIT[name]()
    with jax.enable_x64(True):
        found = explicit(problem, 12)
    expected = finite_nets.train_ensemble(
        problem, widths=[12], seeds=1, dtype="float64", observables=["prediction"]
    ).prediction[0, 0]
    np.testing.assert_allclose(found, expected.values.reshape(found.shape), rtol=1e-9, atol=1e-12)  # rounding
    assert abs(found[-1] - found[0]).max() > 0.1


def test_the_norm_of_all_gradients_is_that_of_the_tangent_kernel():
    """-dloss/dt of gradient descent: n^2 = Delta K Delta / P^2, so that small steps move predictions by
    (eta / P) K Delta / n."""
    rate = 1e-5
    problem = perceptron(dmft.NormalizedDescent(rate, 1, norm="all"), depth=2, gamma0=1.7, bias=0.5)
    found = dmft.solve(problem, particles=128, scrambles=2, observables=["prediction", "ntk"])
    K, delta = found.ntk[0].values, Y[:3]
    n = np.sqrt(delta @ K[:3, :3] @ delta) / 3
    moved = rate / 3 * K[:, :3] @ delta / n
    # means of two scrambles, and curvature
    np.testing.assert_allclose(found.prediction[1], moved, atol=2e-3 * abs(moved).max())
    assert abs(found.prediction[1] - n * moved).max() > 0.2 * abs(moved).max()  # gradient descent


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:standard errors of")
def test_variances_follow_from_derivatives():
    problem = perceptron(dmft.NormalizedDescent(0.2, 5, norm="all", momentum=0.5), depth=3)
    found = dmft.fluctuations(problem, particles=512, scrambles=4, draws=128, observables=["prediction"])
    nets = finite_nets.train_ensemble(problem, widths=[256], seeds=4000, observables=["prediction"]).prediction[0]
    ratio = (found.prediction_variance / (256 * nets.var("seed")))[1:].mean("sample").values
    print("N Var, derivatives over networks, by step", ratio.round(3))
    np.testing.assert_allclose(ratio, 1, atol=0.1)  # errors of networks .03, of draws .05


def test_what_has_no_like_in_torch_is_refused():
    def groups(units="unit", network=None, **options):
        problem = perceptron(dmft.NormalizedDescent(0.1, 2, **options), **(network or {}))
        return dmft.torch_groups(problem, 8, units=units)

    groups(norm="all", network={"bias": 0.5})
    for refused, words in {
        lambda: groups(units="linear", norm="all"): "take units=\"unit\", or take norm='weight'",
        lambda: groups(network={"bias": 0.5}): "one norm of all of W0, whose columns differ in s",
        lambda: groups(momentum=0.5, weight_decay=0.1): "Take one of them alone",
        lambda: dmft.NormalizedDescent(0.1, 2, norm="layer"): "norm='layer' is unknown; choose one of weight, all",
        lambda: dmft.NormalizedDescent(0.1, 2, floor=-1): "floor=-1",
        lambda: dmft.NormalizedDescent(0.1, 2, momentum=1.0): "momentum=1.0",
    }.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            refused()


def test_gradients_that_vanish_are_no_steps():
    training = dmft.NormalizedDescent(0.1, 2)
    for xp in (np, torch):
        assert training.factor(xp, xp.asarray([4.0, 0.0])).tolist() == [0.5, 0.0]
        assert np.isnan(float(training.factor(xp, xp.asarray(np.nan))))
    assert jax.grad(lambda n: training.factor(jax.numpy, n))(0.0) == 0


def test_directions_that_flip_together_are_warned_of():
    f = np.zeros((4, 5))
    f[2, :3] = Y[:3] * 0.97
    with pytest.warns(UserWarning, match="NormalizedDescent flips all"):
        warn_of_common_flips(Run(perceptron(dmft.NormalizedDescent(0.1, 3)), np.arange(4), 64, 1e-3, True), f)
    for calm in ({"momentum": 0.5}, {"floor": 0.1}):
        assert not dmft.NormalizedDescent(0.1, 3, **calm).flips
