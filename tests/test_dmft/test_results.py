"""Results as they are kept, joined and named: identity, files, stacks, words for every variable."""

import warnings

import h5py
import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
from dmft import schema
from dmft.errors import SchemaError
from dmft.schema import identity, labels
from dmft.schema.storage import DIGITS, MARK, SEALED
from dmft.specs.problem import identity_of

END = len(MARK) + DIGITS  # of a file, its digest
STEPS = 5
WIDTHS = np.array([8, 16, 32])


def problem(gamma0=1.0, learning_rate=0.3, activation=None):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 3)), np.array([-1.0, 1, 1, -1, 0.5, 1])
    task = dmft.Task(x[:4], y[:4], x[4:], y[4:])
    network = dmft.MLP(2, activation or dmft.tanh(), gamma0=gamma0)
    return dmft.Problem(network, task, dmft.GradientDescent(learning_rate, STEPS - 1))


def attrs(**others):
    return {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0} | others


def ensemble(of=None, *, seeds=range(12), root=0, widths=WIDTHS, producer="test"):
    """Networks around the lazy limit, made up."""
    of = of or problem()
    theory = dmft.lazy_limit(of)
    rng = np.random.default_rng([root, *seeds])
    n = np.asarray(widths)
    found = {}
    for name in ("prediction", "feature_kernel", "ntk"):
        shape = theory[name].shape
        noise = rng.standard_normal((len(n), len(seeds), *shape)) / np.sqrt(n).reshape(-1, *[1] * (len(shape) + 1))
        found[name] = theory[name].values + (0.1 * (noise + np.swapaxes(noise, -1, -2)) if "k" in name else noise)
    found |= schema.losses(of, found["prediction"])
    coords = {"width": n, "seed": np.array(seeds)}
    return schema.build(
        "ensemble", of, found, steps=np.arange(STEPS), attrs=attrs(seed=root, producer=producer), coords=coords
    )


def moments(of=None):
    of, shape, names = of or problem(), (len(WIDTHS), 8), ("prediction", "loss", "test_loss")
    nets = ensemble(of, seeds=range(32))
    found = {"count": np.full(shape, 4), "diverged": np.zeros(shape, int)}
    for name in names:
        each = nets[name].values.reshape(*shape, 4, *nets[name].shape[2:])
        found |= {f"{name}_mean": each.mean(2), f"{name}_m2": ((each - each.mean(2, keepdims=True)) ** 2).sum(2)}
    f = nets.prediction.values.reshape(*shape, 4, -1)
    f = f - f.mean(2, keepdims=True)
    one = nets.prediction.shape[2:]
    found["prediction_comoment"] = (f.swapaxes(2, 3) @ f).reshape(*shape, *one, *one)
    coords = {"width": WIDTHS, "block": np.arange(8)}
    return schema.build("moments", of, found, steps=np.arange(STEPS), attrs=attrs(), coords=coords)


def fluctuations(of=None):
    of = of or problem()
    theory, found = dmft.lazy_limit(of), {}
    for name in ("prediction", "loss", "test_loss", "feature_kernel", "ntk"):
        for kind in ("variance", "bias"):
            found |= {f"{name}_{kind}{end}": np.full(theory[name].shape, v) for end, v in (("", 1.0), ("_se", 0.1))}
        by_layer = np.full((2, *theory[name].shape), 0.5)
        found |= {f"{name}_variance_by_layer{end}": by_layer for end in ("", "_se")}
    one = theory.prediction.shape
    found |= {f"prediction_covariance{end}": np.ones((*one, *one)) for end in ("", "_se")}
    return schema.build("fluctuations", of, found, steps=np.arange(STEPS), attrs=attrs(mode="test"))


