"""Errors of analyses."""

from __future__ import annotations

from typing import Any


class UnresolvedError(ValueError):
    """The data do not determine what was asked for; the message says what would.

    estimate: what they do say, not to be trusted; None if nothing.

    Example:
        >>> issubclass(comparisons.UnresolvedError, ValueError)
        True
    """

    def __init__(self, message: str, estimate: Any = None) -> None:
        super().__init__(message)
        self.estimate = estimate
