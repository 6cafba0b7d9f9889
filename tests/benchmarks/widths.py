"""Networks of width 64 to 1024 against predicted N Var and N bias: `python tests/benchmarks/widths.py [--quick]`.

Two problems: that of the reference numbers (tanh, L=2, P=3, T=10), and threes against eights of MNIST, 50 images (L=2,
T=12).  For every quantity: N Var and N bias over their predictions at each width, exponents, and the fit a + b/N of all
widths against theory.  For a GPU; --quick shows that it runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import xarray as xr

import comparisons
import dmft
import finite_nets

WIDTHS = (64, 128, 256, 512, 1024)
OBSERVABLES = ("prediction", "loss", "feature_kernel")


def reference() -> dmft.Problem:
    x = np.random.default_rng(0).standard_normal((25, 3)).T
    network = dmft.MLP(depth=2, activation=dmft.tanh(0.8), gamma0=1.0)
    return dmft.Problem(network, dmft.Task(x, [-1, 1, 1]), dmft.GradientDescent(0.6, steps=10))


def mnist() -> dmft.Problem:
    task = dmft.load_task("mnist5k", classes=(3, 8), n_train=50, n_test=0)
    return dmft.Problem(
        dmft.MLP(depth=2, activation=dmft.tanh(), gamma0=1.0), task, dmft.GradientDescent(1.0, steps=12)
    )


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
    parser.add_argument("--out", type=Path, help="folder for the comparisons")
    given = parser.parse_args()
    scale = 0.001 if given.quick else 1.0
    # name: problem, networks a width, particles of the limit, particles and draws of fluctuations
    work = {
        "reference problem": (reference(), 2_000_000, 65_536, 16_384, 1024),
        "MNIST, 50 images": (mnist(), 200_000, 65_536, 8_192, 256),
    }
    for name, (problem, networks, particles, some, draws) in work.items():
        started = time.perf_counter()
        if given.quick:
            particles, some, draws = 2048, 2048, 16
        theory = dmft.solve(problem, particles=particles, observables=OBSERVABLES, tolerance=1e-3)
        solved = time.perf_counter()
        predicted = dmft.fluctuations(problem, particles=some, draws=draws, observables=OBSERVABLES)
        fluctuated = time.perf_counter()
        nets = finite_nets.train_ensemble(
            problem, widths=WIDTHS, seeds=max(int(networks * scale), 64), keep="moments", observables=OBSERVABLES
        )
        print(
            f"{solved - started:.0f} s solve, {fluctuated - solved:.0f} s fluctuations, {time.perf_counter() - fluctuated:.0f} s networks"
        )
        comparison = comparisons.compare(theory, nets, predicted)
        show(name, comparison)
        if given.out:
            dmft.save(comparison, given.out / f"{name.split(',')[0].replace(' ', '_')}.nc")


if __name__ == "__main__":
    main()
