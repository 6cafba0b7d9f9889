"""Entrywise optimisers: specs, networks against torch.optim, the limit against explicit networks, in law and by width."""

import json
import math
import re
import warnings
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

import dmft
import finite_nets
from conftest import first_of
from dmft.drivers.run import Run
from dmft.drivers.uncertainty import warn_of_common_flips
from dmft.engine import bank, loop, matrix, network, normals, population
from dmft.engine import entrywise as engine
from dmft.finite_width.fluctuations import _require_derivatives
from dmft.specs.training.muon import orthogonalised
from finite_nets.device.precision import PRECISIONS
from finite_nets.ensembles.budget import Budget
from finite_nets.ensembles.recording import Plan
from finite_nets.training import entrywise, programs
from finite_nets.training.programs import trainer_of
from oracles import on_virtual_devices

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


def test_muon_is_that_of_torch_but_for_its_bfloat16():
    muon = dmft.Muon(0.05, 3, momentum=0.9, beta2=0.99, weight_decay=0.2)
    problem, width = perceptron(muon, depth=3, bias=0.7), 12
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=1, dtype="float64", observables=["prediction"])

    class Both:
        def __init__(self, groups):
            bare = [{k: v for k, v in g.items() if k not in ("name", "eps")} for g in groups if "eps" not in g]
            self.parts = [
                torch.optim.Muon(bare, momentum=0.9, adjust_lr_fn="original"),
                torch.optim.AdamW([g for g in groups if "eps" in g], betas=(0.9, 0.99)),
            ]

        def zero_grad(self):
            for part in self.parts:
                part.zero_grad()

        def step(self):
            for part in self.parts:
                part.step()

    theirs = trained_by_torch(problem, dmft.torch_groups(problem, width), "linear", width, Both)
    assert abs(theirs[-1] - theirs[0]).max() > 0.05
    np.testing.assert_allclose(nets.prediction[0, 0], theirs, atol=3e-3)  # three digits, as bfloat16 has


def test_groups_leave_out_frozen_weights():
    def names(**options):
        return [g["name"] for g in dmft.torch_groups(perceptron(dmft.Adam(0.1, 2), depth=3, **options), 8)]

    assert names() == ["W0", "W1", "W2", "w"]
    assert names(frozen=(0, 2)) == ["W1", "w"]
    assert names(frozen=(0, 1, 2), bias=0.5) == ["w"]
    assert names(frozen=(1, 3), bias=0.5) == ["W0[0:7]", "W0[7:8]", "W2", "b2"]


def test_torch_moves_matrices_of_any_shape_as_muon_does():
    problem = replace(of_words(), training=dmft.Muon(0.1, 2, weight_decay=0.3))
    rows, columns = 32, 8  # neurons of the perceptron, and of the stream
    (group,) = (g for g in dmft.torch_groups(problem, columns) if g["name"] == "U.1")
    theta, G = torch.tensor(RNG.standard_normal((rows, columns))), torch.tensor(RNG.standard_normal((rows, columns)))
    _, Q = problem.training.matrix(torch, (torch.zeros_like(G),), G)
    s, step = columns**-0.5, 0.1 * problem.network.gamma0 * rows**0.5
    expected = s * ((1 - 0.1 * 0.3) * theta + step * Q)
    found = []
    for adjust in (None, "match_rms_adamw"):  # and a wrong one
        weight = (s * theta).requires_grad_()
        weight.grad = -G
        options = {k: group[k] for k in ("lr", "weight_decay")}
        torch.optim.Muon([dict(options, params=[weight])], momentum=0.95, adjust_lr_fn=adjust).step()
        found.append(weight.detach())
    moved = abs(expected - s * theta).max()
    np.testing.assert_allclose(found[0], expected, atol=0.05 * moved)  # bfloat16; a factor of 2 is more
    assert abs(found[1] - expected).max() > 0.2 * moved


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_gradients_that_are_no_numbers_are_no_steps_of_zero(xp):
    G = xp.asarray([np.nan, 2.0, 0.0])
    for training in (dmft.Adam(0.1, 2), dmft.RMSprop(0.1, 2), dmft.SignDescent(0.1, 2), dmft.Lion(0.1, 2)):
        _, Q = training.stepped(xp, 0, (0 * G,) * training.slots, G)
        assert [math.isnan(q) for q in Q] == [True, False, False]
        assert Q[1] > 0 == Q[2]
    for entry, broken in ((np.nan, True), (1.0, False)):
        assert bool(xp.isnan(orthogonalised(xp, xp.asarray([[entry, 1.0], [0.0, 1.0]]), 2)).any()) == broken


