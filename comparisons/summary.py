"""A comparison as a short table of text."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from comparisons.estimators import root, upper_end
from dmft import faces, schema
from dmft.running.host import usual_errors
from dmft.text import at_most, table, with_error

EXPECTED = ("variance (-1 expected)", "bias (-1 expected)")
Row = tuple[str, ...]


class Summary(str):
    """Text, which a notebook shows as tables."""

    html: str

    def __new__(cls, text: str, html: str) -> Summary:
        found = super().__new__(cls, text)
        found.html = html
        return found

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.html

    def _repr_html_(self) -> str:
        return self.html


@usual_errors
def summary(comparison: xr.Dataset) -> Summary:
    """Distance to the limit at each width, and the exponents in width, as text of at most 100 columns; every number has
    its standard error.

    Quantities that the comparison does not hold are left out.
    """
    comparison = schema.validate(comparison, "comparison")
    last = comparison.isel(step=-1)
    columns: list[list[str]] = [["", "width", *(str(n) for n in comparison["width"].values), "limit"]]
    if "prediction_mean" in comparison:
        bias = root(comparison["prediction_raw_bias_square"].values, comparison["prediction_raw_bias_square_se"].values)
        width = comparison["width"].values
        variance = [width * comparison[f"prediction_raw_variance{part}"].values for part in ("", "_se")]
        columns.append(["bias of f", "(rms)", *_not_negative(*bias), ""])
        columns.append(["N Var f", "(mean)", *_not_negative(*variance), ""])
    if "feature_kernel_mean" in comparison:
        top = last.isel(layer=-1)
        for above, below, name in (("Phi^L: one", "network off", "distance"), ("Phi^L: their", "mean off", "error")):
            off = (100 * top[f"feature_kernel_{name}{end}"].values for end in ("", "_se"))
            columns.append([above, f"{below}, %", *_not_negative(*off), ""])
    if "loss_mean" in comparison:
        values, errors = ([*last[f"loss_mean{end}"].values, last[f"loss_limit{end}"].item()] for end in ("", "_se"))
        columns.append(["loss", "at the end", *map(with_error, values, errors)])

    attrs = comparison.attrs
    title = (
        f"Networks of {attrs['seeds']} seeds a width against the limit ({_of_theory(attrs)}); "
        f"problem {attrs['problem_id']}"
    )
    head, *rows = zip(*([" ".join(column[:2]).strip(), *column[2:]] for column in columns), strict=True)
    laws = [(("Falls with width N like N^s, s =", *EXPECTED), _exponents(comparison))]
    laws += [(("Measured / predicted (width)", "N Var", "N bias"), _ratios(comparison))]
    laws = [(head, rows) for head, rows in laws if rows]
    html = faces.grid(head, rows, title) + "".join(faces.grid(*law) for law in laws)
    return Summary("\n".join([title, "", table(columns), "", "\n\n".join(_lines(*law) for law in laws)]), html)


def _of_theory(attrs: dict[str, Any]) -> str:
    """Of which networks the limit is, and how it was found."""
    if attrs.get("theory_producer") == "dmft.lazy_limit":
        return "LAZY, gamma0 -> 0"
    if "theory_particles" not in attrs:
        return "exact"
    return f"{attrs['theory_scrambles']} x {attrs['theory_particles']} particles"


def _lines(head: Row, rows: list[Row]) -> str:
    """A table of a label and two cells, as text."""
    shown = [head, *((f"  {label}", *cells) for label, *cells in rows)]
    return "\n".join(f"{label:<32}" + "".join(f"{cell:>26}" for cell in cells) for label, *cells in shown)


def _exponents(comparison: xr.Dataset) -> list[Row]:
    held = {name: label for name, label in schema.in_tables().items() if f"{name}_variance_exponent" in comparison}
    kinds = ("variance", "bias")
    return [
        (label, *(_exponent(comparison, f"{name}_{kind}_exponent") for kind in kinds)) for name, label in held.items()
    ]


def _ratios(comparison: xr.Dataset) -> list[Row]:
    """Measured over predicted, each at the width where it is best resolved."""
    rows: list[Row] = []
    for name, label in schema.in_tables().items():
        cells = []
        for kind in ("variance", "bias"):
            key = f"{name}_{kind}_overall_ratio"
            if key not in comparison or not comparison[f"{key}_se"].notnull().any():
                cells.append("not resolved" if key in comparison else "")
                continue
            best = comparison[f"{key}_se"].fillna(np.inf).argmin("width")
            ratio, se = (comparison[f"{key}{part}"].isel(width=best).item() for part in ("", "_se"))
            cells.append(f"{with_error(ratio, se)} ({comparison['width'].values[best]})")
        if any(cells):
            rows.append((label, *cells))
    return rows


def _not_negative(values: Any, errors: Any) -> list[str]:
    """Values that cannot be negative with their errors; an upper end, two errors above, where the error is larger."""
    return [
        with_error(v, e) if v > e or e == 0 else at_most(upper_end(v, e)) for v, e in zip(values, errors, strict=True)
    ]


def _exponent(comparison: xr.Dataset, name: str) -> str:
    value, se = comparison[name].item(), comparison[f"{name}_se"].item()
    return "not resolved" if np.isnan(value) else with_error(value, se)
