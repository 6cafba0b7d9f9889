"""Rates of the figure are chosen without a look at the samples on which it shows accuracies."""

import dataclasses
import re

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot as plt

import comparisons
import dmft
import finite_nets
from figures import whole_data_set

RATES, TRIED = (0.02, 1.0, 1000.0), (32, 2)


def described():
    task = dmft.load_task("digits", classes=range(10), n_train=210, n_test=50)
    return whole_data_set.problem(task, batch=20, epochs=3)


def test_rates_are_chosen_on_held_out_training_samples():
    problem = described()
    there, task = whole_data_set.held_out(problem), problem.task
    assert (there.task.n_train, there.task.n_test, there.training.steps) == (168, 42, 24)
    np.testing.assert_array_equal(np.sort(there.task.x, axis=0), np.sort(task.x_train, axis=0))
    assert len(there.training.rates) == there.training.steps
    assert set(there.training.rates) <= set(problem.training.rates)  # none between two that repeat
    # too slow, good, diverging
    assert whole_data_set.chosen(problem, 0.5, RATES, TRIED) == 1.0
    # with test targets at which the good one fails, too
    other = dmft.Task(task.x_train, task.y_train, task.x_test, np.roll(task.y_test, 1, axis=1))
    assert whole_data_set.chosen(dataclasses.replace(problem, task=other), 0.5, RATES, TRIED) == 1.0
    # the twin: with training targets at which all fail there is little to choose
    good, bad = (
        whole_data_set._trained(whole_data_set.varied(whole_data_set.held_out(one), 0.5, 1.0), *TRIED)
        for one in (problem, dataclasses.replace(problem, task=shuffled(task)))
    )
    assert good.test_accuracy[..., -1].mean() > 0.7 > 0.3 > bad.test_accuracy[..., -1].mean()


def test_where_all_rates_diverge_none_is_chosen():
    problem = described()
    with pytest.raises(ValueError, match="diverge at each of the rates 1000, 2000 for gamma0=0.5 and width 32"):
        whole_data_set.chosen(problem, 0.5, (1000.0, 2000.0), TRIED)
    # the twin: a rate that learns nothing, with an accuracy of 0 at most by chance, is better than none
    assert whole_data_set.chosen(problem, 0.5, (1000.0, 1e-9), TRIED) == 1e-9
    with pytest.raises(ValueError, match="no rate to choose from for gamma0=0.5"):
        whole_data_set.chosen(problem, 0.5, ())


def test_batches_that_do_not_fit_are_named():
    x, y = np.random.default_rng(0).standard_normal((20, 4)), np.eye(2)[np.arange(20) % 2]
    task = dmft.Task(x, y, x[:4], y[:4])
    for given, message in (
        ({"batch": 21}, "batch=21 is more than the 20 training samples"),
        ({"batch": 0}, "batch=0 is too small"),
        ({"batch": 5, "epochs": 1}, "epochs=1 is too small; it must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            whole_data_set.problem(task, **given)
    for batch, n in ((17, 20), (2, 4)):
        some = dmft.Task(x[:n], y[:n], x[:4], y[:4])
        with pytest.raises(ValueError, match=rf"which leaves {n - n // 5} for batches of {batch}"):
            whole_data_set.held_out(whole_data_set.problem(some, batch=batch))
    assert whole_data_set.held_out(whole_data_set.problem(task, batch=16)).task.n_train == 16
    one = dmft.GradientDescent(0.1, 1, batches=dmft.Epochs(4), observe="test")
    problem = dataclasses.replace(whole_data_set.problem(task, batch=4), training=one)
    assert whole_data_set.held_out(problem).training.steps == 1
    with pytest.raises(ValueError, match=r"give batches=dmft.Epochs\(size\)"):
        whole_data_set.held_out(dataclasses.replace(problem, training=dataclasses.replace(one, batches=None)))


def test_what_is_no_extrapolation_is_named(tmp_path):
    problem = whole_data_set.problem(described().task, batch=100, epochs=2)
    nets = finite_nets.train_ensemble(problem, widths=[8], seeds=4, observables=["prediction", "loss"])
    way = re.escape('give {gamma0: comparisons.extrapolate(results, ["test_accuracy"])}.')
    for found, kind, message in (
        ({}, ValueError, "there is no extrapolation to gather"),
        ([nets], TypeError, "a list has no extrapolations by richness"),
        ({0.1: problem.task}, TypeError, "gamma0=0.1 has a Task in place of an extrapolation"),
        ({0.1: nets}, ValueError, "the Dataset of gamma0=0.1 has no test_accuracy_mean, "),
    ):
        with pytest.raises(kind, match=f"{message}.*{way}"):
            whole_data_set.gathered(found)
    with pytest.raises(FileNotFoundError, match="has no whole_data_set.nc"):
        whole_data_set.data(tmp_path)
    dmft.save(comparisons.statistics(nets), tmp_path / "whole_data_set.nc")
    with pytest.raises(ValueError, match="whole_data_set.nc is of kind 'statistics', and whole_data_set draws 'whole_"):
        whole_data_set.data(tmp_path)
    # the twin: of the kind, without what is drawn
    dmft.save(xr.Dataset(attrs={"analysis": "whole_data_set"}), tmp_path / "whole_data_set.nc")
    with pytest.raises(ValueError, match="whole_data_set.nc: whole_data_set shows test_accuracy_mean"):
        whole_data_set.data(tmp_path)


def shuffled(task):
    order = np.random.default_rng(0).permutation(task.n_train)
    return dmft.Task(task.x_train, task.y_train[order], task.x_test, task.y_test)


@pytest.mark.parametrize(("limit", "error"), [(1.0, 0.15), (0.02, 0.3), (0.9, 0.01)])
def test_axes_end_where_accuracies_do(limit, error):
    """However large errors are; a twin within needs no bounds."""
    shape, dims = (1, 3), ("gamma0", "width")
    values = {"_mean": (dims, np.full(shape, limit)), "_mean_se": (dims, np.full(shape, error))}
    values |= {"_limit": (dims[:1], [limit]), "_limit_se": (dims[:1], [error])}
    ds = xr.Dataset({f"test_accuracy{end}": value for end, value in values.items()})
    fig, axes = plt.subplots(1, 2)
    whole_data_set.draw(ds.assign_coords(gamma0=[1.0], width=[32, 64, 128]), axes)
    for ax in axes:
        low, high = ax.get_ylim()
        assert -2 <= low < 100 * limit < high <= 102
        assert error > 0.1 or high - low < 10
    plt.close(fig)
