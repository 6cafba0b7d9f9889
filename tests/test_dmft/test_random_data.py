"""Theories of random data: exact identities, closed limits, and two independent ways to the same numbers."""

import doctest
import importlib
import re

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import dmft
from dmft import random_data as rd
from dmft.errors import DivergenceError
from dmft.random_data import random_features
from dmft.specs.random_data.spectra import EXACT_MODES

SPECTRUM = rd.power_law(60, capacity=1.2, source=1.5)
SIZES = {"features": 15, "samples": 24, "noise": 0.05}
ALIASING = 3e-8  # of the circle, relative to the initial loss


def descent(rate, steps, **options):
    return dmft.GradientDescent(rate, steps, **options)


# ---- spectra ---------------------------------------------------------------------------------------------------------


def test_log_spaced_modes_have_the_sums_of_all_modes():
    k = np.arange(1.0, 2e5 + 1)
    few = rd.power_law(2e5, 1.3, 1.6)
    assert len(few.eigenvalues) < EXACT_MODES
    assert few.modes == pytest.approx(2e5)
    # sums of smooth functions: second order in the width 1/400 of a decade
    for kappa in (1e-1, 1e-4, 1e-6):
        assert (few.copies * few.eigenvalues / (few.eigenvalues + kappa)).sum() == pytest.approx(
            (k**-1.3 / (k**-1.3 + kappa)).sum(), rel=1e-5
        )
    assert few.signal == pytest.approx((k**-1.6).sum(), rel=1e-6)
    assert few.coarse(300).trace == pytest.approx(few.trace, rel=1e-12)


def test_a_measured_spectrum_keeps_the_target():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 5)), rng.standard_normal((12, 2))
    found = rd.measured(x @ x.T, y)
    assert found.signal == pytest.approx((y**2).sum() / 12)
    assert found.trace == pytest.approx((x**2).sum() / 12)
    with pytest.raises(ValueError, match="kernel is not symmetric"):
        rd.measured(x @ rng.standard_normal((5, 12)), y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rd.power_law(10, 0.7, 2), "not summable"),
        (lambda: rd.power_law(10, 2, 1), "source=1: the target of such a power law are not summable"),
        (lambda: rd.Spectrum([1.0, 0.0], [1.0, 1.0]), r"eigenvalues[1]=0 must be positive"),
        (lambda: rd.Spectrum([1.0], [-1.0]), r"power[0]=-1 must be at least 0"),
        (lambda: rd.gradient_flow(SPECTRUM, [1.0], features=0), "features=0 must be positive"),
        (lambda: rd.gradient_flow(SPECTRUM, [1.0], samples=0), "samples=0 must be positive"),
        (lambda: rd.gradient_flow(SPECTRUM, [-1.0]), "starts at time 0"),
        (lambda: rd.effective_ridge(-1e-3, rd.isotropic(9), rd.Wishart(5)), "not found on its physical branch"),
        (lambda: rd.effective_ridge(-1.0, rd.isotropic(9), rd.Wishart(36)), "not found on its physical branch"),
        (lambda: rd.residual_of_samples(SPECTRUM, 60), "reaches all 60 modes"),
        (
            lambda: rd.march(SPECTRUM, descent(0.1, 3, weight_decay=0.1), richness=1.0),
            "use weight_decay=0, or richness=0",
        ),
        (lambda: rd.march(SPECTRUM, descent(3.0, 200), features=15), "the theory diverges at step"),
        (lambda: rd.compute_frontier(SPECTRUM, [10.0, 0.0]), "compute holds 0; costs are positive"),
        (lambda: rd.compute_frontier(SPECTRUM, [-2.0]), "compute holds -2; costs are positive"),
        (lambda: rd.compute_frontier(SPECTRUM, [10.0], batch=2), "batch=2 and learning_rate=None are of SGD, together"),
        (lambda: rd.seen_by_features(SPECTRUM, 60), "reaches all 60 modes"),
        (lambda: rd.optimal_schedule(SPECTRUM, 500, batch=1, start=2.0), "start=2 is beyond stability"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, ArithmeticError), match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "name",
    [
        "specs.random_data.spectra",
        *(
            f"random_data.{name}"
            for name in (
                "deep_linear",
                "ensembles",
                "equivalents",
                "frontier",
                "laws",
                "projected",
                "random_features",
                "schedule",
                "seen",
                "sgd",
            )
        ),
    ],
)
def test_examples_run(name):
    module = importlib.import_module(f"dmft.{name}")
    found = doctest.testmod(module, extraglobs={"np": np, "dmft": dmft, "isotropic": rd.isotropic})
    assert found.attempted
    assert not found.failed


