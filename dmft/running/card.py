"""Memory of a card that no process has taken, by CUDA's driver: JAX knows of its own share alone."""

from __future__ import annotations

import ctypes


def free_bytes(number: int) -> int | None:
    """Of the card with this number; None where no driver says."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    card, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(card), number):
        return None
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), card):  # that of JAX, once more
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return None
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
        return None if failed else free.value
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(card)
