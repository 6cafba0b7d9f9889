"""Nothing heavy is loaded, and nothing is computed, before it is asked for."""

import json
import subprocess
import sys

WATCHED = """
import json, sys
loaded = []
for code in json.loads(sys.argv[1]):
    exec(code)
    loaded.append(list(sys.modules))
print(json.dumps(loaded))
"""


def modules_after(*code: str) -> list[set[str]]:
    """After each of these, one after the other in one process."""
    out = subprocess.run([sys.executable, "-c", WATCHED, json.dumps(code)], capture_output=True, text=True, check=True)
    return [set(loaded) for loaded in json.loads(out.stdout)]


def test_imports_load_no_more_than_they_need():
    described, nets, compared, solver, report = modules_after(
        "import dmft; dmft.MLP(2); dmft.load_task",
        "import finite_nets",
        "import comparisons; comparisons.summary",
        # the user's JAX is left alone
        "dmft.solve; import jax; assert jax.config.jax_enable_x64 is False",
        "found = comparisons.report; import figures.report; assert found is figures.report.report",
    )
    assert not described & {"jax", "torch", "xarray", "scipy"}
    assert not nets & {"jax", "torch"}
    assert not compared & {"jax", "torch", "matplotlib", "jinja2", "figures"}
    assert not solver & {"torch", "tyro"}  # of the command line alone
    assert {"figures.report", "matplotlib", "jinja2"} <= report  # that of the figures, which it loads


def test_training_networks_loads_no_jax():
    (trained,) = modules_after("import finite_nets; finite_nets.train_ensemble")
    assert "torch" in trained
    assert "jax" not in trained
