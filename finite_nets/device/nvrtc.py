"""Kernels in CUDA C++, compiled while a program runs by the NVRTC that comes with PyTorch's builds for CUDA.

For what Triton cannot say: which numbers a thread keeps in its registers from one product to the next.  Machine code is
kept for the next process in the user's folder of caches, or where DMFT_COMPILE_CACHE says ("off": nowhere).
"""

from __future__ import annotations

import ctypes
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from dmft.running.cache_folder import cache_folder
from dmft.running.paths import replacing

RESIDENT = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
USUAL_SHARED = 48 * 1024  # bytes of shared memory that need not be asked for


class Kernel:
    """A compiled kernel of one device, whose only argument is a structure.

    Args:
        source: a file in CUDA C++, which may include the headers (.cuh) that lie beside it.
        name: of the kernel, which is extern "C".
        defined: what the preprocessor is to know.
    """

    def __init__(self, source: Path, name: str, defined: Mapping[str, int], device: torch.device) -> None:
        major, minor = torch.cuda.get_device_capability(device)
        options = [f"--gpu-architecture=sm_{major}{minor}", "--std=c++17"]
        options += [f"-D{key}={value}" for key, value in defined.items()]
        self._device, self._shared = device, USUAL_SHARED
        with torch.cuda.device(device):
            torch.cuda.current_stream(device).synchronize()  # makes the context of the device that of this thread
            self._module = ctypes.c_void_p()
            _checked(_driver().cuModuleLoadData(ctypes.byref(self._module), _compiled(source, tuple(options))))
            self._function = ctypes.c_void_p()
            _checked(_driver().cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode()))

    def launch(self, blocks: int, threads: int, shared: int, argument: ctypes.Structure) -> None:
        """So many blocks, in the stream in use; `shared` in bytes."""
        with torch.cuda.device(self._device):
            if shared > self._shared:
                _checked(_driver().cuFuncSetAttribute(self._function, RESIDENT, shared))
                self._shared = shared
            stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
            given = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(argument), ctypes.c_void_p))
            sizes = (blocks, 1, 1, threads, 1, 1, shared)
            _checked(_driver().cuLaunchKernel(self._function, *sizes, stream, given, None))


@lru_cache(maxsize=64)
def _compiled(source: Path, options: tuple[str, ...]) -> bytes:
    """Machine code, from an earlier process if it was kept, behind its digest: a driver crashes on what is damaged."""
    folder, parts = cache_folder(), [source, *sorted(source.parent.glob("*.cuh"))]
    text = b"\0".join(part.read_bytes() for part in parts)
    digest = hashlib.sha256(text + "\0".join([torch.version.cuda or "", *options]).encode()).hexdigest()
    kept = None if folder is None else folder / f"{source.stem}-{digest[:32]}.cubin"
    try:
        if kept is not None and kept.exists():
            found = kept.read_bytes()
            if hashlib.sha256(found[32:]).digest() == found[:32]:
                return found[32:]
    except OSError:  # as if it were not there
        kept = None
    code = compiled(source.read_bytes(), source.name, [*options, f"--include-path={source.parent}"])
    if kept is not None:
        with suppress(OSError), replacing(kept) as new:
            new.write_bytes(hashlib.sha256(code).digest() + code)
    return code


def compiled(text: bytes, name: str, options: Sequence[str]) -> bytes:
    """Machine code of a source.

    Raises:
        RuntimeError: the compiler's own words.
    """
    nvrtc, program = _compiler(), ctypes.c_void_p()
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    if failed:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"{name} was not compiled: {log.value.decode()}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw


@lru_cache(maxsize=1)
def _compiler() -> ctypes.CDLL:
    version = (torch.version.cuda or "").split(".")[0]
    return ctypes.CDLL(f"libnvrtc.so.{version}")


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _checked(result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        words = f"CUDA: {(text.value or b'unknown error').decode()}"
        raise torch.OutOfMemoryError(words) if result == OUT_OF_MEMORY else RuntimeError(words)


def numbered(device: torch.device) -> int:
    """Its number; that of the current one where it has none."""
    return torch.cuda.current_device() if device.index is None else device.index


def compiles(make: Callable[[], Kernel], without: str) -> bool:
    """Whether a kernel can be had; a warning says what is done `without` it, and why.

    Raises:
        torch.OutOfMemoryError: now it cannot.
    """
    try:
        make()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError) as error:
        warnings.warn(f"{without}: {error}", stacklevel=3)
        return False
    return True


def available() -> bool:
    """Whether kernels can be compiled here."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return False
    try:
        return bool(_compiler() and _driver())
    except OSError:
        return False
