"""preactivation_kernel(layer, step, sample, sample_2): <h^l h^l>, the mean over equal positions; on request.

At initialisation it is Phi^{l-1} with the biases, of which preactivations are Gaussian given the layer below; training
adds to it what the neurons have learned.
"""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import FORWARD
from dmft.schema.registry import observable
from dmft.schema.seen import Seen


@observable(
    dims=("layer", "step", "sample", "sample_2"),
    long_name="preactivation kernel <h h>",
    label="preactivation kernels",
    symbol=r"\langle hh\rangle",
    needs=FORWARD,
    fields=lambda seen: seen.preactivations,
)
def preactivation_kernel(seen: Seen) -> Any:
    return seen.inner(seen.preactivations, seen.preactivations)
