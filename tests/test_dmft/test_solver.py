"""The limit against independent numbers: simulated networks, closed forms, symmetries, its own larger runs."""

import dataclasses
import json
import re
import weakref

import numpy as np
import pytest
import xarray as xr

import dmft
import finite_nets
from conftest import first_of, reference_problem
from dmft.drivers import repetitions
from dmft.drivers.room import memory_estimate
from dmft.drivers.run import Run
from dmft.errors import DivergenceError, MemoryEstimateError
from oracles import lazy_limit

FEW = {"particles": 512, "scrambles": 2}


def diagonals(kernel):
    """Mean over samples of the equal-time diagonal: (layer, step)."""
    return np.einsum("ltii->lt", kernel.values) / kernel.sizes["sample"]


# ---- against 750,000 simulated networks ----------------------------------------------------------------------------


def test_predictions_and_kernels_at_default_settings(theory, reference):
    limits = reference["limit_and_bias"]
    for step, entry in limits["prediction"].items():
        np.testing.assert_allclose(theory.prediction.sel(step=int(step)), entry["limit"], atol=1e-3)
    for name in ("feature_kernel", "gradient_kernel"):
        ours = diagonals(theory[name])
        for layer, steps in limits[name].items():
            for step, entry in steps.items():
                assert ours[int(layer.split()[1]) - 1, int(step)] == pytest.approx(entry["limit"], abs=3e-3)


def reference_z(solved, reference):
    """z-scores of the predictions against the extrapolated limit of simulated networks."""
    entries = reference["limit_and_bias"]["prediction"].items()
    ours = np.stack([solved.prediction.sel(step=int(step)) for step, _ in entries])
    se = np.stack([solved.prediction_se.sel(step=int(step)) for step, _ in entries])
    limit, limit_se = (np.array([entry[key] for _, entry in entries]) for key in ("limit", "limit_se"))
    return (ours - limit) / np.hypot(se, limit_se)


def test_predictions_agree_within_standard_errors_and_broken_theories_do_not(theory, reference):
    # 15 correlated numbers, errors of eight scrambles: |t_7| > 5 has probability 2e-3
    assert abs(reference_z(theory, reference)).max() < 5
    for broken in (reference_problem(gamma0=1.2), reference_problem(gamma0=0.8), reference_problem(learning_rate=1.2)):
        # richness off by 20 %; a factor 2 in the loss, which is one in the learning rate
        assert abs(reference_z(dmft.solve(broken, particles=512), reference)).max() > 25


# ---- its own error bar ---------------------------------------------------------------------------------------------


def squared(ds, large, names=("prediction", "feature_kernel", "gradient_kernel", "ntk")):
    """Mean squares, by quantity, of the errors against a much larger run and of the standard errors that were claimed."""
    return np.array([[((ds[n] - large[n]) ** 2).mean(), (ds[f"{n}_se"] ** 2).mean()] for n in names])


def honesty_problems():
    x = np.random.default_rng(3).standard_normal((3, 25))
    task = dmft.Task(x / np.linalg.norm(x, axis=1, keepdims=True) * 5, [1, -1, 1])
    yield reference_problem()
    yield dmft.Problem(dmft.MLP(3, dmft.erf(), 2.0), task, dmft.GradientDescent(0.3, 10))
    yield dmft.Problem(dmft.MLP(2, dmft.relu(), 0.5), task, dmft.GradientDescent(0.2, 10))


@pytest.mark.parametrize("problem", first_of(honesty_problems()), ids=["tanh", "erf3", "relu"])
def test_standard_errors_are_honest(problem):
    large = dmft.solve(problem, particles=2048, seed=99)  # eight times the particles, errors of an eighth
    seeds = 8
    errors, claimed = sum(squared(dmft.solve(problem, particles=256, seed=s), large) for s in range(seeds)).T
    # 8 seeds x 8 scrambles, entries of a quantity nearly one number: relative error of the mean square is about
    # sqrt(2/8) = 0.5, so that ratios of root mean squares scatter by 0.25
    ratio = np.sqrt(errors / claimed)
    assert ratio.min() > 0.5
    assert ratio.max() < 1.75


