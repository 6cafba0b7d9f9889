"""What the sections of a report are made of; how they look says the template (`page.html`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Paragraph:
    """Text; markup in it is that of `markupsafe.Markup`."""

    text: str
    strong: bool = False
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Table:
    """Rows of cells beneath a head; of numbers, or of `text`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: bool = False
    kind: ClassVar[str] = "table"

    @property
    def columns(self) -> list[int]:
        """Those that have an entry."""
        return [i for i in range(len(self.head)) if any(row[i] for row in self.rows)]


@dataclass(frozen=True)
class Picture:
    """An SVG, base64, with its caption."""

    alt: str
    source: str
    caption: str
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Listing:
    """Plain text behind a word to click on."""

    summary: str
    text: str
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: Sequence[str]
    kind: ClassVar[str] = "items"


Block = Paragraph | Table | Picture | Listing | Items


@dataclass(frozen=True)
class Section:
    """key: its anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]
