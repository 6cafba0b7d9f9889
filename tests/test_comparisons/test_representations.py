"""Similarity of kernels to the limit's, on planted kernels (Wishart matrices).

K = F F' / N with Gaussian features F of covariance C: C is the limit, and E |K - C|^2 = ((tr C)^2 + tr C^2) / N.
Repetitions are steps of one result: every step holds networks that are independent of those of the others.
"""

import re

import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
from comparisons import kernels
from comparisons.scaling import fit_power_law
from dmft import schema
from dmft.errors import SchemaError

ATTRS = {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0, "particles": 1, "scrambles": 2}
WIDTHS = np.array([16, 32, 64])
STEPS, SEEDS, SAMPLES = 200, 40, 5
SIMILARITIES = ("alignment", "cka", "unbiased_cka")
Y = np.array([1.0, -1.0, 1.0, -0.5, 0.5])  # three of training samples


def make_problem(y=Y, *, steps=STEPS, gamma0=1.0):
    x = np.random.default_rng(0).standard_normal((len(y), 4))
    task = dmft.Task(x[:3], y[:3], x[3:], y[3:])
    return dmft.Problem(dmft.MLP(2, gamma0=gamma0), task, dmft.GradientDescent(0.1, steps - 1))


def result(kind, problem, values, **coords):
    """A planted result over all steps of the problem."""
    steps = np.arange(problem.training.steps + 1)
    return schema.build(kind, problem, values, steps=steps, attrs=ATTRS, coords=coords)


def limit_of(problem, values, se=0.0):
    return result("limit", problem, values | {f"{name}_se": np.full(np.shape(v), se) for name, v in values.items()})


def covariance(seed, n=SAMPLES):
    A = np.random.default_rng(seed).standard_normal((n, n))
    return A @ A.T / n + 0.3 * np.eye(n)


def wishart(rng, C, width, shape):
    """(*shape, event, event_2)."""
    F = np.linalg.cholesky(C) @ rng.standard_normal((*shape, len(C), width))
    return F @ F.swapaxes(-1, -2) / width


@pytest.fixture(scope="module")
def planted():
    """(theory, networks, [C of layer 1, C of layer 2])."""
    rng = np.random.default_rng(1)
    problem, C = make_problem(), [covariance(2), covariance(3)]
    K = np.array([np.stack([wishart(rng, c, n, (SEEDS, STEPS)) for c in C], axis=1) for n in WIDTHS])
    limit = np.stack([np.broadcast_to(c, (STEPS, SAMPLES, SAMPLES)) for c in C])
    nets = result("ensemble", problem, {"feature_kernel": K}, width=WIDTHS, seed=np.arange(SEEDS))
    return limit_of(problem, {"feature_kernel": limit}), nets, C


@pytest.fixture(scope="module")
def found(planted):
    theory, nets, _ = planted
    return comparisons.representations(nets, theory)


def mean_and_error(values):
    """Over steps."""
    return values.mean("step"), values.std("step") / np.sqrt(STEPS)


# ---- planted kernels -------------------------------------------------------------------------------------------------


def test_every_measure_is_that_of_the_networks_and_the_mean_over_them(planted, found):
    _, nets, C = planted
    K = nets.feature_kernel.sel(width=32, layer=2).values  # (seed, step, event, event_2)
    measures = {
        "alignment": kernels.alignment(K, C[1]),
        "cka": kernels.centred_alignment(K, C[1]),
        "unbiased_cka": kernels.unbiased_centred_alignment(K, C[1]),
        "distance": kernels.distance(K, C[1]),
        "target_alignment": kernels.alignment(K[..., :3, :3], np.outer(Y[:3], Y[:3])),
    }
    at = found.sel(width=32, layer=2)
    for name, each in measures.items():
        np.testing.assert_allclose(at[name], each.mean(0), rtol=1e-12, err_msg=name)  # rounding
        np.testing.assert_allclose(at[f"{name}_se"], each.std(0, ddof=1) / np.sqrt(SEEDS), rtol=1e-9)
        assert at[f"{name}_of_mean"].dims == ("step",)
    names = [*measures, *(f"{name}_of_mean" for name in measures), "target_alignment_limit"]
    assert set(found.data_vars) == {f"{name}{end}" for name in names for end in ("", "_se")}


