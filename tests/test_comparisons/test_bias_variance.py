"""Losses of ensembles, on planted networks whose every loss is known, and the width that an ensemble is worth.

Repetitions are steps of one result: every step holds networks that are independent of those of the others.
"""

import re

import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
from dmft import schema
from dmft.errors import SchemaError
from dmft.specs import loss

REPEATS = 400
WIDTHS = np.array([8, 16, 32])
SIZES = (1, 2, 4, 8)
ATTRS = {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0}
# |z| of one comparison; of some hundred of them, all stay below with probability 0.99
SIGMAS = 4.0


def make_problem(y, *, kind="squared", test=2, steps=REPEATS, gamma0=1.0):
    """A problem with these targets, of which the last `test` are of test samples."""
    y = np.asarray(y, float)
    x = np.random.default_rng(0).standard_normal((len(y), 4))
    train = len(y) - test
    task = dmft.Task(x[:train], y[:train], x[train:], y[train:]) if test else dmft.Task(x, y)
    return dmft.Problem(dmft.MLP(1, gamma0=gamma0), task, dmft.GradientDescent(0.1, steps - 1), kind)


def result(kind, problem, values, **coords):
    """A planted result over all steps of the problem."""
    attrs = ATTRS | {"mode": "test"}
    return schema.build(kind, problem, values, steps=np.arange(problem.training.steps + 1), attrs=attrs, coords=coords)


def networks(problem, f, widths):
    """Predictions (width, seed, step, sample[, output]) as an ensemble."""
    return result("ensemble", problem, {"prediction": f}, width=widths, seed=np.arange(f.shape[1]))


def in_blocks(problem, nets, size):
    """The same networks by moments of blocks of `size` of them."""
    f = nets.prediction.values
    blocks = f.shape[1] // size
    parts = f.reshape(len(f), blocks, size, *f.shape[2:])
    values = {
        "count": np.full((len(f), blocks), size),
        "diverged": np.zeros((len(f), blocks), int),
        "prediction_mean": parts.mean(2),
        "prediction_m2": ((parts - parts.mean(2, keepdims=True)) ** 2).sum(2),
    }
    return result("moments", problem, values, width=nets.width.values, block=np.arange(blocks))


def check(values, errors, truth, *, truth_se=0.0, over=1.15, cautious=1.15):
    """Over the last axis: no bias, and errors that are at most `over` and at least 1/`cautious` of what is claimed.

    The spread of 400 repetitions is known to 3.5 %, four of which are 1.15.
    """
    truth = np.expand_dims(np.broadcast_to(truth, values.shape[:-1]), -1)
    standard = np.hypot(values.std(-1) / np.sqrt(values.shape[-1]), truth_se)
    assert np.all(abs(values.mean(-1) - truth[..., 0]) < SIGMAS * standard)
    ratio = np.sqrt(((values - truth) ** 2).mean(-1) / (errors**2).mean(-1))
    assert np.all((1 / cautious < ratio) & (ratio < over)), ratio


# ---- the squared loss ------------------------------------------------------------------------------------------------

TARGET = np.array([1.0, -1.0, 1.0, 1.0, -1.0])  # three of training samples, two of test samples
LIMIT = np.array([0.6, -0.2, 0.9, 0.1, 0.3])
BIAS = np.array([-2.0, 1.5, -1.0, -3.0, 2.0])  # of predictions, times N
VARIANCE = np.array([1.0, 4.0, 2.0, 6.0, 3.0])  # times N
PARTS = {"loss": slice(0, 3), "test_loss": slice(3, 5)}


def true_loss(q, width, k=np.inf):
    """L_k of the planted squared losses; of the infinite ensemble by default."""
    each = (LIMIT + BIAS / width - TARGET) ** 2 + VARIANCE / (width * k)
    return each[PARTS[q]].mean() / 2


@pytest.fixture(scope="module")
def planted():
    """(problem, theory, networks): forty a width, whose predictions are correlated between samples."""
    rng = np.random.default_rng(1)
    problem = make_problem(TARGET)
    n = WIDTHS[:, None, None, None]
    shape = (3, 40, REPEATS, 5)
    noise = (rng.standard_normal(shape) + rng.standard_normal((*shape[:3], 1))) / np.sqrt(2)
    nets = networks(problem, LIMIT + BIAS / n + np.sqrt(VARIANCE / n) * noise, WIDTHS)
    values = {}
    for q in PARTS:
        values[f"{q}_se"] = np.full(REPEATS, 0.02)
        values[q] = true_loss(q, np.inf) + 0.02 * rng.standard_normal(REPEATS)
    return problem, result("limit", problem, values), nets


