"""No setting of the host program changes a number, or stops a computation; all of them are left as they were."""

import contextlib
import os
import shutil
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
import finite_nets
from dmft.running import cache_folder, compiling, host

TASK = dmft.Task([[1.0, 0.2], [0.1, -1.0], [0.5, 0.5]], [1.0, -1.0, 1.0])
PROBLEM = dmft.Problem(dmft.MLP(depth=2), TASK, dmft.GradientDescent(0.5, steps=2))
SMALL = {"particles": 64, "scrambles": 2}
FEW = ("ignore:the weight matrices met", "ignore:standard errors of")


def computed() -> dict[str, xr.Dataset]:
    theory = dmft.solve(PROBLEM, **SMALL)
    nets = finite_nets.sample_in_law(PROBLEM, widths=[8], seeds=8)
    found = {"solve": theory, "in law": nets}
    found["fluctuations"] = dmft.fluctuations(PROBLEM, draws=4, observables=["prediction"], **SMALL)
    found["neurons"] = dmft.neurons(PROBLEM, **SMALL)
    found["lazy"] = dmft.lazy_limit(PROBLEM)
    found["distance"] = dmft.distance_from_lazy(theory, PROBLEM)
    found["width"] = dmft.at_width(theory, found["fluctuations"], 10**4)
    found["compared"] = comparisons.compare(theory, nets)
    return found


@pytest.fixture(scope="module")
def usual():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few particles
        return computed()


@contextlib.contextmanager
def everywhere(name, value):
    """A setting of all threads, which JAX offers no context for."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


HOSTS = {
    "promotion of types": lambda: jax.numpy_dtype_promotion("strict"),
    "promotion of ranks": lambda: jax.numpy_rank_promotion("raise"),
    "another generator": lambda: jax.default_prng_impl("rbg"),
    "threefry": lambda: jax.threefry_partitionable(False),
    "seed offset": lambda: everywhere("jax_random_seed_offset", 7),
    "reuse of keys": lambda: jax.debug_key_reuse(True),
    "nan": lambda: jax.debug_nans(True),
    "checks": lambda: jax.enable_checks(True),
    "leaks": lambda: jax.check_tracer_leaks(True),
    "transfers": lambda: jax.transfer_guard("disallow"),
    "transfers, named": lambda: jax.transfer_guard_host_to_device("disallow_explicit"),
    "products": lambda: jax.default_matmul_precision("bfloat16"),
    "x64": lambda: jax.enable_x64(True),
    "mesh": lambda: jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))),
    "NumPy": lambda: np.errstate(all="raise"),
}


@pytest.mark.filterwarnings(*FEW)
@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.slow
def test_settings_of_the_host_change_nothing(name, usual):
    with HOSTS[name]():
        settings = {key: getattr(jax.config, f"jax_{key}") for key in host.JAX}, np.geterr()
        found = computed()
        assert settings == ({key: getattr(jax.config, f"jax_{key}") for key in host.JAX}, np.geterr())
    for key, value in found.items():
        xr.testing.assert_equal(value, usual[key])


def test_settings_come_back_after_an_error():
    diverging = dmft.Problem(dmft.MLP(depth=2), TASK, dmft.GradientDescent(1e6, steps=3))
    with jax.numpy_rank_promotion("raise"), np.errstate(all="raise"):
        with pytest.raises(dmft.errors.DivergenceError):
            dmft.solve(diverging, **SMALL)
        assert jax.config.jax_numpy_rank_promotion == "raise"
        assert set(np.geterr().values()) == {"raise"}
        assert not jax.config.jax_enable_x64


def test_platform_that_is_not_there_is_named():
    code = "import dmft; dmft.solve(dmft.Problem(dmft.MLP(1), dmft.Task([[1.0]], [1.0]), dmft.GradientDescent(1, 1)))"
    out = python(code, JAX_PLATFORMS="tpu")
    last = out.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: JAX_PLATFORMS=tpu asks JAX for a device")
    assert last.endswith("unset it, or set JAX_PLATFORMS=cpu.")


def python(code, **variables):
    """A process of its own, without the compile cache of the tests."""
    ours = ("JAX_", "DMFT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment | variables, capture_output=True, text=True
    )


# ---- compiled code between processes --------------------------------------------------------------------------------

MODES = {"on": "executables", "off": "code"}  # of DMFT_EXECUTABLES, each with a folder of its own
SOLVE = """
import os, sys
from pathlib import Path
import jax, dmft
from dmft.running import executables
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
problem = dmft.Problem(dmft.MLP(1), dmft.Task([[1.0], [0.5]], [1.0, -1.0]), dmft.GradientDescent(0.5, steps=1))
new = Path(os.environ["DMFT_COMPILE_CACHE"])

