"""Every figure takes results of the user's own, in any order or from a folder, or says what it wants instead."""

import re
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
import figures
import finite_nets
from dmft.errors import SchemaError
from figures import __main__ as cli
from figures import needs, width_convergence

pytestmark = pytest.mark.filterwarnings("ignore:standard errors of")  # of few particles

# what each case lacks for figures that cannot be drawn of it; the others are drawn
OF_OTHERS = {
    "adaptive_kernels": "comparisons.predictors",
    "attention": "attention.data(None)",
    "consistency": "consistency.make(network, data)",
    "coordinate_check": "coordinate_check.make(problem)",
    "coordinate_check_of_architectures": "coordinate_check_of_architectures.data(None)",
    "deep_linear": "deep_linear.data(None)",
    "depth": "depth.data(None)",
    "grokking": "grokking.data(None)",
    "infinite_depth": "infinite_depth.data(None)",
    "learning_rate_transfer": "comparisons.transfer(nets, theory)",
    "optimal_schedule": "optimal_schedule.make(problem)",
    "overtraining": "overtraining.data(None)",
    "preactivation_densities": "dmft.neurons(problem)",
    "own_coordinate_check": "own_coordinate_check.make(checks)",
    "precision": "precision.make(runs)",
    "richness": "richness.of(*comparisons)",
    "scaling_laws": "scaling_laws.data(None)",
    "solver_convergence": "solver_convergence.make(problems)",
    "transfer_across": "transfer_across.data(None)",
    "transfer_of_optimisers": "transfer_of_optimisers.make({name: comparisons.transfer(nets, theory)})",
    "whole_data_set": "whole_data_set.gathered(found)",
}
NO_SHARPNESS = {"edge_of_stability": "has no sharpness"}
NO_CLASSES = {"mnist_ten_classes": "shows test_accuracy_mean, which these results lack"}
NO_NTK = {"after_kernel": "has no ntk", "ntk_spectra": "has no ntk"}  # kernels between outputs are on request
FIT = {"width_laws": "take at least 3"}
UNPREDICTED = dict.fromkeys(
    ("bias_dynamics", "variance_dynamics", "wide_networks", "width_laws"), "fluctuations (dmft.fluctuations(problem))"
)
CASES = {
    "all": ({"predicted": True}, NO_SHARPNESS | NO_CLASSES),
    "without fluctuations": ({}, NO_SHARPNESS | NO_CLASSES | UNPREDICTED),
    "one width": ({"predicted": True, "widths": (16,)}, NO_SHARPNESS | NO_CLASSES | FIT),
    "two widths": ({"predicted": True, "widths": (48, 16)}, NO_SHARPNESS | NO_CLASSES | FIT),
    "no kernels": (
        {"predicted": True, "observables": ("prediction", "loss")},
        NO_SHARPNESS
        | NO_CLASSES
        | NO_NTK
        | {"kernel_alignment": "no feature_kernel", "kernel_heatmaps": "has no feature_kernel"},
    ),
    "several outputs": ({"predicted": True, "outputs": True}, NO_SHARPNESS | NO_CLASSES | NO_NTK),
    "no test samples": (
        {"predicted": True, "tests": False},
        NO_SHARPNESS | {"mnist_ten_classes": "test_loss_mean", "after_kernel": "no test samples"},
    ),
    "classes, one layer": ({"outputs": True, "loss": "cross_entropy", "depth": 1}, NO_SHARPNESS | UNPREDICTED | NO_NTK),
    "nothing of samples": (
        {"observables": ("loss", "sharpness")},
        NO_CLASSES
        | UNPREDICTED
        | NO_NTK
        | {"ensembling_and_bias": "no predictions"}
        | {"kernel_alignment": "no feature_kernel", "kernel_heatmaps": "has no feature_kernel"}
        | {"loss_and_predictions": "has no prediction", "width_convergence": "shows prediction_distance"}
        | {"convolution": "convolution shows prediction_mean", "adam": "adam shows prediction_distance"},
    ),
}


@cache
def results(
    *, predicted=False, widths=(32, 64, 16), observables=None, outputs=False, tests=True, loss="squared", depth=2
):
    """Networks, theory and fluctuations of a small linear problem: its limit takes no time."""
    problem = linear_problem(outputs, tests, loss, depth)
    recorded = {} if observables is None else {"observables": observables}
    theory = limit(problem, observables)
    nets = finite_nets.train_ensemble(problem, widths=widths, seeds=16, **recorded)
    if not predicted:
        return nets, theory
    found = fluctuations(problem)
    if observables is not None:
        found = found[[name for name in found if str(name).startswith((*observables, "test_loss"))]]
    return nets, theory, found


@cache
def limit(problem, observables):
    return dmft.solve(problem, particles=256, scrambles=2, observables=observables)


@cache
def fluctuations(problem):
    return dmft.fluctuations(problem)


@cache
def linear_problem(outputs, tests, loss, depth):
    x = np.random.default_rng(0).standard_normal((6, 5))
    y = np.eye(3)[[0, 1, 2, 0, 1, 2]] if outputs else np.array([1.0, -1, 1, -1, 1, 1])
    task = dmft.Task(x[:4], y[:4], x[4:], y[4:]) if tests else dmft.Task(x, y)
    return dmft.Problem(dmft.MLP(depth, dmft.linear()), task, dmft.GradientDescent(0.2, 3), loss=loss)


