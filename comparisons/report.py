"""`report`: a comparison as one HTML file that needs nothing else: tables, figures, provenance, the problem.

The file holds its pictures and numbers itself and asks no network for anything.  Curves and kernels can be looked at
step by step.  Figures are those of `figures`, which is loaded when a report is written.
"""

from __future__ import annotations

import base64
import html
import importlib
import io
import json
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import xarray as xr

from comparisons.bias_variance import bias_variance
from comparisons.compare import compare
from comparisons.estimators import upper_end
from comparisons.representations import representations
from comparisons.samples import held, require_enough, samples
from comparisons.spectra import after_kernel, spectra
from comparisons.summary import LABELS, summary
from comparisons.widths import pointwise
from dmft import schema
from dmft.running.host import usual_errors
from dmft.running.paths import local
from dmft.schema.storage import replacing
from dmft.text import at_most, with_error

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
WORDS = {
    "MLP": "multilayer perceptron",
    "ResidualMLP": "residual multilayer perceptron",
    "CNN": "convolutional network",
    "GradientDescent": "gradient descent",
    "GradientFlow": "gradient flow",
}
KEPT = {"ensemble": "every network", "moments": "moments over blocks of networks"}
FEW = 4  # networks in an ensemble whose loss is given, or as near to it as there is
SOURCES = (("limit",), ("ensemble", "moments"), ("fluctuations",))  # kinds of which a report has one result
MOST_NUMBERS = 400_000  # of kernels in the file
CURVES = ("loss", "test_loss", "accuracy", "test_accuracy", "sharpness")
KERNELS = ("feature_kernel", "gradient_kernel", "ntk")
Results = dict[str, xr.Dataset]
Section = tuple[str, str, str]  # key, title, markup


