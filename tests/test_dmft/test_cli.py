"""The command line, called in the process."""

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import warnings
from functools import cache

import numpy as np
import pytest
import xarray as xr
from sklearn import datasets

import dmft
from dmft.__main__ import main
from dmft.command import groups
from dmft.command import options as cli
from dmft.specs.descriptions import NETWORKS, TRAININGS
from dmft.text import with_error
from finite_nets.__main__ import sweep_options

TASK = "--source digits --classes 3 8 --n-train 4 --n-test 2"
PROBLEM = f"{TASK} --depth 2 --gamma0 1.5 --learning-rate 0.5 --steps 3"
NUMERICS = "--particles 64 --scrambles 2"


@pytest.fixture(autouse=True, scope="module")
def digits_are_read_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", cache(datasets.load_digits))
        yield


def run(text, *more):
    return main([*text.split(), *map(str, more)])


def problem_of(folder, text):
    """The problem that options describe, by way of the file that `problem` writes."""
    out = folder / "problem.json"
    assert run(f"problem {text}", "--out", out, "--overwrite") == 0
    return dmft.Problem.from_json(out.read_text())


@pytest.fixture(scope="module")
def expected():
    """What PROBLEM says, in Python."""
    task = dmft.load_task("digits", classes=(3, 8), n_train=4, n_test=2)
    return dmft.Problem(dmft.MLP(2, gamma0=1.5), task, dmft.GradientDescent(0.5, 3))


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """File and standard output of `solve` on PROBLEM."""
    out, text = tmp_path_factory.mktemp("cli") / "new" / "limit.nc", io.StringIO()
    with contextlib.redirect_stdout(text):
        assert run(f"solve {PROBLEM} {NUMERICS}", "--out", out) == 0
    return out, text.getvalue()


# ---- solve -----------------------------------------------------------------------------------------------------------


def test_solve_writes_what_the_function_returns(solved, expected):
    stored, ours = dmft.load(solved[0]), dmft.solve(expected, particles=64, scrambles=2)
    xr.testing.assert_equal(stored, ours)  # exactly: the same computation
    settings = ("problem", "problem_id", "particles", "scrambles", "seed", "tolerance", "dtype")
    assert {name: stored.attrs[name] for name in settings} == {name: ours.attrs[name] for name in settings}
    other = dmft.solve(expected, particles=64, scrambles=2, seed=1)
    with pytest.raises(AssertionError):
        xr.testing.assert_equal(stored, other)


def test_summary_holds_the_numbers_of_the_result(solved):
    stored, text = dmft.load(solved[0]), solved[1]
    assert stored.attrs["problem_id"] in text
    assert "MLP(" in text
    assert "tanh(1)" in text
    assert "GradientDescent(" in text
    assert "n_train=4" in text
    assert re.search(r"directions +\d+\n", text)
    assert re.search(r"memory_estimate +[\d.]+ ([MG]iB|bytes)", text)
    assert re.search(r"[\d.]+ s; written to ", text)
    rows = [line for line in text.splitlines() if re.match(r" *\d+ +[\d.]+ ", line)]
    assert [int(row.split()[0]) for row in rows] == [0, 1, 2, 3]
    last = rows[-1].split("+-")[0].split()
    # the table shows two digits of the error, and values to that place
    assert abs(float(last[-1]) - float(stored["loss"][-1])) < float(stored["loss_se"][-1])
    assert abs(float(last[-1]) - float(stored["test_loss"][-1])) > float(stored["loss_se"][-1])
    relative = float(stored["prediction_se"].max() / abs(stored["prediction"]).max())
    shown = re.search(r"largest standard error of a prediction: ([\d.e-]+), ([\d.]+) %", text)
    assert float(shown[2]) / 100 == pytest.approx(relative, rel=0.05)  # two digits are shown


def test_progress_goes_to_standard_error(tmp_path, capfd):
    assert run(f"solve {PROBLEM} {NUMERICS} --progress always", "--out", tmp_path / "a.nc") == 0
    captured = capfd.readouterr()
    assert "100%" in captured.err
    assert "100%" not in captured.out


