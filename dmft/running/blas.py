"""One thread for BLAS and LAPACK, around our computations on a CPU.

There XLA multiplies with threads of its own, and has factors and triangles made by LAPACK, whose threads wait for the
next of many small ones in loops, on the cores that products want.  With one thread of LAPACK a step of a stream takes
.6 of the time on two cores and half of the processor's, a tenth to a fifth of the time where others work beside it;
small problems take as long as before, or a twentieth longer (`tests/benchmarks/RESULTS.md`).  Single factors of
thousands of rows, too, are faster so where others work; on many cores that nobody else wants they may lose what threads
would gain.

The number is one of the whole process: NumPy and SciPy of other Python threads have one, too, from when the first of
several computations at once begins until the last has ended.  Then it is what it was before the first, whatever a
program has set meanwhile; a `threadpool_limits` that is entered meanwhile and left later sets back the one thread that
it found.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import OpenBLASController, threadpool_limits

_lock = threading.Lock()  # of what follows
_before: threadpool_limits | None = None  # sets back what was before the first
_computations = 0  # that go on


@contextmanager
def one_thread() -> Iterator[None]:
    """From the first of such contexts, within and beside each other, to the last."""
    global _before, _computations
    with _lock:
        if _before is None:
            _any_may_set()
            _before = threadpool_limits(1, user_api="blas")
        _computations += 1
    try:
        yield
    finally:
        with _lock:
            _computations -= 1
            if not _computations and _before is not None:
                _any_may_set()
                _before.restore_original_limits()
                _before = None
                _any_may_set()


def _any_may_set() -> None:
    """Since version 3.8 the Python thread that has set the number first is the only one whose settings count."""
    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)
