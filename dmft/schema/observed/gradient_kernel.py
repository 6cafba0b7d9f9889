"""gradient_kernel(layer, step, sample, sample_2): G^l = <g^l g^l>, g^l = gamma0 N df/dh^l, the sum over equal
positions; with several outputs (..., sample, output, sample_2, output_2)."""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import BACKWARD
from dmft.schema.registry import observable
from dmft.schema.seen import Seen


@observable(
    dims=("layer", "step", "sample", "sample_2"),
    long_name="gradient kernel G",
    label="gradient kernels",
    symbol="G",
    needs=BACKWARD,
    per_output=True,
    on_request=False,
    fields=lambda seen: seen.gradients,
    mean=False,
)
def gradient_kernel(seen: Seen) -> Any:
    return seen.inner(seen.gradients, seen.gradients, mean=False)
