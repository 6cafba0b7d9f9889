"""Variances of initial weights and biases, zero among them, in the limit, its closed forms and the networks."""

from dataclasses import replace

import numpy as np
import pytest

import dmft
import finite_nets
from conftest import reference_problem

TASK = reference_problem().task
WEIGHTS = (1.7, 0.6, 0.0)  # a readout that starts at zero


def problem(network, steps=5, rate=0.5, task=TASK):
    return dmft.Problem(network, task, dmft.GradientDescent(rate, steps))


def test_identities_of_what_there_was_are_kept():
    # as they were before there were variances
    ids = {
        dmft.MLP(2): "2b49450a93cbadba",
        dmft.MLP(3, dmft.relu(), 0.5, bias=0.3, frozen=[0]): "ea8a5cfc063140b7",
        dmft.ResidualMLP(4): "dea4d7e1880fa67c",
    }
    assert [problem(network).problem_id for network in ids] == list(ids.values())
    assert problem(dmft.MLP(2, weight_variance=(1, 1, 1))).problem_id == ids[dmft.MLP(2)]
    assert problem(dmft.MLP(2, weight_variance=2.0)).problem_id != ids[dmft.MLP(2)]


def test_a_problem_with_variances_survives_its_description():
    described = problem(dmft.MLP(2, weight_variance=WEIGHTS, bias=0.5, bias_variance=0.0))
    assert dmft.Problem.from_json(described.to_json()) == described


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_variance": 0.0}, "Zero is for the readout"),
        ({"weight_variance": (1.0, 1.0)}, "2 entries for 3 layers"),
        ({"weight_variance": (1.0, 0.0, 1.0)}, r"weight_variance\[1\]=0.0 must be positive"),
        ({"weight_variance": (1.0, 1.0, -1.0)}, r"weight_variance\[2\]=-1.0"),
        ({"weight_variance": WEIGHTS, "frozen": [2]}, "nothing would ever move"),
        ({"bias_variance": -1.0}, "bias_variance=-1.0"),
    ],
)
def test_what_is_no_variance_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        dmft.MLP(2, **arguments)


@pytest.mark.parametrize("bias_variance", [0.0, 2.5])
@pytest.mark.parametrize("samples", [3, 40])  # fewer and more than features: other coordinates of the bias
def test_exact_linear_networks_follow_the_gram_matrix(bias_variance, samples):
    x = np.random.default_rng(1).standard_normal((samples, 6))
    task = dmft.Task(x, np.sign(x[:, 0]))
    network = dmft.MLP(1, dmft.linear(), weight_variance=(0.7, 1.6), bias=0.8, bias_variance=bias_variance)
    described = problem(network, task=task)
    ours, oracle = dmft.solve(described), dmft.two_layer_linear(described)
    for name in ("prediction", "feature_kernel", "gradient_kernel", "ntk"):
        np.testing.assert_allclose(ours[name], oracle[name], rtol=1e-10, atol=1e-10)  # two exact methods
    other = dmft.two_layer_linear(problem(replace(network, bias_variance=1.0), task=task))
    assert abs(ours.prediction - other.prediction).max() > 1e-2


@pytest.mark.parametrize("kind", [dmft.MLP, dmft.ResidualMLP])
def test_kernels_at_initialisation_are_those_of_the_lazy_limit(kind):
    network = kind(3, dmft.erf(), weight_variance=(1.5, 0.6, 1.2, 0.8), bias=0.7, bias_variance=0.4)
    described = problem(network, steps=1)
    theory = dmft.solve(described, particles=4096, scrambles=4, save_steps=[0])
    lazy = dmft.lazy_limit(described, save_steps=[0])
    for name in ("feature_kernel", "gradient_kernel", "ntk"):
        error = abs(theory[name] - lazy[name]).max().item()
        # five standard errors of the worst of some 30 entries, and what 4,096 particles cannot resolve
        assert error < 5 * theory[f"{name}_se"].max().item() + 2e-3, name
    other = dmft.lazy_limit(problem(kind(3, dmft.erf(), bias=0.7), steps=1), save_steps=[0])
    assert abs(theory.ntk - other.ntk).max() > 0.1


@pytest.mark.parametrize(
    "network",
    [
        dmft.MLP(2, dmft.tanh(), weight_variance=WEIGHTS),
        dmft.MLP(2, dmft.tanh(), weight_variance=(0.8, 1.5, 0.7), bias=0.8, bias_variance=0.0),
        dmft.ResidualMLP(2, dmft.tanh(), weight_variance=(0.5, 2.0, 0.0), bias=0.5, bias_variance=3.0),
    ],
    ids=["zero readout", "zero biases", "residual"],
)
@pytest.mark.slow
def test_trained_networks_tend_to_the_limit(network):
    described = problem(network)
    theory = dmft.solve(described, particles=4096, scrambles=4, observables=["prediction"])
    nets = finite_nets.train_ensemble(described, widths=[64, 128], seeds=1500, observables=["prediction"])
    f, n = nets.prediction.astype(float), np.array([64, 128])
    mean, se = f.mean("seed"), f.std("seed", ddof=1) / np.sqrt(f.sizes["seed"])
    extrapolated = 2 * mean.sel(width=128) - mean.sel(width=64)
    error = np.sqrt((2 * se.sel(width=128)) ** 2 + se.sel(width=64) ** 2 + theory.prediction_se**2).isel(
        step=slice(1, None)
    )
    z = ((extrapolated - theory.prediction).isel(step=slice(1, None)) / error).values
    # correlated entries: a root mean square of 2 is far out; corrections of order 1/N^2 are below 1e-3 here
    assert np.sqrt((z**2).mean()) < 2, (z, n)
    plain = dmft.solve(problem(replace(network, weight_variance=1.0, bias_variance=1.0)), particles=1024, scrambles=2)
    broken = ((extrapolated - plain.prediction).isel(step=slice(1, None)) / error).values
    assert np.sqrt((broken**2).mean()) > 5


def test_samples_in_law_have_the_variances_too():
    described = problem(dmft.MLP(2, dmft.tanh(), weight_variance=(1.5, 0.7, 0.0)), steps=3)
    nets = finite_nets.train_ensemble(described, widths=[16], seeds=1500, dtype="float64", observables=["prediction"])
    law = finite_nets.sample_in_law(described, widths=[16], seeds=1500, observables=["prediction"])
    for statistic in ("mean", "var"):
        a, b = (getattr(ds.prediction.isel(step=3, width=0), statistic)("seed") for ds in (nets, law))
        spread = nets.prediction.isel(step=3, width=0).std("seed")
        scale = spread if statistic == "mean" else np.sqrt(2) * spread**2 * 1.5  # tails heavier than normal ones
        assert (abs(a - b) < 4.5 * scale * np.sqrt(2 / 1500)).all(), statistic
