"""Preactivations of trained networks: those of the networks of `train_ensemble`, whatever the batches."""

import re
import warnings

import numpy as np
import pytest
import xarray as xr

import dmft
import finite_nets
from conftest import reference_problem
from dmft.errors import DivergenceError, MemoryEstimateError
from finite_nets.ensembles import runner

PHI = {"tanh": lambda h: np.tanh(0.8 * h) / 0.8, "relu": lambda h: np.sqrt(2) * np.maximum(h, 0), "linear": lambda h: h}


def features_of_members(ds, width, count):
    """Feature kernels (member, layer, step, sample, sample_2) from the preactivations of whole networks."""
    h = ds.preactivation.sel(width=width).values[..., : count * width]
    phi = PHI[dmft.Problem.from_json(ds.attrs["problem"], task=reference_problem().task).network.activation.name](h)
    each = phi.reshape(*phi.shape[:-1], count, width)
    return np.einsum("ltsmn,ltrmn->mltsr", each, each) / width


@pytest.mark.parametrize(
    ("network", "training"),
    [
        (dmft.MLP(2, dmft.tanh(0.8)), dmft.GradientDescent(0.6, 4)),
        (dmft.MLP(3, dmft.relu(), bias=0.5), dmft.GradientDescent(0.3, 3, momentum=0.5, weight_decay=0.1)),
        (dmft.ResidualMLP(2, dmft.tanh(0.8), branch_scale=0.5, bias=0.3), dmft.GradientDescent(0.3, 3)),
        (dmft.MLP(2, dmft.linear(), parameterization="ntk"), dmft.GradientFlow(0.3, 1.0, 3)),
        (dmft.MLP(1, dmft.tanh(0.8)), dmft.GradientDescent(0.6, 3)),
    ],
    ids=["mlp", "bias", "residual", "flow", "shallow"],
)
def test_networks_are_those_of_train_ensemble(network, training):
    problem = dmft.Problem(network, reference_problem().task, training)
    widths, steps = [8, 12], [0, 2, training.steps]
    ds = finite_nets.neurons(problem, widths=widths, neurons=48, dtype="float64", save_steps=steps)
    for width, count in zip(widths, (6, 4), strict=True):
        nets = finite_nets.train_ensemble(
            problem, widths=[width], seeds=count, dtype="float64", save_steps=steps, observables=["feature_kernel"]
        )
        # the same weights and one product more: rounding
        np.testing.assert_allclose(features_of_members(ds, width, count), nets.feature_kernel[0], rtol=1e-9, atol=1e-12)
        assert ds.member.sel(width=width).values.tolist() == np.repeat(np.arange(count), width).tolist()


def test_of_several_outputs_streams_and_some_samples():
    x = np.random.default_rng(1).standard_normal((7, 5))
    task = dmft.Task(x[:4], np.eye(2)[[0, 1, 0, 1]], x[4:], np.eye(2)[[0, 1, 0]])
    training = dmft.GradientDescent(0.5, 2, batches=dmft.one_pass(4, size=2), observe="test")
    problem = dmft.Problem(dmft.MLP(2, dmft.tanh(0.8), centered=False), task, training, loss="cross_entropy")
    ds = finite_nets.neurons(problem, widths=[8], neurons=16, dtype="float64", samples=[6, 4])
    assert ds.sample.values.tolist() == [4, 6]
    assert ds.split.values.tolist() == ["test", "test"]
    assert ds.target.dims == ("sample", "output")
    nets = finite_nets.train_ensemble(
        problem, widths=[8], seeds=2, dtype="float64", save_steps=[0, 2], observables=["feature_kernel"]
    )
    kernel = nets.feature_kernel[0].sel(sample=[4, 6], sample_2=[4, 6])
    h = ds.preactivation.values[0].reshape(2, 2, 2, 2, 8)
    phi = np.tanh(0.8 * h) / 0.8
    np.testing.assert_allclose(np.einsum("ltsmn,ltrmn->mltsr", phi, phi) / 8, kernel, rtol=1e-9)


def test_any_number_of_neurons_in_any_batches(problem, monkeypatch, tmp_path):
    ds = finite_nets.neurons(problem, widths=[16, 40], neurons=50, seed=3)
    assert ds.preactivation.dims == ("width", "layer", "step", "sample", "neuron")
    assert ds.step.values.tolist() == [0, 10]
    assert np.bincount(ds.member[0]).tolist() == [16, 16, 16, 2]
    assert np.bincount(ds.member[1]).tolist() == [40, 10]
    dmft.save(ds, tmp_path / "neurons.nc")
    xr.testing.assert_identical(dmft.load(tmp_path / "neurons.nc"), ds)
    monkeypatch.setattr(runner.Runner, "at_once", lambda *_: 1)
    alone = finite_nets.neurons(problem, widths=[16, 40], neurons=50, seed=3)
    # batched products may sum in another order, in float32
    np.testing.assert_allclose(alone.preactivation, ds.preactivation, rtol=1e-4, atol=1e-4)
    more = finite_nets.neurons(problem, widths=[16], neurons=64, seed=3)
    np.testing.assert_allclose(more.preactivation[0, ..., :50], ds.preactivation[0], rtol=1e-4, atol=1e-4)


@pytest.fixture
def on_the_edge():
    """A step at which some networks of width 8 diverge."""
    x = np.random.default_rng(0).standard_normal((2, 3))
    return dmft.Problem(dmft.MLP(2, dmft.linear(), 1.0), dmft.Task(x, [1, -1]), dmft.GradientDescent(2.0, 40))


def test_others_are_trained_in_place_of_networks_that_diverge(on_the_edge):
    with pytest.warns(UserWarning, match="of width 8 diverge"):
        ds = finite_nets.neurons(on_the_edge, widths=[8], neurons=80, dtype="float64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nets = finite_nets.train_ensemble(on_the_edge, widths=[8], seeds=20, dtype="float64", save_steps=[40])
    healthy = np.flatnonzero(~nets.diverged[0])[:10]
    assert 0 < ds.attrs["diverged"] < 10
    np.testing.assert_array_equal(np.unique(ds.member), healthy)
    assert np.isfinite(ds.preactivation).all()


def test_divergence_of_most_is_an_error():
    with pytest.raises(DivergenceError, match=re.escape("4 of 4 networks of width 16 diverge, more than the 2")):
        finite_nets.neurons(reference_problem(learning_rate=1e7), widths=[16], neurons=20)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": 8}, TypeError, "is not a list"),
        ({"neurons": 0}, ValueError, "neurons=0 is too small"),
        ({"samples": [3]}, ValueError, "samples holds 3; this problem records samples 0..2"),
        ({"save_steps": [11]}, ValueError, "save_steps holds 11"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' is not offered"),
        ({"memory_limit": 1000}, MemoryEstimateError, "preactivations of 16384 neurons of 1 widths"),
        ({"memory_limit": 2**20, "neurons": 100, "widths": [2000]}, MemoryEstimateError, "one network of width 2000"),
    ],
)
def test_wrong_arguments(problem, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        finite_nets.neurons(problem, **{"widths": [8], **arguments})


def test_only_problems_are_taken(problem):
    with pytest.raises(TypeError, match="expects a dmft.Problem"):
        finite_nets.neurons(problem.task, widths=[8])
