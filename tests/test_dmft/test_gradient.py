"""Derivatives of losses of the limit in numbers of the problem, and what goes down them."""

import dataclasses

import numpy as np
import pytest

import dmft
import finite_nets
from conftest import first_of
from dmft.drivers import gradient
from dmft.drivers.machine import precision
from dmft.drivers.run import Run
from dmft.errors import DivergenceError
from dmft.running.progress import progress_bar

NUMERICS = {"particles": 128, "scrambles": 2, "tolerance": 1e-5}
RNG = np.random.default_rng(0)
TASK = dmft.Task(RNG.standard_normal((4, 5)), [1, -1, 1, -1], RNG.standard_normal((2, 5)), [1, -1])
RATES = [0.3, 0.2, 0.25, 0.15]


def problem(network=None, task=TASK, loss="squared", **training):
    given = {"learning_rate": RATES, "steps": 4, "momentum": 0.5, "weight_decay": 0.02, **training}
    return dmft.Problem(network or dmft.MLP(2, dmft.tanh(), 1.3, bias=0.4), task, dmft.GradientDescent(**given), loss)


CASES = {
    "perceptron": (problem(), ["learning_rate", "momentum", "weight_decay", "gamma0", "bias"]),
    "residual, logistic": (
        problem(dmft.ResidualMLP(3, dmft.gelu(), branch_scale=0.7), loss="logistic"),
        ["branch_scale", "learning_rate"],
    ),
    "linear": (problem(dmft.MLP(2, dmft.linear(), weight_variance=(1.0, 1.5, 1e-2))), ["weight_variance", "gamma0"]),
    "two outputs, batches": (
        problem(
            task=dmft.Task(TASK.x_train, np.eye(2)[[0, 1, 0, 1]]),
            loss="cross_entropy",
            batches=dmft.random_batches(4, 2, 4),
        ),
        ["gamma0", "learning_rate"],
    ),
}


def moved(given, field, entry, h):
    value = np.array(getattr(given.training if hasattr(given.training, field) else given.network, field), float)
    value[(entry,) if value.ndim else ()] += h
    return dmft.vary(given, **{field: [tuple(value.tolist()) if value.ndim else float(value)]})[0]


def loss_of(given, seed=0, name="loss", step=-1):
    numbers = {} if given.sketch.linear else {**NUMERICS, "seed": seed}
    return dmft.solve(given, observables=["loss"], **numbers)[name].values[step]


