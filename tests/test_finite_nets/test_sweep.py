"""Sweeps into a store: the same numbers in any order and by any workers, nothing lost, nothing read that is not whole."""

import concurrent.futures
import contextlib
import dataclasses
import inspect
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import comparisons
import dmft
import finite_nets
import finite_nets.ensembles.runner
import finite_nets.sweeps.store
from comparisons.samples import prediction_covariance
from conftest import first_of, reference_problem
from dmft.errors import DivergenceError, MemoryEstimateError, SchemaError, StoreError
from dmft.running import memory
from dmft.specs.variations import differences
from finite_nets.__main__ import main, sweep_options
from finite_nets.device.precision import PRECISIONS
from finite_nets.ensembles.budget import Budget
from finite_nets.ensembles.ensemble import default_block
from finite_nets.ensembles.recording import Plan
from finite_nets.sweeps.executors import Outcome, run_all

PROBLEM = reference_problem()
RICHER = reference_problem(gamma0=2.0)
FEW = {"observables": ["prediction", "loss"], "save_steps": [0, 5, 10], "dtype": "float64"}
WIDTHS = [8, 12]


def swept(path, seeds=40, widths=WIDTHS, problems=PROBLEM, **arguments):
    return finite_nets.sweep(problems, widths, seeds, store=path, **{"block": 5, **FEW, **arguments})


def opened(path, **arguments):
    """What the store holds, without when and where it was made."""
    ds = finite_nets.open_store(path, **arguments)
    made = ("created", "store", "device")
    return ds.drop_attrs().assign_attrs({k: v for k, v in ds.attrs.items() if k not in made})


