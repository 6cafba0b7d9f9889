"""Batches of epochs in a word, images that change from step to step, many samples observed some at a time."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import dmft
import finite_nets
from finite_nets.ensembles.ensemble import find_device
from finite_nets.training import trainer

STEPS, SIZE = 5, 20
RECORDED = {"widths": [24], "seeds": 2, "observables": ["prediction", "loss"]}
MOVING = dmft.Epochs(SIZE, seed=3, flip=True, crop=1)


@pytest.fixture(scope="module")
def task():
    return dmft.load_task("digits", classes=(1, 5, 8), n_train=60, n_test=40, layout="image")


def problem(task, training, **network):
    return dmft.Problem(dmft.MLP(2, bias=0.5, **network), task, training, loss="cross_entropy")


def descent(batches, **settings):
    return dmft.GradientDescent(0.5, STEPS, momentum=0.5, batches=batches, **settings)


def written_out(task, epochs):
    """The stream of changed images as samples of their own, by NumPy alone."""
    images = []
    for batch, changes in zip(epochs.indices(60, STEPS), epochs.changes(STEPS), strict=True):
        for image, (flip, down, right) in zip(task.x_train[batch], changes, strict=True):
            padded = np.pad(image[:, ::-1] if flip else image, ((1, 1), (1, 1), (0, 0)))
            images.append(padded[1 + down : 9 + down, 1 + right : 9 + right])
    return replace(task, x_train=np.array(images), y_train=task.y_train[epochs.indices(60, STEPS).ravel()])


def test_epochs_are_random_batches_in_a_word(task):
    named = problem(task, descent(dmft.Epochs(SIZE, seed=3)))
    listed = problem(task, descent(dmft.random_batches(60, SIZE, STEPS, seed=3)))
    assert np.array_equal(named.batches, listed.batches)
    assert len(named.to_json(arrays=False)) < len(listed.to_json(arrays=False))
    assert dmft.Problem.from_json(named.to_json()).problem_id == named.problem_id != listed.problem_id
    others = problem(task, descent(dmft.Epochs(SIZE, seed=4)))
    assert others.problem_id != named.problem_id
    one, two = (finite_nets.train_ensemble(p, **RECORDED)["prediction"].values for p in (named, listed))
    assert np.array_equal(one, two)


@dataclass(frozen=True)
class Fading(dmft.Training):
    learning_rate: float
    steps: int
    batches: object = None

    def recurrence(self, t):  # noqa: ARG002
        return [[0.9]], [self.learning_rate]


def test_optimisers_of_ones_own_take_epochs(task):
    own = problem(task, Fading(0.5, STEPS, dmft.Epochs(SIZE, seed=3)))
    assert own.batches.shape == (STEPS, SIZE)
    again = dmft.Problem.from_json(own.to_json())
    assert again.training == own.training
    assert again.problem_id == own.problem_id


@pytest.mark.parametrize(
    "training",
    [descent, lambda batches, observe: dmft.Adam(0.01, STEPS, batches=batches, observe=observe)],
    ids=["descent", "Adam"],
)
def test_images_that_change_are_a_stream_of_samples(task, training):
    def predictions(task, batches):
        found = problem(task, training(batches, observe="test"), centered=False)
        return finite_nets.train_ensemble(found, **RECORDED)["prediction"].values

    stream = written_out(task, MOVING)
    moving = predictions(task, MOVING)
    assert abs(moving - moving[:, :, :1]).max() > 0.01
    # the same products in the same order
    assert np.abs(moving - predictions(stream, dmft.one_pass(len(stream.x_train), SIZE))).max() < 1e-6
    assert np.abs(moving - predictions(task, dmft.Epochs(SIZE, seed=3))).max() > 1e-3


def test_many_samples_are_observed_some_at_a_time(task, monkeypatch):
    usual = finite_nets.train_ensemble(problem(task, descent(dmft.Epochs(SIZE))), **RECORDED)
    monkeypatch.setattr(trainer, "AT_ONCE", 30)
    apart = finite_nets.train_ensemble(problem(task, descent(dmft.Epochs(SIZE))), **RECORDED)
    np.testing.assert_allclose(apart["prediction"], usual["prediction"], atol=1e-6)  # products of other shapes
    kernels = finite_nets.train_ensemble(
        problem(task, descent(MOVING, observe="test"), centered=False), widths=[8], seeds=1, observables=["ntk"]
    )
    assert kernels["ntk"].sizes["sample"] == 40


def test_activations_are_rounded_by_the_scale_of_all_samples(task, monkeypatch):
    bits = finite_nets.Quantisation(activations=3)
    settings = RECORDED | {"quantisation": bits, "dtype": "float64"}
    one = problem(task, descent(dmft.Epochs(SIZE)))
    usual = finite_nets.train_ensemble(one, **settings)
    monkeypatch.setattr(trainer, "AT_ONCE", 30)
    np.testing.assert_array_equal(finite_nets.train_ensemble(one, **settings)["prediction"], usual["prediction"])
    with pytest.raises(ValueError, match="Leave flip and crop out"):
        finite_nets.train_ensemble(problem(task, descent(MOVING, observe="test"), centered=False), **settings)


def test_what_changing_images_are_refused_for(task):
    for refused, match in (
        (lambda: problem(task, descent(MOVING)), "centered=False"),
        (
            lambda: problem(
                replace(task, x_train=task.x_train.reshape(60, -1), x_test=None, y_test=None), descent(MOVING)
            ),
            "image",
        ),
        (lambda: problem(task, descent(dmft.Epochs(61))), "smaller size"),
        (lambda: dmft.solve(problem(task, descent(MOVING), centered=False)), "train networks"),
        (lambda: dmft.Epochs(4, flip=1), "flip=1"),
        (lambda: dmft.Problem(dmft.CNN(1, 3, centered=False), task, descent(MOVING)), "pixels"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            refused()


@pytest.mark.parametrize("crop", [8, 100, 40000])
def test_a_crop_of_a_side_or_more_is_refused(task, crop):
    with pytest.raises(ValueError, match=rf"crop={crop} in .* 8 x 8 positions of 1 channel; take a crop below 8"):
        problem(task, descent(dmft.Epochs(SIZE, crop=crop)), centered=False)
    wide = replace(task, x_train=task.x_train.reshape(60, 4, 16, 1), x_test=None, y_test=None)
    with pytest.raises(ValueError, match="take a crop below 4"):
        problem(wide, descent(dmft.Epochs(SIZE, crop=4)), centered=False)
    assert problem(task, descent(dmft.Epochs(SIZE, crop=7)), centered=False).changing


def test_devices_are_named_as_they_were_given():
    count = torch.cuda.device_count()
    for name in ("gpu", "cuda") if not count else (f"cuda:{count}",):
        with pytest.raises(ValueError, match=f"device='{name}': PyTorch sees {count} CUDA"):
            find_device(name)
    assert find_device("cpu").type == "cpu"


def test_schedules_rise_and_fall():
    rates = np.array(dmft.learning_rates(2.0, 100, warm_up=10, last=0.1))
    assert np.allclose(rates[:11], 2 * np.minimum(np.arange(1, 12) / 10, 1))
    assert (np.diff(rates[10:]) < 0).all() or np.allclose(np.diff(rates[10:12]), 0)
    assert abs(rates[55] - 2 * (0.1 + 0.9 / 2)) < 1e-12  # half way
    assert len(set(dmft.learning_rates(1.0, 100, constant=25))) == 4
    held = dmft.learning_rates(1.0, steps=8, warm_up=2, constant=4)  # after the rise
    assert held[:6] == (0.5, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert held[6] == held[7] < 1
    assert set(dmft.learning_rates(1.0, 5, shape="constant")) == {1.0}
    assert set(dmft.learning_rates(2.0, 5, last=1)) == {2.0}
    assert max(dmft.learning_rates(1.0, 6, warm_up=2, last=0.9)) == 1  # the peak
    for given, message in (
        ({"last": 1.5}, "last=1.5 is a part of the peak"),
        ({"shape": "constant", "last": 0.1}, 'last=0.1 is for a fall, and shape="constant" has none'),
        ({"shape": "constant", "constant": 2}, "constant=2 is for a fall"),
        ({"constant": 20}, "constant=20 leaves one rate for all of the 8 steps after the rise"),
        ({"constant": 8}, "constant=8 leaves one rate"),
    ):
        with pytest.raises(ValueError, match=message):
            dmft.learning_rates(1.0, 10, warm_up=2, **given)
    assert len(set(dmft.learning_rates(1.0, 10, warm_up=2, constant=7)[2:])) == 2
    with pytest.raises(ValueError, match="warm_up=5 leaves none"):
        dmft.learning_rates(1.0, 5, warm_up=5)
    with pytest.raises(ValueError, match="choose one of cosine"):
        dmft.learning_rates(1.0, 5, shape="step")
