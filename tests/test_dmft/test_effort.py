"""How much is compiled, and how hard: effort by work, and code that neighbouring problems share."""

import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dmft
from dmft.running import effort, executables, shared_sizes

LITTLE = {"xla_backend_optimization_level": 0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(executables, "_folder", lambda: tmp_path)
    monkeypatch.setattr(executables, "loaded", {})
    monkeypatch.setattr(effort, "LITTLE", dict.fromkeys(("cpu", "gpu"), LITTLE))
    return tmp_path


def doubled(x):
    return 2 * x


def kept(*, brief=False):
    made = executables.Kept(doubled, (), (), brief=brief)
    made._name = "dmft.tests.doubled"
    return made


@pytest.mark.usefixtures("folder")
def test_effort_is_little_where_work_is_short_or_code_brief():
    short = effort.SHORT[jax.devices()[0].platform]
    assert effort.options() == {}
    assert effort.options(brief=True) == LITTLE
    with effort.for_work(short / 2):
        assert effort.options() == LITTLE
        with effort.for_work(2 * short):
            assert effort.options() == {}
        with effort.for_work(2 * short / effort.DERIVATIVES):
            assert effort.options() == LITTLE
    assert effort.options() == {}


def test_little_effort_tries_no_products_on_a_gpu(monkeypatch):
    monkeypatch.setattr(effort, "device", lambda: SimpleNamespace(platform="gpu"))
    tried = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
    with effort.for_work(1e9):
        assert effort.options() == tried
    with effort.for_work(1e10):
        assert effort.options() == {}
        assert effort.options(brief=True) == tried


def test_work_is_that_of_the_entries_of_fields():
    """Of few samples as of many, whose products are fast beside them."""
    numerics, seen = {"particles": 256, "scrambles": 3}, []

    def told(entries):
        seen.append(entries)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "for_work", told)
        for call, code in ((dmft.solve, 1), (dmft.fluctuations, 1), (dmft.fluctuations, 8)):
            patch.setattr(effort, "DERIVATIVES", code)
            with pytest.raises(InterruptedError):
                call(problem(4), **numerics)
    entries, of_all, for_their_code = seen
    assert entries == 3 * 5 * 2 * 3 * 256  # runs, steps, layers, rows, particles
    assert of_all > 2 * entries
    assert for_their_code == of_all / 8


def test_code_of_either_effort_is_kept_by_itself(folder):
    f, x = kept(), jnp.arange(3.0)
    for entries, files in ((0.0, 1), (np.inf, 2), (0.0, 2)):
        with effort.for_work(entries):
            np.testing.assert_array_equal(f(x), [0, 2, 4])
        assert len(list(folder.iterdir())) == files
    kept(brief=True)(x)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.usefixtures("folder")
def test_options_go_with_code_that_is_not_kept(monkeypatch):
    monkeypatch.setattr(executables, "_folder", lambda: None)
    given = []
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda f, **named: given.append(named.get("compiler_options")) or jit(f, **named))
    brief = kept(brief=True)
    np.testing.assert_array_equal(brief(jnp.arange(2.0)), [0, 2])
    assert given == [None, LITTLE]
    assert jax.grad(brief)(1.0) == 2  # under a transformation there are none
    assert given == [None, LITTLE]


def test_sizes_are_large_enough_few_and_near():
    counts = np.arange(1, 5000)
    for shared, most, number in ((shared_sizes.steps, 1.5, 30), (shared_sizes.directions, 1.125, 60)):
        found = np.array([shared(int(n)) for n in counts])
        assert (found >= counts).all()
        assert (np.diff(found) >= 0).all()
        beyond = counts >= (8 * shared_sizes.FEW if shared is shared_sizes.directions else 1)
        assert (found[beyond] <= np.ceil(most * counts[beyond])).all()
        assert len(set(found.tolist())) <= number
        assert all(shared(int(n)) == n for n in found)


