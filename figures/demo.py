"""The main job once, on real data: theory, networks, comparison, table and figure.

Writes theory.nc, networks.nc, comparison.nc and the figure width_convergence (png, pdf, nc).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import comparisons
import dmft
from dmft.running.paths import local
from figures import example, style, width_convergence


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m figures.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/demo"), help="folder for the results (%(default)s)")
    parser.add_argument("--seeds", type=int, default=example.SEEDS, help="networks of each width (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        given.out = local(given.out, "--out")  # before the work
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")

    described = example.problem()
    print(f"{described.task}\n{described.network}, {described.training}", flush=True)
    theory, nets, comparison = example.run(described, seeds=given.seeds)
    results = (("theory", theory), ("networks", nets), ("comparison", comparison))
    paths = [dmft.save(ds, given.out / f"{name}.nc") for name, ds in results]
    shown = width_convergence.drawn(comparison)
    paths += style.save(width_convergence.figure(comparison), shown, given.out / "width_convergence")
    print(f"\n{comparisons.summary(comparison)}\n\nwritten:", *paths, sep="\n")


if __name__ == "__main__":
    main()
