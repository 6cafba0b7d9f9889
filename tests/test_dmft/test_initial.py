"""N Var and N bias of kernels at initialisation: closed recursion, exact engine, known numbers, networks; kinks."""

import math

import jax
import numpy as np
import pytest

import dmft
from dmft.engine import smoothing
from dmft.limits import gaussian, initial, initial_fluctuations, lazy

# two inputs for which N bias of the NTK was found by an independent code, with weights of variance c / fan-in: that is
# phi -> sqrt(c) phi, inputs times sqrt(c), NTK / c here
RELU = np.array([(-0.9895229339599609, -0.5992491841316223), (-0.17877478897571564, 2.253682851791382)])
GELU = np.array(
    [
        (0.6540248765053858, -1.3592788739383235, -0.3791179316445409, 0.34191025226280697),
        (-0.6786403121150224, -0.12161213502515096, 0.21716372787141658, -1.4709063616118982),
    ]
)
GELU_SCALE = 1.98305826


NODES = 60  # between kinks, for features a fifth of a standard deviation wide


def kernel_of(x, scale):
    return scale * x @ x.T / x.shape[1]


def test_relu_has_no_bias_on_the_diagonal_and_variances_add_up():
    K = kernel_of(RELU, 2.0)
    found = initial_fluctuations(dmft.MLP(3, dmft.relu()), K)
    size, layers = K.diagonal(), np.arange(1, 4)
    diagonal = np.diagonal(found.feature_variance, axis1=1, axis2=2)
    np.testing.assert_allclose(diagonal, 5 * layers[:, None] * size**2, rtol=1e-9)  # rounding of the quadrature
    for bias in (found.feature_bias, found.gradient_bias, found.ntk_bias):
        assert abs(np.diagonal(bias, axis1=-2, axis2=-1)).max() < 1e-9
    # -1.2 with an error of .1 was measured on networks, -1.213(25) and -1.219(34) on 400,000 of widths 16 and 32
    assert found.ntk_bias[0, 1] / 2 == pytest.approx(-1.2056, abs=1e-4)


def test_gelu_has_the_bias_that_an_independent_code_found(monkeypatch):
    scale, evaluate = math.sqrt(GELU_SCALE), gaussian.evaluate
    for module in (gaussian, initial):
        monkeypatch.setattr(module, "evaluate", lambda phi, h: tuple(scale * v for v in evaluate(phi, h)))
    K, network = kernel_of(GELU, GELU_SCALE), dmft.MLP(3, dmft.gelu())
    limit = lazy.frozen_kernels(network, K).ntk / GELU_SCALE
    np.testing.assert_allclose(limit[0], [1.749264, 0.176856], atol=1e-5)
    bias = initial_fluctuations(network, K).ntk_bias / GELU_SCALE
    np.testing.assert_allclose(bias[0], [1.4144, -0.3246], atol=1e-4)  # four digits are known


@pytest.fixture(scope="module")
def linear():
    x = np.random.default_rng(0).standard_normal((2, 5))
    problem = dmft.Problem(dmft.MLP(3, dmft.linear()), dmft.Task(x, [1.0, -1.0]), dmft.GradientDescent(0.1, 1))
    names = ["feature_kernel", "gradient_kernel", "ntk"]
    return x @ x.T / 5, dmft.fluctuations(problem, save_steps=[0], observables=names)


def differences(found, engine):
    return {
        f"{name}_{kind}": abs(getattr(found, f"{short}_{kind}") - engine[f"{name}_{kind}"].isel(step=0).values).max()
        for name, short in (("feature_kernel", "feature"), ("gradient_kernel", "gradient"), ("ntk", "ntk"))
        for kind in ("variance", "bias")
    }


@pytest.mark.slow
def test_linear_networks_have_the_fluctuations_of_the_exact_engine(linear, monkeypatch):
    K, engine = linear
    found = differences(initial_fluctuations(dmft.MLP(3, dmft.linear()), K), engine)
    assert max(found.values()) < 1e-8  # rounding of the quadrature, on numbers up to 30
    # the twin: a readout of each layer that fluctuates as if it were Gaussian noise of half the variance
    scatter = initial._Averages.scatter
    monkeypatch.setattr(initial._Averages, "scatter", lambda self, G: scatter(self, G) / 2)
    twin = differences(initial_fluctuations(dmft.MLP(3, dmft.linear()), K), engine)
    assert twin["gradient_kernel_variance"] > 0.1


