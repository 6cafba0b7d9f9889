"""Where compiled code is kept between processes, of JAX and of kernels for GPUs alike.

DMFT_COMPILE_CACHE    a folder in place of the user's folder of caches; "off": nowhere
"""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import platformdirs

SWITCH = "DMFT_COMPILE_CACHE"


def cache_folder() -> Path | None:
    """The folder, made if it was not there; None if nothing is kept: a warning says so where others may write, since
    what is read is run."""
    wanted = os.environ.get(SWITCH, "")
    if wanted.lower() == "off" or "://" in wanted:
        return None
    try:
        path = Path(wanted).expanduser().absolute() if wanted else platformdirs.user_cache_path("dmft")
        if not path.is_absolute():  # of a user without a home
            return None
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if others := _others_write(path):
            warnings.warn(f"compiled code is neither kept nor read: {path} {others}", stacklevel=2)
            return None
        return path if os.access(path, os.R_OK | os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):
        return None


def _others_write(path: Path) -> str:
    """Why code that lies there may be somebody else's; "" if it is the user's own."""
    if not hasattr(os, "geteuid"):  # Windows, whose folders of caches are the user's
        return ""
    status = path.stat()
    if status.st_uid != os.geteuid():
        return f"belongs to another user; name another folder by {SWITCH}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written by others; chmod go-w, or name another folder by {SWITCH}"
    return ""