@pytest.fixture(scope="module")
def found(planted):
    _, theory, nets = planted
    return comparisons.bias_variance(nets, theory, ensembles=(8, 1, 2, 4))


@pytest.mark.parametrize("q", PARTS)
def test_losses_of_ensembles_and_their_parts_are_unbiased_and_their_errors_cover(found, q):
    assert found.ensemble.values.tolist() == list(SIZES)
    infinite = np.array([true_loss(q, n) for n in WIDTHS])
    single = np.array([true_loss(q, n, 1) for n in WIDTHS])
    ensembles = np.array([[true_loss(q, n, k) for k in SIZES] for n in WIDTHS])
    for name, truth in (
        ("ensemble", ensembles),
        ("infinite", infinite),
        ("variance_part", single - infinite),
        ("bias_part", infinite - true_loss(q, np.inf)),
    ):
        check(found[f"{q}_{name}"].values, found[f"{q}_{name}_se"].values, truth)


def test_the_loss_of_the_mean_is_biased_where_the_estimate_is_not(planted):
    _, _, nets = planted
    few = nets.isel(seed=slice(0, 8))
    ours = comparisons.bias_variance(few, ensembles=(1,))
    for q, part in PARTS.items():
        plain = ((few.prediction.mean("seed").values - TARGET) ** 2)[..., part].mean(-1) / 2  # (width, step)
        for i, n in enumerate(WIDTHS):
            for estimate, bias in (
                (ours[f"{q}_infinite"].values[i], 0.0),
                (plain[i], VARIANCE[part].mean() / (16 * n)),
            ):
                excess = estimate - true_loss(q, n)
                standard = excess.std() / np.sqrt(REPEATS)
                assert abs(excess.mean() - bias) < SIGMAS * standard
                # seen where networks scatter most
                assert bias == 0 or i > 0 or excess.mean() > 3 * standard


def test_an_ensemble_of_one_is_the_mean_network_and_parts_add_up(planted, found):
    _, theory, nets = planted
    for q, part in PARTS.items():
        each = ((nets.prediction.values - TARGET) ** 2)[..., part].mean(-1) / 2
        np.testing.assert_allclose(found[f"{q}_ensemble"].sel(ensemble=1), each.mean(1), rtol=1e-12)  # rounding
        excess = found[f"{q}_ensemble"].sel(ensemble=1) - theory[q]
        np.testing.assert_allclose(found[f"{q}_variance_part"] + found[f"{q}_bias_part"], excess, atol=1e-12)


def test_moments_of_blocks_say_what_their_members_say(planted, found):
    problem, theory, nets = planted
    # twenty blocks of two: the groups of the jackknife, so that errors are the same too
    blocks = comparisons.bias_variance(in_blocks(problem, nets, 2), theory, ensembles=SIZES)
    assert blocks.attrs["seeds"] == [40] * 3
    assert set(blocks.data_vars) == set(found.data_vars)
    for name in found.data_vars:
        np.testing.assert_allclose(blocks[name], found[name], rtol=1e-7, atol=1e-12, err_msg=name)  # rounding


def test_networks_that_diverged_do_not_count(planted):
    _, theory, nets = planted
    gone = np.zeros((3, 40), bool)
    gone[1, ::4] = True
    some = nets.where(~xr.DataArray(gone, dims=("width", "seed"))).assign(diverged=(("width", "seed"), gone))
    whole = comparisons.bias_variance(some, theory)
    assert whole.attrs["seeds"] == [40, 30, 40]
    alone = comparisons.bias_variance(nets.isel(width=[1], seed=~gone[1]), theory)
    np.testing.assert_array_equal(whole.loss_ensemble[1], alone.loss_ensemble[0])