def same(a, b):
    xr.testing.assert_identical(a, b)  # bit for bit


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store made without interruption."""
    path = tmp_path_factory.mktemp("sweep") / "whole"
    swept(path)
    return path


# ---- what is stored --------------------------------------------------------------------------------------------------


def test_a_store_holds_what_train_ensemble_finds(whole):
    stored = finite_nets.open_store(whole)
    direct = finite_nets.train_ensemble(PROBLEM, widths=WIDTHS, seeds=40, keep="moments", block=5, **FEW)
    assert stored.attrs["kind"] == "moments"
    assert stored.sizes["block"] == 8
    assert stored.block_size.values.tolist() == [5, 5]
    for name in direct.data_vars:
        # products of batches of other sizes: rounding
        np.testing.assert_allclose(stored[name], direct[name], rtol=1e-12, atol=1e-14, err_msg=name)
    statistics = comparisons.statistics(stored)
    members = finite_nets.train_ensemble(PROBLEM, widths=WIDTHS, seeds=40, **FEW)
    np.testing.assert_allclose(statistics.prediction_seed_variance, members.prediction.var("seed", ddof=1), atol=1e-12)


def test_members_are_kept_on_request(tmp_path):
    summary = swept(tmp_path / "kept", 12, members=True, covariance=True, observables=None)
    assert summary.made == Outcome(6, 30, 0)  # whole blocks: 15 of each width
    kept = finite_nets.open_store(tmp_path / "kept", members=True)
    arguments = {k: v for k, v in FEW.items() if k != "observables"}
    direct = finite_nets.train_ensemble(PROBLEM, widths=WIDTHS, seeds=15, **arguments)
    assert kept.attrs["kind"] == "ensemble"
    for name in direct.data_vars:
        np.testing.assert_allclose(kept[name], direct[name], rtol=1e-12, atol=1e-14)
        assert kept[name].dtype == direct[name].dtype
    moments = finite_nets.open_store(tmp_path / "kept")
    np.testing.assert_allclose(_covariance(moments), _covariance_of_members(direct), atol=1e-12)
    # batches that cut through blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finite_nets.ensembles.runner.Runner, "at_once", lambda *_: 4)
        swept(tmp_path / "cut", 12, members=True, covariance=True, observables=None)
    xr.testing.assert_allclose(opened(tmp_path / "cut", members=True), opened(tmp_path / "kept", members=True))
    xr.testing.assert_allclose(opened(tmp_path / "cut"), opened(tmp_path / "kept"))


def test_what_is_recorded_on_request_is_stored_and_found_in_whatever_order_it_was_asked_for(tmp_path):
    names = ["prediction", "feature_kernel", "preactivation_kernel", "participation_ratio"]
    arguments = {"observables": names, "save_steps": [0, 5], "members": True}
    swept(tmp_path, 10, [8], **arguments)
    kept = finite_nets.open_store(tmp_path, members=True)
    direct = finite_nets.train_ensemble(
        PROBLEM, widths=[8], seeds=10, observables=names, save_steps=[0, 5], dtype="float64"
    )
    for name in names:
        np.testing.assert_allclose(kept[name], direct[name], rtol=1e-12, atol=1e-14)
    moments = finite_nets.open_store(tmp_path)
    pooled = (moments["count"] * moments.participation_ratio_mean).sum("block") / 10
    np.testing.assert_allclose(pooled, direct.participation_ratio.mean("seed"), rtol=1e-12)

    # as versions wrote it that sorted observables otherwise
    description = tmp_path / PROBLEM.problem_id / "zarr.json"
    content = json.loads(description.read_text())
    content["attributes"]["settings"]["observables"] = names[::-1]
    description.write_text(json.dumps(content))
    assert swept(tmp_path, 10, [8], **arguments).made.blocks == 0
    with pytest.raises(StoreError, match="with observables="):
        swept(tmp_path, 10, [8], **{**arguments, "observables": names[:3]})
    content["attributes"]["settings"]["observables"] = [*names, "of_ones_own"]
    description.write_text(json.dumps(content))
    with pytest.raises(SchemaError, match=r"\['of_ones_own'\] are not known in this process"):
        finite_nets.open_store(tmp_path)


def _covariance(moments):
    one = moments.prediction_mean.shape[2:]
    return np.stack([prediction_covariance(moments, i).reshape(*one, *one) for i in range(2)])


def _covariance_of_members(nets):
    one = nets.prediction.shape[2:]
    return np.stack([np.cov(f.reshape(len(f), -1), rowvar=False).reshape(*one, *one) for f in nets.prediction.values])


@pytest.mark.parametrize("at_once", [3, 7])
def test_numbers_do_not_depend_on_batches(tmp_path, monkeypatch, whole, at_once):
    monkeypatch.setattr(finite_nets.ensembles.runner.Runner, "at_once", lambda *_: at_once)
    swept(tmp_path / "store")
    found, expected = opened(tmp_path / "store"), opened(whole)
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-14)


def test_blocks_of_another_size_pool_to_the_same_moments(tmp_path, whole):
    swept(tmp_path / "store", block=8)
    ours, theirs = (comparisons.statistics(finite_nets.open_store(path)) for path in (tmp_path / "store", whole))
    for name in ("prediction_mean", "prediction_seed_variance", "loss_mean", "loss_seed_variance"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-11, atol=1e-14)


def test_one_store_for_many_problems(tmp_path):
    swept(tmp_path / "store", problems=[PROBLEM, RICHER])
    with pytest.raises(StoreError, match=r"holds 2 problems; give problem=, one of\n.*network.gamma0="):
        finite_nets.open_store(tmp_path / "store")
    assert finite_nets.problems(tmp_path / "store") == {p.problem_id: p for p in (PROBLEM, RICHER)}
    one, other = (finite_nets.open_store(tmp_path / "store", problem=p) for p in (PROBLEM, RICHER.problem_id))
    assert json.loads(one.attrs["problem"])["network"]["gamma0"] == 1.0
    assert json.loads(other.attrs["problem"])["network"]["gamma0"] == 2.0


def test_a_store_is_compared_with_the_limit(tmp_path):
    few = {"observables": ["prediction", "loss"], "save_steps": [0, 5, 10]}
    summary = finite_nets.sweep(PROBLEM, {32: 0, 64: 0}, {32: 1600, 64: 800}, store=tmp_path / "store", **few)
    assert summary.made.networks == 2400
    nets = finite_nets.open_store(tmp_path / "store")
    assert nets["count"].values.sum(axis=1).tolist() == [1600, 800]
    found = comparisons.compare(dmft.solve(PROBLEM, particles=512, scrambles=2, **few), nets)
    z = abs(found.prediction_z)
    # terms of order 1/N^2 beside the bias: z of the deviation itself is large at these widths
    assert found.prediction_variance_exponent == pytest.approx(-1, abs=0.15)
    assert np.isfinite(z).all()


# ---- executors -------------------------------------------------------------------------------------------------------


def test_shards_make_the_store_together(tmp_path, whole):
    for index in (2, 0, 1):
        summary = swept(tmp_path / "store", shard=(index, 3))
        assert summary.made.blocks in (5, 6)
    same(opened(tmp_path / "store"), opened(whole))
    assert swept(tmp_path / "store").made == Outcome()


def test_threads_of_an_executor(tmp_path, whole):
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        swept(tmp_path / "store", executor=executor)
    same(opened(tmp_path / "store"), opened(whole))


@pytest.mark.parametrize("devices", first_of([["cpu"], "auto"]), ids=str)
def test_a_pool_of_processes(tmp_path, whole, devices):
    swept(tmp_path / "store", executor="pool", devices=devices)
    same(opened(tmp_path / "store"), opened(whole))


def _dies_once(task, *_):
    """Kills its process the first time that anybody runs a task."""
    mark = Path(task) / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(1)


def _dies(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_work_of_a_dead_process_is_done_by_another(tmp_path):
    outcomes = []
    run_all(_dies_once, [str(tmp_path)] * 3, "pool", ["cpu", "cpu"], outcomes.append)
    assert outcomes == [Outcome(1)] * 3
    with pytest.raises(RuntimeError, match="the workers of 3 pools died before they finished a task"):
        run_all(_dies, [str(tmp_path)], "pool", ["cpu"], outcomes.append)


@pytest.mark.filterwarnings("default")  # what Dask and its event loops leave behind is theirs
@pytest.mark.slow
def test_dask_workers_finish_though_one_is_killed(tmp_path):
    """A real cluster of four processes, of which one is killed midway."""
    distributed = pytest.importorskip("distributed")
    # float32: batches of any size are the same bit for bit on a GPU too
    many = {"seeds": 400, "block": 4, "dtype": "float32"}
    swept(tmp_path / "whole", **many)
    with (
        distributed.LocalCluster(
            n_workers=4, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path / "dask"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        failures = []

        def run():
            try:
                swept(tmp_path / "store", executor=client, **many)
            except Exception as error:
                failures.append(error)

        sweeping = threading.Thread(target=run)
        sweeping.start()
        counts = tmp_path / "store" / PROBLEM.problem_id / "width_8" / "count" / "c"
        deadline = time.monotonic() + 120
        while not (counts.exists() and len(os.listdir(counts)) > 3) and time.monotonic() < deadline:
            time.sleep(0.02)
        done = len(os.listdir(counts))
        victim = next(iter(client.run(os.getpid).values()))
        os.kill(victim, signal.SIGKILL)
        sweeping.join(timeout=240)
        assert not sweeping.is_alive()
        assert not failures
        assert 3 < done < 100
    same(opened(tmp_path / "store"), opened(tmp_path / "whole"))


# ---- faults ----------------------------------------------------------------------------------------------------------

FORKING = """
import glob, os, random, signal, sys, time
import numpy, torch, zarr, xarray  # loaded before the forks, used after them
sys.path.insert(0, {tests!r})
import finite_nets.sweeps.sweep
import test_sweep_problem as t

def writer():
    pid = os.fork()
    if pid == 0:
        t.sweep(sys.argv[1])
        os._exit(0)
    return pid

def finished():
    return len(glob.glob(sys.argv[1] + "/*/width_*/count/c/*"))

