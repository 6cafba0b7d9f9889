"""Functions of several results take them in any order, and say so where one is of another kind."""

import itertools

import pytest
import xarray as xr

import comparisons
import dmft
import finite_nets
from conftest import reference_problem
from dmft.errors import SchemaError

TWO = ("theory", "networks")
THREE = (*TWO, "fluctuations")
FUNCTIONS = {
    "compare": (comparisons.compare, THREE),
    "bias_variance": (comparisons.bias_variance, THREE),
    "pointwise": (comparisons.pointwise, TWO),
    "representations": (comparisons.representations, TWO),
    "spectra": (comparisons.spectra, TWO),
    "after_kernel": (comparisons.after_kernel, TWO),
    "densities": (comparisons.densities, ("particles", "neurons")),
    "at_width": (lambda *results: dmft.at_width(*results, width=100), ("theory", "fluctuations")),
}


@pytest.fixture(scope="module")
def results():
    problem = reference_problem()
    task = dmft.Task(problem.task.x_train, [-1, 1, 1], problem.task.x_train + 0.3, [-1, 1, 1])
    problem = dmft.Problem(problem.network, task, dmft.GradientDescent(0.6, 2))
    few = {"particles": 128, "scrambles": 2}
    return {
        "theory": dmft.solve(problem, **few),
        "networks": finite_nets.train_ensemble(problem, widths=[16, 32], seeds=16),
        "fluctuations": dmft.fluctuations(problem, draws=4, observables=["prediction", "loss"], **few),
        "particles": dmft.neurons(problem, **few),
        "neurons": finite_nets.neurons(problem, widths=[16], neurons=128),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_order(name, results):
    function, roles = FUNCTIONS[name]
    expected, *others = (
        function(*(results[role] for role in order)).drop_attrs(deep=False) for order in itertools.permutations(roles)
    )
    for found in others:
        xr.testing.assert_identical(found, expected)
    # not blind to what is given: without its kind a result is taken for what stands in its place
    first = roles[0]
    nameless = results[first].copy()
    nameless.attrs = {key: value for key, value in nameless.attrs.items() if key != "kind"}
    with pytest.raises((SchemaError, ValueError)):
        function(*(nameless if role == first else results[role] for role in reversed(roles)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_kind_twice_is_refused(name, results):
    function, roles = FUNCTIONS[name]
    for role in roles[:2]:
        with pytest.raises((SchemaError, ValueError), match=r"kind|hold|holds"):
            function(results[role], results[role])


def test_keywords_and_further_arguments(results):
    theory, nets = results["theory"], results["networks"]
    expected = comparisons.representations(theory, nets, "ntk")
    for found in (
        comparisons.representations(nets, theory, "ntk"),
        comparisons.representations(nets=nets, theory=theory, quantity="ntk"),
        comparisons.representations(nets, theory=theory, quantity="ntk"),
    ):
        xr.testing.assert_identical(found.drop_attrs(deep=False), expected.drop_attrs(deep=False))
    assert not expected.equals(comparisons.representations(theory, nets, "feature_kernel"))
    with pytest.raises(SchemaError, match="is of kind 'limit'; expected 'fluctuations'"):
        comparisons.compare(theory, nets, theory=theory)