@pytest.mark.parametrize("outputs", [1, 3])
def test_several_outputs_add_up_within_a_sample(outputs):
    rng = np.random.default_rng(2)
    y = rng.standard_normal((5, outputs))
    problem = make_problem(y, steps=4)
    f = rng.standard_normal((2, 12, 4, 5, outputs))
    nets = networks(problem, f, [8, 16])
    got = comparisons.bias_variance(nets, ensembles=(1, 3))
    for q, part in PARTS.items():
        g, target = f[..., part, :], y[part]
        variance = g.var(1, ddof=1)
        infinite = ((g.mean(1) - target) ** 2 - variance / 12).sum(-1).mean(-1) / 2
        np.testing.assert_allclose(got[f"{q}_infinite"], infinite, rtol=1e-12, atol=1e-12)  # rounding
        three = infinite + variance.sum(-1).mean(-1) / 6
        np.testing.assert_allclose(got[f"{q}_ensemble"].sel(ensemble=3), three, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            got[f"{q}_ensemble"].sel(ensemble=1), ((g - target) ** 2).sum(-1).mean(-1).mean(1) / 2, rtol=1e-12
        )


def test_without_test_samples_there_is_no_test_loss():
    problem = make_problem(TARGET, test=0, steps=2)
    nets = networks(problem, np.random.default_rng(0).standard_normal((1, 8, 2, 5)), [8])
    got = comparisons.bias_variance(nets)
    assert not [name for name in got.data_vars if "test" in name]
    assert "loss_bias_part" not in got  # nor a bias part without the theory


# ---- other losses ----------------------------------------------------------------------------------------------------

SEEDS = 16
SPREAD = 2.0  # of predictions: losses are far from quadratic over it
TRIALS = 1000


def general_case(kind):
    """(problem, mean predictions (sample, output), targets) of four training samples."""
    if kind == "logistic":
        y, mean = np.array([1.0, -1.0, 1.0, -1.0]), np.array([0.3, -0.2, 1.0, 0.5])[:, None]
        return make_problem(y, kind=kind, test=0, steps=TRIALS), mean, y[:, None]
    y = np.eye(3)[[0, 1, 2, 0]]
    mean = np.random.default_rng(3).standard_normal((4, 3))
    return make_problem(y, kind=kind, test=0, steps=TRIALS), mean, y


@pytest.mark.parametrize("kind", ["logistic", "cross_entropy"])
def test_other_losses_agree_with_brute_force_and_the_loss_of_the_mean_does_not(kind):
    rng = np.random.default_rng(4)
    problem, mean, y = general_case(kind)

    def of(f):
        return loss.values(np, kind, f, y).mean(-1)

    f = mean + SPREAD * rng.standard_normal((1, SEEDS, TRIALS, *mean.shape))
    nets = networks(problem, f if kind == "cross_entropy" else f[..., 0], [8])
    got = comparisons.bias_variance(nets, ensembles=SIZES).isel(width=0)
    assert got.attrs["loss"] == kind

    exact = of(mean)  # of the infinite ensemble
    single, single_se = None, None
    for k in SIZES:
        trials = of((mean + SPREAD * rng.standard_normal((20_000, k, *mean.shape))).mean(1))
        truth, truth_se = trials.mean(), trials.std() / np.sqrt(len(trials))
        if k == 1:
            single, single_se = truth, truth_se
        # 1000 repetitions know the spread to 2.2 %; the error is cautious, being that of one of eight partitions
        one = got.sel(ensemble=k)
        check(
            one.loss_ensemble.values,
            one.loss_ensemble_se.values,
            truth,
            truth_se=truth_se,
            over=1.1,
            cautious=1.1 if k == 1 else 1.4,
        )
    # what the jackknife leaves, of order 1/n^2, is (SPREAD^2 / 16)^2 / 8 times a fourth derivative below 1/8: 0.001
    check(got.loss_infinite.values, got.loss_infinite_se.values, exact, truth_se=1e-3, over=1.1, cautious=1.1)
    variance_part = got.loss_variance_part
    check(
        variance_part.values,
        got.loss_variance_part_se.values,
        single - exact,
        truth_se=np.hypot(single_se, 1e-3),
        over=1.1,
        cautious=1.1,
    )
    np.testing.assert_allclose(got.loss_ensemble.sel(ensemble=1), of(f[0]).mean(0), rtol=1e-12)  # rounding

    plain = of(f[0].mean(0)) - exact
    assert plain.mean() > 5 * plain.std() / np.sqrt(TRIALS)


