"""What makes the pages of docs/: docstrings as reStructuredText, formulas as drawings, generated parts.

The pages themselves, with their examples, are built by `make docs`, in which every warning is an error.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("sphinx.application", reason="the extra docs is not installed")
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of ziamath, on Python 3.11
    import docstrings
    import generated
    import static_math

import comparisons
import dmft
import figures
import finite_nets

DOCSTRING = """One line with |bars| and *stars*.

    h = W x

Args:
    a: what it is,
        at length.

Returns:
    Dataset with:

        q(step)    a table

Assumptions and approximations
    Few.
"""


def test_indented_blocks_are_literal_and_sections_stay() -> None:
    found = docstrings.restructured(DOCSTRING.splitlines())
    assert found[0] == r"One line with \|bars\| and \*stars\*."
    assert found[found.index("    h = W x") - 2] == "::"
    assert found[found.index("Args:") + 1] == "    a: what it is,"
    assert found[found.index("        q(step)    a table") - 2] == "    ::"
    assert found[found.index("**Assumptions and approximations**") + 2] == "Few."


def test_formulas_are_drawn_and_unknown_commands_are_errors() -> None:
    drawn = static_math.drawing(r"\frac{1}{N}\,\Phi^l_{\mu a}", "inline")
    assert drawn.startswith("<svg")
    assert 'fill="currentColor"' in drawn
    with pytest.raises(static_math.UnknownCommandError, match="nosuchcommand"):
        static_math.drawing(r"\nosuchcommand{x}", "block")


@pytest.mark.parametrize("package", [dmft, finite_nets, comparisons], ids=lambda package: package.__name__)
def test_every_public_name_is_documented(package: object) -> None:
    page = generated.api(package.__name__)
    for name in package.__all__:
        assert f":: {package.__name__}.{name}\n" in page


def test_every_kind_of_result_is_in_the_table_of_kinds_and_in_the_docstring() -> None:
    page = (ROOT / "docs" / "concepts" / "schema.md").read_text()
    for kind in dmft.schema.KINDS:
        assert f"`{kind}`" in page
        assert f'"{kind}"' in dmft.schema.__doc__


def test_the_gallery_has_every_figure_and_takes_missing_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    page = generated.gallery()
    assert page.count("\n## ") == len(figures.names()) - 1
    assert all(f"python -m figures {name}\n" in page for name in figures.names())
    monkeypatch.setattr(generated, "ROOT", Path("/nowhere"))
    assert "{image}" not in generated.gallery()
