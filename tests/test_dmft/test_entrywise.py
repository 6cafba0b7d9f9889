"""Entrywise optimisers: specs, networks against torch.optim, the limit against explicit networks, in law and by width."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dmft
import finite_nets
from conftest import first_of
from dmft.engine import bank, loop, matrix, network, population
from finite_nets.device.precision import PRECISIONS
from finite_nets.training.programs import trainer_of

CPU, DOUBLE = torch.device("cpu"), PRECISIONS["float64"]
RNG = np.random.default_rng(3)
X, Y = RNG.standard_normal((5, 7)), np.sign(RNG.standard_normal(5))
TASK = dmft.Task(X[:3], Y[:3], X[3:], Y[3:])
TANH = dmft.tanh(0.8)


def perceptron(training, depth=2, **options):
    return dmft.Problem(dmft.MLP(depth, TANH, **options), TASK, training)


# ---- networks --------------------------------------------------------------------------------------------------------


def trained_by_torch(problem, groups, units, width, make):
    """Predictions (step, sample) of the network of `finite_nets`, trained by autograd and an optimiser of PyTorch."""
    net, task, training = problem.network, problem.task, problem.training
    trainer = trainer_of(problem, CPU, DOUBLE)
    start = [w[0].clone() for w in trainer.draw(width, torch.tensor([0]), 0)]
    weights, biases = start[: net.depth + 1], start[net.depth + 1 :]
    columns = [weights[0][:, : task.dimension], weights[0][:, task.dimension :]]
    parameters = [*columns, *weights[1:], *biases]
    factors = [task.dimension**-0.5, net.bias, *[width**-0.5] * (net.depth - 1), 1 / (net.gamma0 * width)]
    factors += [net.bias] * len(biases)
    stored = factors if units == "linear" else [1.0] * len(factors)
    leaves = [(k * p).requires_grad_() for k, p in zip(stored, parameters, strict=True)]
    x, y = torch.tensor(task.x), torch.tensor(task.y)

    def output():
        first, bias, *others = (p * (f / k) for p, f, k in zip(leaves, factors, stored, strict=True))
        h = x @ first.T + bias.T
        for layer in range(1, net.depth):
            h = torch.tanh(0.8 * h) / 0.8 @ others[layer - 1].T + others[net.depth + layer - 1]
        return (torch.tanh(0.8 * h) / 0.8 @ others[net.depth - 1].T)[:, 0]

    named = [dict(group, params=[p]) for group, p in zip(groups, leaves, strict=True)]
    optimiser, found = make(named), []
    for t in range(training.steps + 1):
        f = output()
        found.append(f.detach())
        batch = problem.batches[min(t, training.steps - 1)].tolist()
        optimiser.zero_grad()
        loss = ((f - found[0])[batch] - y[batch]).square().mean() / 2
        loss.backward()
        optimiser.step()
    return np.array([f - found[0] for f in found])


@pytest.mark.parametrize("units", ["linear", "unit"])
@pytest.mark.parametrize(("gamma0", "eps", "decay"), [(2.0, 1e-3, 0.0), (0.05, 0.1, 0.3)])
def test_networks_are_those_of_torch_with_the_groups_of_the_table(units, gamma0, eps, decay):
    adam = dmft.Adam(0.1, 6, beta2=0.99, eps=eps, weight_decay=decay, batches=dmft.random_batches(3, 2, 6))
    problem, width = perceptron(adam, depth=3, gamma0=gamma0, bias=0.7), 12
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=1, dtype="float64", observables=["prediction"])
    groups = dmft.torch_groups(problem, width, units=units)
    assert [g["name"] for g in groups] == ["W0[0:7]", "W0[7:8]", "W1", "W2", "w", "b1", "b2"]
    make = partial(torch.optim.AdamW, betas=(0.9, 0.99))
    theirs = trained_by_torch(problem, groups, units, width, make)
    np.testing.assert_allclose(nets.prediction[0, 0], theirs, rtol=1e-11, atol=1e-13)  # rounding of some steps
    wrong = [dict(group, lr=groups[2]["lr"]) for group in groups]  # one rate for all
    assert abs(trained_by_torch(problem, wrong, units, width, make) - theirs).max() > 1e-3


def test_rmsprop_is_that_of_torch():
    problem, width = perceptron(dmft.RMSprop(0.02, 5, alpha=0.9, eps=1e-2), bias=0.7), 12
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=1, dtype="float64", observables=["prediction"])
    theirs = trained_by_torch(
        problem, dmft.torch_groups(problem, width), "linear", width, partial(torch.optim.RMSprop, alpha=0.9)
    )
    np.testing.assert_allclose(nets.prediction[0, 0], theirs, rtol=1e-11, atol=1e-13)


# ---- the limit -------------------------------------------------------------------------------------------------------


def explicit(problem, width):
    """Predictions (step, sample, output) of the network of `finite_nets`, by the engine."""
    trainer = trainer_of(problem, CPU, DOUBLE, program=True)
    tensors = [t[0].numpy() for t in trainer.draw(width, torch.tensor([0]), 0)]
    rule, form = loop.rule_of(problem), replace(loop.form_of(problem, ()), stacked_from=math.inf)
    sketch, readout = form.sketch, trainer.numbers.readout
    matrices = []
    for part, (source, _) in zip(sketch.matrices, sketch.ends, strict=True):
        w = tensors[part.layer]
        if part.bank:
            w = w.reshape(len(w), part.bank, sketch.sizes(width)[source]).swapaxes(0, 1)
        matrices.append((bank.ExplicitBank if part.bank else matrix.Explicit)(jnp.asarray(w)))
    start = network.Network(
        reads=tuple(jnp.asarray(tensors[part.layer].T) for part in sketch.reads),
        matrices=tuple(matrices),
        vectors=tuple(jnp.asarray(t) for t in tensors[readout + 1 :]),
        readout=jnp.asarray(tensors[readout]).reshape(
            -1, *sketch.flattened, sketch.sizes(width)[sketch.place(sketch.readout)]
        ),
        populations=tuple(
            population.particles(np.zeros((0, size // each.components)), each.components)
            for size, each in zip(sketch.sizes(width), sketch.described, strict=True)
        ),
        offset=jnp.zeros((len(rule.inputs), rule.targets.shape[1])),
        sketch=sketch,
    )
    slots = tuple(jax.tree.map(jnp.zeros_like, start.parameters) for _ in range(form.slots))
    last = problem.training.steps
    room = loop.empty_history(start, rule, form, [last])
    _, history = loop.advance(replace(start, slots=slots), room, rule, 0, last + 1, form=form)
    return np.asarray(history.vitals.prediction)


def of_images():
    rng = np.random.default_rng(0)
    task = dmft.Task(
        rng.standard_normal((3, 6, 2)), np.eye(2)[[0, 1, 1]], rng.standard_normal((1, 6, 2)), np.eye(2)[:1]
    )
    return dmft.Problem(dmft.CNN(2, kernel_size=3, activation=TANH), task, dmft.Adam(0.1, 3), "cross_entropy")


def of_words():
    rng = np.random.default_rng(0)
    task = dmft.Task(rng.standard_normal((3, 4, 5)), [-1.0, 1.0, 1.0])
    network = dmft.Transformer(
        1, head_dim=2, mlp=True, positions="learned", normalization="rms_norm", trained_gain=True
    )
    return dmft.Problem(network, task, dmft.Lion(0.02, 3, clip=0.3))


EXPLICIT = {
    "perceptron": lambda: dmft.Problem(
        dmft.ResidualMLP(3, TANH, bias=0.5),
        dmft.Task(X[:3], np.stack([Y[:3], X[:3, 0]], 1), X[3:], np.stack([Y[3:], X[3:, 0]], 1)),
        dmft.Adam((0.0, 0.1, 0.2, 0.1), 4, weight_decay=0.3, batches=dmft.random_batches(3, 2, 4)),
    ),
    "images": of_images,
    "words": of_words,
}


@pytest.mark.parametrize("name", first_of(EXPLICIT))
def test_with_explicit_matrices_the_engine_trains_ordinary_networks(name):
    problem = EXPLICIT[name]()
    with jax.enable_x64(True):
        found = explicit(problem, 12)
    nets = finite_nets.train_ensemble(problem, widths=[12], seeds=1, dtype="float64", observables=["prediction"])
    expected = nets.prediction[0, 0].values.reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)  # rounding
    assert abs(expected[-1] - expected[0]).max() > 0.01