def test_partitions_are_those_of_the_seed():
    problem, mean, _ = general_case("logistic")
    f = np.random.default_rng(5).standard_normal((1, SEEDS, TRIALS, 4)) + mean[:, 0]
    nets = networks(problem, f, [8])
    one, same, other = (comparisons.bias_variance(nets, ensembles=(1, 4), seed=s) for s in (0, 0, 1))
    xr.testing.assert_identical(one, same)
    assert abs(one.loss_ensemble - other.loss_ensemble).sel(ensemble=4).max() > 1e-3
    np.testing.assert_array_equal(one.loss_infinite, other.loss_infinite)


# ---- the width that an ensemble is worth -----------------------------------------------------------------------------

LOSS_LIMIT = 0.5


def exact_laws(b, v, widths=(32, 8, 16), seeds=12):
    """Results of two equal steps in which L_1 = limit + b/N and < Var f > / 2 = v/N hold without noise.

    The residual of the mean is what makes up for the estimate of its own sampling noise.
    """
    problem = make_problem([0.0, 0.0], test=0, steps=2)
    widths = np.array(widths)
    noise = np.random.default_rng(6).standard_normal((seeds, 1, 2))
    noise = (noise - noise.mean(0)) / noise.std(0, ddof=1)
    n = widths[:, None, None, None]
    mean = np.sqrt(2 * LOSS_LIMIT + 2 * (b - v) / n + 2 * v / (n * seeds))
    nets = networks(problem, np.repeat(mean + np.sqrt(2 * v / n) * noise, 2, axis=2), widths)
    theory = result("limit", problem, {"loss": np.full(2, LOSS_LIMIT), "loss_se": np.zeros(2)})
    values = {"prediction_variance": np.full((2, 2), 2 * v), "loss_bias": np.full(2, b)}
    fluctuations = result("fluctuations", problem, values | {f"{name}_se": 0 * x for name, x in values.items()})
    return nets, theory, fluctuations


def test_the_worth_of_an_ensemble_is_the_one_of_exact_laws_and_the_predicted_one():
    b, v = 3.0, 2.0
    got = comparisons.bias_variance(*exact_laws(b, v), ensembles=(1, 2, 4, 16)).isel(step=0)
    n, k = got.width.astype(float), got.ensemble
    expected = n * b / (b - v + v / k)
    for suffix in ("worth", "worth_predicted"):
        np.testing.assert_allclose(
            got[f"loss_{suffix}"], expected.transpose("width", "ensemble"), rtol=1e-9
        )  # rounding
    np.testing.assert_allclose(got.loss_variance_part, v / n, rtol=1e-9)
    np.testing.assert_allclose(got.loss_bias_part, (b - v) / n, rtol=1e-9)
    for part in ("variance_part", "bias_part"):
        np.testing.assert_allclose(got[f"loss_{part}"], got[f"loss_{part}_predicted"], rtol=1e-9)


def test_without_the_limit_no_ensemble_is_worth_more_than_the_widest():
    nets, theory, _ = exact_laws(3.0, 2.0)
    with_limit = comparisons.bias_variance(nets, theory).loss_worth
    without = comparisons.bias_variance(nets).loss_worth
    inside = with_limit.values < 32 * (1 + 1e-9)
    assert inside.any()
    assert not inside.all()
    np.testing.assert_allclose(without.values[inside], with_limit.values[inside], rtol=1e-9)
    assert np.isnan(without.values[~inside]).all()


def test_an_ensemble_below_the_loss_of_the_limit_is_worth_infinite_width():
    b, v = 1.0, 2.0  # bias of predictions helps here: an ensemble of two is as good as the limit, of four better
    got = comparisons.bias_variance(*exact_laws(b, v), ensembles=(1, 4)).isel(step=0)
    for suffix in ("worth", "worth_predicted"):
        assert np.isposinf(got[f"loss_{suffix}"].sel(ensemble=4)).all()
        assert got[f"loss_{suffix}_se"].sel(ensemble=4).isnull().all()
        np.testing.assert_allclose(got[f"loss_{suffix}"].sel(ensemble=1), got.width, rtol=1e-9)


def test_where_wider_networks_are_not_better_an_ensemble_is_worth_no_width():
    got = comparisons.bias_variance(*exact_laws(-1.0, 0.5), ensembles=(2, 4)).isel(step=0)
    assert np.isposinf(got.loss_worth).all()  # below the limit's loss, whatever the width
    assert got.loss_worth_predicted.isnull().all()
    nets, _, fluctuations = exact_laws(-1.0, 0.5)
    got = comparisons.bias_variance(nets, fluctuations=fluctuations, ensembles=(2, 4))
    assert got.loss_worth.isnull().all()


