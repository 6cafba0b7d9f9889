"""Spectra of the NTK and regression with it, on planted kernels (Wishart matrices), and on real networks.

K = F F' / N with Gaussian features F of covariance C: C is the limit, and the mean of K at every width.
Repetitions are steps of one result: every step holds networks that are independent of those of the others.
"""

import re

import numpy as np
import pytest
import xarray as xr
from scipy.linalg import subspace_angles

import comparisons
import dmft
import finite_nets
from dmft import schema
from dmft.errors import SchemaError

ATTRS = {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0, "particles": 1, "scrambles": 2}
WIDTHS = np.array([16, 64, 256])
STEPS, SEEDS, TRAIN, TEST = 200, 40, 4, 3
Y = np.array([1.0, -1.0, 1.0, 0.5, -0.5, 1.0, 0.5])
SPREAD = 3.0  # of predictions, times N^(1/2)
SHIFT = 4.0  # of predictions, times N
SE = 1e-3  # of the limit


def make_problem(y=Y, *, steps=STEPS, kind="squared", gamma0=1.0, test=TEST):
    x = np.random.default_rng(0).standard_normal((len(y), 5))
    train = len(y) - test
    task = dmft.Task(x[:train], y[:train], x[train:], y[train:]) if test else dmft.Task(x, y)
    return dmft.Problem(dmft.MLP(1, gamma0=gamma0), task, dmft.GradientDescent(0.1, steps - 1), kind)


def result(kind, problem, values, **coords):
    """A planted result over all steps of the problem."""
    steps = np.arange(problem.training.steps + 1)
    return schema.build(kind, problem, values, steps=steps, attrs=ATTRS, coords=coords)


def limit_of(problem, values, se=SE):
    return result("limit", problem, values | {f"{name}_se": np.full(np.shape(v), se) for name, v in values.items()})


def covariance(eigenvalues, seed=322):
    """With these eigenvalues."""
    rng = np.random.default_rng(seed)
    n = len(eigenvalues)
    rotation, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return rotation @ np.diag(eigenvalues) @ rotation.T


EIGENVALUES = (12.0, 6.0, 3.0, 1.5, 0.6, 0.4, 0.3)
C = covariance(EIGENVALUES)
TRAINING = C[:TRAIN, :TRAIN]  # its eigenvalues are well apart too: 9.8, 3.6, 1.3, 0.4
LIMIT_F = np.array([0.7, -0.4, 0.8, 0.1, 0.2, 0.3, -0.2])


def wishart(rng, covariance, width, shape):
    """(*shape, event, event_2)."""
    F = np.linalg.cholesky(covariance) @ rng.standard_normal((*shape, len(covariance), width))
    return F @ F.swapaxes(-1, -2) / width


@pytest.fixture(scope="module")
def planted():
    """(theory, networks): NTK about C, predictions about LIMIT_F + SHIFT / N."""
    rng = np.random.default_rng(2)
    problem = make_problem()
    K = np.array([wishart(rng, C, n, (SEEDS, STEPS)) for n in WIDTHS])
    n = WIDTHS[:, None, None, None]
    f = LIMIT_F + SHIFT / n + SPREAD / np.sqrt(n) * rng.standard_normal((3, SEEDS, STEPS, 7))
    test_loss = ((f - Y)[..., TRAIN:] ** 2).mean(-1) / 2
    values = {"ntk": K, "prediction": f, "test_loss": test_loss}
    limit = {
        "ntk": np.broadcast_to(C, (STEPS, 7, 7)),
        "prediction": np.broadcast_to(LIMIT_F, (STEPS, 7)),
        "test_loss": np.full(STEPS, ((LIMIT_F - Y)[TRAIN:] ** 2).mean() / 2),
    }
    return limit_of(problem, limit), result("ensemble", problem, values, width=WIDTHS, seed=np.arange(SEEDS))


@pytest.fixture(scope="module")
def found(planted):
    return comparisons.spectra(planted[1], planted[0])


@pytest.fixture(scope="module")
def regression(planted):
    return comparisons.after_kernel(planted[1], planted[0], ridge=1e-2)


def off_and_error(values, truth):
    """Mean over steps of values - truth, and its standard error."""
    return (values - truth).mean("step").values, values.std("step").values / np.sqrt(STEPS)


def spread_over_error(found, name):
    return (found[name].std("step") / np.sqrt((found[f"{name}_se"] ** 2).mean("step"))).values


