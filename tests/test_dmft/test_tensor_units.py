"""Kernels for a GPU, their threads those of a CPU, against products and factors of whole arrays."""

import ctypes
import shutil
import subprocess
import threading
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dmft
from dmft.drivers import layout
from dmft.engine import basis, factors, kernels, tensor_units, together, trial
from dmft.running import nvrtc

EMULATED = Path(__file__).parents[1] / "emulated_units.h"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile kernels for a CPU with")
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)  # in threads that call the host, too
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(autouse=True)
def on_cpu(folder, monkeypatch):
    """Kernels as calls of the host."""

    busy = threading.Lock()

    def called(source, name, defined, made, *given, grid=(1, 1), threads, shared=0, in_place=False):
        library = folder / ("_".join([name, *map(str, defined.values())]) + ".so")
        every = {**defined, name.upper(): 1, "KERNELS": f'"{source}"', "ALL": threads, "SHARED": shared}
        command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{Path(kernels.__file__).parent}"]
        command += [f"-D{key}={value}" for key, value in every.items()]
        if not library.exists():
            subprocess.run([*command, "-x", "c++", EMULATED, "-o", library], check=True)
        launch = ctypes.CDLL(library).launch  # one at a time: threads of a block are those of the process

        def host(*given):
            given = [np.ascontiguousarray(a) for a in given]
            results = [np.full(shape, np.nan if dtype == np.float64 else -1, dtype) for shape, dtype in made]
            if in_place:
                results = [given[0].copy()]
            its = (ctypes.c_void_p * (len(given) + len(results)))(*(a.ctypes.data for a in [*given, *results]))
            with busy:
                launch(*grid, its)
            return results

        shapes = [jax.ShapeDtypeStruct(*each) for each in made]
        return jax.pure_callback(host, shapes, *given, vmap_method="sequential")

    monkeypatch.setenv("DMFT_EXECUTABLES", "off")  # in which calls of this process would be kept
    monkeypatch.setattr(tensor_units, "called", called)
    monkeypatch.setattr(factors, "called", called)
    monkeypatch.setattr(tensor_units, "multiprocessors", lambda: 3)


@pytest.mark.parametrize(
    ("vectors", "room", "size", "numbers"), [(13, 70, 128, (37, 70, 0)), (212, 34, 64, (1,))], ids=["one block", "two"]
)
def test_products_with_the_rows_that_are_there(vectors, room, size, numbers):
    """Of more vectors than a block takes, of rooms that no tile divides, of nothing; others hold what they may."""
    a, v, x = (RNG.standard_normal(shape) for shape in ((room, size), (vectors, size), (vectors, room)))
    b, y, few = a[::-1].copy(), x + 1, 5
    other = tensor_units.counted(jnp.asarray(b), jnp.int32(few))
    for filled in numbers:
        there = np.arange(room) < filled
        rows = tensor_units.counted(jnp.asarray(a), jnp.int32(filled))
        found = rows.across(v), rows.mixed(x), rows.mixed(x, v), rows.mixed(x, beside=(y, other))
        product = (x * there) @ a
        expected = v @ a.T * there, product, product + v, product + y[:, :few] @ b[:few]
        for one, its in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, its, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("vectors", "rank", "floor"), [(40, 13, 1e-8), (40, 40, 5.0), (40, 0, 1e-8), (33, 33, 1e-8)])
def test_factors_of_gram_matrices(vectors, rank, floor):
    f = RNG.standard_normal((vectors, rank)) * RNG.uniform(0.01, 3, vectors)[:, None]
    gram, floors = jnp.asarray(f @ f.T), jnp.full(vectors, floor)
    order, count = factors.pivoted(gram, floors)
    expected, rank = basis._one_by_one(gram, floors, 1)
    np.testing.assert_array_equal(order, expected)
    assert count == rank
    triangle = factors.normalising(gram[order][:, order], count)
    expected = basis._normalising(gram[order][:, order], jnp.arange(vectors) < rank)
    np.testing.assert_allclose(triangle, expected, rtol=1e-9, atol=1e-12)


def test_vectors_without_a_size_are_not_new():
    gram = jnp.diag(jnp.array([1.0, jnp.nan, 3.0, 0.0]))
    order, count = factors.pivoted(gram, jnp.full(4, 0.5))
    assert (count, *order) == (2, 2, 0, 1, 3)


@pytest.mark.parametrize(
    ("most", "samples"), [(factors.MOST, 5), (2, 6), pytest.param(factors.MOST, 6, marks=pytest.mark.slow)]
)
def test_the_limit_by_kernels_is_that_of_whole_products(monkeypatch, most, samples):
    """Predictions of a training whose products and factors are those of the kernels, of an odd number of vectors, too;
    of more vectors, products alone."""
    x = RNG.standard_normal((samples, 8))
    y = np.sign(RNG.standard_normal(samples))
    problem = dmft.Problem(dmft.MLP(3), dmft.Task(x, y), dmft.GradientDescent(0.3, 3))
    arguments = {"particles": 64, "scrambles": 2, "progress": False}
    expected = dmft.solve(problem, **arguments).prediction
    monkeypatch.setattr(layout, "KERNELS_FROM", 0)
    monkeypatch.setattr(basis, "LARGE", 1)
    if most == 2:  # of probes there may be more than of what is trained on
        choose = layout.choose
        monkeypatch.setattr(layout, "choose", lambda *given: layout.replace(choose(*given), by_kernels=True))
        monkeypatch.setattr(layout, "PARTLY_ELSEWHERE", 0)
    monkeypatch.setattr(factors, "MOST", most)
    together.advance_together.clear_cache()
    monkeypatch.setattr(trial, "passed", lambda _: True)
    with mock.patch.object(factors, "normalising", wraps=factors.normalising) as normalising:
        found = dmft.solve(problem, **arguments).prediction
    assert (normalising.call_count > 0) == (most > 2)
    together.advance_together.clear_cache()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("taken", [(5, 2), (5, 5), (6, 3)])
