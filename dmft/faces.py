"""What notebooks show of an object: a small table, for `_repr_html_`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST = 6  # entries of a list that are shown


def table(rows: Mapping[str, Any], title: str = "") -> str:
    """Labels and values as HTML, escaped; rows without a value are left out."""
    body = "".join(
        f'<tr><th style="text-align: left">{html.escape(label)}</th>'
        f'<td style="text-align: left">{html.escape(shown(value))}</td></tr>'
        for label, value in rows.items()
        if value not in ("", None)
    )
    return f"<table>{_caption(title)}<tbody>{body}</tbody></table>"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    """Cells of text under their headings as HTML, escaped."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{_caption(title)}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def text(lines: str) -> str:
    """Lines of text as HTML, escaped, in letters of one width."""
    return f"<pre>{html.escape(lines)}</pre>"


def shown(value: Any) -> str:
    """A value in a few words: of long lists the ends and the number of entries."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_within(each)}" for name, each in value.items() if each not in ("", None))
    if isinstance(value, list | tuple):
        if len(value) <= MOST:
            return ", ".join(map(_within, value))
        return f"{_within(value[0])}, ..., {_within(value[-1])} ({len(value)} of them)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _within(value: Any) -> str:
    return f"({shown(value)})" if isinstance(value, Mapping | list | tuple) else shown(value)


def _caption(title: str) -> str:
    return f'<caption style="text-align: left"><b>{html.escape(title)}</b></caption>' if title else ""