# ---- eigenvalues and power -------------------------------------------------------------------------------------------


def test_eigenvalues_and_power_are_those_of_every_network(planted, found):
    _, nets = planted
    K = nets.ntk.sel(width=64).values[..., :TRAIN, :TRAIN]
    each = np.linalg.eigvalsh(K)[..., ::-1] / TRAIN
    np.testing.assert_allclose(found.eigenvalue.sel(width=64), each.mean(0), rtol=1e-10)  # rounding
    np.testing.assert_allclose(found.eigenvalue_se.sel(width=64), each.std(0, ddof=1) / np.sqrt(SEEDS), rtol=1e-8)
    vectors = np.linalg.eigh(K)[1][..., ::-1]
    y = Y[:TRAIN]
    power = np.cumsum(np.einsum("...ek,e->...k", vectors, y) ** 2, -1) / (y @ y)
    np.testing.assert_allclose(found.power.sel(width=64), power.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.power.sel(mode=TRAIN), 1, rtol=1e-10)  # all modes
    np.testing.assert_allclose(found.eigenvalue.sum("mode").sel(width=64), np.trace(K.mean(0), 0, -1, -2) / TRAIN)
    np.testing.assert_allclose(found.eigenvalue_limit[0], np.linalg.eigvalsh(TRAINING)[::-1] / TRAIN, rtol=1e-10)
    assert found.eigenvalue.dims == ("width", "step", "mode")
    assert found.mode.values.tolist() == [1, 2, 3, 4]


def test_statistics_of_the_mean_kernel_are_those_of_the_limit_and_plain_ones_are_biased(planted, found):
    _, nets = planted
    mean = nets.ntk.mean("seed").values[..., :TRAIN, :TRAIN]
    plain = np.linalg.eigvalsh(mean[0])[..., ::-1] / TRAIN
    for name in ("eigenvalue", "power"):
        off, se = off_and_error(found[f"{name}_of_mean"], found[f"{name}_limit"])
        clear = se > 1e-9  # the power of all modes is one
        assert (abs(off) < 4 * se)[clear].all(), name
        # of single networks, biased by width, and less so in wider ones
        single, single_se = off_and_error(found[name], found[f"{name}_limit"])
        assert (abs(single[0]) > 10 * single_se[0]).any(), name
        assert abs(single[2]).max() < 0.5 * abs(single[0]).max(), name
        # of 200 repetitions a spread is known to 5 %; four of them, and that of Student for twenty groups
        spread = spread_over_error(found, f"{name}_of_mean")[clear]
        assert ((spread > 0.8) & (spread < 1.25)).all(), (name, spread)
    # eigenvalues of the plain mean repel each other, by second-order perturbation theory of a Wishart matrix
    eigenvalues = np.linalg.eigvalsh(TRAINING)[::-1]
    gaps = eigenvalues[:, None] - eigenvalues + np.diag(np.full(TRAIN, np.inf))
    bias = (eigenvalues[:, None] * eigenvalues / gaps).sum(1) / (16 * SEEDS) / TRAIN
    removed = plain - found.eigenvalue_of_mean.values[0]  # (step, mode)
    standard = removed.std(0) / np.sqrt(STEPS)
    assert (abs(removed.mean(0)) > 10 * standard)[[0, 3]].all()
    assert (abs(removed.mean(0) - bias) < 4 * standard).all()


def test_a_wrong_limit_has_other_eigenvalues_at_every_width(planted):
    theory, nets = planted
    few = {"step": slice(0, 40)}
    wrong = comparisons.spectra(nets.isel(few), theory.assign(ntk=1.2 * theory.ntk).isel(few))
    off = wrong.eigenvalue_of_mean - wrong.eigenvalue_limit
    error = np.hypot(wrong.eigenvalue_of_mean_se, wrong.eigenvalue_limit_se)
    assert (off.mean("step").sel(width=256) < -5 * error.mean("step").sel(width=256) / np.sqrt(40)).all()
    np.testing.assert_allclose(off.mean("step").sel(mode=1), -0.2 / 1.2 * wrong.eigenvalue_limit[0, 0].item(), rtol=0.1)


