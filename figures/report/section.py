"""What a section of the report holds; the template says how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells of a head and of rows; `text` where they are words rather than numbers."""

    head: list[str]
    rows: list[list[str]]
    text: bool = False


@dataclass(frozen=True)
class Picture:
    """A drawing (SVG in base64) and what is under it."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page, in the order of its fields; what is empty is left out.

    In sentences and text, N^-1/2 is N with a raised exponent.
    """

    key: str
    title: str
    sentences: Sequence[str] = ()
    text: str = ""
    table: Table | None = None
    plain: str = ""  # folded up
    picture: Picture | None = None
    reasons: Sequence[str] = ()


def table(head: list[str], rows: list[list[str]], *, text: bool = False) -> Table:
    """A table without the columns that have no entry."""
    held = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return Table([head[i] for i in held], [[row[i] for i in held] for row in rows], text)
