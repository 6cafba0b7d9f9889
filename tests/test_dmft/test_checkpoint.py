"""A computation that is killed goes on from its file, and ends with the numbers of one that never was."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_programs
import xarray as xr
from tqdm import tqdm

import dmft
from conftest import ROOT, first_of
from dmft.drivers import run, solve
from dmft.engine import loop
from dmft.running.checkpoint import Checkpoint

SIZES = {"particles": 128, "scrambles": 3}


def some_task():
    rng = np.random.default_rng(1)
    return dmft.Task(rng.standard_normal((3, 6)), [1.0, -1.0, 1.0], rng.standard_normal((2, 6)), [1.0, -1.0])


PROBLEM = dmft.Problem(dmft.MLP(2, dmft.tanh(0.8), 1.3), some_task(), dmft.GradientDescent(0.8, 5, momentum=0.5))


def at_every_step(monkeypatch):
    """Checkpoints without a wait between them."""
    monkeypatch.setattr(solve, "Checkpoint", partial(Checkpoint, every=0.0))


def interrupted(monkeypatch, problem, path, at, **arguments):
    """A solve that ends at the `at`-th step (of all scrambles) whose state is kept."""
    at_every_step(monkeypatch)
    reached, seen = Checkpoint.reached, []

    def until(self, *state):
        reached(self, *state)
        seen.append(state[-1])
        if len(seen) == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "reached", until)
        with pytest.raises(KeyboardInterrupt):
            dmft.solve(problem, checkpoint=path, **arguments)
    return seen[-1]


def same(a, b):
    """Bit for bit."""
    return set(a.data_vars) == set(b.data_vars) and all(np.array_equal(a[n], b[n]) for n in a.data_vars)


# ---- killed ----------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from functools import partial
sys.path.insert(0, {root!r})
import dmft
from dmft.running import checkpoint
from dmft.drivers import solve
solve.Checkpoint = partial(checkpoint.Checkpoint, every=0.0)
replace, calls = os.replace, []
def kill(source, target):
    calls.append(source)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = kill
problem = dmft.Problem.from_json(sys.stdin.read())
dmft.solve(problem, checkpoint={path!r}, particles=128, scrambles=3)
"""


def test_a_killed_computation_goes_on_where_it_was(tmp_path, monkeypatch):
    """Killed in the second scramble, and while it writes: the file before is whole."""
    path = tmp_path / "folder" / "limit.npz"
    # five states and one end a scramble: the tenth writing follows step 3 of the second
    text = KILLED.format(root=str(ROOT), at=10, path=str(path))
    killed = subprocess.run(
        [sys.executable, "-c", text], input=PROBLEM.to_json().encode(), capture_output=True, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(path.parent.glob(".limit.npz.*.partial"))) == 1

    started, types, advance = [], set(), loop.advance

    def watched(network, history, rule, start, stop, *, form):
        started.append(start)
        types.add(tuple((a.shape, a.dtype, a.weak_type) for a in jax.tree.leaves((network, history))))
        return advance(network, history, rule, start, stop, form=form)

    monkeypatch.setattr(loop, "advance", watched)
    resumed = dmft.solve(PROBLEM, checkpoint=path, **SIZES)
    assert started == [3, 4, 5, *range(6)]
    assert len(types) == 1  # of what is read and of what is made: one compiled code
    assert not path.exists()
    started.clear()
    whole = dmft.solve(PROBLEM, **SIZES)
    assert started == [0, 0, 0]  # without a file to write, few steps are one call
    assert same(resumed, whole)
    assert resumed.attrs["directions"] == whole.attrs["directions"]
    assert not same(dmft.solve(PROBLEM, seed=1, **SIZES), whole)


# ---- every kind of state ---------------------------------------------------------------------------------------------