# ---- deterministic equivalents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [rd.Wishart(90), rd.Projection(0.6), rd.Wishart(90) * rd.Projection(0.6)])
def test_two_points_satisfy_the_resolvent_identity(noise):
    sigma = np.arange(1, 61.0) ** -0.7
    g = [rd.one_point(point, sigma, noise) for point in (0.05, 0.3)]
    found = rd.two_point(0.05, 0.3, sigma, np.eye(60), noise)
    np.testing.assert_allclose(found, (g[0] - g[1]) / 0.25, rtol=1e-9, atol=1e-12)
    # one point twice: the derivative, here by differences, second order in 1e-4
    near = [rd.one_point(0.05 + e, sigma, noise) for e in (1e-4, -1e-4)]
    once = rd.two_point(0.05, 0.05, sigma, np.eye(60), noise)
    np.testing.assert_allclose(once, (near[1] - near[0]) / 2e-4, rtol=1e-4, atol=1e-6)
    assert (
        np.abs(found - g[0] @ g[1]).max() > 0.01 * np.abs(found).max()
    )  # the product of one-point equivalents is wrong


@pytest.mark.parametrize("noise", ["wishart", "projection"])
def test_two_points_against_random_matrices(noise):
    rng, D, P, q, draws = np.random.default_rng(1), 150, 225, 0.6, 24
    Q = np.linalg.qr(rng.standard_normal((D, D)))[0]
    values = np.arange(1, D + 1.0) ** -0.7
    sigma, root = Q * values @ Q.T, Q * np.sqrt(values) @ Q.T
    middle = np.diag(np.linspace(0, 2, D)) + 0.3 * np.outer(Q[:, 0], np.ones(D))
    l_1, l_2 = 0.05 + 0.1j, 0.3
    found = []
    for _ in range(draws):
        if noise == "wishart":
            X = rng.standard_normal((P, D))
            B = X.T @ X / P
        else:
            U = np.linalg.qr(rng.standard_normal((D, int(q * D))))[0]
            B = U @ U.T / q
        W = root @ B @ root
        G, G_2 = (np.linalg.inv(W + point * np.eye(D)) for point in (l_1, l_2))
        found.append(np.trace(G @ middle @ G_2 @ sigma))
    free = rd.Wishart(P) if noise == "wishart" else rd.Projection(q)
    theory = np.trace(rd.two_point(l_1, l_2, sigma, middle, free) @ sigma)
    one = np.trace(rd.one_point(l_1, sigma, free) @ middle @ rd.one_point(l_2, sigma, free) @ sigma)
    se = np.std(found) / np.sqrt(draws)
    assert abs(np.mean(found) - theory) < 4 * se + 2e-3 * abs(theory)  # and 1/D
    assert abs(np.mean(found) - one) > 20 * se


def test_the_edge_is_that_of_marchenko_and_pastur():
    assert rd.largest_eigenvalue(rd.isotropic(100), rd.Wishart(400)) == pytest.approx(2.25)
    # z kappa of isotropic data is a quadratic
    kappa = complex(rd.effective_ridge(0.3 + 0.4j, rd.isotropic(100), rd.Wishart(50)))
    assert kappa * (1 - 2 / (1 + kappa)) == pytest.approx(0.3 + 0.4j)


# ---- random features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_frequencies_and_time_give_the_same_order_parameters(momentum):
    circle = rd.gradient_descent(SPECTRUM, steps=60, learning_rate=0.3, momentum=momentum, **SIZES)
    marched = rd.march(SPECTRUM, descent(0.3, 60, momentum=momentum), **SIZES)
    for name in ("error", "residual", "feature", "data_response", "feature_response"):
        np.testing.assert_allclose(getattr(circle, name), getattr(marched, name), atol=ALIASING, rtol=1e-6)
    # gap of test and train, exact
    R = np.linalg.inv(marched.data_response)
    np.testing.assert_allclose(marched.error + 0.05, R @ marched.residual @ R.T, atol=1e-12)
    assert abs(marched.residual - (marched.error + 0.05)).max() > 0.1  # with the response dropped there is no gap


