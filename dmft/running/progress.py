"""Progress of long work: a bar where somebody watches, a line now and then where a log is kept.

A bar is shown on a terminal and in a Jupyter kernel.  Elsewhere, as in batch jobs, work that takes long says on
standard error how far it is, first after `FIRST` seconds, then after twice as long, at least every `SELDOM` seconds;
short work is silent.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from tqdm import TqdmWarning, tqdm

if TYPE_CHECKING:
    Bar = tqdm[Any]
else:
    Bar = tqdm

FIRST, SELDOM = 30.0, 1800.0  # seconds


def progress_bar(total: int | None, description: str, unit: str, show: bool | None) -> Bar:
    """Of `total` units, None if unknown.  `show`: None for a bar or lines, as said above; True a bar; False nothing."""
    arguments: dict[str, Any] = {"total": total, "desc": description, "unit": unit}
    if show is False:
        return tqdm(**arguments, disable=True)
    if in_notebook():
        return _of_notebooks()(**arguments)
    if show or sys.stderr.isatty():
        return tqdm(**arguments)
    return Lines(**arguments)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, rather than a terminal or a script."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def _of_notebooks() -> type[Bar]:
    """The bar of widgets, or where they are not installed that of text."""
    try:
        import ipywidgets  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        return tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.notebook import tqdm as widget

        return widget


class Lines(Bar):
    """A bar that is not drawn: it prints lines, few and only of long work.

    The time that is left follows from what came after the first update, which may hold a compilation.
    """

    def __init__(self, *, total: int | None, desc: str, unit: str) -> None:
        super().__init__(total=total, disable=True)
        self.name, self.what = desc, unit
        self.begun, self.next = time.monotonic(), FIRST
        self.first: tuple[float, float] | None = None  # seconds and units of the first update

    def update(self, n: float | None = 1) -> bool | None:
        self.n += n or 0
        taken, total = time.monotonic() - self.begun, self.total or 0
        self.first = start, done = self.first or (taken, self.n)
        if taken < self.next or not 0 < self.n < total:
            return False
        self.next = taken + min(taken, SELDOM)
        text = f"{self.name}: {self.n:,} of {total:,} {self.what}s after {readable_time(taken)}"
        if self.n > done:
            text += f", about {readable_time((taken - start) * (total - self.n) / (self.n - done))} left"
        print(text, file=sys.stderr, flush=True)
        return True


def readable_time(seconds: float) -> str:
    """A time as text, with two digits."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
