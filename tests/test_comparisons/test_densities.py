"""Distances between laws of neurons: against SciPy, their errors and floors on samples of known laws, and real runs."""

import re

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import dmft
import finite_nets
from comparisons.densities import DISTANCES, common_edges, densities, described, distances, gaussian, groups_of
from conftest import reference_problem
from dmft.errors import SchemaError

MEMBERS, NEURONS = 40, 25


def clustered(rng, shift=0.0, common=0.2):
    """Neurons of networks that share a part of their deviation, with variance 1 in all."""
    each = common * rng.standard_normal((MEMBERS, 1)) + np.sqrt(1 - common**2) * rng.standard_normal((MEMBERS, NEURONS))
    return shift + each.ravel()


MEMBER = np.repeat(np.arange(MEMBERS), NEURONS)


def test_distances_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for a, b in (
        (rng.standard_normal(300), 0.3 + rng.standard_normal(200)),
        (rng.integers(0, 5, 300).astype(float), rng.integers(1, 7, 200).astype(float)),  # ties
    ):
        found = distances(a, b, np.arange(300) % 10, np.arange(200) % 4)
        assert found["wasserstein"].value == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-12)
        assert found["kolmogorov_smirnov"].value == pytest.approx(stats.ks_2samp(a, b).statistic, rel=1e-12)


def test_shape_is_that_of_scipy():
    x = np.random.default_rng(0).standard_gamma(3.0, 500)
    found = described(x, np.arange(500) % 10, common_edges(x, 20))
    for name, value in (
        ("mean", x.mean()),
        ("standard_deviation", x.std()),
        ("excess_kurtosis", stats.kurtosis(x)),
        ("gaussian_distance", stats.kstest((x - x.mean()) / x.std(), "norm").statistic),
    ):
        assert found[name][0] == pytest.approx(value, rel=1e-10), name


def repeated(count=120, shift=0.0, **grouping):
    """Distances (repetition, quantity) of clustered samples from a second law: value, error, floor."""
    rng, found = np.random.default_rng(5), []
    groups = groups_of(MEMBER, **grouping)
    for _ in range(count):
        each = distances(clustered(rng, shift), clustered(rng), groups, groups)
        found.append([each[name] for name in DISTANCES])
    return np.moveaxis(np.array(found), -1, 0)


def test_errors_of_distances_are_their_scatter():
    value, se, _ = repeated(shift=0.6)
    # 120 repetitions: the scatter is known to 1/sqrt(240) = 6.5 %; three of these and the bias of the jackknife
    np.testing.assert_allclose(np.sqrt((se**2).mean(axis=0)) / value.std(axis=0, ddof=1), 1, atol=0.25)
    assert value[:, 0].mean() == pytest.approx(0.6, abs=0.03)  # Wasserstein distance of shifted laws; 4 errors of .07


def test_floors_are_the_distances_of_one_law_and_know_of_networks():
    value, _, floor = repeated()
    # both are means over 120 repetitions with scatter of a half and less: 4 % each
    np.testing.assert_allclose(floor.mean(axis=0) / value.mean(axis=0), 1, atol=0.15)
    rng = np.random.default_rng(5)
    alone = rng.permutation(MEMBER)  # neurons as if they were independent: variance (1 + 24 .04) / 1 too small
    naive = [
        distances(clustered(rng), clustered(rng), groups_of(alone), groups_of(alone))["wasserstein"].floor
        for _ in range(60)
    ]
    assert np.mean(naive) < 0.85 * value[:, 0].mean()


def test_errors_of_shapes_are_their_scatter():
    rng, groups, edges = np.random.default_rng(6), groups_of(MEMBER), np.linspace(-3, 3, 11)
    found = [described(clustered(rng), groups, edges) for _ in range(200)]
    for name, expected in (("mean", 0.0), ("standard_deviation", 1.0), ("excess_kurtosis", 0.0)):
        value, se = np.array([one[name] for one in found]).T
        # the scatter of 200 is known to 5 %, and 20 groups give the error to 16 % each
        assert np.sqrt((se**2).mean()) / value.std(ddof=1) == pytest.approx(1, abs=0.2), name
        # kurtosis has a bias of order 1/1000
        assert value.mean() == pytest.approx(expected, abs=4 * value.std() / np.sqrt(200) + 0.01), name
    density, se = (np.array([one["density"][i] for one in found]) for i in (0, 1))
    exact = np.diff(stats.norm.cdf(edges)) / np.diff(edges)
    np.testing.assert_allclose(density.mean(axis=0), exact, atol=4 * density.std(axis=0).max() / np.sqrt(200))
    np.testing.assert_allclose(np.sqrt((se**2).mean(axis=0)) / density.std(axis=0, ddof=1), 1, atol=0.25)
    np.testing.assert_allclose(gaussian(0.3, 0.1, 2.0), stats.norm.pdf(0.3, 0.1, 2.0), rtol=1e-12)


def test_groups_are_of_whole_members():
    member = np.array([7, 7, 3, 3, 3, 9, 12, 12])
    assert groups_of(member).tolist() == [1, 1, 0, 0, 0, 2, 3, 3]
    assert groups_of(member, 2).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert np.bincount(groups_of(np.arange(1000))).tolist() == [50] * 20


