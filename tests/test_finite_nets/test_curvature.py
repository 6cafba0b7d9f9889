"""Sharpness of networks against the dense Hessian of an independently written loss, by automatic differentiation."""

import numpy as np
import pytest
import torch

import dmft
import finite_nets
from dmft import schema
from dmft.errors import DivergenceError
from finite_nets.device import matrices
from finite_nets.device.precision import PRECISIONS
from finite_nets.ensembles.budget import Budget
from finite_nets.ensembles.recording import Plan
from finite_nets.training import curvature
from finite_nets.training.perceptrons import Trainer
from test_finite_nets.test_trainer import FEATURES, SEED, WIDTH, outputs_of, parameters_of, some_problem, true_loss

STEPS = 3
SHARPNESS = {"observables": ["sharpness"], "dtype": "float64"}


def metric(problem, parameters):
    """M of every number, from the table of `dmft.specs.parameterization`."""
    network, depth = problem.network, problem.network.depth
    unit = network.gamma0**2 * (WIDTH if network.parameterization == "mean_field" else 1)
    factors = [FEATURES, *[WIDTH] * depth] if network.parameterization == "standard" else [1] * (depth + 1)
    factors += factors[1:depth]  # of biases
    each = zip(factors, parameters, strict=False)
    return torch.cat([torch.full((p.numel(),), unit * m * p.requires_grad, dtype=torch.float64) for m, p in each])


def hessian(loss, output, theta):
    """Of the loss."""
    del output
    return torch.autograd.functional.hessian(loss, theta)


def gauss_newton(loss, output, theta):
    """Of the squared loss of one output, without the curvature of f."""
    del loss
    jacobian = torch.autograd.functional.jacobian(output, theta).flatten(0, 1)
    return jacobian.mT @ jacobian / len(jacobian)


def dense_eigenvalues(problem, curved=hessian):
    """(step, eigenvalue) of M^(1/2) H M^(1/2), of one network that plain gradient descent trains."""
    parameters, y, n = parameters_of(problem), torch.tensor(problem.task.targets), problem.task.n_train
    root = 1.0 if problem.network.parameterization == "mean_field" else WIDTH**0.5  # of the scale of outputs
    offset = outputs_of(problem, parameters).detach() * float(problem.network.centered)

    def output(theta):
        parts = torch.split(theta, [p.numel() for p in parameters])
        f = outputs_of(problem, [part.view_as(p) for part, p in zip(parts, parameters, strict=True)])
        return root * (f - offset)[:n]

    def loss(theta):
        return true_loss(problem.loss, output(theta), y[:n]).mean()

    M, theta = metric(problem, parameters), torch.cat([p.detach().flatten() for p in parameters])
    found = []
    for rate in (*problem.training.rates, 0.0):
        found.append(torch.linalg.eigvalsh(M.sqrt()[:, None] * curved(loss, output, theta) * M.sqrt()))
        (slope,) = torch.autograd.grad(loss(theta.requires_grad_()), theta)
        theta = (theta - rate * M * slope).detach()
    return torch.stack(found).numpy()


def recorded(problem, **arguments):
    arguments = SHARPNESS | arguments
    nets = finite_nets.train_ensemble(problem, widths=[WIDTH], seeds=[0, SEED], **arguments)
    return nets.sharpness.isel(width=0, seed=1).values


