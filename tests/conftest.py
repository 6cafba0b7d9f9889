"""Shared fixtures: the problem of the reference numbers, and a cache of compiled code that outlives a run."""

import gc
import json
import os
import sys
from functools import cache, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
# of what is imported, and of what tracing leaves, most stays: it is looked through less often
gc.set_threshold(100_000, 50, 50)
# processes that tests start, and the next run of the tests, find Python's bytecode; written even where the user says
# otherwise (-B, PYTHONDONTWRITEBYTECODE), as each worker and each child would compile all again, for some 6 s
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# before JAX is imported: it reads these once
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.0")  # reading is faster, however small
os.environ.setdefault("DMFT_EXECUTABLES", "off")  # tests break functions in place, which executables do not see
os.environ.setdefault("MPLBACKEND", "agg")
# without a GPU: code that is compiled in a third of the time, and runs as fast on few particles
if find_spec("jax_plugins") is None:
    quick = "--xla_backend_optimization_level=0"
    if version("jax").startswith("0.10."):  # later ones do not know the first
        # parts of a program that threads would share are each prepared anew; a quarter of the time of large ones
        quick += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", quick)
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: one thread for each
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import numpy as np
import pytest

import dmft

# files that take longest: begun first, so that no worker ends alone with one
LONGEST = (
    "test_training",
    "test_sweep",
    "test_figures",
    "test_populations",
    "test_needs",
    "test_transfer",
    "test_sharpness",
    "test_docstrings",
    "test_fluctuations",
    "test_solver",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    gc.freeze()  # what is imported by now stays, and is not looked through again
    if "figures" in sys.modules:
        share_parsed_labels()


def share_parsed_labels():
    """Between pictures, each of which has a parser of its own that remembers fifty: a quarter of the time of drawing."""
    from matplotlib import textpath
    from matplotlib.backends import backend_agg
    from matplotlib.mathtext import MathTextParser

    plain = getattr(getattr(MathTextParser, "_parse_cached", None), "__wrapped__", None)
    if plain is None:  # a version that does it otherwise
        return
    MathTextParser._parse_cached = lru_cache(5000)(plain)
    textpath.MathTextParser = backend_agg.MathTextParser = cache(MathTextParser)


def reference_problem(gamma0: float = 1.0, learning_rate: float = 0.6) -> dmft.Problem:
    """The problem of reference/tanh_depth2.json."""
    x = np.random.default_rng(0).standard_normal((25, 3)).T
    network = dmft.MLP(depth=2, activation=dmft.tanh(0.8), gamma0=gamma0)
    return dmft.Problem(network, dmft.Task(x, [-1, 1, 1]), dmft.GradientDescent(learning_rate, steps=10))


def first_of(values):
    """Parameters of a test of which only the first runs by default."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


@pytest.fixture(scope="session")
def reference():
    """Numbers of independent code: 750,000 trained networks, extrapolated to infinite width."""
    return json.loads((ROOT / "tests" / "reference" / "tanh_depth2.json").read_text())


@pytest.fixture(scope="session")
def problem():
    return reference_problem()


@pytest.fixture(scope="session")
def theory(problem):
    """The limit at the default settings, with two-time kernels."""
    return dmft.solve(problem, two_time=True)


@pytest.fixture
def without_layout(monkeypatch):
    """Coarse figures whose labels are not placed, which takes half of the time of drawing them."""
    from figures import style

    coarse = {"figure.constrained_layout.use": False, "figure.dpi": 50}
    monkeypatch.setattr(style, "STYLE", [style.STYLE, coarse])


@pytest.fixture(autouse=True, scope="module")
def no_more_compiled_code_than_a_process_may_hold():
    """Every compiled function holds memory maps, of which Linux gives a process 65,530; without them JAX crashes."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        sys.modules["jax"].clear_caches()
