"""Preactivations of the limit's particles: closed forms, the order parameters of `solve`, and what is refused."""

import re

import numpy as np
import pytest
import xarray as xr
from scipy.special import erf

import dmft
from conftest import reference_problem
from dmft.errors import DivergenceError, MemoryEstimateError, SchemaError

SETTINGS = {"particles": 1024, "scrambles": 4}


@pytest.fixture(scope="module")
def made(problem):
    return dmft.neurons(problem, save_steps=[0, 4, 10], **SETTINGS)


def by_scramble(ds):
    """(scramble, layer, step, sample, particle)"""
    h = ds.preactivation.values
    return np.moveaxis(h.reshape(*h.shape[:3], ds.attrs["scrambles"], -1), 3, 0)


def test_first_layer_at_initialisation_is_gaussian_with_the_covariance_of_the_inputs(problem, made):
    x = problem.task.x
    h = by_scramble(made)[:, 0, 0]
    covariance = np.einsum("ksn,ktn->kst", h, h) / h.shape[-1]
    # four scrambles of 1024 points; independent ones would err by 1/sqrt(4096) = .016, spread ones by less
    np.testing.assert_allclose(covariance.mean(axis=0), x @ x.T / 25, atol=0.008)
    z = made.preactivation.values[0, 0] / np.sqrt(np.diag(x @ x.T) / 25)[:, None]
    # fourth moment of 4096 independent normals: standard deviation sqrt(96 / 4096) = .15
    np.testing.assert_allclose((z**4).mean(axis=-1), 3, atol=0.3)


def test_particles_are_those_of_solve(problem, made):
    """Features of the recorded preactivations average to the feature kernels of the same scrambles, bit for bit but for
    the order of sums: looking at a run has no effect on it."""
    theory = dmft.solve(problem, observables=["feature_kernel"], **SETTINGS).feature_kernel.sel(step=made.step)
    features = np.tanh(0.8 * by_scramble(made)) / 0.8
    kernel = np.einsum("kltsn,kltrn->kltsr", features, features) / features.shape[-1]
    np.testing.assert_allclose(kernel.mean(axis=0), theory, rtol=1e-10)


@pytest.mark.parametrize(
    ("network", "training"),
    [
        (dmft.ResidualMLP(2, dmft.tanh(), branch_scale=0.5, bias=0.5), dmft.GradientDescent(0.3, 3, momentum=0.5)),
        pytest.param(
            *(dmft.MLP(2, dmft.relu(), bias=0.5), dmft.GradientDescent(0.3, 3, weight_decay=0.1)),
            marks=pytest.mark.slow,
        ),
        (dmft.MLP(2, dmft.linear()), dmft.GradientFlow(0.3, 1.0, 3)),
        (dmft.MLP(1, dmft.erf(), centered=False), dmft.GradientDescent(0.3, 2, batches=[[0], [1]], observe="test")),
    ],
    ids=["residual", "relu", "linear", "stream"],
)
def test_every_kind_of_problem_has_its_neurons(network, training):
    task = reference_problem().task
    problem = dmft.Problem(network, dmft.Task(task.x[:2], [-1, 1], task.x[2:], [1]), training)
    ds = dmft.neurons(problem, particles=512, scrambles=4)
    exact = network.activation.name == "linear"
    theory = dmft.solve(problem, particles=512, scrambles=4, observables=["feature_kernel"])
    phi = {
        "tanh": np.tanh,
        "relu": lambda h: np.sqrt(2) * np.maximum(h, 0),
        "linear": lambda h: h,
        "erf": erf,
    }[network.activation.name]
    squares = (phi(ds.preactivation.values) ** 2).mean(axis=-1)
    expected = np.einsum("ltss->lts", theory.feature_kernel.sel(step=ds.step))
    # sums in another order; the linear limit is exact, and particles err by about 1/sqrt(1024)
    np.testing.assert_allclose(squares, expected, rtol=0.08 if exact else 1e-9)


def test_samples_and_steps_that_are_asked_for(problem, made):
    part = dmft.neurons(problem, save_steps=[10, 4], samples=[2, 0], **SETTINGS)
    xr.testing.assert_identical(part.drop_attrs(), made.isel(step=[1, 2], sample=[0, 2]).drop_attrs())
    assert part.sample.values.tolist() == [0, 2]


def test_default_steps_are_the_first_and_the_last_and_results_are_stored(problem, tmp_path):
    ds = dmft.neurons(problem, **SETTINGS)
    assert ds.step.values.tolist() == [0, 10]
    assert np.bincount(ds.scramble).tolist() == [1024] * 4
    dmft.save(ds, tmp_path / "neurons.nc")
    xr.testing.assert_identical(dmft.load(tmp_path / "neurons.nc"), ds)


@pytest.mark.slow
def test_a_run_that_outgrows_its_room_is_looked_at_again():
    """More directions than the first guess of the capacity: the run is repeated, and its neurons with it."""
    x = np.random.default_rng(3).standard_normal((10, 40))
    problem = dmft.Problem(
        dmft.MLP(2, dmft.tanh(2.0), gamma0=2.0), dmft.Task(x, np.sign(x[:, 0])), dmft.GradientDescent(1.0, 30)
    )
    settings = {"particles": 512, "scrambles": 2, "tolerance": 1e-4, "save_steps": [0, 30]}
    ds = dmft.neurons(problem, **settings)
    assert ds.attrs["directions"] > 160  # 16 times the samples
    theory = dmft.solve(problem, observables=["feature_kernel"], **settings)
    squares = ((np.tanh(2 * ds.preactivation) / 2) ** 2).mean("neuron")
    np.testing.assert_allclose(squares, np.einsum("ltss->lts", theory.feature_kernel), rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"particles": 1000}, ValueError, "not a power of two"),
        ({"scrambles": 1}, ValueError, "scrambles=1 is too small"),
        ({"save_steps": [11]}, ValueError, "save_steps holds 11; this problem has steps 0..10"),
        ({"samples": [3]}, ValueError, "samples holds 3; this problem records samples 0..2"),
        ({"samples": [1, 1]}, ValueError, "different whole numbers"),
        ({"samples": [[0, 1]]}, ValueError, "different whole numbers"),
        ({"samples": 1}, TypeError, "is not a list"),
        ({"device": "tpu"}, ValueError, "device='tpu' is unknown"),
        ({"memory_limit": 1000}, MemoryEstimateError, "preactivations of 16384 particles needs about"),
        ({"tolerance": 1.0}, ValueError, "tolerance=1.0 must lie between"),
    ],
)
def test_wrong_arguments(problem, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        dmft.neurons(problem, **arguments)


def test_other_problems_are_refused(problem):
    with pytest.raises(TypeError, match="expects a dmft.Problem"):
        dmft.neurons(problem.task)
    ntk = dmft.MLP(2, parameterization="ntk")
    with pytest.raises(ValueError, match="no infinite-width limit"):
        dmft.neurons(dmft.Problem(ntk, problem.task, problem.training))
    with pytest.raises(DivergenceError, match="diverges at step"):
        dmft.neurons(reference_problem(learning_rate=1e6), **SETTINGS)


def test_schema_knows_what_neurons_are(made):
    for broken, message in (
        (made.rename(preactivation="prediction"), "not a variable of a result of kind 'particles'"),
        (made.transpose("neuron", ...), "has dimensions"),
        (made.where(made.neuron > 0), "non-finite"),
    ):
        broken.attrs = made.attrs
        with pytest.raises(SchemaError, match=message):
            dmft.schema.validate(broken, "particles")
