"""Memory foreseen before it is taken."""

from __future__ import annotations

import psutil

from dmft.errors import MemoryEstimateError


def available_on_host() -> int:
    """Bytes of main memory that can be taken without swapping."""
    return int(psutil.virtual_memory().available)


def require(needed: int, *, limit: int | None, available: int, what: str, ways_out: str) -> None:
    """Raise MemoryEstimateError if `needed` bytes exceed `limit` or, without one, what is `available`."""
    bound, source = (available, "is available") if limit is None else (limit, "is allowed by memory_limit")
    if needed > bound:
        raise MemoryEstimateError(
            f"{what} needs about {_readable(needed)} and {_readable(bound)} {source}: {ways_out}."
        )


def _readable(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
