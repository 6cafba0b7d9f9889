"""attention_head_variance(attention_layer, step, sample, query, key): <sigma^2> - <sigma>^2 over heads, on request.

It is that of the heads of one network, divided by their number; in the limit of many heads that of their law.  Where
the dimension of heads grows, all follow one path and it vanishes.
"""

from __future__ import annotations

from typing import Any

from dmft.schema.observable import FORWARD
from dmft.schema.observed.attention import DIMS, matrices, refusal
from dmft.schema.registry import observable
from dmft.schema.seen import Seen
from dmft.specs.networks.sketch import ATTENTION


@observable(dims=DIMS, long_name="variance of attention over heads", needs=FORWARD, refusal=refusal)
def attention_head_variance(seen: Seen) -> Any:
    mean = seen.averages(ATTENTION)
    return matrices(seen.averages(ATTENTION, lambda a: a * a) - mean * mean)