def neurons(kind, of=None):
    of, rng, steps = of or problem(), np.random.default_rng(1), np.array([0, STEPS - 1])
    shape = (2, 2, 6, 64)
    coords = {"neuron": np.arange(64)}
    if kind == "particles":
        coords |= {"scramble": ("neuron", np.repeat(np.arange(8), 8))}
    else:
        shape = (len(WIDTHS), *shape)
        members = np.broadcast_to(np.arange(64) // 8, (len(WIDTHS), 64))
        coords |= {"width": WIDTHS, "member": (("width", "neuron"), members)}
    values = {"preactivation": rng.standard_normal(shape)}
    return schema.build(kind, of, values, steps=steps, attrs=attrs(), coords=coords)


# ---- identity travels with the entries -------------------------------------------------------------------------------


def joined(*parts, along):
    return xr.concat(parts, along, coords="minimal", compat="override", combine_attrs="override", join="override")


def test_the_same_networks_twice_are_refused_under_any_labels():
    nets, theory = ensemble(), dmft.lazy_limit(problem())
    for twice in (joined(nets, nets, along="seed"), nets.isel(seed=[0, 1, 2, 3, 4, 5, 6, 7, 8, 8])):
        with pytest.raises(SchemaError, match="the labels seed=.* are there twice"):
            comparisons.compare(theory, twice)
    relabelled = joined(nets, nets.assign_coords(seed=nets.seed + 100), along="seed")
    with pytest.raises(SchemaError, match=r"12 seed\(s\) of width 8 twice, under other labels"):
        comparisons.compare(theory, relabelled)
    with pytest.raises(SchemaError, match="the labels width=8 and others are there twice"):
        comparisons.compare(theory, joined(nets, nets, along="width"))
    blocks = moments()
    with pytest.raises(SchemaError, match=r"block\(s\) of width 8 twice"):
        comparisons.statistics(joined(blocks, blocks.assign_coords(block=blocks.block + 8), along="block"))


def test_other_networks_may_be_joined():
    parts = [ensemble(seeds=range(12)), ensemble(seeds=range(12, 24))]
    more = joined(*parts, along="seed")
    np.testing.assert_array_equal(comparisons.statistics(more)["count"], 24)
    # of another root seed under labels of their own; other widths
    other = ensemble(seeds=range(12), root=1)
    assert comparisons.statistics(joined(parts[0], other.assign_coords(seed=other.seed + 50), along="seed")).sizes
    # of another law; but a sweep has the networks of a call
    trained, swept, in_law = (
        ensemble(producer=f"finite_nets.{n}") for n in ("train_ensemble", "sweep", "sample_in_law")
    )
    assert comparisons.statistics(joined(trained, in_law.assign_coords(seed=in_law.seed + 50), along="seed")).sizes
    with pytest.raises(SchemaError, match="twice, under other labels"):
        comparisons.statistics(joined(trained, swept.assign_coords(seed=swept.seed + 50), along="seed"))
    wider = ensemble(widths=[64], root=1)
    assert comparisons.statistics(joined(parts[0], wider, along="width"))["width"].values.tolist() == [8, 16, 32, 64]


@pytest.mark.parametrize("along", ["width", "seed"])
def test_networks_of_other_problems_are_seen(along):
    ours, other = ensemble(), ensemble(problem(2.0))
    other = other.assign_coords({along: other[along] + 100})
    both = joined(ours, other, along=along)
    assert both.attrs["problem_id"] == ours.attrs["problem_id"]  # what xarray says
    with pytest.raises(SchemaError, match=f"holds entries of {other.attrs['problem_id']}: results of several problems"):
        comparisons.compare(dmft.lazy_limit(problem()), both)
    for kind in ("particles", "neurons"):
        a, b = neurons(kind), neurons(kind, problem(2.0))
        with pytest.raises(SchemaError, match="results of several problems were joined"):
            schema.validate(joined(a, b.assign_coords(neuron=b.neuron + 64), along="neuron"), kind)


def test_results_of_earlier_versions_have_no_identity_of_entries():
    nets = ensemble().drop_vars([identity.PROBLEM, identity.ENTRY])
    assert schema.validate(nets, "ensemble") is nets


def test_the_description_and_its_digest_belong_together():
    theory, other = dmft.lazy_limit(problem()), problem(2.0)
    assert identity_of(other.to_json()) == identity_of(other.to_json(arrays=False)) == other.problem_id
    edited = theory.attrs["problem"].replace('"gamma0": 1.0', '"gamma0": 2.0')
    assert edited != theory.attrs["problem"]
    with pytest.raises(
        SchemaError, match=f"'problem' describes {other.problem_id}, and problem_id is {problem().problem_id}"
    ):
        schema.validate(theory.assign_attrs(problem=edited), "limit")
    with pytest.raises(SchemaError, match="the attribute 'problem' is not that of a result: this is not JSON"):
        schema.validate(theory.assign_attrs(problem="gone"), "limit")


# ---- files -----------------------------------------------------------------------------------------------------------


def kept():
    """One result of every kind, and analyses, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the bias that was made up is large
        nets, predicted, theory = ensemble(), fluctuations(), dmft.lazy_limit(problem())
        compared = comparisons.compare(theory, nets, predicted)
        quadratic = dmft.Problem(dmft.MLP(1, dmft.linear()), problem().task, problem().training)
        return {
            "lazy": theory,
            "two_layer": dmft.two_layer_linear(quadratic),
            "fluctuations": predicted,
            "at_width": dmft.at_width(theory, predicted, [8, 64]),
            "required_width": dmft.required_width(predicted, 0.1).to_dataset().assign_attrs(predicted.attrs),
            "distance": dmft.distance_from_lazy(theory, problem()),
            "ensemble": nets,
            "moments": moments(),
            "particles": neurons("particles"),
            "neurons": neurons("neurons"),
            "statistics": comparisons.statistics(moments(), covariance=True),
            "compare": compared,
            "bias_variance": comparisons.bias_variance(nets, theory, predicted),
            "width_law": comparisons.width_law(compared, "prediction_mean"),
            "onset": comparisons.onset(compared),
            "pointwise": comparisons.pointwise(nets, theory),
            "representations": comparisons.representations(nets, theory),
            "densities": comparisons.densities(neurons("particles"), neurons("neurons")),
            "spectra": comparisons.spectra(nets, theory),
            "extrapolate": comparisons.extrapolate(nets),
            "after_kernel": comparisons.after_kernel(nets, theory),
            "grokking": comparisons.grokking(nets, threshold=0.45),
            "overtraining": comparisons.overtraining(nets.isel(width=[0], seed=[0, 1])),
            "stack": dmft.stack([dmft.lazy_limit(problem(g)) for g in (1.0, 2.0)], "gamma0"),
        }


@pytest.fixture(scope="module")
def results():
    return kept()


def test_every_variable_of_every_producer_has_a_name_in_words_and_units(results):
    # of other results, or of tables
    others = ("report", "summary", "reversal", "fit_precision", "predict_precision", "predictors")
    others += ("transfer", "coordinate_check", "posterior")
    made = {name for name in comparisons.__all__ if name.islower() and name not in others}
    assert made <= set(results)
    for producer, ds in results.items():
        for name, variable in ds.variables.items():
            assert {"long_name", "units"} <= set(variable.attrs), (producer, name)
    # of all names that the schema knows, also those that were not made here
    for quantity in schema.quantities():
        for found in ("", "_limit", "_variance_by_layer", *(f"_{s}" for s in schema.BY_WIDTH + schema.TOTALS)):
            assert labels.long_name(f"{quantity}{found}"), (quantity, found)
    assert results["spectra"].angle.attrs["units"] == "degree"
    assert (
        labels.long_name("loss_excess_variance") == "training loss: part of the excess from the variance of predictions"
    )
    assert labels.long_name("prediction_variance_se").endswith("N times the variance over networks: standard error")
    assert labels.long_name("my_own") is None


def test_every_result_survives_a_file_and_only_as_it_was_written(results, tmp_path):
    some = ("lazy", "ensemble", "moments", "neurons", "statistics", "width_law", "onset", "densities", "stack")
    for name in some:
        ds = results[name]
        # files take time by the number of their variables
        several = sorted(map(str, ds.data_vars), key=lambda n: (n in ("count", "diverged"), n), reverse=True)[:6]
        ds = ds[several]
        path = dmft.save(ds, tmp_path / f"{name}.nc")
        again = dmft.load(path)
        xr.testing.assert_identical(again, ds)
        assert SEALED not in again.attrs


def test_a_change_by_another_program_is_seen(results, tmp_path):
    theory = results["lazy"][["loss", "loss_se"]]
    for name, change in (
        ("loss", lambda file: file["loss"].__setitem__(2, np.nextafter(file["loss"][2], 1))),
        ("time", lambda file: file["time"].__setitem__(1, 0.5)),
        ("nodes", lambda file: file.attrs.__setitem__("nodes", 65)),
        ("note", lambda file: file.attrs.__setitem__("note", "added")),
    ):
        path = dmft.save(theory, tmp_path / f"{name}.nc")
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(SchemaError, match=rf"{name}.nc is not as dmft.save wrote it: it is damaged, or another"):
            dmft.load(path)
    path = dmft.save(xr.open_dataset(path, engine="h5netcdf"), tmp_path / "again.nc")  # on purpose
    assert SEALED not in dmft.load(path).attrs
    theory.to_netcdf(tmp_path / "old.nc", engine="h5netcdf")  # of a version without digests
    xr.testing.assert_identical(dmft.load(tmp_path / "old.nc"), theory)


def test_other_readers_find_the_data_before_the_digest(results, tmp_path):
    path = dmft.save(results["lazy"], tmp_path / "limit.nc")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["loss"], results["lazy"].loss)
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        np.testing.assert_array_equal(stored.loss, results["lazy"].loss)


def test_single_flipped_bits_are_never_loaded_as_results(results, tmp_path):
    path = dmft.save(results["lazy"], tmp_path / "a.nc")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for at in [*rng.integers(0, len(whole) - END, 200), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(SchemaError, match=r"a.nc is not as dmft.save wrote it"):
            dmft.load(path)
    damaged = bytearray(whole)
    damaged[1 - END] ^= 1  # no digest is found: the file says that it has one
    path.write_bytes(damaged)
    with pytest.raises(SchemaError, match=r"a.nc is not as dmft.save wrote it"):
        dmft.load(path)


@pytest.mark.parametrize("length", [0, 100, 2000, -2000, 1 - END, -10])
def test_damaged_files_are_refused_in_one_sentence(results, tmp_path, length):
    path = dmft.save(results["lazy"][["loss", "loss_se"]], tmp_path / "limit.nc")
    path.write_bytes(path.read_bytes()[:length])
    message = "is not as dmft.save wrote it" if 1 - END <= length < 0 else "cannot be read as a NetCDF file"
    with pytest.raises(ValueError, match=f"limit.nc {message}.*damaged"):
        dmft.load(path)


def test_foreign_files_are_refused(tmp_path):
    xr.Dataset({"loss": ("step", [1.0])}, attrs={"title": "weather"}).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(SchemaError, match="b.nc is not a result of this library: it names neither its problem"):
        dmft.load(tmp_path / "b.nc")
    # but numbers that were saved here are read
    numbers = xr.Dataset({"slope": ("gamma0", [1.0, np.nan])}, attrs={"seeds": [3]})
    xr.testing.assert_equal(dmft.load(dmft.save(numbers, tmp_path / "c.nc")), numbers)


def test_what_load_refuses_is_not_saved(results, tmp_path):
    theory = results["lazy"]
    bad = theory.assign(loss=theory.loss.where(theory.step > 0))
    for ds, message in (
        (bad, "'loss' holds non-finite numbers"),
        (theory.mean("sample"), "lacks the attributes|has dimensions|schema"),
        (theory.assign_attrs(kind="limits"), "of kind 'limits', which is none of limit"),
    ):
        ds = ds.assign_attrs(theory.attrs) if ds is not bad and not ds.attrs else ds
        with pytest.raises(SchemaError, match=rf"a.nc is not written: .*({message})"):
            dmft.save(ds, tmp_path / "a.nc")
        assert not (tmp_path / "a.nc").exists()


def test_statistics_of_earlier_versions_have_their_new_names(results, tmp_path):
    now = results["statistics"]
    before = {name: name.replace("_seed_", "_") for name in map(str, now.data_vars) if "_seed_" in name}
    now.rename(before).to_netcdf(tmp_path / "old.nc", engine="h5netcdf")
    xr.testing.assert_equal(dmft.load(tmp_path / "old.nc"), now)


# ---- stacks ----------------------------------------------------------------------------------------------------------


def test_a_stack_gives_each_result_back(tmp_path):
    problems = dmft.vary(problem(), learning_rate=[0.1, 0.3])
    limits = [dmft.lazy_limit(p) for p in problems]
    stacked = dmft.stack(limits, "learning_rate")
    assert stacked.loss.dims == ("learning_rate", "step")
    assert stacked.time.dims == ("learning_rate", "step")  # which learning rates change
    assert stacked.problem_id.values.tolist() == [p.problem_id for p in problems]
    assert "problem" not in stacked.attrs
    assert stacked.attrs["producer"] == "dmft.lazy_limit"
    stored = dmft.load(dmft.save(stacked, tmp_path / "stack.nc"))
    xr.testing.assert_identical(stored, stacked)
    for p, limit in zip(problems, limits, strict=True):
        one = stored.sel(learning_rate=p.training.learning_rate)
        xr.testing.assert_identical(schema.validate(one, "limit").drop_vars("learning_rate"), limit)
        ours, theirs = dmft.distance_from_lazy(one, p), dmft.distance_from_lazy(limit, p)
        xr.testing.assert_allclose(ours.drop_vars("learning_rate"), theirs)  # sums in another order of memory
        path = dmft.save(one, tmp_path / "one.nc")
        assert dmft.load(path).attrs == limit.attrs


def test_analyses_take_results_of_a_stack_and_not_the_stack(results):
    problems = dmft.vary(problem(), gamma0=[1.0, 2.0])
    nets = dmft.stack([ensemble(p) for p in problems], "gamma0")
    limits = dmft.stack([dmft.lazy_limit(p) for p in problems], "gamma0")
    predicted = dmft.stack([fluctuations(p) for p in problems], "gamma0")
    for analysis, given in (
        (comparisons.compare, (limits, nets, predicted)),
        (comparisons.bias_variance, (nets, limits, predicted)),
        (comparisons.representations, (nets, limits)),
        (comparisons.spectra, (nets, limits)),
        (comparisons.after_kernel, (nets, limits)),
        (comparisons.pointwise, (nets, limits)),
        (comparisons.statistics, (nets,)),
    ):
        found = analysis(*(ds.sel(gamma0=1) for ds in given))
        assert found.attrs["problem_id"] == problems[0].problem_id
        expected = results[analysis.__name__]
        shared = [name for name in found.data_vars if name in expected]
        if analysis is not comparisons.statistics:  # there of others
            # sums in another order of memory
            xr.testing.assert_allclose(found[shared].drop_vars("gamma0"), expected[shared], rtol=1e-7, atol=1e-7)
        with pytest.raises(
            SchemaError, match=r"this is a stack of results over gamma0; select one, e.g. .sel\(gamma0=1.0\)"
        ):
            analysis(*given)
    with pytest.raises(ValueError, match="different problems; network.gamma0: 1.0 in the theory, 2.0 in the networks"):
        comparisons.compare(limits.sel(gamma0=1), nets.sel(gamma0=2))
    assert comparisons.summary(dmft.stack({"a": results["compare"]}, "name").sel(name="a"))


def test_labels_of_a_stack():
    a, b = dmft.lazy_limit(problem()), dmft.lazy_limit(problem(2.0))
    assert dmft.stack({"lazy": a, "rich": b}, "regime").regime.values.tolist() == ["lazy", "rich"]
    momentum = [dmft.lazy_limit(p) for p in dmft.vary(problem(), momentum=[0.0, 0.5])]
    assert dmft.stack(momentum, "momentum").momentum.values.tolist() == [
        0.0,
        0.5,
    ]  # the first is left out of descriptions
    for results, dim, error, message in (
        ([a, a], "gamma0", ValueError, "gamma0=.* not all different; give a dictionary"),
        ([a, b], "depths", ValueError, "dim='depths' is no field that these problems describe; give a dictionary"),
        ([a, b], "step", ValueError, "dim='step' is the name of a variable or dimension"),
        ([a, b.isel(step=[0, 1])], "gamma0", ValueError, "other labels along step, 5 and 2 of them"),
        ([a, b.drop_vars(["ntk", "ntk_se"])], "gamma0", ValueError, "only one has ntk, ntk_se"),
        ([], "gamma0", TypeError, "give a list of results"),
        (a, "gamma0", TypeError, "give a list of results"),
        ([a, ensemble()], "gamma0", SchemaError, "expected 'limit'"),
        ([a.drop_attrs()], "gamma0", SchemaError, "is no result"),
    ):
        with pytest.raises(error, match=message):
            dmft.stack(results, dim)


# ---- labels that differ ----------------------------------------------------------------------------------------------


def test_steps_and_samples_that_differ_are_named():
    theory, predicted = dmft.lazy_limit(problem()), fluctuations()
    with pytest.raises(
        ValueError, match=r"theory has 5 steps and the fluctuations 2, not the same: .* select common ones"
    ):
        dmft.at_width(theory, predicted.isel(step=[0, 1]), 8)
    with pytest.raises(SchemaError, match="theory and fluctuations are labelled differently along sample: 0, 1, 2"):
        dmft.at_width(theory, predicted.assign_coords(sample=[0, 1, 2, 3, 4, 9]), 8)
    # a limit that has more than the fluctuations
    assert "prediction_mean" in dmft.at_width(theory, predicted[["prediction_variance", "prediction_bias",
        "prediction_variance_se", "prediction_bias_se"]], 10**6)  # fmt: skip


def test_what_rests_on_a_lazy_limit_says_so(results):
    assert "LAZY" in results["lazy"].attrs["regime"]
    for name in ("compare", "at_width", "bias_variance", "width_law", "onset", "pointwise", "spectra"):
        assert results[name].attrs["theory_regime"] == "LAZY (gamma0 -> 0)", name
    text = comparisons.summary(results["compare"])
    assert "against the limit (LAZY, gamma0 -> 0); problem" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "exact" not in text
    rich = results["lazy"].assign_attrs(producer="dmft.solve").drop_attrs(deep=False)
    rich.attrs = {k: v for k, v in results["lazy"].attrs.items() if k != "regime"} | {"producer": "dmft.solve"}
    assert "LAZY" not in comparisons.summary(comparisons.compare(rich, ensemble()))
