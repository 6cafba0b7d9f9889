"""Closed-form limits against quadrature, sampled networks, linearised and explicit training, known solutions."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import integrate

import dmft
from dmft.errors import DivergenceError, SchemaError
from dmft.limits import distance_from_lazy, frozen_kernels, gaussian_averages, lazy_limit, two_layer_linear
from dmft.limits.distance import alignment, relative_change
from dmft.limits.gaussian import diagonal_error, evaluate, quadrature
from dmft.specs import loss, parameterization
from oracles import parameter_rate

ROUNDING = 1e-11  # a few hundred operations on numbers of order one, each of them good to 1e-16, and some room
ACTIVATIONS = [dmft.tanh(0.8), dmft.softplus(1.5), dmft.gelu(), dmft.erf(), dmft.relu(), dmft.linear()]


def covariance(n=4, scale=1.0, seed=0):
    """Of unequal variances around `scale`, correlations of both signs."""
    a = np.random.default_rng(seed).standard_normal((n, n + 2))
    return scale * a @ a.T / (n + 2)


def gauss_hermite(activation, K, nodes):
    """(E phi phi', E phi' phi') pair by pair, on Gauss-Hermite nodes."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    z1, z2, w = *np.meshgrid(z, z, indexing="ij"), np.outer(w, w) / (2 * math.pi)
    found = np.empty((2, *K.shape))
    for i, j in np.ndindex(K.shape):
        (a, _), (c, b) = (
            np.linalg.cholesky(K[np.ix_([i, j], [i, j])]) if i != j else np.sqrt(K[i, i]) * np.eye(2)[[0, 0]]
        )
        found[:, i, j] = [(u * v * w).sum() for u, v in zip(evaluate(activation, a * z1), evaluate(activation, c * z1 + b * z2), strict=True)]  # fmt: skip
    return found


# ---- averages over Gaussian fields ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation", [dmft.tanh(0.8), dmft.softplus(1.5), dmft.gelu(), dmft.erf(), dmft.linear()], ids=lambda a: a.name
)
def test_averages_agree_with_gauss_hermite_quadrature(activation):
    K = covariance(scale=0.6)
    ours, theirs = gaussian_averages(activation, K), gauss_hermite(activation, K, 80)
    # 80 Gauss-Hermite nodes: tanh of gain .8 on these variances is off by 1e-9 (their error, seen at 60, 80, 100 nodes)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)
    if activation.name != "linear":
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(gaussian_averages(activation, 1.01 * K), theirs, atol=1e-8)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
def test_averages_agree_with_monte_carlo(activation):
    K = covariance(3)
    h = np.random.default_rng(1).standard_normal((200_000, 3)) @ np.linalg.cholesky(K).T
    for average, values in zip(gaussian_averages(activation, K), evaluate(activation, h), strict=True):
        products = values[:, :, None] * values[:, None, :]
        se = products.std(axis=0) / math.sqrt(len(h))
        # 5 standard errors, plus rounding where the products do not vary
        assert (abs(products.mean(axis=0) - average) < 5 * se + ROUNDING).all()


def test_broken_closed_forms_are_far_from_monte_carlo():
    K = covariance(3)
    h = np.random.default_rng(1).standard_normal((200_000, 3)) @ np.linalg.cholesky(K).T
    wrong = {
        "relu": gaussian_averages(dmft.relu(), K)[0] / 2,  # without the factor sqrt 2
        "erf": 2 / np.pi * np.arcsin(K / np.sqrt(np.outer(1 + K.diagonal(), 1 + K.diagonal()))),  # erf(h / sqrt 2)
    }
    for name, average in wrong.items():
        values = evaluate(dmft.Activation(name), h)[0]
        products = values[:, :, None] * values[:, None, :]
        se = products.std(axis=0) / math.sqrt(len(h))
        assert (abs(products.mean(axis=0) - average) > 5 * se).all()


def test_relu_agrees_with_quadrature_to_the_error_of_a_kink():
    K = covariance(3)
    ours = gaussian_averages(dmft.relu(), K)
    by_grid = quadrature(dmft.relu(), K, 200)
    # spacing .085: a kink costs its square, 7e-3 times the density .4 there and curvature 2; a jump costs the spacing
    np.testing.assert_allclose(ours[0], by_grid[0], atol=7e-3)
    np.testing.assert_allclose(ours[1], by_grid[1], atol=0.085)
    with pytest.raises(AssertionError):  # arc-cosine of order 0 in place of 1
        np.testing.assert_allclose(ours[1], by_grid[0], atol=0.085)


