"""Functions of kernels against their definitions written out, and what they must not depend on."""

import itertools

import numpy as np
import pytest
import xarray as xr

from comparisons import kernels

ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # of sums of at most a few hundred numbers of order one


def kernel_of(features):
    """(..., event, event_2) of features (..., event, feature)."""
    return features @ features.swapaxes(-1, -2) / features.shape[-1]


@pytest.fixture
def pair():
    """Two kernels of six events with features in common."""
    rng = np.random.default_rng(0)
    F = 1 + rng.standard_normal((6, 9))
    return kernel_of(F), kernel_of(F[:, :5] + 0.7 * rng.standard_normal((6, 5)))


def loops(n, value):
    """The sum of value(i, j) over all pairs of n events, by loops."""
    return sum(value(i, j) for i in range(n) for j in range(n))


def hsic_of_quadruples(K, R):
    """HSIC_1 as the U-statistic that it is: over all quadruples of different events (Song et al. 2012, eq. 4)."""
    n = len(K)
    total = sum(
        K[i, j] * R[i, j] + K[i, j] * R[q, r] - 2 * K[i, j] * R[i, q]
        for i, j, q, r in itertools.permutations(range(n), 4)
    )
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_alignment_and_distance_are_their_sums_over_pairs(pair):
    K, R = pair
    inner = loops(6, lambda i, j: K[i, j] * R[i, j])
    square, square_2 = loops(6, lambda i, j: K[i, j] ** 2), loops(6, lambda i, j: R[i, j] ** 2)
    np.testing.assert_allclose(kernels.alignment(K, R), inner / np.sqrt(square * square_2), **ROUNDING)
    off = loops(6, lambda i, j: (K[i, j] - R[i, j]) ** 2)
    np.testing.assert_allclose(kernels.distance(K, R), np.sqrt(off / square_2), **ROUNDING)


def test_cka_is_the_alignment_of_centred_features(pair):
    K, R = pair
    H = np.eye(6) - 1 / 6
    np.testing.assert_allclose(kernels.centred(K), H @ K @ H, **ROUNDING)
    expected = np.trace(H @ K @ H @ R) / np.sqrt(np.trace(H @ K @ H @ K) * np.trace(H @ R @ H @ R))
    np.testing.assert_allclose(kernels.centred_alignment(K, R), expected, **ROUNDING)
    # of linear kernels: |X'Y|^2 / (|X'X| |Y'Y|) of centred features (Kornblith et al. 2019)
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((6, 3)), 2 + rng.standard_normal((6, 4))
    X_0, Y_0 = X - X.mean(0), Y - Y.mean(0)
    expected = np.linalg.norm(X_0.T @ Y_0) ** 2 / (np.linalg.norm(X_0.T @ X_0) * np.linalg.norm(Y_0.T @ Y_0))
    np.testing.assert_allclose(kernels.centred_alignment(kernel_of(X), kernel_of(Y)), expected, **ROUNDING)


@pytest.mark.parametrize("n", [4, 5, 6])
def test_unbiased_cka_is_the_u_statistic_over_quadruples(pair, n):
    K, R = (kernel[:n, :n] for kernel in pair)
    H = {name: hsic_of_quadruples(*two) for name, two in {"KR": (K, R), "KK": (K, K), "RR": (R, R)}.items()}
    expected = H["KR"] / np.sqrt(H["KK"] * H["RR"]) if min(H["KK"], H["RR"]) > 0 else np.nan
    np.testing.assert_allclose(kernels.unbiased_centred_alignment(K, R), expected, **ROUNDING)
    # diagonals do not enter
    np.testing.assert_allclose(kernels.unbiased_centred_alignment(K + np.diag(np.arange(n)), R), expected, **ROUNDING)


def test_unbiased_cka_of_all_pairings_of_events_is_zero_on_average_and_cka_is_not(pair):
    K, R = (kernel[:5, :5] for kernel in pair)
    orders = [np.array(order) for order in itertools.permutations(range(5))]
    shuffled = np.stack([R[order[:, None], order] for order in orders])
    np.testing.assert_allclose(kernels.unbiased_centred_alignment(K, shuffled).mean(), 0, atol=1e-12)  # rounding
    assert kernels.centred_alignment(K, shuffled).mean() > 0.2


