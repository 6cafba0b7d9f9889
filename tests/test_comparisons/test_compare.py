"""`compare` on planted ensembles, and on real ones."""

import os
import re

import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
import finite_nets
import finite_nets.ensembles.recording
from comparisons.scaling import fit_power_law
from conftest import reference_problem
from dmft import schema
from dmft.errors import SchemaError

UMASK = os.umask(0)
os.umask(UMASK)
WIDTHS = np.array([32, 64, 128, 256])
SEEDS = 300
BIAS, VARIANCE = 6.0, 2.0


@pytest.fixture(scope="module")
def planted():
    """A limit without error bars worth the name, and an ensemble around it with known N bias and N Var."""
    problem = reference_problem()
    rng = np.random.default_rng(0)
    steps = np.arange(11)
    shapes = {"prediction": (11, 3), "feature_kernel": (2, 11, 3, 3)}
    limit = {name: 1.0 + rng.random(shape) for name, shape in shapes.items()}
    attrs = {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0, "particles": 1, "scrambles": 2}
    errors = {f"{name}_se": np.full(shape, 1e-6) for name, shape in shapes.items()}
    theory = schema.build("limit", problem, limit | errors, steps=steps, attrs=attrs)
    n = WIDTHS[:, None]
    members = {
        name: limit[name]
        + np.expand_dims(BIAS / n, tuple(range(2, 2 + len(shape))))
        + np.sqrt(VARIANCE / np.expand_dims(n, tuple(range(2, 2 + len(shape)))))
        * rng.standard_normal((4, SEEDS, *shape))
        for name, shape in shapes.items()
    }
    coords = {"width": WIDTHS, "seed": np.arange(SEEDS)}
    nets = schema.build("ensemble", problem, members, steps=steps, attrs=attrs, coords=coords)
    return theory, nets, comparisons.compare(theory, nets)


def test_planted_variance_and_bias_come_back(planted):
    _, _, found = planted
    for name in ("prediction", "feature_kernel"):
        z = (found[f"{name}_variance"] - VARIANCE) / found[f"{name}_variance_se"]
        assert abs(z.mean()) < 0.3
        assert z.std() == pytest.approx(1, abs=0.2)
        shift = (found[f"{name}_deviation"] - BIAS / found.width) / found[f"{name}_deviation_se"]
        assert abs(shift.mean()) < 0.3
        assert shift.std() == pytest.approx(1, abs=0.2)
        np.testing.assert_allclose(found[f"{name}_z"], found[f"{name}_deviation"] / found[f"{name}_deviation_se"])
        np.testing.assert_allclose(
            found[f"{name}_raw_bias_square"],
            (BIAS / WIDTHS) ** 2,
            atol=5 * found[f"{name}_raw_bias_square_se"].max(),
        )


def of(problem):
    """Attributes of results of a problem."""
    return {"problem_id": problem.problem_id, "problem": problem.to_json(arrays=False)}


def planted_fluctuations(theory, factor=1.0):
    """Predictions of the planted N Var and N bias, or wrong ones."""
    values = {}
    for name in ("prediction", "feature_kernel"):
        for kind, value in (("variance", VARIANCE), ("bias", BIAS)):
            values[f"{name}_{kind}"] = np.full(theory[name].shape, factor * value)
            values[f"{name}_{kind}_se"] = np.full(theory[name].shape, 1e-3)
    attrs = {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0, "mode": "test"}
    return schema.build("fluctuations", reference_problem(), values, steps=np.arange(11), attrs=attrs)


