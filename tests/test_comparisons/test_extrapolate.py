"""Limits by extrapolation: their errors cover, and wrong laws do not."""

import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
import finite_nets
from comparisons import averaged_laws
from comparisons.averaged_laws import averaged, exponent_of_variances, fitted, unknown, variances_together
from comparisons.extrapolate import spread_of_variances
from comparisons.samples import Members

WIDTHS = np.array([64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0])
SEEDS = np.array([256, 128, 64, 32, 16, 8, 4])
REPEATS = 600


def drawn(law, seed=0):
    """Means of networks (width, repeat) and their errors, of a limit 0 and Var = .01 / N."""
    rng = np.random.default_rng(seed)
    scale = 0.1 / np.sqrt(WIDTHS[:, None])
    y = law(WIDTHS)[:, None] + scale * rng.standard_normal((7, REPEATS)) / np.sqrt(SEEDS[:, None])
    s2 = scale**2 * rng.chisquare(SEEDS[:, None] - 1, (7, REPEATS)) / (SEEDS[:, None] - 1)
    return y, np.sqrt(variances_together(WIDTHS, s2, SEEDS - 1) / SEEDS[:, None])


def coverage(found, sigmas=1.0):
    return float((abs(found.limit) < sigmas * found.error).mean())


@pytest.mark.parametrize(
    ("law", "covered"),  # as measured of 7,200: averages over laws are cautious; of N^-.7 the power is not known
    [
        (lambda n: 5 / n, 0.82),
        (lambda n: 5 / n - 100 / n**2, 0.81),
        (lambda n: 5 / n / (1 + 40 / n), 0.80),
        (lambda n: 0.7 * n**-0.7, 0.67),
    ],
    ids=["1/N", "two terms", "all terms", "N^-.7"],
)
def test_errors_cover_the_limit_and_those_of_a_wrong_power_do_not(law, covered):
    y, se = drawn(law)
    found = averaged(WIDTHS, y, se)
    assert abs(coverage(found) - covered) < 0.06  # three standard deviations
    assert coverage(found, 2) > 0.88
    assert found.error.mean() < 2 * np.sqrt((found.limit**2).mean())
    assert coverage(averaged(WIDTHS, y, se, (0.5,))) < 0.4
    assert coverage(averaged(WIDTHS, y, se, (2.0,)), 2) < 0.6


@pytest.mark.parametrize(
    ("law", "covered"),  # of three widths
    [
        (lambda n: 5 / n, 0.8),
        (lambda n: 5 / n - 100 / n**2, 0.8),
        (lambda n: 5 / (n + 40), 0.8),
        (lambda n: 0.7 * n**-0.7, 0.62),
    ],
    ids=["1/N", "two terms", "all terms", "N^-.7"],
)
def test_errors_of_three_widths_hold_what_laws_that_are_not_tried_allow(law, covered):
    widths, rng = WIDTHS[:3], np.random.default_rng(0)
    se = np.broadcast_to(0.3 / np.sqrt(128 * widths[:, None]), (3, REPEATS))
    y = law(widths)[:, None] + se * rng.standard_normal((3, REPEATS))
    found = averaged(widths, y, se)
    assert coverage(found) > covered
    assert coverage(found, 2) > 0.9
    assert found.error.mean() < 2 * np.sqrt((found.limit**2).mean())
    assert np.isnan(found.weights[1:]).all()
    assert (found.weights[0] < 1).all()
    assert np.isnan(found.exponent).all()
    np.testing.assert_array_equal(np.isnan(found.p_value), found.dof == 0)
    # twin: the one law that is tried, taken for granted
    alone = averaged(widths, y, se, ("1/N",))
    assert (alone.weights == 1).all()
    if law(1.0) != 5:
        assert coverage(alone) < 0.1
        assert coverage(alone, 2) < 0.35