@pytest.mark.parametrize("name", first_of(CASES))
def test_derivatives_are_differences_of_limits_with_common_normals(name):
    given, by = CASES[name]
    found, h = dmft.gradient(given, by=by, **NUMERICS), 1e-4
    np.testing.assert_allclose(found["value"], loss_of(given), rtol=1e-10)
    entries = list(zip(*(found[label].values for label in ("field", "entry")), strict=True))
    assert len(entries) == sum(np.size(getattr(given.training, n, None) or getattr(given.network, n, 0)) for n in by)
    for i in {0, len(entries) // 2, len(entries) - 1}:
        up, down = (loss_of(moved(given, *entries[i], s * h)) for s in (1, -1))
        expected = (up - down) / (2 * h)
        np.testing.assert_allclose(found["gradient"].values[i], expected, rtol=2e-4, atol=1e-7)
        if not given.sketch.linear:  # other normals on one side: no derivative
            assert abs((loss_of(moved(given, *entries[i], h), seed=1) - down) / (2 * h) - expected) > 1


def test_test_losses_of_several_steps_are_averaged():
    given = CASES["perceptron"][0]
    found = dmft.gradient(given, of="test_loss", at=[1, 4], by="gamma0", **NUMERICS)
    np.testing.assert_allclose(found["value"], np.mean([loss_of(given, name="test_loss", step=t) for t in (1, 4)]))
    h = 1e-4
    up, down = (
        np.mean([loss_of(dmft.vary(given, gamma0=[1.3 + s * h])[0], name="test_loss", step=t) for t in (1, 4)])
        for s in (1, -1)
    )
    np.testing.assert_allclose(found["gradient"].values[0], (up - down) / (2 * h), rtol=2e-4)


@pytest.mark.parametrize(
    ("changed", "options", "error", "message"),
    [
        ({}, {"by": "depth"}, TypeError, "by='depth' is 2, no number; numbers are "),
        ({}, {"by": "width"}, ValueError, "by='width' is no field of this problem"),
        ({}, {"by": []}, ValueError, "names no field"),
        ({}, {"at": 9}, ValueError, "give a step between 0 and 4"),
        ({}, {"of": "accuracy"}, ValueError, "choose one of loss, test_loss"),
        ({"task": dmft.Task(TASK.x_train, [1, -1, 1, -1])}, {"of": "test_loss"}, ValueError, "no test samples"),
        ({"training": dmft.GradientFlow(1.0, 0.5, 4)}, {}, ValueError, "those of GradientFlow are not"),
        (
            {"training": dmft.GradientDescent(0.1, 4)},
            {"by": "momentum"},
            TypeError,
            "by='momentum' shapes the compiled code",
        ),
    ],
)
def test_what_has_no_derivative_is_refused(changed, options, error, message):
    given = dataclasses.replace(problem(), **changed)
    with pytest.raises(error, match=message):
        dmft.gradient(given, **NUMERICS, **options)


@pytest.mark.filterwarnings("ignore:loss of the optimum:UserWarning")
def test_a_schedule_comes_down_where_no_constant_rate_does():
    given = problem(dmft.MLP(2, dmft.tanh(), 1.0), momentum=0.0, weight_decay=0.0, learning_rate=[0.4] * 3, steps=3)
    options = {"particles": 64, "tolerance": 1e-4}
    constant = dmft.optimise(dataclasses.replace(given, training=dmft.GradientDescent(0.4, 3)), iterations=4, **options)
    found = dmft.optimise(given, iterations=4, **options)
    assert (np.diff(found.path["value"]) <= 0).all()
    assert found.path.sizes["parameter"] == 3
    assert found.path["value"].values.min() < constant.path["value"].values.min() < constant.path["value"].values[0]
    assert abs(constant.path["gradient"].values[-1, 0]) < 0.1 * abs(constant.path["gradient"].values[0, 0])
    again = dmft.gradient(found.problem, scrambles=2, **options)["value"].item()
    np.testing.assert_allclose(again, found.path["value"].values.min(), rtol=1e-8)
    # what so few particles are good for is not good for others, and is said
    assert constant.path.attrs["checked"] > constant.path["value"].values.min() + 3 * constant.path.attrs["checked_se"]


@pytest.mark.parametrize("by", first_of(["learning_rate", "momentum"]))
def test_a_search_goes_down_from_beyond_the_optimum(by):
    # the slope is so large that the first trial lies at the bound
    given = problem(dmft.MLP(1, dmft.linear()), momentum=0.5, weight_decay=0.0, learning_rate=3.5)
    found = dmft.optimise(given, by=by, iterations=3)
    assert found.path["gradient"].values[0, 0] > 0
    assert (np.diff(found.path["value"]) < 0).any()
    assert 0 < found.path["number"].values[-1, 0] < found.path["number"].values[0, 0]


def test_a_search_has_the_normals_of_one_room(monkeypatch):
    slopes, asked, found = gradient.Objective.slopes, [], []

    def watched(self, given, by, bar, capacity=None):
        estimates, run = slopes(self, given, by, bar, capacity)
        asked.append(capacity)
        found.append(estimates.capacity)
        return estimates, run

    monkeypatch.setattr(gradient.Objective, "slopes", watched)
    # a first guess that does not suffice: it would be made, and doubled, for every problem anew
    monkeypatch.setattr(Run, "first_capacity", property(lambda run: run.step_room))
    given = problem(dmft.MLP(2, dmft.tanh(), 1.0), momentum=0.0, weight_decay=0.0, learning_rate=0.4, steps=3)
    dmft.optimise(given, iterations=1, particles=64, tolerance=1e-4)
    assert asked[0] is None
    assert asked[1:-1] == found[: len(asked) - 2]  # the last one checks, with other normals
    assert found[0] > Run.first_capacity.fget(
        gradient.objective_of(given, "loss", None, 64, 2, 0, 1e-4, "cpu", None).run_of(given)
    )


def test_values_without_derivatives_are_those_with_them():
    given = CASES["perceptron"][0]
    objective = gradient.objective_of(given, "test_loss", [2, 4], 128, 2, 0, 1e-4, "cpu", None)
    with precision("float64", objective.devices[0]):
        alone, both = (
            objective.slopes(given, by, progress_bar(None, "", "step", show=False))[0].moments.mean
            for by in ((), ("gamma0",))
        )
    assert alone["value"] == pytest.approx(both["value"], rel=1e-10)
    assert set(alone) == {"value"}


def test_searches_that_cannot_begin_are_refused():
    with pytest.raises(ValueError, match="out of its bounds"):
        dmft.optimise(problem(), bounds={"learning_rate": (0.0, 0.1)}, **NUMERICS)
    with pytest.raises(ValueError, match="which is not searched"):
        dmft.optimise(problem(), bounds={"gamma0": (0.1, 2.0)}, **NUMERICS)
    with pytest.raises(DivergenceError):
        dmft.optimise(problem(dmft.MLP(2, dmft.linear()), learning_rate=[90.0] * 4), **NUMERICS)


@pytest.mark.slow
def test_an_optimised_schedule_is_better_at_finite_width_too():
    task = dmft.load_task("mnist5k", classes=(3, 8), n_train=8, n_test=0)
    T, network = 5, dmft.MLP(2, dmft.tanh(), 1.0)
    begin = dmft.Problem(network, task, dmft.GradientDescent([1.0] * T, T))
    options = {"of": "loss", "particles": 2048, "tolerance": 1e-2}
    stable = {
        "learning_rate": (0.05, 4.0)
    }  # to 6 the limit is better still, and networks of this width ten times worse
    constant = dmft.optimise(
        dmft.Problem(network, task, dmft.GradientDescent(1.0, T)), iterations=10, bounds=stable, **options
    )
    found = dmft.optimise(begin, iterations=15, bounds=stable, **options)
    limits = {
        name: dmft.gradient(one.problem, seed=1, scrambles=4, **options)
        for name, one in (("constant", constant), ("schedule", found))
    }
    print({name: (float(one["value"]), float(one["value_se"])) for name, one in limits.items()})
    print(found.problem.training.learning_rate, constant.problem.training.learning_rate)
    assert limits["schedule"]["value"] + 3 * limits["schedule"]["value_se"] < limits["constant"]["value"]
    nets = {
        name: finite_nets.train_ensemble(one.problem, widths=[1024], seeds=24, observables=["loss"], save_steps=[T])
        for name, one in (("constant", constant), ("schedule", found))
    }
    pairs = (nets["constant"].loss - nets["schedule"].loss).values.ravel()  # of the same seeds
    print(pairs.mean(), pairs.std() / 24**0.5)
    assert pairs.mean() > 3 * pairs.std() / 24**0.5