KINDS = {
    "residual, three outputs, everything kept": (
        dmft.Problem(
            dmft.ResidualMLP(3, dmft.relu()),
            dmft.Task(some_task().x_train, np.eye(3)),
            dmft.GradientDescent(0.3, 5, weight_decay=0.1),
            loss="cross_entropy",
        ),
        {"two_time": True, "save_steps": [0, 2, 5]},
    ),
    "carried output, single precision": (
        dmft.Problem(dmft.MLP(2, dmft.tanh(), 1.3), some_task(), dmft.GradientFlow(1.0, 0.5, 5, "euler")),
        {"dtype": "float32", "observables": ["prediction"]},
    ),
    "stream": (
        dmft.Problem(
            dmft.MLP(2, dmft.tanh(), 1.3, centered=False),
            some_task(),
            dmft.GradientDescent(0.5, 5, batches=((0,), (1,), (2,), (0,), (1,)), observe="test"),
        ),
        {"save_steps": [0, 3, 5]},
    ),
    "stream, forgetting": (
        dmft.Problem(
            dmft.MLP(2, dmft.tanh(), 1.3, centered=False),
            some_task(),
            dmft.GradientDescent(0.5, 5, batches=((0, 1), (1, 2), (2, 0), (0, 1), (1, 2)), observe="test"),
        ),
        {"directions": 8, "observables": ["prediction"]},
    ),
    "a number of the program": (test_programs.problem(1), {}),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("at", first_of([2, 8]))
def test_every_state_is_restored_bit_for_bit(name, at, tmp_path, monkeypatch):
    problem, arguments = KINDS[name]
    arguments, path = SIZES | arguments, tmp_path / "state.npz"
    # five states a scramble
    assert interrupted(monkeypatch, problem, path, at, **arguments) == 1 + (at - 1) % 5
    assert path.exists()
    resumed = dmft.solve(problem, checkpoint=path, **arguments)
    assert same(resumed, dmft.solve(problem, **arguments))


RUNS_MORE = {
    "how far half of the directions are": (*KINDS["stream, forgetting"], "truncation_error"),
    "how far few particles are from the limit": (
        dmft.Problem(PROBLEM.network, some_task(), dmft.GradientDescent(0.8, 5)),
        {"particles": 16, "observables": ["prediction", "feature_kernel"]},
        "distance_from_limit",
    ),
}


@pytest.mark.filterwarnings("ignore:the weight matrices met", "ignore:standard errors of")
@pytest.mark.parametrize("name", RUNS_MORE)
def test_what_second_runs_say_is_what_they_say_of_a_whole_computation(name, tmp_path, monkeypatch):
    """With a finished scramble in the file, of whose variables the first is compared."""
    problem, arguments, attribute = RUNS_MORE[name]
    arguments, path = SIZES | arguments, tmp_path / "state.npz"
    assert interrupted(monkeypatch, problem, path, 8, **arguments) == 3
    resumed, whole = dmft.solve(problem, checkpoint=path, **arguments), dmft.solve(problem, **arguments)
    assert same(resumed, whole)
    assert list(resumed) == list(whole)
    assert whole.attrs[f"{attribute}_of"] == "prediction"
    assert resumed.attrs | {"created": ""} == whole.attrs | {"created": ""}
    # it is of other scrambles another
    distances = [dmft.solve(problem, seed=1, **arguments).attrs[attribute], whole.attrs[attribute]]
    assert np.isfinite(distances).all()
    assert distances[0] != distances[1]


def test_weakly_typed_arrays_keep_their_shape(tmp_path):
    """And scalars their weak type, without which all would be compiled anew."""
    state = jnp.stack([jax.device_put(1.5)]), jax.device_put(2.5)
    assert all(leaf.weak_type for leaf in state)
    path = tmp_path / "state.npz"
    Checkpoint(path, {}, every=0.0).reached(state, 4, 1)
    (array, scalar), step = Checkpoint(path, {}).resumed(state, 4)
    assert (array.shape, array.item(), scalar.item(), step) == ((1,), 1.5, 2.5, 1)
    assert scalar.weak_type


def test_a_state_with_one_bit_more_gives_other_numbers(tmp_path, monkeypatch):
    """What is restored is used: the file's numbers, not ones made anew."""
    path = tmp_path / "state.npz"
    interrupted(monkeypatch, PROBLEM, path, 3, **SIZES)
    with np.load(path) as stored:
        arrays = dict(stored)
    first = "leaf/0"  # W^0
    arrays[first] = np.nextafter(arrays[first], np.inf)
    np.savez(path, **arrays)
    changed, whole = dmft.solve(PROBLEM, checkpoint=path, **SIZES), dmft.solve(PROBLEM, **SIZES)
    assert not same(changed, whole)
    xr.testing.assert_allclose(changed, whole, rtol=1e-9, atol=1e-9)  # rounding


@pytest.mark.slow
def test_normals_made_anew_are_restored_too(tmp_path, monkeypatch):
    """Their state holds a random key."""
    monkeypatch.setattr(run, "STORED_NORMALS", 0)
    path = tmp_path / "state.npz"
    interrupted(monkeypatch, PROBLEM, path, 7, **SIZES)
    resumed = dmft.solve(PROBLEM, checkpoint=path, **SIZES)
    assert same(resumed, dmft.solve(PROBLEM, **SIZES))


@pytest.mark.slow
def test_matrices_that_have_grown_are_restored_too(tmp_path, monkeypatch):
    """Room found too small in the first scramble: its attempt is thrown away, and what follows knows the larger one."""
    monkeypatch.setattr(run.Run, "first_capacity", 12)
    whole = dmft.solve(PROBLEM, **SIZES)
    for at in (1, 6, 14):
        path = tmp_path / f"{at}.npz"
        interrupted(monkeypatch, PROBLEM, path, at, **SIZES)
        assert same(dmft.solve(PROBLEM, checkpoint=path, **SIZES), whole)


def test_finished_scrambles_are_not_repeated(tmp_path, monkeypatch):
    """Between scrambles only moments are kept."""
    path, finished, add = tmp_path / "state.npz", [], Checkpoint.finished

    def second(self, *values):
        add(self, *values)
        finished.append(path.exists())
        if len(finished) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "finished", second)
        with pytest.raises(KeyboardInterrupt):
            dmft.solve(PROBLEM, checkpoint=path, **SIZES)
    assert finished == [True, True]
    with np.load(path) as stored:
        assert not [name for name in stored if name.startswith("leaf")]

    def counted(self, *values):
        finished.append(True)
        add(self, *values)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "finished", counted)
        resumed = dmft.solve(PROBLEM, checkpoint=path, **SIZES)
    assert len(finished) == 3
    assert same(resumed, dmft.solve(PROBLEM, **SIZES))
    assert not path.exists()