def test_problem_file_gives_the_same_result(tmp_path, solved, expected):
    described = problem_of(tmp_path, PROBLEM)
    assert described == expected
    assert described.problem_id == expected.problem_id
    assert problem_of(tmp_path, PROBLEM.replace("1.5", "1.25")).problem_id != expected.problem_id
    problem_of(tmp_path, PROBLEM)
    out = tmp_path / "limit.nc"
    assert run(f"solve {NUMERICS}", "--problem", tmp_path / "problem.json", "--out", out) == 0
    xr.testing.assert_equal(dmft.load(out), dmft.load(solved[0]))  # exactly: the same computation


@pytest.mark.slow
def test_steps_to_record(tmp_path):
    for options, steps in (("--every 2", [0, 2, 3]), ("--save-steps 3 1", [1, 3]), ("--every 9", [0, 3])):
        out = tmp_path / "limit.nc"
        assert run(f"solve {PROBLEM} {NUMERICS} {options} --overwrite", "--out", out) == 0
        assert dmft.load(out)["step"].values.tolist() == steps


def test_a_result_is_not_replaced_unless_asked_to(tmp_path, capsys):
    out = tmp_path / "limit.nc"
    out.write_text("precious")
    assert run(f"solve {PROBLEM} {NUMERICS}", "--out", out) == 2
    assert out.read_text() == "precious"
    assert "--overwrite" in capsys.readouterr().err
    assert run(f"solve {PROBLEM} {NUMERICS} --overwrite", "--out", out) == 0
    assert "loss" in dmft.load(out)


# ---- options to specs ------------------------------------------------------------------------------------------------


def test_networks(tmp_path):
    residual = "--network residual --depth 3 --branch-scale 0.5 --activation softplus --gain 2 --uncentered"
    rest = f"{TASK} --learning-rate 0.5 --steps 3"
    network = dmft.ResidualMLP(3, dmft.softplus(2.0), branch_scale=0.5, centered=False)
    assert problem_of(tmp_path, f"{rest} {residual}").network == network
    assert problem_of(tmp_path, f"{rest} --depth 1 --activation relu").network == dmft.MLP(1, dmft.relu())
    assert problem_of(tmp_path, f"{rest} --depth 1 --gain 0.8").network == dmft.MLP(1, dmft.tanh(0.8))
    assert problem_of(tmp_path, f"{rest} --depth 1 --network residual").network == dmft.ResidualMLP(1)


@pytest.mark.filterwarnings("ignore:The inputs are far from size one")  # raw pixels
def test_tasks(tmp_path):
    rest = "--source digits --depth 1 --learning-rate 0.5 --steps 3"
    several = problem_of(tmp_path, f"{rest} --classes 1 2 3 --n-train 6 --data-seed 4 --normalize none")
    assert several.task == dmft.load_task("digits", classes=(1, 2, 3), n_train=6, seed=4, normalize=None)
    assert several.task != dmft.load_task("digits", classes=(1, 2, 3), n_train=6, seed=0, normalize=None)
    assert several.task != dmft.load_task("digits", classes=(1, 2, 3), n_train=6, seed=4)
    two = problem_of(tmp_path, f"{rest} --classes 1 2 --n-train 4 --one-hot --loss cross_entropy --normalize standard")
    assert two.task == dmft.load_task("digits", classes=(1, 2), n_train=4, one_hot=True, normalize="standard")
    assert two.loss == "cross_entropy"


def test_a_file_of_arrays_with_negative_labels(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((6, 3)), y=[-1, 1, 0, -1, 1, 0])
    options = "--classes -1 1 --n-train 3 --depth 1 --learning-rate 0.5 --steps 3"
    found = problem_of(tmp_path, f"--source {tmp_path / 'data.npz'} {options}")
    assert found.task == dmft.load_task(tmp_path / "data.npz", classes=(-1, 1), n_train=3)