def test_the_distance_of_one_network_falls_with_the_root_of_its_width(planted, found):
    _, _, C = planted
    for i, c in enumerate(C):
        mean, se = (value.values[:, i] for value in mean_and_error(found.distance))
        law = fit_power_law(WIDTHS, mean, se)
        # the mean of a root is below the root of the mean, by a share that falls like 1/N: 2 % between the widths here
        assert law.slope == pytest.approx(-0.5, abs=0.02)
        root_of_mean = np.sqrt((np.trace(c) ** 2 + (c**2).sum()) / WIDTHS / (c**2).sum())
        assert (mean < root_of_mean).all()
        np.testing.assert_allclose(mean, root_of_mean, rtol=0.1)


def test_similarities_of_the_mean_kernel_are_unbiased_and_plain_ones_are_not(planted, found):
    _, nets, C = planted
    mean = nets.feature_kernel.mean("seed").values
    for name, measure in zip(
        SIMILARITIES,
        (kernels.alignment, kernels.centred_alignment, kernels.unbiased_centred_alignment),
        strict=True,
    ):
        off, se = mean_and_error(found[f"{name}_of_mean"] - 1)
        plain = np.stack([measure(mean[:, i], c) for i, c in enumerate(C)], axis=1) - 1
        # four errors, and the bias of second order: that of first order, squared
        assert (abs(off) < 4 * se + 3 * plain.mean(-1) ** 2).all(), name
        assert (plain.mean(-1) < -10 * plain.std(-1) / np.sqrt(STEPS)).all(), name
        assert (abs(off) < 0.1 * abs(plain.mean(-1))).all(), name
        # one network is less similar to the limit than the mean
        assert (found[name] < found[f"{name}_of_mean"]).all()


def test_errors_of_similarities_cover(found):
    # where the mean kernel is the limit, similarities are quadratic in its noise, and the jackknife cautious: the variance
    # of a square comes out twice too large
    for name in SIMILARITIES:
        spread = found[f"{name}_of_mean"].std("step") / np.sqrt((found[f"{name}_of_mean_se"] ** 2).mean("step"))
        assert ((spread > 0.55) & (spread < 0.9)).all(), (name, spread.values)
    # of 200 repetitions a spread is known to 5 %; four of them
    for name in (*SIMILARITIES, "distance", "target_alignment", "target_alignment_of_mean"):
        spread = found[name].std("step") / np.sqrt((found[f"{name}_se"] ** 2).mean("step"))
        assert ((spread > 0.8) & (spread < 1.2)).all(), (name, spread.values)


def test_the_target_alignment_of_the_mean_kernel_is_that_of_the_limit(planted, found):
    _, _, C = planted
    expected = np.array([kernels.alignment(c[:3, :3], np.outer(Y[:3], Y[:3])) for c in C])
    np.testing.assert_allclose(found.target_alignment_limit, np.tile(expected[:, None], STEPS), rtol=1e-12)  # rounding
    off, se = mean_and_error(found.target_alignment_of_mean - found.target_alignment_limit)
    assert (abs(off) < 4 * se).all()
    # of single networks it is biased by their width
    off, se = mean_and_error(found.target_alignment - found.target_alignment_limit)
    assert (abs(off.sel(width=16)) > 5 * se.sel(width=16)).all()


def test_the_distance_of_the_mean_kernel_is_zero_within_its_error_and_a_plain_one_is_not(planted, found):
    theory, nets, C = planted
    value, se = found.distance_of_mean, found.distance_of_mean_se
    # an unbiased square: negative, and 0 as a distance, in about half, above two of its errors in few
    assert ((value == 0).mean("step") > 0.35).all()
    assert ((value > 4 * se).mean("step") < 0.05).all()
    mean = nets.feature_kernel.mean("seed").values
    plain = np.stack([kernels.distance(mean[:, i], c) for i, c in enumerate(C)], axis=1).mean(-1)
    expected = [[np.sqrt((np.trace(c) ** 2 / (c**2).sum() + 1) / (n * SEEDS)) for c in C] for n in WIDTHS]
    np.testing.assert_allclose(plain, expected, rtol=0.1)  # the mean of a root against the root of the mean
    # the same as in a comparison
    few = slice(0, 3)
    compared = comparisons.compare(theory.isel(step=few), nets.isel(step=few))
    np.testing.assert_array_equal(value[..., few] == 0, compared.feature_kernel_error == 0)
    np.testing.assert_allclose(value[..., few], compared.feature_kernel_error, rtol=1e-7)


