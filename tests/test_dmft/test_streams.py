"""Streams of data, observed on probes: what probes do to the bases of the matrices, and what they do not."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import FAMILIES, changed, some_problem  # the problems of every kind

import dmft
import finite_nets
from dmft.drivers import run as run_module
from dmft.drivers import second_runs
from dmft.drivers.room import memory_estimate
from dmft.drivers.run import Run
from dmft.drivers.solve import _forgetting
from dmft.engine import coordinates, loop, matrix, network
from dmft.engine import normals as raw_normals
from dmft.engine.coordinates import input_coordinates
from dmft.engine.scrambles import DIMENSIONS

FEW = {"particles": 512, "scrambles": 4}
BATCH, STEPS, PROBES = 2, 6, 7


def stream(activation=None, outputs=None, probes=PROBES, features=9, rate=0.8, **training):
    """Every sample is met once; inputs span more directions than a step has rows."""
    rng = np.random.default_rng(3)
    samples = BATCH * STEPS
    x = rng.standard_normal((samples + PROBES, features))
    y = np.eye(outputs)[np.arange(len(x)) % outputs] if outputs else np.sign(x[:, 0])
    task = dmft.Task(x[:samples], y[:samples], x[samples:][:probes], y[samples:][:probes])
    descent = dmft.GradientDescent(rate, STEPS, batches=dmft.one_pass(samples, BATCH), observe="test", **training)
    return dmft.Problem(dmft.MLP(2, activation or dmft.tanh(0.8), 1.3, centered=False), task, descent)


def same(a, b, **tolerances):
    for name in set(a.data_vars) & set(b.data_vars):
        np.testing.assert_allclose(a[name], b[name], err_msg=str(name), **tolerances)


# ---- the limit does not depend on what probes have shown at other steps ----------------------------------------------

LINEAR = {
    "three outputs": stream(dmft.linear(), outputs=3, rate=0.3, momentum=0.3),
    "residual, biases": dataclasses.replace(
        stream(dmft.linear(), rate=0.1), network=dmft.ResidualMLP(3, dmft.linear(), 1.3, centered=False, bias=0.5)
    ),
}
EVERYTHING = {"observables": dmft.schema.OBSERVABLES}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.slow
def test_probes_that_are_forgotten_leave_the_same_limit(name, monkeypatch):
    """Two-time kernels need matrices that remember the probes: of linear networks the same numbers, exactly."""
    problem = LINEAR[name]
    forgotten = dmft.solve(problem, **EVERYTHING)
    kept = dmft.solve(problem, two_time=True, **EVERYTHING)
    same(forgotten, kept, atol=1e-9)
    assert forgotten.attrs["directions"] < kept.attrs["directions"]
    # and the two-time kernels hold those of single steps
    steps = np.arange(STEPS + 1)
    two_time = kept.feature_kernel_two_time.values[:, steps, :, steps]
    np.testing.assert_allclose(two_time, np.moveaxis(kept.feature_kernel.values, 1, 0), atol=1e-9)

    # twin: probes that see the matrices as they were at initialisation
    observe = network.observe

    def unlearned(state, rule, t, form):
        unmoved = (m.trained._replace(change=jnp.zeros_like(m.trained.change)) for m in state.matrices)
        matrices = tuple(dataclasses.replace(m, trained=w) for m, w in zip(state.matrices, unmoved, strict=True))
        return observe(dataclasses.replace(state, matrices=matrices), rule, t, form)

    monkeypatch.setattr("dmft.engine.flow.observe", unlearned)
    monkeypatch.setattr(loop, "advance", loop.advance.__wrapped__)  # compiled code would not see the change
    assert abs(dmft.solve(problem, **EVERYTHING).prediction - kept.prediction).max() > 1e-3


def deviation(a, b):
    """Largest z between two results of independent scrambles."""
    return (abs(a.prediction - b.prediction) / np.hypot(a.prediction_se, b.prediction_se)).max().item()


def test_forgotten_or_kept_it_is_the_limit_of_trained_networks():
    problem, numerics = stream(), {"particles": 512, "scrambles": 8, "observables": ["prediction"]}
    forgotten = dmft.solve(problem, **numerics)
    kept = dmft.solve(problem, seed=1, two_time=True, **numerics)
    # 49 correlated numbers, errors of eight scrambles each: t_14 exceeds 5 with a probability of 2e-4
    assert deviation(forgotten, kept) < 5
    assert deviation(dmft.solve(changed(problem, gamma0=1.6), **numerics), kept) > 7

    nets = finite_nets.train_ensemble(problem, widths=[64, 128], seeds=400, observables=["prediction"]).prediction
    weights = np.array([-1.0, 2.0])  # without the bias of order 1/N
    limit = np.tensordot(weights, nets.mean("seed").values, axes=1)
    se = np.sqrt(np.tensordot(weights**2, nets.var("seed", ddof=1).values / nets.sizes["seed"], axes=1))
    z = abs(forgotten.prediction.values - limit) / np.hypot(se, forgotten.prediction_se.values)
    assert z.max() < 5


def test_probes_see_what_entries_have_learned(monkeypatch):
    """Of optimisers that move every entry by a rule: a look that leaves nothing, a copy that has room, and networks."""
    given = stream()
    adam = dmft.Adam(0.1, STEPS, batches=given.training.batches, observe="test")
    problem = dataclasses.replace(given, training=adam)
    numerics = {"particles": 512, "scrambles": 4, "save_steps": [0, STEPS]}
    peeked = dmft.solve(problem, observables=["prediction"], **numerics)
    copied = dmft.solve(problem, observables=["prediction", "gradient_kernel"], **numerics)
    np.testing.assert_allclose(peeked.prediction, copied.prediction, rtol=0, atol=1e-8)

    nets = finite_nets.train_ensemble(problem, widths=[256], seeds=150, observables=["prediction"]).prediction
    se = nets.std("seed", ddof=1).values[0, -1] / np.sqrt(nets.sizes["seed"])

    def largest_z(limit):
        se_of_both = np.hypot(se, limit.prediction_se.values[-1])
        return (abs(limit.prediction.values[-1] - nets.mean("seed").values[0, -1]) / se_of_both).max()

    assert largest_z(peeked) < 5
    # twin: probes that see these matrices without what was learned
    beside = matrix.RevealedGaussian._beside
    monkeypatch.setattr(
        matrix.RevealedGaussian, "_beside", lambda w, image, *of: beside(w, image, *of) if w.remembers else image
    )
    monkeypatch.setattr(loop, "advance", loop.advance.__wrapped__)  # compiled code would not see the change
    assert largest_z(dmft.solve(problem, observables=["prediction"], **numerics)) > 10


@pytest.mark.slow
def test_training_meets_its_batches_alone():
    """Whatever is looked at, and when: the directions are those of the batches, and so are the numbers."""
    every = dmft.solve(stream(), **FEW)
    last = dmft.solve(stream(), save_steps=[2, STEPS], **FEW)
    assert every.attrs["directions"] == last.attrs["directions"] <= BATCH * (STEPS + 1)
    # the same compiled arithmetic at the steps that are looked at
    same(last, every.sel(step=last.step), rtol=1e-12)
    # kept, they are as many again at every step that is recorded
    kept = [
        dmft.neurons(stream(), save_steps=steps, particles=512, scrambles=2).attrs["directions"]
        for steps in (range(STEPS + 1), [2, STEPS])
    ]
    assert kept[0] > every.attrs["directions"] + 3 * PROBES
    assert every.attrs["directions"] < kept[1] < kept[0]


# ---- and what needs them together, remembers them --------------------------------------------------------------------


@pytest.mark.slow
def test_what_width_adds_is_the_same_whatever_is_recorded():
    """Of linear networks, exactly: covariances of two steps, whether the steps between have been looked at or not."""
    problem = stream(dmft.linear(), probes=2, features=3, rate=0.3)
    arguments = {"covariance": True, "observables": ["prediction"]}
    steps = [1, 3]
    every = dmft.fluctuations(problem, save_steps=range(4), **arguments)
    few = dmft.fluctuations(problem, save_steps=steps, **arguments)
    for name in ("prediction_variance", "prediction_bias"):
        np.testing.assert_allclose(few[name], every[name].sel(step=steps), rtol=1e-7, err_msg=name)
    chosen = every.prediction_covariance.values[steps][:, :, steps]
    np.testing.assert_allclose(few.prediction_covariance, chosen, rtol=1e-7)
    # the two steps fluctuate together, so that probes that are forgotten, which do so less, would be seen
    assert abs(few.prediction_covariance.values[0, 0, 1, 0]) > few.prediction_variance.values[0, 0]


# ---- the state that is counted is the state that is made --------------------------------------------------------------

KINDS = {name: problem for name, (problem, *_) in FAMILIES.items() if not problem.training.batches} | {
    "stream": stream(),
    "stream, three outputs": stream(outputs=3),
    "linear": some_problem(net=dmft.MLP(2, dmft.linear())),
    "linear stream": stream(dmft.linear()),
}


@pytest.mark.parametrize("draws", [3, 40, DIMENSIONS + 5])
def test_blank_normals_have_the_shapes_of_those_that_are_made(draws):
    made, blank = raw_normals.sobol(draws, 8, np.random.SeedSequence(0)), raw_normals.blank(draws, 8)
    assert jax.tree.structure(made) == jax.tree.structure(blank)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(made)] == [(a.shape, a.dtype) for a in jax.tree.leaves(blank)]


@pytest.mark.parametrize("name", KINDS)
@jax.enable_x64(True)
def test_memory_is_foreseen_whether_normals_are_stored_or_not(name, monkeypatch):
    """From the very state that a run begins with, in shapes: a step may have fewer rows than inputs have directions."""
    problem = KINDS[name]
    size = None if problem.network.activation.name == "linear" else 64
    for joint, sharpness in ((True, False), (False, False), (True, True)):
        steps = np.arange(problem.training.steps + 1)

        def estimate(joint=joint, sharpness=sharpness, steps=steps):
            run = Run(problem, steps, size, 1e-3, False, joint=joint, curvature=(False,) * sharpness)
            return memory_estimate(run, run.first_capacity)[0]

        stored = estimate()
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "STORED_NORMALS", 0)
            anew = estimate()
        assert anew == stored if size is None else 0 < anew < stored


@pytest.mark.slow
def test_normals_of_a_stream_that_are_made_anew_are_those_that_are_kept(monkeypatch):
    kept = dmft.solve(stream(), **FEW)
    monkeypatch.setattr(run_module, "STORED_NORMALS", 0)
    anew = dmft.solve(stream(), **FEW)
    assert anew.attrs["memory_estimate"] < kept.attrs["memory_estimate"]
    same(anew, kept, atol=1e-11)  # products in another order: rounding
    assert abs(dmft.solve(stream(), **FEW, seed=1).prediction - kept.prediction).max() > 1e-4


# ---- no hidden matrix --------------------------------------------------------------------------------------------------


def test_a_single_hidden_layer_has_nothing_to_forget():
    """However few directions it may keep."""
    problem = dataclasses.replace(stream(), network=dmft.MLP(1, dmft.tanh(0.8), 1.3, centered=False))
    whole = dmft.solve(problem, **FEW)
    bounded = dmft.solve(problem, directions=2 * BATCH, **FEW)
    assert bounded.equals(whole)
    assert bounded.attrs | {"created": ""} == whole.attrs | {"created": ""}
    assert dmft.plan(problem, directions=2 * BATCH, **FEW).directions == bounded.attrs["directions"] == 0
    # a second one has
    runs = (Run(each, np.arange(STEPS + 1), 64, 1e-3, False, joint=False) for each in (problem, stream()))
    assert [_forgetting(run, 2 * BATCH).kept for run in runs] == [None, 2 * BATCH]
    assert abs(dmft.solve(problem, seed=1, **FEW).prediction - whole.prediction).max() > 1e-4


# ---- few particles ---------------------------------------------------------------------------------------------------


def test_a_distance_below_the_noise_is_said_to_be_so():
    found = {"in_law": "networks of width 16", "distance_from_limit_of": "prediction", "distance_from_limit_noise": 0.1}
    assert "limit's by less than the noise, 0.1 (root" in second_runs.said(found | {"distance_from_limit": 0.0})
    assert "limit's by about 0.3 +- 0.1 (root" in second_runs.said(found | {"distance_from_limit": 0.3})
    assert "limit's much: half as many" in second_runs.said(found | {"distance_from_limit": np.inf})


@pytest.mark.slow
def test_few_particles_say_what_they_are_and_how_far_from_the_limit():
    problem = stream()
    with pytest.warns(
        UserWarning, match=r"is, in law, .* of width 16, whose prediction differs .* by about 0\.\d+ \+-"
    ):
        crowded = dmft.solve(problem, particles=16, scrambles=64)
    limit = dmft.solve(problem, particles=2048, scrambles=4)
    assert "in_law" not in limit.attrs
    assert crowded.attrs["in_law"] == "networks of width 16"
    assert crowded.attrs["distance_from_limit_of"] == "prediction"
    true = np.sqrt(((crowded.prediction - limit.prediction) ** 2).mean() - (crowded.prediction_se**2).mean()).item()
    found, noise = (crowded.attrs[f"distance_from_limit{kind}"] for kind in ("", "_noise"))
    assert abs(found - true) < 3 * noise
    # it is far more than what the scrambles scatter
    assert found > 3 * crowded.prediction_se.values.mean()


@partial(jax.jit, static_argnames="count")
def rows_of(normals, start, count):
    return normals.rows(start, count)


def test_doubled_particles_are_half_as_many():
    """In the compiled code of twice as many, and in the pseudo-random tail of their normals."""
    problem = stream()
    runs = (Run(problem, np.arange(3), 64, 1e-3, False, doubled=True), Run(problem, np.arange(3), 32, 1e-3, False))
    doubled, half = (run.network(64, np.random.SeedSequence(2)).populations for run in runs)
    for a, b in zip(doubled, half, strict=True):
        np.testing.assert_array_equal(a.normals.values, np.tile(b.normals.values, 2))
    source = raw_normals.sobol(30, 8, np.random.SeedSequence(0)).doubled().with_tail()
    rows = rows_of(source, 25, count=10)  # five of them beyond the last
    np.testing.assert_array_equal(rows[:, :4], rows[:, 4:])
    assert len(np.unique(rows)) == 40
    # of runs that forget, with the table of normals and beyond it
    (kept, *_) = Run(problem, np.arange(3), 64, 1e-3, False, doubled=True, kept=8).populations(
        64, np.random.SeedSequence(2)
    )
    beyond = rows_of(kept.normals, np.int32(len(kept.normals.values)), count=5)
    np.testing.assert_array_equal(beyond[:, :32], beyond[:, 32:])


def test_coordinates_of_many_samples_are_their_features_without_those_that_vanish():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((coordinates.MANY + 1, 6)) * [1, 0, 3, 1e-9, 2, 0.5]
    problem = dmft.Problem(dmft.MLP(2, bias=0.5), dmft.Task(x, np.sign(x[:, 0])), dmft.GradientDescent(0.1, 1))
    X, basis = input_coordinates(problem)
    assert X.shape == (len(x), 5)
    np.testing.assert_allclose(X @ X[:9].T, x @ x[:9].T / 6 + 0.25, atol=1e-12)
    np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=1e-15)
    few, _ = input_coordinates(dataclasses.replace(problem, task=dmft.Task(x[:99], np.sign(x[:99, 0]))))
    assert few.shape == (99, 5)
    np.testing.assert_allclose(few @ few.T, X[:99] @ X[:99].T, atol=1e-12)


def test_coordinates_of_the_same_inputs_are_made_once(monkeypatch):
    made, qr = [], coordinates.qr
    monkeypatch.setattr(coordinates, "qr", lambda *given, **named: made.append(given) or qr(*given, **named))
    x, y = np.random.default_rng(1).standard_normal((4, 6)), np.ones(4)

    def kernel(x, bias=0.5, rate=0.1):
        problem = dmft.Problem(dmft.MLP(2, bias=bias), dmft.Task(x, y), dmft.GradientDescent(rate, 1))
        X, directions = input_coordinates(problem)
        np.testing.assert_allclose(directions @ directions.T, np.eye(4), atol=1e-14)
        np.testing.assert_allclose(X @ X.T, x @ x.T / 6 + bias**2, atol=1e-13)
        return len(made)

    assert [kernel(x), kernel(x.copy()), kernel(x, rate=0.2)] == [1, 1, 1]
    # others anew, however near: of another bias, and of inputs that differ in the last digit
    assert [kernel(x, bias=0.4), kernel(np.nextafter(x, 9), bias=0.4), kernel(x)] == [2, 3, 4]
    # of large inputs none are kept
    monkeypatch.setattr(coordinates, "KEPT", x.nbytes)
    assert [kernel(x), kernel(x)] == [5, 6]
