"""Compiled code kept from one process to the next: JAX's persistent compilation cache, around our computations alone.

    DMFT_COMPILE_CACHE=PATH     the folder; by default "dmft" in the user's folder of caches (~/.cache on Linux)
    DMFT_COMPILE_CACHE=off      every process compiles anew

A host program that has given JAX a cache (JAX_COMPILATION_CACHE_DIR, or `jax.config`), or has forbidden one, keeps what
it has.  Any number of processes may share the folder.  Where it cannot be written to, nothing is kept, and nothing is
said.  The first use in a process removes what has not been read for longest, beyond `LARGEST` bytes.

JAX holds no more than one cache, for all threads: what others compile while we compute is kept, too.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from dmft.running import nvrtc
from dmft.running.cache_folder import cache_folder
from dmft.running.paths import PARTIAL

LARGEST = 2**30  # bytes of the folder
ENTRY = "-cache"  # how JAX ends the name of a file
SETTINGS: dict[str, Any] = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # reading is faster for the smallest function
    "jax_persistent_cache_min_entry_size_bytes": 0,
    # JAX's own bound locks the folder at every reading, which fails where a file system has no locks
    "jax_compilation_cache_max_size": -1,
    "jax_persistent_cache_enable_xla_caches": "none",  # they complain of full disks
    "jax_raise_persistent_cache_errors": False,
}

_lock = threading.Lock()
_users = 0  # contexts that are open, in all threads
_before: dict[str, Any] = {}  # settings of the host, while any is
_without = 0  # contexts in which all is compiled anew
_enabled = True  # the setting before them
_tidied: set[Path] = set()


@contextmanager
def cached() -> Iterator[None]:
    """Keep what is compiled, and find what was; afterwards JAX is configured as before."""
    begun = _begin()
    try:
        yield
    finally:
        if begun:
            _end()


def setting(name: str) -> Any:
    """Of JAX, as it is now in this thread."""
    return getattr(jax.config, f"jax_{name}")


@contextmanager
def without() -> Iterator[None]:
    """Compile anew, whatever the cache has, and keep nothing; in all threads."""
    global _without, _enabled
    with _lock:
        if not _without:
            _enabled = setting("enable_compilation_cache")
            _configure({"jax_enable_compilation_cache": False})
        _without += 1
    try:
        yield
    finally:
        with _lock:
            _without -= 1
            if not _without:
                _configure({"jax_enable_compilation_cache": _enabled})


def ours() -> Path | None:
    """Where compiled code is kept now, if that is not for the host."""
    path = setting("compilation_cache_dir")
    return Path(path) if _users and path and (_without or setting("enable_compilation_cache")) else None


def folder() -> Path | None:
    """Where compiled code is kept; None if it is not."""
    if sys.platform == "darwin" and jax.__version_info__ < (0, 10):  # reading large functions crashes there
        return None
    return cache_folder()


def _begin() -> bool:
    """Turn the cache on, unless the host has decided about it, or it cannot be."""
    global _users
    with _lock:
        if not _users:
            settled = [setting(name) for name in ("compilation_cache_dir", "enable_compilation_cache")]
            chosen = settled[0] is not None or not settled[1]
            path = None if chosen else folder()
            if path is None:
                return False
            if path not in _tidied:
                _tidied.add(path)
                tidy(path, LARGEST)
            _before.update({name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", *SETTINGS)})
            _configure({"jax_compilation_cache_dir": str(path), **SETTINGS})
        _users += 1
    # a damaged entry, a full disk: the function is compiled, as without a cache
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache", module="jax")
    return True


def _end() -> None:
    global _users
    with _lock:
        _users -= 1
        if not _users:
            _configure(_before)


def _configure(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]
    reset_cache()  # JAX looks at the folder's name once


def tidy(path: Path, largest: int) -> None:
    """Remove entries of the cache, those that were not read for longest first, until `largest` bytes are left."""
    entries = []
    # the folder is the user's, who may keep other things there
    for file in (file for ending in (ENTRY, nvrtc.ENTRY, PARTIAL) for file in path.glob(f"*{ending}")):
        with suppress(OSError):  # others tidy, too
            status = file.stat()
            entries.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    total = 0
    for _, size, file in sorted(entries, reverse=True):
        total += size
        if total > largest:
            with suppress(OSError):
                file.unlink()