def test_the_bar_begins_where_the_file_ends(tmp_path, monkeypatch, capsys):
    path = tmp_path / "state.npz"
    assert interrupted(monkeypatch, PROBLEM, path, 9, **SIZES) == 4
    monkeypatch.setattr(solve, "progress_bar", lambda total, *rest: tqdm(total=total, mininterval=0, miniters=1))
    dmft.solve(PROBLEM, checkpoint=path, **SIZES)
    shown = {int(n) for n in re.findall(r"(\d+)/18", capsys.readouterr().err)}
    assert shown == {0, 6, *range(10, 19)}  # one scramble of six steps, then four steps of the second


# ---- when it is written ----------------------------------------------------------------------------------------------


def test_states_are_written_no_more_often_than_asked(tmp_path, monkeypatch):
    written, write = [], Checkpoint._write

    def counted(self, leaves):
        written.append(len(leaves))
        write(self, leaves)

    monkeypatch.setattr(Checkpoint, "_write", counted)
    dmft.solve(PROBLEM, checkpoint=tmp_path / "state.npz", **SIZES)
    assert written == [0, 0, 0]  # every minute: no state, the moments of each scramble
    at_every_step(monkeypatch)
    written.clear()
    dmft.solve(PROBLEM, checkpoint=str(tmp_path / "state.npz"), **SIZES)
    assert len(written) == 18
    assert written.count(0) == 3
    assert os.listdir(tmp_path) == []
    dmft.solve(PROBLEM, **SIZES)
    assert len(written) == 18  # without a path nothing is written


def test_a_failed_writing_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    interrupted(monkeypatch, PROBLEM, path, 4, **SIZES)
    before = path.read_bytes()

    def full(file, **_):
        file.write(b"half of it")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left"):
            dmft.solve(PROBLEM, checkpoint=path, **SIZES)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.npz"]
    assert same(dmft.solve(PROBLEM, checkpoint=path, **SIZES), dmft.solve(PROBLEM, **SIZES))


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_problem(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "state.npz"
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, PROBLEM, path, 2, **SIZES)
    return path


OTHER = dmft.Problem(PROBLEM.network, PROBLEM.task, dmft.GradientDescent(0.8, 5, momentum=0.4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": OTHER}, f"(problem_id: {PROBLEM.problem_id} there, {OTHER.problem_id} here)"),
        ({"seed": 1}, "(seed: 0 there, 1 here)"),
        ({"particles": 256, "scrambles": 4}, "(particles: 128 there, 256 here; scrambles: 3 there, 4 here)"),
        ({"tolerance": 1e-2}, "(tolerance: 0.003 there, 0.01 here)"),
        ({"save_steps": [0, 5]}, "(steps: [0, 1, 2, 3, 4, 5] there, [0, 5] here)"),
        ({"observables": ["loss"]}, "there, ['loss'] here)"),
        ({"two_time": True}, "(two_time: False there, True here)"),
        ({"dtype": "float32"}, "(dtype: float64 there, float32 here)"),
    ],
)  # fmt: skip
def test_a_file_of_another_computation_is_refused(changes, message, of_problem):
    before = of_problem.read_bytes()
    with pytest.raises(ValueError, match=re.escape(message) + ".* give another path, or remove it"):
        dmft.solve(**{"problem": PROBLEM, "checkpoint": of_problem} | SIZES | changes)
    assert of_problem.read_bytes() == before


