"""Power laws: planted exponents come back, with errors that cover."""

import numpy as np
from scipy.optimize import curve_fit

from comparisons.scaling import UNRESOLVED, fit_power_law

WIDTHS = np.array([32, 64, 128, 256, 512])


def test_an_exact_power_law():
    law = fit_power_law(WIDTHS, 3.0 * WIDTHS**-1.5, 0.01 * WIDTHS**-1.5)
    assert law.slope == np.float64(law.slope)
    np.testing.assert_allclose([law.slope, law.reference], [-1.5, 128.0], rtol=1e-7)
    np.testing.assert_allclose(law.amplitude, 3.0 * 128**-1.5, rtol=1e-7)
    assert law.chi2_per_dof < 1e-6


def test_errors_cover_also_where_the_widest_are_not_resolved():
    rng = np.random.default_rng(0)
    truth = 5.0 * WIDTHS**-2.0
    se = np.full(5, 1.5e-4)  # the widest two are below their error
    laws = [fit_power_law(WIDTHS, truth + se * rng.standard_normal(5), se) for _ in range(300)]
    pulls = np.array([(law.slope + 2.0) / law.slope_se for law in laws])
    assert abs(np.mean(pulls)) < 0.3
    assert 0.8 < np.std(pulls) < 1.2


def test_agreement_with_scipy_on_the_other_parametrisation():
    rng = np.random.default_rng(1)
    se = 0.05 * WIDTHS**-1.0
    y = 2.0 * WIDTHS**-1.0 + se * rng.standard_normal(5)
    law = fit_power_law(WIDTHS, y, se)
    (_, slope), covariance = curve_fit(
        lambda n, a, s: a * n**s, WIDTHS, y, p0=(2.0, -1.0), sigma=se, absolute_sigma=True
    )
    np.testing.assert_allclose([law.slope, law.slope_se], [slope, np.sqrt(covariance[1, 1])], rtol=1e-4)


def test_what_is_not_resolved_is_said_to_be_so():
    assert fit_power_law(WIDTHS, [1e-3, -1e-3, 1e-3, 0, 0], np.full(5, 1e-2)) is UNRESOLVED
    assert np.isnan(fit_power_law([8, 16], [1.0, 0.5], [0.1, 0.1]).chi2_per_dof)
