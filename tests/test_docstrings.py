"""Docstrings of public names: their form, and their examples, which are run.

Examples are about one small problem: `problem`, its limit `theory` and fluctuations `predicted`, the networks `nets`
and their `comparison`, single neurons of the limit, `particles`, a `store` of networks and an empty `folder`.
"""

import doctest
import inspect
import sys
import types

import numpy as np
import pytest

import comparisons
import dmft
import finite_nets
from dmft.schema import registry

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (dmft, finite_nets, comparisons)
    for name in module.__all__
}

# an error; and batches, whose sentence has them
UNTOLD = ("comparisons.UnresolvedError", "dmft.one_pass", "dmft.random_batches")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What examples may use; a module, where formulas of one's own are found again by their names."""
    folder = tmp_path_factory.mktemp("examples")
    x = np.random.default_rng(0).standard_normal((4, 3))
    task = dmft.Task(x[:2], [-1, 1], x[2:], [-1, 1])
    problem = dmft.Problem(dmft.MLP(1), task, dmft.GradientDescent(0.5, steps=2))
    few = {"particles": 256, "scrambles": 2}
    theory = dmft.solve(problem, **few)
    nets = finite_nets.train_ensemble(problem, widths=[8, 16, 32, 64], seeds=16)
    finite_nets.sweep(problem, [8], 64, store=folder / "store")
    module = types.ModuleType("notebook")
    vars(module).update(
        np=np,
        dmft=dmft,
        finite_nets=finite_nets,
        comparisons=comparisons,
        problem=problem,
        theory=theory,
        nets=nets,
        predicted=dmft.fluctuations(problem, **few, observables=["prediction"]),
        comparison=comparisons.compare(theory, nets),
        particles=dmft.neurons(problem, **few),
        store=folder / "store",
        folder=folder,
    )
    sys.modules["notebook"] = module
    yield vars(module)
    del sys.modules["notebook"]


@pytest.fixture
def registered():
    """What an example registers does not stay."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
    registry.registered.cache_clear()


def failures(text, name, names):
    """What goes wrong in the examples of a docstring, as text; how many examples there are."""
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(text), {}, name, None, 0)
    test.globs = names  # not a copy
    told = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append, clear_globs=False)
    return "".join(told), len(test.examples)


@pytest.mark.filterwarnings("ignore")  # few particles and networks
@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.usefixtures("registered")
def test_examples_run(name, names):
    text = inspect.getdoc(PUBLIC[name])
    before = dict(names)
    told, count = failures(text, name, dict(names) if "def " not in text else names)
    names.update(before)  # what examples call alike
    assert not told, told
    assert count


def test_wrong_examples_are_found(names):
    assert failures(">>> 1 + 1\n3", "wrong", names)[0]
    assert failures(">>> dmft.solve(problem, particles=3)", "wrong", names)[0]
    assert failures("None here.", "none", names) == ("", 0)


def complaints(name, call):
    """What a docstring lacks."""
    text = inspect.getdoc(call) or ""
    if text.split(maxsplit=1)[0] == "Of":
        yield f'{name} starts with "Of"'
    parameters = [*inspect.signature(call).parameters]
    entries = text.partition("Args:")[2]
    for parameter in parameters:
        if not any(parameter in line.partition(":")[0].replace(",", " ").split() for line in entries.splitlines()):
            yield f"{name} does not say what {parameter} is"


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in UNTOLD])
def test_docstrings_say_what_arguments_are(name):
    assert not list(complaints(name, PUBLIC[name]))


def test_a_docstring_without_arguments_is_found():
    def call(width, *, seed=0):
        """Of a call.

        Args:
            seed: of it.
        """

    assert list(complaints("call", call)) == ['call starts with "Of"', "call does not say what width is"]
