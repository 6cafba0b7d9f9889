"""How hard the compiler works on a function: little, where its code runs for less time than more work would save.

Most of compilation is the optimisation of loops over arrays, which little effort leaves out; large matrix products are
those of libraries either way.  Numbers differ by rounding, and code runs up to a fifth longer.

`tests/benchmarks/start.py` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import jax

from dmft.running.compiling import setting

# of a platform, the options of XLA with which it compiles in a quarter of the time
LITTLE: dict[str, dict[str, Any]] = {"cpu": {"xla_backend_optimization_level": 0}}
if jax.__version_info__ < (0, 11):  # which has no others
    LITTLE["cpu"]["xla_cpu_use_fusion_emitters"] = False
# of a platform, the options for products with parts of large arrays: by the vendor's library, which reads a part where
# it lies; the part is chosen on the device, which waits for nobody
IN_PLACE: dict[str, dict[str, Any]] = {}
if jax.__version_info__ >= (0, 11):
    IN_PLACE["gpu"] = {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_enable_dynamic_slice_fusion": True,
        "xla_gpu_enable_command_buffer": ",".join(
            ("FUSION", "CUBLAS", "CUBLASLT", "CUSTOM_CALL", "CUDNN", "CONDITIONAL", "WHILE", "DYNAMIC_SLICE_FUSION")
        ),
    }
SHORT = 1e12  # floating-point operations of a computation, up to which code is not worth more

_work: ContextVar[float] = ContextVar("work", default=math.inf)
_in_place: ContextVar[bool] = ContextVar("in_place", default=False)


@contextmanager
def for_work(operations: float) -> Iterator[None]:
    """Around a computation of so many floating-point operations, about."""
    token = _work.set(operations)
    try:
        yield
    finally:
        _work.reset(token)


@contextmanager
def for_parts(parts: bool) -> Iterator[None]:
    """Around calls of functions whose products are with `parts` of large arrays, if they are."""
    token = _in_place.set(parts)
    try:
        yield
    finally:
        _in_place.reset(token)


def options(*, brief: bool = False) -> dict[str, Any]:
    """Of the compiler, for the device that computations are on by default; of a function that is always `brief`."""
    device = setting("default_device") or jax.devices()[0]
    platform = getattr(device, "platform", device)
    if _in_place.get():
        return _taken(platform)
    return LITTLE.get(platform, {}) if brief or _work.get() < SHORT else {}


@cache
def _taken(platform: str) -> dict[str, Any]:
    """Of those for products with parts, what this compiler takes; others are left out, and cost time alone."""

    def takes(name: str, value: Any) -> bool:
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value})(0.0)
        except (RuntimeError, ValueError):
            return False
        return True

    return {name: value for name, value in IN_PLACE.get(platform, {}).items() if takes(name, value)}
