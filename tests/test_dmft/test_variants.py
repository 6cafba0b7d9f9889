"""Biases, frozen layers and parameterizations in the theory: against closed forms, and twins that must fail."""

import dataclasses
import re

import numpy as np
import pytest

import dmft
import finite_nets
from conftest import first_of
from dmft.limits.by_paths import limit_by_paths
from dmft.specs import parameterization

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((5, 4)), RNG.standard_normal((5, 2))
SINGLE = dmft.Task(X[:3], Y[:3, 0], X[3:], Y[3:, 0])
SEVERAL = dmft.Task(X[:3], Y[:3], X[3:], Y[3:])
VARIANTS = [{"bias": 0.7}, {"frozen": [0]}, {"frozen": [1], "bias": 0.5}]
DECAYING = dmft.GradientDescent(0.3, 6, momentum=0.5, weight_decay=0.1)
EULER = dmft.GradientFlow(0.3, 0.5, 6, scheme="euler")


def worst(a, b, name):
    return abs(a[name] - b[name]).max().item()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(
    ("task", "training"), [(SINGLE, DECAYING), (SEVERAL, EULER)], ids=["descent", "outputs, euler"]
)
def test_two_layers_are_the_exact_recursion(variant, task, training):
    problem = dmft.Problem(dmft.MLP(1, dmft.linear(), 1.3, **variant), task, training)
    theory, exact = dmft.solve(problem, observables=["prediction", "ntk"]), dmft.two_layer_linear(problem)
    assert worst(theory, exact, "prediction") < 1e-12  # linear forms: no sampling
    assert worst(theory, exact, "ntk") < 1e-12
    other = dmft.Problem(dmft.MLP(1, dmft.linear(), 1.3), task, training)
    assert worst(theory, dmft.two_layer_linear(other), "prediction") > 0.01


def test_the_exact_flow_is_the_limit_of_fine_steps():
    problem = dmft.Problem(
        dmft.MLP(1, dmft.linear(), 1.3, bias=0.5, frozen=[1]), SINGLE, dmft.GradientFlow(0.3, 0.02, 50)
    )
    # second order: 1 / 50^2 times less than at one step
    assert worst(dmft.solve(problem, observables=["prediction"]), dmft.two_layer_linear(problem), "prediction") < 1e-6


@pytest.mark.parametrize("bias", first_of([0.4, 0.0]))
def test_random_features_are_linear_regression_at_any_richness(bias):
    """Features that do not move make f linear in the readout: its kernel is Phi^L of the lazy limit for ever."""
    network = dmft.MLP(2, dmft.erf(), 1.5, bias=bias, frozen=range(2))
    problem = dmft.Problem(network, SINGLE, dmft.GradientDescent(0.5, 6))
    theory = dmft.solve(problem, particles=512, observables=["prediction", "feature_kernel", "ntk"])
    exact = dmft.lazy_limit(problem)

    def largest_z(exact, name):
        return (abs(theory[name] - exact[name]) / (theory[f"{name}_se"] + 1e-4)).max().item()

    # eight scrambles: the largest of some hundred values of Student's t with 7 degrees of freedom
    assert largest_z(exact, "prediction") < 7
    assert largest_z(exact, "ntk") < 7
    np.testing.assert_array_equal(theory.ntk, theory.feature_kernel.isel(layer=-1))
    trained = dmft.lazy_limit(dataclasses.replace(problem, network=dataclasses.replace(network, frozen=[0])))
    assert largest_z(trained, "prediction") > 30


@pytest.mark.parametrize("kind", [dmft.MLP, dmft.ResidualMLP])
def test_the_lazy_limit_of_biases_and_frozen_layers_is_that_of_a_lazy_solution(kind):
    problem = dmft.Problem(kind(3, dmft.erf(), 1e-2, bias=0.6, frozen=[1]), SINGLE, dmft.GradientDescent(0.5, 6))
    theory = dmft.solve(problem, particles=1024, scrambles=4, observables=["ntk"])
    exact = dmft.lazy_limit(problem)

    def largest_z(exact):
        return (abs(theory.ntk - exact.ntk) / (theory.ntk_se + 3e-3)).max().item()

    # errors of the lazy limit of order gamma0^2 and of few particles beside the standard errors
    assert largest_z(exact) < 7
    for other in ({"bias": 0.0}, {"frozen": ()}):
        changed = dataclasses.replace(problem, network=dataclasses.replace(problem.network, **other))
        assert largest_z(dmft.lazy_limit(changed)) > 15