def test_trainings(tmp_path):
    rest = f"{TASK} --depth 1 --uncentered"

    def training(text):
        return problem_of(tmp_path, f"{rest} {text}").training

    assert training("--learning-rate 1 .5 --steps 2 --momentum .9 --weight-decay .1") == dmft.GradientDescent(
        (1.0, 0.5), 2, momentum=0.9, weight_decay=0.1
    )
    batches = "--learning-rate 1 --steps 5 --batch-size 2 --observe test"
    for options, seed in ((batches, 0), (f"{batches} --batch-seed 7", 7)):
        expected = dmft.GradientDescent(1.0, 5, batches=dmft.random_batches(4, 2, 5, seed=seed), observe="test")
        assert training(options) == expected
        assert expected != dmft.GradientDescent(1.0, 5, batches=dmft.random_batches(4, 2, 5, seed=1), observe="test")
    flow = "--training flow --learning-rate 2"
    assert training(f"{flow} --step-size .1 --steps 4 --scheme euler") == dmft.GradientFlow(2.0, 0.1, 4, "euler")
    assert training(f"{flow} --step-size .1 .2 .4") == dmft.GradientFlow(2.0, (0.1, 0.2, 0.4))


def options_of(make):
    """The fields of a group, by name."""
    return {part.name: part for part in dataclasses.fields(make())}


def test_every_field_of_a_spec_has_its_option():
    groups = (cli._network_options, cli._task_options, cli._training_options)
    options = {name for group in groups for name in options_of(group)}
    renamed = {"centered": "uncentered", "batches": "batch_size", "seed": "data_seed", "balanced": "unbalanced"}
    renamed |= {"flatten": "images", "nesterov": "plain_momentum"}
    specs = (*NETWORKS.values(), *TRAININGS.values(), dmft.Activation)
    names = {part.name for spec in specs for part in dataclasses.fields(spec)}
    names -= {"name", "formula", "derivative", "own_kinks"}  # of an activation: formulas of one's own need Python
    names |= set(inspect.signature(dmft.load_task).parameters)
    assert {renamed.get(name, name) for name in names} <= options


def test_names_of_options_are_taken_once():
    network, training = (make().owners for make in (cli._network_options, cli._training_options))
    assert not set(network) & set(training)
    others = {name for make in (cli._task_options, cli._numerics_options, sweep_options) for name in options_of(make)}
    assert not (set(network) | set(training)) & others
    assert others <= {*cli._taken("network", []), *cli.COMMANDS, "unbalanced", "images"}


def test_numerics_are_those_of_solve():
    parameters = inspect.signature(dmft.solve).parameters
    assert set(options_of(cli._numerics_options)) == set(parameters) - {"problem"} | {"every"}
    read = groups.arguments(groups.declared("dmft.drivers.solve", "solve"))
    assert {name: one.default for name, one in read.items()} == {
        name: dataclasses.MISSING if one.default is one.empty else one.default for name, one in parameters.items()
    }
    assert read["scrambles"].text.startswith("independent repetitions")
    assert cli._numerics_options()().values("solve") == {}


def test_only_numerics_that_are_typed_are_passed_on():
    chosen = cli._numerics_options()(
        tolerance="1e-3", every="2", memory_limit="1.5 GiB", progress="never", observables=("loss",)
    )
    assert chosen.values("solve", last=5) == {
        "tolerance": 1e-3,
        "save_steps": (0, 2, 4, 5),
        "memory_limit": 3 * 2**29,
        "progress": False,
        "observables": ("loss",),
    }


@pytest.mark.parametrize(("text", "size"), [("4000", 4000), ("2KiB", 2048), ("500 MiB", 500 * 2**20), ("1TiB", 2**40)])
def test_sizes(text, size):
    assert cli._size({}, text) == size


# ---- architectures and trainings of one's own ------------------------------------------------------------------------

OWN = """
from dataclasses import dataclass
import dmft

@dataclass(frozen=True)
class Wavy(dmft.Architecture):
    \"\"\"A layer of waves (of its own kind).

    Args:
        waves: how many of them,
            a whole number; "few" or "many".
        gamma0: as of `MLP`.
    \"\"\"

    waves: int
    sort: str = "few"
    activation: dmft.Activation = dmft.softplus(2.0)
    gamma0: float = 1.0
    centered: bool = True
    smooth: bool = True
    seed: int = 0
    steps: int = 0
    slopes: float | tuple[float, ...] = 1.0
    rule: object = None

    def program(self, net, x):
        h = net.read("W0", x, to="neurons")
        return net.layer(h, net.activate(dmft.tanh(self.waves), h))
"""


