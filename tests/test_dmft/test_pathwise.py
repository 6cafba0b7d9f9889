"""Responses from tangents of paths: against conditioning (`dmft.solve`), trained networks, and code of another kind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import qmc

import dmft
from conftest import first_of, reference_problem
from dmft.errors import DivergenceError
from dmft.limits import pathwise
from dmft.limits.by_paths import limit_by_paths
from dmft.limits.pathwise import Terms, bytes_needed, draws_needed, pathwise_limit
from dmft.specs.parameterization import input_scale, output_scale
from oracles import parameter_rate

QUANTITIES = ("prediction", "feature_kernel", "gradient_kernel", "ntk")
PARTICLES = 512
BROKEN = [Terms(forward=0.0), Terms(backward=0.0), Terms(equal_time=0.0)]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def small_problem(depth=2, activation=None, n_test=1, **other):
    x = np.random.default_rng(1).standard_normal((2 + n_test, 6))
    test = {"x_test": x[2:], "y_test": np.ones(n_test)} if n_test else {}
    network = dmft.MLP(depth, activation or dmft.tanh(0.8), gamma0=1.5)
    return dmft.Problem(
        network,
        dmft.Task(x[:2], [1.0, -1.0], **test),
        dmft.GradientDescent(**{"learning_rate": 0.8, "steps": 4} | other),
    )


def normals(problem, seed, particles=PARTICLES):
    """One scrambled Sobol sequence for each layer; half a unit of 2^-30 keeps quantiles finite."""
    streams = enumerate(draws_needed(problem))
    sequences = [qmc.Sobol(n, bits=30, rng=np.random.default_rng([seed, layer])) for layer, n in streams]
    return [ndtri(sequence.random(particles) + 2.0**-31).T for sequence in sequences]


def scrambles(problem, terms=None, count=4):
    """Mean and standard error of the mean, by quantity."""
    runs = [pathwise._limit(problem, normals(problem, seed), 1e-12, terms or Terms()) for seed in range(count)]
    found = {name: np.stack([run[name] for run in runs]) for name in QUANTITIES}
    return {name: (a.mean(0), a.std(0, ddof=1) / np.sqrt(count)) for name, a in found.items()}


def distances(found, limit):
    """For each quantity, rms difference over rms combined standard error: about 1 where two estimates agree."""
    z = {}
    for name, (mean, error) in found.items():
        combined = np.mean(error**2 + limit[f"{name}_se"].values ** 2)
        z[name] = float(np.sqrt(np.mean((mean - limit[name].values) ** 2) / combined))
    return z


@pytest.mark.parametrize("depth", first_of([3, 2]))
def test_both_estimators_of_the_responses_agree_and_every_part_of_them_is_needed(depth):
    problem = small_problem(depth)
    limit = dmft.solve(problem, particles=PARTICLES, scrambles=4)
    # four scrambles each, entries of one quantity correlated: like one Student t of 3 to 6 degrees of freedom
    assert max(distances(scrambles(problem), limit).values()) < 4
    for terms in BROKEN:
        # smallest seen is 30
        assert distances(scrambles(problem, terms), limit)["gradient_kernel"] > 10


def test_memory_of_momentum_decay_and_batches():
    given = {"momentum": 0.5, "weight_decay": 0.2, "batches": ((0, 1), (0, 1), (1, 0), (0, 1))}
    problem = small_problem(3, learning_rate=(0.4, 0.8, 0.4, 0.4), **given)
    limit = dmft.solve(problem, particles=PARTICLES, scrambles=4)
    assert max(distances(scrambles(problem), limit).values()) < 4  # as above
    for change in ({"momentum": 0.0}, {"weight_decay": 0.0}, {"batches": ((0,), (1,), (0,), (1,))}):
        other = dataclasses.replace(problem, training=dataclasses.replace(problem.training, **change))
        assert distances(scrambles(other), limit)["feature_kernel"] > 10


def test_linear_networks_match_their_exact_limit():
    # a small rate: at 0.8 this network overshoots, and all its errors are one number of heavy tails
    problem = small_problem(3, dmft.linear(), n_test=0, learning_rate=0.3)
    limit = dmft.solve(problem)
    # eight scrambles against exact numbers: like one Student t of 7 degrees of freedom
    assert max(distances(scrambles(problem, count=8), limit).values()) < 4
    assert distances(scrambles(problem, Terms(forward=0.0), count=8), limit)["prediction"] > 10


@pytest.mark.slow  # which `solve` is held to (`test_solver`), and these responses to `solve`
def test_trained_networks_extrapolated_to_infinite_width(reference):
    entries = reference["limit_and_bias"]["prediction"]
    steps = [int(step) for step in entries]
    means, errors = (np.array([entry[part] for entry in entries.values()]) for part in ("limit", "limit_se"))

    def distance(gamma0):
        mean, error = scrambles(reference_problem(gamma0))["prediction"]
        return np.sqrt(np.mean((mean[steps] - means) ** 2) / np.mean(error[steps] ** 2 + errors**2))

    assert distance(1.0) < 4  # as above
    assert distance(1.2) > 10


@pytest.mark.parametrize(
    ("loss", "rates"), [("squared", 0.8), ("logistic", (2.0, 1.0, 3.0, 1.5))], ids=["squared", "logistic, schedule"]
)
def test_one_hidden_layer_is_gradient_descent_of_as_many_neurons(loss, rates):
    """Depth 1 has no matrix between populations: S particles are a network of width S, differentiated here by JAX."""
    problem = dataclasses.replace(small_problem(1, learning_rate=rates), loss=loss)
    raw = normals(problem, seed=0, particles=64)
    expected = network_of_one_layer(problem, raw, problem.network.gamma0)
    found = pathwise_limit(problem, raw)["prediction"]
    # jitter 1e-12 in the input kernel, amplified by its inverse and by a few steps
    np.testing.assert_allclose(found, expected, atol=1e-10)
    other = network_of_one_layer(problem, raw, 1.01 * problem.network.gamma0)
    assert np.abs(found - other).max() > 1e-4


def network_of_one_layer(problem, raw, gamma0):
    """Predictions (step, sample) of a network whose initial fields are those of the particles."""
    task, width = problem.task, raw[0].shape[1]
    x, y, a = jnp.asarray(task.x), jnp.asarray(task.y_train), problem.network.activation.gain
    u = np.linalg.cholesky(task.input_kernel) @ raw[0][: task.n_samples]
    W = (np.linalg.pinv(task.x) @ u / input_scale(task.dimension)).T
    weights = (jnp.asarray(W), jnp.asarray(raw[0][task.n_samples]))

    @jax.jit
    def raw_output(weights):
        W, w = weights
        return output_scale(gamma0, width) * jnp.tanh(a * x @ W.T * input_scale(task.dimension)) / a @ w

    start = raw_output(weights)

    def loss(weights):
        f = (raw_output(weights) - start)[: task.n_train]
        return jnp.mean((f - y) ** 2 / 2 if problem.loss == "squared" else jnp.log1p(jnp.exp(-y * f)))

    @jax.jit
    def stepped(weights, rate):
        after = jax.tree.map(lambda p, d: p - rate * d, weights, jax.grad(loss)(weights))
        return after, raw_output(after) - start

    seen = [np.zeros(len(start))]
    for eta in problem.training.rates:
        weights, f = stepped(weights, parameter_rate(eta, gamma0, width))
        seen.append(f)
    return np.stack(seen)


def test_copies_of_a_sample_make_singular_kernels_and_the_same_predictions():
    x = np.random.default_rng(2).standard_normal((2, 6))
    task = dmft.Task(x[[0, 1, 0]], [1.0, -1.0, 1.0])
    problem = dmft.Problem(dmft.MLP(2, dmft.tanh(0.8)), task, dmft.GradientDescent(0.8, steps=4))

    def gap(jitter):
        f = np.asarray(pathwise_limit(problem, normals(problem, 0), jitter=jitter)["prediction"])
        return np.abs(f[:, 0] - f[:, 2]).max()

    # copies differ by Gaussians of relative size sqrt(jitter)
    assert gap(1e-12) < 1e-5
    assert gap(1e-2) > 1e-4


def test_shapes_are_those_of_the_schema_and_estimates_of_size_those_of_arrays():
    problem = small_problem(3)
    found = pathwise_limit(problem, normals(problem, 0, particles=8))
    sizes = {"step": 5, "sample": 3, "sample_2": 3, "layer": 3}
    expected = {name: tuple(sizes[dim] for dim in dmft.schema.quantities()[name].dims) for name in QUANTITIES}
    assert {name: a.shape for name, a in found.items()} == expected
    assert draws_needed(problem) == [3 + 15, 2 * 15, 1 + 15]
    # one rounding of an output of order one
    np.testing.assert_allclose(found["prediction"][0], 0, atol=1e-15)
    # eight tangents of 15 x 15 rows, 8 particles, 8 bytes; with the rows of a step and processes less than twice that
    assert 1 <= bytes_needed(problem, 8) / (8 * 15 * 15 * 8 * 8) < 2


REFUSED = {
    "kink": ({"network": dmft.MLP(2, dmft.relu())}, "relu.*has a kink.*softplus"),
    "residual": ({"network": dmft.ResidualMLP(2)}, "ResidualMLP.*are for dmft.MLP"),
    "flow": ({"training": dmft.GradientFlow(1.0, 0.1, 4)}, "GradientFlow; .*dmft.GradientDescent"),
    "stream": (
        {
            "network": dmft.MLP(2, centered=False),
            "training": dmft.GradientDescent(0.1, 2, batches=((0,), (1,)), observe="test"),
        },
        'observe="test": .*observe="all"',
    ),
    "outputs": ({"task": dmft.Task(np.eye(2), np.eye(2))}, r"y_train has shape \(2, 2\).*single output"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_out_of_scope_is_refused(change, message):
    problem = dataclasses.replace(small_problem(), **change)
    with pytest.raises(ValueError, match=message):
        pathwise_limit(problem, [])


def test_normals_of_another_shape_are_refused():
    problem = small_problem()
    raw = normals(problem, 0, particles=8)
    with pytest.raises(ValueError, match="normals are for 1 layers; the network has depth=2"):
        pathwise_limit(problem, raw[:1])
    with pytest.raises(ValueError, match=r"layer 2 have shape \(15, 8\).*at least 16 draws"):
        pathwise_limit(problem, [raw[0], raw[1][1:]])
    with pytest.raises(ValueError, match=r"layer 2 have shape \(16, 7\).*as many particles in every layer"):
        pathwise_limit(problem, [raw[0], raw[1][:, 1:]])


def test_exploding_paths_are_reported_by_the_solver():
    x = np.random.default_rng(0).standard_normal((2, 5))
    problem = dmft.Problem(dmft.MLP(2, dmft.tanh(0.8)), dmft.Task(x, [-1.0, 1.0]), dmft.GradientDescent(50.0, 4))
    with pytest.raises(DivergenceError, match="paths diverge.*Lower learning_rate=50"):
        limit_by_paths(problem, particles=64, scrambles=2)
