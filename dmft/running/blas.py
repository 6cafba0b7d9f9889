"""One thread for BLAS and LAPACK, around our computations on a CPU.

There XLA multiplies with threads of its own, and has factors and triangles made by LAPACK, whose threads wait for the
next of many small ones in loops, on the cores that products want.  With one thread of LAPACK a step of a stream takes
half of the time on two cores, and a tenth where others work beside it (`tests/benchmarks/RESULTS.md`).

The number is one of the whole process.  The first of several computations at once sets it, and sets it back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

_set = threading.Lock()  # held by the computation that has set it


@contextmanager
def one_thread() -> Iterator[None]:
    """Where none is within or beside such a context already."""
    if not _set.acquire(blocking=False):
        yield
        return
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        _set.release()
