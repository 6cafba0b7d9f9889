"""Rates of the figure are chosen without a look at the samples on which it shows accuracies."""

import dataclasses

import numpy as np

import dmft
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


def shuffled(task):
    order = np.random.default_rng(0).permutation(task.n_train)
    return dmft.Task(task.x_train, task.y_train[order], task.x_test, task.y_test)
