"""Kernels in CUDA C++, compiled while a program runs (`dmft.running.nvrtc`) and launched on arrays of PyTorch.

For what Triton cannot say: which numbers a thread keeps in its registers from one product to the next.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch

from dmft.running.nvrtc import kept, library

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
        options = (f"--gpu-architecture=sm_{major}{minor}", *(f"-D{key}={value}" for key, value in defined.items()))
        code = kept(source, options, torch.version.cuda or "")
        self._device, self._shared = device, USUAL_SHARED
        with torch.cuda.device(device):
            torch.cuda.current_stream(device).synchronize()  # makes the context of the device that of this thread
            self._module = ctypes.c_void_p()
            _checked(_driver().cuModuleLoadData(ctypes.byref(self._module), code))
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
        return bool(library(torch.version.cuda) and _driver())
    except OSError:
        return False
