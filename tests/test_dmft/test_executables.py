"""Executables kept between processes: what they are known by, and when there are none (`test_host.py` has processes)."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dmft
from dmft.engine import loop
from dmft.running import compiling, executables
from oracles import on_virtual_devices


@pytest.fixture
def small_problem():
    return dmft.Problem(dmft.MLP(2), dmft.Task([[1.0], [0.5]], [1.0, -1.0]), dmft.GradientDescent(0.5, steps=1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(executables, "_folder", lambda: tmp_path)
    monkeypatch.setattr(executables, "loaded", {})
    return tmp_path


def scaled(x, *, power):
    """x^power, of this file: allowed into names by the test that needs it."""
    return x["a"] ** power


def sine(xp, h):
    return xp.sin(h)


def cosine(xp, h):
    return xp.cos(h)


def kept(function=scaled):
    made = executables.Kept(function, ("power",), ())
    made._name = "dmft.tests.scaled"
    return made


def files(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_executables_are_found_again_by_types_shapes_and_static_arguments(folder):
    f, x = kept(), {"a": jnp.arange(3.0)}
    np.testing.assert_array_equal(f(x, power=2), [0, 1, 4])
    first = files(folder)
    assert len(first) == 1
    executables.loaded.clear()  # as in another process
    f.jitted = None  # which traces nothing
    np.testing.assert_array_equal(f({"a": jnp.arange(3.0) + 1}, power=2), [1, 4, 9])
    assert files(folder) == first
    for x, power in (({"a": jnp.arange(4.0)}, 2), ({"a": jnp.arange(3)}, 2), ({"a": jnp.arange(3.0)}, 3)):
        with pytest.raises(AttributeError):  # others are compiled
            f(x, power=power)


def test_damaged_files_are_compiled_anew(folder):
    x = {"a": jnp.arange(3.0)}
    kept()(x, power=2)
    (file,) = folder.iterdir()
    file.write_bytes(b"nothing")
    executables.loaded.clear()
    np.testing.assert_array_equal(kept()(x, power=2), [0, 1, 4])
    assert file.stat().st_size > 100


def test_under_transformations_nothing_is_kept(folder):
    assert jax.grad(lambda a: kept()({"a": a}, power=2))(3.0) == 6
    assert not files(folder)


@dataclass(frozen=True)
class Mine:
    """A user's own."""

    size: int = 1


def test_what_is_not_of_this_library_has_no_name(folder):
    for own in (Mine(), scaled, lambda h: h, partial(jnp.sum, axis=0), object()):
        with pytest.raises(executables.NamelessError):
            executables.described(own)
    np.testing.assert_array_equal(kept(lambda x, *, power: x["a"] * power.size)({"a": jnp.ones(2)}, power=Mine()), 1)
    assert not files(folder)


def test_names_tell_problems_apart(small_problem):
    def name(problem, **changed):
        return executables.described(replace(loop.form_of(problem), **changed))

    plain = name(small_problem)
    assert name(small_problem) == plain
    relu = replace(small_problem, network=dmft.MLP(2, dmft.relu()))
    others = [name(relu), name(small_problem, single=False), name(small_problem, observables=())]
    assert len({repr(each) for each in (plain, *others)}) == 4
    # a formula of one's own is not of the library
    own = dmft.activation(sine, cosine)
    with pytest.raises(executables.NamelessError):
        name(replace(small_problem, network=dmft.MLP(2, own)))


def test_names_tell_functions_of_one_line_apart():
    slopes = [one.fields for one in loop.USUAL if one.fields]
    assert len({repr(executables.described(f)) for f in slopes}) == len(slopes) > 1


def test_source_that_changed_after_it_was_imported_is_not_named(folder, monkeypatch):
    monkeypatch.setattr(executables, "STAMPS", [])
    np.testing.assert_array_equal(kept()({"a": jnp.arange(3.0)}, power=2), [0, 1, 4])
    assert not files(folder)


def test_source_that_is_gone_is_not_named(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(executables, "_files", lambda: [tmp_path / "gone.py"])
    np.testing.assert_array_equal(kept()({"a": jnp.arange(3.0)}, power=2), [0, 1, 4])
    assert not files(folder)


def test_what_a_process_holds_of_a_function_can_be_given_up(folder):
    first, other = kept(), kept()
    other._name = "dmft.tests.other"
    for each in (first, other):
        each({"a": jnp.arange(3.0)}, power=2)
    first.clear_cache()
    assert [key[0] for key, _ in executables.loaded] == ["dmft.tests.other"]
    assert len(files(folder)) == 2


ON_DEVICES = """
import json, tempfile
from pathlib import Path
import jax, numpy as np
from dmft.running import executables
from test_executables import kept
folder, found = Path(tempfile.mkdtemp()), []
executables._folder = lambda: folder
for _ in range(2):  # the second time read
    for device in jax.devices():
        for given in (np.arange(3.0), jax.device_put(np.arange(3.0), device)):
            with jax.default_device(device):
                made = kept()({"a": given}, power=2)
            found.append([made.tolist(), [each.id for each in made.devices()], len(list(folder.iterdir()))])
    executables.loaded.clear()
print(json.dumps(found))
"""


def test_executables_are_of_the_device_that_computes():
    found = on_virtual_devices(2, ON_DEVICES)
    expected = ((0, 1), (0, 2), (1, 3), (1, 4), (0, 4), (0, 4), (1, 4), (1, 4))
    assert found == [[[0, 1, 4], [device], files] for device, files in expected]


def test_threads_that_compile_anew_leave_the_cache_as_it_was():
    before = compiling.setting("enable_compilation_cache")
    first, second = compiling.without(), compiling.without()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not compiling.setting("enable_compilation_cache")
    second.__exit__(None, None, None)
    assert compiling.setting("enable_compilation_cache") == before


def test_what_surrounds_the_code_is_in_its_name(monkeypatch):
    before = executables.digest("x")
    assert executables.digest("x") == before != executables.digest("y")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    executables._surroundings.cache_clear()
    assert executables.digest("x") != before
    monkeypatch.undo()
    executables._surroundings.cache_clear()
    with jax.enable_x64(not jax.config.jax_enable_x64):  # a setting
        assert executables.digest("x") != before


def test_by_default_they_are_kept_where_that_was_tried(monkeypatch, tmp_path):
    monkeypatch.setattr(executables, "ours", lambda: tmp_path)
    for version, switch, found in (
        (executables.TRIED["cpu"][0], "", tmp_path),
        (executables.TRIED["cpu"][0], "off", None),
        ((99, 0), "", None),
        ((99, 0), "on", tmp_path),
    ):
        monkeypatch.setattr(jax, "__version_info__", (*version, 0))
        monkeypatch.setenv(executables.SWITCH, switch)
        assert executables._folder() == (found if jax.default_backend() == "cpu" or switch else None)