def test_blocks_of_odd_numbers_leave_nothing_undefined(taken):
    """Rows beyond the vectors are nan in these tests where they are not written."""
    vectors, few = taken
    x, a = RNG.standard_normal((few, 4)), jnp.asarray(RNG.standard_normal((4, 64)))
    made = tensor_units.counted(a, jnp.int32(4)).mixed(x, room=vectors)
    assert made.shape == (vectors, 64)
    assert jnp.isnan(made).any() == (vectors == 6)
    back = tensor_units.block(made, jnp.int32(few)).across(made[:few])
    np.testing.assert_allclose(back[:, :few], (x @ a) @ (x @ a).T, atol=1e-12)
    np.testing.assert_array_equal(back[:, few:], 0)


def test_rows_are_placed_no_further_than_there_is_room():
    array, new = jnp.zeros((4, 64)), jnp.ones((6, 64))
    np.testing.assert_array_equal(tensor_units.placed(array, new, jnp.int32(2), jnp.int32(6))[:, 0], [0, 0, 1, 1])


def of_device(capability="9.0"):
    return mock.Mock(platform="gpu", compute_capability=capability)


def test_a_device_whose_kernels_multiply_has_them(monkeypatch):
    monkeypatch.setattr(jax, "default_device", lambda _: nullcontext())
    monkeypatch.setattr(nvrtc, "version", lambda: "13")
    assert trial.passed(of_device())
    assert not trial.passed(of_device("8.0"))
    # twin: numbers that are not right
    monkeypatch.setattr(tensor_units, "called", lambda *_, **__: [jnp.zeros(())])
    assert not trial.passed(of_device())


def test_a_device_whose_kernels_fail_has_none(monkeypatch):
    monkeypatch.setattr(jax, "default_device", lambda _: nullcontext())
    monkeypatch.setattr(nvrtc, "version", lambda: None)
    with pytest.warns(UserWarning, match="there is no NVRTC.*pip install"):
        assert not trial.passed(of_device())
    monkeypatch.setattr(nvrtc, "version", lambda: "13")
    failing = mock.Mock(side_effect=RuntimeError("tensor_units.cu was not compiled: no reason"))
    monkeypatch.setattr(tensor_units, "called", failing)
    device = of_device()
    with pytest.warns(UserWarning, match="the vendor's library: tensor_units.cu was not compiled"):
        assert not trial.passed(device)
    assert not trial.passed(device)
    assert failing.call_count == 1


def test_a_device_whose_memory_was_short_is_tried_again(monkeypatch):
    monkeypatch.setattr(jax, "default_device", lambda _: nullcontext())
    monkeypatch.setattr(nvrtc, "version", lambda: "13")
    device, called = of_device(), tensor_units.called
    monkeypatch.setattr(tensor_units, "called", mock.Mock(side_effect=RuntimeError("RESOURCE_EXHAUSTED: no memory")))
    with pytest.warns(UserWarning, match="no memory"):
        assert not trial.passed(device)
    monkeypatch.setattr(tensor_units, "called", called)
    assert trial.passed(device)


@pytest.mark.parametrize(
    ("plugins", "there", "expected"), [("12", "1213", "12"), ("13", "1213", "13"), ("12", "13", "13")]
)
def test_the_compiler_is_that_of_the_cuda_jax_is_built_for(monkeypatch, plugins, there, expected):
    def library(version):
        if version not in there:
            raise OSError

    monkeypatch.setattr(nvrtc, "find_spec", lambda name: name == f"jax_cuda{plugins}_plugin" or None)
    monkeypatch.setattr(nvrtc, "library", library)
    assert nvrtc.version.__wrapped__() == expected


def test_a_program_that_is_not_compiled_is_given_back(monkeypatch):
    compiler = mock.Mock(**{"nvrtcCreateProgram.return_value": 0, "nvrtcCompileProgram.return_value": 6})
    monkeypatch.setattr(nvrtc, "library", lambda _: compiler)
    with pytest.raises(RuntimeError, match="a.cu was not compiled"):
        nvrtc.compiled(b"", "a.cu", ["--gpu-architecture=compute_90"], "13")
    assert compiler.nvrtcDestroyProgram.call_count == 1
    compiler.nvrtcCreateProgram.return_value = 1
    with pytest.raises(RuntimeError, match="a.cu was not compiled: NVRTC gives error 1"):
        nvrtc.compiled(b"", "a.cu", ["--gpu-architecture=compute_90"], "13")
