"""Laws in 1/N, onsets and distances, on planted networks whose laws are known.

Repetitions are steps of one result: every step holds networks that are independent of those of the others.
"""

import re
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
from comparisons import UnresolvedError
from comparisons.scaling import fit_series
from dmft import schema
from dmft.errors import SchemaError

ATTRS = {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0, "particles": 1, "scrambles": 2}
WIDTHS = np.array([32, 48, 64, 128, 256])


def make_problem(steps, *, outputs=None, learning_rate=0.1, gamma0=1.0):
    """A problem of three training samples and two test samples with this many recorded steps."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 4)), rng.standard_normal((5, outputs) if outputs else 5)
    task = dmft.Task(x[:3], y[:3], x[3:], y[3:])
    return dmft.Problem(dmft.MLP(2, gamma0=gamma0), task, dmft.GradientDescent(learning_rate, steps - 1))


def result(kind, problem, values, **coords):
    """A planted result over all steps of the problem."""
    attrs = ATTRS | ({"mode": "test"} if kind == "fluctuations" else {})
    steps = np.arange(problem.training.steps + 1)
    return schema.build(kind, problem, values, steps=steps, attrs=attrs, coords=coords)


def networks(problem, values, widths):
    """Values (width, seed, ...) by name as an ensemble."""
    seeds = next(iter(values.values())).shape[1]
    return result("ensemble", problem, values, width=widths, seed=np.arange(seeds))


def with_errors(values, se=0.0):
    return values | {f"{name}_se": np.full(np.shape(value), float(se)) for name, value in values.items()}


# ---- laws in 1/N -----------------------------------------------------------------------------------------------------

STEPS, SEEDS = 200, 200
BIAS, VARIANCE = 20.0, 2.0  # times N
THEORY_SE, BIAS_SE, VARIANCE_SE = 0.005, 0.5, 0.05


@pytest.fixture(scope="module")
def law():
    """(theory, networks, problem): predictions with N bias and N Var about a limit that has errors itself."""
    rng = np.random.default_rng(1)
    problem = make_problem(STEPS)
    shape = (STEPS, 5)
    limit = rng.standard_normal(shape)
    n = WIDTHS[:, None, None, None]
    f = limit + BIAS / n + np.sqrt(VARIANCE / n) * rng.standard_normal((5, SEEDS, *shape))
    theory = with_errors({"prediction": limit + THEORY_SE * rng.standard_normal(shape)}, THEORY_SE)
    return result("limit", problem, theory), networks(problem, {"prediction": f}, WIDTHS), problem


def planted_fluctuations(problem, bias, variance, seed=2):
    """Predicted N bias and N Var with errors."""
    rng, shape = np.random.default_rng(seed), (STEPS, 5)
    values = {
        "prediction_bias": bias + BIAS_SE * rng.standard_normal(shape),
        "prediction_bias_se": np.full(shape, BIAS_SE),
        "prediction_variance": variance + VARIANCE_SE * rng.standard_normal(shape),
        "prediction_variance_se": np.full(shape, VARIANCE_SE),
    }
    return result("fluctuations", problem, values)


def check_z(z, *, shift=0.0):
    """A thousand values of a standard normal: four standard errors of their mean (1/32) and spread (1/45); errors from
    200 networks each know themselves to 5 %, which adds 1 %."""
    assert z.size == STEPS * 5
    assert -0.13 - shift < z.mean() < 0.13
    assert z.std() == pytest.approx(1, abs=0.1)


def test_limits_and_slopes_agree_with_planted_theories_within_their_errors(law):
    theory, nets, problem = law
    compared = comparisons.compare(theory, nets, planted_fluctuations(problem, BIAS, VARIANCE))
    mean = comparisons.width_law(compared, "prediction_mean")
    assert mean.attrs["order"] == 1
    assert mean.coefficient.dims == ("term", "step", "sample")
    assert mean.term.values.tolist() == ["1", "N^-1"]
    check_z(mean.limit_z.values)
    check_z(mean.slope_z.values)
    variance = comparisons.width_law(compared, "prediction_variance")
    # a variance that is low by chance has a small error, and more weight: fits are low by 4 V / SEEDS
    low = 4 * VARIANCE / SEEDS / np.hypot(variance.coefficient_se[0], VARIANCE_SE).mean().item()
    check_z(variance.limit_z.values, shift=low)
    assert "slope_z" not in variance
    # the coefficients themselves
    check_z(((mean.coefficient - [[[0.0]], [[BIAS]]]) / mean.coefficient_se).values[1])


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_a_theory_that_is_20_percent_off_is_many_errors_away(law, factor):
    theory, nets, problem = law
    wrong = comparisons.compare(theory, nets, planted_fluctuations(problem, factor * BIAS, factor * VARIANCE))
    # errors of the slope are near 1.1: 0.2 * 20 / 1.1
    assert abs(comparisons.width_law(wrong, "prediction_mean").slope_z.mean()) > 3
    # N Var is known to 10 % / sqrt(5 widths) at one entry, and with a limit to be found less: all entries together
    z = comparisons.width_law(wrong, "prediction_variance").limit_z
    assert abs(z.mean()) > 0.5
    assert abs(z.mean()) > 10 / np.sqrt(z.size)
    shifted = theory.assign(prediction=theory.prediction + 0.2)
    off = comparisons.width_law(comparisons.compare(shifted, nets), "prediction_mean")
    assert (off.limit_z < -4).mean() > 0.99
    assert "slope_z" not in off


def test_the_law_is_the_series_of_its_entries_for_every_source(law):
    theory, nets, _ = law
    few = nets.isel(step=slice(0, 3))
    sources = {
        "prediction_mean": comparisons.statistics(few),
        "prediction_seed_variance": comparisons.statistics(few),
        "prediction_deviation": comparisons.compare(theory.isel(step=slice(0, 3)), few),
        "loss_infinite": comparisons.bias_variance(few),
    }
    for name, source in sources.items():
        for order in (1, 2):
            found = comparisons.width_law(source, name, order=order)
            fit = fit_series(WIDTHS, source[name].values, source[f"{name}_se"].values, order=order)
            np.testing.assert_array_equal(found.coefficient, fit.coefficients)
            np.testing.assert_array_equal(found.coefficient_se, fit.errors)
            np.testing.assert_array_equal(found.covariance, fit.covariance)
            np.testing.assert_array_equal(found.chi2, fit.chi2)
            np.testing.assert_array_equal(found.p_value, fit.p_value)
            assert (found.attrs["variable"], found.attrs["order"], found.attrs["dof"]) == (name, order, 4 - order)
            assert found.attrs["problem_id"] == nets.attrs["problem_id"]
    # of bias_variance, the ensembles are a dimension like others
    ensembles = comparisons.width_law(sources["loss_infinite"], "loss_ensemble")
    assert ensembles.coefficient.dims == ("term", "ensemble", "step")


def test_a_law_survives_a_file(law, tmp_path):
    found = comparisons.width_law(comparisons.compare(law[0], law[1]), "prediction_mean")
    xr.testing.assert_equal(dmft.load(dmft.save(found, tmp_path / "law.nc")), found)


def test_laws_that_nothing_checks_are_refused_with_what_there_is(law):
    _, nets, _ = law
    two = comparisons.statistics(nets.isel(width=[0, 4]))
    with pytest.raises(UnresolvedError, match=r"prediction_mean: 2 width\(s\) .* take at least 3") as caught:
        comparisons.width_law(two, "prediction_mean")
    np.testing.assert_allclose(caught.value.estimate.at([32, 256])[0], two.prediction_mean, atol=1e-12)  # rounding
    few = comparisons.statistics(nets.isel(seed=slice(0, 7)))
    with pytest.raises(UnresolvedError, match="prediction_mean rests on 7 networks of a width.* at least 8") as caught:
        comparisons.width_law(few, "prediction_mean")
    assert caught.value.estimate.coefficient.shape == (2, STEPS, 5)
    assert isinstance(caught.value, ValueError)
    assert comparisons.width_law(comparisons.statistics(nets.isel(seed=slice(0, 8))), "prediction_mean").order == 1


def test_refusals_of_laws(law):
    theory, nets, _ = law
    found = comparisons.compare(theory, nets)
    with pytest.raises(TypeError, match="width_law expects an xarray Dataset, got DataArray"):
        comparisons.width_law(found.prediction_mean, "prediction_mean")
    for name in ("prediction_z", "prediction_limit", "loss_mean"):  # no errors, no widths, not there
        with pytest.raises(
            ValueError, match=rf"'{name}' is not a variable with .* there are prediction_mean.* and others"
        ):
            comparisons.width_law(found, name)
    with pytest.raises(ValueError, match="there are none"):
        comparisons.width_law(theory, "loss")
    with pytest.raises(ValueError, match="order=3 is unknown"):
        comparisons.width_law(found, "prediction_mean", order=3)


# ---- onset -----------------------------------------------------------------------------------------------------------

RATE = 0.1  # learning rate: the time between steps
GROWTH = 8.0  # of relative deviations: GROWTH / N per unit of time


@pytest.fixture(scope="module")
def growing():
    """A comparison in which everything leaves the limit at GROWTH t / N, relative to the limit."""
    rng = np.random.default_rng(3)
    problem = make_problem(21, learning_rate=RATE)
    t = RATE * np.arange(21)
    f = np.linspace(0.2, 1.0, 21)[:, None] * np.array([1.0, -2.0, 0.5, 1.5, -1.0])  # the largest at the last step
    base = rng.random((5, 5))
    kernel = np.linspace(1.0, 3.0, 21)[:, None, None] * (base + base.T)
    limit = {"prediction": f, "loss": np.linspace(0.8, 0.1, 21), "feature_kernel": np.stack([kernel, 2 * kernel])}
    n = WIDTHS[:, None]
    away = GROWTH * t / n  # (width, step)
    members = {
        "prediction": f + away[..., None] * f[-1],  # as many root mean squares of the largest
        "loss": limit["loss"] + 0.8 * away,
        "feature_kernel": (1 + away[:, None, :, None, None] * np.array([1.0, 0.5])[:, None, None, None])
        * limit["feature_kernel"],
    }
    # scatter that is small and has no mean, so that curves are those planted but for its square
    sign = np.array([1.0, -1.0] * 5)
    planted = {
        name: value[:, None] + 1e-5 * sign.reshape(1, 10, *[1] * (value.ndim - 1)) for name, value in members.items()
    }
    theory = result("limit", problem, with_errors(limit, 1e-7))
    return comparisons.compare(theory, networks(problem, planted, WIDTHS))


@pytest.mark.parametrize("of", ["error", "distance"])
@pytest.mark.parametrize("quantity", ["loss", "prediction", "feature_kernel"])
def test_the_onset_is_the_time_at_which_the_tolerance_is_crossed(growing, quantity, of):
    tolerance = 0.05
    found = comparisons.onset(growing, quantity, tolerance=tolerance, of=of)
    expected = tolerance * WIDTHS / GROWTH  # between steps, up to 1.6
    if quantity == "feature_kernel":
        expected = np.stack([expected, 2 * expected], axis=1)
    expected = np.where(expected <= RATE * 20, expected, np.nan)  # wider, or slower, than the run is long
    # kernels deviate on a curve that is linear in time; scatter of 1e-5 moves the crossing by 1e-5 / slope < 1e-3
    np.testing.assert_allclose(found.onset, expected, atol=1e-3)
    assert found.onset.dims == (("width", "layer") if quantity == "feature_kernel" else ("width",))
    assert found.attrs["of"] == of


def test_an_onset_that_never_comes_is_nan_and_one_at_once_is_the_first_time(growing):
    assert comparisons.onset(growing, "loss", tolerance=0.9).onset.isnull().all()
    late = growing.isel(step=slice(18, None))
    np.testing.assert_allclose(comparisons.onset(late, "loss", tolerance=0.05).onset, 18 * RATE)


def test_onsets_are_in_order_and_errors_widen_them(growing):
    noisy = growing.assign(loss_error_se=growing.loss_error_se * 0 + 0.01)
    found = comparisons.onset(noisy, "loss", tolerance=0.05)
    clear = found.onset.notnull().values
    assert clear.any()
    early, onset, late = (found[name].values[clear] for name in ("onset_early", "onset", "onset_late"))
    # 0.01 over the largest loss of 0.8, at GROWTH / N per unit of time
    shift = 0.0125 * WIDTHS[clear] / GROWTH
    np.testing.assert_allclose(onset - early, shift, atol=1e-3)
    np.testing.assert_allclose((late - onset)[onset + shift < 2], shift[onset + shift < 2], atol=1e-3)
    assert (np.isnan(late) | (late >= onset)).all()
    # what is not clear of the tolerance by two errors is no onset
    blurred = growing.assign(loss_error_se=growing.loss_error_se * 0 + 10.0)
    assert comparisons.onset(blurred, "loss", tolerance=0.05).onset.isnull().all()


def test_onsets_are_in_order_for_noisy_curves():
    rng = np.random.default_rng(4)
    problem = make_problem(12)
    limit = {"loss": np.linspace(1.0, 0.5, 12)}
    walk = np.cumsum(rng.standard_normal((5, 20, 12)), axis=-1) * 0.05 + 0.02 * np.arange(12)
    nets = networks(problem, {"loss": limit["loss"] + walk}, WIDTHS)
    found = comparisons.onset(comparisons.compare(result("limit", problem, with_errors(limit, 1e-3)), nets))
    early, onset, late = (found[name].values for name in ("onset_early", "onset", "onset_late"))
    assert np.isfinite(onset).any()
    assert (early <= onset)[np.isfinite(onset)].all()
    assert (onset <= late)[np.isfinite(late)].all()


def test_refusals_of_onsets(growing):
    with pytest.raises(SchemaError, match="expected 'comparison'"):
        comparisons.onset(growing.assign_attrs(kind="limit"))
    with pytest.raises(
        ValueError, match="quantity='ntk' is not in this comparison, which holds prediction, loss, feat"
    ):
        comparisons.onset(growing, "ntk")
    with pytest.raises(ValueError, match="of='bias' is unknown; choose 'error'"):
        comparisons.onset(growing, of="bias")
    for bad in (0.0, -0.1, np.nan):
        with pytest.raises(ValueError, match="tolerance"):
            comparisons.onset(growing, tolerance=bad)


# ---- pointwise distances ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[None, 2])
def cloud(request):
    """(theory, networks, mean, variance): many networks of a known mean and variance at every width; one or two outputs."""
    rng = np.random.default_rng(5)
    problem = make_problem(3, outputs=request.param)
    shape = (3, 5, request.param) if request.param else (3, 5)
    limit = 1 + rng.random(shape)
    shift, spread = 8 * rng.standard_normal(shape), 2 + 3 * rng.random(shape)
    widths = np.array([64, 16, 32])  # in no order
    n = widths.reshape(-1, *[1] * len(shape))
    mean, variance = limit + shift / n, spread**2 / n
    f = mean[:, None] + np.sqrt(variance)[:, None] * rng.standard_normal((3, 2000, *shape))
    theory = result("limit", problem, with_errors({"prediction": limit}))
    return theory, networks(problem, {"prediction": f}, widths), mean, variance


def over(values, split):
    """Mean over the samples of a split, sum over outputs, of (step, sample[, output])."""
    part = {"train": slice(0, 3), "test": slice(3, 5)}[split]
    return values[:, part].sum(axis=tuple(range(1, values.ndim))) / (part.stop - part.start)


def test_distances_are_those_of_brute_force(cloud):
    theory, nets, mean, variance = cloud
    limit = theory.prediction.values
    found = comparisons.pointwise(nets, theory)
    assert found.width.values.tolist() == [16, 32, 64]
    assert found.wider.values.tolist() == [32, 64]
    assert found.narrower.values.tolist() == [16, 32]
    order = [1, 2, 0]
    expected = {name: np.empty((len(found[name]), 2, 3)) for name in found.data_vars if not name.endswith("_se")}
    for s, split in enumerate(("train", "test")):
        scale = over(limit**2, split)
        for i, w in enumerate(order):
            expected["distance"][i, s] = over((mean[w] - limit) ** 2 + variance[w], split) / scale
            expected["error"][i, s] = over((mean[w] - limit) ** 2, split) / scale
        for i, (a, b) in enumerate(pairwise(order)):
            square, scale = over((mean[a] - mean[b]) ** 2, split), over(mean[b] ** 2, split)
            expected["successive"][i, s] = (square + over(variance[a] + variance[b], split)) / scale
            expected["successive_error"][i, s] = square / scale
    assert set(expected) == {"distance", "error", "successive", "successive_error"}
    for name, value in expected.items():
        z = (found[name] - np.sqrt(value)) / found[f"{name}_se"]
        assert abs(z).max() < 4, name  # of eighteen, from 2000 networks
        assert (found[f"{name}_se"] < 0.3 * found[name]).all()  # and they say something


def test_distances_of_members_are_those_of_the_docstring(cloud):
    theory, nets, *_ = cloud
    found = comparisons.pointwise(nets, theory)
    f, limit = nets.prediction.sel(width=64).values, theory.prediction.values
    g = nets.prediction.sel(width=32).values
    for s, split in enumerate(("train", "test")):
        each = np.array([over((one - limit) ** 2, split) for one in f]).mean(0) / over(limit**2, split)
        np.testing.assert_allclose(found.distance.sel(width=64)[s], np.sqrt(each), rtol=1e-12)  # rounding
        # over all pairs of networks, which are independent
        square = over((f.mean(0) - g.mean(0)) ** 2 + f.var(0) + g.var(0), split)
        scale = over(f.mean(0) ** 2 - f.var(0, ddof=1) / len(f), split)
        np.testing.assert_allclose(found.successive.sel(wider=64)[s], np.sqrt(square / scale), rtol=1e-12)


def test_moments_of_blocks_have_the_same_distances(cloud):
    theory, nets, *_ = cloud
    f = nets.prediction.values[:, :100]
    blocks = f.reshape(3, 20, 5, *f.shape[2:])
    values = {
        "count": np.full((3, 20), 5),
        "diverged": np.zeros((3, 20), int),
        "prediction_mean": blocks.mean(2),
        "prediction_m2": ((blocks - blocks.mean(2, keepdims=True)) ** 2).sum(2),
    }
    steps, coords = np.arange(3), {"width": nets.width.values, "block": np.arange(20)}
    problem = make_problem(3, outputs=f.shape[-1] if f.ndim == 5 else None)
    moments = schema.build("moments", problem, values, steps=steps, attrs=ATTRS, coords=coords)
    ours, theirs = comparisons.pointwise(moments, theory), comparisons.pointwise(nets.isel(seed=slice(0, 100)), theory)
    for name in theirs.data_vars:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-7, err_msg=name)  # rounding


def test_distances_of_equal_means_are_zero_within_their_errors_and_plain_ones_are_not():
    rng = np.random.default_rng(6)
    steps, seeds = 400, 40
    problem = make_problem(steps)
    f = 1 + np.sqrt(2.0 / np.array([16, 32]))[:, None, None, None] * rng.standard_normal((2, seeds, steps, 5))
    nets = networks(problem, {"prediction": f}, [16, 32])
    se = 0.02
    truth = np.ones((steps, 5))
    theory = {"prediction": truth + se * rng.standard_normal(truth.shape), "prediction_se": np.full(truth.shape, se)}
    found = comparisons.pointwise(nets, result("limit", problem, theory))
    for name in ("error", "successive_error"):
        # the square is below its error in 84 %, were it normal; it is a sum of two or three squares: between 80 and 90 %
        below = (found[name] <= found[f"{name}_se"]).mean("step")
        assert (below > 0.75).all(), name
        assert ((found[name] == 0).mean("step") > 0.4).all()
        # a square above two of its errors gives a root above four: 4.8 % for a sum of three squares
        assert ((found[name] > 4 * found[f"{name}_se"]).mean("step") < 0.1).all()
    plain = abs(f.mean(1) - 1).mean(axis=(1, 2))
    assert (plain > 0.5 * np.sqrt(2.0 / (16 * seeds)) * np.array([1, np.sqrt(0.5)])).all()
    # a single network is off by its scatter, of which the distance, a root, is a little short: half its squared relative
    # error, 1 / (4 SEEDS 3); errors of the limit, 0.02, make |f_limit| uncertain, but not larger: they are taken off
    expected = np.sqrt(2.0 / np.array([16, 32]))[:, None]
    off, error = found.distance.mean("step") - expected, found.distance.std("step") / np.sqrt(steps)
    assert (abs(off) < 4 * error + expected / (4 * seeds)).all()


def test_errors_of_distances_cover():
    rng = np.random.default_rng(7)
    steps, seeds = 400, 40
    problem = make_problem(steps)
    n = np.array([16, 32])[:, None, None, None]
    f = 1 + 8 / n + np.sqrt(2.0 / n) * rng.standard_normal((2, seeds, steps, 5))
    nets = networks(problem, {"prediction": f}, [16, 32])
    found = comparisons.pointwise(nets, result("limit", problem, with_errors({"prediction": np.ones((steps, 5))})))
    truth = {
        "distance": np.sqrt((8 / n) ** 2 + 2 / n).ravel(),
        "error": (8 / n).ravel(),
        "successive": np.sqrt([(0.25**2 + 2 / 16 + 2 / 32) / 1.25**2]),
        "successive_error": np.array([0.25 / 1.25]),
    }
    for name, value in truth.items():
        pulls = (found[name] - value[:, None, None]) / found[f"{name}_se"]
        # 400 repetitions know a spread to 3.5 %; twenty groups make it that of Student, 1.06
        assert (abs(pulls.std("step") - 1.06) < 0.17).all(), (name, pulls.std("step").values)


def test_without_a_theory_networks_are_compared_with_wider_ones(cloud):
    theory, nets, *_ = cloud
    alone = comparisons.pointwise(nets)
    names = {f"{kind}{part}" for kind in ("successive", "widest") for part in ("", "_error")}
    assert set(alone.data_vars) == {f"{n}{fit}{se}" for n in names for fit in ("", "_exponent") for se in ("", "_se")}
    assert "width" not in alone.coords
    one = comparisons.pointwise(nets.isel(width=[0]), theory)
    assert set(one.data_vars) == {"distance", "distance_se", "error", "error_se"}


def test_predictions_that_vanish_have_no_relative_distance(cloud):
    theory, nets, *_ = cloud
    start = xr.where(nets.step == 0, 0.0, 1.0)
    found = comparisons.pointwise(
        nets.assign(prediction=(nets.prediction * start).transpose(*nets.prediction.dims)),
        theory.assign(prediction=(theory.prediction * start).transpose(*theory.prediction.dims)),
    )
    for name in found.data_vars:
        assert found[name].isel(step=0).isnull().all()
        assert found[name].isel(step=1).notnull().all()


def test_refusals_of_distances(cloud):
    theory, nets, *_ = cloud

    def refuses(error, message, *args):
        with pytest.raises(error, match=re.escape(message)):
            comparisons.pointwise(*args)

    refuses(ValueError, "one width without a theory has nothing to be compared with", nets.isel(width=[0]))
    refuses(ValueError, "7 network(s) of width 64", nets.isel(seed=slice(0, 7)), theory)
    refuses(
        SchemaError,
        "got a Dataset of kind 'limit': nets is missing. Expected, in any order: theory, a result of kind 'limit'",
        theory,
    )
    refuses(SchemaError, "nets is there twice", nets, nets)
    refuses(ValueError, "theory has 3 steps and the networks 2", nets.isel(step=[0, 1]), theory)
    refuses(SchemaError, "labelled differently", nets.assign_coords(sample=[0, 1, 2, 3, 7]), theory)
    other = make_problem(3, gamma0=2.0)
    wrong = theory.assign_attrs(problem_id=other.problem_id, problem=other.to_json(arrays=False))
    refuses(ValueError, "of different problems; network.", nets, wrong)
    refuses(ValueError, "the networks have no predictions", networks(other, {"loss": np.ones((1, 8, 3))}, [8]))
