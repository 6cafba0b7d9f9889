"""What a report says of networks and their limit, in sentences and tables."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from comparisons.samples import require_enough
from comparisons.summary import summary
from dmft import schema
from figures.report.blocks import Listing, Paragraph, Section, Table
from figures.report.results import SOURCES, Results, first
from figures.report.texts import best, estimate, scalar, size

FEW = 4  # networks in an ensemble whose loss is given, or as near to it as there is


def answer(found: Results) -> list[Section]:
    """How far networks are from the limit, and how that falls with their width, in two sentences."""
    comparison = first(found, "comparison")
    q = next((q for q in schema.in_tables() if comparison is not None and f"{q}_distance" in comparison), None)
    if comparison is None or q is None:
        return []
    label, widths = schema.in_tables()[q].removesuffix(" f"), comparison["width"].values.tolist()
    at = comparison.isel(step=-1, width=-1)
    at = at.isel(layer=-1) if "layer" in at[f"{q}_distance"].dims else at
    one, mean = (size(at[f"{q}_{part}"].item(), at[f"{q}_{part}_se"].item()) for part in ("distance", "error"))
    nets = first(found, *SOURCES[1])
    count = f"{min(require_enough(nets, fewest=0)):,} networks" if nets is not None else "networks"
    sentences: list[str] = [
        f"After training, the {label} of one network of width {widths[-1]} is {one} off the limit, "
        f"that of the mean over {count} {mean}."
    ]
    if f"{q}_variance_exponent" in comparison and len(widths) > 1:
        laws = [scalar(comparison, f"{q}_{kind}_exponent") for kind in ("variance", "bias")]
        sentences.append(
            Markup(
                "From width {} on, the variance over networks falls like N<sup>s</sup> with s = {}, and the bias of "
                "the mean with s = {}; -1 is expected of both."
            ).format(widths[0], *laws)
        )
    return [Section("answer", "In short", tuple(Paragraph(sentence, strong=True) for sentence in sentences))]


def comparison_sections(found: Results) -> list[Section]:
    comparison = first(found, "comparison")
    if comparison is None:
        return []
    head = ["", *(f"N = {n}" for n in comparison["width"].values)]
    last, rows = comparison.isel(step=-1), []
    for q, label in schema.in_tables().items():
        for part, what in (("distance", "one network off the limit"), ("error", "mean over networks off the limit")):
            if f"{q}_{part}" in comparison:
                at = last[[f"{q}_{part}", f"{q}_{part}_se"]].isel(
                    {"layer": -1} if "layer" in last[f"{q}_{part}"].dims else {}
                )
                rows.append([f"{label}: {what}", *map(size, at[f"{q}_{part}"].values, at[f"{q}_{part}_se"].values)])
    distances = Markup(
        "After training. Predictions: root mean square over samples; kernels: relative Frobenius norms, of the top "
        "layer; losses as they are. The distance of one network falls like N<sup>-1/2</sup>, that of the mean, the "
        "bias of narrower width, like 1/N. Of what is below its error the upper end is given, two errors above."
    )
    first_section = Section("distances", "Distance to the limit", (Paragraph(distances), Table(head, rows)))
    laws = []
    for q, label in schema.in_tables().items():
        if f"{q}_variance_exponent" not in comparison and f"{q}_z" not in comparison:
            continue
        z = comparison[f"{q}_z"].isel(width=-1).values
        cells = [scalar(comparison, f"{q}_{kind}_exponent") for kind in ("variance", "bias")]
        cells += [best(comparison, f"{q}_{kind}_overall_ratio") for kind in ("variance", "bias")]
        laws.append([label, *cells, f"{np.sqrt(np.mean(z**2)):.2f}"])
    head = ["", "variance ~ N^s, s", "bias ~ N^s, s", "N Var / predicted", "N bias / predicted", "rms z, widest"]
    ratios = any(str(name).endswith("_overall_ratio") for name in comparison)
    text = (
        "Exponents of -1 are expected. "
        + ("Ratios are those of the width that resolves them best. " if ratios else "")
        + "The last column is the root mean square, over all entries, of (mean over networks - "
        "limit) in units of its error, at the widest width: about 1 where no bias is resolved any more."
    )
    as_text = Listing("as text", summary(comparison))
    return [first_section, Section("laws", "Laws in width", (Paragraph(text), Table(head, laws), as_text))]


def loss_sections(found: Results) -> list[Section]:
    """Losses of single networks, of ensembles and of the limit after training."""
    losses = first(found, "bias_variance")
    if losses is None:
        return []
    last, sizes = losses.isel(step=-1), losses["ensemble"].values
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
        for i, n in enumerate(losses["width"].values if f"{q}_infinite" in losses else []):
            cells = [
                estimate(ds.isel(width=i), f"{q}_{part}", positive=part == "worth") for ds, part in columns.values()
            ]
            rows.append([f"{schema.in_tables()[q]}, N = {n}", *cells])
        if f"{q}_limit" in losses:
            rows.append([f"{schema.in_tables()[q]}, limit", estimate(last, f"{q}_limit"), *[""] * (len(columns) - 1)])
    text = (
        f"At step {last['step'].item()}, the last recorded, each with its standard error. The expected loss of one "
        "network is the loss of the infinite ensemble of its width plus the variance part, which averaging removes; "
        "the bias of narrower width is the loss of the infinite ensemble less the limit's. An ensemble is worth one "
        "network of the width that has the same loss (∞: it is not above the limit's; -: losses do not fall with width "
        "there)."
    )
    return [Section("losses", "Losses after training", (Paragraph(text), Table(["", *columns], rows)))]
