"""Kernels of our own in CUDA C++ (.cu beside this file), called from compiled code for a GPU.

XLA takes PTX together with the call: nothing is registered, and executables that are kept have it in them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmft.running import nvrtc

CAPABILITY = "9.0"  # of devices: with it came products in float64 of 16 by 8 by 8 numbers
CALL = "__gpu$xla.gpu.ptx"  # of XLA


@cache
def known(device: jax.Device) -> bool:
    """Whether there are kernels for this device; a warning says why not, where there might be."""
    if device.platform != "gpu" or device.compute_capability != CAPABILITY or nvrtc.version() is None:
        return False
    sizes = {"N": 1, "THREADS": 32}
    try:
        with jax.default_device(device), jax.enable_x64(True):
            four, one = jnp.full((1, 1), 4.0), jnp.ones((), jnp.int32)
            found = called("factors.cu", "normalising", sizes, [((1, 1), four.dtype)], four, one, threads=32, shared=2)
            return float(found[0][0, 0]) == 0.5
    except (RuntimeError, OSError) as error:
        warnings.warn(f"products are those of the vendor's library: {error}", stacklevel=2)
        return False


def called(
    source: str,
    name: str,
    defined: Mapping[str, int],
    made: list[tuple[tuple[int, ...], Any]],
    *given: jax.Array,
    grid: tuple[int, int] = (1, 1),
    threads: int,
    shared: int = 0,
    in_place: bool = False,
) -> list[jax.Array]:
    """What the kernel `name` of a source makes of arrays.

    Args:
        defined: what the preprocessor is to know, beside the name in capitals.
        made: shapes and types of results, which a kernel takes behind what is given.
        grid: blocks; threads: of each; shared: its numbers in float64 in shared memory.
        in_place: whether the one result is the first of what is given, changed.
    """
    version = nvrtc.version()
    assert version is not None
    options = ["--gpu-architecture=compute_90", f"-D{name.upper()}"]
    options += [f"-D{key}={value}" for key, value in defined.items()]
    code = nvrtc.kept(Path(__file__).with_name(source), tuple(options), version).rstrip(b"\0")
    sizes = {"grid_x": grid[0], "grid_y": grid[1], "grid_z": 1, "block_x": threads, "block_y": 1, "block_z": 1}
    sizes["shared_mem_bytes"] = 8 * shared
    attributes = {key: np.int32(value) for key, value in sizes.items()}
    results = [jax.ShapeDtypeStruct(*each) for each in made]  # type: ignore[no-untyped-call]
    aliases = {0: 0} if in_place else None
    call = jax.ffi.ffi_call(CALL, results, input_output_aliases=aliases)
    return list(call(*given, name=name, kernel_type="ptx", kernel_data=code, **attributes))
