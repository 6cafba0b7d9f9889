"""Convolutional networks: one program through the limit, in law, its 1/N and PyTorch's convolutions with autograd."""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dmft
import finite_nets
from dmft.drivers import run
from dmft.engine import bank, loop, matrix, network, population

# 8,000, 4,000, 2,000 and 1,000 networks of N = 32, 64, 128, 256 of independent code, extrapolated: f at step 7 of
# `line(2)` and its standard error, N Var of f at steps 3 and 6
LIMIT, LIMIT_SE = np.array([1.1339, -0.7825, 0.5954]), 0.0015
VARIANCES = {
    3: ([0.2771, 0.2424, 0.0813], [0.0053, 0.0046, 0.0015]),
    6: ([0.2049, 0.1628, 0.2434], [0.0041, 0.0032, 0.0046]),
}


@cache
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images = data.images[[np.flatnonzero(data.target == k)[0] for k in (0, 1, 4)]] / 16.0
    return (images - images.mean()) / images.std()


def line(depth, gamma0=1.0, rate=1.5, steps=7, **options):
    """Rows of digits: 8 positions of 8 channels."""
    net = dmft.CNN(depth, 3, dmft.tanh(), gamma0, **options)
    return dmft.Problem(net, dmft.Task(digits(), [1.0, -1.0, 1.0]), dmft.GradientDescent(rate, steps))