def archive(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def array():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


GARBAGE = {
    "text": b"not a checkpoint",
    "an archive without a state": archive(mean=np.zeros(3)),
    "a state that is no JSON": archive(state=np.array("step 3")),
    "nothing": b"",
    "the beginning of an archive": archive(mean=np.zeros(3))[:100],
    "an array": array(),
    "a state of something else": archive(state=np.array("{}")),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(name, tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(GARBAGE[name])
    with pytest.raises(ValueError, match=r"state.npz is not a checkpoint \(.*give another path, or remove it"):
        dmft.solve(PROBLEM, checkpoint=path, **SIZES)
    assert path.read_bytes() == GARBAGE[name]


def misshapen(array):
    return array[..., None]


DAMAGES = {
    "no leaf": ("leaf/0", None, "it has no 'leaf/0'"),
    "a leaf of another shape": ("leaf/0", misshapen, r"leaf/0 is float64 \(.*\), expected float64 \(.*\)"),
    "a leaf of another type": ("leaf/0", np.float32, "leaf/0 is float32 .*, expected float64"),
    "no mean": ("mean/prediction", None, "it has no 'mean/prediction'"),
    "squares of another shape": (
        "squares/prediction",
        misshapen,
        r"squares/prediction is float64 \(6, 5, 1\), expect.*",
    ),
    "no squares": ("squares/loss", None, "it has no 'squares/loss'"),
    "no directions": ("directions", None, "it has no 'directions'"),
    "fewer leaves": ("leaves", lambda n: n - 1, r"it has \d+ arrays of a state, expected \d+"),
    "a step that is none": ("step", str, "'str' object cannot be interpreted as an integer"),
    "no fingerprint": ("fingerprint", repr, "'str' object is not a mapping"),
}


@pytest.fixture(scope="module")
def of_second_scramble(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "state.npz"
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, PROBLEM, path, 7, **SIZES)
    return path.read_bytes()


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_missing_or_misshapen_is_named(name, of_second_scramble, tmp_path):
    entry, change, message = DAMAGES[name]
    path, arrays = tmp_path / "state.npz", dict(np.load(io.BytesIO(of_second_scramble)))
    state = json.loads(str(arrays["state"]))
    where = arrays if entry in arrays else state
    old = where.pop(entry)
    if change is not None:
        where[entry] = change(old)
    np.savez(path, **arrays | {"state": np.array(json.dumps(state))})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"state.npz is not a checkpoint \({message}.*\); give another path"):
        dmft.solve(PROBLEM, checkpoint=path, **SIZES)
    assert path.read_bytes() == before


def test_bits_that_have_flipped_are_noticed_or_of_no_consequence(tmp_path):
    """Whatever NumPy and the archive raise of them."""
    path, state = tmp_path / "state.npz", (np.ones((2, 2)), np.zeros(3))
    whole = Checkpoint(path, {"of": 1}, every=0.0)
    whole.estimates.add({"loss": np.arange(2.0)}, 4, 3)
    whole.reached(tuple(map(jnp.asarray, state)), 4, 2)
    content, said = path.read_bytes(), []
    # what the archive says of its entries is at the end
    for i in range(content.index(b"PK\1\2"), len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x80 >> i % 8]) + content[i + 1 :])
        try:
            found = Checkpoint(path, {"of": 1})
        except ValueError as error:
            said.append(str(error))
            continue
        leaves, step = found.resumed(tuple(map(jnp.asarray, state)), 4)
        assert step == 2
        assert all(np.array_equal(a, b) for a, b in zip(leaves, state, strict=True))
        assert found.estimates.moments.mean["loss"].tolist() == [0.0, 1.0]
    assert len(said) > 100
    assert all("is not a checkpoint" in each for each in said)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        dmft.solve(PROBLEM, checkpoint=tmp_path, **SIZES)
