"""What the pictures of the gallery show, at the size of a GPU: `python tests/benchmarks/gallery.py --out results/gallery`.

Every figure's numbers are a file NAME.nc of one folder, which `python -m figures all --store FOLDER` draws.  A file
that is there is not made again; names choose figures.  `after_kernel`, `kernel_alignment`, `kernel_heatmaps` and
`loss_and_predictions` show one run (`wide`), `variance_dynamics` and `bias_dynamics` another (`fluctuations.nc`).
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import widths
import xarray as xr

import comparisons
import dmft
import figures
import finite_nets
from figures import (
    coordinate_check,
    depth,
    edge_of_stability,
    ensembling_and_bias,
    example,
    fluctuations,
    grokking,
    mnist_ten_classes,
    ntk_spectra,
    overtraining,
    preactivation_densities,
    richness,
    runs,
    wide_networks,
)

NETWORKS = 1000  # a width
SPECTRA = 200  # of which every NTK has its eigenvectors
NUMERICS = {"particles": 16_384, "scrambles": 8}
# networks of figures that say for themselves what they are of
coordinate_check.SEEDS = 32
depth.SEEDS = richness.SEEDS = 20_000
preactivation_densities.NEURONS = 2**17
wide_networks.SEEDS = {"gpu": 256, "cpu": 64}


@functools.cache
def wide() -> tuple[xr.Dataset, xr.Dataset]:
    return runs.make(seeds=NETWORKS, **NUMERICS)


def of_wide(name: str) -> xr.Dataset:
    return getattr(figures, name).NEEDS.take(*wide())


def dynamics() -> xr.Dataset:
    problem = fluctuations.problem()
    theory = dmft.solve(problem, particles=16_384, scrambles=16)
    predicted = dmft.fluctuations(problem, draws=2048, scrambles=8)
    nets = finite_nets.train_ensemble(problem, widths=[64, 128, 256, 512], seeds=400_000, keep="moments")
    return comparisons.compare(theory, nets, predicted)


@functools.cache
def fifty(parts: Path) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """The MNIST problem of `widths.py`: theory, networks, fluctuations."""
    found = widths.PROBLEMS["mnist"].parts("mnist", parts)
    theory, networks, predicted = (found[part] for part in widths.PARTS)
    return theory, networks, predicted


def losses(parts: Path) -> xr.Dataset:
    theory, networks, predicted = fifty(parts)
    return comparisons.bias_variance(theory, networks, predicted, ensembles=ensembling_and_bias.SIZES)


def sources(parts: Path) -> dict[str, Callable[[], xr.Dataset]]:
    """By the name of the file."""
    shared = ("after_kernel", "kernel_alignment", "kernel_heatmaps", "loss_and_predictions")
    own = (
        "adaptive_kernels",
        "attention",
        "convolution",
        "coordinate_check",
        "coordinate_check_of_architectures",
        "depth",
        "infinite_depth",
        "optimal_schedule",
        "preactivation_densities",
        "richness",
        "solver_convergence",
        "wide_networks",
    )
    return {
        **{name: functools.partial(of_wide, name) for name in shared},
        **{name: functools.partial(getattr(figures, name).data, None) for name in own},
        "edge_of_stability": lambda: edge_of_stability.make(
            widths=(*edge_of_stability.WIDTHS, 1024), seeds=NETWORKS, **NUMERICS
        ),
        "ensembling_and_bias": lambda: losses(parts),
        "fluctuations": dynamics,
        "grokking": lambda: grokking.make(width=1024, seeds=8),
        "mnist_ten_classes": lambda: mnist_ten_classes.compared(
            mnist_ten_classes.problem(), seeds=64, particles=32_768, scrambles=4
        ),
        "overtraining": lambda: overtraining.make(width=1024, seeds=8),
        "ntk_spectra": lambda: ntk_spectra.NEEDS.take(*runs.make(seeds=SPECTRA, **NUMERICS)),
        "width_convergence": lambda: example.run(example.problem())[-1],
        "width_laws": lambda: comparisons.compare(*fifty(parts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="files to make; without any, all")
    parser.add_argument("--out", type=Path, default=Path("results/gallery"), help="the folder")
    parser.add_argument("--parts", type=Path, default=Path("results/widths"), help="what widths.py has made")
    given = parser.parse_args()
    makes = sources(given.parts)
    if unknown := set(given.names) - set(makes):
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(makes)}.")
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.names or makes:
        path, started = given.out / f"{name}.nc", time.perf_counter()
        if not path.exists():
            dmft.save(makes[name](), path)
            print(f"{path}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