@pytest.fixture
def wavy(tmp_path, monkeypatch):
    """A module of one's own, which can be imported and is not yet."""
    (tmp_path / "waves.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "OWN", {"network": {}, "training": {}})
    yield "--network waves:Wavy"
    sys.modules.pop("waves", None)


def test_an_architecture_of_ones_own_has_its_options(tmp_path, capsys, wavy):
    rest = f"{TASK} --learning-rate 0.5 --steps 3"
    found = problem_of(tmp_path, f"{rest} {wavy} --waves 2 --sort many --no-smooth --uncentered --slopes 1 2").network
    assert found == type(found)(2, "many", centered=False, smooth=False, slopes=(1.0, 2.0))
    assert found != type(found)(2, "many", centered=False, slopes=(1.0, 2.0))  # the twin
    both = problem_of(tmp_path, f"{rest} {wavy} --waves 2 --network-seed 4 --network-steps 6")
    assert (both.network.seed, both.network.steps, both.training.steps) == (4, 6, 3)
    scaled = problem_of(tmp_path, f"{rest} {wavy} --waves 2 --scale 3").network
    assert scaled.activation == dmft.Activation("softplus", 2.0, 3.0)  # of its own default
    problem_of(tmp_path, f"{rest} {wavy} --waves 2")
    assert run(f"solve {wavy} {NUMERICS}", "--problem", tmp_path / "problem.json", "--out", tmp_path / "limit.nc") == 0
    capsys.readouterr()
    for typed, message in (
        (f"{rest} {wavy}", "--waves is missing; a problem needs --waves, --source"),
        (f"{rest} --depth 1 --waves 2", "--waves does not go with --network mlp; leave it out, or take --network wav"),
        (f"{rest} {wavy} --waves 2 --depth 1", "--depth does not go with --network waves:Wavy"),
        (f"{rest} --network waves:Lost", "waves has no dataclass Lost"),
        (f"{rest} --network wafes:Wavy", "cannot be imported (No module named 'wafes'); start where"),
        (f"{rest} --network wavy", "--network 'wavy' is unknown; choose one of mlp, cnn, residual"),
    ):
        assert run(f"problem {typed}", "--out", tmp_path / "other.json") == 2, typed
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("wavy")
def test_what_is_registered_has_its_options(monkeypatch, tmp_path):
    assert "waves" not in options_of(cli._network_options)
    monkeypatch.setitem(NETWORKS, "Wavy", importlib.import_module("waves").Wavy)
    made = options_of(cli._network_options)
    # what is no text, number or truth value cannot be typed
    assert {"waves", "sort", "no_smooth", "slopes"} <= set(made)
    assert not {"rule", "smooth"} & set(made)
    assert problem_of(tmp_path, f"{PROBLEM.replace('--depth 2', '')} --network wavy --waves 2").network.waves == 2


def test_help_tells_of_an_architecture_of_ones_own(wavy, capsys):
    told = help_of(capsys, "problem", *wavy.split())
    assert "--waves INT Of waves:Wavy: how many of them, a whole number" in told
    assert "(required for waves:Wavy)" in told
    assert "waves:Wavy: A layer of waves; MODULE:CLASS: one of your own" in told


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (f"{TASK} --learning-rate 1", "--depth and --steps are missing; a problem needs --depth, --source, --n-train"),
        (f"{TASK} --depth 1 --training flow --learning-rate 1 --steps 3", "--step-size is missing"),
        (f"{PROBLEM} --steps 0", "steps=0 is too small"),
        (f"{PROBLEM} --steps 2.5", "--steps '2.5' is not a whole number"),
        (f"{PROBLEM} --learning-rate 1 fast 1", "--learning-rate 'fast' is not a number"),
        (f"{PROBLEM} --particles many", "--particles 'many' is not a whole number"),
        (f"{TASK} --depth 1 --training flow --learning-rate 1 --step-size 1", "--steps is missing; a problem needs"),
        (
            f"{PROBLEM} --network cnn --kernel-size 3",
            "flatten=False). (On the command line flatten=False is --images.)",
        ),
        (
            f"{PROBLEM} --network mpl",
            "--network 'mpl' is unknown; choose one of mlp, cnn, residual, residual-cnn, transformer, or a class of your",
        ),
        (f"{PROBLEM} --learning-rate -1", "learning_rate=-1.0 must be positive"),
        (f"{PROBLEM} --activation tang", "activation 'tang' is unknown; choose one of tanh"),
        (f"{PROBLEM} --loss cross_entropy", 'For targets -1 and +1 take loss="logistic"'),
        (f"{PROBLEM} --classes 3 11", "class 11 does not occur"),
        (f"{PROBLEM} --source nowhere", "'nowhere' is neither one of acsf1"),
        (f"{PROBLEM} --branch-scale 1", "--branch-scale does not go with --network mlp"),
        (f"{PROBLEM} --step-size 1 --scheme euler", "--step-size and --scheme do not go with --training descent"),
        (f"{PROBLEM} --training flow --step-size 1 --momentum 0", "--momentum does not go with --training flow"),
        (f"{PROBLEM} --training flow --step-size 1 --learning-rate 1 1 1", "vary --step-size instead"),
        (f"{PROBLEM} --batch-seed 0", "--batch-seed does nothing without --batch-size"),
        (f"{PROBLEM} --batch-size 5", "size=5 is more than the n_train=4 samples"),
        (f"{PROBLEM} --batch-size 5", "take a smaller batch. (On the command line size is --batch-size.)"),
        (f"{PROBLEM} --batch-size 2 --batch-seed -1", "seed=-1 is too small; it must be at least 0. (On the command"),
        (f"{PROBLEM} --batch-size 2 --batch-seed -1", "seed is --batch-seed.)"),
        (f"{PROBLEM} --data-seed -1", "(On the command line seed is --data-seed.)"),
        (f"{PROBLEM} --particles 100", "particles=100 is not a power of two"),
        (f"{PROBLEM} --every 0", "--every 0 must be at least 1"),
        (f"{PROBLEM} --every 2 --save-steps 1", "give one of them"),
        (f"{PROBLEM} --save-steps 4", "this problem has steps 0..3"),
        (f"{PROBLEM} --memory-limit 8GB", "--memory-limit '8GB' is not a size"),
        (f"{PROBLEM} --device tpu", "tpu"),
        (f"{PROBLEM} --problem nothing.json", "--depth and --gamma0 do not go with --problem"),
        ("--problem nothing.json", "`python -m dmft problem` writes one"),
    ],
)
def test_bad_input_says_what_is_wrong_and_nothing_is_written(tmp_path, capsys, options, message):
    out = tmp_path / "limit.nc"
    assert run(f"solve {options}", "--out", out) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON, or cut short"),
        ("no JSON", "is not JSON, or cut short (Expecting value"),
        ("{}", "format None"),
        ("[1]", "format 'list'"),
        ('{"format": 1}', "lacks network, training, loss, task"),
        ('{"format": 1, "network": {}, "training": {}, "loss": "squared", "task": 3}', "lacks task"),
        ('{"format": 1, "network": {}, "training": {}, "loss": "squared", "task": {}}', "lacks task.sha256"),
    ],
)
def test_a_file_that_is_no_problem(tmp_path, capsys, text, message):
    path = tmp_path / "problem.json"
    path.write_text(text)
    assert run("solve", "--problem", path, "--out", tmp_path / "limit.nc") == 2
    assert message in capsys.readouterr().err


