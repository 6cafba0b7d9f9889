"""Threads of BLAS are one while we compute on a CPU, and what the host had before and afterwards."""

import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import dmft
from dmft.drivers import machine, solve
from dmft.running import blas


@pytest.fixture
def host():
    """A program with two of them, whatever the environment says."""
    with threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("threadpoolctl finds no BLAS whose threads it sets, as Accelerate")
        yield


def threads():
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


def seen_by_solve():
    """While a small problem is solved."""
    found, summary = [], solve.values_of

    def watched(*given):
        found.append(threads())
        return summary(*given)

    task = dmft.Task([[1.0, 0.0], [0.0, 1.0]], [1.0, -1.0])
    problem = dmft.Problem(dmft.MLP(2), task, dmft.GradientDescent(0.1, 1))
    with mock.patch.object(solve, "values_of", watched):
        dmft.solve(problem, particles=16, scrambles=2, observables=["prediction"])
    return found


@pytest.mark.usefixtures("host")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_computations_on_a_cpu_have_one():
    assert threads() == {2}
    assert seen_by_solve() == [{1}, {1}]
    assert threads() == {2}
    # twin: without the context they have what the host has
    with mock.patch.object(machine.blas, "one_thread", machine.nullcontext):
        assert seen_by_solve() == [{2}, {2}]


@pytest.mark.usefixtures("host")
def test_computations_side_by_side_and_within_have_one_until_the_last_ends():
    begun, may_end = threading.Event(), threading.Event()

    def other():
        with blas.one_thread():
            with blas.one_thread():
                begun.set()
                may_end.wait(30)
            assert threads() == {1}

    with ThreadPoolExecutor() as pool:
        with blas.one_thread():
            second = pool.submit(other)
            assert begun.wait(30)
            assert threads() == {1}
        try:
            assert threads() == {1}  # the first ends, the second goes on
        finally:
            may_end.set()
        second.result()
    assert threads() == {2}
    with blas.one_thread():
        assert threads() == {1}
    assert threads() == {2}


def failing():
    with blas.one_thread():
        assert threads() == {1}
        raise RuntimeError


@pytest.mark.usefixtures("host")
def test_an_error_leaves_what_was():
    for _ in range(2):
        with pytest.raises(RuntimeError):
            failing()
        assert threads() == {2}


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(("platform", "expected"), [("cpu", 1), ("gpu", 2)])
def test_those_beside_a_gpu_are_left_alone(platform, expected):
    here = mock.patch.object(machine.jax, "default_device", return_value=machine.nullcontext())
    with here, machine.precision("float64", mock.Mock(platform=platform)):
        assert threads() == {expected}
