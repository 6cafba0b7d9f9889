"""Specs: what is accepted, what is refused and how, identity, JSON."""

import dataclasses
import importlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import dmft
import finite_nets
from dmft.errors import DivergenceError
from dmft.specs import parameterization
from dmft.specs._kinds import kinds_in
from dmft.specs.descriptions import NETWORKS, TRAININGS
from dmft.specs.loss import LOSSES, Loss
from oracles import parameter_rate

X = np.random.default_rng(0).standard_normal((4, 6))
Y = [-1.0, 1.0, 1.0, -1.0]


def task(**changes):
    return dmft.Task(**{"x_train": X, "y_train": Y, **changes})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dmft.MLP(depth=0), ValueError, "depth=0 is too small; it must be at least 1"),
        (lambda: dmft.MLP(depth=2.0), TypeError, "depth=2.0 is not an integer"),
        (lambda: dmft.MLP(depth=True), TypeError, "depth=True is not an integer"),
        (lambda: dmft.MLP(2, gamma0=0), ValueError, "gamma0=0 must be positive and finite. The lazy limit, gamma0 -> 0, is dmft.lazy_limit"),
        (lambda: dmft.MLP(2, gamma0=float("nan")), ValueError, "gamma0=nan must be positive"),
        (lambda: dmft.MLP(2, activation=dmft.tanh), TypeError, "is not an activation; call it: dmft.tanh()"),
        (lambda: dmft.MLP(2, activation="swish"), TypeError, "activation='swish' is not an activation; choose one of dmft.tanh()"),
        (lambda: dmft.MLP(2, centered=1), TypeError, "centered=1 must be True or False"),
        (lambda: dmft.Activation("swish"), ValueError, "activation 'swish' is unknown; choose one of tanh, relu"),
        (lambda: dmft.Activation("relu", gain=2.0), ValueError, "'relu' has no gain (got 2.0)"),
        (lambda: dmft.tanh(-1.0), ValueError, "gain=-1.0 must be positive"),
        (lambda: dmft.GradientDescent(-0.1, 5), ValueError, "learning_rate=-0.1 must be positive"),
        (lambda: dmft.GradientDescent("fast", 5), TypeError, "learning_rate='fast' is not a number"),
        (lambda: dmft.GradientDescent(0.1, 0), ValueError, "steps=0 is too small"),
        (lambda: task(y_train=Y[:3]), ValueError, "y_train has 3 targets for 4 inputs in x_train"),
        (lambda: task(y_train=[Y]), ValueError, "y_train has 1 targets for 4 inputs"),
        (lambda: task(x_train=X[0]), ValueError, "x_train has shape (6,); expected (sample, feature)"),
        (lambda: task(x_train=np.where(X[1, 2] == X, np.nan, X)), ValueError, "x_train holds 1 non-finite number(s), the first at index (1, 2)"),
        (lambda: task(x_train=[["a"]]), TypeError, "x_train cannot be read as an array of real numbers"),
        (lambda: task(x_train=np.zeros((0, 6)), y_train=[]), ValueError, "x_train has shape (0, 6): it is empty"),
        (lambda: task(provenance={"when": object()}), TypeError, "cannot be written as JSON"),
        (lambda: task(x_test=X), ValueError, "y_test is missing"),
        (lambda: task(x_test=X[:, :5], y_test=Y), ValueError, "x_test has 5 features and x_train 6"),
        (lambda: dmft.Problem(task(), dmft.MLP(2), dmft.GradientDescent(1, 1)), TypeError, "is not a dmft.Architecture, such as dmft.MLP(depth=2); the order is network, task"),
        (lambda: dmft.Problem(dmft.MLP(2), task(), dmft.GradientDescent(1, 1), loss="hinged"), ValueError, "loss='hinged' is unknown"),
    ],
)  # fmt: skip
def test_refusals_name_the_value_and_the_way_out(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_a_task_keeps_its_own_read_only_copy():
    x = X.copy()
    made = task(x_train=x)
    x[0, 0] = 99
    assert made.x_train[0, 0] == X[0, 0]
    with pytest.raises(ValueError, match="read-only"):
        made.x_train[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.x_train = x


BASE = dmft.Problem(dmft.MLP(2), task(x_test=X + 1, y_test=Y), dmft.GradientDescent(0.5, 5))


@pytest.mark.parametrize(
    "changed",
    [
        dataclasses.replace(BASE, network=dmft.MLP(3)),
        dataclasses.replace(BASE, network=dmft.MLP(2, dmft.tanh(0.5))),
        dataclasses.replace(BASE, network=dmft.MLP(2, dmft.erf())),
        dataclasses.replace(BASE, network=dmft.MLP(2, gamma0=0.9)),
        dataclasses.replace(BASE, network=dmft.MLP(2, centered=False)),
        dataclasses.replace(BASE, training=dmft.GradientDescent(0.4, 5)),
        dataclasses.replace(BASE, training=dmft.GradientDescent(0.5, 6)),
        dataclasses.replace(BASE, task=task()),
        dataclasses.replace(BASE, task=task(x_test=X, y_test=Y)),
        dataclasses.replace(BASE, task=task(x_test=X + 1, y_test=[1.0, 1.0, 1.0, -1.0])),
    ],
)
def test_identity_follows_everything_that_matters(changed):
    assert changed != BASE
    assert changed.problem_id != BASE.problem_id


def test_identity_does_not_follow_provenance_and_is_stable():
    named = dataclasses.replace(BASE, task=task(x_test=X + 1, y_test=Y, provenance={"name": "other"}))
    assert named == BASE
    assert hash(named) == hash(BASE)
    assert named.problem_id == BASE.problem_id
    # pinned: results on disk are found by it
    fixed = dmft.Problem(dmft.MLP(1, dmft.relu()), dmft.Task([[1.0, 2.0]], [1.0]), dmft.GradientDescent(0.5, 2))
    assert fixed.problem_id == "3281209abac81aab"


numbers = st.floats(-1e3, 1e3)


@given(
    x=arrays(float, (3, 2), elements=numbers),
    y=arrays(float, 3, elements=numbers),
    activation=st.sampled_from(
        [dmft.tanh(0.3), dmft.relu(), dmft.erf(), dmft.gelu(), dmft.softplus(2.0), dmft.linear()]
    ),
    depth=st.integers(1, 9),
    gamma0=st.floats(1e-6, 1e6),
    centered=st.booleans(),
    test=st.booleans(),
)
@settings(deadline=None, max_examples=50)
@pytest.mark.filterwarnings("ignore:The inputs are far", "ignore:All training inputs are zero")
def test_json_round_trip_is_exact(x, y, activation, depth, gamma0, centered, test):
    data = dmft.Task(x, y, x if test else None, y if test else None, provenance={"name": "h", "seed": 3})
    described = dmft.Problem(dmft.MLP(depth, activation, gamma0, centered), data, dmft.GradientDescent(0.1, 3))
    again = dmft.Problem.from_json(described.to_json())
    assert again == described
    assert again.problem_id == described.problem_id
    assert again.task.provenance == data.provenance
    assert dmft.Problem.from_json(described.to_json(arrays=False), task=data) == described


def test_json_without_data_or_with_other_data_is_refused():
    with pytest.raises(ValueError, match="holds no data, only their digest .* pass task="):
        dmft.Problem.from_json(BASE.to_json(arrays=False))
    with pytest.raises(ValueError, match="load the same data with the same options"):
        dmft.Problem.from_json(BASE.to_json(arrays=False), task=task())
    with pytest.raises(ValueError, match="format 99"):
        dmft.Problem.from_json(BASE.to_json().replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="kind 'RNN' is unknown"):
        dmft.Problem.from_json(BASE.to_json().replace('"MLP"', '"RNN"'))


def test_powers_of_width_are_consistent():
    # c reproduces the rate eta gamma0^2 N behind all prefactors of df/dtheta, for every kind of parameter
    eta, gamma0, n, d, p = 0.3, 1.7, 50, 9, 4
    rate = parameter_rate(eta, gamma0, n) / p
    c = eta * parameterization.batch_scale(gamma0, p)
    out = parameterization.output_scale(gamma0, n)
    # g = gamma0 N df/dh, so that df/dW = g phi^T out hidden, df/dW0 = g x^T out input, df/dw = phi out
    for scale in (parameterization.hidden_scale(n), parameterization.input_scale(d), 1.0):
        assert rate * out * scale == pytest.approx(c * scale, rel=1e-14)


# ---- what is taken as data -------------------------------------------------------------------------------------------


MASKED = np.ma.masked_where(X[1, 2] == X, X)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x_train": MASKED}, ValueError, "x_train holds 1 masked entries, which are no numbers. Fill or drop them"),
        ({"x_train": X + 0j}, TypeError, "x_train cannot be read as an array of real numbers: it has dtype complex128. Take its .real"),
        ({"y_train": np.array(Y) * (1 + 0j)}, TypeError, "y_train cannot be read as an array of real numbers: it has dtype complex128"),
        ({"x_train": X.astype(object)}, TypeError, "it has dtype object. Convert it first"),
        ({"x_train": X.astype(str)}, TypeError, "it has dtype <U"),
        ({"x_train": np.full((4, 2), "2020-01-01", "M8[D]")}, TypeError, "it has dtype datetime64[D]. Say in which unit"),
        ({"x_train": [[1.0, None]] * 4}, TypeError, "it has dtype object"),
        ({"x_train": [[1.0], [1.0, 2.0]]}, TypeError, "x_train cannot be read as an array of real numbers: setting an array"),
        ({"y_train": {1.0, -1.0}}, TypeError, "y_train is a set, whose entries have no fixed place"),
        ({"y_train": dict.fromkeys(Y)}, TypeError, "y_train is a dict, whose entries have no fixed place"),
        ({"y_train": iter(Y)}, TypeError, "y_train is a list_iterator"),
        ({"x_train": np.full((4, 2), 2**53 + 1)}, ValueError, "beyond 2^53"),
        ({"x_train": np.full((4, 2), -(2**53) - 1)}, ValueError, "beyond 2^53"),
        ({"x_train": np.full((4, 2), 2**60)}, ValueError, "x_train holds integers of size 1.15e+18; beyond 2^53 they lose their last digits"),
        ({"x_train": np.full((4, 2), 1e200)}, ValueError, "x_train has entries up to 1e+200, whose squares are no finite numbers"),
        ({"y_train": [0, 1, 2, 1]}, ValueError, "y_train holds the integers 0, 1, 2, which may be labels of classes or numbers. For classes give their targets, np.eye(classes)[y]"),
        ({"y_train": [3, 8, 3, 8]}, ValueError, "np.where(y == 8, 1.0, -1.0); for a regression give floats, y.astype(float)"),
        ({"y_train": np.array([[1], [2], [3], [4]], np.uint8)}, ValueError, "y_train holds the integers 1, 2, 3, 4, which"),
    ],
)  # fmt: skip
def test_what_would_lose_information_is_refused(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        task(**changes)


@pytest.mark.parametrize("y", [[1, -1, 1, 1], [0, 1, 1, 0], [True, False, True, True], [0.0, 1.0, 2.0, 3.0], np.eye(4, dtype=int), [[2, 0], [0, 3], [1, 1], [5, 5]]])  # fmt: skip
def test_targets_that_are_no_labels_stay_legal(y):
    np.testing.assert_array_equal(task(y_train=y).y_train, np.asarray(y, float))


def test_arrays_of_other_libraries_are_taken_as_they_are():
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    xr = pytest.importorskip("xarray")
    single = X.astype(np.float32)
    expected = task(x_train=single.astype(float))
    for x in (
        torch.tensor(single),
        torch.tensor(single, requires_grad=True),
        jnp.asarray(single),
        xr.DataArray(single),
    ):
        assert task(x_train=x) == expected
    assert task(x_train=np.ma.masked_array(single, mask=False)) == expected
    half = torch.tensor(single).bfloat16()  # NumPy has no such type; float64 holds it
    np.testing.assert_array_equal(task(x_train=half).x_train, half.double().numpy())
    with pytest.raises(TypeError, match="x_train cannot be read as an array of real numbers"):
        task(x_train=torch.tensor(single).to_sparse())
    rates = torch.tensor([0.5, 0.25], requires_grad=True)
    assert dmft.GradientDescent(rates, 2).learning_rate == (0.5, 0.25)


@pytest.mark.parametrize(
    ("factor", "named"), [(255.0, "6.5e+04"), (1e-2, "0.0001"), (1.0, None), (0.2, None), (4.0, None)]
)
def test_inputs_of_another_size_are_named(factor, named):
    x = factor * X / np.sqrt(np.mean(X**2))
    if named is None:
        assert task(x_train=x).unusual_size == ""
        return
    with pytest.warns(UserWarning, match=re.escape(f"mean diagonal of K^x = x.x'/D is {named}")) as caught:
        made = task(x_train=x)
    assert caught[0].filename == __file__  # where the task is made
    problem = dmft.Problem(dmft.MLP(1, dmft.linear()), made, dmft.GradientDescent(50.0, 60))
    if factor > 1:
        with pytest.raises(DivergenceError, match=r"Lower learning_rate=50. The inputs are far from size one"):
            dmft.lazy_limit(problem)


# ---- schedules that begin at zero ------------------------------------------------------------------------------------


def test_a_step_of_rate_zero_changes_nothing():
    warm = dmft.GradientDescent([0, 0.5, 1], 3)
    np.testing.assert_array_equal(warm.times, [0, 0, 0.5, 1.5])
    assert dmft.GradientDescent([0.0, 0.5, 1.0], 3) == warm
    finite_nets = pytest.importorskip("finite_nets")
    network = dmft.MLP(2, dmft.linear())  # exact
    warm_up, late = (
        dmft.Problem(network, task(), dmft.GradientDescent(rates, 3)) for rates in ([0, 0.5, 1], [0.5, 1, 1])
    )
    for compute in (
        dmft.solve,
        dmft.lazy_limit,
        lambda problem: finite_nets.train_ensemble(problem, widths=[8], seeds=2, dtype="float64"),
    ):
        with_zero, without = compute(warm_up), compute(late)
        for name in ("prediction", "loss", "feature_kernel", "ntk"):
            found = with_zero[name].transpose("step", ...).values
            # rounding: the same numbers by the same formulas
            np.testing.assert_allclose(found[1], found[0], atol=1e-12, err_msg=name)
            late_too = without[name].transpose("step", ...).values[:-1]
            np.testing.assert_allclose(found[1:], late_too, atol=1e-12, err_msg=name)
        np.testing.assert_array_equal(with_zero["time"], [0, 0, 0.5, 1.5])


def test_one_more_file_is_one_more_kind(tmp_path, monkeypatch):
    """With nothing else to edit: problems, their JSON and the command line read the kinds that files define."""
    assert set(NETWORKS) == {"CNN", "MLP", "ResidualCNN", "ResidualMLP", "Transformer"}
    entrywise = {"Adam", "ClippedDescent", "Lion", "Muon", "NormalizedDescent", "RMSprop", "SignDescent"}
    assert set(TRAININGS) == {"GradientDescent", "GradientFlow"} | entrywise
    folder = tmp_path / "more_kinds"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "wavy.py").write_text(
        "from dataclasses import dataclass\nimport dmft\nfrom dmft import MLP\n\n"
        "@dataclass(frozen=True)\nclass Wavy(dmft.Architecture):\n    gamma0: float = 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = kinds_in(importlib.import_module("more_kinds"), dmft.Architecture)
    assert [kind.__name__ for kind in found.values()] == ["Wavy"]  # not what it imports
    monkeypatch.setitem(NETWORKS, "Wavy", found["Wavy"])
    assert dmft.Wavy is found["Wavy"]
    with pytest.raises(AttributeError, match="Waver"):
        _ = dmft.Waver


def test_one_more_entry_is_one_more_loss(monkeypatch):
    """A loss between the squared and the absolute one, in the limit, its lazy limit, and networks."""
    soft = Loss(
        values=lambda xp, f, y: ((1 + (f - y) ** 2) ** 0.5 - 1).sum(axis=-1),
        descent=lambda xp, f, y: (y - f) / (1 + (f - y) ** 2) ** 0.5,
        curvature=lambda xp, f, y: ((1 + (f - y) ** 2) ** -1.5)[..., None],
        check=lambda targets: None,
    )
    monkeypatch.setitem(LOSSES, "soft", soft)
    task = dmft.Task([[1.0, 0.5], [-0.3, 1.0]], [1.5, -1.0])
    problem = dmft.Problem(dmft.MLP(1, gamma0=1e-3), task, dmft.GradientDescent(0.5, 3), loss="soft")
    assert dmft.Problem.from_json(problem.to_json()) == problem
    theory = dmft.solve(problem, particles=256, scrambles=2, observables=["prediction", "loss", "sharpness"])
    lazy = dmft.lazy_limit(problem)
    nets = finite_nets.train_ensemble(problem, widths=[512], seeds=32, observables=["prediction"], dtype="float64")
    # of 256 particles, and of 32 networks of width 512
    assert abs(theory.prediction - lazy.prediction).max() < 0.02
    assert abs(nets.prediction.mean("seed")[0] - lazy.prediction).max() < 0.02
    squared = dmft.lazy_limit(dataclasses.replace(problem, loss="squared"))  # the twin
    assert abs(squared.prediction - lazy.prediction).max() > 0.1