def test_unbiased_cka_of_independent_features_is_zero_and_cka_is_not():
    rng = np.random.default_rng(2)
    K, R = (kernel_of(1 + rng.standard_normal((4000, 8, 20))) for _ in range(2))
    for measure, biased in ((kernels.unbiased_centred_alignment, False), (kernels.centred_alignment, True)):
        value = measure(K, R)
        z = np.nanmean(value) / (np.nanstd(value) / np.sqrt(np.isfinite(value).sum()))
        assert z > 100 if biased else abs(z) < 4  # standard errors of the mean of 4000
    # HSIC_1 itself, whose mean over independent features vanishes exactly
    hollow = [np.where(np.eye(8, dtype=bool), 0, kernel) for kernel in (K, R)]
    value = kernels._hsic(*hollow)
    assert abs(value.mean()) < 4 * value.std() / np.sqrt(4000)


def test_similarities_do_not_depend_on_units_or_axes_and_cka_not_on_constants(pair):
    K, R = pair
    rng = np.random.default_rng(3)
    F = rng.standard_normal((6, 9))
    rotation, _ = np.linalg.qr(rng.standard_normal((9, 9)))
    order = rng.permutation(6)
    shifted = F + rng.standard_normal(9)  # the same vector added to the features of all events
    measures = {
        "alignment": kernels.alignment,
        "cka": kernels.centred_alignment,
        "unbiased": kernels.unbiased_centred_alignment,
    }
    for name, measure in measures.items():
        value = measure(K, R)
        assert -1 <= value <= 1.5
        np.testing.assert_allclose(measure(3 * K, 0.2 * R), value, **ROUNDING)
        np.testing.assert_allclose(measure(R, K), value, **ROUNDING)
        np.testing.assert_allclose(measure(K[order[:, None], order], R[order[:, None], order]), value, **ROUNDING)
        np.testing.assert_allclose(measure(K, 7 * K), 1, **ROUNDING)
        of_features = measure(kernel_of(F), R)
        np.testing.assert_allclose(measure(kernel_of(F @ rotation), R), of_features, **ROUNDING)
        if name == "alignment":
            assert abs(measure(kernel_of(shifted), R) - of_features) > 0.01
            assert abs(measure(K + 1.0, R) - value) > 0.01
        else:
            np.testing.assert_allclose(measure(kernel_of(shifted), R), of_features, **ROUNDING)
            np.testing.assert_allclose(measure(K + 1.0, R), value, **ROUNDING)
    assert kernels.distance(K, K) == 0
    np.testing.assert_allclose(kernels.distance(3 * R, R), 2, **ROUNDING)


def test_leading_dimensions_are_batches(pair):
    K, R = pair
    many = np.stack([[K, R], [R, K], [2 * K, K + R]])  # (3, 2, 6, 6)
    for function in (
        kernels.alignment,
        kernels.centred_alignment,
        kernels.unbiased_centred_alignment,
        kernels.distance,
        lambda K, R: kernels.modes(K)[0],
        lambda K, R: kernels.power(kernels.modes(K)[1], np.arange(6.0)),
        lambda K, R: kernels.regression(K, np.arange(4), np.arange(4, 6), np.arange(4.0), 1e-3),
    ):
        values = function(many, R)
        for index in np.ndindex(3, 2):
            np.testing.assert_allclose(values[index], function(many[index], R), **ROUNDING)


def test_kernels_that_vanish_have_no_similarity(pair):
    _, R = pair
    for measure in (kernels.alignment, kernels.centred_alignment, kernels.unbiased_centred_alignment):
        assert np.isnan(measure(np.zeros((6, 6)), R))


# ---- modes -----------------------------------------------------------------------------------------------------------


def test_modes_are_eigenvectors_the_largest_first(pair):
    K, _ = pair
    values, vectors = kernels.modes(K)
    assert (np.diff(values) < 0).all()
    np.testing.assert_allclose(K @ vectors, vectors * values, **ROUNDING)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), **ROUNDING)


def test_power_is_cumulative_and_reaches_one_with_all_modes(pair):
    K, _ = pair
    _, vectors = kernels.modes(K)
    y = np.random.default_rng(4).standard_normal(6)
    power = kernels.power(vectors, y)
    assert (np.diff(power) >= 0).all()
    np.testing.assert_allclose(power[-1], 1, **ROUNDING)
    for m in range(1, 7):
        inside = vectors[:, :m] @ np.linalg.lstsq(vectors[:, :m], y, rcond=None)[0]  # the projection onto m modes
        np.testing.assert_allclose(power[m - 1], inside @ inside / (y @ y), **ROUNDING)
    np.testing.assert_allclose(kernels.power(vectors, 5 * vectors[:, 2]), [0, 0, 1, 1, 1, 1], **ROUNDING)