@usual_errors
def report(
    tree: xr.DataTree | Mapping[str, xr.Dataset], path: str | Path, *, title: str = "Networks and their limit"
) -> Path:
    """Write a report of results of one problem.

    Args:
        tree: Datasets by name, or a DataTree of them: a limit and networks (of kind "ensemble" or "moments"), and
            anything else of the same problem: fluctuations, a comparison, analyses of this package.  What can be made
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
    given = _results(tree)
    found, left_out = _completed(given)
    shown = {name: ds for name, ds in found.items() if _kind(ds) in FIGURES}
    if not shown:
        raise ValueError(
            f"nothing to report in {', '.join(given) or 'an empty tree'}: give a limit and networks of the same "
            "problem, or a comparison."
        )
    pictures = _figures(shown, left_out)
    tables = [*_answer(found), *pictures[:1], *_comparison_sections(found), *_loss_sections(found)]
    others = [*pictures[1:], _problem_section(found), _provenance_section(given)]
    if left_out:
        rows = "".join(f"<li>{html.escape(reason)}</li>" for reason in left_out)
        others.append(("left-out", "Not shown", f"<ul>{rows}</ul>"))
    any_result = next(iter(found.values()))
    subtitle = f"Problem {any_result.attrs['problem_id']}, library version {any_result.attrs['version']}."
    template = Template(resources.files("comparisons").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        links_to_tables=_links(tables),
        links_to_others=_links(others),
        tables=_markup(tables),
        others=_markup(others),
        # "<" could end the element that holds the data
        data=json.dumps(_data(found), allow_nan=False).replace("<", "\\u003c"),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _links(sections: list[Section]) -> str:
    return "".join(f'<a href="#{key}">{html.escape(name)}</a>' for key, name, _ in sections)


def _markup(sections: list[Section]) -> str:
    return "\n".join(
        f'<section id="{key}"><h2>{html.escape(name)}</h2>{text}</section>' for key, name, text in sections
    )


# ---- what is there, and what follows from it -------------------------------------------------------------------------


def _results(tree: Any) -> Results:
    if isinstance(tree, xr.DataTree):
        nodes = {node.path.strip("/") or node.name or "result": node.to_dataset() for node in tree.subtree}
        tree = {name: ds for name, ds in nodes.items() if ds.data_vars}
    if not isinstance(tree, Mapping) or not all(isinstance(ds, xr.Dataset) for ds in tree.values()):
        raise TypeError(f"report expects Datasets by name, or a DataTree of them, got {type(tree).__name__}.")
    single = {str(name): schema.restored(ds) for name, ds in tree.items()}
    # tables and figures go from narrow to wide
    results = {name: ds.sortby("width") if "width" in ds.dims else ds for name, ds in single.items()}
    for name, ds in results.items():
        if "problem_id" not in ds.attrs:
            raise ValueError(
                f"{name!r} does not say which problem it is of; give results of dmft, finite_nets or comparisons."
            )
        if "schema" in ds.attrs:
            schema.validate(ds, ds.attrs["kind"])
    if results:
        schema.require_same_problem(**results)
    for kinds in SOURCES:
        several = [name for name, ds in results.items() if _kind(ds) in kinds]
        if len(several) > 1:
            raise ValueError(
                f"{' and '.join(several)} are all of kind {' or '.join(kinds)}; a report is of one of them."
            )
    return results


def _kind(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("analysis", ds.attrs.get("kind", "")))


def _first(results: Results, *kinds: str) -> xr.Dataset | None:
    """The first result of one of these kinds, if there is any."""
    return next((ds for ds in results.values() if _kind(ds) in kinds), None)


def _completed(given: Results) -> tuple[Results, list[str]]:
    """With what follows from a limit and networks; and why some of it does not."""
    found, reasons = dict(given), list[str]()
    theory, nets, fluctuations = (_first(given, *kinds) for kinds in SOURCES)
    if theory is None or nets is None:
        return found, reasons
    make: dict[str, Callable[[], xr.Dataset]] = {
        "comparison": lambda: compare(theory, nets, fluctuations),
        "bias_variance": lambda: bias_variance(nets, theory, fluctuations, ensembles=_ensembles(nets)),
        "pointwise": lambda: pointwise(nets, theory),
        "representations": lambda: representations(nets, theory),
        "spectra": lambda: spectra(nets, theory),
        "after_kernel": lambda: after_kernel(nets, theory),
    }
    for kind, making in make.items():
        if _first(given, kind) is not None:
            continue
        try:
            found[kind] = making()
        except ValueError as error:
            reasons.append(f"{kind}: {error}")
    return found, reasons


def _ensembles(nets: xr.Dataset) -> list[int]:
    """Powers of two, of which there are eight groups or more in an ensemble."""
    networks = nets.sizes["seed"] if "seed" in nets.dims else int(nets["count"].sum("block").min())
    return [1 << i for i in range(max(networks // 8, 1).bit_length())][:6]


# ---- sections --------------------------------------------------------------------------------------------------------


def _answer(found: Results) -> list[Section]:
    """How far networks are from the limit, and how that falls with their width, in two sentences."""
    comparison = _first(found, "comparison")
    q = next((q for q in LABELS if comparison is not None and f"{q}_distance" in comparison), None)
    if comparison is None or q is None:
        return []
    label, widths = LABELS[q].removesuffix(" f"), comparison["width"].values.tolist()
    at = comparison.isel(step=-1, width=-1)
    at = at.isel(layer=-1) if "layer" in at[f"{q}_distance"].dims else at
    one, mean = (_size(at[f"{q}_{part}"].item(), at[f"{q}_{part}_se"].item()) for part in ("distance", "error"))
    nets = _first(found, *SOURCES[1])
    count = f"{min(require_enough(nets, fewest=0)):,} networks" if nets is not None else "networks"
    sentences = [
        f"After training, the {label} of one network of width {widths[-1]} is {one} off the limit, "
        f"that of the mean over {count} {mean}."
    ]
    if f"{q}_variance_exponent" in comparison and len(widths) > 1:
        laws = [_scalar(comparison, f"{q}_{kind}_exponent") for kind in ("variance", "bias")]
        sentences.append(
            f"From width {widths[0]} on, the variance over networks falls like N<sup>s</sup> with s = {laws[0]}, "
            f"and the bias of the mean with s = {laws[1]}; -1 is expected of both."
        )
    return [("answer", "In short", "".join(f"<p><b>{sentence}</b></p>" for sentence in sentences))]


def _problem_section(found: Results) -> Section:
    problem = json.loads(next(iter(found.values())).attrs["problem"])
    rows = [[part, _flat(problem[part])] for part in ("network", "task", "training", "loss") if part in problem]
    text = f"<p>{html.escape(_in_words(problem))}</p>"
    return "problem", "The problem", text + _table(["", ""], rows, text=True)


def _in_words(problem: dict[str, Any]) -> str:
    """What a physicist asks first of a problem, described as by `Problem.to_json`."""
    training, shapes = problem["training"], problem["task"]["shapes"]
    (count, *shape), outputs = shapes["x_train"], [*shapes["y_train"], 1][1]
    tests = shapes["x_test"][0] if "x_test" in shapes else "no"
    step_size = f" of size {_range(training['step_size'])}" if "step_size" in training else ""
    return (
        f"Data: P = {count} training and {tests} test samples of dimension D = "
        f"{' x '.join(map(str, shape))}, {outputs} output(s). Network: {_network_in_words(problem['network'])}. "
        f"Training: {WORDS[training['kind']]}, T = {training['steps']} steps"
        f"{step_size}, learning rate eta = {_range(training['learning_rate'])}, loss {problem['loss']}."
    )


def _network_in_words(network: dict[str, Any]) -> str:
    """Kind and what of depth, kernel, activation and richness it has; of one of one's own its name and fields."""
    if network["kind"] not in WORDS:
        return ", ".join([network["kind"], *(f"{k} = {v}" for k, v in network.items() if k not in ("kind", "sha256"))])
    kernel = f"kernels of size {network['kernel_size']}, " if "kernel_size" in network else ""
    return (
        f"{WORDS[network['kind']]} of depth L = {network['depth']}, {kernel}activation {network['activation']['name']} "
        f"(gain {network['activation']['gain']:g}), richness gamma0 = {network['gamma0']:g}"
    )