def image(depth, gamma0=2.0, rate=1.0, steps=5, **options):
    """Blocks of digits: 4 x 4 positions of 4 channels."""
    x = digits().reshape(3, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(3, 4, 4, 4)
    net = dmft.CNN(depth, 3, dmft.tanh(), gamma0, **options)
    return dmft.Problem(net, dmft.Task(x / x.std(), [1.0, -1.0, 1.0]), dmft.GradientDescent(rate, steps))


def explicit(problem, width, seed=0):
    """The engine on ordinary matrices: predictions, NTK; and the weights (place, output, input)."""
    rng = np.random.default_rng(seed)
    sketch = problem.sketch
    patches = problem.network.inputs(problem.task.x)
    first = rng.standard_normal((patches.shape[-1], width))
    hidden = [rng.standard_normal((part.bank, width, width)) for part in sketch.matrices]
    readout = rng.standard_normal(width * math.prod(sketch.flattened))
    with jax.enable_x64(True):
        rule, form = loop.rule_of(problem), loop.form_of(problem)
        coordinates = np.asarray(rule.inputs).reshape(-1, rule.inputs.shape[-1])
        images = patches.reshape(-1, patches.shape[-1]) @ first
        start = network.Network(
            reads=(jnp.asarray(np.linalg.lstsq(coordinates, images)[0]),),
            matrices=tuple(bank.ExplicitBank(jnp.asarray(w)) for w in hidden),
            readout=jnp.asarray(readout).reshape(1, *sketch.flattened, width),
            populations=tuple(population.particles(np.zeros((0, width))) for _ in sketch.populations),
            offset=jnp.asarray(np.zeros((problem.task.n_samples, 1))),
            sketch=form.sketch,
        )
        steps = problem.training.steps + 1
        room = loop.empty_history(start, rule, form, range(steps))
        _, seen = loop.advance(start, room, rule, 0, steps, form=form)
    return np.asarray(seen.vitals.prediction), np.asarray(seen.values["ntk"]), (first, hidden, readout)


def by_torch(problem, width, weights):
    """Predictions and NTK at initialisation of PyTorch's convolutions, by autograd."""
    spec, x = problem.network, torch.tensor(problem.task.x)
    axes = x.ndim - 2
    first, hidden, readout = weights
    places, channels = spec.kernel_size**axes, x.shape[-1]
    kernel = (spec.kernel_size,) * axes
    shaped = [torch.tensor(first).reshape(places, channels, width).permute(2, 1, 0).reshape(width, channels, *kernel)]
    shaped += [torch.tensor(w).permute(1, 2, 0).reshape(width, width, *kernel) for w in hidden]
    theta = [w.clone().requires_grad_() for w in (*shaped, torch.tensor(readout))]
    images, y = x.movedim(-1, 1), torch.tensor(problem.task.y_train)
    pad = "circular" if spec.padding == "circular" else "constant"
    convolution = (torch.nn.functional.conv1d, torch.nn.functional.conv2d)[axes - 1]

    def output(*theta):
        h = images
        for i, w in enumerate(theta[:-1]):
            inputs = torch.tanh(h) if i else h
            inputs = torch.nn.functional.pad(inputs, [spec.kernel_size // 2] * (2 * axes), mode=pad)
            h = convolution(inputs, w, stride=spec.stride) / (inputs.shape[1] * places) ** 0.5
        features = torch.tanh(h).flatten(2)  # (sample, neuron, position)
        if spec.pooling == "flatten":
            weights = theta[-1].reshape(-1, width)
            return torch.einsum("any,yn->a", features, weights) / (spec.gamma0 * width * len(weights) ** 0.5)
        return features.mean(2) @ theta[-1] / (spec.gamma0 * width)

    jacobians = torch.autograd.functional.jacobian(output, tuple(theta))
    flat = torch.cat([j.flatten(1) for j in jacobians], dim=1)
    ntk = spec.gamma0**2 * width * flat @ flat.T
    start, found = None, []
    for _ in range(problem.training.steps + 1):
        f = output(*theta)
        start = f.detach() if start is None else start
        f = f - start
        found.append(f.detach().numpy())
        rate = problem.training.learning_rate * spec.gamma0**2 * width
        pushes = torch.autograd.grad(((f - y) ** 2).mean() / 2, theta)
        theta = [(w - rate * g).detach().requires_grad_() for w, g in zip(theta, pushes, strict=True)]
    return np.array(found), ntk.numpy()


@pytest.mark.parametrize(
    "problem",
    [
        line(2),
        line(3, 2.0),
        line(2, padding="circular"),
        image(3),
        image(2, stride=2),
        line(1),
        line(2, pooling="flatten"),
    ],
    ids=["line", "deep line", "circular", "image", "stride", "one layer", "flattened"],
)
def test_the_program_is_the_convolution_of_pytorch(problem):
    predictions, ntk, weights = explicit(problem, 12)
    expected, expected_ntk = by_torch(problem, 12, weights)
    np.testing.assert_allclose(predictions, expected, atol=1e-13)
    np.testing.assert_allclose(ntk[0], expected_ntk, rtol=1e-11)
    flipped = (weights[0], [w[::-1].copy() for w in weights[1]], weights[2])  # the twin: kernels turned around
    if weights[1]:
        assert np.abs(by_torch(problem, 12, flipped)[0] - expected).max() > 1e-3


def test_the_limit_is_that_of_networks():
    problem = line(2)
    theory = dmft.solve(problem, particles=1024, scrambles=4, tolerance=0.03, observables=["prediction"])
    error = np.hypot(theory.prediction_se.values[-1], LIMIT_SE)
    assert (np.abs(theory.prediction.values[-1] - LIMIT) < 3 * error).all()
    assert error.max() < 0.003
    assert theory.attrs["directions"] < 160


class Unresponsive(bank.RevealedBank):
    """What the other side has shown is forgotten: without the response term."""

    def apply(self, v, source, target, mix):
        kept = self.backward
        blind = dataclasses.replace(self, backward=dataclasses.replace(kept, image=jnp.zeros_like(kept.image)))
        shown, *rest = bank.RevealedBank.apply(blind, v, source, target, mix)
        return dataclasses.replace(shown, backward=kept), *rest


@pytest.mark.slow
def test_without_the_response_the_limit_is_another(monkeypatch):
    jax.tree_util.register_dataclass(Unresponsive)

    def made(*given, **options):
        whole = bank.revealed_bank(*given, **options)
        return Unresponsive(**{f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)})

    monkeypatch.setattr(loop, "revealed_bank", made)
    run._begun.clear_cache()  # what was compiled with it
    theory = dmft.solve(line(2), particles=1024, scrambles=2, tolerance=0.03, observables=["prediction"])
    run._begun.clear_cache()
    assert np.abs(theory.prediction.values[-1] - LIMIT).max() > 0.1


@pytest.fixture(scope="module")
def narrow():
    return line(3, 2.0, 0.7)


def sampled(problem, count, *, project):
    steps, width = problem.training.steps + 1, 24
    with jax.enable_x64(True):
        rule, form = loop.rule_of(problem), loop.form_of(problem, ())
        capacity = width + problem.task.n_samples * 8

        def one(key):
            draws = loop.draws_needed(rule, form, capacity)
            raw = [jax.random.normal(jax.random.fold_in(key, i), (n, width)) for i, n in enumerate(draws)]
            crowd = [population.particles(z) for z in raw]
            start = loop.limit_network(rule, form, crowd, 1e-7, capacity=capacity, project=project)
            _, seen = loop.advance(start, loop.empty_history(start, rule, form, [steps - 1]), rule, 0, steps, form=form)
            return seen.vitals.prediction, seen.vitals.ranks[-1]

        keys = jax.random.split(jax.random.key(3), count)
        return tuple(np.asarray(a) for a in jax.jit(jax.vmap(one))(keys))


@pytest.mark.slow
def test_narrow_networks_are_sampled_in_law(narrow):
    from scipy.stats import ks_2samp

    count = 3000
    nets = finite_nets.train_ensemble(narrow, widths=[24], seeds=count, observables=["prediction"], dtype="float64")
    trained = nets.prediction.values[0]
    found, ranks = sampled(narrow, count, project=True)
    assert (ranks == 24).all()  # all 192 columns of either side lie in what a network of 24 neurons has
    z = (found - trained)[:, 1:].mean(0) / np.sqrt((found.var(0) + trained.var(0))[1:] / count)
    assert np.abs(z).max() < 4.5
    for t in (1, 3, 6):
        assert min(ks_2samp(found[:, t, a], trained[:, t, a]).pvalue for a in range(3)) > 1e-4
    ratio = found[:, 1].var(0) / trained[:, 1].var(0)
    np.testing.assert_allclose(ratio, 1, atol=0.15)
    unprojected, _ = sampled(narrow, 300, project=False)
    assert (unprojected[:, 1].var(0) / trained[:, 1].var(0)).min() > 2


@pytest.mark.slow
def test_what_width_adds_is_that_of_networks():
    found = dmft.fluctuations(
        line(2),
        mode="reverse",
        observables=["prediction"],
        particles=2048,
        scrambles=2,
        tolerance=0.01,
        save_steps=[3, 6],
    )
    for step, (variances, errors) in VARIANCES.items():
        ratio = found.prediction_variance.sel(step=step).values / variances
        np.testing.assert_allclose(ratio, 1, atol=0.05 + 2 * max(np.divide(errors, variances)))


def test_a_bank_of_one_is_a_matrix():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        crowd = [population.particles(rng.standard_normal((40, 50))) for _ in range(2)]
        single = matrix.revealed(50, 50, (12, 12), 1e-6)
        banked = bank.revealed_bank(1, 50, 50, (12, 12), 1e-6)
        v = jnp.asarray(rng.standard_normal((4, 50)))
        one = jnp.ones((1, 1, 1))

        @jax.jit
        def both_ways(matrix, v, *mix):
            """Image and coordinates of v; then the image below."""
            shown, target, image, x = matrix.apply(v, *crowd, *mix)
            return image, x, shown.apply_t(v, target, crowd[0], *mix)[2]

        image, x, below = both_ways(single, v)
        same_image, same_x, same_below = both_ways(banked, v[:, None], one)
        np.testing.assert_allclose(same_image[:, 0], image, atol=1e-12)
        np.testing.assert_allclose(same_x[:, 0], x, atol=1e-12)
        np.testing.assert_allclose(same_below[:, 0], below, atol=1e-12)