def test_planted_fluctuations_are_recognised_and_wrong_ones_are_not(planted):
    theory, nets, _ = planted
    found = comparisons.compare(theory, nets, planted_fluctuations(theory))
    wrong = comparisons.compare(theory, nets, planted_fluctuations(theory, 1.3))
    for name in ("prediction", "feature_kernel"):
        for kind in ("variance", "bias"):
            z = found[f"{name}_{kind}_z"]
            assert abs(z.mean()) < 0.3
            assert z.std() == pytest.approx(1, abs=0.2)
            for ratio in (f"{name}_{kind}_ratio", f"{name}_{kind}_overall_ratio"):
                # errors are cautious where the prediction's are added as if all entries erred together
                spread = (found[ratio] - 1) / found[f"{ratio}_se"]
                assert abs(spread).max() < 4.5, ratio
                np.testing.assert_allclose(wrong[ratio], found[ratio] / 1.3, rtol=2e-3)
        assert abs(wrong[f"{name}_variance_z"].mean()) > 2
    assert found.attrs["fluctuations_mode"] == "test"
    text = comparisons.summary(found)
    assert "Measured / predicted (width)" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_fluctuations_of_another_problem_or_without_bias(planted):
    theory, nets, _ = planted
    predicted = planted_fluctuations(theory)
    variance_only = predicted[[name for name in predicted.data_vars if "bias" not in name]]
    found = comparisons.compare(theory, nets, variance_only)
    assert "prediction_variance_z" in found
    assert "prediction_bias_z" not in found
    with pytest.raises(ValueError, match="networks and fluctuations are of different problems"):
        comparisons.compare(theory, nets, predicted.assign_attrs(of(reference_problem(gamma0=2.0))))
    with pytest.raises(ValueError, match=re.escape("fluctuations has 4 steps and the networks 11")):
        comparisons.compare(theory, nets, predicted.isel(step=slice(0, 4)))
    nothing = predicted.assign(prediction_variance=0 * predicted.prediction_variance)
    assert comparisons.compare(theory, nets, nothing).prediction_variance_ratio.isnull().all()


def test_planted_exponents_come_back(planted):
    _, _, found = planted
    for name in ("prediction", "feature_kernel"):
        for kind in ("variance", "bias"):
            value, se = found[f"{name}_{kind}_exponent"].item(), found[f"{name}_{kind}_exponent_se"].item()
            assert se < 0.2
            assert abs(value + 1) < 4 * se


def test_norms_are_those_named_in_the_docstring(planted):
    theory, nets, found = planted
    x, limit = nets.feature_kernel.values[2, :, 1, 4], theory.feature_kernel.values[1, 4]
    norm = np.linalg.norm(limit)
    distance = np.sqrt(((x - limit) ** 2).sum((1, 2)).mean()) / norm
    assert found.feature_kernel_distance.sel(width=128, layer=2, step=4).item() == pytest.approx(distance)
    error = np.sqrt(((x.mean(0) - limit) ** 2 - x.var(0, ddof=1) / SEEDS).sum()) / norm
    assert found.feature_kernel_error.sel(width=128, layer=2, step=4).item() == pytest.approx(error, rel=1e-6)
    f = np.sqrt(((nets.prediction.values[0] - theory.prediction.values) ** 2).mean((0, 2)))
    np.testing.assert_allclose(found.prediction_distance[0], f)


def test_networks_agree_with_the_theory_and_a_wrong_richness_does_not(theory, problem):
    one_time = theory.drop_vars([name for name in theory.data_vars if "two_time" in name]).drop_vars("step_2")
    nets = finite_nets.train_ensemble(problem, widths=[128, 256], seeds=500)
    found = comparisons.compare(one_time, nets)
    # bias of order 1/N against an error of 0.6/sqrt(500 N): at most about one standard error at the wider network
    last = found.sel(width=256)
    assert abs(last.prediction_z).max() < 5
    assert abs(last.ntk_z).max() < 5
    assert found.attrs["problem_id"] == problem.problem_id
    assert found.attrs["theory_particles"] == 4096
    text = comparisons.summary(found)
    assert "gradient kernels" in text
    assert max(len(line) for line in text.splitlines()) <= 100

    few = {"widths": [256], "seeds": 500, "observables": ["prediction"]}
    wrong = finite_nets.train_ensemble(reference_problem(gamma0=1.2), **few)
    wrong = wrong.drop_vars(["entry_problem", "entry_id"])  # which would tell
    wrong.attrs |= {name: one_time.attrs[name] for name in ("problem", "problem_id")}
    assert abs(comparisons.compare(one_time, wrong).prediction_z).max() > 10


@pytest.fixture(scope="module")
def real_targets():
    task = dmft.Task(reference_problem().task.x_train, [0.3, -1.1, 0.7])
    problem = dmft.Problem(dmft.MLP(2), task, dmft.GradientDescent(0.3, 3))
    return problem, dmft.solve(problem, particles=512, scrambles=2)


