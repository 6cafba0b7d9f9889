"""Training of networks under every loss, optimiser, architecture and flow, against automatic differentiation."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.nn import functional

import dmft
import finite_nets
from dmft.errors import DivergenceError
from dmft.specs import loss, parameterization
from finite_nets.device.activations import function
from finite_nets.device.precision import PRECISIONS
from finite_nets.ensembles.budget import Budget
from finite_nets.ensembles.recording import Plan
from finite_nets.training import flow
from finite_nets.training.perceptrons import Trainer, initialise
from oracles import parameter_rate

WIDTH, SEED, FEATURES = 7, 3, 4
OUTPUTS = {None: (), 3: (3,)}
DOUBLE = PRECISIONS["float64"]
# float64 rounding through a few steps: the same arithmetic in another order
SAME = {"rtol": 1e-9, "atol": 1e-11}
PREDICTION = {"observables": ["prediction"], "dtype": "float64"}


def some_task(kind, outputs, n_train=5, n_test=3):
    rng = np.random.default_rng(1)
    x, n = rng.standard_normal((n_train + n_test, FEATURES)), n_train + n_test
    y = rng.standard_normal((n, outputs or 1))
    if kind in ("logistic", "hinge"):
        y = np.sign(y)
    elif kind == "cross_entropy":
        y = np.eye(outputs)[np.arange(n) % outputs]
    y = y if outputs else y[:, 0]
    return dmft.Task(x[:n_train], y[:n_train], x[n_train:], y[n_train:])


def some_problem(kind="squared", outputs=None, training=None, network=None, **sizes):
    network = network or dmft.MLP(3, dmft.tanh(0.8), 1.3)
    training = training or dmft.GradientDescent(0.4, 5)
    return dmft.Problem(network, some_task(kind, outputs, **sizes), training, kind)


# ---- one network by automatic differentiation ----------------------------------------------------------------------


def parameters_of(problem, seed=SEED, width=WIDTH):
    """Leaf tensors of the network with this seed index."""
    outputs = problem.task.targets.shape[1]
    biased = problem.network.bias > 0  # that of the first layer is one more input
    drawn = initialise(
        problem.network.depth,
        FEATURES + biased,
        width,
        torch.tensor([seed]),
        root_seed=0,
        precision=DOUBLE,
        outputs=outputs,
        biases=biased,
    )
    depth = problem.network.depth
    layers = [*range(depth + 1), *range(1, depth)]  # of weights, then of biases of hidden matrices
    return [
        p[0].clone().requires_grad_(layer not in problem.network.frozen)
        for layer, p in zip(layers, drawn.all, strict=False)
    ]


def outputs_of(problem, parameters):
    """f (sample, output) of all samples, not centered."""
    network, depth = problem.network, problem.network.depth
    first, *hidden, readout = parameters[: depth + 1]
    biases = parameters[depth + 1 :] or [0.0] * depth
    width = readout.shape[1]
    phi = function(network.activation)
    h = torch.tensor(problem.task.x) @ first[:, :FEATURES].T * parameterization.input_scale(FEATURES)
    if network.bias:
        h = h + network.bias * first[:, FEATURES]
    for w, b in zip(hidden, biases, strict=False):
        image = phi(h)[0] @ w.T * parameterization.hidden_scale(width) + network.bias * b
        h = h + network.branch_scale * image if isinstance(network, dmft.ResidualMLP) else image
    return phi(h)[0] @ readout.T * parameterization.output_scale(network.gamma0, width)


def true_loss(kind, f, y):
    """(sample,) by the functions of PyTorch."""
    if kind == "cross_entropy":
        return functional.cross_entropy(f, y, reduction="none")
    each = {
        "squared": lambda: functional.mse_loss(f, y, reduction="none") / 2,
        "logistic": lambda: functional.binary_cross_entropy_with_logits(f, (y + 1) / 2, reduction="none"),
        "hinge": lambda: functional.relu(1 - y * f),
    }[kind]()
    return each.sum(1)


def in_form_of_results(problem, predictions):
    stacked = np.stack([f.detach().numpy() for f in predictions])[:, problem.observed]
    return stacked if problem.task.outputs else stacked[..., 0]


def trained_by_sgd(problem, factor=1.0):
    """Predictions (step, observed sample[, output]) of `torch.optim.SGD` on `factor` times the true loss."""
    training, gamma0 = problem.training, problem.network.gamma0
    parameters, y = parameters_of(problem), torch.tensor(problem.task.targets)
    unit = parameter_rate(1.0, gamma0, WIDTH)
    optimiser = torch.optim.SGD(
        [p for p in parameters if p.requires_grad],
        lr=1.0,
        momentum=training.momentum,
        weight_decay=training.weight_decay / unit,
    )
    offset = outputs_of(problem, parameters).detach() * float(problem.network.centered)
    rates = np.broadcast_to(training.learning_rate, training.steps)
    predictions = []
    for t in range(training.steps + 1):
        f = outputs_of(problem, parameters) - offset
        predictions.append(f)
        if t < training.steps:
            batch = list(range(problem.task.n_train)) if training.batches is None else list(training.batches[t])
            optimiser.param_groups[0]["lr"] = rates[t] * unit
            optimiser.zero_grad()
            (factor * true_loss(problem.loss, f[batch], y[batch]).mean()).backward()
            optimiser.step()
    return in_form_of_results(problem, predictions)


def trained(problem, **arguments):
    """The same network in an ensemble."""
    arguments = PREDICTION | arguments
    return finite_nets.train_ensemble(problem, widths=[WIDTH], seeds=[0, SEED], **arguments).isel(width=0, seed=1)


def agrees(problem, other=None, **arguments):
    """Whether the library on `problem` is the oracle on `other`."""
    expected = trained_by_sgd(other or problem, **arguments)
    return np.allclose(trained(problem).prediction, expected, **SAME)


# ---- losses --------------------------------------------------------------------------------------------------------

LOSSES = [(kind, c) for kind in ("squared", "logistic", "hinge") for c in (None, 1, 3)] + [("cross_entropy", 3)]


@pytest.mark.parametrize(("kind", "outputs"), LOSSES)
def test_training_on_a_loss_is_that_of_automatic_differentiation(kind, outputs):
    problem = some_problem(kind, outputs)
    assert agrees(problem)
    assert not agrees(problem, factor=2.0)
    nets = trained(problem, observables=None)
    f, y = (torch.tensor(a.values).reshape(-1, outputs or 1) for a in (nets.prediction.isel(step=4), nets.target))
    each, split = true_loss(kind, f, y).numpy(), nets.split.values
    np.testing.assert_allclose(nets.loss[4], each[split == "train"].mean(), rtol=1e-12)  # rounding
    np.testing.assert_allclose(nets.test_loss[4], each[split == "test"].mean(), rtol=1e-12)
    assert ("accuracy" in nets) == (kind != "squared")
    if kind != "squared":
        right = (f.argmax(1) == y.argmax(1)) if (outputs or 1) > 1 else (f * y)[:, 0] > 0
        if kind == "cross_entropy" or (outputs or 1) == 1:  # signs may name several classes
            assert nets.accuracy[4] == right.numpy()[split == "train"].mean()
            assert nets.test_accuracy[4] == right.numpy()[split == "test"].mean()
        assert nets.accuracy.dtype == np.float64


@pytest.mark.parametrize(("kind", "outputs"), [*LOSSES, ("cross_entropy", 2)])
def test_descent_and_curvature_are_derivatives_of_the_loss(kind, outputs):
    task = some_task(kind, outputs)
    y, f = torch.tensor(task.targets), torch.tensor(np.random.default_rng(2).standard_normal(task.targets.shape))
    descent, curvature = loss.descent(torch, kind, f, y), loss.curvature(torch, kind, f, y)
    leaf = f.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(true_loss(kind, leaf, y).sum(), leaf)
    # rounding
    np.testing.assert_allclose(descent, -gradient, atol=1e-14)
    assert abs(descent - gradient).max() > 0.1
    for i in range(len(f)):
        one = partial(lambda v, i: true_loss(kind, v[None], y[i : i + 1])[0], i=i)
        hessian = torch.autograd.functional.hessian(one, f[i])
        np.testing.assert_allclose(curvature[i], hessian, atol=1e-14)
        assert kind == "hinge" or abs(curvature[i] / 2 - hessian).max() > 1e-3
    np.testing.assert_allclose(loss.values(torch, kind, f, y), true_loss(kind, f, y), atol=1e-14)
    for found, formula in ((descent, loss.descent), (curvature, loss.curvature)):
        np.testing.assert_allclose(formula(np, kind, f.numpy(), y.numpy()), found, atol=1e-14)


# ---- optimisers and architectures ----------------------------------------------------------------------------------

SCHEDULE = (0.4, 0.1, 0.6, 0.3, 0.2, 0.5)
BATCHES = ((0, 1), (2, 4), (3, 0), (1, 4), (2, 3), (4, 0))
PERMUTED = BATCHES[::-1]
ONE_PASS = tuple(map(tuple, dmft.one_pass(6, 2).tolist()))
GD = partial(dmft.GradientDescent, steps=6)
UNCENTERED = dmft.MLP(2, dmft.erf(), 0.7, centered=False)
RESIDUAL = dmft.ResidualMLP(4, dmft.tanh(), 1.2, branch_scale=0.6)
CASES = {
    "schedule": (some_problem(training=GD(SCHEDULE)), {"learning_rate": SCHEDULE[::-1]}),
    "momentum": (some_problem(training=GD(0.2, momentum=0.7)), {"momentum": 0.0}),
    "weight decay": (some_problem(training=GD(0.3, weight_decay=0.2)), {"weight_decay": 0.0}),
    "momentum and weight decay": (
        some_problem(training=GD(SCHEDULE, momentum=0.5, weight_decay=0.2)),
        {"weight_decay": 0.0},
    ),
    "both, of weight decay the momentum": (
        some_problem(training=GD(0.2, momentum=0.5, weight_decay=0.2)),
        {"momentum": 0.0},
    ),
    "minibatches": (some_problem(training=GD(0.3, batches=BATCHES)), {"batches": PERMUTED}),
    "minibatches against full batch": (some_problem(training=GD(0.3, batches=BATCHES)), {"batches": None}),
    "one pass": (
        some_problem(training=dmft.GradientDescent(0.4, 3, batches=ONE_PASS, observe="test"), network=UNCENTERED, n_train=6),
        {"batches": ONE_PASS[::-1]},
    ),
    "all together, three outputs": (
        some_problem("cross_entropy", 3, GD(SCHEDULE, momentum=0.5, weight_decay=0.1, batches=BATCHES)),
        {"momentum": 0.4},
    ),
    "one pass, three outputs": (
        some_problem(
            "logistic",
            3,
            dmft.GradientDescent(0.4, 3, 0.3, 0.1, batches=ONE_PASS, observe="test"),
            network=UNCENTERED,
            n_train=6,
        ),
        {"weight_decay": 0.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_optimisers_are_those_of_torch(name):
    problem, change = CASES[name]
    assert agrees(problem)
    twin = dataclasses.replace(problem, training=dataclasses.replace(problem.training, **change))
    assert not agrees(problem, twin)


@pytest.mark.parametrize(("kind", "outputs"), [("squared", None), ("cross_entropy", 3)])
@pytest.mark.parametrize("network", [RESIDUAL, dmft.ResidualMLP(1), dmft.ResidualMLP(3, dmft.relu(), centered=False)])
def test_residual_networks_train_as_by_automatic_differentiation(kind, outputs, network):
    problem = some_problem(kind, outputs, network=network)
    assert agrees(problem)
    if network.depth > 1:
        assert not agrees(problem, dataclasses.replace(problem, network=dataclasses.replace(network, branch_scale=1.0)))
        plain = dmft.MLP(network.depth, network.activation, network.gamma0, network.centered)
        assert not agrees(problem, dataclasses.replace(problem, network=plain))


VARIANTS = {
    "biases": (dmft.MLP(3, dmft.tanh(0.8), 1.3, bias=0.6), {"bias": 0.0}),
    "biases of a residual network": (dmft.ResidualMLP(3, bias=0.6), {"bias": 0.3}),
    "frozen input weights": (dmft.MLP(3, bias=0.6, frozen=[0]), {"frozen": [1]}),
    "a frozen matrix": (dmft.MLP(3, bias=0.6, frozen=[1]), {"frozen": []}),
    "random features": (dmft.ResidualMLP(3, bias=0.6, frozen=range(3)), {"frozen": [0, 1]}),
    "a frozen readout": (dmft.MLP(2, gamma0=2.0, frozen=[2]), {"frozen": []}),
}


@pytest.mark.parametrize("training", [GD(SCHEDULE), GD(0.2, momentum=0.5, weight_decay=0.2)], ids=["plain", "decay"])
@pytest.mark.parametrize(
    ("outputs", "name"), [(None, name) for name in VARIANTS] + [(3, "biases"), (3, "a frozen matrix")]
)
def test_biases_and_frozen_layers_are_those_of_torch(name, outputs, training):
    network, change = VARIANTS[name]
    problem = some_problem("squared", outputs, training, network)
    assert agrees(problem)
    # the oracle draws other numbers without biases
    if change != {"bias": 0.0}:
        assert not agrees(problem, dataclasses.replace(problem, network=dataclasses.replace(network, **change)))


def trained_in_raw_parameters(problem, rate):
    """Predictions of ordinary PyTorch code, for one hidden matrix: weights of variance 1/N, one rate."""
    first, hidden, readout = parameters_of(problem)
    if problem.network.parameterization == "standard":
        raw = [first / math.sqrt(FEATURES), hidden / math.sqrt(WIDTH), readout / math.sqrt(WIDTH)]
        factors = (1.0, 1.0, 1.0)
    else:
        raw, factors = [first, hidden, readout], (FEATURES**-0.5, WIDTH**-0.5, WIDTH**-0.5)
    raw = [p.detach().clone().requires_grad_() for p in raw]
    x, y, n = torch.tensor(problem.task.x), torch.tensor(problem.task.targets), problem.task.n_train
    phi = function(problem.network.activation)
    optimiser, predictions, offset = torch.optim.SGD(raw, lr=rate), [], None
    for _ in range(problem.training.steps + 1):
        h = x @ (factors[0] * raw[0]).T
        h = phi(h)[0] @ (factors[1] * raw[1]).T
        f = phi(h)[0] @ (factors[2] * raw[2]).T / problem.network.gamma0
        offset = f.detach() if offset is None else offset
        predictions.append(f - offset)
        optimiser.zero_grad()
        true_loss(problem.loss, predictions[-1][:n], y[:n]).mean().backward()
        optimiser.step()
    return in_form_of_results(problem, predictions)


@pytest.mark.parametrize("name", ["ntk", "standard"])
def test_other_parameterizations_are_ordinary_code(name):
    network = dmft.MLP(2, dmft.tanh(), 1.4, parameterization=name)
    problem = some_problem(training=GD(0.05), network=network)
    found = trained(problem).prediction.values
    # one rate eta gamma0^2 for all weights
    np.testing.assert_allclose(found, trained_in_raw_parameters(problem, 0.05 * 1.4**2), **SAME)
    other = {"ntk": "standard", "standard": "ntk"}[name]
    twin = dataclasses.replace(problem, network=dataclasses.replace(network, parameterization=other))
    assert abs(trained(twin).prediction.values - found).max() > 1e-3


def test_only_one_parameterization_has_a_limit_with_feature_learning():
    """How much the features change by training: as much at every width; ever less; ever more, at one rate."""

    def change(name, width, rate):
        network = dmft.MLP(2, dmft.tanh(), 1.4, parameterization=name)
        problem = some_problem(training=GD(rate), network=network)
        few = {"observables": ["feature_kernel"], "save_steps": [0, problem.training.steps]}
        nets = finite_nets.train_ensemble(problem, widths=[width], seeds=8, **few)
        first, last = (nets.feature_kernel.isel(width=0, step=t).mean("seed") for t in (0, -1))
        return float(abs(last - first).max())

    rates = {"mean_field": 0.5, "ntk": 0.5, "standard": 0.001}
    grown = {name: change(name, 1024, rate) / change(name, 64, rate) for name, rate in rates.items()}
    assert grown["mean_field"] == pytest.approx(1, abs=0.3)
    assert grown["ntk"] < 0.3
    assert grown["standard"] > 3


@pytest.mark.parametrize("name", ["mean_field", "ntk", "standard"])
def test_small_steps_follow_the_ntk_of_the_parameterization(name):
    """f(1) - f(0) = (eta / P) K Delta, to the order of eta."""
    bias = 0.0 if name == "standard" else 0.5
    network = dmft.MLP(3, dmft.tanh(), 1.4, parameterization=name, bias=bias, frozen=[2])
    problem = some_problem(training=dmft.GradientDescent(1e-6, 1), network=network)
    nets = trained(problem, observables=["prediction", "ntk"])
    n = problem.task.n_train
    delta = problem.task.y_train - nets.prediction.values[0, :n]
    expected = 1e-6 / n * nets.ntk.values[0][:, :n] @ delta
    moved = nets.prediction.values[1] - nets.prediction.values[0]
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-3 * abs(moved).max())


def test_without_momentum_there_is_no_velocity():
    for momentum in (0.0, 0.5):
        problem = some_problem(training=dmft.GradientDescent(0.1, 2, momentum=momentum))
        trainer = Trainer(problem, torch.device("cpu"), DOUBLE)
        weights = initialise(3, FEATURES, WIDTH, torch.tensor([0]), root_seed=0, precision=DOUBLE)
        assert len(trainer.begin(weights).slots) == (momentum > 0)


def test_a_stream_is_met_batch_by_batch():
    training = dmft.GradientDescent(0.4, 3, batches=ONE_PASS, observe="test")
    problem = some_problem(training=training, network=UNCENTERED, n_train=6)
    trainer = Trainer(problem, torch.device("cpu"), DOUBLE)
    met = [trainer.meet(t, everything=t != 1) for t in range(4)]
    assert [m.rows.tolist() for m in met] == [[0, 1, 6, 7, 8], [2, 3], [4, 5, 6, 7, 8], [4, 5, 6, 7, 8]]
    nets = trained(problem, observables=None)
    assert set(nets.data_vars) == {"prediction", "test_loss", "feature_kernel", "gradient_kernel", "ntk"}
    assert nets.sample.values.tolist() == [6, 7, 8]
    # what is saved does not change what is learned
    few = trained(problem, save_steps=[3], observables=["prediction", "ntk"])
    np.testing.assert_allclose(few.prediction[0], nets.prediction[3], **SAME)
    np.testing.assert_allclose(few.ntk[0], nets.ntk[3], **SAME)
    # memory is that of a batch and the test samples: longer streams cost a stored input each, no field and no kernel
    long = some_problem(
        training=dmft.GradientDescent(0.4, 30, batches=dmft.one_pass(60, 2), observe="test"),
        network=UNCENTERED,
        n_train=60,
    )
    needed = [
        Budget(Plan(p, np.arange(4), frozenset({"ntk"})), DOUBLE, torch.device("cpu"), None).working_bytes(100)
        for p in (problem, long)
    ]
    assert needed[0] == needed[1]


@pytest.mark.parametrize("outputs", [None, 3])
def test_what_is_recorded_does_not_change_what_is_learned(outputs):
    problem = some_problem("squared", outputs, GD(SCHEDULE, momentum=0.5, batches=BATCHES))
    few, every = trained(problem, save_steps=[2, 6]), trained(problem, observables=["prediction", "ntk"])
    np.testing.assert_allclose(few.prediction, every.prediction.sel(step=[2, 6]), **SAME)
    assert abs(few.prediction - every.prediction.sel(step=[1, 5]).values).max() > 1e-3


@pytest.mark.parametrize("outputs", [None, 3])
@pytest.mark.parametrize(
    ("training", "network"),
    [
        (GD(SCHEDULE), dmft.MLP(3, dmft.tanh(), bias=0.6)),
        (GD(SCHEDULE, momentum=0.5, weight_decay=0.2), dmft.MLP(3, dmft.tanh(), bias=0.6)),
        (GD(0.2, weight_decay=0.2), RESIDUAL),
        (GD(0.3), dmft.CNN(2, 3)),
        (dmft.Adam(0.1, 6), dmft.MLP(2)),
    ],
    ids=["in the pass", "with slots", "residual", "program", "by entry"],
)
def test_what_is_recorded_does_not_change_a_digit(training, network, outputs):
    """In float32, where all products have the same rows: passes of steps start from what they always start from."""
    task = some_task("squared", outputs)
    x = task.x_train[:, :, None] if isinstance(network, dmft.CNN) else task.x_train
    problem = dmft.Problem(network, dmft.Task(x, task.y_train), training)
    few = trained(problem, save_steps=[6], dtype="float32")
    every = trained(problem, observables=["prediction", "ntk"], dtype="float32")
    np.testing.assert_array_equal(few.prediction[-1], every.prediction[-1])
    assert abs(few.prediction[-1] - every.prediction[-2]).max() > 1e-3


# ---- kernels of several outputs --------------------------------------------------------------------------------------


def jacobian_kernel(problem, parameters):
    """gamma0^2 N J J^T (sample, output, sample_2, output_2)."""
    f, free = outputs_of(problem, parameters), [p for p in parameters if p.requires_grad]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(value, free, retain_graph=True)]) for value in f.flatten()
    ]
    J = torch.stack(rows)
    K = parameter_rate(1.0, problem.network.gamma0, WIDTH) * J @ J.T
    return K.reshape(*f.shape, *f.shape).detach().numpy()


@pytest.mark.parametrize(
    "network",
    [
        dmft.MLP(1),
        dmft.MLP(3, dmft.gelu(), 1.3),
        RESIDUAL,
        dmft.MLP(3, bias=0.7, frozen=[0, 2]),
        dmft.ResidualMLP(3, bias=0.7, frozen=[3]),
    ],
    ids=["one", "mlp", "residual", "biases, frozen", "residual, biases, frozen"],
)
@pytest.mark.parametrize("outputs", [None, 1, 3])
def test_ntk_is_that_of_the_jacobian(network, outputs):
    problem = some_problem("squared", outputs, network=network)
    nets = trained(problem, observables=["ntk", "gradient_kernel", "feature_kernel"], two_time=outputs == 3)
    expected = jacobian_kernel(problem, parameters_of(problem))
    if outputs:
        assert nets.ntk.dims == ("step", "sample", "output", "sample_2", "output_2")
        assert nets.gradient_kernel.dims == ("layer", *nets.ntk.dims)
        found = nets.ntk[0].values
    else:
        found = nets.ntk[0].values[:, None, :, None]
    np.testing.assert_allclose(found, expected, **SAME)
    if outputs == 3:
        # outputs are not independent of each other
        assert abs(found * np.eye(3)[:, None, :] - expected).max() > 1e-3
        two_time = nets.gradient_kernel_two_time
        assert two_time.dims == ("layer", "step", "sample", "output", "step_2", "sample_2", "output_2")
        np.testing.assert_allclose(np.einsum("ltictjd->lticjd", two_time), nets.gradient_kernel, **SAME)
    if isinstance(network, dmft.ResidualMLP):
        other = dataclasses.replace(problem, network=dataclasses.replace(network, branch_scale=0.7))
        assert abs(found - jacobian_kernel(other, parameters_of(other))).max() > 1e-3


def test_by_default_kernels_between_outputs_are_left_out():
    nets = trained(some_problem("cross_entropy", 3), observables=None)
    assert set(nets.data_vars) == {"prediction", "loss", "test_loss", "accuracy", "test_accuracy", "feature_kernel"}
    assert nets.prediction.dims == ("step", "sample", "output")
    assert nets.feature_kernel.dims == ("layer", "step", "sample", "sample_2")
    assert "ntk" in trained(some_problem(), observables=None)


# ---- gradient flow ---------------------------------------------------------------------------------------------------


def trained_by_flow(problem, times):
    """Predictions (time, sample[, output]) of the gradient flow of one network, by a Runge-Kutta method of order 8."""
    parameters = parameters_of(problem)
    shapes = [p.shape for p in parameters]
    n, y = problem.task.n_train, torch.tensor(problem.task.targets)
    rate = parameter_rate(problem.training.learning_rate, problem.network.gamma0, WIDTH)

    def split(theta):
        parts = torch.split(torch.tensor(theta), [math.prod(s) for s in shapes])
        return [p.reshape(s).requires_grad_() for p, s in zip(parts, shapes, strict=True)]

    def prediction(theta):
        return outputs_of(problem, split(theta)).detach()

    start = torch.cat([p.detach().flatten() for p in parameters]).numpy()
    offset = prediction(start) * float(problem.network.centered)

    def velocity(_, theta):
        now = split(theta)
        mean = true_loss(problem.loss, (outputs_of(problem, now) - offset)[:n], y[:n]).mean()
        return -rate * torch.cat([g.flatten() for g in torch.autograd.grad(mean, now)]).numpy()

    # errors of 1e-9, far below those of the steps that are tested
    solution = solve_ivp(velocity, (0, times[-1]), start, "DOP853", t_eval=times, rtol=1e-9, atol=1e-10)
    return in_form_of_results(problem, [prediction(theta) - offset for theta in solution.y.T])


FLOWS = {
    "squared": some_problem(),
    "cross entropy": some_problem("cross_entropy", 3, network=dmft.MLP(2, dmft.tanh(), 1.5, centered=False)),
    "residual, logistic": some_problem("logistic", network=RESIDUAL),
}
TOTAL = 3.0


def flow_error(problem, scheme, steps, exact):
    training = dmft.GradientFlow(0.7, TOTAL / steps, steps, scheme)
    found = trained(dataclasses.replace(problem, training=training), save_steps=range(0, steps + 1, steps // 4))
    return abs(found.prediction.values - exact).max()


@pytest.mark.parametrize("name", FLOWS)
def test_schemes_converge_to_the_flow_with_their_orders(name):
    problem = dataclasses.replace(FLOWS[name], training=dmft.GradientFlow(0.7, TOTAL / 4, 4))
    exact = trained_by_flow(problem, np.linspace(0, TOTAL, 5))
    orders = {}
    for scheme in ("rosenbrock", "euler"):
        coarse, fine = (flow_error(problem, scheme, steps, exact) for steps in (64, 128))
        orders[scheme] = np.log2(coarse / fine)
        # 0.5 dt^p with dt = 3/128; measured up to 0.06 dt and 0.012 dt^2
        assert fine < 0.5 * (TOTAL / 128) ** {"rosenbrock": 2, "euler": 1}[scheme]
    # corrections of relative order dt = 3/64 in each error
    assert orders["rosenbrock"] == pytest.approx(2, abs=3 / 64)
    assert orders["euler"] == pytest.approx(1, abs=3 / 64)
    twice = dataclasses.replace(problem, training=dataclasses.replace(problem.training, learning_rate=1.4))
    assert flow_error(problem, "rosenbrock", 64, trained_by_flow(twice, np.linspace(0, TOTAL, 5))) > 0.02


def test_the_carried_output_follows_the_ntk_and_not_the_weights():
    problem = some_problem("squared", 3, dmft.GradientFlow(0.7, 0.3, 4, "euler"))
    nets = trained(problem, observables=["prediction", "ntk"])
    n = problem.task.n_train
    f, K = nets.prediction.values, nets.ntk.values
    step = 0.7 * 0.3 / n * np.einsum("tacbd,tbd->tac", K[..., :n, :], (problem.task.y - f)[:, :n])
    np.testing.assert_allclose(np.diff(f, axis=0), step[:-1], **SAME)
    descent = dataclasses.replace(problem, training=dmft.GradientDescent(0.7 * 0.3, 4))
    assert abs(trained(descent).prediction - f).max() > 1e-2
    # between saved steps, too, on test samples
    np.testing.assert_allclose(trained(problem, save_steps=[4]).prediction[0], f[4], **SAME)


def stiff_problem(kind, steps, largest):
    """Steps of `largest` times the stability limit of explicit Euler at the start, after some that grow to it."""
    problem = some_problem(kind, network=dmft.MLP(2, dmft.tanh(), 0.5), n_train=3)
    K = jacobian_kernel(problem, parameters_of(problem))[:3, 0, :3, 0]
    limit = 2 * 3 / np.linalg.eigvalsh(K)[-1]
    sizes = limit * np.minimum(0.1 * 1.3 ** np.arange(steps), largest)
    return dataclasses.replace(problem, training=dmft.GradientFlow(1.0, sizes))


def test_steps_far_above_the_stability_limit_reach_the_equilibrium(monkeypatch):
    problem = stiff_problem("squared", 28, 50)
    assert problem.training.step_size[-1] == pytest.approx(500 * problem.training.step_size[0])
    start, found = trained(problem).prediction.values[[0, -1]]
    exact = trained_by_flow(problem, problem.training.times[[0, -1]])[-1]
    # relaxed: the training samples are fitted, to the error of the integrator of the exact trajectory
    np.testing.assert_allclose(found[:3], problem.task.y_train, atol=1e-9)
    np.testing.assert_allclose(exact[:3], problem.task.y_train, atol=1e-6)
    # on the test samples the errors of the growing steps are kept: up to .006 for predictions up to 3, which fall as
    # slower growth resolves more time scales (.012 and .002 with factors 1.5 and 1.15 in place of 1.3)
    np.testing.assert_allclose(found[3:], exact[3:], atol=0.01)
    assert abs(start - exact).max() > 0.5

    euler = dataclasses.replace(problem, training=dataclasses.replace(problem.training, scheme="euler"))
    with pytest.raises(DivergenceError, match="Lower step_size="):
        trained(euler)
    # without the curvature of the loss the scheme is explicit
    curvature = loss.curvature
    monkeypatch.setattr(flow.loss, "curvature", lambda *arguments: 0 * curvature(*arguments))
    with pytest.raises(DivergenceError, match="Lower step_size="):
        trained(problem)


def test_rosenbrock_in_single_precision_is_double_precision_to_rounding():
    for problem in (stiff_problem("squared", 28, 50), stiff_problem("logistic", 28, 50)):
        single, double = (trained(problem, dtype=d).prediction.values for d in ("float32", "float64"))
        # rounding of 6e-8, of predictions up to 10, a step
        assert 0 < abs(single - double).max() < 28 * 10 * 6e-8


ON_GPU = {
    **{name: problem for name, (problem, _) in CASES.items()},
    **{f"{kind}, {outputs}": some_problem(kind, outputs) for kind, outputs in LOSSES},
    **{f"{scheme}, {kind}, {c}": some_problem(kind, c, dmft.GradientFlow(0.7, 0.3, 5, scheme), RESIDUAL)
       for scheme in ("euler", "rosenbrock") for kind, c in LOSSES},
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("name", ON_GPU)
def test_a_gpu_trains_as_the_cpu_does(name):
    on = {
        device: finite_nets.train_ensemble(
            ON_GPU[name],
            widths=[WIDTH],
            seeds=4,
            device=device,
            dtype="float64",
            two_time=True,
            observables=["loss", "ntk"],
        )
        for device in ("cpu", "cuda")
    }
    for variable in on["cpu"].data_vars:
        # the same bits of the generator; logarithms and sines differ in the last digits
        np.testing.assert_allclose(on["cuda"][variable], on["cpu"][variable], rtol=1e-8, atol=1e-10)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_an_explosion_between_saved_steps_is_found_on_the_batches():
    training = dmft.GradientDescent(200.0, 6, batches=BATCHES)
    problem = some_problem(training=training, network=dmft.MLP(3, dmft.relu()))
    for save_steps in (None, [6]):
        with pytest.raises(DivergenceError, match="2 of 2 networks of width 7 diverge.*Lower learning_rate=200"):
            trained(problem, save_steps=save_steps)
