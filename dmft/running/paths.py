"""Paths as users write them: one rule for every function and command line.  Standard library only."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# two letters at least: "C:/" is a drive; one slash is enough, as `Path` writes "s3://bucket"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
PARTIAL = ".partial"  # how names of files end that are being written


def local(path: str | os.PathLike[str], name: str = "path") -> Path:
    """`path` on this machine, with ~ expanded.

    Args:
        path: as a user gives it.
        name: of the argument, for messages.

    Raises:
        ValueError: an address such as s3://bucket, which would become a folder "s3:"; an empty path; a home that is not
            known.
        TypeError: not a path.
    """
    try:
        text = os.fspath(path)
    except TypeError as error:
        raise TypeError(f"{name}={path!r} is not a path; give text or a pathlib.Path.") from error
    if not isinstance(text, str):
        raise TypeError(f"{name}={path!r} is a path of bytes; give text or a pathlib.Path.")
    if not text or "\0" in text:
        raise ValueError(f"{name}={text!r} is not a path; give the name of a file or folder.")
    if ADDRESS.match(text):
        raise ValueError(
            f"{name}={text!r} is an address; this library reads and writes files of this machine. Give a path, and "
            "copy to or from the address with its own tools (or mount it)."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}={text!r}: {error} Give the path without ~.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place at the end: `path` appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # as any new file; temporary ones are private
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