def test_errors_of_the_limit_reach_what_follows_from_it():
    rng = np.random.default_rng(3)
    problem = make_problem(Y[:4], test=0)
    noise = np.tril(0.02 * rng.standard_normal((STEPS, 4, 4)))
    limit = TRAINING + noise + np.tril(noise, -1).swapaxes(-1, -2)
    nets = result(
        "ensemble", problem, {"ntk": wishart(rng, TRAINING, 16, (1, 8, STEPS))}, width=[16], seed=np.arange(8)
    )
    found = comparisons.spectra(nets, limit_of(problem, {"ntk": limit}, 0.02))
    for name in ("eigenvalue_limit", "power_limit"):
        # a spread of 200 is known to 5 %
        spread = spread_over_error(found, name)[:3]
        assert ((spread > 0.8) & (spread < 1.2)).all(), (name, spread)


# ---- eigenfunctions --------------------------------------------------------------------------------------------------


def test_overlaps_become_the_identity_and_angles_vanish_with_width(planted, found):
    _, nets = planted
    off = abs(found.overlap - np.eye(TRAIN)).max(("mode", "mode_2")).mean("step")
    assert (np.diff(off) < 0).all()
    # at first order the square of the angle between modes falls like 1/N
    np.testing.assert_allclose(off[1:].values / off[:-1].values, 0.25, atol=0.1)
    angles = found.angle.mean("step")
    assert found.angle_index.values.tolist() == [1, 2, 3]
    largest = angles.sel(angle_index=3).values
    np.testing.assert_allclose(largest[1:] / largest[:-1], 0.5, atol=0.1)
    assert largest[-1] < 4  # degrees; 1 / sqrt(256 * 40) is half a degree
    # a doubly stochastic matrix, for all modes
    np.testing.assert_allclose(found.overlap.sum("mode"), 1, rtol=1e-10)
    np.testing.assert_allclose(found.overlap.sum("mode_2"), 1, rtol=1e-10)
    # by the definition, of the plain mean kernel
    mean = nets.ntk.sel(width=16).mean("seed").values[7, :TRAIN, :TRAIN]
    u, v = (np.linalg.eigh(K)[1][:, ::-1] for K in (mean, TRAINING))
    np.testing.assert_allclose(found.overlap.sel(width=16)[7], (u.T @ v) ** 2, atol=1e-10)
    # principal angles: of the products of projections onto both spaces
    cosines = np.sqrt(np.linalg.eigvalsh(v[:, :3].T @ u[:, :3] @ u[:, :3].T @ v[:, :3]))[::-1]
    np.testing.assert_allclose(np.cos(np.radians(found.angle.sel(width=16)[7])), cosines, atol=1e-10)


def test_a_wrong_limit_keeps_its_angle_at_every_width(planted):
    theory, nets = planted
    few = {"step": slice(0, 20)}
    turned = theory.isel(few).copy(deep=True)
    turned["ntk"][:] = covariance(EIGENVALUES, seed=5)
    found = comparisons.spectra(nets.isel(few), turned)
    angle = found.angle.sel(angle_index=3)
    assert (angle.sel(width=256) > 10 * angle.sel(width=256).std()).all()
    assert angle.sel(width=256).mean() > 0.7 * angle.sel(width=16).mean()


def test_the_deformation_is_the_sine_of_principal_angles(planted):
    theory, nets = planted
    few = {"step": slice(0, 3)}
    exact = theory.assign(ntk_se=0 * theory.ntk_se).isel(few)
    found = comparisons.spectra(nets.isel(few), exact)
    K = nets.ntk.sel(width=64).values[:, 2, :TRAIN, :TRAIN]
    v = np.linalg.eigh(TRAINING)[1][:, ::-1]
    # by SciPy, network by network
    sines = [(np.sin(subspace_angles(np.linalg.eigh(k)[1][:, -3:], v[:, :3])) ** 2).mean() for k in K]
    np.testing.assert_allclose(found.deformation.sel(width=64)[2], np.sqrt(np.mean(sines)), rtol=1e-9)


def noisy(theory, scale, claimed, few, seed=4):
    """A limit with independent errors of size `scale` at every step, which claims others."""
    rng = np.random.default_rng(seed)
    K = theory.ntk.isel(few)
    noise = np.tril(scale * rng.standard_normal(K.shape))
    noise = noise + np.tril(noise, -1).swapaxes(-1, -2)
    return theory.isel(few).assign(ntk=K + noise, ntk_se=xr.full_like(K, claimed))