def test_theory_does_not_see_the_scale():
    one, four = (
        rd.march(SPECTRUM.scaled(m), descent(0.3, 20), features=15 * m, samples=24 * m, batch=8 * m) for m in (1, 4)
    )
    np.testing.assert_allclose(one.error, four.error, rtol=1e-12)
    split = rd.Spectrum(np.repeat(SPECTRUM.eigenvalues, 2), np.repeat(SPECTRUM.power, 2) / 2, np.full(120, 0.5))
    np.testing.assert_allclose(
        rd.march(split, descent(0.3, 20), features=15, samples=24, batch=8).error, one.error, rtol=1e-11
    )


def test_without_noise_of_sizes_modes_decay_by_themselves():
    lam, target = SPECTRUM.eigenvalues, SPECTRUM.eigenvalues * SPECTRUM.power
    flow = rd.gradient_flow(SPECTRUM, [0.0, 0.5, 30.0])
    np.testing.assert_allclose(flow.test, [(target * np.exp(-2 * lam * t)).sum() for t in (0.0, 0.5, 30.0)], rtol=1e-8)
    steps = rd.gradient_descent(SPECTRUM, steps=9, learning_rate=0.4).test
    np.testing.assert_allclose(steps, [(target * (1 - 0.4 * lam) ** (2 * t)).sum() for t in range(10)], atol=ALIASING)


def test_late_times_are_ridgeless():
    both = rd.gradient_flow(SPECTRUM.scaled(4), [3e10], features=60, samples=96, noise=0.05)
    assert both.test[0] == pytest.approx(1.77527, abs=1e-5)
    assert both.train[0] == pytest.approx(0.25668, abs=1e-5)
    spectrum = rd.power_law(1e6, 1.2, 4.2)
    for n in (100.0, 1000.0):
        features, samples = (rd.gradient_flow(spectrum, [1e9], **{kind: n}).test[0] for kind in ("features", "samples"))
        assert features == pytest.approx(rd.residual_of_features(spectrum, n), rel=1e-8)
        assert samples == pytest.approx(rd.residual_of_samples(spectrum, n), rel=1e-8)
    noisy = rd.gradient_flow(SPECTRUM, [1e9], samples=20, noise=0.3).test[0]
    assert noisy == pytest.approx(rd.residual_of_samples(SPECTRUM, 20, noise=0.3), rel=1e-8)


def test_bias_and_variances():
    split = rd.bias_variance(SPECTRUM, steps=40, learning_rate=0.6, **SIZES)
    one = rd.gradient_descent(SPECTRUM, steps=40, learning_rate=0.6, **SIZES).test
    np.testing.assert_allclose(split.ensemble(1, 1), one, atol=1e-12)
    assert (split.of_features[5:] > 0).all()
    assert (split.of_data[5:] > 0).all()
    # infinitely many models on one set of data: features averaged out; not the same as a model of infinitely many features
    averaged = split.ensemble(10**9, 1)
    assert (
        abs(averaged - rd.gradient_descent(SPECTRUM, steps=40, learning_rate=0.6, samples=24, noise=0.05).test).max()
        > 0.01
    )
    # infinitely many of both: the bias, and no noise of labels
    np.testing.assert_allclose(
        split.bias, rd.bias_variance(SPECTRUM, steps=40, learning_rate=0.6, features=15, samples=24).bias, atol=1e-9
    )


def test_rates_beyond_stability_name_the_threshold():
    edge = rd.largest_eigenvalue(SPECTRUM, rd.Wishart(24) * rd.Wishart(15))
    with pytest.raises(DivergenceError, match=f"converges below {2 / edge:.4g}"):
        rd.gradient_descent(SPECTRUM, steps=5, learning_rate=2.01 / edge, **SIZES)
    below, above = (rd.march(SPECTRUM, descent(f / edge, 40), **SIZES).train for f in (1.8, 2.2))
    assert below[-1] < below[20] < below[0]
    assert above[-1] > 10 * above[20]


