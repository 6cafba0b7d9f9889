"""What is available, also inside a container or a cluster job."""

import ctypes
import dataclasses
import re
from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest

import dmft
from dmft.drivers import room
from dmft.drivers.machine import available_bytes
from dmft.drivers.run import Run
from dmft.errors import MemoryEstimateError
from dmft.running import card, memory


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used"),
    [
        ("0::/job", "job", "memory.max", "memory.current"),
        ("0::/job/step", "job", "memory.max", "memory.current"),
        ("4:memory:/job", "memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_available_memory_is_that_of_the_machine_or_of_its_control_group(
    monkeypatch, tmp_path, line, folder, limit, used
):
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "process")
    # no groups, or no limit: that of the machine, give or take what others do meanwhile
    assert 0.5 < memory.available_on_host() / psutil.virtual_memory().available < 1.5
    (tmp_path / "process").write_text(f"9:pids:/\n{line}\n")
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / limit).write_text("max\n")
    (tmp_path / folder / used).write_text("400\n")
    assert memory.available_on_host() > 1000
    (tmp_path / folder / limit).write_text("1000\n")
    assert memory.available_on_host() == 600


def test_refusal_has_both_numbers():
    message = "a network needs about 3 GiB and 2 MiB is available: take less."
    with pytest.raises(MemoryEstimateError, match=re.escape(message)):
        memory.require(3 * 2**30, limit=None, available=2**21, what="a network", ways_out="take less")
    with pytest.raises(MemoryEstimateError, match="10 bytes is allowed by memory_limit"):
        memory.require(11, limit=10, available=2**40, what="a network", ways_out="take less")
    memory.require(11, limit=12, available=0, what="a network", ways_out="take less")


@pytest.mark.parametrize(
    ("free", "available"), [(None, 600), (900, 600), (50, 150)], ids=["no driver", "alone", "shared"]
)
def test_memory_of_a_card_is_what_others_have_left(monkeypatch, free, available):
    stats = {"bytes_limit": 1000, "bytes_in_use": 400, "pool_bytes": 500}
    device = SimpleNamespace(memory_stats=lambda: stats, local_hardware_id=1)
    monkeypatch.setattr(card, "free_bytes", lambda number: free if number == 1 else 0)
    assert available_bytes(device) == available


def test_what_a_run_may_take_is_what_the_fullest_of_its_devices_has_left(monkeypatch):
    task = dmft.Task([[1.0, 0.0], [0.5, -1.0]], [1.0, -1.0])
    problem, steps = dmft.Problem(dmft.MLP(2), task, dmft.GradientDescent(0.1, 1)), np.arange(2)
    run = Run(problem, steps, 64, 1e-3, False)
    needed, stats = room.bytes_needed(run, 8), {"bytes_in_use": 0, "pool_bytes": 0}
    monkeypatch.setattr(card, "free_bytes", lambda number: None)
    monkeypatch.setattr(Run, "device", property(lambda self: jax.devices()[0]))  # whose arrays there are

    def required(*left):
        devices = (
            SimpleNamespace(memory_stats=lambda n=n: stats | {"bytes_limit": n}, local_hardware_id=0) for n in left
        )
        room.require_memory(dataclasses.replace(run, devices=tuple(devices)), 8, None)

    required(3 * needed, 3 * needed)
    for left in ((3 * needed, 99), (99, 3 * needed)):
        with pytest.raises(MemoryEstimateError, match="and 99 bytes is available"):
            required(*left)


def test_free_memory_of_a_card_is_asked_of_its_driver(monkeypatch):
    asked = []

    def driver(fails):
        def entry(name, *given):
            asked.append(name)
            if name == "cuMemGetInfo_v2":
                given[0]._obj.value = 7
            return int(name == fails)

        return type("Driver", (), {"__getattr__": lambda _, name: lambda *given: entry(name, *given)})()

    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver(None))
    assert card.free_bytes(0) == 7
    assert asked.count("cuDevicePrimaryCtxRetain") == asked.count("cuDevicePrimaryCtxRelease_v2") == 1
    for fails in ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemGetInfo_v2"):
        monkeypatch.setattr(ctypes, "CDLL", lambda _, fails=fails: driver(fails))
        assert card.free_bytes(0) is None

    def missing(_):
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert card.free_bytes(0) is None
