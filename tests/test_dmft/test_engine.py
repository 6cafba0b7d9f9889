"""The engine: one training code, explicit or revealed matrices; each claim of `engine/matrix.py` by itself."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dmft
import finite_nets
from dmft.engine import basis, loop, matrix, network, population
from dmft.engine import normals as raw_normals
from dmft.engine.rows import Rows
from dmft.specs.parameterization import input_scale
from finite_nets.device.precision import PRECISIONS
from finite_nets.training.perceptrons import initialise

EXACT = 1e-7  # tolerance that drops nothing but rounding


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normals(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@jax.jit
def inner(crowd, a, b):
    return crowd.inner(a, b)


# ---- basis ---------------------------------------------------------------------------------------------------------


@jax.jit
def decomposed(v, Q, crowd, tolerance):
    return basis.decompose(v, Rows(Q), crowd, tolerance)


def on_host(state):
    return jax.tree.map(np.asarray, state)


def test_decomposition_is_exact_and_orthonormal_whatever_is_new():
    crowd = population.particles(np.zeros((0, 200)))
    Q = np.asarray(decomposed(normals(7, 200), np.zeros((0, 200)), crowd, EXACT).q)
    # of five vectors one is known, one is zero, one repeats another, one is nearly known
    fresh = normals(2, 200, seed=1)
    v = np.stack([Q[2] * 3, fresh[0], np.zeros(200), fresh[0] * 2, Q[1] + 1e-5 * fresh[1]])
    d = on_host(decomposed(v, Q, crowd, EXACT))
    assert d.rank == 2
    np.testing.assert_allclose(d.known @ Q + d.R @ d.q, v, atol=1e-13)
    everything = np.concatenate([Q, d.q[:2]])
    # rounding 1e-16 over a new part of 1e-5, orthogonalised twice
    np.testing.assert_allclose(inner(crowd, everything, everything), np.eye(9), atol=1e-13)
    assert not np.any(d.q[2:])
    assert not np.any(d.R[:, 2:])


@pytest.mark.parametrize("tolerance", [1e-7, 1e-300])
def test_copies_of_vectors_are_no_new_directions_at_any_tolerance(tolerance):
    crowd = population.particles(np.zeros((0, 200)))
    Q = np.asarray(decomposed(normals(7, 200), np.zeros((0, 200)), crowd, tolerance).q)
    d = decomposed(normals(5, 7, seed=4) @ Q, Q, crowd, tolerance)
    assert d.rank == 0
    assert np.isfinite(d.known).all()


def test_tolerance_drops_what_is_smaller_and_keeps_what_is_larger():
    crowd = population.particles(np.zeros((0, 200)))
    Q = np.asarray(decomposed(normals(7, 200), np.zeros((0, 200)), crowd, EXACT).q)
    new = np.zeros((5, 200))
    new[2] = normals(200, seed=3)
    for size, rank in ((2e-2, 1), (5e-3, 0)):
        d = decomposed(Q[:5] + size * new, Q, crowd, 1e-2)
        assert d.rank == rank


# ---- one matrix ----------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="transposed")
def applied(w, v, source, target, transposed=False):
    return (w.apply_t if transposed else w.apply)(v, source, target)


@jax.jit
def added(w, v, u, c):
    """After a step that adds the outer products of rows with these coordinates, with the weights c."""
    change = w.outer(v, u * c[:, None])
    return dataclasses.replace(w, trained=jax.tree.map(jnp.add, w.trained, change))


def reveal(S=300, seed=0, tolerance=EXACT, project=True):
    """A matrix after two blocks forward and two backward, with what it was asked and what it answered."""
    source, target = (population.particles(normals(40, S, seed=seed + i)) for i in (1, 2))
    w = matrix.revealed(S, S, (12, 12), tolerance, project=project)
    asked, answered = {"v": [], "u": []}, {"v": [], "u": []}
    for i in range(2):
        v, u = normals(3, S, seed=seed + 10 + i), normals(3, S, seed=seed + 20 + i)
        # later blocks overlap with earlier ones and with images: the memory of W is used
        v = v + sum(asked["v"], 0 * v) + sum(answered["u"], 0 * v)
        u = u + sum(asked["u"], 0 * u) + sum(answered["v"], 0 * u)
        w, target, image, _ = applied(w, v, source, target)
        asked["v"].append(v)
        answered["v"].append(np.asarray(image))
        w, source, image, _ = applied(w, u, target, source, transposed=True)
        asked["u"].append(u)
        answered["u"].append(np.asarray(image))
    return w, source, target, asked, answered


def test_a_revealed_matrix_is_one_linear_operator_with_its_transpose():
    w, source, target, asked, answered = reveal()
    # <u, W v> = <W^T u, v> between all that was asked, although nothing but images is stored
    for v, wv in zip(asked["v"], answered["v"], strict=True):
        for u, wu in zip(asked["u"], answered["u"], strict=True):
            np.testing.assert_allclose(inner(target, u, wv), inner(source, wu, v), atol=1e-11)
    # and it answers the same question in the same way, without using new normals
    combination = 2 * asked["v"][0] - asked["v"][1]
    after, spent, image, _ = applied(w, combination, source, target)
    np.testing.assert_allclose(image, 2 * answered["v"][0] - answered["v"][1], atol=1e-10)
    assert spent.used == target.used
    np.testing.assert_array_equal(after.ranks, w.ranks)


def test_without_the_projection_the_operator_contradicts_itself():
    _, source, target, asked, answered = reveal(project=False)
    one, other = inner(target, asked["u"][0], answered["v"][1]), inner(source, answered["u"][0], asked["v"][1])
    assert abs(np.subtract(one, other)).max() > 1e-2


def test_learning_adds_the_outer_product_on_both_sides():
    w, source, target, asked, answered = reveal()
    c = np.array([0.3, -1.0, 0.0])
    v, u = asked["v"][1], asked["u"][1]
    coordinates = applied(w, v, source, target)[3], applied(w, u, target, source, transposed=True)[3]
    learned = added(w, coordinates[0], coordinates[1], c)
    np.testing.assert_allclose(
        applied(learned, v, source, target)[2], answered["v"][1] + inner(source, v, v * c[:, None]) @ u, atol=1e-9
    )
    np.testing.assert_allclose(
        applied(learned, u, target, source, transposed=True)[2],
        answered["u"][1] + inner(target, u, u * c[:, None]) @ v,
        atol=1e-9,
    )


# ---- the whole step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [dmft.tanh(0.8), dmft.relu()], ids=str)
@pytest.mark.parametrize("centered", [True, False])
def test_with_explicit_matrices_the_engine_trains_an_ordinary_network(activation, centered):
    rng = np.random.default_rng(0)
    width, depth = 20, 3
    task = dmft.Task(rng.standard_normal((3, 5)), [-1, 1, 1], rng.standard_normal((2, 5)), [1, -1])
    problem = dmft.Problem(dmft.MLP(depth, activation, 1.5, centered), task, dmft.GradientDescent(0.5, 6))
    nets = finite_nets.train_ensemble(problem, widths=[width], seeds=[4], dtype="float64", two_time=True)

    weights = initialise(depth, 5, width, torch.tensor([4]), root_seed=0, precision=PRECISIONS["float64"])
    rule, form = loop.rule_of(problem), loop.form_of(problem)
    start = network.Network(
        # the input coordinates X span the inputs: W^0 x / sqrt(D) = X first
        reads=(jnp.asarray(np.linalg.lstsq(rule.inputs, task.x @ weights.first[0].numpy().T * input_scale(5))[0]),),
        matrices=tuple(matrix.Explicit(jnp.asarray(w[0].numpy())) for w in weights.hidden),
        readout=jnp.asarray(weights.readout[0].numpy()).reshape(1, width),
        populations=tuple(population.particles(np.zeros((0, width))) for _ in range(depth)),
        offset=jnp.asarray(np.zeros((5, 1))),
        sketch=form.sketch,
    )
    room = loop.empty_history(start, rule, form, range(7), two_time=True)
    end, history = loop.advance(start, room, rule, 0, 7, form=form)
    # the same arithmetic in another order: rounding
    same = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    same(history.vitals.prediction, nets.prediction[0, 0])
    seen = loop.recorded(end, history, rule, form)
    kernels = ("feature_kernel", "gradient_kernel", "ntk", "feature_kernel_two_time", "gradient_kernel_two_time")
    assert set(seen) == set(kernels)
    for name in kernels:
        same(seen[name], nets[name][0, 0])


def in_law(problem, width, count, *, project, seed=0):
    """Predictions (member, step, sample) of networks of `width` neurons sampled by revealing, with no weight matrices."""
    last, samples = problem.training.steps, problem.task.n_samples
    capacity = samples * (last + 1)
    rule, form = loop.rule_of(problem), loop.form_of(problem)

    def one(raw):
        crowd = [population.particles(z) for z in raw]
        start = loop.limit_network(rule, form, crowd, EXACT, capacity=capacity, project=project)
        room = loop.empty_history(start, rule, form, [last])
        _, history = loop.advance(start, room, rule, 0, last + 1, form=form)
        return history.vitals.prediction

    rng = np.random.default_rng(seed)
    raw = tuple(jnp.asarray(rng.standard_normal((count, n, width))) for n in loop.draws_needed(rule, form, capacity))
    return np.asarray(jax.jit(jax.vmap(one))(raw))


def variance_z(a, b):
    """z-scores between the variances of two samples, with errors from fourth moments."""
    variances, errors = [], []
    for x in (a, b):
        centred = x - x.mean(0)
        variances.append(x.var(0, ddof=1))
        errors.append((centred**4).mean(0) - variances[-1] ** 2)
    return (variances[0] - variances[1]) / np.sqrt(errors[0] / len(a) + errors[1] / len(b))


@pytest.fixture(scope="module")
def small_problem():
    x = np.random.default_rng(0).standard_normal((3, 25))
    network = dmft.MLP(2, dmft.tanh(0.8), 1.0)
    return dmft.Problem(network, dmft.Task(x, [-1, 1, 1]), dmft.GradientDescent(0.6, 5))


def test_a_finite_population_is_in_law_a_network_of_that_width(small_problem):
    count, width = 3000, 24
    nets = finite_nets.train_ensemble(
        small_problem, widths=[width], seeds=count, observables=["prediction"], dtype="float64"
    )
    trained = nets.prediction.values[0]
    sampled = in_law(small_problem, width, count, project=True)
    # 15 numbers (steps 1..5, three samples): 4.5 standard errors leave a chance of 1e-4 for each kind
    mean_z = (sampled - trained)[:, 1:].mean(0) / np.sqrt((sampled.var(0) + trained.var(0))[1:] / count)
    assert abs(mean_z).max() < 4.5
    assert abs(variance_z(sampled[:, 1:], trained[:, 1:])).max() < 4.5

    # twin, of half as many: without the projection the variance after one step comes out several times too large
    unprojected = in_law(small_problem, width, count // 2, project=False)
    ratio = unprojected[:, 1].var(0) / trained[:, 1].var(0)
    assert ratio.min() > 3
    assert abs(variance_z(unprojected[:, 1:], trained[:, 1:])).max() > 14


def test_compiled_code_does_not_grow_with_the_number_of_steps(small_problem):
    def size(last):
        problem = dataclasses.replace(small_problem, training=dmft.GradientDescent(0.6, 500))
        rule, form = loop.rule_of(problem), loop.form_of(problem)

        def begun():
            crowd = [population.particles(jnp.zeros((n, 16))) for n in loop.draws_needed(rule, form, 40)]
            start = loop.limit_network(rule, form, crowd, 1e-3, capacity=40)
            return start, loop.empty_history(start, rule, form, [last])

        text = loop.advance.jitted.lower(*jax.eval_shape(begun), rule, 0, last + 1, form=form).as_text()
        return text.count("\n")

    assert size(5) == size(500)


def test_sobol_normals_have_the_moments_of_normals_and_a_pseudo_random_tail():
    seeds = np.random.SeedSequence(3)
    z = raw_normals.stored(raw_normals.sobol(40, 4096, seeds))
    np.testing.assert_allclose(z @ z.T / 4096, np.eye(40), atol=5e-2)
    assert abs(z.mean(1)).max() < 2e-3  # far below the 1/sqrt(4096) = 1.6e-2 of independent points
    long = raw_normals.sobol(21_210, 2, seeds)
    rows = jax.jit(partial(raw_normals.Sobol.rows, count=15))
    across = rows(long, 21_195)
    # the last dimensions, and the tail
    np.testing.assert_allclose(across[:6], rows(long, 21_186)[9:], rtol=1e-14)
    np.testing.assert_allclose(across[6:], rows(long, 21_201)[:9], rtol=1e-14)
    assert np.isfinite(across).all()
    assert len(np.unique(across)) == 30
