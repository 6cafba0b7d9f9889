"""Stores for pictures of the gallery at the size of a GPU: `python tests/benchmarks/gallery.py --out results/gallery`.

What is made is kept and not made again.  Afterwards `python -m figures NAME --store FOLDER` draws

    wide     loss_and_predictions, kernel_heatmaps, kernel_alignment, ntk_spectra, after_kernel
    edge     edge_of_stability
    fifty    ensembling_and_bias, width_laws: the MNIST problem of `widths.py`, its parts from --parts or made
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import widths

import comparisons
import dmft
from figures import edge_of_stability, ensembling_and_bias, runs

NETWORKS = 1000  # a width
NUMERICS = {"particles": 16_384, "scrambles": 8}


def wide(folder: Path) -> None:
    theory, networks = runs.make(seeds=NETWORKS, **NUMERICS)
    dmft.save(theory, folder / "theory.nc")
    dmft.save(networks, folder / "networks.nc")


def edge(folder: Path) -> None:
    sizes = (*edge_of_stability.WIDTHS, 1024)
    dmft.save(edge_of_stability.make(widths=sizes, seeds=NETWORKS, **NUMERICS), folder / "edge_of_stability.nc")


def fifty(folder: Path, parts: Path) -> None:
    found = widths.PROBLEMS["mnist"].parts("mnist", parts)
    theory, networks, predicted = (found[part] for part in widths.PARTS)
    split = comparisons.bias_variance(networks, theory, predicted, ensembles=ensembling_and_bias.SIZES)
    dmft.save(split, folder / "bias_variance.nc")
    dmft.save(comparisons.compare(theory, networks, predicted), folder / "comparison.nc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/gallery"), help="the folder of the stores")
    parser.add_argument("--parts", type=Path, default=Path("results/widths"), help="what widths.py has made")
    given = parser.parse_args()
    stores = {  # by their last file
        "wide/networks.nc": wide,
        "edge/edge_of_stability.nc": edge,
        "fifty/comparison.nc": partial(fifty, parts=given.parts),
    }
    for name, make in stores.items():
        last, started = given.out / name, time.perf_counter()
        if not last.exists():
            make(last.parent)
            print(f"{last.parent}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
