"""Paths of every entry: ~ is expanded, addresses are refused; and `python -OO` works."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import comparisons
import dmft
import finite_nets
from conftest import ROOT
from dmft.__main__ import main
from dmft.running.paths import local
from figures import style
from figures.__main__ import main as figures_main
from finite_nets.__main__ import main as nets_main

X = np.random.default_rng(0).standard_normal((4, 6))
PROBLEM = dmft.Problem(dmft.MLP(1), dmft.Task(X, [1, -1, 1, -1]), dmft.GradientDescent(0.5, 2))


def test_local():
    assert local("~/a") == Path.home() / "a"
    assert local(Path("~") / "a") == Path.home() / "a"
    assert local("a/~b") == Path("a/~b")
    assert local("C:/a") == Path("C:/a")
    assert local("a/b:/c") == Path("a/b:/c")
    for address in ("s3://bucket/key", "file:///a", "gs://a", Path("s3://bucket/key"), "HTTPS://a.b"):
        with pytest.raises(ValueError, match=r"where='.*' is an address; .* Give a path"):
            local(address, "where")
    with pytest.raises(ValueError, match=r"path='~nobody-of-this-name/a': .* Give the path without ~"):
        local("~nobody-of-this-name/a")
    for wrong, error in (("", ValueError), ("a\0b", ValueError), (3, TypeError), (b"a", TypeError), (None, TypeError)):
        with pytest.raises(error, match="path="):
            local(wrong)


def entries(folder):
    """Calls that take a path, by name, with this folder in front; some write there."""
    ds, out = xr.Dataset({"a": 1.0}), f"{folder}/x"
    options = "--source digits --classes 3 8 --n-train 4 --depth 1 --learning-rate 1 --steps 1"
    results = {"theory": dmft.lazy_limit(PROBLEM)}
    return {
        "load_task": lambda: dmft.load_task(out + ".npz", n_train=2),
        "save": lambda: dmft.save(ds, out + ".nc"),
        "load": lambda: dmft.load(out + ".nc"),
        "checkpoint": lambda: dmft.solve(PROBLEM, particles=2, scrambles=2, save_steps=[0], checkpoint=out + ".ckpt"),
        "sweep": lambda: finite_nets.sweep(PROBLEM, [4], 2, store=out, progress=False),
        "open_store": lambda: finite_nets.open_store(out),
        "check_store": lambda: finite_nets.check_store(out),
        "report": lambda: comparisons.report(results, out + ".html"),
        "figure": lambda: style.save(style.panels(lambda *_: None, ds, (1, 1), (1, 1)), ds, out),
        "dmft --out": lambda: main([*f"problem {options} --overwrite --out".split(), out + ".json"]),
        "dmft --problem": lambda: main(f"solve --problem {out}.json --out {out}.nc".split()),
        "describe": lambda: main(["describe", out + ".nc"]),
        "finite_nets": lambda: nets_main(f"sweep {options} --widths 4 --seeds 2 --store {out}".split()),
        "figures --store": lambda: figures_main(["richness", "--store", out]),
        "figures --out": lambda: figures_main(["richness", "--out", out]),
    }


def test_addresses_are_refused_by_every_entry(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, call in entries("s3://bucket").items():
        try:
            code, said = call(), ""
        except ValueError as error:
            code, said = 2, str(error)
        except SystemExit as end:
            code, said = end.code, ""
        said += capsys.readouterr().err
        assert code == 2, name
        assert "is an address; this library reads and writes files of this machine" in said, name
    assert not list(tmp_path.iterdir())


def test_home_is_expanded_by_every_entry(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    np.savez(home / "x.npz", x=X, y=[1, -1, 1, -1])
    calls = entries("~")
    for name in ("load_task", "save", "load", "sweep", "open_store", "check_store", "report", "figure", "describe"):
        # of one result there is nothing to report, which is found after the path
        refusal = pytest.raises(ValueError, match="nothing to report") if name == "report" else nullcontext()
        with refusal:
            calls[name]()
    options = "problem --source ~/x.npz --n-train 4 --depth 1 --learning-rate 1 --steps 1 --out ~/x.json"
    assert main(options.split()) == 0
    assert {"x.nc", "x.png", "x", "x.json"} <= {path.name for path in home.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    capsys.readouterr()


COMMANDS = """
import runpy, sys
for command in {commands}:
    sys.argv = command.split()
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""
COMPUTED = """
import dmft, comparisons as c
c.report
t = dmft.Task([[1.0]], [1.0])
print(dmft.lazy_limit(dmft.Problem(dmft.MLP(1), t, dmft.GradientDescent(.5, 2))).sizes)
"""
HELP = ["dmft solve --help", "finite_nets sweep --help"]
SAID = ["number L of hidden layers", "Networks of each width"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (COMMANDS.format(commands=HELP), SAID),
        # all of JAX, Matplotlib and others is compiled for it; of these packages alone: `test_imports`
        pytest.param(
            COMMANDS.format(commands=["figures --list"]) + COMPUTED,
            ["Losses and predictions across widths", "'sample': 1"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["help", "results"],
)
def test_python_without_docstrings(code, said):
    out = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert out.returncode == 0, out.stderr
    assert all(words in out.stdout for words in said)
