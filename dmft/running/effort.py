"""How hard the compiler works on a function: little, where its code runs for less time than more work would save.

On a CPU most of compilation is the optimisation of loops over arrays, which little effort leaves out; large matrix
products are those of libraries either way.  Numbers differ by rounding; code of a few samples, which is such loops,
runs twice as long, of many a seventh longer.  On a GPU most of compilation is the search for the fastest kernel of
every product, which gains a quarter at most.

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

# of a platform, the options for products that the vendor's library makes as it knows best: to try its kernels and
# others, and to compile those that might be faster, is two thirds of compilation
UNTUNED: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}}
# of a platform, the options of XLA with which it compiles in a third or a quarter of the time
LITTLE: dict[str, dict[str, Any]] = {"cpu": {"xla_backend_optimization_level": 0}, **UNTUNED}
if jax.__version_info__ < (0, 11):  # which has no others
    LITTLE["cpu"]["xla_cpu_use_fusion_emitters"] = False
# of a platform, the options for products with parts of large arrays: by the vendor's library, which reads a part where
# it lies; the part is chosen on the device, which waits for nobody
IN_PLACE: dict[str, dict[str, Any]] = {}
if jax.__version_info__ >= (0, 11):
    IN_PLACE["gpu"] = UNTUNED["gpu"] | {
        "xla_gpu_enable_dynamic_slice_fusion": True,
        "xla_gpu_enable_command_buffer": ",".join(
            ("FUSION", "CUBLAS", "CUBLASLT", "CUSTOM_CALL", "CUDNN", "CONDITIONAL", "WHILE", "DYNAMIC_SLICE_FUSION")
        ),
    }
# of a platform, entries (layer, row, particle) of the fields of all steps up to which the code of a training is not
# worth more: what is done for each of them is what is optimised.  On a CPU more effort saves .3 s of so many for one
# second of compilation, on a GPU some seconds for twenty
SHORT = {"cpu": 2e6, "gpu": 3e9}
DERIVATIVES = 8  # how much code those of a training are, of its own

_work: ContextVar[float] = ContextVar("work", default=math.inf)
_products: ContextVar[dict[str, dict[str, Any]]] = ContextVar("products")


@contextmanager
def for_work(entries: float) -> Iterator[None]:
    """Around a computation of fields with so many entries, for as much code as that of a training is."""
    token = _work.set(entries)
    try:
        yield
    finally:
        _work.reset(token)


@contextmanager
def for_products(known: dict[str, dict[str, Any]] | None) -> Iterator[None]:
    """Around calls of functions whose products are of this kind: IN_PLACE, UNTUNED, or no other than usual."""
    token = _products.set(known or {})
    try:
        yield
    finally:
        _products.reset(token)


def device() -> jax.Device:
    """That computations are on by default."""
    chosen = setting("default_device") or jax.devices()[0]
    return jax.devices(chosen)[0] if isinstance(chosen, str) else chosen


def options(*, brief: bool = False) -> dict[str, Any]:
    """Of the compiler, for the device that computations are on by default; of a function that is always `brief`."""
    platform = device().platform
    if known := _products.get({}).get(platform):
        # those that this compiler does not know are left out, and cost time alone
        return {name: value for name, value in known.items() if _takes(platform, name, value)}
    return LITTLE.get(platform, {}) if brief or _work.get() < SHORT.get(platform, 0.0) else {}


@cache
def _takes(platform: str, name: str, value: Any) -> bool:
    """Whether the compiler of this platform, where computations are, does."""
    del platform
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(0.0).compile()  # memory may be short to run it
    except (RuntimeError, ValueError):
        return False
    return True