@pytest.mark.parametrize("power", [1.3, 1.0, 0.7, 0.5, 0.0])
def test_errors_cover_whatever_the_power_with_which_variances_fall(power):
    seeds, rng = np.array([24, 24, 24, 8, 8, 3, 1]), np.random.default_rng(0)
    variance = 1e-2 / 64 * (WIDTHS[:, None] / 64) ** -power
    y = 5 / WIDTHS[:, None] + np.sqrt(variance / seeds[:, None]) * rng.standard_normal((7, REPEATS))
    nu = np.maximum(seeds - 1, 1)[:, None]
    s2 = np.where(seeds[:, None] > 1, variance * rng.chisquare(nu, (7, REPEATS)) / nu, 0.0)

    def covered(together):
        found = averaged(WIDTHS, y, np.sqrt(together / seeds[:, None]))
        return coverage(found), coverage(found, 2)

    once, twice = covered(variances_together(WIDTHS, s2, seeds - 1))
    assert once > 0.74  # .78 to .92 of 600, binomial error .017
    assert twice > 0.96
    if power <= 0.7:  # twin: as if they fell like 1/N
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(averaged_laws, "FALLS", (-1.0, -1.0))
            before, _ = covered(variances_together(WIDTHS, s2, seeds - 1))
        assert before < once - 0.06


def test_variances_of_many_networks_are_their_own_and_of_none_those_of_the_others():
    s2 = np.array([[4.0], [4.0], [0.0]])
    together = variances_together(WIDTHS[:3], s2, np.array([1e9, 1e9, 0]))
    np.testing.assert_allclose(together, 4.0, rtol=1e-6)  # which do not fall
    # of a single width by itself, with nothing to see a power from
    assert variances_together(WIDTHS[:1], s2[:1], np.array([9.0])) == pytest.approx(4.0)
    falling = variances_together(WIDTHS[:3], s2, np.array([1e9, 0, 0]))
    np.testing.assert_allclose(falling[:, 0], 4.0 * WIDTHS[0] / WIDTHS[:3], rtol=1e-6)


def test_fits_are_linear_in_what_was_measured():
    y, se = drawn(lambda n: 5 / n - 100 / n**2)
    slope, slope_se = np.full((1, REPEATS), 4.0), np.full((1, REPEATS), 0.5)
    fit = fitted(WIDTHS, y, se, (1.0, 2.0), (slope, slope_se))
    np.testing.assert_allclose((fit.linear * np.concatenate([y, slope])).sum(0), fit.values[0], atol=1e-12)
    np.testing.assert_allclose(
        ((fit.linear * np.concatenate([se, slope_se])) ** 2).sum(0), fit.errors[0] ** 2, rtol=1e-9
    )
    fit = unknown(WIDTHS, y, se)
    np.testing.assert_allclose((fit.linear * y).sum(0), fit.values[0], atol=1e-12)


@pytest.mark.parametrize("known", [False, True])
def test_the_statistical_error_is_that_of_the_average_at_fixed_weights(known, monkeypatch):
    y, se = (a[:, :8] for a in drawn(lambda n: 5 / n - 100 / n**2))
    measured, errors = y, se
    if known:
        slopes = 5 + 0.5 * np.random.default_rng(1).standard_normal((1, 8))
        measured, errors = np.concatenate([y, slopes]), np.concatenate([se, np.full((1, 8), 0.5)])

    def found(at):
        return averaged(WIDTHS, at[:7], se, slope=(at[7], errors[7]) if known else None)

    chi2: list = []  # of all fits, in turn; of those it is that make the weights
    with monkeypatch.context() as patched:
        patched.setattr(averaged_laws, "fitted", lambda *given: chi2.append((fit := fitted(*given)).chi2) or fit)
        before = found(measured)

    def limit(at):
        kept = iter(chi2)
        with monkeypatch.context() as patched:
            patched.setattr(averaged_laws, "fitted", lambda *given: fitted(*given)._replace(chi2=next(kept)))
            return found(at).limit

    moves = 1e-3 * np.eye(len(measured))[:, :, None]
    jacobian = np.stack([limit(measured + move) - limit(measured - move) for move in moves]) / 2e-3
    expected = np.sqrt(((jacobian * errors) ** 2).sum(0))
    np.testing.assert_allclose(before.statistical, expected, rtol=1e-6)
    # twin: weights that move with what was measured
    free = np.stack([found(measured + move).limit - found(measured - move).limit for move in moves]) / 2e-3
    assert abs(np.sqrt(((free * errors) ** 2).sum(0)) / expected - 1).max() > 0.01


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_scatter_of_networks_has_an_exponent_with_an_error(power):
    rng = np.random.default_rng(0)
    s2 = WIDTHS[:, None] ** -power * rng.chisquare(SEEDS[:, None] - 1, (7, REPEATS)) / (SEEDS[:, None] - 1)
    s, se = exponent_of_variances(WIDTHS, s2, SEEDS - 1)
    z = (s + power) / se
    assert abs(z.mean()) < 0.15
    assert 0.85 < z.std() < 1.15
    # twin: of few degrees of freedom logarithms are too small
    plain = np.polyfit(np.log(WIDTHS), np.log(s2), 1, w=np.sqrt(SEEDS))[0]
    assert abs((plain + power) / se).mean() > abs(z).mean()
    assert np.isnan(exponent_of_variances(WIDTHS[:2], s2[:2], np.array([5, 0]))[0]).all()


