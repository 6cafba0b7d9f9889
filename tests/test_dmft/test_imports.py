"""Nothing heavy is loaded, and nothing is computed, before it is asked for; and nothing needs its docstrings.

Which `python -OO` drops (`test_paths`): here from these packages alone, whose ordinary bytecode others keep.
"""

import json
import subprocess
import sys

WATCHED = """
import importlib.machinery, json, sys

class Bare(importlib.machinery.SourceFileLoader):
    def get_code(self, name):
        path = self.get_filename(name)
        return compile(self.get_data(path), path, "exec", dont_inherit=True, optimize=2)

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        ours = name.partition(".")[0] in ("dmft", "finite_nets", "comparisons", "figures")
        spec = super().find_spec(name, path, target) if ours else None
        if spec is not None and spec.origin:
            spec.loader = Bare(spec.loader.name, spec.loader.path)
        return spec

sys.meta_path.insert(0, Finder)
loaded = []
for code in json.loads(sys.argv[1]):
    exec(code)
    loaded.append(list(sys.modules))
print(json.dumps(loaded))
"""
COMPUTED = """
assert dmft.__doc__ is figures.report.__doc__ is dmft.load_task.__doc__ is None
task = dmft.Task([[1.0]], [1.0])
print(dmft.lazy_limit(dmft.Problem(dmft.MLP(1), task, dmft.GradientDescent(0.5, 2))).sizes)
from figures.__main__ import main
main(["--list"])
"""


def after(*code: str) -> tuple[list[set[str]], str]:
    """What is loaded after each of these, one after the other in one process, and all that they print."""
    out = subprocess.run([sys.executable, "-c", WATCHED, json.dumps(code)], capture_output=True, text=True, check=True)
    *printed, loaded = out.stdout.splitlines()
    return [set(names) for names in json.loads(loaded)], "\n".join(printed)


def test_imports_load_no_more_than_they_need_nor_docstrings():
    (described, nets, compared, solver, report, _), printed = after(
        "import dmft; dmft.MLP(2); dmft.load_task",
        "import finite_nets",
        "import comparisons; comparisons.summary",
        # the user's JAX is left alone
        "dmft.solve; import jax; assert jax.config.jax_enable_x64 is False",
        "found = comparisons.report; import figures.report; assert found is figures.report.report",
        COMPUTED,
    )
    assert not described & {"jax", "torch", "xarray", "scipy"}
    assert not nets & {"jax", "torch"}
    assert not compared & {"jax", "torch", "matplotlib", "jinja2", "figures", "scipy.stats"}
    assert not solver & {"torch", "tyro"}  # of the command line alone
    assert {"figures.report", "matplotlib", "jinja2"} <= report  # that of the figures, which it loads
    assert "'sample': 1" in printed
    assert "Losses and predictions across widths" in printed


def test_modules_that_the_pages_name_are_there_without_an_import_of_their_own():
    (closed, second), _ = after(
        "import dmft; dmft.limits.lazy_limit; dmft.random_data.march; dmft.schema.build",
        "dmft.limits.by_paths.limit_by_paths",
    )
    assert {"dmft.limits", "dmft.schema"} <= closed
    assert not closed & {"jax", "torch"}
    assert "jax" in second


def test_training_networks_loads_no_jax():
    (trained,), _ = after("import finite_nets; finite_nets.train_ensemble")
    assert "torch" in trained
    assert "jax" not in trained
