"""Steps that repeat, recorded as CUDA graphs: one launch in the place of those of some hundred kernels.

Steps of small networks take a GPU less time than a program in Python takes to launch them.  What is recorded reads and
writes the same memory each time: a step repeats where it moves its tensors in place, and nothing else of it depends on
the time but what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from finite_nets.device.free_memory import free_memory

MOST = 4096  # states that are remembered as met


class Moved(Protocol):
    """What steps move: tensors in place, and what of it is in Python, its phase."""

    @property
    def phase(self) -> Any: ...

    def enter(self, phase: Any) -> None: ...

    def tensors_moved(self) -> list[Tensor]: ...


class Recorded(NamedTuple):
    """A step, and what it leaves of the state that is in Python."""

    graph: torch.cuda.CUDAGraph
    after: tuple[Any, ...]


class Replays:
    """Steps by what they depend on.

    A step is taken as it is the first time, which makes what is made once; the second time it is recorded, if as much
    memory is free as was ever taken: a graph keeps that of its step.

    Args:
        device: a GPU.
        moved: all that steps move.
    """

    def __init__(self, device: torch.device, moved: Sequence[Moved]) -> None:
        self._device, self._moved = device, moved
        self._met: set[Hashable] = set()
        self._recorded: dict[Hashable, Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._gave_up = False
        torch.cuda.reset_peak_memory_stats(device)  # from here on, that of these steps

    def step(self, kind: Hashable, taken: Callable[[], None]) -> None:
        """Take a step, or what was recorded of one of this kind from this state."""
        key = kind, self._phases(), self._places()
        if key not in self._recorded and key in self._met and self._room():
            self._record(key, taken)
        if key in self._recorded:
            graph, after = self._recorded[key]
            graph.replay()
            self._enter(after)
        else:
            if len(self._met) >= MOST:  # phases may be long, and none of them come again
                self._met.clear()
            self._met.add(key)
            taken()

    def _room(self) -> bool:
        return not self._gave_up and free_memory(self._device) > torch.cuda.max_memory_allocated(self._device)

    def _record(self, key: Hashable, taken: Callable[[], None]) -> None:
        """Without taking it; where a step does what cannot be recorded, no more are tried."""
        before, places = self._phases(), self._places()
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        aside = _aside(self._device)
        aside.wait_stream(here)
        try:
            with torch.cuda.stream(aside):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    taken()
                finally:
                    graph.capture_end()
        except RuntimeError:
            self._gave_up = True
        here.wait_stream(aside)
        after = self._phases()
        self._enter(before)
        # where places changed, what was recorded is not what the next step of this key does
        self._gave_up = self._gave_up or self._places() != places
        if not self._gave_up:
            self._recorded[key] = Recorded(graph, after)

    def _phases(self) -> tuple[Any, ...]:
        return tuple(each.phase for each in self._moved)

    def _enter(self, phases: Sequence[Any]) -> None:
        for each, its in zip(self._moved, phases, strict=True):
            each.enter(its)

    def _places(self) -> tuple[int, ...]:
        return tuple(tensor.data_ptr() for each in self._moved for tensor in each.tensors_moved())


@lru_cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: what libraries keep for a stream is kept once."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
