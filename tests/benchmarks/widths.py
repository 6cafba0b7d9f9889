"""Networks of width 64 to 1024 against predicted N Var and N bias: `python tests/benchmarks/widths.py`.

Two problems: that of the reference numbers (tanh, L=2, P=3, T=10), and threes against eights of MNIST, 50 images (L=2,
T=12).  For every quantity: N Var and N bias over their predictions at each width, exponents, and the fit a + b/N of all
widths against theory.  For a GPU; what is made is kept in --out and not made again; --quick shows that it runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

import comparisons
import dmft
import finite_nets

WIDTHS = (64, 128, 256, 512, 1024)
OBSERVABLES = ("prediction", "loss", "feature_kernel")
PARTS = ("theory", "networks", "fluctuations")


def reference() -> dmft.Problem:
    x = np.random.default_rng(0).standard_normal((25, 3)).T
    network = dmft.MLP(depth=2, activation=dmft.tanh(0.8), gamma0=1.0)
    return dmft.Problem(network, dmft.Task(x, [-1, 1, 1]), dmft.GradientDescent(0.6, steps=10))


def mnist() -> dmft.Problem:
    task = dmft.load_task("mnist5k", classes=(3, 8), n_train=50, n_test=0)
    return dmft.Problem(
        dmft.MLP(depth=2, activation=dmft.tanh(), gamma0=1.0), task, dmft.GradientDescent(1.0, steps=12)
    )


@dataclass(frozen=True)
class Work:
    """A problem, and how much is done for it: networks a width, particles of the limit, particles and draws of its
    fluctuations."""

    problem: Callable[[], dmft.Problem]
    networks: int
    particles: int
    few_particles: int
    draws: int

    def parts(
        self,
        name: str,
        folder: Path,
        wanted: Sequence[str] = PARTS,
        *,
        quick: bool = False,
        networks: int | None = None,
    ) -> dict[str, xr.Dataset]:
        """Parts of this size kept in the folder, and those that are wanted and not there, which are made and kept."""
        found = {}
        size = f"{'_quick' if quick else ''}{f'_{networks}' if networks else ''}"
        for part in PARTS:
            path = folder / f"{name}{size}_{part}.nc"
            if part in wanted and not path.exists():
                started = time.perf_counter()
                dmft.save(self.make(part, quick=quick, networks=networks), path)
                print(f"{name}, {part}: {time.perf_counter() - started:.0f} s", flush=True)
            if path.exists():
                found[part] = dmft.load(path)
        return found

    def make(self, part: str, *, quick: bool, networks: int | None) -> xr.Dataset:
        problem = self.problem()
        if part == "theory":
            particles = 2048 if quick else self.particles
            return dmft.solve(problem, particles=particles, observables=OBSERVABLES, tolerance=1e-3)
        if part == "fluctuations":
            particles, draws = (2048, 16) if quick else (self.few_particles, self.draws)
            return dmft.fluctuations(problem, particles=particles, draws=draws, observables=OBSERVABLES)
        seeds = networks or (2000 if quick else self.networks)
        return finite_nets.train_ensemble(problem, widths=WIDTHS, seeds=seeds, keep="moments", observables=OBSERVABLES)


PROBLEMS = {
    "reference": Work(reference, 2_000_000, 65_536, 16_384, 256),
    "mnist": Work(mnist, 200_000, 65_536, 4_096, 2_048),
}


def show(name: str, comparison: xr.Dataset) -> None:
    print(f"\n**{name}** ({comparison.attrs['seeds']} networks a width)\n")
    print(
        "| quantity | "
        + " | ".join(f"N={n}" for n in comparison["width"].values)
        + " | exponent | fit: z of a_0, a_1 (rms) |"
    )
    print("|---" * (len(comparison["width"]) + 3) + "|")
    for quantity in ("prediction", "loss", "feature_kernel"):
        for kind in ("variance", "bias"):
            key = f"{quantity}_{kind}_overall_ratio"
            ratios = [
                f"{r:.3f}({s:.3f})" for r, s in zip(comparison[key].values, comparison[f"{key}_se"].values, strict=True)
            ]
            exponent = f"{comparison[f'{quantity}_{kind}_exponent'].item():.3f}({comparison[f'{quantity}_{kind}_exponent_se'].item():.3f})"
            law = comparisons.width_law(comparison, f"{quantity}_{'mean' if kind == 'bias' else 'variance'}")
            z = [f"{np.sqrt(np.nanmean(law[v].values ** 2)):.2f}" for v in ("limit_z", "slope_z") if v in law]
            print(
                f"| {quantity}, N {kind} over predicted | "
                + " | ".join(ratios)
                + f" | {exponent} | {', '.join(z)}, order {law.attrs['order']} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to make; others from --out"
    )
    parser.add_argument("--out", type=Path, default=Path("results/widths"), help="results, and those made before")
    parser.add_argument("--networks", type=int, help="a width; by default as many as a GPU trains in a minute or two")
    given = parser.parse_args()
    for name in given.problems:
        found = PROBLEMS[name].parts(name, given.out, given.parts, quick=given.quick, networks=given.networks)
        if len(found) == len(PARTS):
            show(name, comparisons.compare(found["theory"], found["networks"], found["fluctuations"]))


if __name__ == "__main__":
    main()
