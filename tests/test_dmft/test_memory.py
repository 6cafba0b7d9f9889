"""What is available, also inside a container or a cluster job."""

import re

import psutil
import pytest

from dmft.errors import MemoryEstimateError
from dmft.running import memory


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
