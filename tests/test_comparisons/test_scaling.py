"""Power laws and series in 1/N: planted ones come back, with errors that cover."""

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import distributions, kstest

from comparisons.errors import UnresolvedError
from comparisons.scaling import UNRESOLVED, fit_power_law, fit_series

WIDTHS = np.array([32, 64, 128, 256, 512])


def test_an_exact_power_law():
    law = fit_power_law(WIDTHS, 3.0 * WIDTHS**-1.5, 0.01 * WIDTHS**-1.5)
    np.testing.assert_allclose(law.slope, -1.5, rtol=1e-7)
    assert law.chi2_per_dof < 1e-6


def test_errors_cover_also_where_the_widest_are_not_resolved():
    rng = np.random.default_rng(0)
    truth = 5.0 * WIDTHS**-2.0
    se = np.full(5, 1.5e-4)  # the widest two are below their error
    laws = [fit_power_law(WIDTHS, truth + se * rng.standard_normal(5), se) for _ in range(300)]
    pulls = np.array([(law.slope + 2.0) / law.slope_se for law in laws])
    assert abs(np.mean(pulls)) < 0.3
    # errors grow with chi^2 where it exceeds one: never short, a little generous
    assert 0.7 < np.std(pulls) < 1.1


def test_agreement_with_scipy_on_the_other_parametrisation():
    rng = np.random.default_rng(1)
    se = 0.05 * WIDTHS**-1.0
    y = 2.0 * WIDTHS**-1.0 + se * rng.standard_normal(5)
    law = fit_power_law(WIDTHS, y, se)
    (_, slope), covariance = curve_fit(
        lambda n, a, s: a * n**s, WIDTHS, y, p0=(2.0, -1.0), sigma=se, absolute_sigma=True
    )
    stretched = np.sqrt(covariance[1, 1] * max(law.chi2_per_dof, 1))
    np.testing.assert_allclose([law.slope, law.slope_se], [slope, stretched], rtol=1e-4)


def test_a_curve_that_is_no_power_law_has_a_larger_error():
    y = 0.5 / WIDTHS * (1 + 8 / WIDTHS)
    law = fit_power_law(WIDTHS, y, 0.002 / WIDTHS)
    assert law.chi2_per_dof > 2
    assert fit_power_law(WIDTHS, 0.5 / WIDTHS, 0.002 / WIDTHS).slope_se < law.slope_se


def test_pure_noise_is_not_resolved():
    rng = np.random.default_rng(2)
    laws = [fit_power_law(WIDTHS, rng.standard_normal(5), np.ones(5)) for _ in range(500)]
    assert np.mean([law is UNRESOLVED for law in laws]) > 0.97


def test_what_is_not_resolved_is_said_to_be_so():
    assert fit_power_law(WIDTHS, [1e-3, -1e-3, 1e-3, 0, 0], np.full(5, 1e-2)) is UNRESOLVED
    assert np.isnan(fit_power_law([8, 16], [1.0, 0.5], [0.1, 0.1]).chi2_per_dof)


# ---- series ----------------------------------------------------------------------------------------------------------

SIX = np.array([16, 24, 32, 64, 128, 256])
MANY = 500  # repetitions


def series(coefficients, se, *, width=SIX, seed=3, count=MANY):
    """Values and errors (width, repetition) of a series in 1/N."""
    n = np.asarray(width, float)[:, None]
    errors = np.broadcast_to(se / np.sqrt(n), (len(n), count))  # wider networks scatter less
    truth = sum(a / n**i for i, a in enumerate(coefficients))
    return truth + errors * np.random.default_rng(seed).standard_normal(errors.shape), errors


