"""attention(attention_layer, step, sample, query, key): what a position attends to, mean over heads, on request.

    attention              <sigma_st>                        over the heads of a block
    attention_head_variance    <sigma_st^2> - <sigma_st>^2      heads of one network, divided by their number

of the matrices sigma (query s, key t) that a program shows by the name "attention".  Heads are those of the measure of
the limit where their number grows; where their dimension grows, all heads follow one path and the variance vanishes.
"""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import FORWARD
from dmft.schema.registry import observable
from dmft.schema.seen import Seen
from dmft.specs import Problem
from dmft.specs.networks.sketch import ATTENTION

DIMS = ("attention_layer", "step", "sample", "query", "key")


def _refusal(problem: Problem) -> str:
    if problem.sketch.dimensions["attention_layer"]:
        return ""
    return f"{type(problem.network).__name__} has no attention; dmft.Transformer has"


def _matrices(flat: Any) -> Any:
    """(..., query, key) of pairs."""
    positions = round(flat.shape[-1] ** 0.5)
    return flat.reshape(*flat.shape[:-1], positions, positions)


@observable(dims=DIMS, long_name="attention, mean over heads", symbol=r"\sigma", needs=FORWARD, refusal=_refusal)
def attention(seen: Seen) -> Any:
    return _matrices(seen.averages(ATTENTION))


@observable(dims=DIMS, long_name="variance of attention over heads", needs=FORWARD, refusal=_refusal)
def attention_head_variance(seen: Seen) -> Any:
    mean = seen.averages(ATTENTION)
    return _matrices(seen.averages(ATTENTION, lambda a: a * a) - mean * mean)