def _range(values: float | list[float]) -> str:
    """One number, or the smallest and the largest of several."""
    return " to ".join(f"{v:g}" for v in sorted({np.min(values), np.max(values)}))


def _comparison_sections(found: Results) -> list[Section]:
    comparison = _first(found, "comparison")
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
                rows.append([f"{label}: {what}", *map(_size, at[f"{q}_{part}"].values, at[f"{q}_{part}_se"].values)])
    distances = (
        "<p>After training. Predictions: root mean square over samples; kernels: relative Frobenius norms, of the top "
        "layer; losses as they are. The distance of one network falls like N<sup>-1/2</sup>, that of the mean, the "
        "bias of narrower width, like 1/N. Of what is below its error the upper end is given, two errors above.</p>"
        + _table(head, rows)
    )
    laws = []
    for q, label in LABELS.items():
        if f"{q}_variance_exponent" not in comparison and f"{q}_z" not in comparison:
            continue
        z = comparison[f"{q}_z"].isel(width=-1).values
        cells = [_scalar(comparison, f"{q}_{kind}_exponent") for kind in ("variance", "bias")]
        cells += [_best(comparison, f"{q}_{kind}_overall_ratio") for kind in ("variance", "bias")]
        laws.append([label, *cells, f"{np.sqrt(np.mean(z**2)):.2f}"])
    head = ["", "variance ~ N^s, s", "bias ~ N^s, s", "N Var / predicted", "N bias / predicted", "rms z, widest"]
    ratios = any(str(name).endswith("_overall_ratio") for name in comparison)
    text = (
        "<p>Exponents of -1 are expected. "
        + ("Ratios are those of the width that resolves them best. " if ratios else "")
        + "The last column is the root mean square, over all entries, of (mean over networks - "
        "limit) in units of its error, at the widest width: about 1 where no bias is resolved any more.</p>"
    )
    as_text = f"<details><summary>as text</summary><pre>{html.escape(summary(comparison))}</pre></details>"
    return [
        ("distances", "Distance to the limit", distances),
        ("laws", "Laws in width", text + _table(head, laws) + as_text),
    ]