@pytest.mark.parametrize(
    ("activation", "bound"),
    [(dmft.tanh(), 1e-11), (dmft.softplus(), 1e-13), (dmft.gelu(), 1e-12)],
    ids=lambda a: getattr(a, "name", ""),
)
def test_quadrature_converges_geometrically_and_knows_its_error(activation, bound):
    K = covariance(4)
    K = K / K.diagonal().max()  # the largest standard deviation is 1, as in the table of measured errors
    exact = quadrature(activation, K, 256)
    errors = [
        max(abs(a - b).max() for a, b in zip(quadrature(activation, K, n), exact, strict=True)) for n in (16, 32, 64)
    ]
    # geometric: doubling the nodes squares the error; 10 for the factor in front of the exponential
    assert errors[1] < 10 * errors[0] ** 1.5
    assert errors[2] < bound  # measured 8e-12, 3e-15, 1e-14
    assert errors[0] > 1e3 * bound  # so few nodes are not enough
    # the estimate is relative to averages between 1/5 and 1, at worst an underestimate of 5
    assert diagonal_error(activation, K.diagonal(), 16) > errors[0] / 5


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
def test_perfectly_correlated_and_vanishing_fields(activation):
    scales = np.array([1.0, 0.5, -2.0, 0.0])  # the same normal four times
    feature, slope = gaussian_averages(activation, np.outer(scales, scales))
    z = np.linspace(-9, 9, 40_001)  # trapezoids; spacing 4.5e-4, so that a jump of phi' costs 4.5e-4 * .4 * 2
    w = np.exp(-(z**2) / 2)
    phi, dphi = evaluate(activation, scales[:, None] * z)
    np.testing.assert_allclose(feature, (phi * w) @ phi.T / w.sum(), atol=1e-6)
    np.testing.assert_allclose(slope, (dphi * w) @ dphi.T / w.sum(), atol=4e-4)
    apart = gaussian_averages(activation, np.outer(scales, scales) * (0.9 + 0.1 * np.eye(4)))[0]
    assert abs(apart - feature).max() > 1e-2  # correlations of .9 are told from perfect ones


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.ones((2, 3)), "as many rows as columns"),
        ([[1.0, 0.5], [0.4, 1.0]], "symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "semidefinite"),
        ([[-1.0, 0.0], [0.0, 1.0]], "variance -1"),
        ([[np.nan, 0.0], [0.0, 1.0]], "non-finite"),
    ],
)
def test_what_is_not_a_covariance_is_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        gaussian_averages(dmft.tanh(), bad)


# ---- kernels at initialisation -------------------------------------------------------------------------------------


def sampled_network(network, x, width, rng):
    """Output of a random network, and its parameters: W^0, W^1 .. W^{L-1}, w."""
    shapes = [(width, x.shape[1])] + [(width, width)] * (network.depth - 1) + [(width,)]
    return [rng.standard_normal(shape) for shape in shapes]


def forward(network, x, parameters):
    """h^l of every layer, (neuron, sample), and f (sample,)."""
    width = len(parameters[-1])
    h = [parameters[0] @ x.T * parameterization.input_scale(x.shape[1])]
    for W in parameters[1:-1]:
        image = W @ evaluate(network.activation, h[-1])[0] * parameterization.hidden_scale(width)
        h.append(h[-1] + network.branch * image if network.residual else image)
    return h, parameters[-1] @ evaluate(network.activation, h[-1])[0] * parameterization.output_scale(
        network.gamma0, width
    )


def empirical_kernels(network, x, parameters):
    """Phi^l, G^l (layer, sample, sample_2) and K of one network, by the chain rule."""
    width = len(parameters[-1])
    h, _ = forward(network, x, parameters)
    phi, slope = zip(*(evaluate(network.activation, field) for field in h), strict=True)
    g = [slope[-1] * parameters[-1][:, None]]
    for W, d in zip(parameters[-2:0:-1], slope[-2::-1], strict=True):
        back = d * (W.T @ g[0]) * parameterization.hidden_scale(width)
        g.insert(0, g[0] + network.branch * back if network.residual else back)
    features = np.array([p.T @ p / width for p in phi])
    gradients = np.array([p.T @ p / width for p in g])
    between = network.branch**2 * (gradients[1:] * features[:-1]).sum(axis=0)
    return features, gradients, gradients[0] * parameterization.input_kernel(x) + between + features[-1]


NETWORKS = [
    dmft.MLP(3, dmft.tanh(0.8)),
    dmft.MLP(2, dmft.relu()),
    dmft.ResidualMLP(3, dmft.tanh(0.8), branch_scale=0.7),
    dmft.ResidualMLP(3, dmft.relu(), branch_scale=0.5),
    dmft.ResidualMLP(1, dmft.erf()),
]


def label(network):
    return f"{type(network).__name__}{network.depth}{network.activation.name}"


