"""The machine that a computation runs on: its devices, the memory that they have left, the precision of JAX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import jax

from dmft.running import blas, card, compiling, host, memory
from dmft.specs import _check


@contextmanager
def precision(dtype: str, device: jax.Device) -> Iterator[None]:
    """JAX with numbers of `dtype`, their products in full precision, on a device, whatever the host program has set;
    what is compiled is kept for the next process.  On a CPU, with one thread of BLAS in the whole process."""
    with (
        compiling.cached(),
        host.usual_jax(),
        jax.enable_x64(dtype == "float64"),
        jax.default_matmul_precision("highest"),
        jax.default_device(device),
        blas.one_thread() if device.platform == "cpu" else nullcontext(),
    ):
        yield


def available_bytes(device: jax.Device) -> int:
    """Free memory of the machine, or of a GPU: what JAX lets itself take, as far as others have left it."""
    stats = device.memory_stats()
    if not stats:
        return memory.available_on_host()
    used: int = stats["bytes_in_use"]
    allowed: int = stats["bytes_limit"] - used
    free = card.free_bytes(device.local_hardware_id or 0)
    return allowed if free is None else min(allowed, free + stats.get("pool_bytes", used) - used)


def find_devices(name: str, count: int = 1) -> tuple[jax.Device, ...]:
    """`count` JAX devices of the kind called "auto", "cpu", "gpu" or, as PyTorch has it, "cuda".

    Raises:
        ValueError, TypeError: another name, no such device, or fewer.
    """
    if name not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f'device={name!r} is unknown; use "auto", "cpu" or "gpu".')
    count = _check.integer("devices", count, minimum=1)
    present = _default_devices()
    try:
        found = present if name == "auto" else jax.devices(name)
    except RuntimeError as error:
        raise ValueError(f'device={name!r}: JAX has only {present[0].platform} devices; use "auto".') from error
    if count > len(found):
        raise ValueError(
            f"devices={count}, but JAX has {len(found)} of kind {found[0].platform}; use devices={len(found)} or fewer."
        )
    return tuple(found[:count])


def _default_devices() -> list[jax.Device]:
    """Those that JAX takes by itself.

    Raises:
        ValueError: it finds none, as where JAX_PLATFORMS names what is not there.
    """
    try:
        return jax.devices()
    except RuntimeError as error:
        platforms = getattr(jax.config, "jax_platforms", None)
        reason = str(error).splitlines()[0].rstrip(".")
        if platforms is None:
            raise ValueError(f"JAX finds no device to compute on: {reason}.") from error
        raise ValueError(
            f"JAX_PLATFORMS={platforms} asks JAX for a device that it does not find ({reason}); unset it, or set "
            "JAX_PLATFORMS=cpu."
        ) from error
