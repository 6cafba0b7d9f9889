"""Power laws: planted exponents come back, with errors that cover."""

import numpy as np
from scipy.optimize import curve_fit

from comparisons.scaling import UNRESOLVED, fit_power_law

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