@pytest.mark.parametrize("network", NETWORKS[::2], ids=label)
def test_kernels_of_the_sampled_networks_are_those_of_their_parameters(network):
    """gamma0^2 N J J^T, with J from central differences of the output, against the chain rule of `empirical_kernels`."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4))
    parameters = sampled_network(network, x, 5, rng)
    columns, step = [], 1e-5
    for W in parameters:
        for index in np.ndindex(W.shape):
            ends = []
            for sign in (1, -1):
                W[index] += sign * step
                ends.append(forward(network, x, parameters)[1])
                W[index] -= sign * step
            columns.append((ends[0] - ends[1]) / (2 * step))
    J = np.array(columns).T
    ntk = parameter_rate(1.0, network.gamma0, 5) * J @ J.T
    # central differences: step^2 and rounding / step, 1e-10 each, times derivatives of order 10
    np.testing.assert_allclose(empirical_kernels(network, x, parameters)[2], ntk, atol=1e-8)
    parameters[0][0] *= 1.1  # the weights of one neuron, off by a tenth
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(empirical_kernels(network, x, parameters)[2], ntk, atol=1e-4)


def z_scores(network, x, kernels):
    """Of the means over sampled networks: the largest of feature kernels, gradient kernels and NTK."""
    width, count = 800, 20
    rng = np.random.default_rng(7)
    samples = [empirical_kernels(network, x, sampled_network(network, x, width, rng)) for _ in range(count)]
    scores = []
    for ours, theirs in zip((kernels.feature, kernels.gradient, kernels.ntk), zip(*samples, strict=True), strict=True):
        values = np.array(theirs)
        se = values.std(axis=0, ddof=1) / math.sqrt(count)
        # a bias of 1/N, a few times the kernel, may come on top
        scores.append((abs(values.mean(axis=0) - ours) / (se + 2 * abs(ours) / width)).max())
    return np.array(scores)


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_kernels_agree_with_sampled_networks(network):
    x = np.random.default_rng(3).standard_normal((3, 6))
    kernels = frozen_kernels(network, parameterization.input_kernel(x))
    # t of 19 degrees of freedom in some 45 correlated entries: above 5 with probability 4e-3 at most
    assert (z_scores(network, x, kernels) < 5).all()


@pytest.mark.parametrize(
    "broken",
    [
        dmft.MLP(3, dmft.tanh(0.8)),  # no identity branch
        dmft.ResidualMLP(3, dmft.tanh(0.8), branch_scale=math.sqrt(0.7)),  # b in the place of b^2
        dmft.ResidualMLP(3, dmft.tanh(0.8), branch_scale=0.85 * 0.7),
    ],
    ids=("no identity", "b not squared", "b off by 15 %"),
)
def test_kernels_of_a_broken_recursion_do_not(broken):
    x = np.random.default_rng(3).standard_normal((3, 6))
    scores = z_scores(NETWORKS[2], x, frozen_kernels(broken, parameterization.input_kernel(x)))
    assert (scores[1:] > 5).all()  # gradient kernels and NTK
    assert scores.max() > 10


def test_depth_one_is_the_same_with_and_without_identity_branch():
    K = covariance()
    plain, residual = (frozen_kernels(kind(1, dmft.tanh()), K) for kind in (dmft.MLP, dmft.ResidualMLP))
    np.testing.assert_array_equal(plain.ntk, residual.ntk)


# ---- lazy dynamics -------------------------------------------------------------------------------------------------

P, P_TEST, D = 6, 3, 5
RNG = np.random.default_rng(5)
X, X_TEST = RNG.standard_normal((P, D)), RNG.standard_normal((P_TEST, D))
SIGNS = np.array([1.0, -1, 1, -1, -1, 1, 1, -1, 1])
CLASSES = np.eye(3)[[0, 1, 2, 1, 0, 2, 2, 0, 1]]
TARGETS = {
    "squared": SIGNS * 0.8,
    "logistic": SIGNS,
    "hinge": SIGNS,
    "cross_entropy": CLASSES,
    "squared, outputs": CLASSES - 0.3,
    "hinge, outputs": 2 * CLASSES - 1,
}
BATCHES = dmft.random_batches(P, 2, 12, seed=1)
DESCENTS = {
    "plain": dmft.GradientDescent(0.4, 12),
    "schedule": dmft.GradientDescent(tuple(np.linspace(0.6, 0.1, 12)), 12),
    "momentum": dmft.GradientDescent(0.1, 12, momentum=0.8),
    "batches": dmft.GradientDescent(tuple(np.linspace(0.6, 0.1, 12)), 12, momentum=0.5, batches=BATCHES),
    "euler": dmft.GradientFlow(0.5, tuple(np.linspace(0.2, 1, 12)), scheme="euler"),
}


def make(training, name="squared", network=None):
    y = TARGETS[name]
    task = dmft.Task(X, y[:P], X_TEST, y[P:])
    return dmft.Problem(network or dmft.MLP(2, dmft.tanh()), task, training, loss=name.split(",")[0])


def linearised(problem, ntk):
    """f (step, sample, output) of a linear model whose features have the Gram matrix `ntk`, trained parameter by parameter."""
    values, vectors = np.linalg.eigh(ntk)
    J = vectors * np.sqrt(values)
    y, training = problem.task.targets, problem.training
    theta, velocity, path = np.zeros((J.shape[1], y.shape[1])), 0.0, []
    momentum = getattr(training, "momentum", 0.0)
    for t in range(training.steps):
        f = J @ theta
        path.append(f)
        gradient = np.zeros_like(theta)
        for a in problem.batches[t]:
            delta = loss.descent(np, problem.loss, f[a : a + 1], y[a : a + 1])[0]
            gradient += np.outer(J[a], delta) / len(problem.batches[t])
        velocity = momentum * velocity + gradient
        theta = theta + training.rates[t] * velocity
    return np.array([*path, J @ theta])


@pytest.mark.parametrize("training", DESCENTS.values(), ids=DESCENTS)
@pytest.mark.parametrize("name", TARGETS)
def test_lazy_dynamics_are_those_of_a_linearised_model(name, training):
    problem = make(training, name)
    ntk = frozen_kernels(problem.network, problem.task.input_kernel).ntk
    path = linearised(problem, ntk)
    ours = lazy_limit(problem).prediction.values.reshape(path.shape)
    np.testing.assert_allclose(ours, path, atol=ROUNDING)
    # twin: rates off by a tenth
    faster = dataclasses.replace(training, learning_rate=tuple(1.1 * training.rates)) if isinstance(training, dmft.GradientDescent) else dataclasses.replace(training, learning_rate=0.55)  # fmt: skip
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ours, linearised(dataclasses.replace(problem, training=faster), ntk), atol=1e-3)


def test_momentum_and_batches_matter():
    problem = make(DESCENTS["batches"])
    ours = lazy_limit(problem).prediction
    for change in ({"momentum": 0.0}, {"batches": None}, {"batches": BATCHES[::-1]}):
        other = dataclasses.replace(problem, training=dataclasses.replace(problem.training, **change))
        assert abs(lazy_limit(other).prediction - ours).max() > 1e-2  # a thousandth of the targets would be visible


def test_lazy_limit_holds_what_the_schema_asks():
    problem = make(DESCENTS["plain"], "logistic", dmft.ResidualMLP(2, dmft.erf()))
    ds = lazy_limit(problem, save_steps=[0, 3, 12])
    names = {"prediction", "loss", "test_loss", "accuracy", "test_accuracy", "feature_kernel", "gradient_kernel", "ntk"}
    assert {n for n in ds.data_vars if not n.endswith("_se")} == names
    assert not any(ds[f"{n}_se"].any() for n in names)
    np.testing.assert_array_equal(ds.prediction, lazy_limit(problem).prediction.sel(step=[0, 3, 12]))
    assert (ds.ntk == ds.ntk.isel(step=0)).all()
    several = lazy_limit(make(DESCENTS["plain"], "cross_entropy"))
    assert "ntk" not in several
    assert several.prediction.dims == ("step", "sample", "output")


def test_lazy_limit_does_not_depend_on_gamma0_and_goes_through_a_file(tmp_path):
    few, many = (
        lazy_limit(make(DESCENTS["plain"], network=dmft.MLP(2, gamma0=g, centered=c)))
        for g, c in ((0.1, True), (3.0, False))
    )
    np.testing.assert_array_equal(few.prediction, many.prediction)
    stored = dmft.load(dmft.save(few, tmp_path / "lazy.nc"))
    np.testing.assert_array_equal(stored.ntk, few.ntk)


def test_a_stream_observed_on_test_samples_is_the_full_result_there():
    whole, stream = (
        make(
            dmft.GradientDescent(0.3, 3, batches=dmft.one_pass(P, 2), observe=observe),
            network=dmft.MLP(1, dmft.linear(), centered=False),
        )
        for observe in ("all", "test")
    )
    for limit in (lazy_limit, two_layer_linear):
        ours, all_samples = limit(stream), limit(whole)
        assert ours.sizes["sample"] == P_TEST
        for name in ("prediction", "test_loss", "feature_kernel", "ntk"):
            part = all_samples[name]
            for dim in ("sample", "sample_2"):
                part = part.sel({dim: slice(P, None)}) if dim in part.dims else part
            np.testing.assert_allclose(ours[name], part, atol=ROUNDING)


# ---- exact flows ---------------------------------------------------------------------------------------------------


def flow_errors(limit, problem, time_factor=1.0):
    """Largest distance of the exact flow from Euler steps 1/n as long, for two n, and from their extrapolation to none."""
    training = problem.training
    exact = limit(problem).prediction.values
    steps, rate = training.steps, float(training.rates[0]) * time_factor
    paths = []
    for n in (100, 200):
        euler = dmft.GradientDescent(rate / n, steps * n)
        paths.append(
            limit(dataclasses.replace(problem, training=euler), save_steps=range(0, steps * n + 1, n)).prediction.values
        )
    return [abs(path - exact).max() for path in (*paths, 2 * paths[1] - paths[0])]


@pytest.mark.parametrize("name", ["squared", "logistic", "cross_entropy", "squared, outputs"])
@pytest.mark.parametrize("limit", [lazy_limit, two_layer_linear])
def test_flow_is_what_fine_steps_extrapolate_to(limit, name):
    problem = make(dmft.GradientFlow(1.0, 0.8, steps=4), name, dmft.MLP(1, dmft.linear(), gamma0=1.5))
    coarse, fine, extrapolated = flow_errors(limit, problem)
    assert 1.8 < coarse / fine < 2.2  # first order in the step
    # what is left is of second order, (coarse - fine) squared up to a factor of order one; 1e-8 for the integrator
    assert extrapolated < 10 * coarse**2 + 1e-8
    broken = flow_errors(limit, problem, time_factor=1.05)
    assert broken[2] > 100 * (10 * coarse**2 + 1e-8)


@pytest.mark.parametrize("name", ["hinge", "hinge, outputs"])
def test_hinge_flow_is_what_fine_steps_approach(name):
    problem = make(dmft.GradientFlow(1.0, 2.0, steps=8), name)
    exact = lazy_limit(problem).prediction.values
    assert abs(exact * problem.task.y - 1)[-1, :P].min() < 1e-9  # samples do stay at the margin

    def distance(n, factor=1.0):
        euler = dmft.GradientDescent(2.0 / n * factor, 8 * n)
        return abs(
            lazy_limit(
                dataclasses.replace(problem, training=euler), save_steps=range(0, 8 * n + 1, n)
            ).prediction.values
            - exact
        ).max()

    # steps of 2/n push a sample past the margin by (2/n) K/P, K/P of order .1; measured .12 (2/n) at both n
    coarse = distance(250)
    assert coarse < 0.5 * 2.0 / 250
    assert distance(1000) < coarse / 3
    assert distance(250, 1.1) > 5 * 2.0 / 250


def test_lazy_flow_does_not_need_the_steps_between():
    problem = make(dmft.GradientFlow(1.0, 0.8, steps=9), "logistic")
    # integrator's tolerance of 1e-10, at some hundred steps
    np.testing.assert_allclose(
        lazy_limit(problem, save_steps=[2, 9]).prediction, lazy_limit(problem).prediction[[2, 9]], atol=1e-8
    )
    assert lazy_limit(problem, save_steps=[0]).prediction.values.tolist() == [[0.0] * (P + P_TEST)]


# ---- two-layer linear networks -------------------------------------------------------------------------------------


def orthogonal_network(problem, gamma0):
    """f (step, sample, output) and the NTK at every step of a network trained weight by weight.

    Its W^0 and w at initialisation have the Gram matrix N times 1 that infinite width would give, so that it is on the
    limit exactly.  The NTK is gamma0^2 N J J^T, from the derivatives of f in every weight.
    """
    task, training, C = problem.task, problem.training, problem.task.targets.shape[1]
    N, y, x = task.dimension + C, task.targets, task.x * parameterization.input_scale(task.dimension)
    Q = np.linalg.qr(np.random.default_rng(11).standard_normal((N, N)))[0] * math.sqrt(N)
    W, w = Q[:, : task.dimension], Q[:, task.dimension :]
    VW, Vw, f, paths, ntks = 0.0, 0.0, np.zeros_like(y), [], []
    scale = parameterization.output_scale(gamma0, N)
    by_ntk = isinstance(training, dmft.GradientFlow)
    momentum, decay = (getattr(training, name, 0.0) for name in ("momentum", "weight_decay"))
    for t in range(training.steps + 1):
        h = x @ W.T
        f = f if by_ntk else scale * h @ w
        J_w = scale * np.einsum("mn,cd->mcnd", h, np.eye(C))
        J_W = scale * np.einsum("nc,mi->mcni", w, x)
        J = np.concatenate([J_w.reshape(len(x), C, -1), J_W.reshape(len(x), C, -1)], axis=-1)
        ntk = parameter_rate(1.0, gamma0, N) * np.einsum("mcp,ndp->mcnd", J, J)
        paths.append(f)
        ntks.append(ntk)
        if t == training.steps:
            return np.array(paths), np.array(ntks)
        batch = problem.batches[t]
        delta = loss.descent(np, problem.loss, f[batch], y[batch]) / len(batch)
        force = parameter_rate(1.0, gamma0, N) * scale
        f = f + training.rates[t] * np.einsum("mcnd,nd->mc", ntk[:, :, batch], delta)
        VW = momentum * VW + force * w @ delta.T @ x[batch] - decay * W
        Vw = momentum * Vw + force * h[batch].T @ delta - decay * w
        W, w = W + training.rates[t] * VW, w + training.rates[t] * Vw
    return None


TRAININGS = DESCENTS | {
    "decay": dmft.GradientDescent(tuple(np.linspace(0.5, 0.2, 12)), 12, momentum=0.6, weight_decay=0.1, batches=BATCHES)
}


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("name", TARGETS)
def test_two_layer_linear_is_a_network_on_the_limit(name, training):
    problem = make(training, name, dmft.MLP(1, dmft.linear(), gamma0=1.5))
    ours = two_layer_linear(problem)
    f, ntk = orthogonal_network(problem, 1.5)
    np.testing.assert_allclose(ours.prediction.values.reshape(f.shape), f, atol=ROUNDING)
    np.testing.assert_allclose(ours.ntk.values.reshape(ntk.shape), ntk, atol=ROUNDING)
    broken, _ = orthogonal_network(problem, 1.2 * 1.5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ours.prediction.values.reshape(f.shape), broken, atol=1e-4)


def test_coordinates_of_few_samples_and_of_many_give_one_limit():
    """More features than samples, where coordinates come from a QR, against the same kernel K^x of few features."""
    network, training = dmft.MLP(1, dmft.linear(), gamma0=2.0), dmft.GradientDescent(0.5, 10, weight_decay=0.05)
    padded = np.hstack([X, np.zeros((P, 7))]) * math.sqrt(12 / 5)
    turned = padded @ np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0]
    few, many = (two_layer_linear(dmft.Problem(network, dmft.Task(x, SIGNS[:P]), training)) for x in (X, turned))
    np.testing.assert_allclose(few.prediction, many.prediction, atol=ROUNDING)
    unscaled = two_layer_linear(dmft.Problem(network, dmft.Task(turned / math.sqrt(12 / 5), SIGNS[:P]), training))
    assert abs(few.prediction - unscaled.prediction).max() > 1e-2


def one_sample(gamma0, training):
    network = dmft.MLP(1, dmft.linear(), gamma0=gamma0, centered=False)
    return dmft.Problem(network, dmft.Task([[1.0]], [1.0]), training)


def test_catapult_of_one_sample_with_a_large_rate():
    ds = two_layer_linear(one_sample(2.5, dmft.GradientDescent(0.2, 29)))
    assert ds.ntk.values[29, 0, 0] == pytest.approx(5.17659397, abs=5e-9)  # the digits of the reference
    richer = two_layer_linear(one_sample(2.6, dmft.GradientDescent(0.2, 29)))
    assert abs(richer.ntk.values[29, 0, 0] - 5.17659397) > 1e-2
    # "gamma0 = 5 ends in a 2-cycle": its deviation of .02 alternates in sign and shrinks slowly, gamma0 = 4 rests
    late = two_layer_linear(one_sample(5.0, dmft.GradientDescent(0.2, 300))).prediction.values[-3:, 0] - 1
    assert late[0] * late[1] < 0 < late[0] * late[2]
    assert abs(two_layer_linear(one_sample(4.0, dmft.GradientDescent(0.2, 300))).prediction.values[-1, 0] - 1) < 1e-12
    f, K, path = 0.0, 2.0, []
    for _ in range(30):
        path.append((f, K))
        delta, c = 1 - f, 0.2**2 * 2.5**2
        f, K = f + 0.2 * K * delta + c * f * delta**2, K + 4 * c / 0.2 * f * delta + c * delta**2 * K
    np.testing.assert_allclose(np.stack([ds.prediction[:, 0], ds.ntk[:, 0, 0]], axis=1), path, atol=ROUNDING)


@pytest.mark.parametrize("gamma0", [0.3, 1.0, 3.0])
def test_flow_of_one_sample_is_a_hyperbolic_sine(gamma0):
    training = dmft.GradientFlow(0.4, tuple(np.linspace(0.05, 0.3, 10)))
    ds = two_layer_linear(one_sample(gamma0, training))

    def closed_form(factor):
        """f = sinh(factor gamma0 v) / gamma0, v' = Delta: a single ordinary differential equation."""
        path = integrate.solve_ivp(lambda _, v: 1 - np.sinh(factor * gamma0 * v) / gamma0, (0, training.times[-1]), [0.0], t_eval=training.times, rtol=1e-11, atol=1e-13)  # fmt: skip
        return np.sinh(factor * gamma0 * path.y[0]) / gamma0

    # tolerance 1e-10 of the integrator, at some tens of steps
    np.testing.assert_allclose(ds.prediction[:, 0], closed_form(2), atol=1e-8)
    np.testing.assert_allclose(ds.ntk[:, 0, 0], 2 * np.sqrt(1 + gamma0**2 * ds.prediction[:, 0] ** 2), atol=1e-8)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ds.prediction[:, 0], closed_form(1.9), atol=1e-3)


