"""Estimators on ensembles with known mean and variance: unbiased, and with error bars that cover."""

import numpy as np
import pytest

from comparisons import estimators
from comparisons.samples import Blocks, Members
from conftest import first_of

REPEATS, MEMBERS, ENTRIES = 400, 40, 5
TRUTH = np.linspace(-1, 1, ENTRIES)
BIAS = 0.1
SPREAD = np.linspace(0.5, 1.5, ENTRIES)


@pytest.fixture(scope="module", params=first_of(["skewed", "normal"]))
def ensembles(request):
    """(repeat, member, entry): mean TRUTH + BIAS, variance SPREAD^2, entries correlated."""
    rng = np.random.default_rng(0)
    shape = (REPEATS, MEMBERS, ENTRIES)
    if request.param == "normal":
        z = (rng.standard_normal(shape) + rng.standard_normal((*shape[:2], 1))) / np.sqrt(2)
    else:
        z = rng.gamma(4.0, 1.0, shape) / 2 - 2
    return TRUTH + BIAS + SPREAD * z


def check(estimates, truth, *, over=1.2, cautious=1.2):
    """Estimates and claimed errors (repeat, 2, ...): no bias, errors at most `over` and at least 1/`cautious` of the claim."""
    values, claimed = estimates[:, 0], estimates[:, 1]
    standard = values.std(0) / np.sqrt(REPEATS)
    assert np.all(abs(values.mean(0) - truth) < 4 * standard)
    ratio = np.sqrt(((values - truth) ** 2).mean(0) / (claimed**2).mean(0))
    # 400 repeats give the ratio to 5 %; the errors themselves come from 40 members
    assert np.all((1 / cautious < ratio) & (ratio < over))


def in_blocks(x, size=2):
    """The members by moments of blocks."""
    parts = np.split(x, len(x) // size)
    means = np.array([part.mean(0) for part in parts])
    m2 = np.array([((part - part.mean(0)) ** 2).sum(0) for part in parts])
    return Blocks(np.full(len(parts), size), means, m2)


def test_mean(ensembles):
    check(np.array([estimators.mean(x) for x in ensembles]), TRUTH + BIAS)


@pytest.mark.parametrize(
    ("estimator", "same_error"),
    [
        (estimators.mean, True),
        (estimators.variance, False),
        (estimators.mean_variance, True),
        (lambda x: estimators.squared_bias(x, TRUTH, 0 * TRUTH, (0,)), True),
        (lambda x: estimators.distance(x, TRUTH, (0,)), False),
        (lambda x: estimators.variance_ratio(x, 7, TRUTH, 0 * TRUTH, SPREAD**2, 0.1 + 0 * TRUTH, (0,)), True),
        (lambda x: estimators.bias_ratio(x, 7, TRUTH, 0 * TRUTH, 1 + TRUTH, 0.1 + 0 * TRUTH, (0,)), True),
    ],
    ids=["mean", "variance", "mean variance", "squared bias", "distance", "variance ratio", "bias ratio"],
)
def test_moments_of_blocks_serve_as_well_as_members(ensembles, estimator, same_error):
    values, errors = [], []
    for x in ensembles[:20] if same_error else ensembles:
        (value, error), (same, error_of_blocks) = estimator(x), estimator(in_blocks(x))
        np.testing.assert_allclose(same, value, rtol=1e-9, atol=1e-12)
        values.append(value)
        errors.append(error_of_blocks)
        if same_error:  # twenty groups either way
            np.testing.assert_allclose(error_of_blocks, error, rtol=1e-9)
    if not same_error:
        # errors from the scatter of twenty blocks hold on average, for any distribution of the members
        ratio = np.std(values, axis=0) / np.sqrt(np.mean(np.square(errors), axis=0))
        assert np.all((ratio > 1 / 1.2) & (ratio < 1.2))


def test_blocks_of_different_sizes_are_weighted_by_their_members(ensembles):
    x = ensembles[0]
    parts = [x[:3], x[3:4], x[4:17], x[17:]]
    blocks = Blocks(
        np.array([len(part) for part in parts]),
        np.array([part.mean(0) for part in parts]),
        np.array([((part - part.mean(0)) ** 2).sum(0) for part in parts]),
    )
    assert blocks.count == MEMBERS
    for ours, theirs in zip(blocks.mean(), Members(x).mean(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    np.testing.assert_allclose(blocks.variance()[0], x.var(0, ddof=1), rtol=1e-12)


def test_variance(ensembles):
    check(np.array([estimators.variance(x) for x in ensembles]), SPREAD**2)


@pytest.mark.parametrize("members", [8, 16])
def test_errors_of_variances_hold_for_few_members(ensembles, members):
    for estimator, truth in ((estimators.variance, SPREAD**2), (estimators.mean_variance, (SPREAD**2).mean())):
        # the mean square of the claims is right; each claim by itself rests on few members
        check(np.array([estimator(x[:members]) for x in ensembles]), truth, over=1.25, cautious=1.25)


def test_mean_variance(ensembles):
    check(np.array([estimators.mean_variance(x) for x in ensembles]), (SPREAD**2).mean())


def test_squared_bias_is_unbiased_and_its_error_covers_the_limits_own(ensembles):
    rng = np.random.default_rng(1)
    limit_se = np.full(ENTRIES, 0.05)
    # the limit errs in all entries together, as its error assumes; noise of the members dominates
    limits = TRUTH + limit_se * rng.standard_normal((REPEATS, 1))
    found = [estimators.squared_bias(x, m, limit_se, (0,)) for x, m in zip(ensembles, limits, strict=True)]
    # the bound on the limit's part is cautious where the deviation is mostly noise of the members
    check(np.array(found), ENTRIES * BIAS**2, cautious=1.6)


def test_squared_bias_where_the_limits_error_dominates():
    rng = np.random.default_rng(2)
    limit_se = np.full(ENTRIES, 0.05)
    x = TRUTH + 0.3 + 0.01 * rng.standard_normal((REPEATS, MEMBERS, ENTRIES))
    limits = TRUTH + limit_se * rng.standard_normal((REPEATS, 1))
    found = [estimators.squared_bias(members, m, limit_se, (0,)) for members, m in zip(x, limits, strict=True)]
    check(np.array(found), ENTRIES * 0.09)


def test_squared_bias_along_some_axes():
    x = np.random.default_rng(0).standard_normal((30, 2, 3, 4))
    value, se = estimators.squared_bias(x, np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), (1,))
    assert value.shape == se.shape == (2, 4)
    one, one_se = estimators.squared_bias(x[:, 1, :, 2], np.zeros(3), np.zeros(3), (0,))
    assert value[1, 2] == pytest.approx(one)
    assert se[1, 2] == pytest.approx(one_se)


def test_distance(ensembles):
    truth = np.sqrt((SPREAD**2 + BIAS**2).sum())
    check(np.array([estimators.distance(x, TRUTH, (0,)) for x in ensembles]), truth, over=1.25)


def test_roots_of_unresolved_squares_are_zero_with_the_root_of_their_error():
    value, se = estimators.root(np.array([4.0, -1.0, 0.5]), np.array([0.4, 0.09, 1.0]))
    np.testing.assert_allclose(value, [2.0, 0.0, np.sqrt(0.5)])
    np.testing.assert_allclose(se, [0.1, 0.3, 1.0])


def test_z_scores_of_what_is_known_exactly():
    z = estimators.z_score(np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.5, 0.0]))
    np.testing.assert_array_equal(z, [0.0, 2.0, np.inf])
