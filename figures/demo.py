"""The main job once, on real data: theory, networks, comparison, figure.

    python -m figures.demo --out results/demo

Threes against eights of MNIST, 30 training and 30 test images, two hidden layers, richness 1.  Writes theory.nc,
networks.nc, comparison.nc and the figure width_convergence, and prints a table.  About a minute on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import xarray as xr

import comparisons
import dmft
import finite_nets
from figures import style, width_convergence

WIDTHS = (32, 64, 128, 256, 512, 1024)
SEEDS = 64


def problem() -> dmft.Problem:
    """The problem of the demonstration."""
    task = dmft.load_task("mnist5k", classes=(3, 8), n_train=30, n_test=30, seed=0)
    return dmft.Problem(
        dmft.MLP(depth=2, activation=dmft.tanh(), gamma0=1.0), task, dmft.GradientDescent(1.0, steps=16)
    )


def run() -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Theory, networks and their comparison."""
    described = problem()
    steps = range(0, described.training.steps + 1, 2)
    theory = dmft.solve(described, save_steps=steps)
    networks = finite_nets.train_ensemble(
        described,
        widths=WIDTHS,
        seeds=SEEDS,
        observables=("prediction", "loss", "feature_kernel"),
        save_steps=steps,
    )
    return theory, networks, comparisons.compare(theory, networks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/demo"), help="folder for the results (%(default)s)")
    out: Path = parser.parse_args().out
    theory, networks, comparison = run()
    for name, ds in (("theory", theory), ("networks", networks), ("comparison", comparison)):
        dmft.save(ds, out / f"{name}.nc")
    paths = style.save(
        width_convergence.figure(comparison), width_convergence.drawn(comparison), out / "width_convergence"
    )
    print(f"\n{comparisons.summary(comparison)}\n")
    print(
        "written:",
        ", ".join(str(path) for path in (*(out / f"{n}.nc" for n in ("theory", "networks", "comparison")), *paths)),
    )


if __name__ == "__main__":
    main()
