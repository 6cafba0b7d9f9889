"""The report of a comparison: complete in one file, readable by a browser, honest about what it lacks."""

import html
import json
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
import finite_nets
from conftest import reference_problem
from dmft.text import with_error
from figures.report import texts
from figures.report.pictures import pictures

pytestmark = pytest.mark.usefixtures("without_layout")  # but the page, which is made before
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def problem():
    network, x = reference_problem().network, reference_problem().task.x_train
    task = dmft.Task(x, [-1, 1, 1], x + 0.3, [-1, 1, 1])
    return dmft.Problem(network, task, dmft.GradientDescent(0.6, 4))


@pytest.fixture(scope="module")
def results(problem):
    return {
        "theory": dmft.solve(problem, particles=256, scrambles=2),
        "networks": finite_nets.train_ensemble(problem, widths=[16, 32, 64], seeds=16),
    }


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    """Of networks in another order than from narrow to wide."""
    given = results | {"networks": results["networks"].isel(width=[2, 0, 1])}
    return comparisons.report(given, tmp_path_factory.mktemp("report") / "deep" / "report.html", title="A <b> & c")


@pytest.fixture(scope="module")
def several():
    """A problem of several outputs, and its limit."""
    task = dmft.Task(
        [[1.0, 0.5], [-0.5, 1.0], [0.3, -1.0], [-1.0, 0.2]], np.eye(4, 2), provenance={"name": "two", "note": ""}
    )
    problem = dmft.Problem(dmft.ResidualMLP(2), task, dmft.GradientFlow(0.5, (0.2, 0.1)))
    return problem, dmft.solve(problem, particles=64, scrambles=2)


def section(text, key):
    """Without markup: a cell or caption of the section a line."""
    found = re.search(rf'<section id="{key}">(.*?)</section>', text, re.DOTALL)[1]
    return html.unescape(re.sub(r"<[^>]+>", "\n", found)).split("\n")


