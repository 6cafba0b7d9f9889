"""Nothing heavy is loaded, and nothing is computed, before it is asked for."""

import subprocess
import sys

import pytest


def modules_after(code: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(out.stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import dmft; dmft.MLP(2); dmft.load_task", {"jax", "torch", "xarray", "scipy"}),
        ("import dmft; dmft.solve", {"torch"}),
        ("import finite_nets", {"jax", "torch"}),
        ("import finite_nets; finite_nets.train_ensemble", {"jax"}),
        ("import comparisons; comparisons.summary", {"jax", "torch", "matplotlib", "jinja2", "figures"}),
    ],
)
def test_import_loads_no_more_than_it_needs(code, absent):
    assert not modules_after(code) & absent


def test_importing_the_engine_leaves_the_users_jax_alone():
    code = "import dmft; dmft.solve; import jax; print(jax.config.jax_enable_x64)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_the_report_is_that_of_the_figures_and_loads_them():
    code = (
        "import comparisons; found = comparisons.report; import figures.report; assert found is figures.report.report"
    )
    assert {"figures.report", "matplotlib", "jinja2"} <= modules_after(code)