for round in range({rounds}):
    before = finished()
    pids = [writer() for _ in range({writers})]
    if {kill}:
        time.sleep(random.Random(round).uniform(0.05, 0.25))
        while round % 2 and finished() == before:  # every other one among the blocks, however busy the machine
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        print(os.WIFSIGNALED(status), flush=True)
"""

SWEEP = """
import torch
import finite_nets
from conftest import reference_problem

def sweep(path):
    torch.set_num_threads(1)
    finite_nets.sweep(reference_problem(), [8, 12], 600, store=path, block=5, observables=["prediction", "loss"],
                      save_steps=[0, 5, 10], dtype="float64", devices=["cpu"])
"""


def forked(tmp_path, store, **arguments):
    (tmp_path / "test_sweep_problem.py").write_text(SWEEP)
    (tmp_path / "forking.py").write_text(FORKING.format(tests=str(tmp_path), **arguments))
    folders = [str(Path(__file__).parents[1]), str(tmp_path), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "forking.py"), str(store)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [line == "True" for line in done.stdout.split()]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store of 240 blocks made without interruption."""
    path = tmp_path_factory.mktemp("sweep") / "large"
    swept(path, 600, devices=["cpu"])
    return path


def test_killed_at_random_two_at_a_time_a_sweep_ends_as_if_it_had_not_been(tmp_path, large):
    path = tmp_path / "store"
    killed = forked(tmp_path, path, rounds=5, writers=2, kill=True)
    assert killed == [True] * 10
    found = finite_nets.open_store(path)
    left = 240 - int((found["count"] > 0).sum())
    assert 0 < left < 240
    assert finite_nets.check_store(path) == []
    # what is there is whole
    expected = finite_nets.open_store(large)
    for i in range(found.sizes["width"]):  # the second may not have been begun
        there = np.flatnonzero(found["count"].values[i] > 0)
        for name in expected.data_vars:
            np.testing.assert_array_equal(found[name].values[i, there], expected[name].values[i, there])
    assert swept(path, 600, devices=["cpu"]).made.blocks == left
    same(opened(path), opened(large))


@pytest.mark.slow
def test_writers_may_work_side_by_side(tmp_path, large):
    path = tmp_path / "store"
    assert forked(tmp_path, path, rounds=1, writers=2, kill=False) == [False] * 2
    assert finite_nets.check_store(path) == []
    same(opened(path), opened(large))


def test_a_sweep_is_extended_by_widths_and_seeds(tmp_path, whole):
    path = tmp_path / "store"
    assert swept(path, 20, [12]).made == Outcome(4, 20, 0)
    plan = finite_nets.plan_sweep(PROBLEM, WIDTHS, 40, store=path, **FEW)  # the block is the store's
    assert [(work.width, work.there, len(work.todo)) for work in plan.works] == [(8, 0, 8), (12, 4, 4)]
    swept(path)
    same(opened(path), opened(whole))