def test_two_layer_linear_of_small_richness_is_lazy():
    """The distance is of second order in gamma0: 1e-4 for gamma0 = 1e-2, and not for gamma0 = 1."""
    distances = []
    for gamma0 in (1.0, 0.02, 0.01):
        problem = make(DESCENTS["momentum"], network=dmft.MLP(1, dmft.linear(), gamma0=gamma0))
        distances.append(float(abs(two_layer_linear(problem).prediction - lazy_limit(problem).prediction).max()))
    assert distances[1] / distances[2] == pytest.approx(4, rel=0.01)  # the next order is another gamma0^2
    assert distances[2] < 1e-4
    assert distances[0] > 1e-2


def test_two_layer_linear_with_several_outputs_has_their_kernels():
    ds = two_layer_linear(make(dmft.GradientFlow(1.0, 0.5, steps=3), "cross_entropy", dmft.MLP(1, dmft.linear())))
    assert ds.gradient_kernel.dims == ("layer", "step", "sample", "output", "sample_2", "output_2")
    np.testing.assert_allclose(ds.gradient_kernel[0, 0, 0, :, -1], np.eye(3), atol=ROUNDING)
    assert abs(ds.gradient_kernel[0, -1, 0, 0, 0, 1]) > 1e-3  # outputs come to share neurons
    np.testing.assert_allclose(
        ds.ntk[:, :, 0, :, 1],
        ds.gradient_kernel[0, :, :, 0, :, 1] * parameterization.input_kernel(np.concatenate([X, X_TEST])),
        atol=ROUNDING,
    )