@pytest.mark.slow
def test_errors_fall_nearly_like_one_over_particles(problem):
    large = dmft.solve(problem, particles=16384, seed=99)
    sizes = [256, 512, 1024, 2048, 4096]
    # mean squares of the error of four means over eight scrambles, and of what they claim
    found = [
        sum(squared(dmft.solve(problem, particles=s, seed=i), large, ["prediction"])[0] for i in range(4))
        for s in sizes
    ]
    errors, claims = (np.polyfit(np.log(sizes), 0.5 * np.log(column), 1)[0] for column in np.transpose(found))
    # claims rest on 28 degrees of freedom a size, errors on about four: slopes over a factor 16 to .05 and .15;
    # independent points would give -0.5
    assert -1.15 < claims < -0.75
    assert -1.4 < errors < -0.65


@pytest.fixture(scope="module")
def of_few(problem):
    return dmft.solve(problem, **FEW)


def test_results_follow_the_seed_and_nothing_else(problem, of_few):
    same, other = (dmft.solve(problem, seed=s, **FEW) for s in (0, 1))
    xr.testing.assert_equal(of_few, same)
    assert abs(of_few.prediction - other.prediction).max() > 1e-6


# ---- symmetries ----------------------------------------------------------------------------------------------------


def within(a, b, se, sigmas=5.0):
    """Largest deviation in units of the combined standard error, entries known exactly left out."""
    deviation = abs(np.asarray(a) - np.asarray(b))
    se = np.sqrt(2) * np.asarray(se)
    return np.all(deviation <= sigmas * se + 1e-12)


def test_permuting_samples_permutes_the_limit(problem, theory):
    order = [2, 0, 1]
    task = dmft.Task(problem.task.x_train[order], problem.task.y_train[order])
    permuted = dmft.solve(dataclasses.replace(problem, task=task), particles=2048)
    assert within(permuted.prediction, theory.prediction[:, order], permuted.prediction_se.max())
    assert within(permuted.ntk, theory.ntk[:, order][:, :, order], permuted.ntk_se.max())
    assert not within(permuted.prediction, theory.prediction, permuted.prediction_se.max())


def test_rotating_inputs_leaves_the_limit_alone(problem, of_few):
    rotation, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((25, 25)))
    task = dmft.Task(problem.task.x_train @ rotation, problem.task.y_train)
    rotated = dmft.solve(dataclasses.replace(problem, task=task), **FEW)
    # the same kernel up to rounding, hence the same points and pivots
    np.testing.assert_allclose(rotated.prediction, of_few.prediction, atol=1e-9)


def test_kernels_are_symmetric_positive_and_consistent_in_time(theory):
    for name in ("feature_kernel", "gradient_kernel"):
        kernel, two_time = theory[name].values, theory[f"{name}_two_time"].values
        np.testing.assert_allclose(np.einsum("ltitj->ltij", two_time), kernel, atol=1e-12)
        flat = two_time.reshape(2, 33, 33)
        np.testing.assert_allclose(flat, flat.transpose(0, 2, 1), atol=1e-12)
        assert np.linalg.eigvalsh(flat).min() > -1e-12
    ntk = theory.gradient_kernel.values[0] * reference_problem().task.input_kernel
    ntk = ntk + theory.gradient_kernel.values[1] * theory.feature_kernel.values[0] + theory.feature_kernel.values[1]
    # products of means against means of products over scrambles: second order in their scatter
    np.testing.assert_allclose(theory.ntk, ntk, atol=1e-4)


def test_test_samples_do_not_change_training_and_copies_behave_alike(problem, theory):
    task = problem.task
    with_test = dmft.Task(task.x_train, task.y_train, task.x_train[:2] + 0.0, task.y_train[:2])
    solved = dmft.solve(dataclasses.replace(problem, task=with_test), particles=2048)
    assert within(solved.prediction[:, :3], theory.prediction, solved.prediction_se.max())
    np.testing.assert_allclose(solved.prediction[:, 3:], solved.prediction[:, :2], atol=1e-10)
    np.testing.assert_allclose(solved.ntk[:, 3:, :3], solved.ntk[:, :2, :3], atol=1e-10)
    assert solved.split.values.tolist() == ["train"] * 3 + ["test"] * 2