# ---- regression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-6, 0.1])
def test_regression_is_that_of_scikit_learn_with_the_ridge_relative_to_the_mean_diagonal(ridge):
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge")
    rng = np.random.default_rng(5)
    K = 30 * kernel_of(rng.standard_normal((9, 40)))
    known, unknown, y = np.array([0, 2, 3, 5, 8, 7]), np.array([1, 4, 6]), rng.standard_normal(6)
    inner = K[np.ix_(known, known)]
    model = kernel_ridge.KernelRidge(alpha=ridge * np.trace(inner) / 6, kernel="precomputed").fit(inner, y)
    expected = model.predict(K[np.ix_(unknown, known)])
    found = kernels.regression(K, known, unknown, y, ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-9)  # rounding, times a condition number below 1e4
    # units of the kernel do not matter
    np.testing.assert_allclose(kernels.regression(1e4 * K, known, unknown, y, ridge), found, rtol=1e-9)


def test_regression_passes_through_its_targets_as_the_ridge_vanishes(pair):
    K, _ = pair
    y = np.arange(4.0)
    found = kernels.regression(K, np.arange(4), np.arange(4), y, 1e-12)
    np.testing.assert_allclose(found, y, atol=1e-8)  # ridge, times a condition number below 1e4


# ---- errors that follow from errors of the kernel --------------------------------------------------------------------

DRAWS = 4000


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda K: K[0, 1], lambda se: se[0, 1]),
        (lambda K: K[2, 2], lambda se: se[2, 2]),
        # entries of a kernel that mirror each other err together
        (lambda K: K[0, 1] + K[1, 0], lambda se: 2 * se[0, 1]),
        (lambda K: K[0, 1] - K[1, 0], lambda se: 0.0),
        (lambda K: np.trace(K), lambda se: np.sqrt((np.diag(se) ** 2).sum())),
        (lambda K: K[0, 1] + K[0, 2], lambda se: np.hypot(se[0, 1], se[0, 2])),
    ],
)
def test_noise_of_a_linear_function_is_that_of_independent_entries(pair, function, expected):
    K, R = pair
    se = 0.01 * abs(R)
    found = kernels.noise_of(function, K, se, draws=DRAWS)
    # of 4000 draws a spread is known to 1.1 %; four of them
    np.testing.assert_allclose(found, expected(se), rtol=0.045, atol=1e-15)


def test_noise_is_repeatable_scales_with_the_errors_and_vanishes_without_them(pair):
    K, R = pair
    many = np.stack([K, K + R])

    def largest(K):
        return kernels.modes(K)[0][..., 0]

    one = kernels.noise_of(largest, many, 1e-6 * abs(many), draws=64)
    assert one.shape == (2,)
    np.testing.assert_array_equal(one, kernels.noise_of(largest, many, 1e-6 * abs(many), draws=64))
    # linear to first order: corrections are 1e-6 of it, and rounding of the difference 1e-16 / 1e-6
    np.testing.assert_allclose(kernels.noise_of(largest, many, 2e-6 * abs(many), draws=64), 2 * one, rtol=1e-4)
    assert (kernels.noise_of(largest, many, 0 * many, draws=8) < 1e-14).all()  # rounding


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_an_event_is_a_sample_or_a_sample_and_an_output():
    rng = np.random.default_rng(6)
    plain = xr.DataArray(rng.random((2, 3, 4, 4)), dims=("layer", "step", "sample", "sample_2"))
    np.testing.assert_array_equal(kernels.by_event(plain), plain)
    outputs = xr.DataArray(rng.random((3, 4, 2, 4, 2)), dims=("step", "sample", "output", "sample_2", "output_2"))
    events = kernels.by_event(outputs)
    assert events.shape == (3, 8, 8)
    for sample, output, sample_2, output_2 in np.ndindex(4, 2, 4, 2):
        expected = outputs.values[:, sample, output, sample_2, output_2]
        np.testing.assert_array_equal(events[:, 2 * sample + output, 2 * sample_2 + output_2], expected)