def test_a_contour_that_does_not_converge_is_refused():
    with pytest.raises(rd.ContourError, match="does not converge: contours of 8 and 4 nodes"):
        rd.gradient_flow(SPECTRUM, [10.0], nodes=8, **SIZES)


# ---- stochastic gradients --------------------------------------------------------------------------------------------


def test_volterra_and_marching_agree():
    spectrum, sgd = SPECTRUM.scaled(6), descent(0.25, 50)
    once = rd.one_pass_sgd(spectrum, steps=50, learning_rate=0.25, batch=60, features=90, noise=0.05)
    marched = rd.march(spectrum, sgd, features=90, batch=60, noise=0.05)
    np.testing.assert_allclose(once.test, marched.test, rtol=1e-6)
    drawn = rd.sgd_with_replacement(spectrum, steps=50, learning_rate=0.25, batch=60, samples=144, noise=0.05)
    marched = rd.march(spectrum, sgd, samples=144, batch=60, noise=0.05)
    np.testing.assert_allclose(drawn.test, marched.test, rtol=1e-6)
    np.testing.assert_allclose(drawn.train, marched.train, rtol=1e-6)
    full = rd.march(spectrum, sgd, samples=144, noise=0.05)
    assert abs(full.test / drawn.test - 1).max() > 0.02  # the noise of batches is there


def test_sgd_is_stable_below_its_threshold():
    K, _ = rd.noise_kernels(SPECTRUM, 1500, 0.3, 15, None)
    assert 0.3**2 / 2 * K.sum() == pytest.approx(rd.stability(SPECTRUM, 0.3, 2, features=15), rel=1e-6)
    threshold = rd.largest_rate(SPECTRUM, 2, features=15)
    assert rd.stability(SPECTRUM, threshold, 2, features=15) == pytest.approx(1)
    assert threshold < 2 / rd.largest_eigenvalue(SPECTRUM, rd.Wishart(15))
    with pytest.raises(DivergenceError, match=f"converges below {threshold:.4g}"):
        rd.one_pass_sgd(SPECTRUM, steps=5, learning_rate=1.01 * threshold, batch=2, features=15)
    rates = {f: rd.march(SPECTRUM, descent(f * threshold, 25), features=15, batch=2).test for f in (0.7, 1.3)}
    assert rates[0.7][-1] < rates[0.7][0] < rates[1.3][-1]


def test_schedules_of_the_recursion():
    spectrum, given = rd.power_law(100, 1.25, 1.5), {"batch": 1, "noise": 0.25}
    best = rd.optimal_schedule(spectrum, 30, **given)
    constant = [rd.scheduled_loss(spectrum, [r] * 30, **given)[-1] for r in (0.1, 0.2, 0.4)]
    assert best.loss[-1] < 0.99 * min(constant)
    # a minimum: every rate, moved by itself, makes it worse by a square
    for t in (0, 12, 29):
        moved = [rd.scheduled_loss(spectrum, best.rates + s * np.eye(30)[t], **given)[-1] for s in (1e-3, -1e-3)]
        assert min(moved) > best.loss[-1]
        assert abs(moved[0] - moved[1]) < 0.02 * (sum(moved) - 2 * best.loss[-1])
    # the same from where the loss explodes
    wild = rd.optimal_schedule(spectrum, 30, start=2.0, **given)
    assert wild.loss[-1] == pytest.approx(best.loss[-1], rel=1e-9)
    # at large batches the recursion is the theory of many samples, which drops terms 1/B of single modes
    many = rd.scheduled_loss(SPECTRUM, [0.3] * 20, batch=1e6, noise=0.1)
    np.testing.assert_allclose(many, rd.march(SPECTRUM, descent(0.3, 20), batch=1e6, noise=0.1).test, rtol=1e-5)


@pytest.mark.slow
def test_the_optimal_schedule_of_500_steps():
    best = rd.optimal_schedule(rd.power_law(500, 1.25, 1.5), 500, batch=1, noise=0.25)
    assert best.loss[-1] == pytest.approx(0.223056313236, abs=1e-11)
    assert best.slope < 1e-7
    # .22305620 is the same in single precision, whose rounding is some 1e-7
    lam = np.arange(1, 501, dtype=np.float32) ** np.float32(-1.25)
    c = np.arange(1, 501, dtype=np.float32) ** np.float32(-0.25)
    for eta in best.rates.astype(np.float32):
        c = (1 - eta * lam) ** 2 * c + eta**2 * (lam**2 * c + lam * (lam @ c) + np.float32(0.25) * lam)
    assert lam @ c == pytest.approx(0.2230562, abs=2e-7)


