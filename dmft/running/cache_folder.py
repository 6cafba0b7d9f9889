"""Where compiled code is kept between processes, of JAX and of kernels for GPUs alike.

DMFT_COMPILE_CACHE    a folder in place of the user's folder of caches; "off": nowhere
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

SWITCH = "DMFT_COMPILE_CACHE"


def cache_folder() -> Path | None:
    """The folder, made if it was not there; None if nothing is kept."""
    wanted = os.environ.get(SWITCH, "")
    if wanted.lower() == "off" or "://" in wanted:
        return None
    try:
        path = Path(wanted).expanduser().absolute() if wanted else platformdirs.user_cache_path("dmft")
        if not path.is_absolute():  # of a user without a home
            return None
        # what is read is run: nobody else writes here
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path if os.access(path, os.R_OK | os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):
        return None