def mounted(folder, size):
    """A file system of that size, or none where we may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("no right to mount a small file system")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    mounted(folder, "300k")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_there(small_disk, whole):
    path = small_disk / "store"
    with pytest.raises(
        OSError, match=r"cannot be written to .*store \(No space left on device\)\. What was there is kept"
    ):
        swept(path)
    left = finite_nets.check_store(path)
    assert left == []
    found, expected = finite_nets.open_store(path), finite_nets.open_store(whole)
    there = np.flatnonzero(found["count"].values[0] > 0)
    assert len(there) > 0
    np.testing.assert_array_equal(found.prediction_mean.values[0, there], expected.prediction_mean.values[0, there])
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    swept(path)
    same(opened(path), opened(whole))


def test_a_store_that_cannot_be_written_to_is_named_before_any_work(small_disk, monkeypatch):
    path = small_disk / "store"
    swept(path, 10, [8])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    monkeypatch.setattr(finite_nets.ensembles.runner.Runner, "moments", lambda *_: pytest.fail("trained"))
    with pytest.raises(OSError, match=r"the store cannot be written to .* \(Read-only file system\)"):
        swept(path)
    assert finite_nets.open_store(path).sizes["block"] == 2


def chunk_of(path, name, block, width=8):
    folder = path / PROBLEM.problem_id / f"width_{width}" / name / "c" / str(block)
    return next(file for file in [folder, *folder.rglob("*")] if file.is_file())


@pytest.mark.parametrize("kept", [0, 0.9])
def test_a_truncated_chunk_is_detected_and_made_again(tmp_path, whole, kept, capsys):
    path = shutil.copytree(whole, tmp_path / "store")
    file = chunk_of(path, "prediction_m2", 3)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(StoreError, match=r"block 3 of prediction_m2 in .*width_8 is damaged: .* check .* --repair"):
        finite_nets.open_store(path)
    (problem,) = finite_nets.check_store(path)
    assert "block 3 of prediction_m2" in problem
    assert main(["check", str(path)]) == 2
    assert "1 damaged or left over; --repair takes these out" in capsys.readouterr().err
    assert main(["check", str(path), "--repair"]) == 0
    assert int((finite_nets.open_store(path)["count"] > 0).sum()) == 15
    assert swept(path).made.blocks == 1
    same(opened(path), opened(whole))
    assert main(["check", str(path)]) == 0


def test_a_changed_byte_and_a_lost_chunk_are_detected(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "store")
    file = chunk_of(path, "loss_mean", 0)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    chunk_of(path, "prediction_mean", 5, width=12).unlink()
    found = finite_nets.check_store(path, repair=True)
    assert len(found) == 2
    assert "block 0 of loss_mean" in found[0]
    assert re.search("block 5 of prediction_mean in .*width_12 is damaged: there is no such chunk", found[1])
    swept(path)
    same(opened(path), opened(whole))


def test_what_killed_writers_leave_is_no_part_of_the_store(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "store")
    group = path / PROBLEM.problem_id
    (group / ".new-123" / "count").mkdir(parents=True)
    partial = group / "width_8" / "count" / "c" / "7.abc.partial"
    partial.write_bytes(b"half")
    same(opened(path), opened(whole))
    assert finite_nets.check_store(path) == []  # somebody may be at it
    for left in (group / ".new-123", partial):
        os.utime(left, (0, 0))
    assert len(finite_nets.check_store(path, repair=True)) == 2
    assert not partial.exists()
    assert not (group / ".new-123").exists()


# ---- robustness ------------------------------------------------------------------------------------------------------


def test_out_of_memory_leads_to_smaller_batches(tmp_path, monkeypatch, whole):
    train, sizes = finite_nets.ensembles.runner.Runner._train_moments, []

    def limited(self, width, seeds, blocks):
        sizes.append(len(seeds))
        if len(seeds) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return train(self, width, seeds, blocks)

    monkeypatch.setattr(finite_nets.ensembles.runner.Runner, "_train_moments", limited)
    swept(tmp_path / "store")
    assert sizes[:5] == [40, 20, 10, 5, 5]
    for name, values in opened(whole).data_vars.items():
        np.testing.assert_allclose(opened(tmp_path / "store")[name], values, rtol=1e-12, atol=1e-14)

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(finite_nets.ensembles.runner.Runner, "_train_moments", never)
    with pytest.raises(
        MemoryEstimateError, match=r"one network of width \d+ does not fit in memory: CUDA out of memory"
    ):
        swept(tmp_path / "other")


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("shapes do not agree")

    monkeypatch.setattr(finite_nets.ensembles.runner.Runner, "_train_moments", fails)
    with pytest.raises(RuntimeError, match="shapes do not agree"):
        swept(tmp_path / "store")


def test_networks_that_diverge_are_counted_and_left_out(tmp_path):
    wild = dataclasses.replace(PROBLEM, network=dmft.MLP(2, dmft.relu()), training=dmft.GradientDescent(3.5, 10))
    summary = swept(tmp_path / "store", problems=wild, widths=[16])
    assert 0 < summary.made.diverged < 40
    assert f"of which {summary.made.diverged} diverged and do not count" in str(summary)
    with pytest.warns(UserWarning, match=rf"diverged and do not count: {summary.made.diverged} of width 16"):
        stored = finite_nets.open_store(tmp_path / "store")
    assert stored.attrs["diverged"] == summary.made.diverged == int(stored.diverged.sum())
    assert int(stored["count"].sum()) == 40 - summary.made.diverged
    with pytest.warns(UserWarning, match="networks of width 16 diverge"):
        members = finite_nets.train_ensemble(wild, widths=[16], seeds=40, **FEW)
    healthy = members.prediction.values[0][~members.diverged.values[0]]
    np.testing.assert_allclose(
        comparisons.statistics(stored).prediction_mean[0], healthy.mean(0), rtol=1e-9, atol=1e-12
    )
    # all of them: a result, too, of a sweep over rates
    hopeless = dataclasses.replace(wild, training=dmft.GradientDescent(500.0, 10))
    swept(tmp_path / "none", problems=hopeless, widths=[16])
    with pytest.warns(UserWarning, match="diverged and do not count: 40 of width 16"):
        none = finite_nets.open_store(tmp_path / "none")
    assert int(none["count"].sum()) == 0
    assert int(none.diverged.sum()) == 40
    with pytest.raises(ValueError, match=r"0 block\(s\) of width 16"):
        comparisons.statistics(none)
    with pytest.raises(DivergenceError, match="40 of 40 networks of width 16 diverge"):
        finite_nets.train_ensemble(hopeless, widths=[16], seeds=40, keep="moments", **FEW)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "float32"}, StoreError, "with dtype='float64', not 'float32'. Networks of one store are alike"),
        ({"seed": 1}, StoreError, "with seed=0, not 1."),
        ({"save_steps": [0, 10], "covariance": True}, StoreError, "with save_steps=[0, 5, 10], not [0, 10]; covariance=False, not True"),
        ({"block": 6}, StoreError, "holds width 8 in blocks of 5 networks, not 6; leave block out"),
        ({"block": 0}, ValueError, "block=0 is too small"),
        ({"problems": []}, TypeError, "must be a dmft.Problem, or a list of them"),
        ({"problems": [PROBLEM, PROBLEM]}, ValueError, "holds a problem twice"),
        ({"widths": [8, 8]}, ValueError, "widths=[8, 8] must hold different numbers"),
        ({"seeds": {8: 10}}, ValueError, "seeds names the widths [8], not [8, 12]"),
        ({"seeds": 0}, ValueError, "seeds of width 8=0 is too small"),
        ({"shard": (4, 4)}, ValueError, "shard=(4, 4) must be (i, n) with 0 <= i < n"),
        ({"shard": 3}, ValueError, "shard=3 is no pair (i, n)"),
        ({"executor": "threads"}, ValueError, "executor='threads' is unknown"),
        ({"executor": 4}, TypeError, "executor=4 has no method submit"),
        ({"devices": []}, ValueError, "devices is empty"),
        ({"devices": ["tpu"]}, ValueError, "device='tpu' is unknown"),
        ({"memory_limit": 10}, MemoryEstimateError, "one network of width 8 needs about"),
    ],
)  # fmt: skip
def test_refusals(whole, arguments, error, message):
    before = sorted(path for path in whole.rglob("*") if "count" in path.parts)
    with pytest.raises(error, match=re.escape(message)):
        swept(whole, **{"seeds": 50, **arguments})
    assert sorted(path for path in whole.rglob("*") if "count" in path.parts) == before


def test_stores_of_others_are_refused_with_the_difference(tmp_path, whole):
    with pytest.raises(FileNotFoundError, match="does not exist; expected a store written by finite_nets"):
        finite_nets.open_store(tmp_path / "nothing")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(StoreError, match="is not part of a store in the format Zarr 3"):
        swept(tmp_path / "notes")
    assert os.listdir(tmp_path / "notes") == ["a.txt"]
    with pytest.raises(StoreError, match=r"a\.txt is a file; a store is a folder"):
        swept(tmp_path / "notes" / "a.txt")
    for name, value, message in (
        ("schema", 7, "has schema 7; this version reads schema 1. Use the version that wrote it"),
        ("format", 2, "has format 2; this version reads format 1"),
        ("kind", "weather", "has kind 'weather'; this version reads kind 'finite_nets.sweep'"),
    ):
        path = shutil.copytree(whole, tmp_path / name)
        metadata = json.loads((path / "zarr.json").read_text())
        metadata["attributes"][name] = value
        (path / "zarr.json").write_text(json.dumps(metadata))
        for call in (finite_nets.open_store, swept, finite_nets.check_store):
            with pytest.raises(StoreError, match=re.escape(message)):
                call(path)
    with pytest.raises(
        StoreError,
        match=r"(?s)does not hold the problem .*\nThe first has network.gamma0=1.0, the one asked for network.gamma0=2.0",
    ):
        finite_nets.open_store(whole, problem=RICHER)
    with pytest.raises(StoreError, match="does not keep members; sweep with members=True"):
        finite_nets.open_store(whole, members=True)


def test_a_store_may_be_the_folder_one_is_in(tmp_path, monkeypatch, whole):
    (tmp_path / ".new-of-somebody").mkdir()  # who is making it at this moment
    monkeypatch.chdir(tmp_path)
    swept(".")
    monkeypatch.chdir(tmp_path.parent)
    same(opened(tmp_path), opened(whole))


def test_what_cannot_be_repaired_is_named_and_kept(tmp_path, whole, monkeypatch):
    def chunks(path):
        return sorted(file for file in path.rglob("*") if file.is_file() and "c" in file.parts)

    def broken(name, file, change):
        path = shutil.copytree(whole, tmp_path / name)
        change(path / PROBLEM.problem_id / file)
        return path

    def truncate(file):
        file.write_text(file.read_text()[:40])

    def flip(file):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))

    for name, file, change, message in (
        ("truncated", "width_8/loss_mean/zarr.json", truncate, "zarr.json is damaged"),
        ("lost", "width_8/loss_mean/zarr.json", Path.unlink, "has no zarr.json"),
        ("task", "task/x_train/c/0/0", flip, "does not hold a problem that this version reads: .*checksum"),
    ):
        path = broken(name, file, change)
        before = chunks(path)
        (found,) = finite_nets.check_store(path, repair=True)
        assert re.search(message, found)
        assert "no repair" in found
        assert chunks(path) == before
        with pytest.raises(StoreError, match=message):
            finite_nets.open_store(path)
    # a disk that fails says nothing of the blocks
    path = shutil.copytree(whole, tmp_path / "stale")

    def stale(*_):
        raise OSError(116, "Stale file handle")

    import zarr

    before = chunks(path)
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__getitem__", stale)
        with pytest.raises((OSError, StoreError), match="Stale file handle"):
            finite_nets.check_store(path, repair=True)
    assert chunks(path) == before
    same(opened(path), opened(whole))


def test_a_store_is_read_as_numbers_and_nothing_else(tmp_path, whole):
    """No codec that a stranger might name, no other type, no path out of the store, no other data under a problem's name."""

    def tampered(name, file, change):
        path = shutil.copytree(whole, tmp_path / name)
        metadata = json.loads((path / file).read_text())
        change(metadata)
        (path / file).write_text(json.dumps(metadata))
        return path

    array = f"{PROBLEM.problem_id}/width_8/prediction_mean/zarr.json"

    def codec(metadata):
        metadata["codecs"][0] = {"name": "numcodecs.pickle", "configuration": {}}

    def strings(metadata):
        metadata["data_type"] = "string"

    for name, change in (("codec", codec), ("strings", strings)):
        with pytest.raises(StoreError, match="is no array of a store"):
            finite_nets.open_store(tampered(name, array, change))

    def other_data(metadata):
        content = json.loads(metadata["attributes"]["problem"])
        content["network"]["gamma0"] = 3.0
        metadata["attributes"]["problem"] = json.dumps(content)

    with pytest.raises(StoreError, match="the store is damaged"):
        finite_nets.open_store(tampered("other", f"{PROBLEM.problem_id}/zarr.json", other_data))

    def setting(metadata):
        metadata["attributes"]["settings"]["augmentation"] = "flips"

    with pytest.raises(StoreError, match="settings unknown to this version"):
        finite_nets.open_store(tampered("setting", f"{PROBLEM.problem_id}/zarr.json", setting))
    path = shutil.copytree(whole, tmp_path / "garbage")
    (path / PROBLEM.problem_id / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="zarr.json is damaged"):
        finite_nets.open_store(path)