# ---- feature learning ------------------------------------------------------------------------------------------------


def two_layers(lam, target, richness, time, step):
    """Gradient descent on w and A themselves, A_0 orthogonal: infinitely many features."""
    M = len(lam)
    A, w = np.sqrt(M) * np.eye(M), np.zeros(M)
    for _ in range(round(time / step)):
        g = lam * (target - A.T @ w / np.sqrt(M))
        A, w = A + step * richness * np.sqrt(M) * np.outer(w, g), w + step * A @ g / np.sqrt(M)
    v = target - A.T @ w / np.sqrt(M)
    return lam @ v**2, richness * w @ w


def test_the_closed_flow_is_that_of_two_layers():
    k = np.arange(1, 31.0)
    spectrum = rd.Spectrum(k**-1.5, k ** (1.5 - 1.75))
    # both extrapolated from two step sizes: first order
    direct = [np.array(two_layers(spectrum.eigenvalues, np.sqrt(spectrum.power), 2.0, 5.0, h)) for h in (0.01, 0.005)]
    flows = [rd.rich_flow(spectrum, [5.0], richness=2.0, resolution=r) for r in (200, 400)]
    closed = [np.array([f.test[0], f.kernel[0]]) for f in flows]
    np.testing.assert_allclose(2 * direct[1] - direct[0], 2 * closed[1] - closed[0], rtol=1e-4)
    assert rd.rich_flow(spectrum, [5.0], richness=0.0).test[0] > 1.5 * closed[1][0]
    # marching, with small steps, is the same flow
    marched = [rd.march(spectrum, descent(h, round(1 / h)), richness=2.0).test[-1] for h in (0.04, 0.02)]
    flows = [rd.rich_flow(spectrum, [1.0], richness=2.0, resolution=r).test[0] for r in (200, 400)]
    assert 2 * marched[1] - marched[0] == pytest.approx(2 * flows[1] - flows[0], rel=2e-3)


@pytest.mark.parametrize(
    ("beta", "richness", "slope", "kernel"),
    [(0.5, 0.0, -0.5, None), (0.5, 100.0, -0.667, 0.3335), (0.3, 1.0, -0.4675, 0.5387), (1.4, 100.0, -1.4015, None)],
)
def test_exponents_of_the_closed_flow(beta, richness, slope, kernel):
    t = np.array([1e4, 1e5])
    found = rd.rich_flow(rd.power_law(1e9, 1.5, 1.5 * beta + 1), t, richness=richness, resolution=20)
    assert rd.local_slopes(t, found.test)[0] == pytest.approx(slope, abs=1.5e-3)
    predicted = rd.exponents(1.5, 1.5 * beta + 1, rich=richness > 0).time
    assert -rd.local_slopes(t, found.test)[0] == pytest.approx(predicted, rel=0.02)
    if kernel:
        assert rd.local_slopes(t, found.kernel)[0] == pytest.approx(kernel, abs=1.5e-3)


def test_features_see_a_spectrum_of_their_own():
    spectrum, t = rd.power_law(300, 1.5, 1.75), np.array([1.0, 10.0, 100.0, 1e4])
    seen = rd.seen_by_features(spectrum, 30)
    lam, power, copies = seen.spectrum.eigenvalues, seen.spectrum.power, seen.spectrum.copies
    assert seen.spectrum.modes == pytest.approx(30)
    assert seen.spectrum.signal + seen.rest == pytest.approx(spectrum.signal)
    # 1e-3: the grid of eigenvalues
    flow = seen.rest + np.exp(-2 * np.outer(t, lam)) @ (lam * power)
    np.testing.assert_allclose(flow, rd.gradient_flow(spectrum, t, features=30).test, rtol=1e-3)
    noise = [(copies * lam**2 * (1 - 0.2 * lam) ** (2 * u)).sum() for u in range(20)]
    np.testing.assert_allclose(noise, rd.noise_kernels(spectrum, 20, 0.2, 30, None)[0], rtol=2e-3)
    sgd = seen.rest + rd.scheduled_loss(seen.spectrum, np.full(30, 0.2), batch=1e3, noise=seen.rest + 0.1)
    marched = rd.march(spectrum, descent(0.2, 30), features=30, batch=1e3, noise=0.1)
    np.testing.assert_allclose(sgd, marched.test, rtol=1e-3)
    # as many modes of the data themselves are another spectrum
    assert abs(seen.spectrum.trace / rd.power_law(30, 1.5, 1.75).trace - 1) > 0.05