def test_rules_have_finite_derivatives_where_no_gradient_was_met():
    def step(g):
        return dmft.Adam(0.1, 2).update(jnp, 0, (0.0, 0.0), g)[1]

    assert jax.grad(step)(0.0) == 0
    assert jax.grad(step)(1e-3) > 0


def test_factors_of_inputs_are_copied_to_the_device_once(monkeypatch):
    made, original = [], programs.input_factors
    monkeypatch.setattr(programs, "input_factors", lambda *of: made.append(original(*of)) or made[-1])
    problem = perceptron(dmft.Adam(0.1, 4))
    first, second = (trainer_of(problem, CPU, DOUBLE) for _ in range(2))
    steps = [first.entry_steps(width) for width in (8, 8, 32)]
    assert len(made) == 1
    assert [float(each[1]) for each in steps] == pytest.approx([8**-0.5, 8**-0.5, 32**-0.5])
    second.entry_steps(8)
    assert len(made) == 2


def test_memory_holds_what_a_rule_makes_of_the_largest_weight_alone():
    def counted(depth):
        plan = Plan(perceptron(dmft.Adam(0.1, 2), depth), np.arange(3), frozenset(["loss"]))
        return Budget(plan, DOUBLE, CPU, None).weight_bytes(64) / (8 * 64**2)

    assert counted(6) - counted(3) == pytest.approx(3 * 4)  # weights, direction, two slots
    assert counted(3) > 2 * 4 + entrywise.WORKING


def test_an_odd_polynomial_of_low_rank_is_that_of_its_coordinates():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 4)))[0] for n in (20, 30))
    C = rng.standard_normal((4, 4))
    whole = orthogonalised(np, left @ C @ right.T, 5)
    np.testing.assert_allclose(whole, left @ orthogonalised(np, C, 5) @ right.T, atol=1e-12)  # rounding
    assert abs(whole - left @ np.sign(C) @ right.T).max() > 0.1
    assert not orthogonalised(np, np.zeros((2, 3)), 5).any()


# ---- the limit -------------------------------------------------------------------------------------------------------


def explicit_start(problem, width, observables=()):
    """The network of `finite_nets` for the engine, at initialisation, with rule and form."""
    trainer = trainer_of(problem, CPU, DOUBLE, program=True)
    tensors = [t[0].numpy() for t in trainer.draw(width, torch.tensor([0]), 0)]
    rule, form = loop.rule_of(problem), replace(loop.form_of(problem, observables), stacked_from=math.inf)
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
            population.particles(
                normals.Stored(jnp.zeros((0, size // each.components)), jax.random.key(0)), each.components
            )
            for size, each in zip(sketch.sizes(width), sketch.described, strict=True)
        ),
        offset=jnp.zeros((len(rule.inputs), rule.targets.shape[1])),
        sketch=sketch,
    )
    slots = tuple(jax.tree.map(jnp.zeros_like, start.parameters) for _ in range(form.slots))
    return replace(start, slots=slots), rule, form


def explicit(problem, width):
    """Predictions (step, sample, output) of the network of `finite_nets`, by the engine."""
    start, rule, form = explicit_start(problem, width)
    last = problem.training.steps
    room = loop.empty_history(start, rule, form, [last])
    _, history = loop.advance(start, room, rule, 0, last + 1, form=form)
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
    "muon": lambda: perceptron(dmft.Muon(0.05, 3, momentum=0.9, weight_decay=0.2), depth=3),
    "images": of_images,
    "muon of images": lambda: replace(of_images(), training=dmft.Muon(0.05, 3, nesterov=False)),
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


@pytest.mark.parametrize("bank", [(), (2,)], ids=["matrix", "bank"])
def test_gradients_of_many_products_are_made_some_rows_at_a_time(monkeypatch, bank):
    rng, rule, seen = np.random.default_rng(0), dmft.Adam(0.1, 2), []
    theta, *state = (jnp.asarray(rng.standard_normal((*bank, 6, 5)) ** 2) for _ in range(3))
    u, v = jnp.asarray(rng.standard_normal((20, 6))), jnp.asarray(rng.standard_normal((20, *bank, 5)))

    def moved(theta, state, G):
        seen.append(G.shape[-2])
        kept, Q = rule.stepped(jnp, 3.0, state, G)
        return theta + Q, kept

    def over_rows(u, v):
        compiled = jax.jit(lambda *given: engine._over_rows(moved, *given))
        return jax.tree.leaves(compiled(theta, tuple(state), u, v))

    whole = over_rows(u, v)
    monkeypatch.setattr(engine, "BLOCK", 2 * 5 * len([0, *bank]))  # two rows, where there is one matrix
    parts = over_rows(u, v)
    assert seen == [6, 2]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)  # single precision
    over_rows(u[:16], v[:16])
    assert seen[-1] == 6  # few, of which no array is made


