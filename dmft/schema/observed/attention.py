"""attention(attention_layer, step, sample, query, key): <sigma_st> over the heads of a block, on request.

sigma (query s, key t) are the matrices that a program shows by the name "attention": rows of it sum to one.
"""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import FORWARD
from dmft.schema.registry import observable
from dmft.schema.seen import Seen
from dmft.specs import Problem
from dmft.specs.networks.sketch import ATTENTION

DIMS = ("attention_layer", "step", "sample", "query", "key")


def refusal(problem: Problem) -> str:
    if problem.sketch.dimensions["attention_layer"]:
        return ""
    return f"{type(problem.network).__name__} has no attention; dmft.Transformer has"


def matrices(flat: Any) -> Any:
    """(..., query, key) of pairs."""
    positions = round(flat.shape[-1] ** 0.5)
    return flat.reshape(*flat.shape[:-1], positions, positions)


@observable(dims=DIMS, long_name="attention, mean over heads", symbol=r"\sigma", needs=FORWARD, refusal=refusal)
def attention(seen: Seen) -> Any:
    return matrices(seen.averages(ATTENTION))