# whose fluctuations take long, or which draw as many figures of nearly the same
LONG = ("several outputs", "no test samples", "two widths", "without fluctuations", "no kernels")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in CASES])
def test_every_figure_is_drawn_of_results_or_says_what_it_lacks(case):
    given, refused = CASES[case]
    refused = refused | OF_OTHERS
    for name in figures.names():
        module = getattr(figures, name)
        if name in refused:
            with pytest.raises(ValueError, match=re.escape(refused[name])):
                module.figure(*results(**given))
        else:
            figure = module.figure(*results(**given))
            if case == "one width":  # the panels are those of all, and to place their labels takes most of the time
                figure.set_layout_engine("none")
            figure.draw_without_rendering()  # a warning of a degenerate picture is an error
            if case == "all" and "width" in (shown := module.drawn(*results(**given))).dims:
                assert (shown["width"].diff("width") > 0).all(), name
    assert figure._repr_png_().startswith(b"\x89PNG")  # the last of them
    assert plt.get_fignums() == []


def test_results_in_any_order_or_what_follows_from_them():
    nets, theory, predicted = results(predicted=True)
    comparison = comparisons.compare(theory, nets, predicted).sortby("width")
    expected = width_convergence.drawn(comparison)
    for order in ((predicted, nets, theory), (nets, theory, predicted)):
        xr.testing.assert_identical(width_convergence.drawn(*order).drop_attrs(), expected.drop_attrs())


def test_what_is_no_result_is_named():
    nets, theory = results()
    for given, kind, message in (
        (
            (theory,),
            ValueError,
            r"what it got \(limit\)\. Give what comparisons.compare\(theory, nets\) returns, or th",
        ),
        ((), ValueError, r"what it got \(nothing\)"),
        ((theory, nets, theory), ValueError, "several theory"),
        ((comparisons.statistics(nets), theory), ValueError, "a result of kind 'statistics'"),
        (("comparison.nc",), TypeError, "draws Datasets, got str"),
        ((xr.Dataset(),), ValueError, "shows prediction_distance, prediction_raw_variance, which these results lack"),
    ):
        with pytest.raises(kind, match=message):
            width_convergence.figure(*given)
    with pytest.raises((ValueError, SchemaError), match="problem"):
        width_convergence.figure(theory, results(depth=1, outputs=True, loss="cross_entropy")[0])


@pytest.mark.slow
def test_richness_of_comparisons():
    found = []
    x, y = np.random.default_rng(0).standard_normal((3, 4)), np.array([1.0, -1, 1])
    problem = dmft.Problem(dmft.MLP(2, dmft.linear()), dmft.Task(x, y), dmft.GradientDescent(0.2, 2))
    for one in dmft.vary(problem, gamma0=[2.0, 0.5]):
        nets = finite_nets.train_ensemble(one, widths=[16, 32], seeds=16)
        found.append(comparisons.compare(dmft.solve(one), nets, dmft.fluctuations(one)))
    ds = figures.richness.drawn(*found)
    assert ds["gamma0"].values.tolist() == [0.5, 2.0]
    assert ds.attrs["width"] == 32
    at = found[0].sel(width=32)["prediction_variance"].mean("sample")
    np.testing.assert_allclose(ds["variance"].sel(gamma0=2.0), at)
    figures.richness.figure(*found)
    with pytest.raises(ValueError, match=r"each once; got gamma0 = \[2.0\]"):
        figures.richness.figure(found[0], found[0])


@pytest.mark.slow
def test_a_folder_of_results(tmp_path, capsys):
    nets, theory, predicted = results(predicted=True)
    for name, ds in (("theory", theory), ("networks", nets), ("fluctuations", predicted)):
        dmft.save(ds, tmp_path / "results" / f"{name}.nc")
    folder = ["--store", str(tmp_path / "results")]
    for name in ("variance_dynamics", "ntk_spectra", "ensembling_and_bias"):
        cli.main([name, *folder, "--out", str(tmp_path / name)])
        shown = getattr(figures, name).drawn(nets, theory, predicted)
        xr.testing.assert_allclose(dmft.load(tmp_path / f"{name}.nc"), shown)
    # a comparison without fluctuations does not stand in the way of one with them
    dmft.save(comparisons.compare(theory, nets), tmp_path / "results" / "comparison.nc")
    assert "prediction_variance" in figures.variance_dynamics.data(tmp_path / "results")
    # what is stored goes before what could be made
    half = comparisons.compare(theory, nets.isel(seed=slice(8)))
    dmft.save(half, tmp_path / "results" / "comparison.nc")
    xr.testing.assert_identical(width_convergence.data(tmp_path / "results"), half.sortby("width"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["depth", *folder])
    assert "depth: " in (message := capsys.readouterr().err)
    assert "has no depth.nc. Give what figures.depth.data(None) returns" in message
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        width_convergence.data(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_comparison_in_fluctuations_nc_is_read(tmp_path):
    """Files of that name have held comparisons."""
    nets, theory, predicted = results(predicted=True)
    dmft.save(comparisons.compare(theory, nets, predicted), tmp_path / "fluctuations.nc")
    assert "prediction" in figures.variance_dynamics.drawn(figures.variance_dynamics.data(tmp_path))
    dmft.save(theory, tmp_path / "theory.nc")
    dmft.save(nets, tmp_path / "networks.nc")
    assert "loss_variance_part_predicted" not in figures.ensembling_and_bias.drawn(
        figures.ensembling_and_bias.data(tmp_path)
    )


def test_help_and_names(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    assert needs.LAYOUT.splitlines()[0].strip() in printed
    assert {"width_convergence", "coordinate_check", "mnist_ten_classes"} <= set(figures.names())
    assert not {"style", "runs", "example", "demo", "needs", "fluctuations"} & set(figures.names())
    with pytest.raises(AttributeError, match="no 'loss'; choose among adam"):
        figures.loss  # noqa: B018