# ---- closed forms and other activations ----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", first_of([dmft.relu(), dmft.erf()]), ids=["relu", "erf"])
def test_lazy_limit_is_the_closed_form(activation):
    x = np.random.default_rng(1).standard_normal((5, 20))
    task = dmft.Task(x[:3], [1, -1, 1], x[3:], [1, -1])
    problem = dmft.Problem(dmft.MLP(3, activation, gamma0=1e-3), task, dmft.GradientDescent(0.3, 5))
    features, gradients, ntk, predictions = lazy_limit(problem)
    solved = dmft.solve(problem)
    # eight scrambles (t_7), some 500 correlated entries, plus corrections of order gamma0
    for ours, se, exact in (
        (solved.prediction, solved.prediction_se, predictions),
        (solved.ntk[0], solved.ntk_se[0], ntk),
        (solved.feature_kernel[:, 0], solved.feature_kernel_se[:, 0], features),
        (solved.gradient_kernel[:, 0], solved.gradient_kernel_se[:, 0], gradients),
    ):
        assert np.all(abs(ours - exact) < 7 * se + 1e-5)
        assert float(se.max()) < 0.01 * abs(exact).max()
    # kernels do not move
    np.testing.assert_allclose(solved.ntk[-1], solved.ntk[0], atol=2e-2)
    # twin: the NTK of one layer less is far off
    shallow = lazy_limit(dataclasses.replace(problem, network=dmft.MLP(2, activation, gamma0=1e-3)))[3]
    assert not np.all(abs(solved.prediction - shallow) < 7 * solved.prediction_se + 1e-5)


@pytest.mark.slow
def test_relu_at_richness_one_agrees_with_simulation_in_the_mean():
    x = np.random.default_rng(2).standard_normal((3, 20))
    task = dmft.Task(x[:2], [1, -1], x[2:], [1])
    problem = dmft.Problem(dmft.MLP(2, dmft.relu(), 1.0), task, dmft.GradientDescent(0.2, 8))
    nets = finite_nets.train_ensemble(problem, widths=[64, 128, 256], seeds=2500, observables=["prediction"])
    # biases of order 1/N and 1/N^2 cancel in m(N)/3 - 2 m(2N) + 8/3 m(4N)
    weights = xr.DataArray([1 / 3, -2, 8 / 3], dims="width")
    limit = (weights * nets.prediction.mean("seed")).sum("width")
    limit_se = np.sqrt((weights**2 * nets.prediction.var("seed")).sum("width") / 2500)

    def z(gamma0):
        solved = dmft.solve(dataclasses.replace(problem, network=dmft.MLP(2, dmft.relu(), gamma0)))
        return float((abs(solved.prediction - limit) / np.hypot(solved.prediction_se, limit_se))[1:].max())

    assert z(1.0) < 4.5  # 24 correlated numbers
    assert z(1.2) > 8


# ---- the driver ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_first_capacity_grows_and_gives_the_same_limit(problem, theory, monkeypatch):
    monkeypatch.setattr(Run, "first_capacity", 12)
    grown = dmft.solve(problem)
    assert 12 < grown.attrs["directions"] <= 33
    assert within(grown.prediction, theory.prediction, theory.prediction_se.max())


@pytest.mark.parametrize("work", first_of([dmft.solve, dmft.fluctuations]), ids=lambda f: f.__name__)
def test_a_run_is_let_go_before_the_next_begins(problem, work, monkeypatch):
    train, networks = repetitions._train, []

    def watched(*arguments):
        assert all(network() is None for network in networks)
        trained = train(*arguments)
        networks.append(weakref.ref(trained[0]))
        return trained

    monkeypatch.setattr(repetitions, "_train", watched)
    work(problem, particles=512, scrambles=3, **({"draws": 4} if work is dmft.fluctuations else {}))
    assert len(networks) >= 3


def test_save_steps_and_attributes(problem, theory, of_few):
    some = dmft.solve(problem, save_steps=[10, 0, 4], two_time=True, **FEW)
    xr.testing.assert_allclose(some.prediction, of_few.prediction.sel(step=[0, 4, 10]), rtol=1e-12)
    assert some.feature_kernel_two_time.shape == (2, 3, 3, 3, 3)
    np.testing.assert_allclose(some.time, [0, 2.4, 6.0])
    attrs = theory.attrs
    assert attrs["particles"] == 4096
    assert attrs["scrambles"] == 8
    assert attrs["tolerance"] == 3e-3
    assert 1e6 < attrs["memory_estimate"] < 1e8
    assert attrs["dtype"] == "float64"
    assert attrs["problem_id"] == problem.problem_id
    assert dmft.Problem.from_json(attrs["problem"], task=problem.task) == problem
    assert json.loads(attrs["problem"])["network"]["gamma0"] == 1.0


def test_too_few_particles_for_the_directions_are_warned_of(problem):
    with pytest.warns(UserWarning, match="met 2. directions with 32 particles only: .* Use particles=128 or more"):
        dmft.solve(problem, particles=32)