@pytest.mark.parametrize("order", [1, 2])
def test_a_series_is_the_weighted_fit_of_numpy(order):
    y, se = series((1.0, -3.0, 20.0), 0.1, count=4)
    fit = fit_series(SIX, y.reshape(6, 2, 2), se.reshape(6, 2, 2), order=order)
    assert fit.coefficients.shape == (order + 1, 2, 2)
    assert fit.covariance.shape == (order + 1, order + 1, 2, 2)
    assert (fit.order, fit.dof) == (order, 5 - order)
    for i, index in enumerate(np.ndindex(2, 2)):
        powers, covariance = np.polyfit(1.0 / SIX, y[:, i], order, w=1 / se[:, i], cov="unscaled")
        # rounding, times a condition number of the design below 1e6
        np.testing.assert_allclose(fit.coefficients[(..., *index)], powers[::-1], rtol=1e-8)
        np.testing.assert_allclose(fit.covariance[(..., *index)], covariance[::-1, ::-1], rtol=1e-8)


@pytest.mark.parametrize("order", [1, 2])
def test_a_series_is_the_weighted_least_squares_of_statsmodels_with_known_errors(order):
    statsmodels = pytest.importorskip("statsmodels.api")
    y, se = series((1.0, -3.0, 20.0), 0.1, count=4)
    fit = fit_series(SIX, y, se, order=order)
    wide, wide_se = fit.at([50, np.inf])
    row = np.array([[1.0, 1 / 50, 1 / 2500], [1.0, 0.0, 0.0]])[:, : order + 1]
    for i in range(4):
        design = (1.0 / SIX[:, None]) ** np.arange(order + 1)
        # the covariance is not scaled by what is left over
        theirs = statsmodels.WLS(y[:, i], design, weights=se[:, i] ** -2.0).fit(cov_type="fixed scale")
        chi2 = (theirs.wresid**2).sum()
        # rounding, as above
        np.testing.assert_allclose(fit.coefficients[:, i], theirs.params, rtol=1e-8)
        np.testing.assert_allclose(fit.covariance[..., i], theirs.cov_params(), rtol=1e-8)
        np.testing.assert_allclose(fit.errors[:, i], theirs.bse, rtol=1e-8)
        np.testing.assert_allclose(fit.chi2[i], chi2, rtol=1e-8)
        np.testing.assert_allclose(fit.p_value[i], distributions.chi2.sf(chi2, 5 - order), rtol=1e-8)
        np.testing.assert_allclose(wide[:, i], row @ theirs.params, rtol=1e-8)
        expected = np.sqrt(np.einsum("wi,ij,wj->w", row, theirs.cov_params(), row))
        np.testing.assert_allclose(wide_se[:, i], expected, rtol=1e-7)


@pytest.mark.parametrize(("truth", "order"), [((1.0, -3.0), 1), ((1.0, -3.0, 20.0), 2)])
def test_errors_of_a_series_cover_and_chi2_is_that_of_noise(truth, order):
    y, se = series(truth, 0.1)
    fit = fit_series(SIX, y, se, order=order)
    pulls = (fit.coefficients - np.reshape(truth, (-1, 1))) / fit.errors
    # of 500 repetitions: four standard errors of a mean (0.045) and of a standard deviation (0.032)
    assert np.all(abs(pulls.mean(1)) < 0.18)
    assert np.all(abs(pulls.std(1) - 1) < 0.13)
    # chi^2 has the variance 2 dof; the probability of a larger one is uniform (Kolmogorov: 2.2 / sqrt(500) for 1e-4)
    assert abs(fit.chi2.mean() - fit.dof) < 4 * np.sqrt(2 * fit.dof / MANY)
    assert kstest(fit.p_value, "uniform").statistic < 2.2 / np.sqrt(MANY)


def test_a_missing_term_is_seen_in_chi2_and_makes_the_limit_wrong():
    y, se = series((1.0, -3.0, 200.0), 0.1)
    fit = fit_series(SIX, y, se, order=1)
    assert np.median(fit.p_value) < 1e-6
    assert abs((fit.coefficients[0] - 1) / fit.errors[0]).mean() > 5
    right = fit_series(SIX, y, se, order=2)
    assert abs(((right.coefficients[0] - 1) / right.errors[0]).mean()) < 0.18  # as above