@pytest.mark.parametrize(
    ("analysis", "name"), [(comparisons.spectra, "deformation"), (comparisons.after_kernel, "distance")]
)
def test_noise_of_networks_and_of_the_limit_makes_no_distance(planted, analysis, name):
    theory, nets = planted
    few = {"step": slice(0, 100)}
    arguments = {"ridge": 1e-2} if name == "distance" else {}
    found, unaware = (
        analysis(nets.isel(few), noisy(theory, 0.03, claimed, few), **arguments)[f"{name}_of_mean"]
        for claimed in (0.03, 0.0)
    )
    # the mean kernel is the limit: more than half of the unbiased squares are negative, as those of normal numbers are
    # (chi^2 less its mean: 68 % for one of them, 61 % for three); of 100 repetitions, four standard deviations
    assert (((found == 0).mean("step") > 0.4) & ((found == 0).mean("step") < 0.87)).all()
    # the twin knows the noise of networks alone, which in wide ones is a sixth of that of the limit
    assert (unaware == 0).mean("step").sel(width=256) < 0.1


@pytest.mark.parametrize(
    ("analysis", "name"), [(comparisons.spectra, "deformation"), (comparisons.after_kernel, "distance")]
)
def test_single_networks_are_as_far_from_a_noisy_limit_as_from_the_limit(planted, analysis, name):
    theory, nets = planted
    few, arguments = {"step": slice(0, 100)}, {"ridge": 1e-2} if name == "distance" else {}
    wide = nets.isel(few).sel(width=[256])
    clean, aware, unaware = (
        analysis(wide, noisy(theory, scale, claimed, few), **arguments)
        for scale, claimed in ((0.0, 0.0), (0.06, 0.06), (0.06, 0.0))
    )
    squares = [(each[name] ** 2).isel(width=0) for each in (clean, aware, unaware)]
    off, freed = squares[2] - squares[0], squares[1] - squares[0]
    error = freed.std("step") / np.sqrt(100)
    assert off.mean("step") > 6 * error
    # to first order in the noise: what is left is less than a sixth of it
    assert abs(freed.mean("step")) < 4 * error + off.mean("step") / 6
    # errors of networks alone, and of the limit mainly, whose part is cautious, twice what it was
    for each, least in ((clean, 0.8), (aware, 0.3)):
        assert ((spread_over_error(each, name) > least) & (spread_over_error(each, name) < 1.25)).all()


def test_a_mean_kernel_that_turns_by_an_angle_over_width_is_seen_to(planted):
    theory, nets = planted
    few = {"step": slice(0, 60)}
    turned = nets.isel(few).copy(deep=True)
    v = np.linalg.eigh(TRAINING)[1][:, ::-1]
    angles = 51 / WIDTHS[1:]
    for K, angle in zip(turned.ntk.values[1:], angles, strict=True):
        # in the plane of the third and the fourth mode: one of the first three leaves their space
        c, s = np.cos(angle), np.sin(angle)
        plane = np.eye(TRAIN)
        plane[2:, 2:] = [[c, -s], [s, c]]
        R = np.eye(TRAIN + TEST)
        R[:TRAIN, :TRAIN] = v @ plane @ v.T
        K[...] = R @ K @ R.T
    found = comparisons.spectra(turned.sel(width=[64, 256]), theory.isel(few))
    # squares are unbiased, and above zero at these angles
    square = (found.deformation_of_mean**2).mean("step")
    se = (found.deformation_of_mean**2).std("step") / np.sqrt(60)
    assert (abs(square - np.sin(angles) ** 2 / 3) < 4 * se).all()
    assert (se < 0.2 * square).all()
    # a spread of 60 is known to 9 %
    spread = spread_over_error(found, "deformation_of_mean")
    assert ((spread > 0.65) & (spread < 1.4)).all()


def test_as_many_modes_and_angles_as_asked_for(planted, found):
    theory, nets = planted
    few = {"step": slice(0, 2)}
    two = comparisons.spectra(nets.isel(few), theory.isel(few), modes=2, subspace=7)
    assert two.eigenvalue.shape == (3, 2, 2)
    assert two.overlap.shape == (3, 2, 2, 2)
    assert two.angle.shape == (3, 2, 2)  # of no more modes than there are
    assert two.attrs["subspace"] == 2
    for name in ("eigenvalue", "power", "mode_loss", "eigenvalue_of_mean", "eigenvalue_limit"):
        expected = found[name].isel(few).sel(mode=[1, 2])
        np.testing.assert_allclose(two[name], expected, rtol=1e-10, err_msg=name)
    # of all modes there is one space, whoever spans it
    whole = comparisons.spectra(nets.isel(few), theory.isel(few), subspace=4)
    np.testing.assert_allclose(whole.angle, 0, atol=1e-5)  # degrees: the root of rounding


