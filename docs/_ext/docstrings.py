"""Docstrings of the package as reStructuredText: they are plain text with sections "Args:", "Returns:", "Raises:".

Blocks that are indented by themselves, after a blank line (formulas, tables, examples), are kept as they are; headings
without a colon, such as "Assumptions and approximations", become bold; characters that reStructuredText would take for
markup are escaped.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

SECTION = re.compile(r"(Args|Returns|Raises|Warns|Yields|Attributes|Example|Examples|Note|Notes):\s*$")
HEADING = re.compile(r"[A-Z][A-Za-z ]+$")
CODE = re.compile(r"(``?[^`]+``?)")


def escaped(line: str) -> str:
    """Outside of backticks, without markup."""
    parts = CODE.split(line)
    parts[::2] = [re.sub(r"(?<!\\)([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that are indented, or are not; blank lines stay with what precedes them."""
    run: list[str] = []
    for line in lines:
        if run and line.strip() and line.startswith(" ") != run[0].startswith(" "):
            yield run
            run = []
        run.append(line)
    if run:
        yield run


def listed(lines: list[str]) -> list[str]:
    """Paragraphs with hanging indents are lists: an item a line, which stays one."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        items = paragraph.split("\n")
        if not paragraph.startswith(" ") and any(item.startswith(" ") for item in items):
            items = re.sub(r"\n +", " ", paragraph).split("\n")
            items = [f"- {item}" for item in items]
        found += [*items, ""]
    return found


def restructured(lines: list[str]) -> list[str]:
    """The docstring as reStructuredText for napoleon."""
    found: list[str] = []
    before = ""  # the last line that is not indented
    for block in blocks(textwrap.dedent("\n".join(lines)).splitlines()):
        inner = textwrap.dedent("\n".join(block)).splitlines()
        if not block[0].startswith(" "):
            text = [line for line in block if line.strip()]
            before = text[-1] if text else ""
            found += [escaped(line) if not SECTION.match(line) else line for line in block]
        elif SECTION.match(before) and not before.startswith("Returns"):
            found += [escaped(line) for line in block]
        elif before.startswith("Returns"):
            found[-1] = ":returns:"
            found += [f"    {line}" if line else "" for line in restructured(listed(inner))] + [""]
        elif found and not found[-1].strip():
            found += ["::", "", *block, ""]
        elif HEADING.match(before):
            found[-1] = f"**{found[-1]}**"
            found += ["", *map(escaped, inner), ""]
        else:  # goes on with the line before
            found[-1] += " " + " ".join(escaped(line) for line in inner if line)
            found += [""] * (not inner[-1])
    return found


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    del app, what, name, obj, options
    lines[:] = restructured(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