def test_fluctuations_of_a_network_with_biases_are_those_of_one_with_one_more_input():
    """One hidden layer: a bias of the first layer is an input of that value."""
    training = dmft.GradientDescent(0.4, 4)
    network = dmft.MLP(1, dmft.linear(), 1.2, bias=0.8)
    augmented = np.column_stack([X * np.sqrt(5 / 4), np.full(5, 0.8 * np.sqrt(5))])
    ours = dmft.fluctuations(dmft.Problem(network, SINGLE, training), observables=["prediction"])
    task = dmft.Task(augmented[:3], Y[:3, 0], augmented[3:], Y[3:, 0])
    theirs = dmft.fluctuations(
        dmft.Problem(dataclasses.replace(network, bias=0.0), task, training), observables=["prediction"]
    )
    np.testing.assert_allclose(ours.prediction_variance, theirs.prediction_variance, atol=1e-10)
    np.testing.assert_allclose(ours.prediction_bias, theirs.prediction_bias, atol=1e-10)


def test_scales_of_the_parameterizations():
    def scales(name, width):
        network = dmft.MLP(2, gamma0=1.5, parameterization=name, frozen=[1])
        return parameterization.scales(network, width, dimension=9, batch=3)

    for width in (16, 64):
        field, ntk, standard = (scales(name, width) for name in parameterization.PARAMETERIZATIONS)
        # ntk is mean field with the richness gamma0 / sqrt(N)
        network = dmft.MLP(2, gamma0=1.5 / np.sqrt(width), frozen=[1])
        lazier = parameterization.scales(network, width, dimension=9, batch=3)
        np.testing.assert_allclose(ntk.output, lazier.output)
        np.testing.assert_allclose(ntk.update, lazier.update)
        assert field.tangent == ntk.tangent == (1.0, 0.0, 1.0)
        np.testing.assert_allclose(standard.update, np.array(ntk.update) * [9, width, width])
        assert standard.tangent == (9.0, 0.0, float(width))


@pytest.mark.parametrize(
    "producer",
    [
        dmft.solve,
        limit_by_paths,
        dmft.fluctuations,
        dmft.lazy_limit,
        dmft.two_layer_linear,
        lambda problem: finite_nets.sample_in_law(problem, widths=[8], seeds=2),
    ],
)
def test_the_theory_is_for_one_parameterization(producer):
    network = dmft.MLP(1, dmft.linear(), parameterization="ntk")
    with pytest.raises(ValueError, match="parameterization='ntk' has no infinite-width limit with feature learning"):
        producer(dmft.Problem(network, SINGLE, dmft.GradientDescent(0.3, 2)))


def test_descriptions_name_what_is_new_and_keep_the_identity_of_what_is_not():
    plain = dmft.Problem(dmft.MLP(2), SINGLE, dmft.GradientDescent(0.3, 2))
    assert "frozen" not in plain.to_json(arrays=False)
    for change in ({"bias": 0.1}, {"frozen": range(1)}, {"parameterization": "standard"}):
        other = dataclasses.replace(plain, network=dmft.MLP(2, **change))
        assert other.problem_id != plain.problem_id
        assert dmft.Problem.from_json(other.to_json()) == other


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bias": -0.1}, ValueError, "bias=-0.1 must be at least 0 and finite"),
        ({"bias": True}, TypeError, "bias=True is not a number"),
        ({"frozen": 1}, TypeError, "frozen=1 is not a list of layers; give e.g. frozen=[0] or frozen=range(2)"),
        ({"frozen": [3]}, ValueError, "frozen holds 3; the layers are 0..2, of which 2 is the readout"),
        ({"frozen": [-1]}, ValueError, "frozen=-1 is too small"),
        ({"frozen": range(3)}, ValueError, "frozen=[0, 1, 2] leaves nothing to train"),
        ({"parameterization": "standard", "bias": 0.1}, ValueError, 'bias=0.1 with parameterization="standard"'),
        ({"parameterization": "mup"}, ValueError, "parameterization='mup' is unknown; choose one of mean_field, ntk"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        dmft.MLP(2, **arguments)


def test_responses_along_paths_are_for_plain_networks():
    for change in ({"bias": 0.1}, {"frozen": [0]}):
        problem = dmft.Problem(dmft.MLP(2, **change), SINGLE, dmft.GradientDescent(0.3, 2))
        with pytest.raises(ValueError, match="for networks without biases, all of whose layers are trained"):
            limit_by_paths(problem)
