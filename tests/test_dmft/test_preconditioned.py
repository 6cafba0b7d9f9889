"""The metric of adaptive optimisers: its tangent kernel and curvature against dense ones, and where training goes on."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from test_entrywise import CPU, DOUBLE, TANH, X, Y, explicit_start, of_images, of_words, perceptron

import dmft
import finite_nets
from dmft.engine import curvature, loop, preconditioned
from dmft.schema.observed.preconditioned_ntk import preconditioned_ntk
from dmft.specs.parameterization import entry_step
from finite_nets.training.programs import trainer_of

ASKED = ["prediction", "preconditioned_ntk", "preconditioned_sharpness"]
ADAM = dmft.Adam(0.1, 3, beta1=0.0, beta2=0.9, eps=1e-2)


def dense(problem, width, t):
    """K and the largest eigenvalue of M^(1/2) H M^(1/2) before step t, by autograd of a plain network without biases, of
    all weights N(0, 1) and the history of their gradients."""
    net, rule, task = problem.network, problem.training, problem.task
    start = [w[0] for w in trainer_of(problem, CPU, DOUBLE).draw(width, torch.tensor([0]), 0)]
    theta = torch.cat([w.flatten() for w in start]).requires_grad_()
    shapes = [w.shape for w in start]
    factors = [task.dimension**-0.5, *[width**-0.5] * (net.depth - 1), 1.0]
    s = torch.cat([torch.full_like(w, f).flatten() for w, f in zip(start, factors, strict=True)])
    x, y, n = torch.tensor(task.x), torch.tensor(task.y), task.n_train

    def output(theta):
        parts = torch.split(s * theta, [w.numel() for w in start])
        *matrices, w = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        h = x.T
        for matrix in matrices:
            h = torch.tanh(0.8 * (matrix @ h)) / 0.8
        return (w @ h)[0] / (net.gamma0 * width)

    first, v, m = output(theta).detach(), torch.zeros_like(theta), torch.zeros_like(theta)

    def loss(theta):
        return ((output(theta) - first)[:n] - y[:n]).square().mean() / 2

    for step in range(t + 1):
        G = -torch.autograd.functional.jacobian(loss, theta) * net.gamma0 * width / s
        (m, v), Q = rule.update(torch, step, (m, v), G)
        P = 1 / (torch.sqrt(v / (1 - rule.beta2 ** (step + 1))) + rule.eps)
        if step < t:
            theta = (theta + rule.rates[step] * entry_step(net.gamma0, s) * Q).detach()
    J, H = torch.autograd.functional.jacobian(output, theta), torch.autograd.functional.hessian(loss, theta)
    M = net.gamma0**2 * width * P
    A = M.sqrt()[:, None] * H * M.sqrt()
    return (J * M @ J.T).numpy(), torch.linalg.eigvalsh(A)[-1].item()


def test_networks_have_the_kernel_and_sharpness_of_dense_matrices(monkeypatch):
    monkeypatch.setattr(dmft.specs.curvature, "ITERATIONS", 40)
    problem = perceptron(replace(ADAM, beta1=0.5), gamma0=1.3)
    found = finite_nets.train_ensemble(problem, widths=[6], seeds=1, dtype="float64", observables=[*ASKED, "sharpness"])
    for t in (0, 2, 3):
        K, largest = dense(problem, 6, t)
        np.testing.assert_allclose(found.preconditioned_ntk[0, 0, t], K, rtol=1e-9)
        assert found.preconditioned_sharpness[0, 0, t].item() == pytest.approx(largest, rel=1e-6)
        assert abs(found.sharpness[0, 0, t] / largest - 1) > 0.2  # without P


TWO_OUTPUTS = dmft.Task(X[:3], np.stack([Y[:3], X[:3, 0]], 1), X[3:], np.stack([Y[3:], X[3:, 0]], 1))
EXPLICIT = {
    "perceptron": lambda: dmft.Problem(dmft.ResidualMLP(3, TANH, bias=0.5, frozen=(1,)), TWO_OUTPUTS, ADAM),
    "images": lambda: replace(of_images(), training=replace(ADAM, learning_rate=0.05)),
    "words": lambda: replace(of_words(), training=dmft.RMSprop(0.01, 3, alpha=0.9, eps=0.1)),
}


@pytest.mark.parametrize(
    "name", ["perceptron", *(pytest.param(name, marks=pytest.mark.slow) for name in ("images", "words"))]
)
def test_with_explicit_matrices_the_engine_has_those_of_networks(monkeypatch, name):
    monkeypatch.setattr(dmft.specs.curvature, "ITERATIONS", 12)
    problem, width, t = EXPLICIT[name](), 8, 3
    asked = [*ASKED, "sharpness"]
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=1, dtype="float64", observables=asked)
    expected = nets.preconditioned_ntk[0, 0, t].values
    with jax.enable_x64(True):
        start, rule, form = explicit_start(problem, width, (preconditioned_ntk,))
        room = loop.empty_history(start, rule, form, [t])
        network, _ = loop.advance(start, room, rule, 0, t, form=form)
        largest = curvature.eigenvalues(network, rule, t, form=form, made=preconditioned.of_descent)[-1]
        _, history = loop.advance(network, loop.empty_history(network, rule, form, [t]), rule, t, t + 1, form=form)
    K = np.asarray(history.values["preconditioned_ntk"][0])
    np.testing.assert_allclose(K, expected.reshape(K.shape), rtol=1e-8, atol=1e-11 * abs(expected).max())  # rounding
    assert largest == pytest.approx(nets.preconditioned_sharpness[0, 0, t].item(), rel=1e-7)
    assert abs(nets.sharpness[0, 0, t] / largest - 1) > 0.1  # without P
    symmetric = K.reshape(-1, int(K.size**0.5))
    np.testing.assert_allclose(symmetric, symmetric.T, atol=1e-10 * abs(symmetric).max())


def test_a_small_step_moves_predictions_by_the_kernel():
    problem = perceptron(dmft.Adam(1e-5, 1, beta1=0.0, eps=0.1), gamma0=1.3)
    found = finite_nets.train_ensemble(
        problem, widths=[32], seeds=1, dtype="float64", observables=["prediction", "ntk", "preconditioned_ntk"]
    ).isel(width=0, seed=0)
    moved = found.prediction[1].values
    np.testing.assert_allclose(
        1e-5 / 3 * found.preconditioned_ntk[0].values[:, :3] @ Y[:3], moved, rtol=1e-3
    )  # of order eta
    assert abs(1e-5 / 3 * found.ntk[0].values[:, :3] @ Y[:3] - moved).max() > 0.5 * abs(moved).max()


@pytest.mark.slow
def test_training_with_the_full_batch_goes_on_near_the_edge_of_stability():
    """2 (1 + beta1) / ((1 - beta1) eta), 38 / eta of beta1 = .9 (Cohen et al. 2022)."""
    for beta1 in (0.9, 0.0):
        training = dmft.Adam(1.0, 300, beta1=beta1, beta2=0.99, eps=1e-7)
        last = list(range(140, 301, 4))
        nets = finite_nets.train_ensemble(
            perceptron(training),
            widths=[64],
            seeds=6,
            dtype="float64",
            observables=["sharpness", "preconditioned_sharpness"],
            save_steps=last,
        )
        edge = 2 * (1 + beta1) / (1 - beta1)
        ratio = (nets.preconditioned_sharpness.median("step") / edge).values
        print(f"beta1 {beta1}: over the edge {edge:.1f}", ratio.round(2))
        assert 0.7 < np.mean(ratio) < 1.25  # around it, more often below with momentum
        assert np.median(nets.sharpness) < 0.5 * edge  # of gradient descent: somewhere else


@pytest.mark.slow
def test_the_limit_comes_to_the_edge_of_stability_too():
    # until step 45 or so: without momentum losses grow then, by several orders, and scrambles part (in networks, too)
    problem = perceptron(dmft.Adam(1.0, 42, beta1=0.0, beta2=0.99, eps=1e-7))
    asked = ["sharpness", "preconditioned_sharpness"]
    found = dmft.solve(problem, particles=512, scrambles=2, observables=asked, save_steps=[0, 3, *range(18, 43, 4)])
    ratio = (found.preconditioned_sharpness / 2).values
    print("over the edge", ratio.round(2), (found.preconditioned_sharpness_se / 2).values.round(2))
    assert (ratio[:2] > 2.5).all()  # from far above
    assert 0.8 < np.min(ratio[2:]) < np.median(ratio[2:]) < 1.3
    assert np.median(found.sharpness[2:]) < 0.5 * 2  # of gradient descent: somewhere else


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:standard errors of", "ignore:the weight matrices met")
def test_wide_networks_have_those_of_the_limit():
    problem, asked = (
        perceptron(replace(ADAM, beta1=0.9, eps=0.1, steps=4)),
        {"observables": ASKED, "save_steps": [0, 2, 4]},
    )
    limit = dmft.solve(problem, particles=512, scrambles=4, **asked)
    nets = [
        finite_nets.train_ensemble(problem, widths=[width], seeds=count, **asked).isel(width=0)
        for width, count in ((128, 400), (256, 200))
    ]
    for name in ASKED[1:]:
        one, two = (each[name].mean("seed") for each in nets)
        errors = [each[name].std("seed") / each.sizes["seed"] ** 0.5 for each in nets]
        error = np.sqrt(4 * errors[1] ** 2 + errors[0] ** 2 + limit[f"{name}_se"] ** 2)
        z = ((2 * two - one - limit[name]) / error).values
        off = abs(2 * two - one - limit[name]).max().item() / abs(limit[name]).max().item()
        print(f"{name}: rms z {np.sqrt(np.mean(z**2)):.2f}, largest difference {off:.4f} of the largest")
        assert np.sqrt(np.mean(z**2)) < 2.5  # strongly correlated numbers, and what is left of order 1/N^2
        assert off < 0.1


def test_what_has_no_preconditioner_is_refused():
    def solved(training):
        return dmft.solve(perceptron(training, centered=False), observables=["preconditioned_ntk"])

    for training, words in {
        dmft.GradientDescent(0.1, 2): "GradientDescent has no preconditioner: take the one of gradient descent",
        dmft.Muon(0.1, 2): "Muon divides no gradient by its size, entry by entry",
        dmft.Adam(0.1, 2, batches=((0,), (1,)), observe="test"): "the metric is that of the next step",
    }.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            solved(training)