def test_a_wrong_limit_stays_at_a_distance_at_every_width(planted):
    theory, nets, _ = planted
    wrong = theory.assign(feature_kernel=1.3 * theory.feature_kernel)
    wrong["feature_kernel"][..., 0, 1] += 0.2
    wrong["feature_kernel"][..., 1, 0] += 0.2
    found = comparisons.representations(nets, wrong)
    off = np.sqrt(
        ((theory.feature_kernel - wrong.feature_kernel) ** 2).sum(("sample", "sample_2"))
        / (wrong.feature_kernel**2).sum(("sample", "sample_2"))
    )
    widest = found.sel(width=64)
    assert (widest.distance_of_mean > 5 * widest.distance_of_mean_se).mean() > 0.99
    np.testing.assert_allclose(widest.distance_of_mean.mean("step"), off.mean("step"), rtol=0.02)
    at_widths = found.distance_of_mean.mean("step")
    np.testing.assert_allclose(at_widths.sel(width=16), at_widths.sel(width=64), rtol=0.05)  # it does not fall
    for name in SIMILARITIES:
        off, se = mean_and_error(1 - found[f"{name}_of_mean"].sel(width=64))
        assert (off > 5 * se).all(), name


def test_errors_of_the_limit_are_those_of_its_target_alignment():
    rng = np.random.default_rng(4)
    problem, C, se = make_problem(), covariance(5), 0.01
    noise = np.tril(se * rng.standard_normal((STEPS, SAMPLES, SAMPLES)))
    limit = C + noise + np.tril(noise, -1).swapaxes(-1, -2)
    theory = limit_of(problem, {"ntk": limit}, se)
    K = wishart(rng, C, 16, (8, STEPS))[None]
    nets = result("ensemble", problem, {"ntk": K}, width=[16], seed=np.arange(8))
    found = comparisons.representations(nets, theory, "ntk")
    assert found.alignment.dims == ("width", "step")  # no layers
    claimed = np.sqrt((found.target_alignment_limit_se**2).mean())
    # a spread of 200 is known to 5 %, and every claim, of 64 draws, to 9 %
    assert found.target_alignment_limit.std() / claimed == pytest.approx(1, abs=0.2)


def test_moments_of_blocks_have_the_statistics_of_the_mean_kernel_alone(planted, found):
    theory, nets, _ = planted
    few = slice(0, 4)
    K = nets.feature_kernel.values[..., few, :, :]
    parts = K.reshape(3, 20, 2, *K.shape[2:])
    values = {
        "count": np.full((3, 20), 2),
        "diverged": np.zeros((3, 20), int),
        "feature_kernel_mean": parts.mean(2),
        "feature_kernel_m2": ((parts - parts.mean(2, keepdims=True)) ** 2).sum(2),
    }
    moments = schema.build(
        "moments",
        make_problem(),
        values,
        steps=np.arange(4),
        attrs=ATTRS,
        coords={"width": WIDTHS, "block": np.arange(20)},
    )
    of_blocks = comparisons.representations(moments, theory.isel(step=few))
    assert set(of_blocks.data_vars) == {name for name in found.data_vars if "of_mean" in name or "limit" in name}
    for name in of_blocks.data_vars:
        # twenty blocks of two are the groups of the jackknife of members: equal to rounding, roots of it near zero
        np.testing.assert_allclose(of_blocks[name], found[name][..., few], rtol=1e-6, atol=1e-7, err_msg=name)


def test_networks_that_diverged_do_not_count(planted):
    theory, nets, _ = planted
    few = {"step": slice(0, 3)}
    gone = np.zeros((3, SEEDS), bool)
    gone[0, ::4] = True
    some = nets.isel(few).where(~xr.DataArray(gone, dims=("width", "seed")))
    whole = comparisons.representations(some.assign(diverged=(("width", "seed"), gone)), theory.isel(few))
    assert whole.attrs["seeds"] == [30, 40, 40]
    alone = comparisons.representations(nets.isel(few | {"width": [0], "seed": ~gone[0]}), theory.isel(few))
    np.testing.assert_array_equal(whole.alignment[0], alone.alignment[0])


