"""What a computation will take is said before it is begun, and shown while it lasts."""

import dataclasses
import io
import sys
import time
import types

import pytest

import dmft
from dmft import planning
from dmft.__main__ import main
from dmft.drivers import layout
from dmft.engine import loop
from dmft.running import progress

TASK = dmft.Task([[1.0, 0.2], [0.1, -1.0], [0.5, 0.5]], [1.0, -1.0, 1.0])
TRAINING = dmft.GradientDescent(0.5, steps=3)
TANH = dmft.Problem(dmft.MLP(depth=2), TASK, TRAINING)
LINEAR = dmft.Problem(dmft.MLP(depth=2, activation=dmft.linear()), TASK, TRAINING)
SHALLOW = dmft.Problem(dmft.MLP(depth=1), TASK, TRAINING)
SMALL = {"particles": 64, "scrambles": 2}
FEW = ("ignore:the weight matrices met", "ignore:standard errors of")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, call):
    """The bar of a computation."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "tqdm", lambda **given: bars.append(progress.Lines(**given)) or bars[-1])
    bars = []
    call()
    (bar,) = bars
    return bar


@pytest.mark.filterwarnings(*FEW)
@pytest.mark.parametrize(
    ("of", "problem", "arguments"),
    [
        ("solve", TANH, SMALL),
        ("neurons", TANH, SMALL),
        ("fluctuations", SHALLOW, SMALL | {"draws": 8, "deflate": False, "observables": ["prediction"]}),
        pytest.param("fluctuations", TANH, SMALL | {"draws": 8, "by_layer": True}, marks=pytest.mark.slow),
        ("fluctuations", SHALLOW, SMALL | {"mode": "reverse", "observables": ["prediction"]}),
        pytest.param("fluctuations", LINEAR, {"observables": ["prediction"]}, marks=pytest.mark.slow),
    ],
)
def test_plan_and_bar_agree(monkeypatch, of, problem, arguments):
    plan = dmft.plan(problem, of, **arguments)
    bar = shown(monkeypatch, lambda: getattr(dmft, of)(problem, **arguments))
    assert plan.steps == bar.total == bar.n
    assert plan.seconds > 0
    assert plan.device_memory > 0
    assert f"{plan.steps:,} in all" in str(plan)
    assert plan.problem_id == problem.problem_id


@pytest.mark.filterwarnings(*FEW)
def test_directions_are_those_of_the_run():
    plan = dmft.plan(TANH, **SMALL)  # as many steps as are probed
    assert plan.directions == dmft.solve(TANH, **SMALL).attrs["directions"]


def test_time_of_steps_is_free_of_compilation(monkeypatch):
    """However long that takes."""
    advance, calls = loop.advance, []

    def compiling(*given, **named):
        calls.append(given)
        time.sleep(0.5 if len(calls) == 1 else 0.0)
        return advance(*given, **named)

    monkeypatch.setattr(loop, "advance", compiling)
    monkeypatch.setattr(planning, "PATIENCE", 0.0)
    plan = dmft.plan(TANH, **SMALL)
    assert len(calls) == 2
    assert plan.seconds < 0.25 * plan.steps
    assert plan.compile_seconds > 0.25


def test_runs_with_a_checkpoint_go_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "SIDE_BY_SIDE", ("cpu",))
    settings = {"particles": 64, "scrambles": 4}
    assert dmft.plan(TANH, **settings).together == 4
    assert dmft.plan(TANH, **settings, checkpoint=tmp_path / "run.npz").together == 1


def test_refusals_are_those_of_the_computation():
    for of, arguments, error in [
        ("solve", {"memory_limit": 10**4}, dmft.errors.MemoryEstimateError),
        ("solve", {"particles": 100}, ValueError),
        ("fluctuations", {"mode": "exact"}, ValueError),
        ("neurons", {"samples": [7]}, ValueError),
    ]:
        with pytest.raises(error) as planned:
            dmft.plan(TANH, of, **arguments)
        with pytest.raises(error) as done:
            getattr(dmft, of)(TANH, **arguments)
        assert str(planned.value) == str(done.value)
    with pytest.raises(TypeError, match=r"dmft\.solve does not take these arguments: .*'draws'"):
        dmft.plan(TANH, draws=4)
    with pytest.raises(ValueError, match="of='sweep' is unknown"):
        dmft.plan(TANH, "sweep")


def test_a_plan_is_plain():
    plan = dmft.plan(TANH, **SMALL)
    assert {type(value) for value in dataclasses.asdict(plan).values()} <= {str, int, float}


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "problem.json").write_text(TANH.to_json())
    out = tmp_path / "folder" / "limit.nc"
    numerics = "--particles 64 --scrambles 2 --dry-run --progress never"
    assert main(["solve", "--problem", str(tmp_path / "problem.json"), *numerics.split(), "--out", str(out)]) == 0
    assert "64 particles, 2 scrambles" in capsys.readouterr().out
    assert not out.parent.exists()


# ---- progress --------------------------------------------------------------------------------------------------------


def test_lines_of_long_work_only(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    with progress.progress_bar(1000, "theory", "step", None) as bar:
        for _ in range(1000):
            clock[0] += 1.0
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "theory: 30 of 1,000 steps after 30 s, about 16 min left"
    assert [line.split()[1] for line in lines] == ["30", "60", "120", "240", "480", "960"]
    for show in (False, None):
        with progress.progress_bar(10, "theory", "step", show) as bar:
            bar.update(10)
    assert capsys.readouterr().err == ""


def test_time_left_is_free_of_compilation(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    with progress.progress_bar(34, "theory", "step", None) as bar:
        for seconds in (51.0, *[60.0] * 3):  # the first step after a compilation of unknown length
            clock[0] += seconds
            bar.update(1)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "theory: 1 of 34 steps after 51 s"
    assert second == "theory: 2 of 34 steps after 1.9 min, about 32 min left"


def test_a_bar_in_notebooks_with_and_without_widgets(monkeypatch, capsys):
    class ZMQInteractiveShell:
        pass

    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=ZMQInteractiveShell))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with progress.progress_bar(10, "theory", "step", None) as bar:
        bar.update(10)
    assert "10/10" in capsys.readouterr().err