# ---- losses of modes -------------------------------------------------------------------------------------------------


def test_losses_of_modes_add_up_to_the_loss_and_are_unbiased(planted, found):
    _, nets = planted
    f = nets.prediction.values[..., :TRAIN]
    loss = ((f - Y[:TRAIN]) ** 2).mean(-1) / 2
    np.testing.assert_allclose(found.mode_loss.sum("mode"), loss.mean(1), rtol=1e-10)  # rounding
    limit = ((LIMIT_F - Y)[:TRAIN] ** 2).mean() / 2
    np.testing.assert_allclose(found.mode_loss_limit.sum("mode"), limit, rtol=1e-10)
    basis = np.linalg.eigh(TRAINING)[1][:, ::-1]
    for i, n in enumerate(WIDTHS):
        infinite = ((LIMIT_F + SHIFT / n - Y)[:TRAIN] @ basis) ** 2 / (2 * TRAIN)
        for name, variance in (("mode_loss_infinite", 0.0), ("mode_loss", SPREAD**2 / n / (2 * TRAIN))):
            off, se = off_and_error(found[name].isel(width=i), infinite + variance)
            assert (abs(off) < 4 * se).all(), (name, n)
    for name in ("mode_loss_infinite", "mode_loss"):
        spread = spread_over_error(found, name)
        assert ((spread > 0.8) & (spread < 1.25)).all(), name  # as above


def test_the_infinite_ensemble_has_no_variance_and_the_plain_mean_has(planted):
    theory, nets = planted
    few = nets.isel(width=[0], seed=slice(0, 8))
    ours = comparisons.spectra(few, theory).mode_loss_infinite[0].sum("mode").values
    both = comparisons.bias_variance(few, ensembles=(1,))
    np.testing.assert_allclose(ours, both.loss_infinite[0], atol=1e-12)  # rounding
    mean = few.prediction.mean("seed").values[0, :, :TRAIN]
    plain = ((mean - Y[:TRAIN]) ** 2).mean(-1) / 2
    truth = ((LIMIT_F + SHIFT / 16 - Y)[:TRAIN] ** 2).mean() / 2
    assert plain.mean() - truth > 4 * plain.std() / np.sqrt(STEPS)
    assert abs(ours.mean() - truth) < 4 * ours.std() / np.sqrt(STEPS)


def test_other_losses_have_no_modes():
    rng = np.random.default_rng(4)
    problem = make_problem(np.sign(Y), steps=2, kind="logistic")
    values = {"ntk": wishart(rng, C, 16, (1, 8, 2)), "prediction": rng.standard_normal((1, 8, 2, 7))}
    nets = result("ensemble", problem, values, width=[16], seed=np.arange(8))
    theory = limit_of(problem, {"ntk": np.stack([C, C]), "prediction": np.zeros((2, 7))})
    assert not [name for name in comparisons.spectra(nets, theory).data_vars if "loss" in name]
    found = comparisons.after_kernel(nets, theory)
    assert "test_loss" in found
    assert "network_test_loss" not in found


# ---- regression with the kernel --------------------------------------------------------------------------------------


def predicted(K, ridge):
    """Of kernels (..., event, event_2), at the test samples, by normal equations."""
    inner = K[..., :TRAIN, :TRAIN]
    level = ridge * np.trace(inner, axis1=-2, axis2=-1)[..., None, None] / TRAIN
    return K[..., TRAIN:, :TRAIN] @ np.linalg.inv(inner + level * np.eye(TRAIN)) @ Y[:TRAIN]


def test_the_after_kernel_is_regression_with_every_network(planted, regression):
    _, nets = planted
    f, limit = predicted(nets.ntk.sel(width=64).values, 1e-2), predicted(C, 1e-2)
    at = regression.sel(width=64)
    exact = planted[0].assign(ntk_se=0 * planted[0].ntk_se)
    distance = comparisons.after_kernel(nets, exact, ridge=1e-2).distance.sel(width=64)
    loss = ((f - Y[TRAIN:]) ** 2).mean(-1) / 2
    np.testing.assert_allclose(at.test_loss, loss.mean(0), rtol=1e-9)  # rounding, conditions below 1e3
    np.testing.assert_allclose(at.test_loss_se, loss.std(0, ddof=1) / np.sqrt(SEEDS), rtol=1e-8)
    np.testing.assert_allclose(distance, np.sqrt(((f - limit) ** 2).mean(-1).mean(0)), rtol=1e-9)
    np.testing.assert_allclose(regression.test_loss_limit, ((limit - Y[TRAIN:]) ** 2).mean() / 2, rtol=1e-9)
    assert regression.attrs["ridge"] == 1e-2
    np.testing.assert_allclose(at.network_test_loss, nets.test_loss.sel(width=64).mean("seed"), rtol=1e-12)
    np.testing.assert_allclose(regression.network_test_loss_limit, planted[0].test_loss)


