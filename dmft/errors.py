"""Errors that both the theory and the networks raise, and the one rule of when training has diverged."""

from __future__ import annotations

from typing import Any

DIVERGED = 1e6


class DivergenceError(ArithmeticError):
    """Training left the finite numbers, or its loss exploded; the message names step and place."""


class NotConvergedError(ArithmeticError):
    """An iteration ended before its errors were as small as asked for; the message says by how much, and what to do.

    estimate: the Dataset that was reached, which is no result.
    """

    def __init__(self, message: str, estimate: Any = None) -> None:
        super().__init__(message)
        self.estimate = estimate


class MemoryEstimateError(MemoryError):
    """The work would not fit in memory; the message holds the numbers and the ways out."""


class DataError(ValueError):
    """A file of data is damaged, of another kind or ambiguous; the message names it, what is wrong and the way out."""


class SchemaError(ValueError):
    """A Dataset does not have the form that `dmft.schema` describes; the message names the difference."""


class StoreError(ValueError):
    """A store of ensembles is of another format or other settings, or damaged; the message names the difference."""


class DamagedBlockError(StoreError):
    """A block of a store that cannot be read as it was written; it can be taken out and made again."""


def exploded(loss: Any, initial: Any) -> Any:
    """Where a loss is above `DIVERGED` times the larger of its initial value and 1, or not a number.

    For arrays of NumPy or PyTorch.  (A catapult, in which a loss first grows some hundred times, is not a divergence.)
    """
    return ~(loss <= DIVERGED * initial) & ~(loss <= DIVERGED)