# ---- distance from lazy --------------------------------------------------------------------------------------------


def test_the_lazy_limit_is_at_no_distance_from_itself():
    problem = make(DESCENTS["plain"])
    ds = distance_from_lazy(lazy_limit(problem), problem)
    for name, values in ds.items():
        expected = 1.0 if name.endswith("alignment") else 0.0
        np.testing.assert_allclose(values, expected, atol=1e-14)  # a cosine is rounded


def test_distances_are_the_formulas():
    problem = make(DESCENTS["schedule"], network=dmft.MLP(1, dmft.linear(), gamma0=1.5))
    theory, lazy = two_layer_linear(problem, save_steps=[0, 4, 12]), lazy_limit(problem, save_steps=[0, 4, 12])
    ds = distance_from_lazy(theory, problem)
    A, B = theory.ntk.values[2], theory.ntk.values[0]
    assert ds.ntk_change.values[2] == pytest.approx(np.linalg.norm(A - B) / np.linalg.norm(B))
    assert ds.ntk_alignment.values[2] == pytest.approx((A * B).sum() / np.linalg.norm(A) / np.linalg.norm(B))
    assert ds.ntk_change.dims == ("step",)
    assert ds.feature_kernel_change.dims == ("layer", "step")
    assert (ds.ntk_change.values[1:] > 1e-2).all()
    f, g = (source.prediction.values[1] for source in (theory, lazy))
    for name, part in (("prediction_change", slice(0, P)), ("test_prediction_change", slice(P, None))):
        assert ds[name].values[1] == pytest.approx(np.linalg.norm((f - g)[part]) / np.linalg.norm(g[part]))
        assert ds[name].values[0] == 0  # both predictions vanish
    for name in ("ntk_change", "prediction_change"):
        assert not ds[f"{name}_se"].any()  # an exact theory has no errors


