"""Memory foreseen before it is taken."""

from __future__ import annotations

from pathlib import Path

import psutil

from dmft.errors import MemoryEstimateError

PROCESS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def available_on_host() -> int:
    """Bytes of main memory that can be taken without swapping: of the machine, or of the container or cluster job."""
    return min([int(psutil.virtual_memory().available), *_left_in_cgroups()])


def _left_in_cgroups() -> list[int]:
    """What the limited control groups around this process have left (Linux, version 1 or 2)."""
    try:
        lines = [line.split(":", 2) for line in PROCESS.read_text().splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, name in lines:
        if controllers == "":
            root, files = CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, files = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = root / name.lstrip("/")
        for group in (inner, *inner.parents):
            try:
                limit, used = ((group / file).read_text().strip() for file in files)
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
