"""Figures of the results of a report, with their captions."""

from __future__ import annotations

import base64
import importlib
import io
import re

import xarray as xr

from dmft.schema.sources import kind_of
from figures import docstring
from figures.report.blocks import Picture, Section
from figures.report.results import Results

# analysis: its figure, and its title
FIGURES = {
    "comparison": ("width_convergence", "Convergence with width"),
    "bias_variance": ("ensembling_and_bias", "Ensembles, and the bias of narrower width"),
    "representations": ("kernel_alignment", "Representations"),
    "spectra": ("ntk_spectra", "Spectra of the NTK"),
    "after_kernel": ("after_kernel", "After-kernels"),
    "densities": ("preactivation_densities", "Preactivations"),
}
# clauses of their captions: the end of the names of the variables that show it, without which the clause goes
CLAUSES = {", lines predicted": "_predicted", "; one network in the limit (black)": "_limit"}


def pictures(shown: Results, left_out: list[str]) -> list[Section]:
    """A section for each result that has a figure; why there is none goes to `left_out`."""
    sections: list[Section] = []
    order = list(FIGURES)
    for name, ds in sorted(shown.items(), key=lambda item: order.index(kind_of(item[1]))):
        module_name, title = FIGURES[kind_of(ds)]
        module = importlib.import_module(f"figures.{module_name}")
        try:
            figure = module.figure(ds)
        except (KeyError, ValueError) as error:  # what a figure needs and a result may lack
            left_out.append(f"figure of {name}: {error}")
            continue
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
        source = base64.b64encode(picture.getvalue()).decode()
        picture_with_caption = Picture(title, source, _caption(docstring(module_name), ds))
        key, keys = f"figure-{kind_of(ds)}", [section.key for section in sections]
        key = key if key not in keys else f"{key}-{len(keys)}"
        full_title = title if kind_of(ds) == name else f"{title} ({name})"
        sections.append(Section(key, full_title, (picture_with_caption,)))
    return sections


def _caption(text: str, ds: xr.Dataset) -> str:
    """A docstring, its lines joined up to the ends of sentences, without the clauses that do not hold of a result."""
    text = re.sub(r"(?<![.\n])\n *(?=\S)", " ", text.strip())
    for clause, end in CLAUSES.items():
        if not any(str(name).endswith(end) for name in ds.data_vars):
            text = text.replace(clause, "")
    return text
