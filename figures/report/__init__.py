"""`report`: a comparison as one HTML file that needs nothing else: tables, figures, provenance, the problem.

The file holds its pictures and numbers itself and asks no network for anything.  Curves and kernels can be looked at
step by step.

    results.py                  what is given, and what follows from it
    sections, pictures, provenance.py    what is said of it; data.py    numbers of the interactive part
    blocks.py, page.html        what sections are made of, and how that looks
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2
import xarray as xr

from dmft.running.host import usual_errors
from dmft.running.paths import local, replacing
from dmft.schema.sources import kind_of
from figures.report.blocks import Items, Section
from figures.report.data import data_of
from figures.report.pictures import FIGURES, pictures
from figures.report.provenance import problem_section, provenance_section
from figures.report.results import checked, completed
from figures.report.sections import answer, comparison_sections, loss_sections


@usual_errors
def report(
    tree: xr.DataTree | Mapping[str, xr.Dataset], path: str | Path, *, title: str = "Networks and their limit"
) -> Path:
    """Write a report of results of one problem.

    Args:
        tree: Datasets by name, or a DataTree of them: a limit and networks (of kind "ensemble" or "moments"), and
            anything else of the same problem: fluctuations, a comparison, analyses of `comparisons`.  What can be made
            from the limit and the networks and is not there is made.
        path: the HTML file; it appears whole or not at all.
        title: of the page.

    Returns:
        The path.

    Raises:
        TypeError: not Datasets by name.
        ValueError: a path that is a folder; results of different problems, several limits, ensembles or fluctuations,
            or none that a report could show.
        SchemaError: a result that is damaged.

    Example:
        >>> comparisons.report({"comparison": comparison}, folder / "report.html").name
        'report.html'
    """
    path = local(path)
    if path.is_dir():
        raise ValueError(
            f"path={str(path)!r} is a folder; expected the name of a file, to be written or replaced: give e.g. "
            f"{str(path / 'report.html')!r}."
        )
    given = checked(tree)
    found, left_out = completed(given)
    shown = {name: ds for name, ds in found.items() if kind_of(ds) in FIGURES}
    if not shown:
        raise ValueError(
            f"nothing to report in {', '.join(given) or 'an empty tree'}: give a limit and networks of the same "
            "problem, or a comparison."
        )
    drawn = pictures(shown, left_out)
    above = [*answer(found), *drawn[:1], *comparison_sections(found), *loss_sections(found)]
    below = [*drawn[1:], problem_section(found), provenance_section(given)]
    if left_out:
        below.append(Section("left-out", "Not shown", (Items(left_out),)))
    any_result = next(iter(found.values()))
    page = _environment().get_template("page.html")
    text = page.render(title=title, attrs=any_result.attrs, above=above, below=below, data=data_of(found))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("figures", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    found.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return found