def test_the_scatter_of_skewed_losses_has_the_larger_error_that_it_has():
    rng = np.random.default_rng(0)
    each = [
        Members(rng.chisquare(1, (n, REPEATS)) / np.sqrt(width)) for n, width in zip(SEEDS[:4], WIDTHS[:4], strict=True)
    ]
    s2 = np.stack([x.variance()[0] for x in each])
    spread = spread_of_variances(each)
    s, se = exponent_of_variances(WIDTHS[:4], s2, SEEDS[:4] - 1, spread)
    assert 0.8 < ((s + 1) / se).std() < 1.4
    # twin: the error of normal numbers
    s, se = exponent_of_variances(WIDTHS[:4], s2, SEEDS[:4] - 1)
    assert ((s + 1) / se).std() > 2


def test_what_is_known_of_the_slope_narrows_the_limit():
    y, se = drawn(lambda n: 5 / n / (1 + 40 / n))
    free = averaged(WIDTHS, y, se)
    slope = 5 + 0.1 * np.random.default_rng(1).standard_normal(REPEATS)
    known = averaged(WIDTHS, y, se, slope=(slope, np.full(REPEATS, 0.1)))
    assert known.error.mean() < 0.6 * free.error.mean()
    assert 0.6 < coverage(known) < 0.76  # .67 of 6,000, binomial error .02
    assert coverage(known, 2) > 0.91
    assert abs(free.slope.mean() - 5) < free.slope_se.mean() / np.sqrt(10)
    assert coverage(averaged(WIDTHS, y, se, slope=(slope + 3, np.full(REPEATS, 0.1)))) < 0.5


def test_exponents_are_resolved_or_nan():
    y, se = drawn(lambda n: 0.7 * n**-0.7)
    found = averaged(WIDTHS, y, se)
    z = (found.exponent - 0.7) / found.exponent_se
    assert np.isfinite(z).mean() > 0.7
    assert np.nanstd(z) < 1.3
    y, se = drawn(lambda n: 0 * n)
    assert np.isnan(averaged(WIDTHS, y, se).exponent).mean() > 0.9


def test_exact_numbers_have_no_statistical_error():
    exact = averaged(WIDTHS, (3 + 2 / WIDTHS)[:, None], np.zeros((7, 1)), ("1/N",))
    assert exact.limit == pytest.approx(3, abs=1e-9)
    assert exact.statistical == 0
    # what vanishes at all widths, as predictions of centered networks before training, vanishes in the limit
    none = averaged(WIDTHS, np.zeros((7, 2)), np.zeros((7, 2)))
    assert not none.limit.any()
    assert not none.error.any()


def test_laws_with_as_many_constants_as_widths_are_not_tested():
    y, se = drawn(lambda n: 5 / n)
    for laws, slope in ((["N^-p"], None), (["1/N + 1/N^2"], None), (["N^-p"], (np.zeros(REPEATS), np.ones(REPEATS)))):
        with pytest.raises(comparisons.UnresolvedError, match=r"3 widths do not test .*give more widths"):
            averaged(WIDTHS[:3], y[:3], se[:3], laws, slope)


def trained_task():
    x = np.random.default_rng(0).standard_normal((6, 12))
    return dmft.Task(x[:4], np.sign(x[:4, 0]), x[4:], np.sign(x[4:, 0]))