def test_several_outputs_are_compared_event_by_event():
    rng = np.random.default_rng(6)
    y = rng.standard_normal((5, 2))
    problem = make_problem(y, steps=3)
    C = covariance(7, 10)
    limit, K = np.broadcast_to(C, (3, 10, 10)), np.array([wishart(rng, C, 64, (12, 3))])
    by_layer = np.stack([limit, limit]).reshape(2, 3, 5, 2, 5, 2)
    theory = limit_of(
        problem,
        {
            "ntk": limit.reshape(3, 5, 2, 5, 2),
            "gradient_kernel": by_layer,
            "feature_kernel": by_layer[:, :, :, 0, :, 0],
        },
    )
    members = np.stack([K, K], axis=2).reshape(1, 12, 2, 3, 5, 2, 5, 2)
    values = {
        "ntk": K.reshape(1, 12, 3, 5, 2, 5, 2),
        "gradient_kernel": members,
        "feature_kernel": members[..., 0, :, 0],
    }
    nets = result("ensemble", problem, values, width=[64], seed=np.arange(12))
    train, targets = np.arange(6), y[:3].ravel()  # events of training samples: sample, then output
    for quantity in ("ntk", "gradient_kernel"):
        found = comparisons.representations(nets, theory, quantity)
        at = found.isel(layer=0) if quantity == "gradient_kernel" else found
        np.testing.assert_allclose(at.alignment[0], kernels.alignment(K[0], C).mean(0), rtol=1e-12)  # rounding
        expected = kernels.alignment(K[0][..., train[:, None], train], np.outer(targets, targets))
        np.testing.assert_allclose(at.target_alignment[0], expected.mean(0), rtol=1e-12)
    # samples share features between their outputs: no targets of an event
    found = comparisons.representations(nets, theory, "feature_kernel")
    assert not [name for name in found.data_vars if "target" in name]
    assert found.distance.dims == ("width", "layer", "step")


def test_kernels_that_vanish_have_no_similarity_and_few_samples_no_unbiased_one():
    rng = np.random.default_rng(8)
    y = np.array([1.0, -1.0, 1.0])
    x = rng.standard_normal((3, 4))
    problem = dmft.Problem(dmft.MLP(1), dmft.Task(x, y), dmft.GradientDescent(0.1, 1))
    C = covariance(9, 3)
    K = wishart(rng, C, 16, (1, 8, 2)) * np.array([0.0, 1.0])[:, None, None]
    limit = np.stack([0 * C, C])
    nets = result("ensemble", problem, {"ntk": K}, width=[16], seed=np.arange(8))
    found = comparisons.representations(nets, limit_of(problem, {"ntk": limit}), "ntk")
    assert "unbiased_cka" not in found
    for name in ("alignment", "cka", "distance", "target_alignment", "alignment_of_mean", "distance_of_mean"):
        assert found[name].isel(step=0).isnull().all(), name
        assert found[name].isel(step=1).notnull().all(), name


def test_the_result_says_what_it_is_and_survives_a_file(planted, found, tmp_path):
    theory, _, _ = planted
    assert found.attrs["analysis"] == "representations"
    assert found.attrs["quantity"] == "feature_kernel"
    assert found.attrs["problem_id"] == theory.attrs["problem_id"]
    np.testing.assert_array_equal(found.time, theory.time)
    xr.testing.assert_equal(dmft.load(dmft.save(found, tmp_path / "alike.nc")), found)


def test_refusals(planted):
    theory, nets, _ = planted
    few = {"step": slice(0, 3)}

    def refuses(error, message, nets, theory, *args):
        with pytest.raises(error, match=re.escape(message)):
            comparisons.representations(nets, theory, *args)

    refuses(
        ValueError, "quantity='prediction' is not a kernel; choose one of feature_kernel", nets, theory, "prediction"
    )
    refuses(ValueError, "the networks have no ntk; record it, with observables=['ntk', ...]", nets, theory, "ntk")
    refuses(SchemaError, "theory is there twice", theory, theory)
    refuses(SchemaError, "nets is there twice", nets, nets)
    refuses(ValueError, "7 network(s) of width 16", nets.isel(few | {"seed": slice(0, 7)}), theory.isel(few))
    refuses(ValueError, "theory has 200 steps and the networks 3", nets.isel(few), theory)
    labelled = theory.isel(few).assign_coords(sample=[0, 1, 2, 3, 9])
    refuses(SchemaError, "labelled differently", nets.isel(few), labelled)
    other = limit_of(make_problem(), {"prediction": np.zeros((STEPS, SAMPLES))})
    refuses(ValueError, "the theory has no feature_kernel, but prediction", nets, other)
    problem = make_problem(gamma0=1.2)
    wrong = theory.assign_attrs(problem_id=problem.problem_id, problem=problem.to_json(arrays=False))
    refuses(ValueError, "of different problems; network.", nets, wrong)
