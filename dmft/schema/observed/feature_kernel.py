"""feature_kernel(layer, step, sample, sample_2): Phi^l = <phi(h^l) phi(h^l)>, the mean over equal positions."""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import FORWARD
from dmft.schema.registry import observable
from dmft.schema.seen import Seen


@observable(
    dims=("layer", "step", "sample", "sample_2"),
    long_name="feature kernel Phi",
    label="feature kernels",
    symbol=r"\Phi",
    needs=FORWARD,
    on_request=False,
    fields=lambda seen: seen.features,
)
def feature_kernel(seen: Seen) -> Any:
    return seen.inner(seen.features, seen.features)