@pytest.mark.parametrize("name", schema.OBSERVABLES)
def test_any_observable_can_be_compared_alone_and_targets_need_not_be_round(real_targets, name):
    problem, theory = real_targets
    nets = finite_nets.train_ensemble(problem, widths=[16, 32], seeds=8, observables=[name])
    found = comparisons.compare(theory, nets)
    # the loss at initialisation is the same in every network and in the limit, to rounding
    assert np.isfinite(found[f"{name}_z"]).all()
    assert abs(found[f"{name}_z"].isel(step=0)).max() < 50
    assert "Networks of 8 seeds" in comparisons.summary(found)


@pytest.fixture(scope="module")
def classes():
    """Networks of three outputs with all that can be recorded of them, and a limit made from other networks."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 4)), np.eye(3)[[0, 1, 2, 0, 1, 2]]
    task = dmft.Task(x[:4], y[:4], x[4:], y[4:])
    problem = dmft.Problem(dmft.MLP(2), task, dmft.GradientDescent(1.0, 4), "cross_entropy")
    names = schema.OBSERVABLES
    nets = finite_nets.train_ensemble(problem, widths=[16, 32, 64], seeds=20, observables=names)
    wide = finite_nets.train_ensemble(problem, widths=[400], seeds=20, seed=1, observables=names, dtype="float64")
    limit = {name: value.values for name, value in wide.isel(width=0).mean("seed").data_vars.items()}
    errors = {f"{name}_se": np.full(value.shape, 1e-4) for name, value in limit.items()}
    attrs = {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0, "particles": 1, "scrambles": 2}
    theory = schema.build("limit", problem, limit | errors, steps=np.arange(5), attrs=attrs)
    return problem, theory, nets


def test_several_outputs_and_accuracies_are_compared(classes):
    _, theory, nets = classes
    found = comparisons.compare(theory, nets)
    assert found.prediction_mean.dims == ("width", "step", "sample", "output")
    assert found.ntk_limit.dims == ("step", "sample", "output", "sample_2", "output_2")
    assert found.gradient_kernel_error.dims == ("width", "layer", "step")
    # one network off by as much as its outputs: all of samples and outputs in the mean
    off = (nets.prediction.astype(float) - theory.prediction) ** 2
    np.testing.assert_allclose(found.prediction_distance, np.sqrt(off.mean(("seed", "sample", "output"))))
    assert abs(found.prediction_distance - np.sqrt(off.mean(("seed", "sample")).sum("output"))).max() > 1e-2
    norm = (theory.ntk**2).sum(("sample", "output", "sample_2", "output_2"))
    off = ((nets.ntk.astype(float) - theory.ntk) ** 2).sum(("sample", "output", "sample_2", "output_2")) / norm
    np.testing.assert_allclose(found.ntk_distance, np.sqrt(off.mean("seed")))
    # accuracies stand as they are, not relative to the limit's, which may be 0
    accuracy = nets.accuracy - theory.accuracy
    np.testing.assert_allclose(found.accuracy_distance, np.sqrt((accuracy**2).mean("seed")))
    assert {"test_accuracy_mean", "test_loss_z", "feature_kernel_error"} <= set(found.data_vars)
    text = comparisons.summary(found)
    assert "test accuracy" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_fluctuations_of_several_outputs(classes):
    problem, theory, nets = classes
    x = nets.prediction.astype(float)
    variance = (nets.width * x.var("seed", ddof=1)).mean("width").values
    values = {"prediction_variance": variance, "prediction_variance_se": np.full(variance.shape, 1e-3)}
    attrs = {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0, "mode": "test"}
    predicted = schema.build("fluctuations", problem, values, steps=np.arange(5), attrs=attrs)
    found = comparisons.compare(theory, nets, predicted)
    measured = (nets.width * x.var("seed", ddof=1)).sum(("sample", "output"))
    # centered networks do not fluctuate at step 0
    np.testing.assert_allclose(
        found.prediction_variance_ratio[:, 1:], (measured / variance.sum((1, 2)))[:, 1:], rtol=1e-9
    )
    assert found.prediction_variance_limit.dims == ("step", "sample", "output")


def test_an_accuracy_that_all_networks_share_at_some_widths_has_no_exponent(classes):
    _, theory, nets = classes
    shared = nets.accuracy.where(nets.width == 16, 1.0)
    found = comparisons.compare(theory, nets.assign(accuracy=shared))
    assert found.accuracy_variance_exponent.isnull()
    assert (found.accuracy_raw_variance.sel(width=[32, 64]) == 0).all()


def test_result_survives_a_file(planted, tmp_path):
    found = planted[2]
    path = dmft.save(found, tmp_path / "new" / "comparison.nc")
    again = schema.validate(dmft.load(path), "comparison")
    xr.testing.assert_identical(again, found)
    assert [p.name for p in path.parent.iterdir()] == ["comparison.nc"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~UMASK
    with pytest.raises(FileNotFoundError, match="expected a NetCDF file"):
        dmft.load(tmp_path / "absent.nc")
    (tmp_path / "text.nc").write_text("no")
    with pytest.raises(ValueError, match="cannot be read as a NetCDF file"):
        dmft.load(tmp_path / "text.nc")
    with pytest.raises(SchemaError, match="old.nc is not written: .* schema 7"):
        dmft.save(found.assign_attrs(schema=7), tmp_path / "old.nc")
    found.assign_attrs(schema=7).to_netcdf(tmp_path / "old.nc", engine="h5netcdf")
    with pytest.raises(SchemaError, match="schema 7"):
        dmft.load(tmp_path / "old.nc")


def test_a_failed_save_keeps_what_was_there(planted, tmp_path):
    path = dmft.save(planted[2], tmp_path / "a.nc")
    before = path.read_bytes()
    bad = planted[2].assign_attrs(theory_note={"not": "text"})
    with pytest.raises(TypeError):
        dmft.save(bad, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def as_moments(nets, size):
    """The same networks by moments of blocks of `size` seeds."""
    blocks = nets.sizes["seed"] // size
    found = {"count": np.full((4, blocks), size), "diverged": np.zeros((4, blocks), int)}
    for name, values in nets.data_vars.items():
        parts = values.values.reshape(4, blocks, size, *values.shape[2:])
        found[f"{name}_mean"] = parts.mean(2)
        found[f"{name}_m2"] = ((parts - parts.mean(2, keepdims=True)) ** 2).sum(2)
    f = nets.prediction.values.reshape(4, blocks, size, -1)
    deviation = f - f.mean(2, keepdims=True)
    one = nets.prediction.shape[2:]
    found["prediction_comoment"] = (deviation.swapaxes(2, 3) @ deviation).reshape(4, blocks, *one, *one)
    coords = {"width": WIDTHS, "block": np.arange(blocks)}
    attrs = {key: nets.attrs[key] for key in ("producer", "dtype", "device", "seed")}
    return schema.build("moments", reference_problem(), found, steps=nets.step.values, attrs=attrs, coords=coords)


def test_moments_are_compared_as_their_members_are(planted):
    theory, nets, expected = planted
    moments = as_moments(nets, 15)
    found = comparisons.compare(theory, moments)
    assert found.attrs["seeds"] == SEEDS
    for name in ("prediction", "feature_kernel"):
        for suffix in ("mean", "mean_se", "variance", "deviation", "deviation_se", "z", "distance", "error"):
            np.testing.assert_allclose(found[f"{name}_{suffix}"], expected[f"{name}_{suffix}"], rtol=1e-6, atol=1e-9)
        # the same twenty groups
        for suffix in ("raw_variance_se", "raw_bias_square_se", "variance_exponent", "bias_exponent"):
            np.testing.assert_allclose(found[f"{name}_{suffix}"], expected[f"{name}_{suffix}"], rtol=1e-6)
        # from scatter, with 19 degrees of freedom: 16 % each
        ratio = (found[f"{name}_variance_se"] / expected[f"{name}_variance_se"]).mean()
        assert ratio == pytest.approx(1, abs=0.05)
    assert "300 seeds a width" in comparisons.summary(found)
    # blocks that are not there yet do not count
    partial = moments.copy(deep=True)
    partial["count"][0, 10:] = 0
    for name in ("prediction_mean", "prediction_m2", "feature_kernel_mean", "feature_kernel_m2", "prediction_comoment"):
        partial[name][0, 10:] = np.nan
    some = comparisons.compare(theory, partial)
    assert some.attrs["seeds"] == [150, 300, 300, 300]
    np.testing.assert_allclose(some.prediction_mean[0], nets.prediction.values[0, :150].mean(0))
    partial["count"][0, 7:] = 0
    with pytest.raises(ValueError, match=r"7 block\(s\) of width 32; variances and their errors need at least 8"):
        comparisons.compare(theory, partial)


def test_statistics_need_no_theory(planted):
    _, nets, compared = planted
    for networks in (nets, as_moments(nets, 15)):
        found = comparisons.statistics(networks, covariance=True)
        assert found["count"].values.tolist() == [SEEDS] * 4
        np.testing.assert_allclose(found.prediction_mean, compared.prediction_mean, rtol=1e-9)
        np.testing.assert_allclose(
            found.width * found.prediction_seed_variance, compared.prediction_variance, rtol=1e-9
        )
        covariance = np.cov(nets.prediction.values[2].reshape(SEEDS, -1), rowvar=False)
        measured = found.prediction_seed_covariance
        np.testing.assert_allclose(measured.values[2].reshape(33, 33), covariance, atol=1e-12)
        assert measured.dims == ("width", "step", "sample", "step_2", "sample_2")
        assert "prediction_seed_covariance" not in comparisons.statistics(networks)
        without = networks.drop_vars(
            [name for name in networks.data_vars if name in ("prediction", "prediction_comoment")]
        )
        with pytest.raises(ValueError, match="have no predictions to find a covariance of"):
            comparisons.statistics(without, covariance=True)


def test_networks_that_diverged_do_not_count(planted):
    theory, nets, _ = planted
    diverged = np.zeros((4, SEEDS), bool)
    diverged[1, ::3] = True
    gone = nets.where(~xr.DataArray(diverged, dims=("width", "seed"))).assign(diverged=(("width", "seed"), diverged))
    found = comparisons.compare(theory, gone)
    assert found.attrs["seeds"] == [300, 200, 300, 300]
    np.testing.assert_allclose(found.prediction_mean[1], nets.prediction.values[1, ~diverged[1]].mean(0))
    assert np.isfinite(found.prediction_variance).all()


def test_refusals(planted):
    theory, nets, _ = planted

    def refuses(error, message, theory=theory, nets=nets):
        with pytest.raises(error, match=re.escape(message)):
            comparisons.compare(theory, nets)

    refuses(SchemaError, "nets is there twice", theory=nets)
    refuses(SchemaError, "got a Dataset of kind 'limit', DataArray: nets is missing", nets=nets.prediction)
    refuses(
        ValueError, "select common ones first, e.g. theory.sel(step=networks.step)", nets=nets.isel(step=slice(0, 4))
    )
    refuses(ValueError, "variances and their errors need at least 8", nets=nets.isel(seed=[0, 1, 2]))
    refuses(SchemaError, "'prediction' has no standard error prediction_se", theory=theory.drop_vars("prediction_se"))
    refuses(SchemaError, "holds no variables", nets=nets.drop_vars(list(nets.data_vars)))
    refuses(SchemaError, "'prediction_se' is not a variable", nets=nets.assign(prediction_se=nets.prediction))
    refuses(
        ValueError,
        "different problems; network.gamma0",
        theory=theory.assign_attrs(of(reference_problem(gamma0=2.0))),
    )
    refuses(SchemaError, "schema 7", nets=nets.assign_attrs(schema=7))
    refuses(SchemaError, "'prediction' holds non-finite numbers", nets=nets.where(nets.seed != 5))
    refuses(SchemaError, "lacks the attributes ['problem_id']", nets=nets.drop_attrs().assign_attrs(
        {k: v for k, v in nets.attrs.items() if k != "problem_id"}))  # fmt: skip
    refuses(SchemaError, "labelled differently", nets=nets.assign_coords(sample=[0, 1, 3]))
    refuses(SchemaError, "'spectrum' is not a variable", nets=nets.assign(spectrum=nets.prediction))
    refuses(SchemaError, "Select with a list, width=[...], which keeps the dimension", nets=nets.isel(width=0))
    refuses(SchemaError, "nets, a result of kind 'ensemble' or 'moments', from finite_nets.train_ensemble", nets=theory)
    refuses(SchemaError, "has dimensions ('seed', 'width'", nets=nets.transpose("seed", "width", ...))
    refuses(SchemaError, "coordinate 'time' on 'step' is missing", theory=theory.drop_vars("time"))


def test_fit_is_used_as_documented(planted):
    found = planted[2]
    law = fit_power_law(WIDTHS, found.prediction_raw_variance, found.prediction_raw_variance_se)
    assert law.slope == pytest.approx(found.prediction_variance_exponent.item())