def test_backward_passes_remember_the_forward_pass(monkeypatch):
    K, network = kernel_of(RELU, 2.0), dmft.MLP(3, dmft.relu())
    # the twin: without what a matrix has shown going forward, the theorem of the first test fails
    monkeypatch.setattr(initial._Averages, "response", lambda self, G, V, last: (np.where(last, 0, -G), V))
    assert abs(initial_fluctuations(network, K).ntk_bias[0, 0]) > 1


def test_quadratures_have_converged_for_a_smooth_activation():
    K = kernel_of(GELU, 2.0)
    few, many = (initial_fluctuations(dmft.MLP(2, dmft.tanh(0.8)), K, nodes=nodes) for nodes in (initial.NODES, 80))
    for a, b in zip(vars(few).values(), vars(many).values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8 * abs(b).max() + 1e-12)


@pytest.mark.parametrize(
    ("network", "K", "message"),
    [
        (dmft.ResidualMLP(2), np.eye(2), "is for dmft.MLP without biases"),
        (dmft.MLP(2), np.ones((2, 2)), "are parallel, or zero"),
        (dmft.MLP(2), [[1.0, 0.0], [0.0, 0.0]], "are parallel, or zero"),
        (dmft.MLP(2), [[1.0, 2.0], [2.0, 1.0]], "is not one"),
    ],
)
def test_initial_fluctuations_refuse_what_they_are_not_for(network, K, message):
    with pytest.raises(ValueError, match=message):
        initial_fluctuations(network, K)


# ---- rounded kinks ---------------------------------------------------------------------------------------------------


def moments(a, b):
    """int s (1 - s), int y^2 s' and int s^3 - [y > 0] of the step with the coefficients a and b."""
    y = np.linspace(-12, 12, 24001)
    density = np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)
    s = np.cumsum(density) * (y[1] - y[0]) + (a * y + b * y**3) * density
    slope = np.gradient(s, y)
    return [np.trapezoid(f, y) for f in (s * (1 - s), y**2 * slope, s**3 - (y > 0))]


def test_the_step_keeps_its_promises():
    # the sums above have errors of a grid of .001
    np.testing.assert_allclose(moments(smoothing.LINEAR, smoothing.CUBIC), 0, atol=2e-3)
    assert moments(0, 0)[0] > 0.5  # the twin


def rounded(width, monkeypatch):
    """Fluctuations at initialisation of ReLU networks with rounded kinks, exactly."""

    def evaluate(phi, h):
        with jax.enable_x64(True):
            return tuple(np.asarray(jax.jit(f)(h)) for f in smoothing.smoothed(phi, width))

    with monkeypatch.context() as patch:
        patch.setattr(initial, "evaluate", evaluate)
        return initial_fluctuations(dmft.MLP(3, dmft.relu()), kernel_of(RELU, 2.0), nodes=NODES)


def test_rounded_kinks_change_fluctuations_little(monkeypatch):
    exact = initial_fluctuations(dmft.MLP(3, dmft.relu()), kernel_of(RELU, 2.0))
    size = math.sqrt(np.trace(kernel_of(RELU, 2.0)) / 2)
    found = rounded(smoothing.WIDTH * size, monkeypatch)
    # documented: one or two per cent of variances; of a bias one of 1.2, parts of 27 to 100 cancel on the diagonal
    np.testing.assert_allclose(found.ntk_variance, exact.ntk_variance, rtol=0.02)
    np.testing.assert_allclose(found.ntk_bias, exact.ntk_bias, atol=0.1)
    # the twin: rounding by a Gaussian alone
    monkeypatch.setattr(smoothing, "LINEAR", 0.0)
    monkeypatch.setattr(smoothing, "CUBIC", 0.0)
    assert abs(rounded(smoothing.WIDTH * size, monkeypatch).ntk_bias - exact.ntk_bias).max() > 0.5
