"""Figures draw what they are given; the README's example and the demonstration are the same and run."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
import figures
import finite_nets
from conftest import ROOT, reference_problem
from figures import __main__ as cli
from figures import (
    after_kernel,
    bias_dynamics,
    demo,
    depth,
    edge_of_stability,
    ensembling_and_bias,
    example,
    fluctuations,
    kernel_alignment,
    kernel_heatmaps,
    loss_and_predictions,
    mnist_ten_classes,
    ntk_spectra,
    richness,
    solver_convergence,
    variance_dynamics,
    wide_networks,
    width_convergence,
    width_laws,
)


def stored_name(module):
    return f"{module.__name__.removeprefix('figures.')}.nc"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small comparison, stored as the demonstration stores it."""
    problem = reference_problem()
    task = dmft.Task(problem.task.x_train, problem.task.y_train, problem.task.x_train + 0.3, problem.task.y_train)
    problem = dmft.Problem(problem.network, task, problem.training)
    theory = dmft.solve(problem, particles=512, scrambles=2)
    nets = finite_nets.train_ensemble(problem, widths=[16, 32, 64], seeds=12)
    folder = tmp_path_factory.mktemp("store")
    for name, ds in (("theory", theory), ("networks", nets), ("comparison", comparisons.compare(theory, nets))):
        dmft.save(ds, folder / f"{name}.nc")
    return folder


@pytest.fixture(scope="module")
def comparison(store):
    return dmft.load(store / "comparison.nc")


@pytest.mark.usefixtures("without_layout")
def test_command_line_writes_picture_and_numbers(store, comparison, tmp_path, capsys):
    cli.main(["width_convergence", "--store", str(store), "--out", str(tmp_path / "deep" / "fig.png")])
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert [p.name for p in written] == ["fig.png", "fig.pdf", "fig.nc"]
    assert written[0].read_bytes()[:4] == b"\x89PNG"
    assert written[1].read_bytes()[:4] == b"%PDF"
    numbers = dmft.load(written[2])
    xr.testing.assert_identical(numbers, width_convergence.drawn(comparison))


def test_every_number_drawn_comes_from_the_dataset(comparison):
    ds = width_convergence.drawn(comparison)
    figure = width_convergence.figure(ds)
    curves, deviation, variance = figure.axes
    drawn = [line.get_ydata() for line in curves.lines]
    for width in ds.width.values:
        assert any(np.array_equal(y, ds.loss_mean.sel(width=width)) for y in drawn)
    assert any(np.array_equal(y, ds.test_loss_limit) for y in drawn)
    assert any(np.array_equal(line.get_ydata(), ds.prediction_raw_variance) for line in variance.lines)
    assert any(np.array_equal(line.get_ydata(), ds.prediction_distance[:, -1]) for line in deviation.lines)
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_legend() for ax in figure.axes)


def test_a_comparison_without_kernels_or_test_samples_is_drawn(comparison):
    ds = comparison[
        [name for name in comparison.data_vars if not name.startswith(("feature", "gradient", "ntk", "test_loss"))]
    ]
    width_convergence.figure(ds)
    assert "prediction f" in comparisons.summary(ds)


