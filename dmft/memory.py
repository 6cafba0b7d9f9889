"""Memory foreseen before it is taken."""

from __future__ import annotations

from pathlib import Path

import psutil

from dmft.errors import MemoryEstimateError

CGROUPS = Path("/sys/fs/cgroup")


def available_on_host() -> int:
    """Bytes of main memory that can be taken without swapping: of the machine, or of the container or cluster job."""
    return min([int(psutil.virtual_memory().available), *_left_in_cgroups()])


def _left_in_cgroups() -> list[int]:
    """What limited control groups (Linux, version 2) around this process have left."""
    try:
        names = [line.split("::")[1] for line in Path("/proc/self/cgroup").read_text().splitlines() if "::" in line]
    except OSError:
        return []
    left = []
    for name in names:
        inner = CGROUPS / name.lstrip("/")
        for group in (inner, *inner.parents):
            try:
                limit, used = ((group / f"memory.{what}").read_text().strip() for what in ("max", "current"))
            except OSError:
                continue
            if limit.isdigit() and used.isdigit():
                left.append(int(limit) - int(used))
    return left


def require(needed: int, *, limit: int | None, available: int, what: str, ways_out: str) -> None:
    """Raise MemoryEstimateError if `needed` bytes exceed `limit` or, without one, what is `available`."""
    bound, source = (available, "is available") if limit is None else (limit, "is allowed by memory_limit")
    if needed > bound:
        raise MemoryEstimateError(f"{what} needs about {readable(needed)} and {readable(bound)} {source}: {ways_out}.")


def readable(count: int) -> str:
    """A number of bytes as text, with three digits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