def test_a_problem_without_its_data(tmp_path, capsys, expected):
    path = tmp_path / "problem.json"
    path.write_text(expected.to_json(arrays=False))
    assert run("solve", "--problem", path, "--out", tmp_path / "limit.nc") == 2
    assert "holds no data" in capsys.readouterr().err


def test_out_is_a_folder(tmp_path, capsys):
    assert run(f"solve {PROBLEM} --overwrite", "--out", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "--dept", "3", "--out", "x.nc"], "--dept"),
        (["solve", *PROBLEM.split()], "--out"),
        (["solv"], "solve"),
        ([], "solve"),
    ],
)
def test_options_that_cannot_be_read(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_code:
        main(arguments)
    assert exit_code.value.code == 2
    assert message in capsys.readouterr().err


def test_divergence_has_its_own_exit_code(tmp_path, capsys):
    out = tmp_path / "limit.nc"
    diverging = f"solve {PROBLEM} {NUMERICS} --learning-rate 1e9"
    assert run(diverging, "--out", out) == 3
    assert "diverges" in capsys.readouterr().err
    assert not out.exists()


def test_too_little_memory_has_its_own_exit_code(tmp_path, capsys):
    out = tmp_path / "limit.nc"
    assert run(f"solve {PROBLEM} {NUMERICS} --memory-limit 1KiB", "--out", out) == 4
    assert "is allowed by memory_limit" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("error", [RuntimeError("x"), ArithmeticError("x"), ValueError("x"), TypeError("x")])
def test_mistakes_of_the_library_are_not_taken_for_bad_input(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(dmft, "solve", fail)
    with pytest.raises(type(error)):
        run(f"solve {PROBLEM}", "--out", tmp_path / "limit.nc")


@pytest.mark.parametrize(
    "call", [lambda: np.ones(2) + np.ones(3), lambda: dmft.specs.parameterization.input_scale("x")]
)
def test_an_error_that_the_library_did_not_raise_keeps_its_traceback(tmp_path, monkeypatch, call):
    monkeypatch.setattr(dmft, "solve", lambda *_, **__: call())
    with pytest.raises((ValueError, TypeError)):
        run(f"solve {PROBLEM}", "--out", tmp_path / "limit.nc")
    monkeypatch.setattr(dmft, "solve", lambda *_, **__: dmft.MLP(0))  # its message is for the user
    assert run(f"solve {PROBLEM}", "--out", tmp_path / "limit.nc") == 2


def test_warnings_are_one_line(tmp_path, capsys, monkeypatch, expected):
    result = dmft.solve(expected, particles=64, scrambles=2)

    def warn(*_, **__):
        warnings.warn("too few particles", stacklevel=2)
        return result

    monkeypatch.setattr(dmft, "solve", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run(f"solve {PROBLEM}", "--out", tmp_path / "limit.nc") == 0
    assert capsys.readouterr().err == "warning: too few particles\n"


# ---- describe --------------------------------------------------------------------------------------------------------


def test_describe_says_what_solve_said(solved, capsys):
    assert run("describe", solved[0]) == 0
    described, said = capsys.readouterr().out.strip(), solved[1]
    assert said.strip().startswith(described)
    assert "kind" in described
    assert "feature_kernel" in described


def test_describe_other_files(tmp_path, capsys):
    assert run("describe", tmp_path / "nothing.nc") == 2
    assert "is not a file" in capsys.readouterr().err
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    assert run("describe", tmp_path / "other.nc") == 2
    assert "other.nc is not a result of this library: it names neither" in capsys.readouterr().err
    (tmp_path / "cut.nc").write_bytes((tmp_path / "other.nc").read_bytes()[:3000])
    assert run("describe", tmp_path / "cut.nc") == 2
    assert re.search(r"cut.nc cannot be read as a NetCDF file .* or is damaged", capsys.readouterr().err)


def test_describe_fluctuations_and_batches(tmp_path, capsys):
    task = dmft.Task(np.eye(2), [-1, 1])
    training = dmft.GradientDescent(0.1, 9, batches=dmft.random_batches(2, 1, 9))
    problem = dmft.Problem(dmft.MLP(1), task, training)
    values = {f"loss_{name}{se}": np.arange(10.0) + 1 for name in ("variance", "bias") for se in ("", "_se")}
    attrs = {"producer": "test", "dtype": "float64", "device": "cpu", "seed": 0}
    stored = dmft.schema.build("fluctuations", problem, values, steps=np.arange(10), attrs=attrs)
    assert run("describe", dmft.save(stored, tmp_path / "fluctuations.nc")) == 0
    text = capsys.readouterr().out
    assert "batches=9 x 1 entries" in text
    assert "loss_variance" in text
    assert "10 +- 10" in text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.123456, 0.0123, "0.123 +- 0.012"),
        (12.3456, 0.5, "12.35 +- 0.50"),
        (0.5, 0.0, "0.5"),
        (0.5, float("nan"), "0.5"),
        (0.5, 1e-17, "0.5 +- 1.0e-17"),
        (12345.6, 1234.0, "12300 +- 1200"),
        (17637.9618, 3.2, "17638.0 +- 3.2"),
        (-0.5, 0.0996, "-0.50 +- 0.10"),
        (0.1, 9.97, "0 +- 10"),
        (1.23456e-7, 1.23e-10, "(1.2346 +- 0.0012)e-07"),
        (0.0, 1e-12, "(0.0 +- 1.0)e-12"),
        (1e12, 3e8, "(1.00000 +- 0.00030)e+12"),
        (float("inf"), 1.0, "inf"),
    ],
)
def test_values_are_shown_to_the_second_digit_of_their_error(value, error, text):
    assert with_error(value, error) == text