def test_the_order_is_the_one_that_was_planted():
    # entry by entry: a term of many errors is always taken, and one that is not there at most as often as the Akaike
    # criterion without correction takes it, P(chi2 of one > 2) = 0.157, and four standard errors
    for truth, at_least, at_most in (((1.0, -3.0, 200.0), 1.0, 1.0), ((1.0, -3.0), 0.0, 0.157 + 0.065)):
        y, se = series(truth, 0.1)
        orders = np.array([fit_series(SIX, y[:, i], se[:, i]).order for i in range(MANY)])
        assert at_least <= (orders == 2).mean() <= at_most
        # all entries to the same order: the criterion's noise averages out
        assert fit_series(SIX, y, se).order == (2 if len(truth) == 3 else 1)


def test_errors_cover_after_the_order_was_chosen():
    for truth in ((1.0, -3.0), (1.0, -3.0, 200.0)):
        y, se = series(truth, 0.1)
        fit = fit_series(SIX, y, se)
        for i in (0, 1):
            inside = (abs(fit.coefficients[i] - truth[i]) < fit.errors[i]).mean()
            # of 500: the standard error of a share of 0.683 is 0.021
            assert inside == pytest.approx(0.683, abs=0.083)


def test_entries_that_are_the_same_in_all_networks_are_taken_as_they_are():
    y, se = series((1.0, -3.0), 0.1, count=2)
    y[:, 1], se = 0.25, np.stack([se[:, 0], np.zeros(6)], axis=1)
    fit = fit_series(SIX, y, se, order=1)
    np.testing.assert_allclose(fit.coefficients[:, 1], [0.25, 0], atol=1e-12)  # rounding
    assert (fit.errors[:, 1] == 0).all()
    assert (fit.chi2[1], fit.p_value[1]) == (0, 1)
    np.testing.assert_array_equal(fit.coefficients[:, 0], fit_series(SIX, y[:, 0], se[:, 0], order=1).coefficients)
    # an entry without an error at one width says nothing, and the others what they do without it
    partly = np.where((SIX == 32)[:, None] & np.array([True, False]), 0, se[:, :1])
    fit = fit_series(SIX, y[:, :1] + np.zeros((1, 2)), partly, order=1)
    assert np.isnan(fit.coefficients[:, 0]).all()
    np.testing.assert_array_equal(fit.coefficients[:, 1], fit_series(SIX, y[:, 0], se[:, 0], order=1).coefficients)
    with pytest.raises(ValueError, match="no entry has a finite value and error at every width"):
        fit_series(SIX, y[:, 0], np.where(SIX == 32, 0, se[:, 0]))


def test_four_widths_are_enough_to_see_a_second_order():
    widths = np.array([8, 16, 32, 64])
    y = (1 + 2 / widths + 30 / widths**2)[:, None]
    fit = fit_series(widths, y, np.full_like(y, 1e-3))
    np.testing.assert_allclose(fit.coefficients[:, 0], [1, 2, 30], rtol=1e-9)  # rounding


def test_too_few_widths_are_refused_with_what_there_is():
    y, se = series((1.0, -3.0), 0.1, count=3)
    for count, order, terms in ((1, "auto", 1), (2, "auto", 2), (2, 1, 2), (3, 2, 3)):
        needed = 3 if order == "auto" else order + 2
        with pytest.raises(UnresolvedError, match=rf"{count} width\(s\) .* at least {needed}\.") as caught:
            fit_series(SIX[:count], y[:count], se[:count], order=order)
        estimate = caught.value.estimate
        assert estimate.coefficients.shape == (terms, 3)
        assert estimate.dof == 0
        assert np.isnan(estimate.p_value).all()  # nothing checks it
        np.testing.assert_allclose(estimate.at(SIX[:count])[0], y[:count], rtol=1e-8)  # it passes through all of them
    for order in (0, 3, "2", None):
        with pytest.raises(ValueError, match=f"order={order!r} is unknown; choose 1, 2 or 'auto'"):
            fit_series(SIX, y, se, order=order)
    with pytest.raises(ValueError, match=r"widths \[16\.0, 16\.0, 32\.0\] are not all different"):
        fit_series([16, 16, 32], y[:3], se[:3])