def test_one_sample_is_as_far_from_lazy_as_its_closed_form():
    problem = one_sample(1.5, dmft.GradientFlow(1.0, 0.2, steps=10))
    theory = two_layer_linear(problem)
    change, f = distance_from_lazy(theory, problem).ntk_change.values, theory.prediction.values[:, 0]
    np.testing.assert_allclose(change, np.sqrt(1 + (1.5 * f) ** 2) - 1, atol=1e-8)  # K = 2 sqrt(1 + gamma0^2 f^2)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(change, np.sqrt(1 + (1.4 * f) ** 2) - 1, atol=1e-3)


@pytest.mark.parametrize("measure", [relative_change, alignment])
def test_standard_errors_of_distances(measure):
    """Not below the scatter under errors of any correlation, and equal to it under the worst."""
    rng = np.random.default_rng(0)
    B = rng.standard_normal(12)
    A = B + 0.5 * rng.standard_normal(12)
    dA, dB = 1e-5 * rng.uniform(0.5, 1.5, (2, 12))  # small: second orders are 1e-5 of the first
    value, error = measure(A, B, dA, dB)
    draws = np.array([measure(A + dA * a, B + dB * b, dA, dB)[0] for a, b in rng.standard_normal((2000, 2, 12))])
    # of 24 independent errors, the root of the sum of squares is at least 1/sqrt(24) = .2 of the sum, if they are alike
    assert 0.1 * error < draws.std() < error
    # the direction in which all entries raise the measure together, from numerical derivatives
    raised = [
        np.sign([measure(A + e, B, dA, dB)[0] - value for e in 1e-6 * np.eye(12)]),
        np.sign([measure(A, B + e, dA, dB)[0] - value for e in 1e-6 * np.eye(12)]),
    ]
    worst = measure(A + dA * raised[0], B + dB * raised[1], dA, dB)[0] - value
    assert worst == pytest.approx(error, rel=1e-3)  # second order, as above, and signs of vanishing derivatives
    assert measure(A, B, dA, 0 * dB)[1] < 0.9 * error  # the error of B counts


