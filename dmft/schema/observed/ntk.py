"""ntk(step, sample, sample_2): K = sum_l G^{l+1} Phi^l of layers that are trained, and of any program the sum over uses
of its weights (`dmft.engine.network`); with several outputs (step, sample, output, sample_2, output_2)."""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import BACKWARD
from dmft.schema.registry import observable
from dmft.schema.seen import Seen


@observable(
    dims=("step", "sample", "sample_2"),
    long_name="neural tangent kernel K",
    label="NTK",
    symbol="K",
    needs=BACKWARD,
    per_output=True,
    on_request=False,
)
def ntk(seen: Seen) -> Any:
    return seen.tangent_kernel()
