"""Figures draw what they are given; the README's example and the demonstration are the same and run."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
import finite_nets
from conftest import ROOT, reference_problem
from figures import __main__ as cli
from figures import (
    bias_dynamics,
    demo,
    example,
    fluctuations,
    solver_convergence,
    variance_dynamics,
    variance_vs_depth,
    variance_vs_richness,
    wide_networks,
    width_convergence,
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small comparison, stored as the demonstration stores it."""
    problem = reference_problem()
    task = dmft.Task(problem.task.x_train, problem.task.y_train, problem.task.x_train + 0.3, problem.task.y_train)
    problem = dmft.Problem(problem.network, task, problem.training)
    theory = dmft.solve(problem, particles=512, scrambles=2)
    nets = finite_nets.train_ensemble(problem, widths=[16, 32, 64], seeds=12)
    folder = tmp_path_factory.mktemp("store")
    dmft.save(comparisons.compare(theory, nets), folder / "comparison.nc")
    return folder


def test_command_line_writes_picture_and_numbers(store, tmp_path, capsys):
    cli.main(["width_convergence", "--store", str(store), "--out", str(tmp_path / "deep" / "fig.png")])
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert [p.name for p in written] == ["fig.png", "fig.pdf", "fig.nc"]
    assert written[0].read_bytes()[:4] == b"\x89PNG"
    assert written[1].read_bytes()[:4] == b"%PDF"
    numbers = dmft.load(written[2])
    xr.testing.assert_identical(numbers, width_convergence.drawn(dmft.load(store / "comparison.nc")))


def test_every_number_drawn_comes_from_the_dataset(store):
    ds = width_convergence.drawn(dmft.load(store / "comparison.nc"))
    figure = width_convergence.figure(ds)
    curves, deviation, variance = figure.axes
    drawn = [line.get_ydata() for line in curves.lines]
    for width in ds.width.values:
        assert any(np.array_equal(y, ds.loss_mean.sel(width=width)) for y in drawn)
    assert any(np.array_equal(y, ds.test_loss_limit) for y in drawn)
    assert any(np.array_equal(line.get_ydata(), ds.prediction_raw_variance) for line in variance.lines)
    assert any(np.array_equal(line.get_ydata(), ds.prediction_distance[:, -1]) for line in deviation.lines)
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_legend() for ax in figure.axes)


def test_a_comparison_without_kernels_or_test_samples_is_drawn(store):
    ds = dmft.load(store / "comparison.nc")
    ds = ds[[name for name in ds.data_vars if not name.startswith(("feature", "gradient", "ntk", "test_loss"))]]
    width_convergence.figure(ds)
    assert "prediction f" in comparisons.summary(ds)


def test_list_and_wrong_arguments(capsys, tmp_path):
    cli.main(["--list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in cli.NAMES)
    for arguments, message in (
        (["loss"], "invalid choice: 'loss'"),
        ([], "name a figure, or use --list"),
        (["width_convergence", "--store", str(tmp_path)], "comparison.nc is not a file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_solver_convergence(monkeypatch):
    monkeypatch.setattr(solver_convergence, "PARTICLES", (128, 256, 512))
    monkeypatch.setattr(solver_convergence, "LARGE", 8192)
    monkeypatch.setattr(solver_convergence, "problems", lambda: {"one": reference_problem()})
    ds = solver_convergence.data(None)
    assert -1.4 < ds.slope.sel(problem="one", quantity="prediction") < -0.6
    solver_convergence.figure(ds)


def readme_example():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    return "".join(blocks)


def test_readme_example_describes_the_problem_of_the_demonstration():
    names = {}
    exec(readme_example().split("theory =")[0], names)  # the lines before anything is computed
    assert names["problem"] == example.problem()
    assert names["steps"] == example.STEPS


def test_readme_example_runs_at_a_smaller_size(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = readme_example()
    for there, smaller in (
        ("n_train=30, n_test=30", "n_train=4, n_test=2"),
        ("widths=[32, 64, 128, 256, 512, 1024]", "widths=[16, 32, 64]"),
        ("seeds=64", "seeds=8"),
        ("dmft.solve(problem,", "dmft.solve(problem, particles=512,"),
        ("dmft.fluctuations(small)", "dmft.fluctuations(small, particles=256, draws=2, scrambles=2, deflate=False)"),
        ("widths=[64, 128, 256], seeds=2000", "widths=[64, 128, 256], seeds=20"),
        ("widths=[10**5], seeds=8", "widths=[128], seeds=2"),
    ):
        assert there in code
        code = code.replace(there, smaller)
    exec(code, {})
    assert "bias of f" in capsys.readouterr().out
    assert (tmp_path / "results" / "width_convergence.png").exists()


def test_the_demonstration_writes_what_it_says(tmp_path, monkeypatch, capsys):
    small = dmft.Problem(example.problem().network, reference_problem().task, example.problem().training)
    monkeypatch.setattr(example, "problem", lambda: small)
    monkeypatch.setattr(example, "WIDTHS", (8, 16, 32))
    demo.main(["--out", str(tmp_path / "demo"), "--seeds", "8"])
    printed = capsys.readouterr().out
    assert "Networks of 8 seeds a width" in printed
    for name in ("theory.nc", "networks.nc", "comparison.nc", "width_convergence.png"):
        assert (tmp_path / "demo" / name).exists()
        assert name in printed


@pytest.fixture
def small_runs(monkeypatch):
    """The figures of fluctuations on linear networks, whose predictions take no time."""
    task = reference_problem().task
    training = dmft.GradientDescent(0.3, 4)

    def problem(gamma0=1.0, depth=2, activation=None):
        del activation
        return dmft.Problem(dmft.MLP(depth, dmft.linear(), gamma0), task, training)

    monkeypatch.setattr(fluctuations, "problem", problem)
    monkeypatch.setattr(fluctuations, "WIDTHS", (16, 32))
    for module in (fluctuations, variance_vs_richness, variance_vs_depth):
        monkeypatch.setattr(module, "SEEDS", 50)
    monkeypatch.setattr(variance_vs_richness, "GAMMAS", (0.5, 1.0))
    monkeypatch.setattr(variance_vs_depth, "DEPTHS", (1, 2))
    monkeypatch.setattr(variance_vs_depth, "LAYERS", 2)
    monkeypatch.setattr(wide_networks, "WIDTHS", {"cpu": (64, 128), "gpu": (64, 128)})
    monkeypatch.setattr(wide_networks, "SEEDS", {"cpu": 20, "gpu": 20})


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize(
    ("module", "stored"),
    [
        (variance_dynamics, "fluctuations"),
        (bias_dynamics, "fluctuations"),
        (variance_vs_richness, "variance_vs_richness"),
        (variance_vs_depth, "variance_vs_depth"),
        (wide_networks, "wide_networks"),
    ],
    ids=lambda m: getattr(m, "__name__", ""),
)
def test_figures_of_fluctuations_draw_what_was_computed(module, stored, tmp_path):
    made = module.data(None)
    dmft.save(made, tmp_path / f"{stored}.nc")
    ds = module.drawn(module.data(tmp_path))
    xr.testing.assert_allclose(ds, module.drawn(made))
    figure = module.figure(made)
    numbers = np.concatenate([value.values.ravel() for value in ds.data_vars.values()])
    for ax in figure.axes:
        assert ax.get_xlabel()
        assert ax.get_title()
        for line in (line for line in ax.lines if line.get_label().startswith(("$N", "theory"))):
            assert np.isin(line.get_ydata(), numbers).all()