def linear_problem():
    return dmft.Problem(dmft.MLP(2, dmft.linear(), gamma0=1.5), trained_task(), dmft.GradientDescent(0.3, steps=8))


@pytest.fixture(scope="module")
def trained():
    """A problem whose limit is known, and networks of five widths in two results."""
    problem = linear_problem()
    settings = {"save_steps": [2, 8], "observables": ["prediction", "loss"]}
    nets = [
        finite_nets.train_ensemble(problem, widths=[32, 64, 128], seeds=128, **settings),
        finite_nets.train_ensemble(problem, widths=[256, 512], seeds=16, **settings),
    ]
    return dmft.solve(problem).sel(step=[2, 8]), nets


def test_networks_of_several_results_extrapolate_to_the_limit(trained):
    theory, nets = trained
    found = comparisons.extrapolate(nets, ["loss", "test_loss", "prediction"])
    for name in ("loss", "test_loss", "prediction"):
        z = (found[f"{name}_limit"] - theory[name]) / found[f"{name}_limit_se"]
        assert np.abs(z).max() < 3
    # predictions of the narrowest are many errors away
    narrow = (found["loss_mean"][0] - theory["loss"]) / found["loss_mean_se"][0]
    assert np.abs(narrow).max() > 3
    for name in ("loss", "test_loss"):  # averaged over networks: without their variance, and the same limit
        one, many = found[f"{name}_mean"], found[f"{name}_infinite_mean"]
        assert (many[0] < one[0]).all()
        z = (found[f"{name}_infinite_limit"] - theory[name]) / found[f"{name}_infinite_limit_se"]
        assert np.abs(z).max() < 3
    assert found["count"].values.tolist() == [128, 128, 128, 16, 16]
    assert comparisons.extrapolate(nets)["loss_limit"].dims == ("step",)
    assert not [name for name in found.variables if "long_name" not in found[name].attrs]


def test_networks_of_two_branches_are_named(trained):
    """A fourth of them, of every width, have another loss: that is no scatter which falls."""
    _, nets = trained
    rng = np.random.default_rng(0)
    split = [part.assign(loss=part["loss"] + 0.5 * (rng.random(part["loss"].shape) < 0.25)) for part in nets]
    with pytest.warns(UserWarning, match=r"variance of loss over networks goes .* several branches"):
        found = comparisons.extrapolate(split, ["loss"], ensembled=False)
    s, se = (found[f"loss_variance_exponent{end}"] for end in ("", "_se"))
    assert (abs(s) < 5 * se).all()
    s, se = (comparisons.extrapolate(nets, ["loss"])[f"loss_variance_exponent{end}"] for end in ("", "_se"))
    assert (abs(s + 1) < 4 * se).all()


@pytest.mark.slow
def test_what_fluctuations_predict_is_taken_as_known(trained):
    theory, nets = trained
    predicted = dmft.fluctuations(linear_problem(), save_steps=[2, 8])
    free, known = (comparisons.extrapolate(nets, ["loss"], fluctuations=one) for one in (None, predicted))
    assert (known["loss_limit_se"] < free["loss_limit_se"]).all()
    assert abs((known["loss_limit"] - theory["loss"]) / known["loss_limit_se"]).max() < 3
    wrong = predicted.assign(loss_bias=predicted["loss_bias"] + 2)
    off = comparisons.extrapolate(nets, ["loss"], fluctuations=wrong)
    assert abs((off["loss_limit"] - theory["loss"]) / off["loss_limit_se"]).max() > 4


def test_widths_of_one_network_have_no_ensemble(trained):
    _, nets = trained
    with pytest.warns(UserWarning, match=r"three widths do not try 1/N \+ 1/N\^2, N\^-p, .* for loss_infinite: "):
        found = comparisons.extrapolate([nets[0], nets[1].isel(seed=[0])], ["loss"])
    assert np.isfinite(found["loss_mean"]).all()
    assert np.isfinite(found["loss_infinite_mean"]).sum("width").values.tolist() == [3, 3]
    assert "loss_infinite_limit" not in comparisons.extrapolate([nets[0], nets[1]], ["loss"], ensembled=False)