def solve(folder):
    for mode, name in MODES.items():
        os.environ["DMFT_EXECUTABLES"], os.environ["DMFT_COMPILE_CACHE"] = mode, str(folder / name)
        jax.clear_caches()
        executables.loaded.clear()
        hits.clear()
        dmft.solve(problem, particles=64, scrambles=2, observables=["loss"])
        assert jax.config.jax_compilation_cache_dir is None
        print(len(hits))

solve(new)
"""


def entries(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}


def test_second_process_compiles_nothing(tmp_path):
    code, variables = f"MODES = {MODES}\n{SOLVE}", {"DMFT_COMPILE_CACHE": str(tmp_path / "new" / "folder")}
    first = python(code, **variables)
    assert first.returncode == 0, first.stderr
    folders = [tmp_path / "new" / "folder" / name for name in MODES.values()]
    executables, compiled = kept = [entries(folder) for folder in folders]
    # of all that there is
    assert {name.partition("-")[0].rpartition(".")[2] for name in executables} >= {"advance", "_begun", "stored"}
    assert all(name.startswith("dmft.") for name in executables)
    assert not any(name.startswith("dmft.") for name in compiled)
    assert int(first.stdout.split()[1]) < len(compiled)
    shutil.copytree(tmp_path / "new", tmp_path / "damaged")
    for path in (tmp_path / "damaged").glob("*/*/*-cache"):
        path.write_bytes(path.read_bytes()[:10])
    second = python(f"{code}solve(new.parents[1] / 'damaged' / new.name)", **variables)
    *found, damaged, damaged_too = map(int, second.stdout.split())
    assert found[1] >= len(compiled)
    assert [entries(folder) for folder in folders] == kept
    # damaged entries are compiled anew, and nothing is said
    assert (second.returncode, damaged, damaged_too, second.stderr) == (0, 0, 0, "")


@pytest.fixture
def undecided(monkeypatch):
    """A host that has no cache of its own."""
    monkeypatch.delenv(cache_folder.SWITCH, raising=False)
    with everywhere("jax_compilation_cache_dir", None):
        compiling.reset_cache()
        yield
    compiling.reset_cache()


@pytest.mark.usefixtures("undecided")
def test_where_compiled_code_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert compiling.folder() == tmp_path / "dmft"
    monkeypatch.setenv(cache_folder.SWITCH, str(tmp_path / "mine"))
    assert compiling.folder() == tmp_path / "mine"
    with compiling.cached():
        with compiling.cached():
            pass
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures("undecided")
def test_nowhere(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for value in ("off", "OFF", "gs://bucket/folder", str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        monkeypatch.setenv(cache_folder.SWITCH, value)
        with compiling.cached():
            assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv(cache_folder.SWITCH, str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # as of a read-only home: root may write anywhere else
    assert compiling.folder() is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have no owner and no mode")
def test_code_that_others_may_have_written_is_not_read(monkeypatch, tmp_path):
    monkeypatch.setenv(cache_folder.SWITCH, str(tmp_path / "shared"))
    assert cache_folder.cache_folder() == tmp_path / "shared"  # as it is made
    for mode in (0o720, 0o702):
        (tmp_path / "shared").chmod(mode)
        with pytest.warns(UserWarning, match="may be written by others"):
            assert cache_folder.cache_folder() is None
    (tmp_path / "shared").chmod(0o755)
    assert cache_folder.cache_folder() == tmp_path / "shared"
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "shared").stat().st_uid + 1)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert cache_folder.cache_folder() is None


@pytest.mark.usefixtures("undecided")
def test_the_hosts_own_cache_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv(cache_folder.SWITCH, str(tmp_path / "ours"))
    with everywhere("jax_compilation_cache_dir", str(tmp_path / "theirs")), compiling.cached():
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    with everywhere("jax_enable_compilation_cache", False), compiling.cached():
        assert jax.config.jax_compilation_cache_dir is None
    assert not (tmp_path / "ours").exists()


def test_folder_is_bounded(tmp_path):
    for age, name in enumerate(["a-cache", "b.code", "c-cache", "d.code", "old notes"]):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    compiling.tidy(tmp_path, largest=25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cache", "b.code", "old notes"]