def test_list_and_wrong_arguments(capsys, tmp_path):
    cli.main(["--list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in figures.names())
    for arguments, message in (
        (["loss"], "invalid choice: 'loss'"),
        ([], "name a figure, or use --list"),
        (["width_convergence", "--store", str(tmp_path)], "has no width_convergence.nc or comparison.nc"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_when_networks_reach_the_edge():
    step, at = np.arange(11), np.linspace(0.5, 9.5, 400)
    # each crosses 1 at its own time
    rows = 1 + step - np.random.default_rng(0).permutation(at)[:, None]
    share, median, se, low, high = edge_of_stability.when(step, rows, 1.0)
    assert share == 1
    np.testing.assert_allclose([low, median, high], [2.75, 5, 7.25], atol=0.05)
    # of a uniform density 1/9, 1 / (2 (1/9) sqrt(400))
    np.testing.assert_allclose(se, 9 / 2 / 20, rtol=0.05)
    # a quarter never does: later than all others, wherever they would have been
    rows[rows[:, -1] < np.quantile(rows[:, -1], 0.25)] = 0.0
    share, median, se, low, high = edge_of_stability.when(step, rows, 1.0)
    assert share == pytest.approx(0.75)
    np.testing.assert_allclose([low, median], [2.75, 5], atol=0.05)
    # nor do most, one that diverged left out
    rows[100:] = 0.0
    rows[0, 3:] = np.nan
    share, median, se, low, high = edge_of_stability.when(step, rows, 1.0)
    assert share < 0.25
    assert median == np.inf
    assert np.isnan(se)


@pytest.mark.slow
def test_all_figures_that_a_store_has_numbers_for(store, tmp_path, capsys):
    cli.main(["all", "--store", str(store), "--out", str(tmp_path)])
    written, left_out = capsys.readouterr()
    assert {"width_convergence", "loss_and_predictions", "ntk_spectra"} <= {path.stem for path in tmp_path.iterdir()}
    assert str(tmp_path / "ntk_spectra.png") in written
    assert "depth is left out" in left_out
    assert "has no depth.nc" in left_out
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["all", "--store", str(tmp_path / "empty"), "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "empty has the numbers of no figure" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module",
    [loss_and_predictions, kernel_heatmaps, kernel_alignment, ntk_spectra, after_kernel],
    ids=lambda m: m.__name__,
)
def test_figures_of_any_stored_theory_and_networks(module, store, tmp_path):
    made = module.data(store)
    ds = module.drawn(made)
    figure = module.figure(made)
    numbers = np.concatenate([value.values.ravel() for value in ds.data_vars.values() if value.dtype.kind == "f"])
    numbers = np.concatenate([numbers, 1 - numbers])  # 1 - CKA
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    for ax in panels:
        lines = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_ydata()) > 2]
        for line in lines:
            y = line.get_ydata()
            assert np.isin(y[np.isfinite(y)], numbers).all()
        for image in ax.images:
            assert np.isin(image.get_array(), numbers).all()
        assert ax.lines or ax.images
    if module is not kernel_heatmaps:
        assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title("left") for ax in panels)
    # analyses are stored and drawn again
    dmft.save(made, tmp_path / stored_name(module))
    xr.testing.assert_allclose(module.drawn(module.data(tmp_path)), ds)


@pytest.fixture(scope="module")
def two_outputs(tmp_path_factory):
    """Targets, networks, of which the first diverged, and the folder where they are stored with their limit."""
    x, y = np.random.default_rng(0).standard_normal((5, 3)), np.eye(2)[[0, 1, 0, 1, 1]]
    problem = dmft.Problem(dmft.MLP(1), dmft.Task(x, y), dmft.GradientDescent(0.5, 2))
    names = ["prediction", "loss", "feature_kernel", "ntk"]
    theory = dmft.solve(problem, particles=256, scrambles=2, observables=names)
    nets = finite_nets.train_ensemble(problem, widths=[32, 16], seeds=9, observables=names)
    bad = xr.zeros_like(nets.loss.isel(step=0, drop=True), dtype=bool)
    bad[:, 0] = True
    folder = tmp_path_factory.mktemp("two_outputs")
    dmft.save(theory, folder / "theory.nc")
    dmft.save(nets.where(~bad).assign(diverged=bad).assign_attrs(nets.attrs), folder / "networks.nc")
    return y, nets, folder


@pytest.mark.parametrize("module", [loss_and_predictions, kernel_heatmaps], ids=lambda m: m.__name__)
def test_single_networks_are_healthy_ones_of_any_order_and_number_of_outputs(module, two_outputs):
    y, nets, folder = two_outputs
    made = module.data(folder)
    module.figure(made)
    if module is kernel_heatmaps:
        assert made.sizes["row"] == 2  # no NTK between outputs
        assert made.attrs["networks"] == 8
        healthy = nets.sel(width=32, layer=1, step=2).isel(seed=slice(1, None)).feature_kernel
        order = made["sample"].values
        np.testing.assert_allclose(made["one"][1], healthy[0].values[order][:, order])
        np.testing.assert_allclose(made["mean"][1], healthy.mean("seed").values[order][:, order], rtol=1e-6)
    else:
        assert made.width.values.tolist() == [16, 32]
        for sample in made["sample"].values:
            expected = nets.prediction.sel(width=16, sample=sample, output=y[sample].argmax()).isel(seed=1)
            np.testing.assert_array_equal(made.one.sel(width=16, sample=sample), expected)


def test_a_single_width_has_no_successive_one(store, tmp_path):
    dmft.save(dmft.load(store / "theory.nc"), tmp_path / "theory.nc")
    dmft.save(dmft.load(store / "networks.nc").sel(width=[32]), tmp_path / "networks.nc")
    loss_and_predictions.figure(loss_and_predictions.data(tmp_path))


def test_networks_without_what_a_figure_needs_are_refused(store, comparison, tmp_path, capsys, monkeypatch):
    for name in ("theory", "networks"):
        ds = dmft.load(store / f"{name}.nc")
        dmft.save(ds[[v for v in ds.data_vars if v.startswith("prediction")]], tmp_path / f"{name}.nc")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["ntk_spectra", "--store", str(tmp_path), "--out", str(tmp_path / "x.png")])
    assert stopped.value.code == 2
    assert "ntk_spectra: the ensemble has no ntk" in capsys.readouterr().err
    # found while it is drawn
    ds = comparison.isel(width=[0, 1])
    dmft.save(ds[[v for v in ds.data_vars if v.startswith("prediction")]], tmp_path / "fluctuations.nc")
    monkeypatch.setattr(width_laws, "drawn", lambda ds: comparisons.width_law(ds, "prediction_mean"))
    with pytest.raises(SystemExit):
        cli.main(["width_laws", "--store", str(tmp_path), "--out", str(tmp_path / "x.png")])
    assert "Give what comparisons.compare(" in capsys.readouterr().err