def test_a_single_network_is_worth_its_own_width_for_any_loss():
    rng = np.random.default_rng(7)
    problem, mean, _ = general_case("logistic")
    n = WIDTHS[:, None, None, None]
    # thirty networks are not a multiple of the twenty groups of the jackknife
    nets = networks(problem, mean[:, 0] + np.sqrt(100.0 / n) * rng.standard_normal((3, 30, TRIALS, 4)), WIDTHS)
    got = comparisons.bias_variance(nets, ensembles=(1, 2)).sel(ensemble=1)
    falls = (got.loss_ensemble.diff("width") < 0).all("width").values  # by noise not everywhere
    assert falls.mean() > 0.5
    np.testing.assert_allclose(got.loss_worth[:, falls].T, np.tile(WIDTHS, (falls.sum(), 1)), rtol=1e-12)  # rounding


def test_errors_of_the_worth_cover_cautiously():
    rng = np.random.default_rng(8)
    problem = make_problem([0.0, 0.0], test=0)
    b, v, seeds = 3.0, 2.0, 400
    n = np.array([8, 16, 32])[:, None, None, None]
    mean = np.sqrt(2 * LOSS_LIMIT + 2 * (b - v) / n)
    nets = networks(problem, mean + np.sqrt(2 * v / n) * rng.standard_normal((3, seeds, REPEATS, 2)), n.ravel())
    theory = result("limit", problem, {"loss": np.full(REPEATS, LOSS_LIMIT), "loss_se": np.zeros(REPEATS)})
    got = comparisons.bias_variance(nets, theory, ensembles=(2, 4))
    for k in (2, 4):
        truth = 8 * b / (b - v + v / k)
        worth, se = (got[f"loss_worth{end}"].sel(width=8, ensemble=k).values for end in ("", "_se"))
        assert np.isfinite(worth).all()
        # N' is a ratio: its own bias is of the order of its squared relative error
        assert abs(worth.mean() / truth - 1) < 3 * (se**2).mean() / truth**2 + SIGMAS * worth.std() / truth / 20
        # losses of ensembles and of single networks are of the same networks, and errors added as if they were not
        ratio = worth.std() / np.sqrt((se**2).mean())
        assert 0.5 < ratio < 1.1


def test_a_wrong_prediction_is_off_by_many_errors(planted):
    problem, theory, nets = planted
    for factor, clear in ((1.0, False), (1.2, True)):
        values = {"prediction_variance": np.broadcast_to(factor * VARIANCE, (REPEATS, 5))}
        for q in PARTS:
            values[f"{q}_bias"] = np.full(REPEATS, VARIANCE[PARTS[q]].mean() / 2)
        fluctuations = result("fluctuations", problem, values | {f"{k}_se": 0 * v for k, v in values.items()})
        got = comparisons.bias_variance(nets, theory, fluctuations)
        for q in PARTS:
            off = got[f"{q}_variance_part"] - got[f"{q}_variance_part_predicted"]
            z = off.mean("step") / (off.std("step") / np.sqrt(REPEATS))
            assert (abs(z) > 5 * SIGMAS).all() if clear else (abs(z) < SIGMAS).all()


def test_fluctuations_of_several_outputs_are_added_up():
    rng = np.random.default_rng(9)
    problem = make_problem(rng.standard_normal((4, 2)), test=1, steps=2)
    V, b = rng.random((2, 4, 2)), np.array([1.0, 2.0])
    values = {"prediction_variance": V, "loss_bias": b, "test_loss_bias": 2 * b}
    fluctuations = result("fluctuations", problem, values | {f"{name}_se": 0.1 * x for name, x in values.items()})
    nets = networks(problem, rng.standard_normal((1, 8, 2, 4, 2)), [8])
    got = comparisons.bias_variance(nets, fluctuations=fluctuations, ensembles=(4,)).isel(width=0)
    v = V[:, :3].sum(-1).mean(-1) / 2
    np.testing.assert_allclose(got.loss_variance_part_predicted, v / 8, rtol=1e-12)
    np.testing.assert_allclose(got.loss_bias_part_predicted, (b - v) / 8, rtol=1e-12)
    # the error of the predicted width, by finite differences in b and v
    small = 1e-6

    def width(b, v):
        return 8 * b / (b - v + v / 4)

    slopes = (
        (width(b + small, v) - width(b - small, v)) / (2 * small),
        (width(b, v + small) - width(b, v - small)) / (2 * small),
    )
    expected = np.hypot(slopes[0] * 0.1 * b, slopes[1] * 0.1 * v)
    np.testing.assert_allclose(got.loss_worth_predicted[0], width(b, v), rtol=1e-12)
    np.testing.assert_allclose(got.loss_worth_predicted_se[0], expected, rtol=1e-6)  # of differences
    # nothing is predicted of losses alone
    alone = fluctuations[[name for name in fluctuations.data_vars if "prediction" not in name]]
    alone = alone.drop_dims("sample", errors="ignore")
    found = comparisons.bias_variance(nets, fluctuations=alone, ensembles=(4,))
    assert not [name for name in found.data_vars if "predicted" in name]