def test_regression_with_the_mean_kernel_is_that_of_the_limit_without_bias(planted, regression):
    off, se = off_and_error(regression.test_loss_of_mean, regression.test_loss_limit)
    assert (abs(off) < 4 * se).all()
    spread = spread_over_error(regression, "test_loss_of_mean")
    assert ((spread > 0.8) & (spread < 1.25)).all()  # as above
    single, single_se = off_and_error(regression.test_loss, regression.test_loss_limit)
    assert (abs(single) > 4 * single_se)[:2].all()  # narrow networks by themselves are biased
    distance = regression.distance.mean("step").values
    np.testing.assert_allclose(distance[1:] / distance[:-1], 0.5, atol=0.1)
    # an unbiased square, of a mean that has no distance
    assert ((regression.distance_of_mean == 0).mean("step") > 0.3).all()
    plain = predicted(planted[1].ntk.mean("seed").values, 1e-2) - predicted(C, 1e-2)
    assert (np.sqrt((plain**2).mean(-1)).mean(1) > 1.2 * regression.distance_of_mean.mean("step")).all()


def test_regression_with_a_wrong_limit_is_off_at_every_width(planted):
    theory, nets = planted
    few = {"step": slice(0, 20)}
    wrong = theory.isel(few).copy(deep=True)
    wrong["ntk"][:] = covariance(EIGENVALUES, seed=5)
    found = comparisons.after_kernel(nets.isel(few), wrong, ridge=1e-2)
    widest = found.sel(width=256)
    assert (widest.distance_of_mean > 5 * widest.distance_of_mean_se).all()
    expected = np.sqrt(((predicted(C, 1e-2) - predicted(wrong.ntk.values[0], 1e-2)) ** 2).mean())
    np.testing.assert_allclose(found.distance_of_mean.mean("step").sel(width=[64, 256]), expected, rtol=0.1)


# ---- several outputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 2])
def test_an_event_is_a_sample_and_an_output(outputs):
    rng = np.random.default_rng(6)
    y = rng.standard_normal((5, outputs))
    problem = make_problem(y, steps=3, test=2)
    events, train = 5 * outputs, 3 * outputs
    big = covariance(2.0 ** -np.arange(events), seed=7)
    K, f = wishart(rng, big, 40, (1, 10, 3)), rng.standard_normal((1, 10, 3, 5, outputs))
    test_loss = ((f - y)[..., 3:, :] ** 2).sum(-1).mean(-1) / 2
    shape = (5, outputs, 5, outputs)
    values = {"ntk": K.reshape(1, 10, 3, *shape), "prediction": f, "test_loss": test_loss}
    nets = result("ensemble", problem, values, width=[40], seed=np.arange(10))
    limit = {
        "ntk": np.broadcast_to(big, (3, events, events)).reshape(3, *shape),
        "prediction": np.zeros((3, 5, outputs)),
        "test_loss": np.ones(3),
    }
    theory = limit_of(problem, limit)
    found = comparisons.spectra(nets, theory)
    # of K / P for P samples, as in df/dt = (eta / P) K Delta, whatever the number of outputs
    each = np.linalg.eigvalsh(K[0][..., :train, :train])[..., ::-1] / 3
    np.testing.assert_allclose(found.eigenvalue[0], each.mean(0), rtol=1e-8)  # rounding
    loss = ((f - y)[..., :3, :] ** 2).sum(-1).mean(-1)[0] / 2
    np.testing.assert_allclose(found.mode_loss[0].sum("mode"), loss.mean(0), rtol=1e-8)
    np.testing.assert_allclose(found.mode_loss_limit.sum("mode"), (y[:3] ** 2).sum() / 6, rtol=1e-8)
    after = comparisons.after_kernel(nets, theory, ridge=0.1)
    inner = K[0][..., :train, :train]
    level = 0.1 * np.trace(inner, axis1=-2, axis2=-1)[..., None, None] / train
    g = K[0][..., train:, :train] @ np.linalg.inv(inner + level * np.eye(train)) @ y[:3].ravel()
    loss = ((g - y[3:].ravel()) ** 2).sum(-1) / (2 * 2)
    np.testing.assert_allclose(after.test_loss[0], loss.mean(0), rtol=1e-8)
    np.testing.assert_allclose(after.network_test_loss[0], test_loss[0].mean(0), rtol=1e-8)


