"""What the program around this library has set, and what a computation needs instead.

A host program may have made NumPy, JAX or PyTorch strict, or changed what they do by default.  No number here depends
on that, and nothing of it stops a computation: around every computation each of them is set as it comes, and
afterwards as the host had it.  (Warnings that are errors stay the host's decision.)  Threads of BLAS are a number of
the whole process: while anything is computed on a CPU, NumPy and SciPy have one in all Python threads.

    usual_errors        NumPy: a decorator of every public function that computes
    usual_jax           JAX: around its computations, by `dmft.drivers.machine.precision`
    dmft.running.blas          BLAS: its threads, beside those of JAX on a CPU
    finite_nets.device.host    PyTorch
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

# as NumPy comes
usual_errors = np.errstate(divide="warn", over="warn", under="ignore", invalid="warn")

# Of the settings that JAX offers as contexts, those that change numbers or raise errors, as JAX comes.  Some are only
# in some of its versions.
JAX: dict[str, Any] = {
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "default_prng_impl": "threefry2x32",
    "threefry_partitionable": True,
    "enable_custom_prng": False,
    "legacy_prng_key": "allow",
    "debug_key_reuse": False,
    "debug_nans": False,
    "debug_infs": False,
    "enable_checks": False,
    "check_tracer_leaks": False,
    "no_tracing": False,
    "no_execution": False,
    "disable_jit": False,
    "transfer_guard": "allow",
    "array_garbage_collection_guard": "allow",
    "thread_guard": False,
    "allow_f16_reductions": True,
}


@contextmanager
def usual_jax() -> Iterator[None]:
    """JAX as it comes, in this thread."""
    import jax

    with ExitStack() as settings:
        for name, value in JAX.items():
            if hasattr(jax, name):
                settings.enter_context(getattr(jax, name)(value))
        if not jax.sharding.get_abstract_mesh().empty:  # arrays without a place would be spread over its devices
            settings.enter_context(jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())))
        yield