# ---- foresight -------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_there_is_to_do_and_writes_nothing(tmp_path, whole):
    path = tmp_path / "store"
    plan = finite_nets.plan_sweep([PROBLEM, RICHER], {8: 0, 64: 0}, {8: 1000, 64: 320}, store=path, **FEW)
    text = str(plan)
    assert not path.exists()
    rows = [line.split() for line in text.splitlines()[1:5]]
    assert [(row[0], row[1], " ".join(row[2:5]), row[5], row[6]) for row in rows] == [
        (problem.problem_id, width, blocks, "0", todo)
        for problem in (PROBLEM, RICHER)
        for width, blocks, todo in (("8", "40 x 25", "40"), ("64", "20 x 16", "20"))
    ]
    assert re.search(r"2,640 networks to train on 1 x \S+, about [\d.]+ s\n", text)
    assert plan.networks == 2640
    # prediction and loss at three steps: means, squares, two counts
    assert plan.bytes_to_store == 120 * 8 * (2 * (9 + 3) + 2)
    rest = finite_nets.plan_sweep(PROBLEM, [8, 12], 60, store=whole, shard=(1, 2), **FEW)
    assert [(work.there, work.todo) for work in rest.works] == [(8, (9, 11)), (8, (9, 11))]


def test_blocks_are_neither_too_many_nor_too_small(tmp_path):
    sizes = {8: 1, 20: 2, 40: 5, 64: 8, 100: 10, 500: 10, 1000: 25, 1009: 32, 10**6: 31250}
    assert {seeds: default_block(seeds) for seeds in sizes} == sizes
    swept(tmp_path / "store", 40, block=None)
    with pytest.warns(
        UserWarning, match="width 8 is stored in blocks of 5 networks: 20000 blocks, each with its own files"
    ):
        finite_nets.plan_sweep(PROBLEM, [8], 10**5, store=tmp_path / "store", **FEW)


