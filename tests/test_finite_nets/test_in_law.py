"""Networks sampled in law, without weight matrices, against trained ones."""

import re

import jax
import numpy as np
import pytest
import xarray as xr
from scipy.stats import ks_2samp

import dmft
import finite_nets
from conftest import reference_problem
from dmft.drivers import in_law
from dmft.errors import DivergenceError, MemoryEstimateError

SEEDS, STEPS = 3000, [0, 1, 3, 5]


@pytest.fixture(scope="module")
def problem():
    task = reference_problem().task
    return dmft.Problem(dmft.MLP(2, dmft.tanh(0.8), 1.5), task, dmft.GradientDescent(0.6, 5))


@pytest.fixture(scope="module", params=[8, 24], ids=["narrower than samples times steps", "wider"])
def pair(request, problem):
    """The same width sampled and trained; 18 samples times steps."""
    arguments = {"widths": [request.param], "seeds": SEEDS, "save_steps": STEPS}
    sampled = finite_nets.sample_in_law(problem, **arguments)
    return sampled, finite_nets.train_ensemble(problem, dtype="float64", **arguments)


def test_means_variances_and_distributions_are_those_of_trained_networks(pair):
    sampled, trained = pair
    assert set(sampled.data_vars) == set(trained.data_vars)
    for name in sampled.data_vars:
        a, b = (ds[name].values[0].reshape(SEEDS, -1) for ds in (sampled, trained))
        moving = b.std(0) > 1e-9
        a, b = a[:, moving], b[:, moving]
        # up to 216 correlated entries: 5 standard errors
        z = (a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / SEEDS)
        assert abs(z).max() < 5, name
        fourth = [((x - x.mean(0)) ** 4).mean(0) - x.var(0) ** 2 for x in (a, b)]
        z = (a.var(0) - b.var(0)) / np.sqrt((fourth[0] + fourth[1]) / SEEDS)
        assert abs(z).max() < 5, name
    for step in range(1, len(STEPS)):
        for sample in range(3):
            test = ks_2samp(*(ds.prediction.values[0, :, step, sample] for ds in pair))
            # nine tests
            assert test.pvalue > 1e-4


@pytest.mark.parametrize("pair", [8], indirect=True)
def test_another_richness_is_told_apart(pair, problem):
    other = dmft.Problem(dmft.MLP(2, dmft.tanh(0.8), 1.0), problem.task, problem.training)
    width = pair[0].width.values
    twin = finite_nets.sample_in_law(other, widths=width, seeds=SEEDS, save_steps=STEPS)  # by code that is compiled
    assert ks_2samp(*(ds.prediction.sel(step=3).values[0, :, 0] for ds in (twin, pair[1]))).pvalue < 1e-6


@pytest.mark.slow
def test_a_member_depends_on_its_address_alone(problem, monkeypatch):
    all_of_them = finite_nets.sample_in_law(problem, widths=[16, 24], seeds=7, two_time=True)
    monkeypatch.setattr(in_law, "CPU_BATCH", 1)
    some = finite_nets.sample_in_law(problem, widths=[24], seeds=[5, 2], two_time=True)
    # products of another batch: rounding
    xr.testing.assert_allclose(some, all_of_them.sel(width=[24], seed=[5, 2]), rtol=1e-6, atol=1e-8)
    other = finite_nets.sample_in_law(problem, widths=[24], seeds=[5], seed=1, observables=["prediction"])
    assert abs(other.prediction - some.prediction.sel(seed=[5])).max() > 1e-2
    assert some.attrs["producer"] == "finite_nets.sample_in_law"
    assert some.attrs["dtype"] == "float64"


def batches(monkeypatch, most=None):
    """How many members are sampled at once, as they come; of more than `most` memory runs out."""
    counts, sample = [], in_law._sample

    def counted(run, keys, whole):
        counts.append(len(keys))
        if most is not None and len(keys) > most:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.\nmore"
            )
        return sample(run, keys, whole)

    monkeypatch.setattr(in_law, "_sample", counted)
    return counts


def test_members_are_split_into_batches_that_fit(problem, monkeypatch):
    arguments = {"widths": [16], "seeds": 7, "observables": ["prediction"], "save_steps": [0, 5]}
    together = finite_nets.sample_in_law(problem, **arguments)
    monkeypatch.setattr(in_law, "available_bytes", lambda _: 2**12)
    with pytest.raises(MemoryEstimateError, match=r"one network of width 16 needs about .* available"):
        finite_nets.sample_in_law(problem, **arguments)
    monkeypatch.undo()

    of_one = []
    require = in_law.memory.require
    monkeypatch.setattr(
        in_law.memory, "require", lambda needed, **more: of_one.append(needed) or require(needed, **more)
    )
    counts = batches(monkeypatch)
    finite_nets.sample_in_law(problem, **arguments)
    some = finite_nets.sample_in_law(problem, **arguments, memory_limit=int(3.5 * of_one[-1]))
    assert counts == [7, 3, 3, 3]
    # products of another batch: rounding
    xr.testing.assert_allclose(some, together, rtol=1e-6, atol=1e-8)


