"""Tables of the report: how far networks are from the limit, how that falls with width, losses after training."""

from __future__ import annotations

import numpy as np

import comparisons
from comparisons.samples import require_enough
from figures.report import cells
from figures.report.quantities import LABELS
from figures.report.results import Results, of_kind, source
from figures.report.section import Section, table

FEW = 4  # networks in an ensemble whose loss is given, or as near to it as there is


def answer(found: Results) -> list[Section]:
    """How far networks are from the limit, and how that falls with their width, in two sentences."""
    comparison = of_kind(found, "comparison")
    q = next((q for q in LABELS if comparison is not None and f"{q}_distance" in comparison), None)
    if comparison is None or q is None:
        return []
    label, widths = LABELS[q].removesuffix(" f"), comparison["width"].values.tolist()
    at = comparison.isel(step=-1, width=-1)
    at = at.isel(layer=-1) if "layer" in at[f"{q}_distance"].dims else at
    one, mean = (cells.estimate(at, f"{q}_{part}", positive=True) for part in ("distance", "error"))
    nets = source(found, "networks")
    count = f"{min(require_enough(nets, fewest=0)):,} networks" if nets is not None else "networks"
    sentences = [
        f"After training, the {label} of one network of width {widths[-1]} is {one} off the limit, "
        f"that of the mean over {count} {mean}."
    ]
    if f"{q}_variance_exponent" in comparison and len(widths) > 1:
        laws = [cells.resolved(comparison, f"{q}_{kind}_exponent") for kind in ("variance", "bias")]
        sentences.append(
            f"From width {widths[0]} on, the variance over networks falls like N^s with s = {laws[0]}, and the bias of "
            f"the mean with s = {laws[1]}; -1 is expected of both."
        )
    return [Section("answer", "In short", sentences=sentences)]


def distances_and_laws(found: Results) -> list[Section]:
    """Distances to the limit after training, and their exponents in width, of a comparison."""
    comparison = of_kind(found, "comparison")
    if comparison is None:
        return []
    head = ["", *(f"N = {n}" for n in comparison["width"].values)]
    last, rows = comparison.isel(step=-1), []
    for q, label in LABELS.items():
        for part, what in (("distance", "one network off the limit"), ("error", "mean over networks off the limit")):
            if f"{q}_{part}" in comparison:
                at = last[[f"{q}_{part}", f"{q}_{part}_se"]].isel(
                    {"layer": -1} if "layer" in last[f"{q}_{part}"].dims else {}
                )
                sizes = map(cells.size, at[f"{q}_{part}"].values, at[f"{q}_{part}_se"].values)
                rows.append([f"{label}: {what}", *sizes])
    distances = (
        "After training. Predictions: root mean square over samples; kernels: relative Frobenius norms, of the top "
        "layer; losses as they are. The distance of one network falls like N^-1/2, that of the mean, the bias of "
        "narrower width, like 1/N. Of what is below its error the upper end is given, two errors above."
    )
    laws = []
    for q, label in LABELS.items():
        if f"{q}_variance_exponent" not in comparison and f"{q}_z" not in comparison:
            continue
        z = comparison[f"{q}_z"].isel(width=-1).values
        row = [cells.resolved(comparison, f"{q}_{kind}_exponent") for kind in ("variance", "bias")]
        row += [cells.best(comparison, f"{q}_{kind}_overall_ratio") for kind in ("variance", "bias")]
        laws.append([label, *row, f"{np.sqrt(np.mean(z**2)):.2f}"])
    ratios = any(str(name).endswith("_overall_ratio") for name in comparison)
    text = (
        "Exponents of -1 are expected. "
        + ("Ratios are those of the width that resolves them best. " if ratios else "")
        + "The last column is the root mean square, over all entries, of (mean over networks - limit) in units of its "
        "error, at the widest width: about 1 where no bias is resolved any more."
    )
    of_laws = ["", "variance ~ N^s, s", "bias ~ N^s, s", "N Var / predicted", "N bias / predicted", "rms z, widest"]
    return [
        Section("distances", "Distance to the limit", text=distances, table=table(head, rows)),
        Section(
            "laws",
            "Laws in width",
            text=text,
            table=table(of_laws, laws),
            plain=comparisons.summary(comparison),
        ),
    ]


def losses(found: Results) -> list[Section]:
    """Losses of single networks, of ensembles and of the limit after training."""
    parts = of_kind(found, "bias_variance")
    if parts is None:
        return []
    last, sizes = parts.isel(step=-1), parts["ensemble"].values
    k = sizes[abs(sizes - FEW).argmin()]
    one, few = (last.reindex(ensemble=[size]).isel(ensemble=0) for size in (1, k))
    columns = {
        "one network": (one, "ensemble"),
        "infinite ensemble": (last, "infinite"),
        "variance part": (last, "variance_part"),
        "bias of narrower width": (last, "bias_part"),
    }
    if k > 1:
        columns |= {f"ensemble of {k}": (few, "ensemble"), "worth one of width": (few, "worth")}
    rows = []
    for q in ("loss", "test_loss"):
        for i, n in enumerate(parts["width"].values if f"{q}_infinite" in parts else []):
            row = [
                cells.estimate(ds.isel(width=i), f"{q}_{part}", positive=part == "worth")
                for ds, part in columns.values()
            ]
            rows.append([f"{LABELS[q]}, N = {n}", *row])
        if f"{q}_limit" in parts:
            rows.append([f"{LABELS[q]}, limit", cells.estimate(last, f"{q}_limit"), *[""] * (len(columns) - 1)])
    text = (
        f"At step {last['step'].item()}, the last recorded, each with its standard error. The expected loss of one "
        "network is the loss of the infinite ensemble of its width plus the variance part, which averaging removes; "
        "the bias of narrower width is the loss of the infinite ensemble less the limit's. An ensemble is worth one "
        "network of the width that has the same loss (∞: it is not above the limit's; -: losses do not fall with width "
        "there)."
    )
    return [Section("losses", "Losses after training", text=text, table=table(["", *columns], rows))]
