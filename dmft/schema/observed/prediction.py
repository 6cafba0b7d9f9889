"""prediction(step, sample): f, centered if the network is."""

from __future__ import annotations

from dmft.schema.observable import OUTPUT, Observable
from dmft.schema.registry import register

register(
    Observable(
        "prediction",
        None,
        dims=("step", "sample"),
        long_name="prediction f",
        needs=OUTPUT,
        per_output=True,
        on_request=False,
    )
)