# ---- laws ------------------------------------------------------------------------------------------------------------


def test_exponents_of_sizes_and_early_corrections():
    n = np.array([1e3, 3e3])
    for capacity, source, features, samples in (
        (1.2, 4.2, -1.2, -2.4),
        (1.5, 3.0, -1.5, -2.0),
        (1.5, 1.75, -0.75, -0.75),
    ):
        spectrum, predicted = rd.power_law(1e9, capacity, source), rd.exponents(capacity, source)
        assert (predicted.features, predicted.samples) == pytest.approx((-features, -samples))
        # local slopes approach the law from either side: some per cent at 10^3
        assert rd.local_slopes(n, [rd.residual_of_features(spectrum, x) for x in n])[0] == pytest.approx(
            features, rel=0.06
        )
        assert rd.local_slopes(n, [rd.residual_of_samples(spectrum, x) for x in n])[0] == pytest.approx(
            samples, rel=0.06
        )
    limit = rd.gradient_flow(SPECTRUM, [5.0]).test[0]
    corrections = [rd.gradient_flow(SPECTRUM, [5.0], features=x).test[0] - limit for x in n]
    assert rd.local_slopes(n, corrections)[0] == pytest.approx(-1, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beta", "options", "C", "loss", "allocation", "off"),
    [
        (0.5, {"richness": 1.0}, (1e6, 1e7), -0.3506, 0.4683, 0.01),
        (0.5, {"richness": 100.0}, (1e6, 1e7), -0.3543, 0.4689, 0.01),
        # the law of SGD comes slowly
        (2.0, {"batch": 2, "learning_rate": 0.3}, (1e5, 1e6), -0.693, 0.54, 0.05),
    ],
)
def test_frontiers_of_rich_and_super_easy_tasks(beta, options, C, loss, allocation, off):
    rich = "richness" in options
    spectrum = rd.power_law(1e7 if rich else 1e6, 1.5, 1.5 * beta + 1).coarse(60)
    frontier = rd.compute_frontier(spectrum, C, guess=1500, **options)
    slopes = [rd.local_slopes(C, each)[0] for each in (frontier.loss, frontier.features)]
    assert slopes[0] == pytest.approx(loss, abs=3e-3)
    assert slopes[1] == pytest.approx(allocation, abs=3e-2)  # of flat minima
    predicted = rd.exponents(1.5, 1.5 * beta + 1, rich=rich, one_pass=not rich)
    assert -slopes[0] == pytest.approx(predicted.compute, rel=off)
    # the laws of lazy features, and of the exact gradient, are others
    other = rd.exponents(1.5, 1.5 * beta + 1)
    assert abs(slopes[0] + other.compute) > abs(slopes[0] + predicted.compute)


@pytest.mark.parametrize(("beta", "loss", "allocation"), [(0.5, -0.299, 0.402), (1.4, -0.675, 0.513)])
def test_the_compute_frontier(beta, loss, allocation):
    C = np.array([1e6, 1e7])
    frontier = rd.compute_frontier(rd.power_law(1e6, 1.5, 1.5 * beta + 1).coarse(60), C, guess=300)
    assert rd.local_slopes(C, frontier.loss)[0] == pytest.approx(loss, abs=4e-3)
    assert rd.local_slopes(C, frontier.features)[0] == pytest.approx(allocation, abs=8e-3)
    predicted = rd.exponents(1.5, 1.5 * beta + 1)
    assert -loss == pytest.approx(predicted.compute, rel=0.01)


