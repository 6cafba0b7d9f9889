"""Errors that both the theory and the networks raise."""

from __future__ import annotations


class DivergenceError(ArithmeticError):
    """Training left the finite numbers, or its loss exploded; the message names step and place."""


class MemoryEstimateError(MemoryError):
    """The work would not fit in memory; the message holds the numbers and the ways out."""


class SchemaError(ValueError):
    """A Dataset does not have the form that `dmft.schema` describes; the message names the difference."""