@pytest.mark.slow
def test_solver_convergence(monkeypatch):
    monkeypatch.setattr(solver_convergence, "PARTICLES", (128, 256, 512))
    monkeypatch.setattr(solver_convergence, "LARGE", 8192)
    monkeypatch.setattr(solver_convergence, "problems", lambda: {"one": reference_problem()})
    ds = solver_convergence.data(None)
    assert -1.4 < ds.slope.sel(problem="one", quantity="prediction") < -0.6
    solver_convergence.figure(ds)


def readme_example():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 7
    return "".join(block for block in blocks if "SLURM" not in block)  # there is no such cluster here


def test_readme_example_describes_the_problem_of_the_demonstration():
    names = {}
    exec(readme_example().split("theory =")[0], names)  # the lines before anything is computed
    assert names["problem"] == example.problem()
    assert (names["steps"], tuple(names["observables"])) == (example.STEPS, example.OBSERVABLES)


@pytest.mark.usefixtures("without_layout")
def test_readme_example_runs_at_a_smaller_size(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = readme_example()
    few = "particles=256, scrambles=2"
    for there, smaller in (
        ("n_train=30, n_test=30", "n_train=4, n_test=2"),
        ("learning_rate=1.0, steps=16)", "learning_rate=1.0, steps=4)"),
        ("range(0, 17, 2)", "range(0, 5, 2)"),
        ("widths=[32, 64, 128, 256, 512, 1024]", "widths=[16, 32, 64]"),
        ("seeds=64", "seeds=8"),
        ("random_batches(30, size=10", "random_batches(4, size=2"),
        ("steps=10, batches=dmft.one_pass(30, size=3)", "steps=2, batches=dmft.one_pass(4, size=2)"),
        ("step_size=0.1, steps=100", "step_size=0.1, steps=4"),
        ("until=1e6", "until=2.0, particles=256"),
        ("dmft.solve(problem,", f"dmft.solve(problem, {few},"),
        ("learning_rate=0.6, steps=12)", "learning_rate=0.6, steps=3)"),
        ("theory = dmft.solve(small)", f"theory = dmft.solve(small, {few})"),
        ("dmft.fluctuations(small)", f"dmft.fluctuations(small, {few}, draws=2, deflate=False)"),
        ("widths=[64, 128, 256], seeds=2000", "widths=[64, 128, 256], seeds=20"),
        ("widths=[10**5], seeds=8", "widths=[128], seeds=2"),
        ("widths=[32, 64, 128, 256], seeds=400", "widths=[16, 24, 32], seeds=16"),
        ("seeds=10**4, keep", "seeds=100, keep"),
        ("[32, 64, 128], 4000", "[8, 12, 16], 64"),
        ("dmft.solve(problems[0])", f"dmft.solve(problems[0], {few})"),
    ):
        assert there in code
        code = code.replace(there, smaller)
    monkeypatch.setattr("figures.report.pictures", lambda *_: [])  # test_report draws them
    exec(code, {})
    assert "bias of f" in capsys.readouterr().out
    assert (tmp_path / "results" / "width_convergence.png").exists()


@pytest.mark.usefixtures("without_layout")
def test_the_demonstration_writes_what_it_says(tmp_path, monkeypatch, capsys):
    small = dmft.Problem(example.problem().network, reference_problem().task, example.problem().training)
    monkeypatch.setattr(example, "problem", lambda: small)
    monkeypatch.setattr(example, "WIDTHS", (8, 16, 32))
    monkeypatch.setattr(example, "STEPS", (0, 2, 4))
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
    monkeypatch.setattr(fluctuations, "WIDTHS", (16, 32, 64))
    fluctuations.runs.cache_clear()
    for module in (fluctuations, richness, depth):
        monkeypatch.setattr(module, "SEEDS", 50)
    monkeypatch.setattr(richness, "GAMMAS", (0.5, 1.0))
    monkeypatch.setattr(depth, "DEPTHS", (1, 2))
    monkeypatch.setattr(depth, "LAYERS", 2)
    monkeypatch.setattr(wide_networks, "WIDTHS", {"cpu": (64, 128), "gpu": (64, 128)})
    monkeypatch.setattr(wide_networks, "SEEDS", {"cpu": 20, "gpu": 20})


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize(
    ("module", "stored"),
    [
        (variance_dynamics, "fluctuations"),
        (bias_dynamics, "fluctuations"),
        (width_laws, "fluctuations"),
        (ensembling_and_bias, "ensembling_and_bias"),
        (richness, "richness"),
        pytest.param(depth, "depth", marks=pytest.mark.slow),
        (wide_networks, "wide_networks"),
    ],
    ids=lambda m: getattr(m, "__name__", ""),
)
@pytest.mark.slow
def test_figures_of_fluctuations_draw_what_was_computed(module, stored, tmp_path):
    made = module.data(None)
    dmft.save(made, tmp_path / f"{stored}.nc")
    ds = module.drawn(module.data(tmp_path))
    xr.testing.assert_allclose(ds, module.drawn(made))
    figure = module.figure(made)
    numbers = np.concatenate([value.values.ravel() for value in ds.data_vars.values()])
    for ax in figure.axes:
        assert ax.get_xlabel()
        assert ax.get_title("left")
        for line in (line for line in ax.lines if line.get_label().startswith(("$N", "theory"))):
            assert np.isin(line.get_ydata(), numbers).all()


@pytest.fixture(scope="module")
def three_classes():
    """A small problem for classes, linear (its limit takes no time), and its comparison of losses and accuracies."""
    x = np.random.default_rng(1).standard_normal((8, 6))
    targets = np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]
    task = dmft.Task(x[:5], targets[:5], x[5:], targets[5:])
    problem = dmft.Problem(dmft.MLP(2, dmft.linear()), task, dmft.GradientDescent(2.0, 6), loss="cross_entropy")
    made = mnist_ten_classes.compared(
        problem, widths=(16, 64), seeds=8, particles=512, scrambles=2, tolerance=1e-3, dtype="float64"
    )
    return problem, made