def test_batches_for_which_memory_runs_out_are_halved(problem, monkeypatch):
    arguments = {"widths": [16], "seeds": 7, "observables": ["prediction"], "save_steps": [0, 5]}
    together = finite_nets.sample_in_law(problem, **arguments)
    counts = batches(monkeypatch, most=2)
    xr.testing.assert_allclose(finite_nets.sample_in_law(problem, **arguments), together, rtol=1e-6, atol=1e-8)
    assert counts == [7, 3, *[1] * 7]
    monkeypatch.undo()
    batches(monkeypatch, most=0)
    with pytest.raises(MemoryEstimateError, match="one network of width 16 does not fit in memory: RESOURCE_EXHAUSTED"):
        finite_nets.sample_in_law(problem, **arguments)


def test_other_errors_of_the_device_are_raised_as_they_are(problem, monkeypatch):
    """Also those without text."""
    error = jax.errors.JaxRuntimeError("")

    def failing(*_):
        raise error

    monkeypatch.setattr(in_law, "_sample", failing)
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        finite_nets.sample_in_law(problem, widths=[16], seeds=1, observables=["prediction"])
    assert raised.value is error


@pytest.mark.slow
def test_wide_networks_are_near_the_limit_as_they_should(problem):
    width = 20_000
    wide = finite_nets.sample_in_law(
        problem, widths=[width], seeds=8, observables=["prediction", "loss"], save_steps=[0, 5]
    )
    limit = dmft.solve(problem, save_steps=[0, 5])
    # N Var is below one: five standard deviations
    assert abs(wide.prediction - limit.prediction).max() < 5 / np.sqrt(width)
    np.testing.assert_array_equal(wide.step, [0, 5])
    # centered, to rounding
    assert abs(wide.prediction.sel(step=0)).max() < 1e-12


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": 16}, TypeError, "widths=16 is not a list"),
        ({"widths": [16, 16]}, ValueError, "must hold different numbers"),
        ({"seeds": 0}, ValueError, "seeds=0 is too small"),
        ({"observables": ["spectrum"]}, ValueError, "give a list with any of prediction"),
        ({"device": "tpu"}, ValueError, "device='tpu' is unknown"),
        ({"widths": [10**10]}, MemoryEstimateError, "one network of width 10000000000"),
        ({"memory_limit": 2**10}, MemoryEstimateError, "the results of 1 widths"),
    ],
)  # fmt: skip
def test_refusals(problem, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        finite_nets.sample_in_law(problem, **{"widths": [16], "seeds": 2, **arguments})
    with pytest.raises(TypeError, match="expects a dmft.Problem, got MLP"):
        finite_nets.sample_in_law(problem.network, widths=[16], seeds=2)


@pytest.mark.slow
def test_divergence_is_reported(problem):
    wild = dmft.Problem(dmft.MLP(2, dmft.relu()), problem.task, dmft.GradientDescent(50.0, 10))
    with pytest.raises(DivergenceError, match=r"4 of 4 networks of width 16 diverge, the first at step 1\. Lower"):
        finite_nets.sample_in_law(wild, widths=[16], seeds=4)


@pytest.mark.slow
def test_two_time_kernels_of_several_outputs_have_the_form_of_trained_ones():
    x = np.random.default_rng(0).standard_normal((3, 5))
    problem = dmft.Problem(
        dmft.MLP(2), dmft.Task(x, np.eye(3)), dmft.GradientDescent(0.5, 2, momentum=0.5), "cross_entropy"
    )
    arguments = {"widths": [40], "seeds": 2, "two_time": True, "observables": ["prediction", "ntk"]}
    sampled = finite_nets.sample_in_law(problem, **arguments)
    trained = finite_nets.train_ensemble(problem, **arguments)
    for name, variable in trained.data_vars.items():
        assert sampled[name].dims == variable.dims, name
    limit = dmft.solve(problem, particles=64, scrambles=2, two_time=True, observables=["prediction"])
    assert limit.gradient_kernel_two_time.dims == trained.gradient_kernel_two_time.dims[2:]
    # one step with itself is the kernel of that step, of which the diagonal is positive
    same = sampled.gradient_kernel_two_time.isel(step=1, step_2=1).values.reshape(1, 2, 2, 9, 9)
    assert (np.linalg.eigvalsh(same) > -1e-9).all()
