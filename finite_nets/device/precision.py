"""How the numbers of networks are kept and multiplied.

    name       kept as            products with weights
    float64    float64            float64
    float32    float32            float32 (on a GPU three products each, of TF32 numbers or halves, as accurate
                                  but for updates by samples of very different size:
                                  `finite_nets.device.triton`, `.fused`)
    tf32       float32            TF32, 10 bits of mantissa, on a GPU; float32 elsewhere
    bf16       float32, hidden    bfloat16, 7 bits of mantissa, sums in float32; what training adds to the hidden
               matrices at their  matrices is kept beside them in float32 (`device.matrices`), for weights in
               start bfloat16     bfloat16 would swallow steps below 1/256 of their size

Measured effects on means and variances: tests/benchmarks/RESULTS.md.  The error of float32 is far below what a million
networks resolve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dmft.schema import ROUNDING
from finite_nets.device.rounding import Quantisation


@dataclass(frozen=True)
class Precision:
    """fields: of fields, results, and all weights but hidden matrices at their start; start: of those; quantisation:
    what is rounded to few bits besides, None where networks have nothing to do with it."""

    name: str
    fields: torch.dtype
    start: torch.dtype
    quantisation: Quantisation | None = None

    @property
    def in_parts(self) -> bool:
        """Whether samples may pass some at a time: activations are rounded by a scale that all of a batch share."""
        return self.quantisation is None or self.quantisation.activations is None

    @property
    def results(self) -> str:
        """The dtype of what is recorded, in words."""
        return "float64" if self.fields == torch.float64 else "float32"


PRECISIONS = {
    "float64": Precision("float64", torch.float64, torch.float64),
    "float32": Precision("float32", torch.float32, torch.float32),
    "tf32": Precision("tf32", torch.float32, torch.float32),
    "bf16": Precision("bf16", torch.float32, torch.bfloat16),
}
assert set(PRECISIONS) == set(ROUNDING)


def precision(name: str) -> Precision:
    """The precision of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRECISIONS:
        raise ValueError(f"dtype={name!r} is not offered; choose one of {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
