"""Kernels of our own in CUDA C++ (.cu beside this file), called from compiled code for a GPU.

XLA takes PTX together with the call: nothing is registered, and executables that are kept have it in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dmft.running import nvrtc

CALL = "__gpu$xla.gpu.ptx"  # of XLA


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