# ---- help ------------------------------------------------------------------------------------------------------------


def help_of(capsys, *commands):
    with pytest.raises(SystemExit) as exit_code:
        main([*commands, "--help"])
    assert exit_code.value.code == 0
    return re.sub(r"[│\s]+", " ", capsys.readouterr().out)


def test_help(capsys):
    overview = help_of(capsys)
    assert all(word in overview for word in ("solve", "describe", "problem", "Exit codes"))
    solve = help_of(capsys, "solve")
    made = (cli._network_options, cli._task_options, cli._training_options, cli._numerics_options)
    for option in (name for group in made for name in options_of(group)):
        assert f"--{option.replace('_', '-')}" in solve
    assert "--out FILE.nc" in solve
    assert "--problem FILE.json" in solve
    assert "{squared,logistic,hinge,cross_entropy}" in solve
    assert "(default: 4096)" in solve
    assert "default: None" not in solve
    assert "--particles" not in help_of(capsys, "problem")


def test_help_says_what_is_typed(capsys):
    told = help_of(capsys, "problem")
    for said in (
        '--readout {mean,last,"every position"}',  # spaces too
        "adam: Adam, with decoupled weight decay; rmsprop: RMSprop;",
        "signdescent: Sign descent, Q = sign(G), with sign(0) = 0;",
        "Of muon: momentum that does not look ahead (not Nesterov's).",
        '--layout {image,flat} "image": keep the positions of images, as --images does; "flat": vectors, the default.',
        "0 1 ... L-1 leaves random features with a trained readout.",
        '"none": raw. (default: sphere)',
        "value at which entries of G are clipped; left out for none.",
    ):
        assert said in told
    for python in ("flatten=False", "range(L)", "None", "Of muon: of Muon"):
        assert python not in told