TRAINING = dmft.GradientDescent(0.4, STEPS)
TANH = dmft.tanh(0.8)
PROBLEMS = {
    "one layer": {"network": dmft.MLP(1, TANH, 1.3)},
    "two layers": {"network": dmft.MLP(2, TANH, 1.3, centered=False)},
    "three layers": {"network": dmft.MLP(3, dmft.gelu(), 1.3)},
    "residual": {"network": dmft.ResidualMLP(3, dmft.erf(), 1.3, branch_scale=0.6, bias=0.5)},
    "biases": {"network": dmft.MLP(3, dmft.softplus(1.5), 1.3, bias=0.7)},
    "classes": {"kind": "cross_entropy", "outputs": 3, "network": dmft.MLP(2, TANH, 1.3)},
    "outputs": {"outputs": 3, "network": dmft.MLP(2, TANH, 1.3)},
    "signs": {"kind": "logistic", "network": dmft.MLP(2, dmft.relu(), 1.3)},
    "margins": {"kind": "hinge", "network": dmft.MLP(2, TANH, 1.3)},
    "frozen": {"network": dmft.MLP(3, TANH, 1.3, frozen=(0, 2))},
    "linear": {"network": dmft.MLP(2, dmft.linear(), 1.3)},
    "standard": {
        "network": dmft.MLP(2, TANH, 1.3, parameterization="standard"),
        "training": dmft.GradientDescent(0.02, STEPS),
    },
    "ntk": {"network": dmft.MLP(2, TANH, 1.3, parameterization="ntk")},
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(name, monkeypatch):
    problem = some_problem(**{"training": TRAINING} | PROBLEMS[name])
    largest = dense_eigenvalues(problem)[:, -1]
    # measured: 1e-4 where the two largest are 3 % apart ("frozen" readout or first layer), else below 1e-6
    np.testing.assert_allclose(recorded(problem), largest, rtol=1e-3)
    # to rounding, once all directions are spanned: A itself is right
    monkeypatch.setattr(dmft.specs.curvature, "ITERATIONS", 40)
    np.testing.assert_allclose(recorded(problem), largest, rtol=1e-9)


def test_the_curvature_of_outputs_is_part_of_it():
    problem = some_problem(training=TRAINING)
    twin = dense_eigenvalues(problem, gauss_newton)[:, -1]
    assert abs(recorded(problem) / twin - 1).min() > 0.05


def test_the_residual_of_the_eigenvector_is_small():
    """|A y - lambda y| = beta_k |y_k| bounds the distance to an eigenvalue, its square over the gap that to the largest."""
    problem = some_problem(training=TRAINING, n_train=20)
    double = PRECISIONS["float64"]
    trainer = Trainer(problem, torch.device("cpu"), double)
    with torch.inference_mode():
        state = trainer.begin(trainer.draw(64, torch.arange(4), 0))
        list(trainer.run(state, frozenset([STEPS])))
        residuals = []
        for iterations in (4, 8, 16):
            alpha, beta = curvature.lanczos(curvature.Curvature(trainer, state), iterations)
            values, last = (a[:, -1] for a in dmft.specs.curvature.eigenvalues(alpha.numpy(), beta.numpy()))
            residuals.append(float((last * beta[:, -1].numpy() / values).max()))
    assert residuals[-1] < 1e-3  # measured 2e-5
    assert residuals == sorted(residuals, reverse=True)


def test_minibatches_and_flows_have_the_sharpness_of_all_training_samples():
    problem = some_problem(training=TRAINING)
    batches = some_problem(training=dmft.GradientDescent(0.4, STEPS, batches=((0, 1), (2, 4), (3, 0))))
    assert recorded(batches)[0] == pytest.approx(recorded(problem)[0], rel=1e-9)
    assert abs(recorded(batches)[1:] / recorded(problem)[1:] - 1).min() > 1e-3
    for scheme in ("euler", "rosenbrock"):
        flow = some_problem(training=dmft.GradientFlow(1.0, 0.4, STEPS, scheme=scheme))
        assert recorded(flow)[0] == pytest.approx(recorded(problem)[0], rel=1e-9)


def test_a_member_does_not_depend_on_its_batch(monkeypatch):
    problem = some_problem(training=TRAINING)
    whole = finite_nets.train_ensemble(problem, widths=[8, 16], seeds=12, **SHARPNESS)
    monkeypatch.setattr(finite_nets.ensembles.budget, "CPU_BATCH", 300_000)
    budget = Budget(whole_plan(problem), PRECISIONS["float64"], torch.device("cpu"), None)
    assert 1 <= budget.batch(16) < 12
    part = finite_nets.train_ensemble(problem, widths=[16], seeds=[11, 3], **SHARPNESS)
    expected = whole.sharpness.sel(width=[16], seed=[11, 3])
    np.testing.assert_allclose(part.sharpness, expected, rtol=1e-9)  # rounding
    split = finite_nets.train_ensemble(problem, widths=[8, 16], seeds=12, **SHARPNESS)
    np.testing.assert_allclose(split.sharpness, whole.sharpness, rtol=1e-9)


def whole_plan(problem):
    return Plan(problem, np.arange(STEPS + 1), frozenset(["sharpness"]))


def test_delayed_updates_momentum_and_single_precision(monkeypatch):
    problem = some_problem(training=dmft.GradientDescent(0.1, STEPS, momentum=0.5, weight_decay=0.1))
    expected = recorded(problem)
    np.testing.assert_allclose(recorded(problem, dtype="float32"), expected, rtol=1e-5)  # rounding of 6e-8, times ten
    monkeypatch.setattr(finite_nets.training.perceptrons, "room", lambda width, rows, steps, *rest: rows * steps)
    assert matrices.room(WIDTH, 5, STEPS, torch.float64, torch.device("cpu")) == 0  # that of a CPU
    np.testing.assert_allclose(recorded(problem), expected, rtol=1e-9)


def test_other_observables_stay_what_they_are_and_moments_have_it():
    problem = some_problem(training=TRAINING)
    arguments = {"widths": [8], "seeds": 8, "dtype": "float64"}
    plain = finite_nets.train_ensemble(problem, **arguments)
    assert "sharpness" not in plain
    both = finite_nets.train_ensemble(problem, observables=(*schema.OBSERVABLES, "sharpness"), **arguments)
    assert both.drop_vars("sharpness").equals(plain)
    moments = finite_nets.train_ensemble(
        problem, observables=["loss", "sharpness"], keep="moments", block=4, **arguments
    )
    assert moments.sharpness_mean.dims == ("width", "block", "step")
    np.testing.assert_allclose(moments.sharpness_mean.mean("block"), both.sharpness.mean("seed"), rtol=1e-9)
    assert schema.dims("comparison", "sharpness_z") == ("width", "step")


def test_networks_that_diverge_are_masked():
    problem = some_problem(training=dmft.GradientDescent(300.0, 30))
    with pytest.raises(DivergenceError):
        finite_nets.train_ensemble(problem, widths=[8], seeds=3, **SHARPNESS)


def test_descent_is_monotone_below_two_over_the_rate_and_not_above():
    problem = some_problem(network=dmft.MLP(2, TANH, 1.0), training=dmft.GradientDescent(1.0, 30))
    arguments = {"widths": [64], "seeds": 4, "observables": ["loss", "sharpness"]}
    start = float(finite_nets.train_ensemble(problem, save_steps=[0], **arguments).sharpness.max())

    def trained(factor):
        training = dmft.GradientDescent(factor / start, 30)
        nets = finite_nets.train_ensemble(some_problem(network=problem.network, training=training), **arguments)
        return nets, nets.sharpness * training.learning_rate

    nets, stability = trained(0.2)
    assert stability.max() < 2
    assert (nets.loss.diff("step") < 0).all()
    nets, stability = trained(2.5)
    assert stability.isel(step=0).max() > 2
    assert (nets.loss.diff("step") > 0).any("step").all()


def test_streams_and_other_names_are_refused():
    problem = some_problem(training=TRAINING)
    with pytest.raises(ValueError, match="any of prediction, .*, sharpness"):
        finite_nets.train_ensemble(problem, widths=[8], seeds=1, observables=["curvature"])
    stream = some_problem(
        network=dmft.MLP(2, centered=False),
        training=dmft.GradientDescent(0.4, 2, batches=((0, 1), (2, 3)), observe="test"),
    )
    with pytest.raises(ValueError, match='observe="test"'):
        finite_nets.train_ensemble(stream, widths=[8], seeds=1, observables=["sharpness"])
    with pytest.raises(ValueError, match="recorded by dmft.solve and finite_nets.train_ensemble only"):
        finite_nets.sample_in_law(problem, widths=[8], seeds=1, observables=["sharpness"])
