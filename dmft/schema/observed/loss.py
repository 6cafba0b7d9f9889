"""loss(step), test_loss(step): mean over training, or test, samples of ell(f, y) (`dmft.specs.loss`)."""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import PREDICTIONS
from dmft.schema.registry import observable
from dmft.specs.loss import values


@observable(dims=("step",), needs=PREDICTIONS, on_request=False)
def loss(xp: Any, name: str, f: Any, y: Any) -> Any:
    return values(xp, name, f, y)