def test_a_constant_is_described_without_a_shape():
    found = described(np.zeros(40), np.arange(40) % 4, common_edges(np.zeros(40), 4))
    assert found["standard_deviation"][0] == 0
    assert np.isnan(found["excess_kurtosis"][0])


# ---- networks and particles ------------------------------------------------------------------------------------------

RICH = 2.0


@pytest.fixture(scope="module")
def nets():
    return finite_nets.neurons(reference_problem(RICH), widths=[4, 256], neurons=2**14)


@pytest.fixture(scope="module")
def limit():
    return dmft.neurons(reference_problem(RICH), particles=2048, scrambles=8)


@pytest.fixture(scope="module")
def found(limit, nets):
    return densities(limit, nets, bins=24)


def test_wide_networks_have_the_neurons_of_the_limit(found):
    """Distances of one law scatter by .4 of their mean (the area under a Brownian bridge) and less, three and two times
    the mean are five of that; cells are few and correlated."""
    wide = found.sel(width=256)
    assert (wide.wasserstein < 3 * wide.wasserstein_floor).all()
    assert (wide.kolmogorov_smirnov < 2.5 * wide.kolmogorov_smirnov_floor).all()
    kurtosis = (wide.excess_kurtosis - wide.excess_kurtosis_limit) / np.hypot(
        wide.excess_kurtosis_se, wide.excess_kurtosis_limit_se
    )
    assert (abs(kurtosis) < 5).all()


def test_networks_of_another_richness_have_not(limit):
    other = finite_nets.neurons(reference_problem(1.2 * RICH), widths=[256], neurons=2**14)
    other = other.drop_vars(["entry_problem", "entry_id"])  # which would tell
    other.attrs |= {name: limit.attrs[name] for name in ("problem", "problem_id")}
    wide = densities(limit, other, bins=4).isel(width=0)
    trained = wide.sel(step=10, layer=2)
    assert (trained.wasserstein > 5 * trained.wasserstein_floor).all()
    assert (trained.kolmogorov_smirnov > 3 * trained.kolmogorov_smirnov_floor).all()
    start = wide.sel(step=0)  # where the richness has not acted yet
    assert (start.wasserstein < 3 * start.wasserstein_floor).all()


def test_narrow_networks_are_told_from_the_limit_but_for_the_first_layer_at_initialisation(found):
    narrow = found.sel(width=4)
    assert (narrow.sel(layer=2).wasserstein > 2 * narrow.sel(layer=2).wasserstein_floor).all()
    first = narrow.sel(layer=1, step=0)  # Gaussian in networks of any width
    assert (first.wasserstein < 3 * first.wasserstein_floor).all()


def test_training_leaves_the_gaussian_law(found):
    start, end = found.sel(step=0), found.sel(step=10)
    # at initialisation kurtosis is that of N(0, Phi) in the limit: 16,384 particles, and a bias of 1/2048
    assert (abs(start.excess_kurtosis_limit) < 5 * start.excess_kurtosis_limit_se + 0.05).all()
    assert (end.sel(layer=2).excess_kurtosis_limit < -0.2).all()
    assert (end.sel(layer=2).gaussian_distance_limit > 5 * start.sel(layer=2).gaussian_distance_limit).all()


def test_densities_are_of_all_neurons(found, limit, nets):
    area = np.diff(found.edges.values)
    for name in ("density", "density_limit"):
        inside = (found[name].values * area).sum(axis=-1)
        assert ((inside > 0.995) & (inside <= 1)).all()
    assert found.density.dims == ("width", "layer", "step", "sample", "bin")
    assert found.edges.dims == ("layer", "step", "sample", "edge")
    assert found.networks.values.tolist() == [4096, 64]
    assert found.attrs["analysis"] == "densities"
    assert found.attrs["problem_id"] == limit.attrs["problem_id"]
    assert "kind" not in found.attrs
    counts, _ = np.histogram(nets.preactivation[1, 1, 1, 2], found.edges[1, 1, 2])
    np.testing.assert_allclose(found.density[1, 1, 1, 2], counts / 2**14 / area[1, 1, 2], rtol=1e-12)


def test_results_are_stored(found, tmp_path):
    dmft.save(found, tmp_path / "densities.nc")
    xr.testing.assert_identical(dmft.load(tmp_path / "densities.nc"), found)


def test_wrong_inputs(limit, nets):
    for arguments, error, message in (
        ((nets, nets), SchemaError, "nets is there twice"),
        (
            (limit, limit),
            SchemaError,
            "theory is there twice. Expected, in any order: theory, a result of kind 'particles'",
        ),
        ((limit.preactivation, nets), SchemaError, "got DataArray"),
        ((limit.isel(step=[1]), nets), ValueError, "theory has 1 steps and the networks 2, not the same"),
        ((limit.isel(sample=[1]), nets), SchemaError, "theory and networks are labelled differently"),
        (
            (limit.assign_attrs(problem_id="another"), nets),
            SchemaError,
            "the attributes were changed: 'problem' describes",
        ),
        (
            (limit, nets.isel(neuron=slice(256))),
            ValueError,
            "the neurons of width 256 are those of 1 network(s); errors need at least 8: keep neurons=2048 or more",
        ),
    ):
        with pytest.raises(error, match=re.escape(message)):
            densities(*arguments)
    with pytest.raises(ValueError, match="bins=1 is too small"):
        densities(limit, nets, bins=1)