def test_ten_classes_is_the_problem_that_is_described():
    problem = mnist_ten_classes.problem(n_train=20, n_test=10)
    assert problem.loss == "cross_entropy"
    assert problem.task.y_train.shape == (20, 10)
    assert (problem.task.y_train.sum(axis=0) == 2).all()
    assert "mnist_ten_classes" in figures.names()


def test_ten_classes_draws_the_stored_comparison(three_classes, tmp_path, monkeypatch):
    _, made = three_classes
    dmft.save(made, tmp_path / stored_name(mnist_ten_classes))
    monkeypatch.setattr(mnist_ten_classes, "compared", lambda *_, **__: pytest.fail("computed in spite of a store"))
    found = mnist_ten_classes.data(tmp_path)
    xr.testing.assert_identical(mnist_ten_classes.drawn(found), mnist_ten_classes.drawn(made))


def points(ax):
    """Points and their error bars, (width, step) flattened: those of networks, which have a label."""
    bars = [container for container in ax.containers if container.has_yerr]
    values = [bar.lines[0].get_ydata() for bar in bars]
    halves = [np.diff([s[:, 1] for s in bar.lines[2][0].get_segments()], axis=1)[:, 0] / 2 for bar in bars]
    return np.concatenate(values), np.concatenate(halves)