def _loss_sections(found: Results) -> list[Section]:
    """Losses of single networks, of ensembles and of the limit after training."""
    losses = _first(found, "bias_variance")
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
                _estimate(ds.isel(width=i), f"{q}_{part}", positive=part == "worth") for ds, part in columns.values()
            ]
            rows.append([f"{LABELS[q]}, N = {n}", *cells])
        if f"{q}_limit" in losses:
            rows.append([f"{LABELS[q]}, limit", _estimate(last, f"{q}_limit"), *[""] * (len(columns) - 1)])
    text = (
        f"<p>At step {last['step'].item()}, the last recorded, each with its standard error. The expected loss of one "
        "network is the loss of the infinite ensemble of its width plus the variance part, which averaging removes; "
        "the bias of narrower width is the loss of the infinite ensemble less the limit's. An ensemble is worth one "
        "network of the width that has the same loss (∞: it is not above the limit's; -: losses do not fall with width "
        "there).</p>"
    )
    return [("losses", "Losses after training", text + _table(["", *columns], rows))]


def _figures(shown: Results, left_out: list[str]) -> list[Section]:
    """A section for each result that has a figure; why there is none goes to `left_out`."""
    sections: list[Section] = []
    order = list(FIGURES)
    for name, ds in sorted(shown.items(), key=lambda item: order.index(_kind(item[1]))):
        module_name, title = FIGURES[_kind(ds)]
        module = importlib.import_module(f"figures.{module_name}")
        try:
            figure = module.figure(ds)
        except (KeyError, ValueError) as error:  # what a figure needs and a result may lack
            left_out.append(f"figure of {name}: {error}")
            continue
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
        source = base64.b64encode(picture.getvalue()).decode()
        caption = html.escape(_caption(importlib.import_module("figures.style").docstring(module), ds))
        image = f'<img alt="{html.escape(title)}" src="data:image/svg+xml;base64,{source}">'
        text = f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
        key, keys = f"figure-{_kind(ds)}", [key for key, _, _ in sections]
        key = key if key not in keys else f"{key}-{len(keys)}"
        sections.append((key, title if _kind(ds) == name else f"{title} ({name})", text))
    return sections


def _caption(text: str, ds: xr.Dataset) -> str:
    """A docstring, its lines joined up to the ends of sentences, without the clauses that do not hold of a result."""
    text = re.sub(r"(?<![.\n])\n *(?=\S)", " ", text.strip())
    for clause, end in CLAUSES.items():
        if not any(str(name).endswith(end) for name in ds.data_vars):
            text = text.replace(clause, "")
    return text


def _provenance_section(given: Results) -> Section:
    rows = []
    for name, ds in given.items():
        own = {k: v for k, v in ds.attrs.items() if k not in ("problem", "problem_id", "schema", "kind", "analysis")}
        made_with = ", ".join(f"{k} {_flat(_plain(v))}" for k, v in sorted(own.items()))
        rows.append([name, _kind(ds), _networks(ds), made_with])
    return "provenance", "Provenance", _table(["result", "kind", "networks", "made with"], rows, text=True)


def _networks(ds: xr.Dataset) -> str:
    """How many of each width, without those that diverged, and what is kept of them; of other results the widths."""
    if "width" not in ds.dims:
        return ""
    widths = ds["width"].values.tolist()
    if _kind(ds) not in SOURCES[1]:
        return f"widths {_flat(widths)}"
    counts = zip(require_enough(ds, fewest=0), widths, strict=True)
    return ", ".join(f"{count} of width {n}" for count, n in counts) + f"; kept: {KEPT[_kind(ds)]}"


