"""Formulas as drawings (SVG) that are made with the pages: readers load nothing, and need no fonts.

A renderer of Sphinx (`html_math_renderer = "svg"`) over ziamath.  A command that ziamath does not know would be drawn
as its name; it is a warning of the build instead.
"""

from __future__ import annotations

import html
import re
from functools import cache
from typing import Any

import latex2mathml.converter
import ziafont
import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

SIZE = 16.0  # units in which drawings are made; they are shown in units of the text around them
SCALE = {"inline": 1.06, "block": 1.12}  # x-heights of text and formulas are the same then
logger = logging.getLogger(__name__)
ziafont.config.svg2 = False  # every drawing by itself, without names that others on the page could have, too


class UnknownCommandError(ValueError):
    """A command that would be drawn as its name."""


@cache
def drawing(latex: str, kind: str) -> str:
    """The formula as text of HTML.

    Raises:
        UnknownCommandError: naming the commands.
    """
    latex = latex.strip()
    if kind == "block" and r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    unknown = re.findall(r"\\[A-Za-z]+", html.unescape(latex2mathml.converter.convert(_spaced(latex))))
    if unknown:
        raise UnknownCommandError(f"{', '.join(unknown)} in the formula {latex}")
    drawn = ziamath.Latex(_spaced(latex), size=SIZE, color="currentColor", inline=kind == "inline", margin=0.2)
    svg, scale = drawn.svg(), SCALE[kind]

    def relative(match: re.Match[str]) -> str:
        return f'{match[1]}="{scale * float(match[2]) / SIZE:.3f}em"'

    head, rest = svg.split(">", 1)
    head = re.sub(r'\b(width|height)="([\d.]+)"', relative, head)
    shift = scale * drawn.getyofst() / SIZE
    style = f' style="vertical-align: {shift:.3f}em"' if kind == "inline" else ""
    rest = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", rest)
    label = html.escape(latex, quote=True)
    return f'{head} role="img" aria-label="{label}"{style}>{rest}'


def _spaced(latex: str) -> str:
    """Commands that the converter lacks, by those that it has; space around the names of operators."""
    latex = re.sub(r"(?<=[A-Za-z0-9}])\\operatorname", r"\\,\\operatorname", latex)
    latex = re.sub(r"(\\operatorname\{\w+\}|\\mathbb\{E\}) *(?=[A-Za-z])", r"\1\\,", latex)
    return latex.replace(r"\!", "").replace(r"\lvert", "|").replace(r"\rvert", "|")


def _drawn(node: Any, kind: str) -> str:
    try:
        return drawing(node.astext(), kind)
    except Exception as error:
        logger.warning("formula not drawn: %s: %s", type(error).__name__, error, location=node)
        return f"<code>{html.escape(node.astext())}</code>"


def visit_inline(self: Any, node: Any) -> None:
    self.body.append(f'<span class="math">{_drawn(node, "inline")}</span>')
    raise nodes.SkipNode


def visit_block(self: Any, node: Any) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(f'<div class="formula">{_drawn(node, "block")}</div>')
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("svg", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
