"""participation_ratio(layer, step): (tr Phi^l)^2 / tr (Phi^l)^2, on request.

How many directions the features of the observed samples fill: the number of samples where these are orthogonal and
equally long, 1 where they are parallel.  Features that align with few targets lower it.
"""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import FORWARD
from dmft.schema.registry import observable
from dmft.schema.seen import Seen


@observable(
    dims=("layer", "step"),
    long_name="participation ratio of the feature kernel",
    label="participation ratio",
    needs=FORWARD,
)
def participation_ratio(seen: Seen) -> Any:
    phi = seen["feature_kernel"]
    return seen.xp.einsum("...aa->...", phi) ** 2 / (phi * phi).sum((-2, -1))