def test_memory_counts_the_moments_of_a_batch():
    plan = Plan(PROBLEM, np.arange(11), frozenset(["prediction", "loss"]), covariance=True)
    cpu = torch.device("cpu")
    one, many = (Budget(plan, PRECISIONS["float64"], cpu, block) for block in (1, 50))
    pairs = 8 * 33**2
    assert one.batch_bytes(8, 100) > 100 * 2 * pairs
    assert many.batch_bytes(8, 100) - 100 * many.working_bytes(8) == 2 * many.block_bytes() > 4 * pairs
    # whole blocks, or a part of one
    assert many.batch(8) % 50 == 0
    wide = Budget(plan, PRECISIONS["float64"], cpu, 10**6)
    assert 0 < wide.batch(8) < 10**6


def test_the_estimate_of_time_is_of_the_right_order(tmp_path):
    plan = finite_nets.plan_sweep(PROBLEM, [64], 4000, store=tmp_path / "store", dtype="float64")
    foreseen = plan.seconds(plan.works[0])
    started = time.perf_counter()
    finite_nets.train_ensemble(PROBLEM, widths=[64], seeds=4000, keep="moments", dtype="float64")
    taken = time.perf_counter() - started
    # on a machine that others use too
    assert foreseen / 5 < taken < foreseen * 5


def test_progress_and_the_plan_are_shown_where_they_are_asked_for(tmp_path, capfd):
    swept(tmp_path / "store", progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert re.search(r"80 networks to train on 1 x \S+, about", shown.err)
    assert "networks: 100%" in shown.err
    swept(tmp_path / "store", 60, progress=False)
    assert capfd.readouterr().err == ""


# ---- what other readers see --------------------------------------------------------------------------------------------


def test_other_readers_of_zarr_see_what_is_there_and_no_more(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "store")
    swept(path, 80, shard=(1, 2))  # every second block of the next eight
    group = path / PROBLEM.problem_id / "width_8"
    expected = opened(path).isel(width=0)
    for found in (xr.open_zarr(group, consolidated=False), xr.open_zarr(group, consolidated=False, chunks=None)):
        assert found.sizes["block"] == 16
        np.testing.assert_array_equal(found["count"], [5] * 8 + [0, 5] * 4)
        np.testing.assert_array_equal(found.prediction_mean, expected.prediction_mean)
        assert np.isnan(found.loss_m2[8]).all()
    import zarr

    assert zarr.open_group(group, mode="r")["loss_mean"].shape == (16, 3)
    task = xr.open_zarr(group.parent / "task", consolidated=False)
    np.testing.assert_array_equal(task.x_train, PROBLEM.task.x_train)
    tree = xr.open_datatree(path, engine="zarr", consolidated=False)
    assert tree[f"{PROBLEM.problem_id}/width_12"].sizes["block"] == 16


def declared(path, name="count"):
    return json.loads((path / PROBLEM.problem_id / "width_8" / name / "zarr.json").read_text())["shape"][0]


def test_stores_of_former_versions_open_and_are_cut_to_what_they_hold(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "store")
    for file in path.rglob("width_*/*/zarr.json"):
        metadata = json.loads(file.read_text())
        metadata["shape"][0] = 2**32 // 5
        if metadata["data_type"] == "int64":
            metadata["fill_value"] = -1
        file.write_text(json.dumps(metadata))
    same(opened(path), opened(whole))
    assert finite_nets.check_store(path) == []
    assert swept(path, 20).made == Outcome()
    assert {declared(path, name) for name in ("count", "loss_mean", "prediction_m2")} == {8}
    same(opened(path), opened(whole))


def test_a_writer_that_did_not_know_of_another_leaves_none_of_its_blocks_out(tmp_path, whole, monkeypatch):
    """The other writes its length between our look and our write: a longer one, and a chunk."""
    path = shutil.copytree(whole, tmp_path / "store")
    write, done = finite_nets.sweeps.store.write_whole, []

    def late(file, text):
        if not done and file.parent.name == "count":
            done.append(file)
            shutil.copy(file.parent / "c" / "0", file.parent / "c" / "30")
            metadata = json.loads(file.read_text())
            metadata["shape"][0] = 31
            file.write_text(json.dumps(metadata))
        write(file, text)

    monkeypatch.setattr(finite_nets.sweeps.store, "write_whole", late)
    finite_nets.sweeps.store.Store._declare(path / PROBLEM.problem_id / "width_8" / "count", 12)
    assert done
    assert declared(path) == 31
    # and a store whose length was lost altogether is long enough again when the next block is written
    store = finite_nets.sweeps.store.Store(path)
    block = {name: store.read(PROBLEM.problem_id, 8, name, [0])[0] for name in ("count", "diverged", "loss_mean")}
    store.write(PROBLEM.problem_id, 8, 40, 5, block)
    assert (declared(path), declared(path, "loss_mean")) == (41, 41)


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, which other tests may have loaded
def test_an_executor_that_forks_is_refused_and_a_fork_computes(tmp_path):
    """Either would wait for ever."""
    fork = multiprocessing.get_context("fork")
    finite_nets.train_ensemble(PROBLEM, widths=[64], seeds=50, **FEW)
    with (
        concurrent.futures.ProcessPoolExecutor(1, mp_context=fork) as executor,
        pytest.raises(RuntimeError, match=r'the executor forks its processes.*start them by "spawn"'),
    ):
        swept(tmp_path / "store", executor=executor)
    process = fork.Process(target=finite_nets.train_ensemble, args=(PROBLEM,), kwargs={"widths": [64], "seeds": 50})
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 0


SCRIPT = """
import concurrent.futures, multiprocessing, sys
import finite_nets
from conftest import reference_problem
executor = "pool"
if sys.argv[2] == "own":
    executor = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
finite_nets.sweep(reference_problem(), [8], 8, store=sys.argv[1], executor=executor, devices=["cpu"])
"""


@pytest.mark.parametrize("executor", first_of(["pool", "own"]))
def test_a_script_without_guard_is_told_so_once(tmp_path, executor):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "store"), executor],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert done.stderr.count('Put what it does under `if __name__ == "__main__":`') == 1
    assert "bootstrapping" not in done.stderr
    assert "memory" not in done.stderr.splitlines()[-1]