def test_three_widths_say_which_laws_they_do_not_try(trained):
    theory, nets = trained
    with pytest.warns(UserWarning, match=r"three widths do not try 1/N \+ 1/N\^2, N\^-p, .*fourth width"):
        found = comparisons.extrapolate(nets[0], ["loss"], ensembled=False)
    assert np.isnan(found["loss_weight"][1:]).all()
    assert abs((found["loss_limit"] - theory["loss"]) / found["loss_limit_se"]).max() < 3
    # the law that is named holds; of four widths all are tried: no warning
    given = comparisons.extrapolate(nets[0], ["loss"], ensembled=False, laws=["1/N"])
    assert (given["loss_limit_se"] < found["loss_limit_se"]).all()
    four = comparisons.extrapolate([nets[0], nets[1].isel(width=[0])], ["loss"], ensembled=False)
    assert np.isfinite(four["loss_weight"]).all()


def test_networks_that_diverged_are_counted(trained):
    _, nets = trained
    gone = (nets[0].seed < 40) & (nets[0].width > 32)
    gone = gone.transpose("width", "seed")
    wild = nets[0].where(~gone).assign(diverged=gone)
    with pytest.warns(UserWarning, match="diverged, 40 of 128 of width 64, 40 of 128 of width 128: the limit is that"):
        found = comparisons.extrapolate([nets[1], wild], ["loss"])
    assert found["diverged"].values.tolist() == [0, 40, 40, 0, 0]
    assert found["count"].values.tolist() == [128, 88, 88, 16, 16]
    none = wild.assign(diverged=wild["diverged"] | (wild.width == 64))
    none = none.assign({name: none[name].where(none.width != 64) for name in ("loss", "test_loss", "prediction")})
    with pytest.raises(ValueError, match="all networks of width 64 diverged"):
        comparisons.extrapolate([nets[1], none], ["loss"])


def test_accuracies_are_between_none_and_all(trained):
    _, nets = trained
    rng = np.random.default_rng(0)

    def scored(rate, above=0.0):
        each = [
            0 * part["loss"]
            + rate
            + above * (1 - (32 / part.width) ** 0.25)
            + 0.02 * rng.standard_normal(part.loss.shape)
            for part in nets
        ]
        return [part[["prediction"]].assign(accuracy=x) for part, x in zip(nets, each, strict=True)]

    found = comparisons.extrapolate(scored(1.0), ["accuracy"], ensembled=False)
    assert (found["accuracy_limit"] <= 1).all()
    assert (found["accuracy_mean"] <= 1).all()
    assert (found["accuracy_limit_se"] > 0).all()
    inside = comparisons.extrapolate(scored(0.7), ["accuracy"], ensembled=False)
    assert abs((inside["accuracy_limit"] - 0.7) / inside["accuracy_limit_se"]).max() < 3
    with pytest.warns(UserWarning, match=r"accuracy goes to 1\.\d+ \+- .*, beyond what accuracies are"):
        found = comparisons.extrapolate(scored(0.9, 0.4), ["accuracy"], ensembled=False)
    assert (found["accuracy_limit"] == 1).any()


@pytest.mark.slow
def test_errors_cover_the_limit_of_the_theory_over_repeated_ensembles():
    """Nonlinear networks, of a limit that `solve` knows to a tenth of the errors; ensembles of other root seeds."""
    problem = dmft.Problem(dmft.MLP(2, gamma0=1.5), trained_task(), dmft.GradientDescent(0.3, steps=8))
    settings = {"save_steps": [8], "observables": ["prediction", "loss"]}
    theory = dmft.solve(problem, particles=8192, scrambles=8).sel(step=[8])
    seeds = {16: 1024, 32: 512, 64: 256, 128: 128, 256: 64}
    z, wrong = [], []
    for root in range(60):
        nets = [
            finite_nets.train_ensemble(problem, widths=[n], seeds=count, seed=root, **settings)
            for n, count in seeds.items()
        ]
        for laws, into in ((("1/N", "1/N + 1/N^2", "N^-p"), z), ((0.3,), wrong)):
            found = comparisons.extrapolate(nets, ["loss", "test_loss"], laws=laws, ensembled=laws != (0.3,))
            names = ["loss", "test_loss"] + ["test_loss_infinite"] * (laws != (0.3,))
            limits = [theory[name.removesuffix("_infinite")] for name in names]
            errors = [
                np.hypot(found[f"{n}_limit_se"], theory[f"{n.removesuffix('_infinite')}_se"]).item() for n in names
            ]
            into.append([(found[f"{n}_limit"] - t).item() / e for n, t, e in zip(names, limits, errors, strict=True)])
    inside, outside = (abs(np.array(each)) < 1 for each in (z, wrong))
    print(inside.mean(0), (abs(np.array(z)) < 2).mean(0), outside.mean(0), np.std(z, axis=0))
    assert (inside.mean(0) > 0.55).all()  # .68 less two binomial errors of 60
    assert ((abs(np.array(z)) < 2).mean(0) > 0.88).all()
    assert (outside.mean(0) < 0.5).all()