def problem(steps, gamma0=1.0):
    x = np.random.default_rng(0).standard_normal((3, 4))
    network = dmft.MLP(depth=2, activation=dmft.tanh(), gamma0=gamma0)
    return dmft.Problem(network, dmft.Task(x[:2], [1.0, -1.0], x[2:], [1.0]), dmft.GradientDescent(0.5, steps=steps))


NAMES = ["prediction", "feature_kernel"]
CALLS = {
    "solve": lambda p: dmft.solve(p, particles=64, scrambles=2),
    "two_time": lambda p: dmft.solve(p, particles=64, scrambles=2, two_time=True, save_steps=[0, 3]),
    "forward": lambda p: dmft.fluctuations(p, particles=64, scrambles=2, draws=16, deflate=False, observables=NAMES),
    "finite": lambda p: dmft.fluctuations(p, particles=64, scrambles=2, draws=2, mode="finite"),
    "reverse": lambda p: dmft.fluctuations(p, particles=64, scrambles=2, mode="reverse", observables=["prediction"]),
}
# what room of expansions might change, closed recursions and particles against linear forms hold (`test_fluctuations`)
SLOW = [pytest.param(call, marks=pytest.mark.slow) for call in ("forward", "finite", "reverse")]


def assert_the_same(found, alone):
    assert found.sizes == alone.sizes
    for name in alone.data_vars:
        largest = np.abs(alone[name].values).max()
        np.testing.assert_allclose(found[name].values, alone[name].values, rtol=0, atol=1e-11 * largest, err_msg=name)


@pytest.mark.parametrize("call", ["two_time", *SLOW])
def test_room_that_is_shared_changes_no_number(call, monkeypatch):
    found = CALLS[call](problem(4))
    monkeypatch.setattr(shared_sizes, "steps", lambda count: count)
    monkeypatch.setattr(shared_sizes, "directions", lambda count: count)
    assert_the_same(found, CALLS[call](problem(4)))


@pytest.mark.parametrize("call", ["solve", pytest.param("forward", marks=pytest.mark.slow)])
def test_neighbouring_problems_share_code_which_changes_no_number(call, folder, monkeypatch):
    def files():
        return {file.name for file in folder.iterdir()}

    found, first = CALLS[call](problem(4)), files()
    assert first
    CALLS[call](problem(5, gamma0=0.7))
    assert files() == first
    monkeypatch.setattr(shared_sizes, "steps", lambda count: count)
    assert_the_same(found, CALLS[call](problem(4)))
    assert files() > first  # which they would not with room for their own steps alone


@pytest.mark.usefixtures("folder")
def test_products_have_options_that_the_compiler_knows():
    known = {"xla_backend_optimization_level": 1, "xla_of_no_compiler": 1}
    here, elsewhere = jax.devices()[0].platform, {"some other platform": known}
    with effort.for_products({here: known}), effort.for_work(0.0):
        assert effort.options() == effort.options(brief=True) == {"xla_backend_optimization_level": 1}
        with effort.for_products(None):
            assert effort.options() == LITTLE
        with effort.for_products(elsewhere):
            assert effort.options() == LITTLE
    assert effort.options() == {}


def test_products_of_a_stream_that_forgets_have_options_and_of_no_other(monkeypatch):
    used = []
    monkeypatch.setattr(effort, "for_products", lambda known: used.append(known) or contextlib.nullcontext())
    x = np.random.default_rng(0).standard_normal((16, 3))
    training = dmft.GradientDescent(0.1, 6, batches=dmft.one_pass(12, 2), observe="test")
    problem = dmft.Problem(dmft.MLP(2, centered=False), dmft.Task(x[:12], x[:12, 0], x[12:], x[12:, 0]), training)
    # without directions it remembers
    for directions, options in ((4, effort.UNTUNED), (None, None)):
        used.clear()
        dmft.solve(problem, directions=directions, particles=64, scrambles=2, observables=["loss"])
        assert used
        assert all(each is options for each in used)
