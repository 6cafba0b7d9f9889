"""The coordinate check: three parameterizations of one network, sizes from kernels, divergence shown as such."""

import numpy as np
import pytest
import xarray as xr

import dmft
import finite_nets
from figures import coordinate_check as module
from figures import own_coordinate_check as own

pytestmark = pytest.mark.filterwarnings("ignore:standard errors of")  # of few particles at a large learning rate


@pytest.fixture(scope="module")
def made():
    """Of fewer widths and networks; at the largest width those with one learning rate diverge."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WIDTHS", (64, 128, 256)), ("SEEDS", 4), ("PARTICLES", 1024), ("RATE", 2.0), ("STEPS", 3)):
            patch.setattr(module, name, value)
        yield module.data(None)


def test_all_parameterizations_are_one_network_at_the_base_width(made):
    base = made.sel(width=module.BASE)
    for name in module.QUANTITIES:
        for other in ("ntk", "standard"):
            # the same numbers, scaled in another order
            np.testing.assert_allclose(
                base[name].sel(parameterization=other), base[name].sel(parameterization="mean_field"), rtol=1e-9
            )
    wider = made.change.sel(width=128, field="layer 1")
    assert not np.isclose(wider.sel(parameterization="ntk"), wider.sel(parameterization="mean_field"), rtol=0.1)


def test_ntk_updates_vanish_and_divergence_is_counted(made):
    assert made.diverged.sel(parameterization="standard").values[-1] == 4
    assert np.isnan(made.change.sel(parameterization="standard", width=256)).all()
    assert made.diverged.sel(parameterization=["mean_field", "ntk"]).sum() == 0


def test_sizes_are_those_of_the_neurons():
    """From kernels, against preactivations of the same networks."""
    problem = module.problem()
    nets = finite_nets.train_ensemble(
        problem,
        widths=[16],
        seeds=3,
        save_steps=[0, 2],
        dtype="float64",
        two_time=True,
        observables=["prediction", "feature_kernel"],
    )
    h = finite_nets.neurons(problem, widths=[16], neurons=48, save_steps=[0, 2], dtype="float64").preactivation[0]
    phi = np.sqrt(2) * np.maximum(h.values, 0).reshape(3, 2, 8, 3, 16)  # layer, step, sample, member, neuron
    found = module.squares(nets.isel(width=0))
    np.testing.assert_allclose(found.size[:, :3], (phi[:, 1] ** 2).mean(axis=(1, 3)).T, rtol=1e-10)
    np.testing.assert_allclose(found.change[:, :3], ((phi[:, 1] - phi[:, 0]) ** 2).mean(axis=(1, 3)).T, rtol=1e-8)
    f = nets.prediction[0].values
    np.testing.assert_allclose(found.change[:, 3], ((f[:, 1] - f[:, 0]) ** 2).mean(axis=1))


def test_root_of_a_mean_has_the_error_of_its_scatter():
    rng = np.random.default_rng(0)
    each = rng.gamma(4.0, size=(400, 20))
    value, se = np.array([module.root_mean(row) for row in each]).T
    assert value.mean() == pytest.approx(2, rel=0.02)
    assert np.sqrt((se**2).mean()) / value.std() == pytest.approx(1, abs=0.12)  # 400 values: 3.5 %
    assert np.isnan(module.root_mean(np.ones((1, 2)))[1]).all()


def test_figure_shows_the_numbers(made, tmp_path):
    dmft.save(made, tmp_path / "coordinate_check.nc")
    xr.testing.assert_identical(module.data(tmp_path), made)
    figure = module.figure(made)
    axes = np.array(figure.axes).reshape(2, 3)
    for row, name in zip(axes, module.QUANTITIES, strict=True):
        for ax, parameterization in zip(row, module.TITLES, strict=True):
            points = [bar.lines[0].get_ydata() for bar in ax.containers]
            expected = made[name].sel(parameterization=parameterization).transpose("field", "width")
            np.testing.assert_array_equal(points, expected)
            crosses = [line for line in ax.lines if line.get_marker() == "x"]
            assert len(crosses) == int((made.diverged.sel(parameterization=parameterization) > 0).sum())
        limits = [
            line.get_ydata()[0] for line in row[0].lines if line.get_linestyle() == "--" and len(line.get_ydata())
        ]
        np.testing.assert_array_equal(limits, made[f"{name}_limit"])


def test_any_problem_several_outputs_among_them():
    x, y = np.random.default_rng(0).standard_normal((4, 5)), np.eye(3)[[0, 1, 2, 0]]
    problem = dmft.Problem(dmft.MLP(2, dmft.linear(), gamma0=0.5), dmft.Task(x, y), dmft.GradientDescent(0.2, 6))
    made = module.make(problem, widths=[64, 16], seeds=8)
    assert made.width.values.tolist() == [16, 64]
    assert made.field.values.tolist() == ["layer 1", "layer 2", "output"]
    # wide networks come to the limit of the problem; one of four times its richness is elsewhere
    wide = made.change.sel(parameterization="mean_field", width=64)
    np.testing.assert_allclose(wide, made.change_limit, rtol=0.25)
    other = module.make(dmft.vary(problem, gamma0=[2.0])[0], widths=[16], seeds=2)
    assert (abs(other.change_limit / made.change_limit - 1)[:2] > 0.5).all()
    module.figure(made)
    for arguments, message in (({"widths": []}, "widths is empty"), ({"steps": 7}, "not among the 6 of training")):
        with pytest.raises(ValueError, match=message):
            module.make(problem, **arguments)


def test_a_module_of_ones_own_before_and_after_its_repair(monkeypatch, tmp_path):
    for name, value in (("WIDTHS", (32, 64, 256)), ("SEEDS", 4)):
        monkeypatch.setattr(own, name, value)
    made = own.data(None)
    assert made.module.values.tolist() == ["read", "relu of read", "hidden", "relu of hidden", "readout", "(output)"]
    faults = {
        name: dict(zip(made.module.values, made.fault.sel(check=name).values, strict=True)) for name in own.TITLES
    }
    assert faults["wrong"]["readout"] == "update"
    assert set(faults["repaired"].values()) == {""}
    dmft.save(made, tmp_path / "own_coordinate_check.nc")
    axes = np.array(own.figure(own.data(tmp_path)).axes).reshape(2, 2)
    for row, name in zip(axes, own.ROWS, strict=True):
        for ax, check in zip(row, own.TITLES, strict=True):
            drawn = {bar.get_label(): bar.lines[0] for bar in ax.containers}
            one = made[name].sel(check=check)
            for part, line in drawn.items():
                np.testing.assert_array_equal(line.get_ydata(), one.sel(module=part))
                wrong = made.fault.sel(check=check, module=part).item() == name
                assert (line.get_linewidth() > 2) == wrong
