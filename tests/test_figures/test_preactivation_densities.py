"""The figure of single neurons shows the numbers of `comparisons.densities`, and no others."""

import numpy as np
import pytest
import xarray as xr

import dmft
from conftest import reference_problem
from figures import preactivation_densities as module


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module.fluctuations, "problem", lambda gamma0: reference_problem(gamma0))
    for name, value in (
        ("WIDTHS", (4, 8, 16)),
        ("SHOWN", (4, 16)),
        ("NEURONS", 512),
        ("PARTICLES", 256),
        ("SCRAMBLES", 2),
        ("BINS", 12),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small")
def test_preactivation_densities(tmp_path):
    made = module.data(None)
    dmft.save(made, tmp_path / f"{module.__name__.removeprefix('figures.')}.nc")
    ds = module.drawn(module.data(tmp_path))
    xr.testing.assert_allclose(ds, module.drawn(made))
    assert ds.width_shown.values.tolist() == [4, 16]
    figure = module.figure(made)
    assert len(figure.axes) == 6
    for i, layer in enumerate((1, 2)):
        for ax, step in zip(figure.axes[3 * i : 3 * i + 2], (0, 10), strict=True):
            at = ds.sel(layer=layer, step=step)
            drawn = [line.get_ydata() for line in ax.lines]
            for name in ("density_limit", "density_gaussian"):
                assert any(np.array_equal(y, at[name]) for y in drawn), name
            for width in ds.width_shown.values:  # on one grid of bins
                assert any(np.array_equal(y, at.density.sel(width_shown=width)) for y in drawn), width
        distance = figure.axes[3 * i + 2]
        shown = [bar.lines[0].get_ydata() for bar in distance.containers]
        np.testing.assert_array_equal(shown, ds.wasserstein.sel(layer=layer).transpose("step", "width"))
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title("left") for ax in figure.axes)


@pytest.mark.usefixtures("small")
def test_numbers_are_means_over_samples_and_those_of_the_first():
    made = module.data(None)
    ds = module.drawn(made)
    np.testing.assert_allclose(ds.wasserstein, made.wasserstein.values.mean(axis=-1))
    np.testing.assert_array_equal(ds.density_limit, made.density_limit.values[:, :, 0])
    gauss = np.exp(
        -((ds.h - made.mean_limit[:, :, 0].values[..., None]) ** 2)
        / 2
        / made.standard_deviation_limit[:, :, 0].values[..., None] ** 2
    )
    ratio = ds.density_gaussian / gauss
    np.testing.assert_allclose(ratio.values, np.broadcast_to(ratio.values[..., :1], ratio.shape), rtol=1e-10)
    assert "kind" not in ds.attrs
    # of other widths than those of the gallery the first, the middle and the last are shown
    assert module.drawn(made.sel(width=[8])).width_shown.values.tolist() == [8]
    others = made.assign_coords(width=[5, 7, 9])
    assert module.drawn(others).width_shown.values.tolist() == [5, 7, 9]
