"""Kernels in CUDA C++, compiled while a program runs by the NVRTC that comes with PyTorch's and JAX's builds for CUDA.

Machine code is kept for the next process in the user's folder of caches, or where DMFT_COMPILE_CACHE says ("off":
nowhere).
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from dmft.running.cache_folder import cache_folder
from dmft.running.paths import replacing

VERSIONS = ("13", "12")  # of CUDA, whose libraries are looked for
ENTRY = ".code"  # how names of files in the folder of caches end


@lru_cache(maxsize=64)
def kept(source: Path, options: tuple[str, ...], version: str) -> bytes:
    """Machine code, or PTX, from an earlier process if it was kept, behind its digest: a driver crashes on what is
    damaged.

    Args:
        source: a file in CUDA C++, which may include the headers (.cuh) that lie beside it.
        options: of the compiler, first the architecture: of a device, "sm_90", or of PTX, "compute_90".
        version: of CUDA, "13.0".
    """
    folder, parts = cache_folder(), [source, *sorted(source.parent.glob("*.cuh"))]
    text = b"\0".join(part.read_bytes() for part in parts)
    digest = hashlib.sha256(text + "\0".join([version, *options]).encode()).hexdigest()
    file = None if folder is None else folder / f"{source.stem}-{digest[:32]}{ENTRY}"
    try:
        if file is not None and file.exists():
            found = file.read_bytes()
            if hashlib.sha256(found[32:]).digest() == found[:32]:
                return found[32:]
    except OSError:  # as if it were not there
        file = None
    given = [*options, "--std=c++17", f"--include-path={source.parent}"]
    code = compiled(source.read_bytes(), source.name, given, version)
    if file is not None:
        with suppress(OSError), replacing(file) as new:
            new.write_bytes(hashlib.sha256(code).digest() + code)
    return code


def compiled(text: bytes, name: str, options: Sequence[str], version: str) -> bytes:
    """Machine code of a source, or PTX.

    Raises:
        RuntimeError: the compiler's own words.
        OSError: there is no compiler.
    """
    nvrtc, program = library(version), ctypes.c_void_p()
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))

    def found(kind: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        read = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{kind}")(program, read)
        return read.raw

    if failed := nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None):
        raise RuntimeError(f"{name} was not compiled: NVRTC gives error {failed}")
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), given):
            raise RuntimeError(f"{name} was not compiled: {found('ProgramLog').rstrip(bytes(1)).decode()}")
        return found("CUBIN" if "=sm_" in options[0] else "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def library(version: str) -> ctypes.CDLL:
    """NVRTC of this version of CUDA, where the system finds it or beside NVIDIA's other packages.

    Raises:
        OSError: it is not there.
    """
    name = f"libnvrtc.so.{version.partition('.')[0]}"
    with suppress(OSError):
        return ctypes.CDLL(name)
    packages = find_spec("nvidia")
    for folder in (packages and packages.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob(f"*/lib/{name}")):
            return ctypes.CDLL(str(file))
    raise OSError(f"there is no {name}")


@cache
def version() -> str | None:
    """That of CUDA for which there is a compiler, first the one that JAX is built for; None if there is none.  PTX of a
    later one may be too new for the driver."""
    for one in sorted(VERSIONS, key=lambda one: find_spec(f"jax_cuda{one}_plugin") is None):
        with suppress(OSError):
            library(one)
            return one
    return None