ON_DEVICES = """
import json, sys
import dmft
import numpy as np
from dmft.drivers.machine import find_devices, precision
from dmft.drivers.run import Run
from dmft.engine import loop
problem, found = dmft.Problem.from_json(sys.stdin.read()), {}
for devices in (1, 2):
    solved = dmft.solve(problem, devices=devices, particles=128, scrambles=2, observables=["prediction"])
    found[devices] = solved.prediction.values.tolist()
where = find_devices("cpu", 2)
with precision("float64", where[0]):
    run = Run(problem, np.array([2]), 128, 1e-2, True, observables=(), devices=where, entries="float32")
    begun = run.begun(run.first_capacity, np.random.SeedSequence(0))
    network, _ = loop.advance(*begun, run.rule, 0, 2, form=run.form)
    for name, of in (("E", network), ("v", network.slots[1])):
        trained = of.matrices[0]
        entries = getattr(trained, "trained", trained).entries
        found[name] = [list(shard.data.shape) for shard in entries.addressable_shards]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_entries_are_spread_over_devices():
    found = on_virtual_devices(2, ON_DEVICES, perceptron(dmft.Adam(0.15, 5, beta2=0.99, eps=0.1)).to_json())
    # entries in single precision, summed in another order
    np.testing.assert_allclose(found["1"], found["2"], atol=2e-6)
    for name in ("E", "v"):
        assert found[name] == [[128, 64]] * 2


# ---- in law, and by width --------------------------------------------------------------------------------------------


def sampled(problem, width, count, *, project=True):
    """Predictions (member, step, sample) without weight matrices."""
    last = problem.training.steps
    with jax.enable_x64(True):
        rule, form = loop.rule_of(problem), loop.form_of(problem, ())
        capacity = len(rule.inputs) * (last + 1)

        def one(key):
            drawn = enumerate(loop.draws_needed(rule, form, capacity))
            crowd = [population.particles(jax.random.normal(jax.random.fold_in(key, i), (n, width))) for i, n in drawn]
            start = loop.limit_network(rule, form, crowd, 1e-7, capacity=capacity, project=project)
            room = loop.empty_history(start, rule, form, [last])
            return loop.advance(start, room, rule, 0, last + 1, form=form)[1].vitals.prediction

        return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), count)))


def compared(a, b):
    """rms z of means and of variances (from fourth moments), and the least p of Kolmogorov and Smirnov, from step 1 on."""
    a, b = a[:, 1:], b[:, 1:]
    fourth = [((x - x.mean(0)) ** 4).mean(0) - x.var(0) ** 2 for x in (a, b)]
    means = (a.mean(0) - b.mean(0)) / np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    variances = (a.var(0) - b.var(0)) / np.sqrt(fourth[0] / len(a) + fourth[1] / len(b))
    pairs = zip(a.reshape(len(a), -1).T, b.reshape(len(b), -1).T, strict=True)
    least = min(ks_2samp(*pair).pvalue for pair in pairs)
    return np.sqrt(np.mean(means**2)), np.sqrt(np.mean(variances**2)), least


def trained(problem, width, count):
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=count, dtype="float64", observables=["prediction"])
    return nets.prediction[0].values


OF_WIDTH = perceptron(dmft.Adam(0.3, 2, beta2=0.99, weight_decay=0.5), centered=False)


def test_particles_are_in_law_networks_of_that_width():
    means, variances, least = compared(sampled(OF_WIDTH, 16, 800), trained(OF_WIDTH, 16, 2000))
    assert max(means, variances) < 2  # ten strongly correlated numbers
    assert least > 1e-3


@pytest.mark.slow  # the twin
def test_particles_without_the_projection_are_not():
    _, variances, least = compared(sampled(OF_WIDTH, 16, 800, project=False), trained(OF_WIDTH, 16, 2000))
    assert variances > 4
    assert least < 1e-4


LAWS = {
    "adam": dmft.Adam(0.3, 6, beta2=0.99),
    "adamw": dmft.Adam(0.3, 6, beta2=0.99, eps=0.1, weight_decay=0.5),
    "sign": dmft.SignDescent(0.3, 6),
    "lion": dmft.Lion(0.3, 6),
    "muon": dmft.Muon(0.1, 6, momentum=0.9, eps=0.01),
    "normalised": dmft.NormalizedDescent(0.3, 6, floor=0.2),
    "normalised, all": dmft.NormalizedDescent(0.3, 6, norm="all", momentum=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_samples_in_law_are_exact_for_every_rule(name):
    problem = perceptron(LAWS[name], centered=False)
    found = finite_nets.sample_in_law(problem, widths=[24], seeds=1500, observables=["prediction"])
    means, variances, least = compared(found.prediction[0].values, trained(problem, 24, 6000))
    print(f"rms z of means {means:.2f}, of variances {variances:.2f}, least p {least:.3f}")
    assert max(means, variances) < 2  # 30 strongly correlated numbers
    assert least > 1e-3


def images(training, loss="squared"):
    described = of_images()
    return replace(described, training=training, loss=loss)


ADAM = dmft.Adam(0.15, 5, beta2=0.99, eps=1e-2)
WIDE = {
    "A": lambda: perceptron(dmft.Adam(0.15, 8, beta2=0.99, eps=1e-6)),
    "B": lambda: perceptron(dmft.Adam(0.15, 8, beta2=0.99, eps=0.1), depth=3),
    "residual, biases": lambda: dmft.Problem(dmft.ResidualMLP(3, TANH, bias=0.5), TASK, ADAM),
    "relu": lambda: dmft.Problem(dmft.MLP(2, dmft.relu()), TASK, ADAM),
    "classes, minibatches": lambda: dmft.Problem(
        dmft.MLP(2, TANH),
        dmft.Task(X[:4], np.eye(2)[[0, 1, 1, 0]], X[4:], np.eye(2)[:1]),
        replace(ADAM, batches=dmft.random_batches(4, 2, 5)),
        "cross_entropy",
    ),
    "images": lambda: images(replace(ADAM, learning_rate=0.1, steps=4)),
    "words": lambda: replace(of_words(), training=replace(ADAM, learning_rate=0.05, steps=4)),
    "muon": lambda: perceptron(dmft.Muon(0.1, 5, momentum=0.9, eps=0.01), depth=3),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the weight matrices met", "ignore:standard errors of")
@pytest.mark.parametrize("name", WIDE)
def test_wide_networks_approach_the_limit(name):
    """Extrapolated in 1/N, up to second order."""
    problem, widths, seeds = WIDE[name](), (32, 64, 128), (2000, 1000, 500)
    theory = dmft.solve(problem, particles=1024, scrambles=4, observables=["prediction"])
    values, errors = [], []
    for width, count in zip(widths, seeds, strict=True):
        nets = trained(problem, width, count)
        values.append(nets.mean(0))
        errors.append(nets.std(0) / count**0.5)
    fit = np.linalg.inv(np.array([[1, 1 / n, 1 / n**2] for n in widths]))[0]
    limit, error = np.tensordot(fit, values, 1), np.sqrt(np.tensordot(fit**2, np.square(errors), 1))
    errors = np.hypot(error, theory.prediction_se.values)[1:]  # f(0) = 0
    z = (limit - theory.prediction.values)[1:] / errors
    print(
        f"{name}: rms z {np.sqrt(np.mean(z**2)):.2f}, max |difference| {abs(limit - theory.prediction.values).max():.4f}"
    )
    assert np.sqrt(np.mean(z**2)) < 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:standard errors of")
def test_the_bias_of_narrow_networks_is_that_of_samples_in_law():
    """N (E f_N - f) of Adam, where derivatives would miss the kinks: means after steps 1 to 6 by their covariance."""
    problem = perceptron(dmft.Adam(0.15, 6, beta2=0.99, eps=1e-6))
    limit = dmft.solve(problem, particles=4096, scrambles=8, observables=["prediction"]).prediction.values[1:].ravel()
    for width, count in ((16, 12_000), (32, 8000)):
        law = finite_nets.sample_in_law(problem, widths=[width], seeds=count, observables=["prediction"])
        pair = [
            each[:, 1:].reshape(len(each), -1) for each in (law.prediction[0].values, trained(problem, width, 80_000))
        ]
        bias = [width * (each.mean(0) - limit) for each in pair]
        print(f"N {width}: N bias of f_0 in law {bias[0][::5].round(2)}, trained {bias[1][::5].round(2)}")
        between = distance(pair[0].mean(0) - pair[1].mean(0), *pair)
        off = distance(pair[0].mean(0) - limit, pair[0])
        twin = distance((pair[0].mean(0) - limit) / 2 - (pair[1].mean(0) - limit), *pair)
        print(
            f"N {width}: z of chi^2 between them {between:.2f}, of the bias from none {off:.1f}, from half {twin:.1f}"
        )
        assert abs(between) < 3
        assert off > 20
        assert twin > 10


def distance(off, *samples):
    """chi^2 of a difference of means, of samples (member, number), in standard deviations from what it is expected."""
    covariance = sum(np.cov(each.T) / len(each) for each in samples)
    return (off @ np.linalg.solve(covariance, off) - len(off)) / np.sqrt(2 * len(off))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:standard errors of")
def test_variances_follow_from_derivatives_where_eps_is_not_small():
    problem = perceptron(dmft.Adam(0.15, 6, beta2=0.99, eps=0.1))
    found = dmft.fluctuations(problem, particles=512, scrambles=4, draws=128, observables=["prediction"])
    nets = finite_nets.train_ensemble(
        problem, widths=[256], seeds=4000, dtype="float32", observables=["prediction"]
    ).prediction[0]
    ratio = (found.prediction_variance / (256 * nets.var("seed")))[1:].mean("sample").values
    print("N Var, derivatives over networks, by step", ratio.round(3))
    np.testing.assert_allclose(ratio, 1, atol=0.08)  # errors of networks .03, of draws .05


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_what_needs_linearity_is_refused():
    adam = perceptron(dmft.Adam(0.1, 2, eps=1e-6))
    for refused, words in {
        dmft.lazy_limit: "is not linear in the gradient",
        dmft.fluctuations: "Take eps of 0.012 or more, sample networks in law",
        lambda p: p.training.memory: "not linear in the gradient, as memory kernels",
        lambda p: dmft.fluctuations(dmft.vary(p, training=[dmft.Lion(0.1, 2)])[0]): "Lion jumps",
        lambda p: dmft.fluctuations(
            dmft.Problem(dmft.MLP(2, dmft.linear()), TASK, dmft.Adam(0.1, 2, eps=0.1)), mode="exact"
        ): "mode='exact' is for linear networks, and what Adam makes",
        lambda p: dmft.torch_groups(dmft.vary(p, training=[dmft.GradientDescent(0.1, 2)])[0], 8): "one rate",
        lambda p: dmft.vary(p, parameterization=["ntk"]): "with parameterization='ntk'",
        lambda p: dmft.torch_groups(p, 8, step=2): "step=2: the problem has steps 0..1",
        lambda p: dmft.torch_groups(
            dmft.vary(p, training=[dmft.RMSprop(0.1, 2, weight_decay=0.3)])[0], 8
        ): "weight_decay=0.3 of RMSprop is decoupled",
        lambda p: dmft.fluctuations(
            dmft.vary(p, training=[Smooth(0.1, 2)])[0]
        ): "Smooth does not say where it is smooth",
        lambda p: dmft.Adam(0.1, 2, beta1=1.0): "beta1=1.0",
        lambda p: dmft.Adam(0.1, 2, eps=-1): "eps=-1",
    }.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            refused(adam)
    with pytest.raises(TypeError, match="nesterov=3 is not True or False"):
        dmft.Muon(0.1, 2, nesterov=3)


@dataclass(frozen=True)
class Smooth(dmft.Entrywise):
    learning_rate: float
    steps: int

    def update(self, xp, t, state, G):  # noqa: ARG002
        return state, xp.tanh(G)


@dataclass(frozen=True)
class Said(Smooth):
    derivable = math.inf


def test_rules_of_ones_own_say_where_they_are_smooth():
    assert [each(0.1, 2).derivable for each in (Smooth, Said, Adagrad, dmft.Lion)] == [None, math.inf, 1e-2, 0]
    _require_derivatives(perceptron(Said(0.1, 2)), 64)
    with pytest.raises(ValueError, match="set `derivable` in it"):
        _require_derivatives(perceptron(Smooth(0.1, 2)), 64)


@dataclass(frozen=True)
class Adagrad(dmft.Entrywise):
    learning_rate: float
    steps: int
    eps: float = 1e-2
    slots = 1

    def update(self, xp, t, state, G):  # noqa: ARG002
        (total,) = state
        total = total + G * G
        return (total,), G / (xp.sqrt(total) + self.eps)


@dataclass(frozen=True)
class Restless(Adagrad):
    def update(self, xp, t, state, G):  # noqa: ARG002
        return state, 0 * G + 1


def test_rules_of_ones_own_are_known_by_what_they_make():
    problem = perceptron(Adagrad(0.1, 2))
    again = dmft.Problem.from_json(problem.to_json())
    assert again.problem_id == problem.problem_id != perceptron(Adagrad(0.1, 2, eps=0.1)).problem_id
    edited = json.loads(problem.to_json())
    edited["training"]["eps"] = 0.2
    with pytest.raises(ValueError, match="has changed since"):
        dmft.Problem.from_json(json.dumps(edited))
    with pytest.raises(ValueError, match="moves entries that have met no gradient"):
        perceptron(Restless(0.1, 2))


def test_signs_of_errors_that_pass_zero_together_are_warned_of():
    def run_of(training):
        return Run(perceptron(training), np.arange(4), 64, 1e-3, True)

    f = np.zeros((4, 5))
    f[2, :3] = Y[:3] * 0.97  # errors of .03
    with pytest.warns(UserWarning, match="at most 0.03 at step 2.*SignDescent flips all"):
        warn_of_common_flips(run_of(dmft.SignDescent(0.1, 3)), f)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_common_flips(run_of(dmft.Lion(0.1, 3)), f)
        f[2, 0] = 0.5
        warn_of_common_flips(run_of(dmft.SignDescent(0.1, 3)), f)


@pytest.mark.slow
def test_networks_are_mixtures_from_the_step_that_is_warned_of_on():
    """N Var is the same at every width before it, and grows after it: their variance is of order one."""
    problem, asked = perceptron(dmft.SignDescent(0.15, 13)), {"observables": ["prediction"]}
    with pytest.warns(UserWarning, match=r"at most 0.0\d+ at step 9.*SignDescent flips all entries"):
        dmft.solve(problem, particles=512, scrambles=2, **asked)
    nets = finite_nets.train_ensemble(problem, widths=[64, 256], seeds=600, dtype="float64", **asked)
    narrow, wide = (nets.width * nets.prediction.var("seed").mean("sample")).values[:, 1:]
    ratio = wide / narrow
    print("N Var of 256 over that of 64, by step from 1 on", ratio.round(2))
    np.testing.assert_allclose(ratio[1:7], 1, atol=0.15)  # errors .05
    assert (ratio[9:] > 1.3).all()
    calm = replace(problem, training=dmft.Lion(0.15, 13))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dmft.solve(calm, particles=512, scrambles=2, **asked)
