"""PyTorch as it comes, around computations of a host program with its own settings (`dmft.running.host` says why)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from finite_nets.device.forks import forked

# where PyTorch 2.9 and later keep how products of float32 are made, one place a backend
PRODUCTS = (
    torch.backends.cuda.matmul,
    getattr(torch.backends.mkldnn, "matmul", None),
    getattr(torch.backends.cudnn, "conv", None),
)
NAME = "fp32_precision"


@contextmanager
def usual_torch(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Without gradients, on the device, where kernels are launched too; products of float32 in TF32 if that is asked
    for.  Modes are those of this thread; what PyTorch keeps for all threads is put back."""
    if forked():  # the threads of PyTorch are not there, their locks are
        torch.set_num_threads(1)
    with ExitStack() as settings:
        for reads, sets, value in _of_all_threads(tf32):
            before = reads()
            if before != value:
                sets(value)
                settings.callback(sets, before)
        if torch.get_default_device().type != "cpu":  # a mode that every call would pass through
            settings.enter_context(torch.device("cpu"))
        for kind in {"cpu", device.type}:
            settings.enter_context(torch.autocast(kind, enabled=False))
        settings.enter_context(torch.cuda.device(device) if device.type == "cuda" else nullcontext())
        settings.enter_context(torch.inference_mode())
        yield


def _of_all_threads(tf32: bool) -> list[tuple[Callable[[], Any], Callable[[Any], Any], Any]]:
    """How each is read, how it is set, and what it is to be."""
    found: list[tuple[Callable[[], Any], Callable[[Any], Any], Any]] = [
        (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
        (lambda: sys.float_info.min / 2 == 0, torch.set_flush_denormal, False),
    ]
    if not all(hasattr(place, NAME) for place in PRODUCTS):
        setting = "high" if tf32 else "highest"
        return [*found, (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, setting)]
    # the older functions refuse to speak where a host has used these
    return [
        *found,
        *(
            (partial(getattr, place, NAME), partial(setattr, place, NAME), "tf32" if tf32 else "ieee")
            for place in PRODUCTS
        ),
    ]
