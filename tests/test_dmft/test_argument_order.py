"""Functions of several results take them in any order and by name, and refuse what they are not made for by name."""

import inspect
import itertools
import re
import warnings

import pytest
import xarray as xr
from test_results import ensemble, fluctuations, moments, neurons, problem

import comparisons
import dmft
import finite_nets
from dmft.errors import SchemaError
from dmft.schema.sources import SOURCES, kind_of, source_of

WIDTH = 10**4  # where the made-up bias is small
# every public function of several results: the names of these, and further arguments
FUNCTIONS = {
    comparisons.compare: ({"theory": "theory", "nets": "networks", "fluctuations": "fluctuations"}, ()),
    comparisons.bias_variance: ({"theory": "theory", "nets": "networks", "fluctuations": "fluctuations"}, ()),
    comparisons.pointwise: ({"theory": "theory", "nets": "networks"}, ()),
    comparisons.representations: ({"theory": "theory", "nets": "networks"}, ("ntk",)),
    comparisons.spectra: ({"theory": "theory", "nets": "networks"}, ()),
    comparisons.after_kernel: ({"theory": "theory", "nets": "networks"}, ()),
    comparisons.densities: ({"theory": "particles", "nets": "neurons"}, ()),
    comparisons.posterior: ({"theory": "adaptive", "nets": "chains"}, ()),
    dmft.at_width: ({"theory": "theory", "fluctuations": "fluctuations"}, (WIDTH,)),
}
EACH = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)


def linear():
    return problem(activation=dmft.linear())


@pytest.fixture(scope="module")
def results():
    return {
        "theory": dmft.lazy_limit(problem()),
        "networks": ensemble(),
        "fluctuations": fluctuations(),
        "adaptive": dmft.adaptive_kernel(linear(), temperature=0.5),
        "chains": finite_nets.sample_posterior(
            linear(), widths=[8], seeds=4, temperature=0.5, largest_r_hat=3.0, draws=20
        ),
        "particles": neurons("particles"),
        "neurons": neurons("neurons"),
    }


def same(left, right):
    xr.testing.assert_identical(left, right)
    assert left.attrs == right.attrs


def test_every_public_function_of_several_results_is_among_them():
    several = {
        function
        for package in (dmft, comparisons)
        for name in package.__all__
        if inspect.isfunction(function := getattr(package, name))
        and sum(str(p.annotation).removesuffix(" | None") == "xr.Dataset"
                for p in inspect.signature(function).parameters.values()) > 1
    }  # fmt: skip
    assert several == set(FUNCTIONS)
    for function, (arguments, _) in FUNCTIONS.items():  # documented and in the signature in one order
        assert list(inspect.signature(function).parameters)[: len(arguments)] == list(arguments)
        described = re.findall(
            r"^        (\w+): ", function.__doc__.split("Args:")[1].split("Returns:")[0], re.MULTILINE
        )
        assert described[: len(arguments)] == list(arguments)


@EACH
def test_any_order_and_names(function, results):
    arguments, further = FUNCTIONS[function]
    named = {name: results[source] for name, source in arguments.items()}
    expected = function(*named.values(), *further)
    for order in itertools.permutations(named.values()):
        same(function(*order, *further), expected)
    others = [name for name in inspect.signature(function).parameters if name not in arguments]
    by_name = dict(zip(others, further, strict=False))
    same(function(**named, **by_name), expected)
    first, *rest = named
    same(function(*(named[name] for name in rest), **{first: named[first]}, **by_name), expected)
    # the broken twin: the function itself goes by places
    with pytest.raises((SchemaError, ValueError)):
        inspect.unwrap(function)(*reversed(named.values()), *further)


@EACH
def test_wrong_kinds_are_named_with_what_is_expected_and_how_to_make_it(function, results):
    arguments, further = FUNCTIONS[function]
    given = [results[source] for source in arguments.values()]
    statistics = comparisons.statistics(results["networks"])
    got = f"{function.__name__} got a Dataset of kind"
    for name, source in arguments.items():
        way = f"{name}, a result of kind {SOURCES[source].kinds[0]!r}"
        for wrong, message in (
            ((statistics, *given[1:]), f"{got} 'statistics'. "),
            ((*given, results[source]), f"{name} is there twice"),
            ((xr.Dataset(), *given[1:]), f"{function.__name__} got a Dataset without a kind. "),
        ):
            with pytest.raises(SchemaError, match=re.escape(message)) as refused:
                function(*wrong, *further)
            assert way in str(refused.value)
            assert SOURCES[source].call in str(refused.value)
        others = {n: results[s] for n, s in arguments.items() if n != name}
        with pytest.raises(SchemaError, match=re.escape(f"{function.__name__} got {name}=a Dataset of kind")):
            function(**{name: next(iter(others.values()))})
        with pytest.raises(SchemaError, match=f"got {name}=7. Expected, in any order"):
            function(**{name: 7})
        default = inspect.signature(function).parameters[name].default
        if default is not None:
            with pytest.raises(SchemaError, match=f"{name} is missing"):
                function(*others.values(), *further)
    with pytest.raises(SchemaError, match="got nothing: "):
        function()


def test_what_may_be_left_out_may_be_none(results):
    theory, nets, predicted = (results[name] for name in ("theory", "networks", "fluctuations"))
    same(comparisons.bias_variance(nets, None, predicted), comparisons.bias_variance(nets, fluctuations=predicted))
    same(comparisons.compare(nets, theory, None), comparisons.compare(theory, nets))
    same(comparisons.pointwise(None, nets), comparisons.pointwise(nets))
    assert "distance" not in comparisons.pointwise(nets)
    assert "distance" in comparisons.pointwise(nets, theory)


def test_further_arguments_are_not_swallowed(results):
    theory, nets = results["theory"], results["networks"]
    with pytest.raises(TypeError, match="quantity"):
        comparisons.representations(theory, nets, "ntk", quantity="ntk")
    with pytest.raises(SchemaError, match="got a Dataset of kind 'limit', a Dataset of kind 'ensemble', 3. Expected"):
        comparisons.compare(theory, nets, 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'seeds'"):
        comparisons.compare(theory, nets, seeds=3)


def test_results_of_a_stack_and_moments_have_their_kinds(results):
    stacked = dmft.stack([dmft.lazy_limit(problem(g)) for g in (1.0, 2.0)], "gamma0")
    found = comparisons.compare(results["networks"], stacked.sel(gamma0=1.0))
    same(found, comparisons.compare(stacked.sel(gamma0=1.0), results["networks"]))
    with pytest.raises(ValueError, match="select one"):
        comparisons.compare(results["networks"], stacked)
    assert source_of(moments()) == "networks"
    assert source_of(found) is None
    assert kind_of(comparisons.pointwise(results["networks"])) == "pointwise"


def test_the_warning_of_an_expansion_points_at_the_caller(results):
    predicted = results["fluctuations"]
    predicted = predicted.assign(prediction_bias=predicted["prediction_bias"] + 100.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dmft.at_width(predicted, results["theory"], 1)
    assert caught
    assert {one.filename for one in caught} == {__file__}
