"""Ensembles of networks: against automatic differentiation, against published numbers, and as a user would use them."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import xarray as xr

import dmft
import finite_nets
import finite_nets.ensembles.budget
from conftest import reference_problem
from dmft.errors import DivergenceError, MemoryEstimateError, exploded
from finite_nets.device.precision import PRECISIONS
from finite_nets.training.perceptrons import initialise, input_coordinates
from oracles import autograd_network

ACTIVATIONS = [dmft.tanh(0.8), dmft.relu(), dmft.erf(), dmft.gelu(), dmft.softplus(2.0), dmft.linear()]


def some_problem(depth=3, activation=ACTIVATIONS[0], centered=True, features=6):
    rng = np.random.default_rng(0)
    task = dmft.Task(rng.standard_normal((3, features)), [-1, 1, 1], rng.standard_normal((2, features)), [1, -1])
    return dmft.Problem(dmft.MLP(depth, activation, 1.3, centered), task, dmft.GradientDescent(0.4, 5))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
@pytest.mark.parametrize(("depth", "centered"), [(1, True), (2, False), (4, True)])
def test_training_is_that_of_automatic_differentiation(activation, depth, centered):
    # five inputs in five dimensions: no change of coordinates, the weights are those of the oracle
    problem = some_problem(depth, activation, centered, features=5)
    nets = finite_nets.train_ensemble(problem, widths=[17], seeds=[0, 3], dtype="float64")
    weights = initialise(depth, 5, 17, torch.tensor([0, 3]), root_seed=0, precision=PRECISIONS["float64"])
    for member in range(2):
        one = (weights.first[member], [w[member] for w in weights.hidden], weights.readout[member, 0])
        predictions, ntk = autograd_network(problem, *one)
        # float64 rounding through six steps
        np.testing.assert_allclose(nets.prediction[0, member], predictions, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(nets.ntk[0, member, 0], ntk, rtol=1e-9, atol=1e-12)


def test_losses_follow_from_predictions_and_kernels_are_positive():
    nets = finite_nets.train_ensemble(some_problem(), widths=[8, 16], seeds=3)
    error = (nets.prediction - nets.target) ** 2 / 2
    train = nets.split == "train"
    xr.testing.assert_allclose(nets.loss, error.where(train, drop=True).mean("sample").drop_vars(()), rtol=1e-5)
    xr.testing.assert_allclose(nets.test_loss, error.where(~train, drop=True).mean("sample"), rtol=1e-5)
    for name in ("feature_kernel", "gradient_kernel", "ntk"):
        assert np.linalg.eigvalsh(nets[name].values).min() > -1e-5
    assert nets.prediction.dims == ("width", "seed", "step", "sample")
    assert nets.feature_kernel.dims == ("width", "seed", "layer", "step", "sample", "sample_2")


def test_a_member_is_a_function_of_root_seed_width_and_index(monkeypatch):
    problem = some_problem()
    whole = finite_nets.train_ensemble(problem, widths=[8, 16], seeds=20, dtype="float64")
    # other batches, other order, other company
    monkeypatch.setattr(finite_nets.ensembles.budget, "CPU_BATCH", 100_000)
    part = finite_nets.train_ensemble(problem, widths=[16], seeds=[19, 7], dtype="float64")
    xr.testing.assert_allclose(part, whole.sel(width=[16], seed=[19, 7]), rtol=1e-9)
    split = finite_nets.train_ensemble(problem, widths=[8, 16], seeds=20, dtype="float64")
    xr.testing.assert_allclose(split, whole, rtol=1e-9)
    other = finite_nets.train_ensemble(problem, widths=[16], seeds=[7], dtype="float64", seed=1)
    assert abs(other.prediction[0, 0] - whole.prediction.sel(width=16, seed=7)).max() > 1e-3


def test_single_precision_is_double_precision_to_rounding():
    single, double = (
        finite_nets.train_ensemble(some_problem(), widths=[64], seeds=8, dtype=d) for d in ("float32", "float64")
    )
    # rounding of 6e-8, accumulated over 64 neurons and five steps
    for name in single.data_vars:
        np.testing.assert_allclose(single[name], double[name], rtol=2e-4, atol=2e-5)
        assert single[name].dtype == (np.float64 if "loss" in name else np.float32)


def test_save_steps_observables_and_two_time_kernels():
    problem = some_problem()
    whole = finite_nets.train_ensemble(problem, widths=[8], seeds=3, two_time=True, dtype="float64")
    for name in ("feature", "gradient"):
        two_time = whole[f"{name}_kernel_two_time"]
        np.testing.assert_allclose(np.einsum("nsltitj->nsltij", two_time), whole[f"{name}_kernel"], atol=1e-12)
        flat = two_time.values.reshape(3, 3, 30, 30)
        np.testing.assert_allclose(flat, flat.swapaxes(2, 3), atol=1e-12)
    some = finite_nets.train_ensemble(
        problem, widths=[8], seeds=3, save_steps=[4, 1], observables=["loss", "ntk"], dtype="float64"
    )
    assert set(some.data_vars) == {"loss", "test_loss", "ntk"}
    for name in some.data_vars:
        # steps in between train without the test samples: products in another order
        xr.testing.assert_allclose(some[name], whole[name].sel(step=[1, 4]), rtol=1e-9)


def test_uncentered_networks_start_at_their_own_output():
    problem = some_problem(centered=False)
    nets = finite_nets.train_ensemble(problem, widths=[50], seeds=400, observables=["prediction"], save_steps=[0])
    start = nets.prediction[0, :, 0]
    assert abs(start).min() > 0
    # f(0) = w . phi / (gamma0 N) with w independent of phi: N Var = <Phi^L> / gamma0^2, to sqrt(2/400) = 7 % and kurtosis
    kernel = finite_nets.train_ensemble(problem, widths=[50], seeds=400, observables=["feature_kernel"], save_steps=[0])
    expected = np.einsum("eii->i", kernel.feature_kernel[0, :, -1, 0]) / 400 / 1.3**2
    np.testing.assert_allclose(50 * start.var("seed"), expected, rtol=0.35)


def test_changing_coordinates_of_the_inputs_keeps_their_products():
    x = np.random.default_rng(0).standard_normal((4, 30))
    small, same = (
        input_coordinates(dmft.Problem(dmft.MLP(1), dmft.Task(a, np.ones(len(a))), dmft.GradientDescent(1.0, 1)))
        for a in (x, x.T)
    )
    assert small.shape == (4, 4)
    np.testing.assert_allclose(small @ small.T, x @ x.T, atol=1e-12)
    np.testing.assert_array_equal(same, x.T)


# ---- against independent simulations -------------------------------------------------------------------------------


COMPARED = [0, 1, 2, 4, 6, 9]  # steps of the reference numbers


@pytest.fixture(scope="module")
def reference_nets():
    """Widths of the reference numbers, at a size that fits two cores."""
    counts = {48: 3000, 96: 3000, 192: 1000}  # the bias left out, means are six errors off
    return {
        width: finite_nets.train_ensemble(
            reference_problem(),
            widths=[width],
            seeds=count,
            save_steps=COMPARED,
            observables=["prediction", "feature_kernel", "gradient_kernel"],
        ).isel(width=0)
        for width, count in counts.items()
    }


def measured(nets, name):
    """Predictions (seed, step, sample), or the diagonal of a kernel (seed, layer, step, sample)."""
    values = nets[name].values.astype(float)
    return values if name == "prediction" else np.einsum("eltii->elti", values)


def expected(reference, name, key):
    """(place in COMPARED, value) pairs of the reference, in the shape of `measured`."""
    if name == "prediction":
        return {COMPARED.index(int(step)): entry[key] for step, entry in reference[name].items()}
    return {
        COMPARED.index(int(step)): [reference[name][layer][step][key] for layer in reference[name]]
        for step in reference[name]["layer 1"]
    }


@pytest.mark.parametrize("name", ["prediction", "feature_kernel", "gradient_kernel"])
def test_means_are_limit_plus_bias_over_width(reference, reference_nets, name):
    table = reference["limit_and_bias"]
    limit, bias = (expected(table, name, key) for key in ("limit", "bias"))
    bias_se = expected(table, name, "bias_se")
    zs = {}
    for width, nets in reference_nets.items():
        x = measured(nets, name)
        x = x if name == "prediction" else x.mean(-1)
        mean, se = x.mean(0), x.std(0) / np.sqrt(len(x))
        for step in limit:
            at = (step,) if name == "prediction" else (slice(None), step)
            # terms of order 1/N^2 shift the narrowest widths: the reference's own fits have them at about 5/N^2
            error = np.sqrt(se[at] ** 2 + (np.array(bias_se[step]) / width) ** 2 + 3e-4**2 + (5 / width**2) ** 2)
            zs[width, step] = (mean[at] - limit[step] - np.array(bias[step]) / width) / error
    worst = max(abs(z).max() for z in zs.values())
    # at most 60 numbers
    assert worst < 4.5, zs


@pytest.mark.parametrize("name", ["prediction", "feature_kernel", "gradient_kernel"])
def test_n_var_is_that_of_the_reference(reference, reference_nets, name):
    table = expected(reference["variance"], name, "N_var_width256")

    def worst(nets):
        """Of deviations, in bounds."""
        x = measured(nets, name)
        n_var = nets.width.item() * x.var(axis=0, ddof=1)
        n_var = n_var if name == "prediction" else n_var.mean(-1)  # the reference averages variances over samples
        # relative error sqrt(2/E) of a variance, both sides; kurtosis and the difference of widths 5 % more
        relative = 4 * np.sqrt(2 / len(x) + 2 / 20000) + 0.05
        each = {step: n_var[(step,) if name == "prediction" else (slice(None), step)] for step in table}
        return max((abs(each[t] - table[t]) / (1.5e-3 + relative * np.abs(table[t]))).max() for t in table)

    assert worst(reference_nets[96]) < 1
    assert worst(reference_nets[192]) < 1
    if name == "prediction":  # the twin: those of more richness
        arguments = {"widths": [96], "seeds": 2000, "save_steps": COMPARED, "observables": ["prediction"]}
        assert worst(finite_nets.train_ensemble(reference_problem(1.2), **arguments).isel(width=0)) > 1.5


@pytest.mark.slow
def test_without_centering_the_variance_is_that_of_the_reference_and_a_factor_of_richness_is_seen(reference):
    table = expected(reference["variance_uncentered"], "prediction", "N_var_width256")
    uncentered = reference_problem()
    uncentered = dataclasses.replace(uncentered, network=dataclasses.replace(uncentered.network, centered=False))
    count, width = 4000, 192

    def worst(problem):
        arguments = {"save_steps": COMPARED, "observables": ["prediction"]}
        nets = finite_nets.train_ensemble(problem, widths=[width], seeds=count, **arguments)
        n_var = width * nets.prediction[0].var("seed", ddof=1).values
        return max(abs(n_var[step] / value - 1).max() for step, value in table.items())

    tolerance = 4 * np.sqrt(2 / count + 2 / 20000) + 0.05
    assert worst(uncentered) < tolerance
    richer = dataclasses.replace(uncentered, network=dataclasses.replace(uncentered.network, gamma0=1.2))
    assert worst(richer) > 1.5 * tolerance


# ---- wrong inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": [8, 0]}, ValueError, "widths[1]=0 is too small; it must be at least 1"),
        ({"widths": 8}, TypeError, "widths=8 is not a list; give e.g. widths=[64, 128]"),
        ({"widths": []}, ValueError, "widths=[] must hold different numbers, at least one"),
        ({"widths": [8, 8]}, ValueError, "widths=[8, 8] must hold different numbers"),
        ({"widths": [8.5]}, TypeError, "widths[0]=8.5 is not an integer"),
        ({"seeds": 0}, ValueError, "seeds=0 is too small"),
        ({"seeds": 2.5}, TypeError, "seeds=2.5 is not an integer"),
        ({"seeds": [1, 1]}, ValueError, "seeds=[1, 1] must hold different numbers"),
        ({"seed": -1}, ValueError, "seed=-1 is too small"),
        ({"seed": 2**64}, ValueError, "must be below 2^64"),
        ({"device": "tpu"}, ValueError, "device='tpu' is unknown"),
        ({"device": "cuda:99"}, ValueError, "CUDA device(s); use device=\"cpu\""),
        ({"dtype": "float16"}, ValueError, "dtype='float16' is not offered; choose one of float64, float32, tf32, bf16"),
        ({"observables": ["spectrum"]}, ValueError, "observables=['spectrum']: give a list with any of prediction"),
        ({"observables": "ntk"}, ValueError, "observables='ntk': give a list with any of prediction"),
        ({"device": None}, ValueError, "device=None is unknown"),
        ({"memory_limit": "4GB"}, TypeError, "memory_limit='4GB' is not an integer"),
        ({"save_steps": [9]}, ValueError, "save_steps holds 9; this problem has steps 0..5"),
        ({"memory_limit": 1000}, MemoryEstimateError, "record fewer save_steps"),
        ({"widths": [1_000_000]}, MemoryEstimateError, "one network of width 1000000 needs about"),
    ],
)  # fmt: skip
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        finite_nets.train_ensemble(some_problem(), **{"widths": [8], "seeds": 2, **arguments})


def test_not_a_problem():
    with pytest.raises(TypeError, match="expects a dmft.Problem, got MLP"):
        finite_nets.train_ensemble(some_problem().network, widths=[8], seeds=2)


def test_diverging_networks_are_counted():
    problem = dataclasses.replace(some_problem(activation=dmft.relu()), training=dmft.GradientDescent(80.0, 20))
    message = r"4 of 4 networks of width 8 diverge, the first at step 1\. Lower learning_rate=80"
    # whether or not the steps at which it happens are saved
    for save_steps in (None, [20], [0, 20]):
        with pytest.raises(DivergenceError, match=message):
            finite_nets.train_ensemble(problem, widths=[8], seeds=4, save_steps=save_steps)
    finite_nets.train_ensemble(problem, widths=[8], seeds=4, save_steps=[0])


def test_a_member_that_explodes_between_saved_steps_and_dies_is_masked_and_counted():
    problem = dataclasses.replace(some_problem(2, dmft.relu()), training=dmft.GradientDescent(30.0, 6))
    whole = {"widths": [16], "seeds": 8, "save_steps": [6], "dtype": "float64"}
    with pytest.warns(
        UserWarning, match="7 of 8 networks of width 16 diverge, the first at step 1: results are those of"
    ):
        nets = finite_nets.train_ensemble(problem, **whole)
    assert nets.diverged.sum() == nets.attrs["diverged"] == 7
    (healthy,) = np.flatnonzero(~nets.diverged.values[0])
    alone = finite_nets.train_ensemble(problem, **whole | {"seeds": [int(healthy)]})
    for name in alone.data_vars:
        np.testing.assert_allclose(nets[name].values[0, healthy], alone[name].values[0, 0], rtol=1e-9)
        assert np.isnan(nets[name].values[0, nets.diverged.values[0]]).all()
    # left out of moments, too, as if they had not been there
    with pytest.warns(UserWarning, match="7 of 8 networks of width 16 diverge: results are those of the others"):
        moments = finite_nets.train_ensemble(problem, **whole, keep="moments", block=4, covariance=True)
    block, other = divmod(int(healthy), 4)[0], 1 - divmod(int(healthy), 4)[0]
    assert moments["count"].values[0].tolist() == ([1, 0] if block == 0 else [0, 1])
    assert moments.diverged.values[0].sum() == 7
    np.testing.assert_allclose(moments.ntk_mean.values[0, block], alone.ntk.values[0, 0], rtol=1e-9)
    assert (moments.ntk_m2.values[0, block] == 0).all()
    assert np.isnan(moments.prediction_comoment.values[0, other]).all()


def test_a_block_does_not_feel_that_another_diverges():
    problem = dataclasses.replace(some_problem(2, dmft.relu()), training=dmft.GradientDescent(3.0, 6))
    arguments = {"widths": [16], "keep": "moments", "save_steps": [6], "dtype": "float64"}
    with pytest.warns(UserWarning, match="diverge"):
        one_by_one, together = (
            finite_nets.train_ensemble(problem, seeds=24, block=block, **arguments) for block in (1, 2)
        )
    healthy = one_by_one["count"].values[0].reshape(-1, 2).sum(1)
    assert {0, 1, 2} <= set(healthy.tolist())
    np.testing.assert_array_equal(together["count"].values[0], healthy)
    for block in np.flatnonzero(healthy == 2):
        pair = one_by_one.loss_mean.values[0, 2 * block : 2 * block + 2]
        np.testing.assert_array_equal(together.loss_mean.values[0, block], pair.mean(0))


def test_accuracies_of_several_outputs_are_as_precise_in_moments():
    rng = np.random.default_rng(0)
    task = dmft.Task(rng.standard_normal((7, 6)), np.eye(3)[np.arange(7) % 3])
    problem = dmft.Problem(dmft.MLP(2), task, dmft.GradientDescent(0.4, 3), "cross_entropy")
    arguments = {"widths": [8], "seeds": 6, "dtype": "float64", "observables": ["loss"]}
    members = finite_nets.train_ensemble(problem, **arguments)
    moments = finite_nets.train_ensemble(problem, **arguments, keep="moments", block=6)
    np.testing.assert_allclose(moments.accuracy_mean[0, 0], members.accuracy[0].mean("seed"), rtol=1e-14)


def test_an_explosion_that_stays_finite_is_a_divergence():
    problem = dataclasses.replace(some_problem(2, dmft.linear()), training=dmft.GradientDescent(20.0, 3))
    # the losses themselves are numbers: nothing but their size tells
    with pytest.raises(DivergenceError, match="4 of 4 networks of width 16 diverge, the first at step 2"):
        finite_nets.train_ensemble(problem, widths=[16], seeds=4, dtype="float64")


@pytest.mark.parametrize("array", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_the_rule_of_divergence(array):
    loss = array([1.0, 9e5, 2e6, 2e6, float("inf"), float("nan")])
    initial = array([1.0, 0.1, 0.1, 3.0, 1.0, 1.0])
    assert exploded(loss, initial).tolist() == [False, False, True, False, True, True]