# ---- sizes beyond any machine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: finite_nets.train_ensemble(PROBLEM, widths=[8], seeds=10**9, **FEW), MemoryEstimateError),
        (lambda: finite_nets.train_ensemble(PROBLEM, widths=[8], seeds=range(9, 10**9), **FEW), MemoryEstimateError),
        (lambda: finite_nets.train_ensemble(PROBLEM, widths=range(1, 10**9), seeds=9, **FEW), MemoryEstimateError),
        (lambda: finite_nets.train_ensemble(PROBLEM, widths=[8], seeds=10**9, keep="moments", block=1), MemoryEstimateError),
        (lambda: finite_nets.train_ensemble(PROBLEM, widths=[8], seeds=10**9, keep="moments", memory_limit=9), MemoryEstimateError),
        (lambda: finite_nets.neurons(PROBLEM, widths=[8], neurons=10**18), MemoryEstimateError),
        (lambda: finite_nets.neurons(PROBLEM, widths=range(1, 10**9), neurons=100), MemoryEstimateError),
        (lambda: finite_nets.sweep(PROBLEM, [8], 10**9, store="unused", block=1), ValueError),
        (lambda: finite_nets.sweep(PROBLEM, range(1, 10**9), 1, store="unused"), ValueError),
        (lambda: finite_nets.plan_sweep(PROBLEM, [8], 10**9, store="unused").text(times=False), None),
    ],
)  # fmt: skip
def test_sizes_beyond_any_machine_are_refused_before_there_is_a_list_of_them(call, error, monkeypatch):
    monkeypatch.setattr(memory, "available_on_host", lambda: 2**33)  # on a large machine a billion would be trained
    assert torch.__version__  # loaded before memory is traced
    tracemalloc.start()
    try:
        with pytest.raises(error) if error else contextlib.nullcontext():
            call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6  # a list of 10^9 would be gigabytes; modules that are loaded on first use, a few million


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", first_of([(None, 3), ([], "no")]), ids=str)
def test_damaged_descriptions_are_named(tmp_path, values):
    """Each entry of each description of a store, lost or of another type: an error of the store, or none."""
    problem = Path(PROBLEM.problem_id)
    arrays = (problem / "task" / "x_train", problem / "width_8" / "count", problem / "width_8" / "loss_mean")
    described = [folder / "zarr.json" for folder in (Path(), problem, problem / "width_8", *arrays)]
    small = tmp_path / "small"
    swept(small, 10, [8])
    path = shutil.copytree(small, tmp_path / "store")
    for file in described:
        text = (small / file).read_text()
        keys = [(key,) for key in json.loads(text)]
        keys += [("attributes", key) for key in json.loads(text).get("attributes", {})]
        for key in keys:
            for value in values:
                content = json.loads(text)
                inner = content["attributes"] if len(key) == 2 else content
                del inner[key[-1]]
                if value is not None:
                    inner[key[-1]] = value
                (path / file).write_text(json.dumps(content))
                with contextlib.suppress(StoreError):
                    finite_nets.open_store(path)
        (path / file).write_text(text)
    same(opened(path), opened(small))


def test_a_file_is_no_store(tmp_path):
    file = tmp_path / "limit.nc"
    file.write_bytes(b"\x89HDF")
    for call in (finite_nets.open_store, finite_nets.problems, finite_nets.check_store, swept):
        with pytest.raises(StoreError, match=r"limit\.nc is a file; a store is a folder"):
            call(file)


def test_problems_of_equal_cost_are_timed_once(tmp_path, monkeypatch, whole):
    timed = []

    def seconds(_, width, networks, *__):
        timed.append(width)
        return 1e-3 * width * networks

    monkeypatch.setattr(finite_nets.ensembles.runner.Runner, "seconds", seconds)
    problems = dmft.vary(PROBLEM, gamma0=[0.5, 1.0, 2.0], learning_rate=[0.1, 0.2])
    plan = finite_nets.plan_sweep([*problems, *dmft.vary(PROBLEM, depth=[3])], WIDTHS, 40, store=tmp_path / "s", **FEW)
    assert "560 networks to train" in plan.text()
    assert sorted(timed) == [8, 8, 12, 12]
    rest = finite_nets.plan_sweep(PROBLEM, WIDTHS, 60, store=whole, **FEW)
    assert "80 networks are there; 40 networks to train" in rest.text()
    first, second = (rest.seconds(work) for work in rest.works)
    # of what is left, with the time of writing four blocks, which a disk that others use takes longer for
    assert 20 * 8e-3 < first < 20 * 8e-3 + 1
    assert 20 * 12e-3 < second < 20 * 12e-3 + 1


# ---- command line ----------------------------------------------------------------------------------------------------

OPTIONS = "--source digits --classes 3 8 --n-train 4 --depth 2 --learning-rate 0.5 --steps 3 --widths 8 12 --block 5"


def command(text, *more):
    return main([*text.split(), *map(str, more)])


