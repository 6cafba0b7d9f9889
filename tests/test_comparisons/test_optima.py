"""Optima of trained networks along a grid of values."""

import numpy as np
import pytest

import comparisons
import dmft
import finite_nets
from dmft.errors import SchemaError
from figures import learning_rate_transfer, transfer_of_optimisers

RATES = [0.3, 0.4, 0.5, 0.6, 0.7]
WIDTHS = [32, 128]
TRAINED = {"widths": WIDTHS, "seeds": 2400, "observables": ["loss"], "dtype": "float64"}


@pytest.fixture(scope="module")
def problem():
    """One step of a linear network: L + b / N is the mean of its loss at every N."""
    task = dmft.Task(np.ones((1, 2)), [1.0])
    return dmft.Problem(dmft.MLP(1, dmft.linear()), task, dmft.GradientDescent(0.5, steps=1))


@pytest.fixture(scope="module")
def nets(problem):
    return [finite_nets.train_ensemble(one, **TRAINED) for one in dmft.vary(problem, learning_rate=RATES)]


def predicted(problem, widths=WIDTHS, rates=RATES):
    return dmft.transfer(problem, "learning_rate", rates, widths=widths, scale="linear", progress=False)


def test_networks_have_the_optima_and_the_scatter_that_are_predicted(problem, nets):
    found = comparisons.transfer(nets, predicted(problem))
    assert (abs(found.optimum_z) < 3).all()
    np.testing.assert_allclose(found.scatter[1], found.scatter_predicted[1], rtol=0.15)
    np.testing.assert_allclose(found.optimum_se, found.scatter / np.sqrt(2400), rtol=0.25)
    assert (abs(found.loss_mean - found.loss_mean_predicted) < 4 * found.loss_mean_se).all()
    assert found.regret.sel(source=np.inf)[0] > 0
    # the limit's own optimum is not theirs
    assert (found.optimum_shift / found.optimum_shift_se)[0] < -5
    figure = learning_rate_transfer.figure(found)
    lines = [line.get_ydata() for ax in figure.axes for line in ax.lines]
    for shown in (found.loss_limit, found.loss_mean[0], found.optimum, found.optimum_predicted, found.scatter):
        assert any(np.array_equal(y, shown) for y in lines)
    # with another parameterization a panel more; of several optimisers, each with rates of its own, two panels each
    beside = found.assign(optimum_standard=found.optimum / 4, optimum_standard_se=found.optimum_se)
    (*_, last) = learning_rate_transfer.figure(beside).axes
    assert any(np.array_equal(line.get_ydata(), found.optimum / found.optimum[0]) for line in last.lines)
    shorter = comparisons.transfer(nets[:4], predicted(problem, rates=RATES[:4]))
    several = transfer_of_optimisers.figure(transfer_of_optimisers.make({"one": found, "other": shorter}))
    assert len(several.axes) == 4
    for ax, shown in zip(several.axes, (found.loss_limit, shorter.loss_limit), strict=False):
        assert any(np.array_equal(line.get_ydata(), shown) for line in ax.lines)


def test_networks_of_other_problems_than_the_theory_are_refused(problem, nets):
    other = dmft.Problem(dmft.MLP(1, dmft.linear(), gamma0=3.0), problem.task, problem.training)
    with pytest.raises(ValueError, match="the theory is of another problem"):
        comparisons.transfer(nets, predicted(other))
    theory = predicted(problem)
    for name, value, message in (
        ("seeds", 16, "means over seeds=16"),
        ("orders", 4, "means over orders=4 sequences"),
        ("step", 0, "the theory is of step 0"),
    ):
        with pytest.raises(ValueError, match=message):
            comparisons.transfer(nets, theory.assign_attrs({name: value}), step=1)
    (strange,) = dmft.vary(other, learning_rate=RATES[:1])
    mixed = [finite_nets.train_ensemble(strange, **TRAINED), *nets[1:]]
    with pytest.raises(ValueError, match="differ in more than learning_rate"):
        comparisons.transfer(mixed, over="learning_rate")


def test_parabolas_of_networks_are_found_exactly(nets):
    rng = np.random.default_rng(0)
    at, common = rng.normal(np.array([[-0.75], [-0.7]]), 0.02, (2, 2400)), rng.exponential(1.0, (2, 2400, 1))
    made = {
        rate: one.assign(loss=one.loss.copy(data=(1.5 * (np.log(rate) - at[..., None]) ** 2 + common).repeat(2, 2)))
        for rate, one in zip(RATES, nets, strict=True)
    }
    found = comparisons.transfer(made, over="learning_rate")
    np.testing.assert_allclose(found.optimum, np.exp(at.mean(1)), rtol=1e-10)
    np.testing.assert_allclose(found.scatter, at.std(1, ddof=1), rtol=1e-8)
    np.testing.assert_allclose(found.curvature, 3.0, rtol=1e-8)
    gap = at.mean(1)[0] - at.mean(1)[1]
    np.testing.assert_allclose(found.regret, 1.5 * gap**2 * (1 - np.eye(2)), atol=1e-10)
    np.testing.assert_array_equal(found.at_end, 0.0)
    np.testing.assert_allclose(found.optimum_se, found.optimum * found.scatter / np.sqrt(2400), rtol=0.15)
    # other networks at every value: what they have in common does not cancel
    mixed = {rate: one.assign(loss=one.loss.roll(seed=100 * i)) for i, (rate, one) in enumerate(made.items())}
    assert (comparisons.transfer(mixed, over="learning_rate").optimum_se > 5 * found.optimum_se).all()


def test_what_does_not_belong_together_is_refused(problem, nets):
    theory = predicted(problem, rates=[0.3, 0.5, 0.7])
    for arguments, given, message in (
        ((nets,), {}, "over is missing: name the hyperparameter"),
        ((nets[0],), {"over": "learning_rate"}, "give a list of ensembles"),
        ((nets[:2],), {"over": "learning_rate"}, "give at least 3 different values"),
        ((nets,), {"over": "learning_rate", "of": "test_loss"}, "has no test_loss"),
        (([*nets[:2], nets[2].isel(seed=slice(9))],), {"over": "learning_rate"}, "other labels along seed"),
        ((nets, theory), {}, "use the same ones"),
        ((nets, predicted(problem, widths=[32])), {}, "name all widths in dmft.transfer"),
        ((nets, nets[0]), {}, "give what dmft.transfer returns"),
    ):
        with pytest.raises((ValueError, TypeError, SchemaError), match=message):
            comparisons.transfer(*arguments, **given)
    other = [one.assign_attrs(seed=i) for i, one in enumerate(nets)]
    with pytest.raises(ValueError, match="root seeds"):
        comparisons.transfer(other, over="learning_rate")