def embedded(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_it_holds_tables_figures_provenance_and_the_problem(page, results):
    text = page.read_text()
    # what a reader came for is first
    places = [
        text.index(f'<section id="{key}">')
        for key in (
            "answer",
            "distances",
            "laws",
            "losses",
            "figure-spectra",
            "figure-after_kernel",
            "problem",
            "provenance",
        )
    ]
    assert places == sorted(places)
    assert text.count("data:image/svg+xml;base64,") == 5
    assert results["theory"].attrs["problem_id"] in text
    assert "A &lt;b&gt; &amp; c" in text
    assert "A <b> & c" not in text
    assert "particles 256" in text
    assert "Not shown" not in text
    assert plt.get_fignums() == []


def test_it_asks_no_network_for_anything(page):
    text = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|<link", text)


def test_its_numbers_are_those_of_the_results(page, results):
    data = embedded(page.read_text())
    comparison = comparisons.compare(theory=results["theory"], nets=results["networks"])
    loss = next(curve for curve in data["curves"] if curve["name"] == "training loss")
    assert [line["name"] for line in loss["lines"]] == ["N = 16", "N = 32", "N = 64", "limit"]
    # four digits
    np.testing.assert_allclose(loss["lines"][1]["y"], comparison.loss_mean.sel(width=32), rtol=1e-3)
    np.testing.assert_allclose(loss["lines"][-1]["se"], comparison.loss_limit_se, rtol=1e-3, atol=1e-12)
    order = np.argsort(results["theory"].target.values, kind="stable")
    top = next(kernel for kernel in data["kernels"] if kernel["name"] == "feature kernels, layer 2")
    expected = results["networks"].feature_kernel.mean("seed").sel(width=64, layer=2, step=4).values[order][:, order]
    np.testing.assert_allclose(np.reshape(top["mean"][2][-1], (6, 6)), expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(AssertionError):  # the broken twin: another step
        np.testing.assert_allclose(np.reshape(top["mean"][2][0], (6, 6)), expected, rtol=1e-3, atol=1e-6)


def test_the_problem_and_the_networks_in_words(page, several, tmp_path):
    text = page.read_text()
    problem = " ".join(section(text, "problem"))
    for words in (
        "P = 3 training and 3 test samples of dimension D = 25, 1 output(s)",
        "perceptron of depth L = 2, activation tanh (gain 0.8), richness gamma0 = 1.",
        "gradient descent, T = 4 steps, learning rate eta = 0.6, loss squared.",
    ):
        assert words in problem
    assert "provenance" not in problem  # own arrays come from nowhere
    assert "16 of width 16, 16 of width 32, 16 of width 64; kept: every network" in section(text, "provenance")
    problem, theory = several
    nets = finite_nets.train_ensemble(problem, widths=[8, 16], seeds=16, keep="moments", block=2)
    text = comparisons.report({"theory": theory, "networks": nets}, tmp_path / "flow.html").read_text()
    problem = " ".join(section(text, "problem"))
    assert "P = 4 training and no test samples of dimension D = 2, 2 output(s)" in problem
    assert "residual multilayer perceptron" in problem
    assert "gradient flow, T = 2 steps of size 0.1 to 0.2, learning rate eta = 0.5" in problem
    assert "provenance: (name: two)" in problem
    assert "16 of width 8, 16 of width 16; kept: moments over blocks of networks" in section(text, "provenance")


def test_losses_after_training_are_those_of_bias_variance(page, results):
    cells = section(page.read_text(), "losses")
    losses = comparisons.bias_variance(results["networks"], results["theory"], ensembles=[1, 2])
    last = losses.isel(step=-1).sel(width=32)

    def shown(value, se):
        return with_error(value, se).replace("+-", "±")

    for q, label in (("loss", "training loss"), ("test_loss", "test loss")):
        at = cells.index(f"{label}, N = 32")
        row = [cell for cell in cells[at + 1 :] if cell][:6]
        expected = [
            (last.sel(ensemble=1), "ensemble"),
            (last, "infinite"),
            (last, "variance_part"),
            (last, "bias_part"),
        ]
        expected += [(last.sel(ensemble=2), part) for part in ("ensemble", "worth")]
        *columns, worth = [shown(ds[f"{q}_{part}"].item(), ds[f"{q}_{part}_se"].item()) for ds, part in expected]
        assert row[:-1] == columns
        assert row[-1] == worth or row[-1].startswith("< ")  # of what may not be negative, below its error
        limit = shown(last[f"{q}_limit"].item(), last[f"{q}_limit_se"].item())
        assert limit in cells[cells.index(f"{label}, limit") :][:4]
    assert "ensemble of 2" in cells


def test_captions_and_columns_of_predictions_only_where_there_are_any(page, results, tmp_path):
    text = page.read_text()
    caption = " ".join(section(text, "figure-bias_variance"))
    assert "(c) which single width an ensemble is worth, against its size k: points measured." in caption
    assert "predicted" not in caption
    assert not any("predicted" in cell for cell in section(text, "laws"))
    # the sentence runs on over the end of a line of the docstring
    assert "several widths (points); the infinite ensemble of each width (dotted)" in caption
    losses = comparisons.bias_variance(results["networks"], results["theory"], ensembles=[1, 2])
    losses = losses.assign({f"loss_{part}_predicted": losses[f"loss_{part}"] for part in ("bias_part", "worth")})
    losses = losses.assign({f"loss_{part}_predicted_se": losses[f"loss_{part}_se"] for part in ("bias_part", "worth")})
    comparison = comparisons.compare(results["theory"], results["networks"])
    ratio = ("width", [1.0, 1.1, 0.9])
    comparison = comparison.assign(loss_variance_overall_ratio=ratio, loss_variance_overall_ratio_se=ratio)
    predicted = comparisons.report(
        {"losses": losses, "comparison": comparison}, tmp_path / "predicted.html"
    ).read_text()
    assert " ".join(section(predicted, "figure-bias_variance")).count("points measured, lines predicted.") == 2
    assert "N Var / predicted" in section(predicted, "laws")
    assert "N bias / predicted" not in section(predicted, "laws")  # no entry
    assert "limit (black)" in caption


def test_what_is_below_its_error_is_an_upper_end():
    assert texts.size(0.0, 0.02) == "< 0.040"
    assert texts.size(0.123, 0.02) == "0.123 ± 0.020"
    assert texts.size(110.0, 180.0) == "< 470"
    assert texts.size(0.0, 1e-9) == "< 2e-09"
    assert texts.number(-0.01, 0.02) == "-0.010 ± 0.020"  # differences have a sign
    assert [texts.number(value, 0.1) for value in (np.inf, np.nan)] == ["∞", "-"]


def test_a_folder_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; expected the name of a file.*report\.html"):
        comparisons.report("nothing that could be computed with", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_without_a_network_runs_it(page, tmp_path):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    shown = subprocess.run(
        [
            CHROMIUM,
            *flags.split(),
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert 'data-ready="yes"' in shown  # the last line of the script: nothing before it failed
    assert shown.count("<polyline") == 4
    # all that is shown has a link, in the order of the page
    visible = re.findall(r'<section id="([^"]*)"(?![^>]*hidden)', shown)
    links = re.search("<nav>(.*?)</nav>", shown, re.DOTALL)[1]
    assert re.findall(r'<a href="#([^"]*)"(?![^>]*hidden)', links) == visible
    assert {"curves", "kernels"} < set(visible)
    assert re.search(r'id="scale">colours from -[\d.]+ to [\d.]+<', shown)  # a range, not an error
    options = re.findall(r"<option value=\"\d+\">(.*?)</option>", shown)
    assert {"training loss", "test loss", "N = 64", "feature kernels, layer 1", "NTK"} <= set(options)
    assert "t = 2.4" in html.unescape(shown)  # the last step


def test_a_tree_of_datasets_of_three_samples_and_an_analysis_made_before(results, tmp_path):
    theory, nets = (ds.sel(sample=[0, 1, 3], sample_2=[0, 1, 3]) for ds in results.values())
    given = {"/theory": theory, "/deep/networks": nets, "/modes": comparisons.spectra(nets, theory, modes=2)}
    text = comparisons.report(xr.DataTree.from_dict(given), tmp_path / "a.html").read_text()
    assert "Spectra of the NTK (modes)" in text
    assert text.count('id="figure-spectra"') == 1
    assert "deep/networks" in text
    assert '<section id="figure-representations">' in text  # without the CKA that takes four samples


def test_what_cannot_be_made_is_named(results, tmp_path):
    few = {
        name: ds[[v for v in ds.data_vars if "kernel" not in v and not v.startswith("ntk")]]
        for name, ds in results.items()
    }
    text = comparisons.report(few, tmp_path / "few.html").read_text()
    assert "Not shown" in text
    assert "spectra: the ensemble has no ntk" in html.unescape(text)
    assert embedded(text)["kernels"] == []
    comparison = comparisons.compare(results["theory"], results["networks"])
    one = comparisons.report({"comparison": comparison}, tmp_path / "one.html").read_text()
    assert "After training, the prediction of one network of width 64 is" in " ".join(section(one, "answer"))


def test_what_is_no_result_is_refused(results, tmp_path):
    problem = reference_problem()
    other = results["theory"].assign_attrs(problem_id=problem.problem_id, problem=problem.to_json(arrays=False))
    path = tmp_path / "none.html"
    for tree, error, message in (
        ([results["theory"]], TypeError, "Datasets by name"),
        ({"theory": results["theory"].values}, TypeError, "Datasets by name"),
        ({}, ValueError, "nothing to report in an empty tree"),
        ({"theory": results["theory"]}, ValueError, "nothing to report in theory"),
        ({"x": xr.Dataset({"a": 1})}, ValueError, "'x' does not say which problem"),
        ({**results, "other": other}, ValueError, "different problems"),
    ):
        with pytest.raises(error, match=message):
            comparisons.report(tree, path)
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("without", ["networks one by one", "one output"])
def test_a_figure_leaves_out_what_the_results_do_not_have(problem, results, several, without):
    if without == "one output":
        problem, theory = several
        nets = finite_nets.train_ensemble(problem, widths=[16, 32], seeds=16)
    else:
        theory = results["theory"]
        nets = finite_nets.train_ensemble(problem, widths=[16, 32], seeds=16, keep="moments", block=2)
    left_out = []
    (drawn,) = pictures({"representations": comparisons.representations(nets, theory)}, left_out)
    assert drawn.key == "figure-representations"
    assert left_out == []


def test_figures_of_analyses_made_otherwise(results, tmp_path):
    theory, nets = results["theory"], results["networks"]
    kernels = comparisons.representations(nets, theory, "ntk")  # without layers
    losses = comparisons.bias_variance(nets)  # without a limit
    text = comparisons.report({"kernels": kernels, "losses": losses}, tmp_path / "report.html").read_text()
    assert text.count("data:image/svg+xml;base64,") == 2
    assert "limit (black)" not in " ".join(section(text, "figure-bias_variance"))


def test_there_is_one_ensemble(results, tmp_path):
    with pytest.raises(ValueError, match="networks and more are all of kind ensemble or moments"):
        comparisons.report({**results, "more": results["networks"]}, tmp_path / "b.html")