def check_drawn(figure, ds):
    """Every line, point and error bar is a number of `ds`, in its panel, and every width is there."""
    losses, enlarged, accuracy, bias = figure.axes
    for ax, names in ((losses, ("loss", "test_loss")), (enlarged, ("test_loss",)), (accuracy, ("test_accuracy",))):
        drawn = [line.get_ydata() for line in ax.lines]
        for name in names:
            assert any(np.array_equal(y, ds[f"{name}_limit"]) for y in drawn), name
        values, halves = points(ax)
        assert np.isin(values, np.concatenate([ds[f"{name}_mean"].values.ravel() for name in names])).all(), names
        errors = np.concatenate([ds[f"{name}_mean_se"].values.ravel() for name in names])
        # ends of bars are mean +- error in double precision: their half distance has a rounding error below 1e-14
        assert (abs(halves[:, None] - errors).min(axis=1) < 1e-14).all(), names
    values, _ = points(bias)
    assert np.isin(values, ds["test_loss_bias"]).all(), "bias"
    for ax in figure.axes:
        assert all((ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left")))
        assert len({bar.get_label() for bar in ax.containers} - {"_nolegend_"}) >= ds.sizes["width"]


def test_ten_classes_draws_its_numbers_and_no_others(three_classes):
    _, made = three_classes
    ds = mnist_ten_classes.drawn(made)
    figure = mnist_ten_classes.figure(made)
    check_drawn(figure, ds)
    for broken in ("test_loss_limit", "test_loss_mean", "test_accuracy_mean_se", "test_loss_bias"):
        with pytest.raises(AssertionError, match=broken.split("_")[1]):
            check_drawn(figure, ds.assign({broken: 1.01 * ds[broken] + 1e-3}))


def test_ten_classes_scales_by_width_what_networks_deviate(three_classes):
    """Bias and scatter of the figure, against networks trained again and averaged here."""
    problem, made = three_classes
    ds = mnist_ten_classes.drawn(made)
    nets = finite_nets.train_ensemble(problem, widths=(16, 64), seeds=8, observables=["loss"]).test_loss
    bias = nets.width * (nets.mean("seed") - made.test_loss_limit)
    scatter = nets.std("seed", ddof=1)
    # the same sums in another order, of losses stored in double precision
    np.testing.assert_allclose(ds.test_loss_bias, bias, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ds.test_loss_scatter, scatter, rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError):  # one factor of the width too few
        np.testing.assert_allclose(ds.test_loss_bias, bias / nets.width, rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError):  # N Var in place of Var
        np.testing.assert_allclose(ds.test_loss_scatter, scatter * np.sqrt(nets.width), rtol=1e-9, atol=1e-9)
