"""Specs: what is accepted, what is refused and how, identity, JSON."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import dmft
from dmft.specs import parameterization

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
        (lambda: dmft.Problem(task(), dmft.MLP(2), dmft.GradientDescent(1, 1)), TypeError, "is not a dmft.MLP or dmft.ResidualMLP; the order is network, task"),
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
    with pytest.raises(ValueError, match="kind 'CNN' is unknown"):
        dmft.Problem.from_json(BASE.to_json().replace('"MLP"', '"CNN"'))


def test_powers_of_width_are_consistent():
    # c reproduces the rate eta gamma0^2 N behind all prefactors of df/dtheta, for every kind of parameter
    eta, gamma0, n, d, p = 0.3, 1.7, 50, 9, 4
    rate = parameterization.parameter_rate(eta, gamma0, n) / p
    c = eta * parameterization.batch_scale(gamma0, p)
    out = parameterization.output_scale(gamma0, n)
    # g = gamma0 N df/dh, so that df/dW = g phi^T out hidden, df/dW0 = g x^T out input, df/dw = phi out
    for scale in (parameterization.hidden_scale(n), parameterization.input_scale(d), 1.0):
        assert rate * out * scale == pytest.approx(c * scale, rel=1e-14)