def test_as_a_module(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.eye(3), y=[1, -1, 1])
    command = ["problem", "--source", tmp_path / "x.npz", "--n-train", "2", "--out", tmp_path / "p.json"]
    failed = subprocess.run([sys.executable, "-m", "dmft", *map(str, command)], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: --depth, --learning-rate and --steps are missing")
    assert run("", *command, "--depth", "1", "--learning-rate", "1", "--steps", "2") == 0
    assert json.loads((tmp_path / "p.json").read_text())["network"]["depth"] == 1


@pytest.mark.parametrize(
    ("command", "needed", "heavy"),
    [
        ("finite_nets sweep --help", {"finite_nets", "tyro"}, {"jax", "torch"}),
        ("dmft solve --help", {"dmft.specs", "tyro"}, {"jax", "torch", "xarray"}),
        ("figures --list", {"figures.needs"}, {"jax", "torch", "matplotlib", "figures.loss_and_predictions"}),
    ],
)
def test_a_command_line_loads_little_and_ends_without_a_word_when_its_reader_does(command, needed, heavy):
    """`| head`, at its fastest: the pipe is closed before anything is written."""
    reads, writes = os.pipe()
    os.close(reads)
    with_imports = [sys.executable, "-X", "importtime", "-m", *command.split()]
    done = subprocess.run(with_imports, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    told = [line.partition("import time:") for line in done.stderr.splitlines()]
    assert (done.returncode, [said for said, *_ in told if said]) == (141, [])
    loaded = {line.rpartition("|")[2].strip() for *_, line in told}
    assert needed <= loaded
    assert not heavy & loaded