def test_regimes():
    hard, rich = (rd.exponents(1.5, 1.75, rich=r) for r in (False, True))
    assert (hard.regime, hard.compute, hard.allocation) == ("hard", pytest.approx(0.3), pytest.approx(0.4))
    assert (rich.time, rich.compute) == (pytest.approx(2 / 3), pytest.approx(2 * 0.75 / (2 + 1.5 * 1.5)))
    assert rd.exponents(1.5, 2.8).regime == "easy"
    super_easy = rd.exponents(1.5, 1 + 1.5 * 1.6, one_pass=True)
    assert (super_easy.regime, super_easy.compute) == ("super-easy", pytest.approx(1 - 1 / 3))


# ---- real data -------------------------------------------------------------------------------------------------------


def digits(count):
    """The NTK of one hidden layer on images of digits, and whether these are odd."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = np.random.default_rng(0).permutation(len(data.data))[:count]
    x = data.data[chosen] - data.data.mean(axis=0)
    y = np.where(data.target[chosen] % 2, 1.0, -1.0)
    task = dmft.Task(x / x.std(), y)
    lazy = dmft.lazy_limit(dmft.Problem(dmft.MLP(1, dmft.relu()), task, descent(0.1, 1)), save_steps=[0])
    return lazy["ntk"].values[0], y


@pytest.mark.parametrize("count", [500, pytest.param(1797, marks=pytest.mark.slow)])
def test_kernel_regression_on_digits(count):
    kernel, y = digits(count)
    found = rd.learning_curves(kernel, y, samples=[10, 30, 60], times=[1.0, 100.0], draws=12)
    ratio = (found["measured_test_loss"] / found["test_loss"]).values
    se = (found["measured_test_loss_se"] / found["test_loss"]).values
    # Gaussian equivalence of real images: some per cent, more where the last modes are fitted
    assert (abs(ratio - 1) < 0.06 + 3 * se).all()
    train = (found["measured_train_loss"] / found["train_loss"]).values[:, 0]
    assert (abs(train - 1) < 0.15).all()
    # the twin: the same spectrum with a target that lies elsewhere in it
    other = rd.learning_curves(kernel, np.random.default_rng(1).permutation(y), samples=[60], times=[100.0])
    assert other["test_loss"].values[0, 0] > 1.5 * found["test_loss"].values[-1, -1]


# ---- deep linear networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_lazy_deep_networks_are_linear_models(depth):
    training, lazy = descent(0.02, 20), {"depth": depth, "ratio": 1e9, "gamma0": 1e-3}
    t = np.arange(21)
    population = rd.march_deep(rd.isotropic(1), training, **lazy).test
    # 1/(gamma0^2 nu) = 1e-3 of the initial output, which decays alike
    np.testing.assert_allclose(population, (1 + 1e-3) * (1 - 0.02 * (depth + 1)) ** (2 * t), rtol=1e-5)
    data = {"samples": 1.5, "noise": 0.1}
    deep = rd.march_deep(rd.isotropic(1), training, **lazy, **data)
    linear = rd.march(rd.isotropic(1), descent(0.02 * (depth + 1), 20), **data)
    assert 2e-4 < abs(deep.test - linear.test).max() < 1.1e-3
    assert abs(deep.train - linear.train).max() < 1.1e-3


def test_two_layers_of_infinite_width_close():
    gamma0 = 1.5
    solved = solve_ivp(lambda t, b: 2 * np.sqrt(1 + gamma0**2 * b**2) * (1 - b), (0, 1), [0.0], rtol=1e-11, atol=1e-13)
    found = {
        eta: rd.march_deep(rd.isotropic(1), descent(eta, round(1 / eta)), depth=1, ratio=1e12, gamma0=gamma0).test[-1]
        for eta in (0.02, 0.01, 0.005)
    }
    assert found[0.01] == pytest.approx(0.003383, abs=1e-6)
    assert found[0.005] == pytest.approx(0.003514, abs=1e-6)
    first = [2 * found[0.01] - found[0.02], 2 * found[0.005] - found[0.01]]
    assert first[1] == pytest.approx(0.003645, abs=1e-6)
    # once more extrapolated: third order in eta
    assert (4 * first[1] - first[0]) / 3 == pytest.approx((1 - solved.y[0, -1]) ** 2, abs=2e-8)


def test_initial_losses_and_modes_in_parts():
    one = descent(0.05, 12)
    plain = rd.march_deep(rd.isotropic(40), one, depth=3, ratio=2.0, gamma0=0.7, samples=60, noise=0.05)
    assert plain.test[0] == pytest.approx(1 + 1 / (0.7**2 * 2))
    residual = rd.march_deep(rd.isotropic(40), one, depth=4, ratio=2.0, gamma0=0.7, branch=0.8)
    assert residual.test[0] == pytest.approx(1 + (1 + 0.8**2 / 4) ** 3 / (0.7**2 * 2))
    split = rd.Spectrum([1.0, 1.0], [0.4, 0.6], [30, 10])
    np.testing.assert_allclose(
        rd.march_deep(split, one, depth=3, ratio=2.0, gamma0=0.7, samples=60, noise=0.05).error, plain.error, rtol=1e-11
    )


def naive(T, eta, gamma0, nu, alpha, sigma2):
    """One hidden layer, full batch: whole matrices, inverted anew at every sweep, until nothing changes."""
    eye, ones = np.eye(T), np.ones((T, T))
    low, inv = (lambda X: np.tril(X, -1)), np.linalg.inv
    Cg, Rg, RD, CD = np.zeros((T, T)), np.zeros((T, T)), eye, np.zeros((T, T))
    for _ in range(2 * T):
        A, B = Rg / (gamma0 * nu) + eta * gamma0 * low(Cg), eta * gamma0 * low(ones)
        M = inv(eye - B @ A)
        Cq, Rq = M @ (ones + B @ Cg @ B.T) @ M.T, M @ B
        J, xi = Rq / gamma0 + eta * low(Cq), ones + Cq / (gamma0**2 * nu)
        V = inv(eye + J @ RD)
        RD = inv(eye + V @ J / alpha)
        V = inv(eye + J @ RD)
        Cv = V @ (xi + J @ (CD / alpha) @ J.T) @ V.T
        CD = RD @ (Cv + sigma2) @ RD.T
        K = eye - RD @ V @ J
        Cg, Rg = K @ (CD / alpha) @ K.T + RD @ V @ xi @ V.T @ RD.T, -RD @ V
    return np.diag(Cv), np.diag(CD)


def test_rows_are_those_of_whole_matrices():
    found = rd.march_deep(rd.isotropic(10), descent(0.06, 14), depth=1, ratio=0.5, samples=15, noise=0.1)
    test, train = naive(15, 0.06, 1.0, 0.5, 1.5, 0.1)
    np.testing.assert_allclose(found.test, test, rtol=1e-9)
    np.testing.assert_allclose(found.train, train, rtol=1e-9)
    # without the response of the data: another theory
    dropped = rd.march_deep(rd.isotropic(10), descent(0.06, 14), depth=1, ratio=0.5, batch=15, noise=0.1)
    assert abs(dropped.train - train).max() > 0.1


def test_wider_is_better_in_mean_field_scaling_only():
    def loss(nu, gamma0):  # at a rate of .05, between neighbours on a grid, as the numbers were found
        one = {"depth": 1, "ratio": nu, "gamma0": gamma0}
        return np.mean([rd.march_deep(rd.isotropic(1), descent(rate, 4), **one).test[-1] for rate in (0.04, 0.06)])

    widths = (0.25, 1.0, 4.0, 16.0, 64.0)
    np.testing.assert_allclose([loss(nu, 1.0) for nu in widths], [1.32, 0.86, 0.556, 0.463, 0.439], atol=5e-3)
    np.testing.assert_allclose([loss(nu, nu**-0.5) for nu in widths], [0.847, 0.861, 0.870, 0.872, 0.873], atol=6e-4)
    deeper = [
        rd.march_deep(rd.isotropic(1), descent(0.02, 11), depth=L, ratio=1.0, branch=1.0).test[-1]
        for L in (2, 4, 8, 12)
    ]
    np.testing.assert_allclose(deeper, [0.627, 0.540, 0.505, 0.495], atol=6e-4)


def test_responses_share_one_solution_of_the_equation():
    """R_1 R_3 = z / kappa, also where one of them is a difference of nearly equal numbers."""
    z = np.array([1e-10 + 1e-11j, 1e-2 + 1j])
    for features, samples in ((15, 24), (24, 15), (15, None), (None, 15)):
        kappa, R1, R3 = random_features.responses(z, SPECTRUM, features, samples)
        np.testing.assert_allclose(kappa * R1 * R3, z, rtol=1e-12)