def test_the_command_line_sweeps_as_the_function_does(tmp_path, capsys):
    path = tmp_path / "store"
    sweeping = f"sweep {OPTIONS} --seeds 20 10 --vary gamma0=1,2 --every 2 --observables prediction"
    assert command(sweeping, "--store", path, "--dry-run") == 0
    assert "60 networks to train" in capsys.readouterr().out
    assert not path.exists()
    assert command(sweeping, "--store", path, "--shard", "1/2") == 0
    assert "30 networks in 6 blocks" in capsys.readouterr().out
    assert command(sweeping, "--store", path) == 0
    task = dmft.load_task("digits", classes=(3, 8), n_train=4)
    problems = dmft.vary(dmft.Problem(dmft.MLP(2), task, dmft.GradientDescent(0.5, 3)), gamma0=[1.0, 2.0])
    direct = tmp_path / "direct"
    finite_nets.sweep(
        problems, [8, 12], {8: 20, 12: 10}, store=direct, block=5, save_steps=[0, 2, 3], observables=["prediction"]
    )
    for problem in problems:
        same(opened(path, problem=problem), opened(direct, problem=problem))
    assert command("describe", path) == 0
    described = capsys.readouterr().out
    assert described.count("width 8      4 blocks of 5: 20 networks, 0 diverged") == 2
    assert "gamma0=2.0" in described
    (tmp_path / "p.json").write_text(problems[0].to_json())
    assert command(f"sweep {OPTIONS} --seeds 5 --vary activation=relu,tanh --dry-run", "--store", tmp_path / "new") == 0
    assert "20 networks to train" in capsys.readouterr().out
    more = ["--store", path, "--problem", tmp_path / "p.json", "--widths", "8", "--seeds", "30", "--every", "2"]
    assert command("sweep --observables prediction", *more) == 0
    assert "10 networks in 2 blocks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seeds 1 2 3", "--seeds has 3 numbers for 2 widths"),
        ("--seeds 5 --shard half", "--shard 'half' is not I/N, such as 0/4"),
        ("--seeds 5 --vary gamma0", "--vary 'gamma0' is not FIELD=VALUE,VALUE"),
        ("--seeds 5 --vary richness=1,2", "'richness' is no field of this problem; choose among activation, batches"),
        ("--seeds 5 --vary gamma0=-1", "gamma0=-1 must be positive"),
        ("--seeds 5 --vary activation=relu,tang", "activation 'tang' is unknown; choose one of tanh"),
        ("--seeds 5 --every 2 --save-steps 1", "every and save_steps both choose"),
        ("--seeds 5 --vary gamma0=1 gamma0=2", "--vary gamma0=1 gamma0=2 names a field twice"),
        ("--seeds 5 --memory-limit much", "--memory-limit 'much' is not a size"),
        ("--seeds 5 --executor threads", "executor='threads' is unknown"),
        ("--seeds 5 --dtype half", "dtype='half' is not offered"),
    ],
)
def test_bad_input_on_the_command_line(tmp_path, capsys, options, message):
    assert command(f"sweep {OPTIONS} {options}", "--store", tmp_path / "store") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_help_is_quick_and_complete(capsys):
    with pytest.raises(SystemExit):
        command("sweep --help")
    shown = capsys.readouterr().out
    parameters = [*inspect.signature(finite_nets.plan_sweep).parameters, "threads", "progress"]
    assert {part.name for part in dataclasses.fields(sweep_options())} | {
        "problems",
        "widths",
        "seeds",
        "store",
    } == set(parameters)
    for name in parameters[3:]:
        assert f"--{name.replace('_', '-')}" in shown
    code = """
        import sys
        from finite_nets.__main__ import main
        try:
            main(["sweep", "--help"])
        except SystemExit:
            print(*sys.modules)
    """
    loaded = subprocess.run(
        [sys.executable, "-c", inspect.cleandoc(code)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "dmft.specs" in loaded
    assert not {"torch", "jax", "xarray", "zarr"} & set(loaded)


def test_help_says_what_is_typed(capsys):
    with pytest.raises(SystemExit):
        command("sweep --help")
    told = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert '--devices DEVICE ... "auto" (all GPUs, or the CPU), or names: --devices cuda:0 cuda:1.' in told
    assert "--every INT Instead of --save-steps: every so many steps, and the last." in told
    assert "0 1 ... L-1 leaves random features" in told
    assert not [python for python in ('["cuda', "range(L)", "save_steps") if python in told]


def test_problems_are_varied_in_all_combinations():
    found = dmft.vary(PROBLEM, gamma0=[0.5, 2.0], learning_rate=[0.1, 0.2, 0.3], loss=["squared"])
    assert [(p.network.gamma0, p.training.learning_rate) for p in found] == [
        (g, r) for g in (0.5, 2.0) for r in (0.1, 0.2, 0.3)
    ]
    assert dmft.vary(PROBLEM) == [PROBLEM]
    with pytest.raises(TypeError, match=re.escape("gamma0=2.0 is not a list of values; give e.g. gamma0=[2.0]")):
        dmft.vary(PROBLEM, gamma0=2.0)
    frozen = dataclasses.replace(PROBLEM, network=dmft.MLP(2, frozen=[2]))
    with pytest.raises(ValueError, match=r"depth varies and frozen=\(2,\) holds the readout by its number"):
        dmft.vary(frozen, depth=[2, 3])
    assert [p.network.frozen for p in dmft.vary(frozen, frozen=[(3,)], depth=[3])] == [(3,)]


def test_steps_are_chosen_for_each_problem(tmp_path):
    problems = dmft.vary(PROBLEM, steps=[4, 7])
    plan = finite_nets.plan_sweep(problems, [8], 8, store=tmp_path / "store", every=3)
    assert [work.settings.save_steps for work in plan.works] == [(0, 3, 4), (0, 3, 6, 7)]


def test_differences_of_problems_hold_what_descriptions_leave_out():
    problems = dmft.vary(PROBLEM, bias=[0.0, 0.5], frozen=[(), (0,)])
    texts = [differences(problems)[problem.problem_id] for problem in problems]
    assert texts == [
        "network.bias=0.0, network.frozen=[]",
        "network.bias=0.0, network.frozen=[0]",
        "network.bias=0.5, network.frozen=[]",
        "network.bias=0.5, network.frozen=[0]",
    ]
    assert differences([PROBLEM]) == {PROBLEM.problem_id: ""}