def _table(head: list[str], rows: list[list[str]], *, text: bool = False) -> str:
    """Without the columns that have no entry."""
    kind = ' class="text"' if text else ""
    held_columns = [i for i in range(len(head)) if any(row[i] for row in rows)]
    head, *rows = ([row[i] for i in held_columns] for row in (head, *rows))
    top = "".join(f"<th{kind}>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float, se: float) -> str:
    """With two digits of its error."""
    if not np.isfinite(value):
        return "-" if np.isnan(value) else "∞"
    return with_error(value, se).replace("+-", "±") if se > 0 else f"{value:.4g}"


def _size(value: float, se: float) -> str:
    """Of what may not be negative: an upper end where the error is larger."""
    return at_most(upper_end(value, se)) if 0 < se >= value else _number(value, se)


def _estimate(ds: xr.Dataset, name: str, *, positive: bool = False) -> str:
    if name not in ds:
        return ""
    shown = _size if positive else _number
    return shown(ds[name].item(), ds[f"{name}_se"].item())


def _scalar(ds: xr.Dataset, name: str) -> str:
    if name not in ds or not np.isfinite(ds[name].item()):
        return "not resolved"
    return _number(ds[name].item(), ds[f"{name}_se"].item())


def _best(ds: xr.Dataset, name: str) -> str:
    """At the width with the smallest error."""
    if name not in ds:
        return ""
    se = ds[f"{name}_se"].values
    if not np.isfinite(se).any():
        return "not resolved"
    i = int(np.nanargmin(se))
    return f"{_number(ds[name].values[i], se[i])} (N = {ds['width'].values[i]})"


def _flat(value: Any) -> str:
    """As text; empty entries are left out."""
    if isinstance(value, Mapping):
        entries = {k: v for k, v in value.items() if v not in (None, "", [], {})}
        return ", ".join(
            f"{k}: ({_flat(v)})" if isinstance(v, Mapping) else f"{k}: {_flat(v)}" for k, v in entries.items()
        )
    if isinstance(value, list) and len(value) > 12:
        return f"{value[0]}, ... ({len(value)} values)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


# ---- numbers for the interactive part --------------------------------------------------------------------------------


def _data(found: Results) -> dict[str, Any]:
    return {"curves": _curves(found), **_kernels(found)}


def _curves(found: Results) -> list[dict[str, Any]]:
    from figures import style

    comparison = _first(found, "comparison")
    if comparison is None:
        return []
    curves = []
    widths = comparison["width"].values.tolist()
    colors = {n: _css(color) for n, color in style.width_colors(widths).items()}
    for q in CURVES:
        if f"{q}_mean" not in comparison:
            continue
        lines = [
            {"name": f"N = {n}", "color": colors[n], "limit": False, **_pair(comparison.sel(width=n), f"{q}_mean")}
            for n in widths
        ]
        lines.append({"name": "limit", "color": "#000", "limit": True, **_pair(comparison, f"{q}_limit")})
        curves.append({"name": LABELS.get(q, q), "time": _list(comparison["time"].values), "lines": lines})
    return curves


def _pair(ds: xr.Dataset, name: str) -> dict[str, Any]:
    return {"y": _list(ds[name].values), "se": _list(ds[f"{name}_se"].values)}


def _kernels(found: Results) -> dict[str, Any]:
    """Kernels of the limit and means over networks at some steps, as many numbers as a page can hold."""
    theory, nets, _ = (_first(found, *kinds) for kinds in SOURCES)
    nothing: dict[str, Any] = {"kernels": [], "widths": [], "times": []}
    if theory is None or nets is None or "output" in theory.dims:
        return nothing
    names = [name for name in KERNELS if name in theory and held(nets, name)]
    if not names or "sample_2" not in theory.dims:
        return nothing
    layers = sum(theory[name].sizes.get("layer", 1) for name in names)
    each = layers * theory.sizes["sample"] ** 2 * (1 + nets.sizes["width"])
    count = min(theory.sizes["step"], MOST_NUMBERS // each)
    if count < 1:
        return nothing
    target = theory["target"].values
    order = np.argsort(target, kind="stable")  # samples by class
    steps = np.unique(np.linspace(0, theory.sizes["step"] - 1, count).round().astype(int))
    kernels = []
    for name in names:
        means = np.stack([samples(nets, name, i).mean()[0] for i in range(nets.sizes["width"])])
        means, limit = (values[..., order[:, None], order] for values in (means, theory[name].values))
        symbol = {"feature_kernel": "Phi", "gradient_kernel": "G", "ntk": "NTK"}[name]
        for layer in range(len(limit)) if "layer" in theory[name].dims else [None]:
            at = () if layer is None else (layer,)
            kernels.append(
                {
                    "name": symbol if layer is None else f"{symbol}, layer {theory['layer'].values[layer]}",
                    "limit": [_list(limit[(*at, s)].ravel()) for s in steps],
                    "mean": [[_list(mean[(*at, s)].ravel()) for s in steps] for mean in means],
                }
            )
    return {"kernels": kernels, "widths": nets["width"].values.tolist(), "times": _list(theory["time"].values[steps])}


def _list(values: Any) -> list[float | None]:
    """Four digits; what is not finite as null."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(values, float).tolist()]


def _css(color: Any) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in color[:3])