# ---- form, and bad input ---------------------------------------------------------------------------------------------


def test_results_say_what_they_are_and_survive_a_file(planted, found, regression, tmp_path):
    theory, _ = planted
    for result_, name in ((found, "spectra"), (regression, "after_kernel")):
        assert result_.attrs["analysis"] == name
        assert result_.attrs["problem_id"] == theory.attrs["problem_id"]
        assert result_.attrs["seeds"] == [SEEDS] * 3
        np.testing.assert_array_equal(result_.time, theory.time)
        for variable in result_.data_vars:
            assert str(variable).endswith("_se") or f"{variable}_se" in result_
        xr.testing.assert_equal(dmft.load(dmft.save(result_, tmp_path / f"{name}.nc")), result_)


def test_networks_that_diverged_do_not_count(planted):
    theory, nets = planted
    few = {"step": slice(0, 3)}
    gone = np.zeros((3, SEEDS), bool)
    gone[0, ::4] = True
    some = nets.isel(few).where(~xr.DataArray(gone, dims=("width", "seed")))
    some = some.assign(diverged=(("width", "seed"), gone))
    for analysis in (comparisons.spectra, comparisons.after_kernel):
        whole = analysis(some, theory.isel(few))
        assert whole.attrs["seeds"] == [30, 40, 40]
        alone = analysis(nets.isel(few | {"width": [0], "seed": ~gone[0]}), theory.isel(few))
        for name in (name for name in alone.data_vars if "width" in alone[name].dims):
            np.testing.assert_array_equal(whole[name][0], alone[name][0], err_msg=name)


@pytest.mark.parametrize("analysis", [comparisons.spectra, comparisons.after_kernel])
def test_refusals(planted, analysis):
    theory, nets = planted

    def refuses(error, message, nets, theory, **kwargs):
        with pytest.raises(error, match=re.escape(message)):
            analysis(nets, theory, **kwargs)

    refuses(SchemaError, "theory is there twice", theory, theory)
    refuses(SchemaError, "nets is there twice", nets, nets)
    refuses(ValueError, "7 network(s) of width 16", nets.isel(seed=slice(0, 7)), theory)
    refuses(ValueError, "the ensemble has no ntk, but prediction, test_loss", nets.drop_vars("ntk"), theory)
    refuses(ValueError, "the theory has no ntk, but prediction", nets, theory.drop_vars(["ntk", "ntk_se"]))
    refuses(ValueError, "theory has 200 steps and the networks 3", nets.isel(step=slice(0, 3)), theory)
    other = make_problem(gamma0=1.2)
    wrong = theory.assign_attrs(problem_id=other.problem_id, problem=other.to_json(arrays=False))
    refuses(ValueError, "of different problems; network.", nets, wrong)
    blocks = {"count": np.full((1, 8), 2), "diverged": np.zeros((1, 8), int), "ntk_mean": np.ones((1, 8, STEPS, 7, 7))}
    blocks["ntk_m2"] = blocks["ntk_mean"]
    moments = result("moments", make_problem(), blocks, width=[16], block=np.arange(8))
    refuses(ValueError, "needs every network, and these are moments of blocks of them", moments, theory)
    only_test = {"sample": slice(TRAIN, None), "sample_2": slice(TRAIN, None)}
    refuses(ValueError, "hold no train samples, which this needs", nets.isel(only_test), theory.isel(only_test))
    if analysis is comparisons.spectra:
        refuses(ValueError, "modes=5, but the NTK of the training samples has 4", nets, theory, modes=5)
        for name in ("modes", "subspace"):
            refuses(ValueError, f"{name}=0 is too small", nets, theory, **{name: 0})
            refuses(TypeError, f"{name}=1.5 is not an integer", nets, theory, **{name: 1.5})
    else:
        only_train = {"sample": slice(0, TRAIN), "sample_2": slice(0, TRAIN)}
        refuses(ValueError, "hold no test samples, which this needs", nets.isel(only_train), theory.isel(only_train))
        for bad in (0.0, -1.0, np.nan):
            refuses(ValueError, "ridge", nets, theory, ridge=bad)