def test_relative_change_where_something_vanishes():
    zero, one, error = np.zeros((1, 2)), np.ones((1, 2)), np.full((1, 2), 0.1)
    assert relative_change(zero, zero, zero, zero)[0] == 0
    assert relative_change(one, zero, zero, zero)[0] == np.inf
    change, se = relative_change(one, one, error, error)
    assert change == 0
    assert se == pytest.approx(0.2)


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: lazy_limit(make(TRAININGS["decay"])), ValueError, "GradientDescent lets initial weights decay, to 0.[0-9]+ of .* without weight decay"),
        (lambda: lazy_limit("problem"), TypeError, "expects a dmft.Problem"),
        (lambda: lazy_limit(make(DESCENTS["plain"]), nodes=1), ValueError, "nodes=1"),
        (lambda: lazy_limit(make(DESCENTS["plain"]), save_steps=[13]), ValueError, "13"),
        (lambda: lazy_limit(make(dmft.GradientDescent(50.0, 40))), DivergenceError, "at step .* Lower learning_rate=50"),
        (lambda: two_layer_linear(make(DESCENTS["plain"])), ValueError, "depth=2 and tanh"),
        (lambda: two_layer_linear(None), TypeError, "expects a dmft.Problem"),
        (lambda: two_layer_linear(make(dmft.GradientFlow(1.0, 0.1, steps=2), "hinge", dmft.MLP(1, dmft.linear()))), ValueError, 'scheme="euler"'),
        (lambda: two_layer_linear(make(dmft.GradientDescent(50.0, 40), network=dmft.MLP(1, dmft.linear()))), DivergenceError, "at step"),
    ],
)  # fmt: skip
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_distance_needs_the_beginning_of_its_own_problem():
    problem = make(DESCENTS["plain"])
    with pytest.raises(ValueError, match="step 0"):
        distance_from_lazy(lazy_limit(problem, save_steps=[1, 2]), problem)
    with pytest.raises(ValueError, match="not the given one"):
        distance_from_lazy(lazy_limit(problem), make(DESCENTS["momentum"]))
    with pytest.raises(SchemaError):
        distance_from_lazy(lazy_limit(problem).prediction, problem)
    with pytest.raises(ValueError, match="needs one of"):
        distance_from_lazy(lazy_limit(problem)[["loss", "loss_se"]], problem)
    with pytest.raises(TypeError, match="second argument"):
        distance_from_lazy(lazy_limit(problem), None)


def test_with_weight_decay_a_distance_holds_kernels_only():
    problem = make(TRAININGS["decay"], network=dmft.MLP(1, dmft.linear()))
    assert not [n for n in distance_from_lazy(two_layer_linear(problem), problem) if "prediction" in n]


def test_steep_activations_warn_and_more_nodes_help():
    problem = make(DESCENTS["plain"], network=dmft.MLP(1, dmft.tanh(4.0)))
    with pytest.warns(UserWarning, match="nodes=256"):
        rough = lazy_limit(problem)
    fine = lazy_limit(problem, nodes=256)
    assert fine.attrs["quadrature_error"] < 1e-4 < rough.attrs["quadrature_error"]


def test_limits_do_not_load_jax():
    code = (
        "import dmft.limits, sys; dmft.lazy_limit, dmft.distance_from_lazy, dmft.two_layer_linear; print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "torch"} & set(out.stdout.split())
