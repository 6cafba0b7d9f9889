"""Figures in notebooks: each shows once, and plots of the user's own show as before; cells are run by real kernels."""

import os
import sys

import matplotlib
import matplotlib.pyplot as plt
import nbclient
import nbformat
import pytest
import xarray as xr
from ipykernel.kernelspec import write_kernel_spec

import comparisons
import dmft
import finite_nets
from conftest import ROOT, reference_problem
from figures import style, width_convergence

OWN = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]);"  # a plot of the user's own
SETTINGS = "import matplotlib\nbefore = dict(matplotlib.rcParams)"
SAME = "assert dict(matplotlib.rcParams) == before and 'matplotlib.pyplot' not in __import__('sys').modules"
FIGURE = "width_convergence.figure(comparison)"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    problem = reference_problem()
    problem = dmft.Problem(problem.network, problem.task, dmft.GradientDescent(0.6, 2))
    theory = dmft.lazy_limit(problem)
    nets = finite_nets.train_ensemble(problem, widths=[16, 32], seeds=8)
    for name, ds in (("theory", theory), ("networks", nets), ("comparison", comparisons.compare(theory, nets))):
        dmft.save(ds, folder / f"{name}.nc")
    return folder


@pytest.fixture
def run(results, tmp_path, monkeypatch):
    """Runs cells in a kernel of this interpreter and gives the numbers of pictures that they show."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # of these tests: kernels choose the inline backend
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3", extra_arguments=["--HistoryManager.enabled=False"])
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path[1:]]))
    first = f"""
        import dmft
        from figures import style, width_convergence
        style.STYLE = [style.STYLE, {{"savefig.dpi": 50, "figure.constrained_layout.use": False}}]  # takes less time
        comparison = dmft.load({str(results / "comparison.nc")!r})
    """

    def shown(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (first, *cells)])
        nbclient.NotebookClient(
            notebook, timeout=120, startup_timeout=180, kernel_name="python3", resources={}
        ).execute(cwd=str(tmp_path))
        pictures = [sum("image/png" in out.get("data", {}) for out in cell.outputs) for cell in notebook.cells]
        assert not [out.text for cell in notebook.cells for out in cell.outputs if out.output_type == "stream"]
        return pictures[1:]

    return shown


@pytest.mark.slow  # a kernel of its own each, as the one below
def test_a_figure_and_then_a_plot_show_once_each(run):
    found = run(
        SETTINGS,
        FIGURE,
        SAME,
        OWN,
        FIGURE,  # the inline backend is loaded now
        f"fig = {FIGURE}",  # an object like any other
        "fig",
        "fig",
        "plt.show()",
        "plt.plot([1, 2])\nfig",  # both
        "fig.show()",  # pyplot shows it
        OWN,
    )
    assert found == [0, 1, 0, 1, 1, 0, 1, 1, 0, 2, 1, 1]


def test_with_matplotlib_inline(run):
    assert run("%matplotlib inline", FIGURE, OWN, FIGURE, f"plt.plot([1, 2]); {FIGURE};") == [0, 1, 1, 1, 1]


@pytest.mark.slow
def test_a_report_and_then_a_plot(run, results):
    made = f"""
        import comparisons
        found = {{name: dmft.load({str(results)!r} + f"/{{name}}.nc") for name in ("theory", "networks")}}
        comparisons.report(found, "report.html");
    """
    assert run(SETTINGS, made, SAME, OWN) == [0, 0, 0, 1]


@pytest.mark.usefixtures("without_layout")
def test_pyplot_and_settings_of_the_caller_stay_as_they_are(results, tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "figure.max_open_warning", 2)  # warnings are errors here
    comparison = dmft.load(results / "comparison.nc")
    own, settings = plt.figure(), dict(matplotlib.rcParams)
    try:
        for _ in range(3):
            figure = width_convergence.figure(comparison)
        style.save(figure, xr.Dataset(), tmp_path / "figure")
        comparisons.report({"comparison": comparison}, tmp_path / "report.html")
        assert plt.get_fignums() == [own.number]
        assert plt.gcf() is own
        assert dict(matplotlib.rcParams) == settings
        figure.show()
        assert plt.gcf() is figure
    finally:
        plt.close("all")