# ---- real networks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[None, 2], ids=["one output", "two outputs"])
def real(request):
    """(theory, networks) of a small problem, single-precision networks."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((7, 5))
    y = np.sign(rng.standard_normal((7, request.param) if request.param else 7))
    problem = dmft.Problem(dmft.MLP(2), dmft.Task(x[:4], y[:4], x[4:], y[4:]), dmft.GradientDescent(0.5, 3))
    names = ["prediction", "loss", "feature_kernel", "ntk"]
    theory = dmft.solve(problem, particles=1024, scrambles=2, observables=names)
    return theory, finite_nets.train_ensemble(problem, widths=[32, 128], seeds=24, observables=names)


def test_real_networks_lose_in_all_modes_what_they_lose(real):
    theory, nets = real
    found = comparisons.spectra(nets, theory)
    for name in found.data_vars:
        assert np.isfinite(found[name]).all(), name
    # predictions are in single precision
    np.testing.assert_allclose(found.mode_loss.sum("mode"), nets.loss.mean("seed"), rtol=1e-5)
    # the loss of the limit is the mean over scrambles of losses, that of its modes the loss of the mean
    off = abs(found.mode_loss_limit.sum("mode") - theory.loss)
    assert (off <= 4 * (theory.loss_se + found.mode_loss_limit_se.sum("mode")) + 1e-9).all()
    assert (found.mode_loss_infinite.sum("mode") <= found.mode_loss.sum("mode")).all()
    # eigenvalues come in groups of as many as there are outputs at the start; the first such group is well apart
    outputs = nets.sizes.get("output", 1)
    block = found.overlap.sel(width=128)[:, :outputs, :outputs].sum(("mode", "mode_2")) / outputs
    assert (block > 0.95).all()


def test_the_after_kernel_of_a_real_network_is_regression_with_it(real):
    theory, nets = real
    found = comparisons.after_kernel(nets, theory, ridge=1e-3)
    for name in found.data_vars:
        assert np.isfinite(found[name]).all(), name
    outputs = nets.sizes.get("output", 1)
    K = nets.ntk.sel(width=128).values.astype(float).reshape(24, 4, 7 * outputs, 7 * outputs)
    train, y = 4 * outputs, theory.target.values.ravel()
    losses = []
    for member in range(24):
        inner = K[member, -1, :train, :train]
        right = np.linalg.solve(inner + 1e-3 * np.trace(inner) / train * np.eye(train), y[:train])
        losses.append(((K[member, -1, train:, :train] @ right - y[train:]) ** 2).sum() / (2 * 3))
    last = found.sel(width=128).isel(step=-1)
    np.testing.assert_allclose(last.test_loss, np.mean(losses), rtol=1e-9)  # rounding, conditions below 1e4
    assert (found.distance.sel(width=128) < found.distance.sel(width=32)).all()
    np.testing.assert_allclose(found.network_test_loss, nets.test_loss.mean("seed"), rtol=1e-12)


def test_kernels_of_real_networks_become_those_of_the_limit(real):
    theory, nets = real
    for quantity in ("feature_kernel", "ntk"):
        found = comparisons.representations(nets, theory, quantity)
        assert found.alignment.dims == (("width", "step") if quantity == "ntk" else ("width", "layer", "step"))
        for name in found.data_vars:
            assert np.isfinite(found[name]).all(), (quantity, name)
        narrow, wide = found.sel(width=32), found.sel(width=128)
        for name in ("alignment", "cka", "unbiased_cka"):
            assert (narrow[name] < wide[name]).all(), (quantity, name)
        # the root of 32 / 128, which 24 networks tell to 10 % each
        np.testing.assert_allclose(wide.distance / narrow.distance, 0.5, atol=0.2)
        assert (wide.distance_of_mean < wide.distance).all()


def test_the_limit_of_another_richness_is_refused(real):
    theory, nets = real
    problem = make_problem(gamma0=2.0)
    other = theory.assign_attrs(problem_id=problem.problem_id, problem=problem.to_json(arrays=False))
    for analysis in (comparisons.spectra, comparisons.after_kernel, comparisons.representations):
        with pytest.raises(ValueError, match="of different problems"):
            analysis(nets, other)