# ---- form, and bad input ---------------------------------------------------------------------------------------------


def test_the_result_says_what_it_is_and_survives_a_file(planted, found, tmp_path):
    problem, theory, _ = planted
    assert found.attrs["analysis"] == "bias_variance"
    assert found.attrs["problem_id"] == problem.problem_id
    assert found.loss_ensemble.dims == ("width", "ensemble", "step")
    np.testing.assert_array_equal(found.time, theory.time)
    for name in found.data_vars:
        assert str(name).endswith("_se") or f"{name}_se" in found
    path = dmft.save(found, tmp_path / "parts.nc")
    xr.testing.assert_equal(dmft.load(path), found)


def test_refusals(planted):
    problem, theory, nets = planted
    fewer = nets.isel(step=slice(0, 4))

    def refuses(error, message, *args, **kwargs):
        with pytest.raises(error, match=re.escape(message)):
            comparisons.bias_variance(*args, **kwargs)

    refuses(
        SchemaError,
        "got a Dataset of kind 'limit': nets is missing. Expected, in any order: theory, a result of kind 'limit'",
        theory,
    )
    refuses(SchemaError, "got DataArray: nets is missing", nets.prediction)
    refuses(SchemaError, "nets is there twice", nets, nets)
    refuses(SchemaError, "theory is there twice", nets, theory, theory)
    refuses(ValueError, "7 network(s) of width 8", nets.isel(seed=slice(0, 7)))
    refuses(ValueError, "4 block(s) of width 8", in_blocks(problem, nets, 10))
    refuses(ValueError, "theory has 400 steps and the networks 4", fewer, theory)
    refuses(ValueError, "the theory has no test_loss", nets, theory.drop_vars(["test_loss", "test_loss_se"]))
    for bad in (0, -2, 1.5, "2"):
        refuses((ValueError, TypeError), "ensembles[1]", fewer, ensembles=(1, bad))
    other = make_problem(TARGET, gamma0=1.2)
    wrong = theory.assign_attrs(problem_id=other.problem_id, problem=other.to_json(arrays=False))
    refuses(ValueError, "of different problems; network.", nets, wrong)
    bare = result("ensemble", problem, {"loss": np.ones((1, 8, REPEATS))}, width=[8], seed=np.arange(8))
    refuses(ValueError, "the networks have no predictions", bare)


def test_default_sizes_are_those_that_a_width_has_two_ensembles_of():
    problem, mean, _ = general_case("cross_entropy")
    f = np.random.default_rng(0).standard_normal((1, SEEDS, TRIALS, 4, 3)) + mean
    nets = networks(problem, f, [8])
    assert nets.sizes["seed"] == 16
    assert comparisons.bias_variance(nets)["ensemble"].values.tolist() == [1, 2, 4, 8]
    assert comparisons.bias_variance(nets.isel(seed=slice(0, 9)))["ensemble"].values.tolist() == [1, 2, 4]


def test_refusals_of_losses_that_need_every_network():
    problem, mean, _ = general_case("cross_entropy")
    f = np.random.default_rng(0).standard_normal((1, SEEDS, TRIALS, 4, 3)) + mean
    nets = networks(problem, f, [8])
    with pytest.raises(ValueError, match=re.escape("ensembles of 9 among 16 networks of a width: give at most 8")):
        comparisons.bias_variance(nets, ensembles=(1, 9))
    with pytest.raises(ValueError, match="the ensembles' loss 'cross_entropy' needs every network"):
        comparisons.bias_variance(in_blocks(problem, nets, 2), ensembles=(1, 2))
