"""Processor and wall time of the first and the second call of a producer, and the peak memory of the process:

    PYTHONPATH=ROOT JAX_COMPILATION_CACHE_DIR=$(mktemp -d) python tests/benchmarks/calls.py solve mlp

ROOT has the packages to be measured; two versions are compared in turns, one process a measurement.
"""

import os
import resource
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")

import numpy as np

import dmft

X = np.random.default_rng(0).standard_normal((8, 16))
TASK = dmft.Task(X[:6], np.sign(X[:6, 0]), X[6:], np.sign(X[6:, 0]))
NETWORKS = {"mlp": lambda: dmft.MLP(3), "residual": lambda: dmft.ResidualMLP(4)}
STEPS, QUIET = {"fluctuations": 6}, {"progress": False}


def called(what: str, problem: dmft.Problem) -> None:
    if what == "solve":
        dmft.solve(problem, particles=2048, scrambles=4, **QUIET)
    elif what == "fluctuations":
        few = {"particles": 256, "scrambles": 2, "draws": 8, "observables": ["prediction"]}
        dmft.fluctuations(problem, mode="forward", **few, **QUIET)
    else:
        import finite_nets

        finite_nets.train_ensemble(problem, widths=[256], seeds=128, **QUIET)


def main(what: str, name: str) -> None:
    warnings.simplefilter("ignore")
    problem = dmft.Problem(NETWORKS[name](), TASK, dmft.GradientDescent(0.3, STEPS.get(what, 20)))
    found = []
    for _ in range(2):
        processor, wall = sum(os.times()[:2]), time.perf_counter()
        called(what, problem)
        found += [sum(os.times()[:2]) - processor, time.perf_counter() - wall]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    root = Path(dmft.__file__).parents[1]
    print(what, name, "processor, wall s:", *(f"{v:.2f}" for v in found), f"peak MiB: {peak:.0f} ({root})")


if __name__ == "__main__":
    main(*sys.argv[1:])
