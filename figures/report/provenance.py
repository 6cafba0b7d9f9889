"""Which problem a report is of, and where its results come from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from comparisons.samples import require_enough
from figures.report.blocks import Paragraph, Section, Table
from figures.report.results import SOURCES, Results, kind_of
from figures.report.texts import flat, plain

WORDS = {
    "MLP": "multilayer perceptron",
    "ResidualMLP": "residual multilayer perceptron",
    "CNN": "convolutional network",
    "GradientDescent": "gradient descent",
    "GradientFlow": "gradient flow",
}
KEPT = {"ensemble": "every network", "moments": "moments over blocks of networks"}


def problem_section(found: Results) -> Section:
    problem = json.loads(next(iter(found.values())).attrs["problem"])
    rows = [[part, flat(problem[part])] for part in ("network", "task", "training", "loss") if part in problem]
    return Section("problem", "The problem", (Paragraph(in_words(problem)), Table(["", ""], rows, text=True)))


def in_words(problem: dict[str, Any]) -> str:
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


def provenance_section(given: Results) -> Section:
    rows = []
    for name, ds in given.items():
        own = {k: v for k, v in ds.attrs.items() if k not in ("problem", "problem_id", "schema", "kind", "analysis")}
        made_with = ", ".join(f"{k} {flat(plain(v))}" for k, v in sorted(own.items()))
        rows.append([name, kind_of(ds), _networks(ds), made_with])
    table = Table(["result", "kind", "networks", "made with"], rows, text=True)
    return Section("provenance", "Provenance", (table,))


def _networks(ds: xr.Dataset) -> str:
    """How many of each width, without those that diverged, and what is kept of them; of other results the widths."""
    if "width" not in ds.dims:
        return ""
    widths = ds["width"].values.tolist()
    if kind_of(ds) not in SOURCES[1]:
        return f"widths {flat(widths)}"
    counts = zip(require_enough(ds, fewest=0), widths, strict=True)
    return ", ".join(f"{count} of width {n}" for count, n in counts) + f"; kept: {KEPT[kind_of(ds)]}"
