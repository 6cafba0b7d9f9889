"""Whether kernels of our own compute on a device: one of them is tried, once a process."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp

from dmft.engine import tensor_units
from dmft.running import nvrtc

CAPABILITY = "9.0"  # of devices: with it came products in float64 of 16 by 8 by 8 numbers
NOT_THERE = "there is no NVRTC of CUDA 12 or 13 (pip install nvidia-cuda-nvrtc-cu12, or nvidia-cuda-nvrtc)"
NO_ROOM = "RESOURCE_EXHAUSTED"  # how XLA begins what it says where memory is taken
_passed: dict[jax.Device, bool] = {}


def passed(device: jax.Device) -> bool:
    """Whether there are kernels for this device; a warning says why not, where there might be.  Where only memory was
    short, they are tried again when they are next asked for."""
    if device.platform != "gpu" or device.compute_capability != CAPABILITY:
        return False
    if device not in _passed:
        if nvrtc.version() is None:
            return _failed(device, NOT_THERE)
        try:
            _passed[device] = _multiplies(device)
        except (RuntimeError, OSError) as error:
            return _failed(device, str(error))
    return _passed[device]


def _failed(device: jax.Device, reason: str) -> bool:
    if NO_ROOM not in reason:
        _passed[device] = False
    warnings.warn(f"products are those of the vendor's library: {reason}", stacklevel=4)
    return False


def _multiplies(device: jax.Device) -> bool:
    """A block of as many vectors as there are, which needs more shared memory than a device gives unasked."""
    with jax.default_device(device), jax.enable_x64(True):
        rows = tensor_units.counted(jnp.full((2, tensor_units.WIDE), 3.0), jnp.int32(1))
        found = rows.mixed(jnp.full((8 * tensor_units.MOST, 2), 0.5))
        return bool(jnp.all(found == 1.5))