@pytest.fixture(scope="module")
def shallow(problem):
    return dataclasses.replace(problem, network=dmft.MLP(1, dmft.tanh(0.8)))


@pytest.fixture(scope="module")
def shallow_limit(shallow):
    return dmft.solve(shallow)


def test_depth_one_has_no_matrices(shallow_limit):
    assert float(shallow_limit.loss[-1]) < 0.1 * float(shallow_limit.loss[0])
    assert shallow_limit.attrs["directions"] == 0


def test_training_stops_at_the_last_saved_step(shallow, shallow_limit, capsys):
    short = dmft.solve(shallow, save_steps=[0, 4], progress=True)
    assert "40/40" in capsys.readouterr().err
    xr.testing.assert_allclose(short.prediction, shallow_limit.prediction.sel(step=[0, 4]), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"particles": 1000}, ValueError, "particles=1000 is not a power of two, as Sobol points need; use 512 or 1024"),
        ({"particles": 0}, ValueError, "particles=0 is too small"),
        ({"scrambles": 1}, ValueError, "scrambles=1 is too small; it must be at least 2"),
        ({"tolerance": 0}, ValueError, "tolerance=0 must be positive"),
        ({"tolerance": 0.5}, ValueError, "tolerance=0.5 must lie between 1e-07 and 0.03"),
        ({"save_steps": 5}, TypeError, "save_steps=5 is not a list; give e.g. save_steps=[0, 10]"),
        ({"memory_limit": "4GB"}, TypeError, "memory_limit='4GB' is not an integer"),
        ({"device": "tpu"}, ValueError, "device='tpu' is unknown"),
        ({"seed": -1}, ValueError, "seed=-1 is too small"),
        ({"save_steps": [0, 11]}, ValueError, "save_steps holds 11; this problem has steps 0..10"),
        ({"save_steps": []}, ValueError, "save_steps=[] must be different whole numbers"),
        ({"memory_limit": 2**20}, MemoryEstimateError, "lower particles, raise tolerance"),
        ({"particles": 2**34}, MemoryEstimateError, "is available"),
    ],
)  # fmt: skip
def test_refusals(problem, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        dmft.solve(problem, **arguments)
    with pytest.raises(TypeError, match="expects a dmft.Problem, got MLP"):
        dmft.solve(problem.network)


def test_memory_estimate_is_near_the_compilers():
    import jax
    import jax.numpy as jnp

    from dmft.engine import loop, population

    problem, particles, capacity = reference_problem(), 4096, 64  # room that neighbours share
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        rule, form = loop.rule_of(problem), loop.form_of(problem)

        def begun():
            crowd = [population.particles(jnp.zeros((n, particles))) for n in loop.draws_needed(rule, form, capacity)]
            start = loop.limit_network(rule, form, crowd, 1e-3, capacity=capacity)
            return start, loop.empty_history(start, rule, form, range(11))

        compiled = loop.advance.jitted.lower(*jax.eval_shape(begun), rule, 0, 11, form=form).compile()
        used = compiled.memory_analysis()
        run = Run(problem, np.arange(11), particles, 1e-3, centered=True)
        estimate, _ = memory_estimate(run, capacity)
    total = used.argument_size_in_bytes + used.temp_size_in_bytes
    # the state is counted exactly, temporaries by a rule: the estimate may be generous, not short
    assert 0.95 * total < estimate < 2 * total


@pytest.mark.parametrize(
    ("activation", "rate"),
    [
        (dmft.linear(), 20.0),
        (dmft.tanh(0.8), 3000.0),
        pytest.param(dmft.relu(), 50.0, marks=pytest.mark.slow),  # fields that grow as those of linear networks
    ],
    ids=str,
)
def test_diverging_training_is_reported_with_step_and_layer(activation, rate):
    problem = dataclasses.replace(reference_problem(learning_rate=rate), network=dmft.MLP(2, activation))
    with pytest.raises(
        DivergenceError, match=rf"diverges at step \d+: .* fields of layer [12] .* Lower learning_rate={rate:g}"
    ):
        dmft.solve(problem, particles=512)


def test_progress_bar_on_request(problem, capsys):
    dmft.solve(problem, **FEW, progress=True)
    shown = capsys.readouterr().err
    assert "22/22" in shown
    assert " of memory" in shown
    dmft.solve(problem, **FEW)
    assert capsys.readouterr().err == ""
