"""Draw figures of the gallery: `python -m figures NAME`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from figures import style

NAMES = (
    "loss_and_predictions",
    "ensembling_and_bias",
    "width_laws",
    "kernel_heatmaps",
    "kernel_alignment",
    "preactivation_densities",
    "ntk_spectra",
    "after_kernel",
    "edge_of_stability",
    "coordinate_check",
    "width_convergence",
    "solver_convergence",
    "variance_dynamics",
    "bias_dynamics",
    "richness",
    "depth",
    "wide_networks",
    "mnist_ten_classes",
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m figures",
        description="Draw a figure from stored results, or from results made for it at a size that fits two cores.",
        epilog="Every figure is written as PNG and PDF, with the numbers it shows as NetCDF beside it.",
    )
    parser.add_argument("name", nargs="?", choices=(*NAMES, "all"), help="which figure")
    parser.add_argument("--list", action="store_true", help="list the figures")
    parser.add_argument(
        "--store", type=Path, help="folder with results, such as `make demo` writes; without it, they are computed now"
    )
    parser.add_argument("--out", type=Path, help="file (one figure) or folder (all); default results/NAME.png")
    given = parser.parse_args(arguments)
    if given.list:
        for name in NAMES:
            print(f"{name:<24} {_module(name).__doc__.splitlines()[0]}")
        return
    if given.name is None:
        parser.error("name a figure, or use --list")
    names = NAMES if given.name == "all" else (given.name,)
    for name in names:
        out = given.out or Path("results") / name
        if given.name == "all" and given.out:
            out = given.out / name
        try:
            ds = _module(name).data(given.store)
            figure, numbers = _module(name).figure(ds), _module(name).drawn(ds)
        except (FileNotFoundError, ValueError) as error:
            parser.exit(2, f"{name}: {error}\n")
        for path in style.save(figure, numbers, out):
            print(path)


def _module(name: str) -> Any:
    return importlib.import_module(f"figures.{name}")


if __name__ == "__main__":
    main()
