"""Whether this process was forked: it has the locks of the threads of PyTorch then, without the threads."""

from __future__ import annotations

import os

_forked_from: set[int] = set()  # processes whose threads and locks this one would share, had it them


def _remember() -> None:
    _forked_from.add(os.getppid())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember)


def forked(sender: int | None = None) -> bool:
    """Whether this process was forked from `sender`, or from any process that had loaded this module."""
    return sender in _forked_from if sender is not None else bool(_forked_from)
