"""`report`: results of one problem as one HTML file.

The file holds its pictures and numbers itself and asks no network for anything.  Curves and kernels can be looked at
step by step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
import xarray as xr
from markupsafe import Markup, escape

from dmft.running.host import usual_errors
from dmft.running.paths import local
from dmft.schema.storage import replacing
from figures.report import numbers, pictures, problem, results, tables
from figures.report.section import Section


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
    """
    path = local(path)
    if path.is_dir():
        raise ValueError(
            f"path={str(path)!r} is a folder; expected the name of a file, to be written or replaced: give e.g. "
            f"{str(path / 'report.html')!r}."
        )
    given = results.given(tree)
    found, left_out = results.completed(given)
    if not pictures.shown(found):
        raise ValueError(
            f"nothing to report in {', '.join(given) or 'an empty tree'}: give a limit and networks of the same "
            "problem, or a comparison."
        )
    drawn, not_drawn = pictures.sections(found)
    first = [*tables.answer(found), *drawn[:1], *tables.distances_and_laws(found), *tables.losses(found)]
    last = [*drawn[1:], problem.described(found), problem.provenance(given)]
    if left_out or not_drawn:
        last.append(Section("left-out", "Not shown", reasons=[*left_out, *not_drawn]))
    any_result = next(iter(found.values()))
    page = _template().render(
        title=title,
        subtitle=f"Problem {any_result.attrs['problem_id']}, library version {any_result.attrs['version']}.",
        first=first,
        last=last,
        data=numbers.interactive(found),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("figures.report", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["raised"] = _raised
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # browsers read no NaN; the order stays
    return environment.get_template("page.html")


def _raised(text: str) -> Markup:
    """Text for HTML, the exponents of N^s and N^-1/2 raised."""
    return Markup(re.sub(r"\^(-?\w+(?:/\w+)?)", r"<sup>\1</sup>", str(escape(text))))