def test_moments_extrapolate_as_their_networks_do(trained):
    theory, nets = trained
    problem = linear_problem()
    settings = {"save_steps": [2, 8], "observables": ["prediction", "loss"]}
    moments = finite_nets.train_ensemble(
        problem, widths=[32, 64, 128], seeds=128, keep="moments", covariance=True, **settings
    )
    found = comparisons.extrapolate([moments, nets[1]], ["loss"])
    np.testing.assert_allclose(found["loss_limit"], comparisons.extrapolate(nets, ["loss"])["loss_limit"], rtol=1e-4)
    assert abs((found["loss_infinite_limit"] - theory["loss"]) / found["loss_infinite_limit_se"]).max() < 3


def test_bad_input_is_named(trained):
    _, nets = trained
    for given, names, error, match in (
        (3, None, TypeError, "list of ensembles"),
        ([nets[0], nets[0]], None, ValueError, "width 32 is there more than once"),
        (nets[0].isel(width=[0, 1]), None, comparisons.UnresolvedError, r"2 width\(s\)"),
        (nets[0].isel(seed=[0, 1]), None, comparisons.UnresolvedError, "too few for errors"),
        (nets, ["accuracy"], ValueError, "no accuracy, but"),
        (nets, "loss", TypeError, "list of names"),
        (nets, 3, TypeError, "list of names"),
        (nets, [], ValueError, r"quantities=\[\] names nothing; leave it out, or name some of .*loss"),
        (nets[0].assign_coords(width=[0, 64, 128]), None, ValueError, "width=0 is no width; expected whole numbers"),
        (nets[0].assign_coords(width=[-16, 64, 128]), None, ValueError, "width=-16 is no width"),
        (nets[0].assign_coords(width=[16.5, 64, 128]), None, ValueError, "width=16.5 is no width"),
        (nets[0].assign_coords(width=["16", "64", "128"]), None, ValueError, "width=16 is no width"),
        (nets[0].assign(loss=nets[0].loss.astype(object)), None, ValueError, "'loss' is of object; expected numbers"),
        (
            nets[0].assign(loss=nets[0].loss.where((nets[0].seed != 3) | (nets[0].width != 64))),
            None,
            ValueError,
            "'loss' holds non-finite numbers, first at width=64, seed=3, step=2; leave such entries out",
        ),
        ([nets[0], nets[1].isel(step=[0])], None, ValueError, "steps"),
        (xr.Dataset(), None, ValueError, "schema|kind"),
    ):
        with pytest.raises(error, match=match):
            comparisons.extrapolate(given, names)
    with pytest.raises(TypeError, match="ensembled='no' is neither True nor False"):
        comparisons.extrapolate(nets, ensembled="no")
    with pytest.raises(ValueError, match="choose among 1/N"):
        comparisons.extrapolate(nets, laws=["log"])
    with pytest.raises(TypeError, match=r"laws=\['1/N'\]"):
        comparisons.extrapolate(nets, laws="1/N")
    with pytest.raises(ValueError, match="must name different laws"):
        comparisons.extrapolate(nets, laws=["1/N", 1.0])
    with pytest.raises(ValueError, match="no single numbers, but prediction"):
        comparisons.extrapolate([net[["prediction"]] for net in nets])
