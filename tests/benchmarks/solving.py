"""`dmft.solve` against the rate of the machine, and how it grows:

    python tests/benchmarks/solving.py [samples particles steps devices ... | growth [P S T L]]

Operations by the ranks that were met, not by rooms: 36 S k P a step and hidden matrix, as the documentation counts, and
those that are needed at all, where products of what is new have as many rows as are new.

`growth` varies one of samples, particles, steps and layers, and gives slopes of logarithms, of the time and of either
count: over all values, and over the last two; of layers in the number of hidden matrices, L - 1.
"""

from __future__ import annotations

import sys
import time
from typing import Any
from unittest import mock

import growth
import jax
import jax.numpy as jnp
import numpy as np

import dmft
from dmft.drivers import repetitions

SMALL = (4, 4096, 20)  # samples, particles, steps
LARGE = (200, 65536, 50)
MIDDLE = {"P": 100, "S": 16384, "T": 50, "L": 3}  # samples, particles, steps, layers
GROWTH = {"P": (50, 100, 200, 400), "S": (8192, 16384, 32768, 65536), "T": (25, 50, 100, 200), "L": (1, 2, 3, 4, 5)}
REPEATS = 2


def problem(samples: int, steps: int, depth: int = 3) -> dmft.Problem:
    """Some layers on points of a sphere in 200 dimensions."""
    x = np.random.default_rng(0).standard_normal((samples, 200))
    x *= np.sqrt(200) / np.linalg.norm(x, axis=1, keepdims=True)
    task = dmft.Task(x, np.where(np.arange(samples) % 2, 1.0, -1.0))
    return dmft.Problem(dmft.MLP(depth, dmft.tanh(), gamma0=1.0), task, dmft.GradientDescent(0.3, steps))


def operations(ranks: np.ndarray[Any, Any], samples: int, particles: int) -> tuple[float, float]:
    """36 S k P, and those needed, of a run with ranks (step, matrix, side): of P vectors, coordinates and images on
    either side and a Gram matrix; of those that are new, twice orthogonalised, their own coordinates and images."""
    r, other = ranks.astype(float), ranks[..., ::-1].astype(float)
    new = np.diff(r, axis=0, prepend=0)
    needed = samples * (2 * r + 2 * other + samples + new) + new * (3 * r + 2 * other)
    return 18 * particles * samples * float(r.sum()), 2 * particles * float(needed.sum())


def matrix_rate(n: int) -> float:
    """FLOP/s of a square product in float64."""
    with jax.enable_x64(True):
        a = jax.random.normal(jax.random.key(0), (n, n), dtype=float)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            jax.block_until_ready(jnp.matmul(a, a))
            times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def measured(
    samples: int, particles: int, steps: int, scrambles: int, devices: int, rate: float, depth: int = 3
) -> tuple[float, float, float]:
    """One line: the first call, the fastest of some more, and what part of the rate that has; its seconds and both
    counts of operations."""
    ranks, times, made = [], [], repetitions.Trained.__init__

    def watched(self: Any, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        ranks.append(np.asarray(self.history.vitals.ranks))

    for _ in range(1 + REPEATS):
        ranks.clear()
        start = time.perf_counter()
        with mock.patch.object(repetitions.Trained, "__init__", watched):
            found = dmft.solve(
                problem(samples, steps, depth),
                particles=particles,
                scrambles=scrambles,
                tolerance=1e-2 if samples > SMALL[0] else 3e-3,
                observables=["prediction", "loss"],
                devices=devices,
                progress=False,
            )
        times.append(time.perf_counter() - start)
    usual, needed = np.sum([operations(each, samples, particles) for each in ranks], axis=0)
    first, again = times[0], min(times[1:])
    print(
        f"| P={samples}, S={particles}, T={steps}, L={depth} | {scrambles} | {devices} | {found.attrs['directions']} | {first:.1f} "
        f"| {again:.3f} | {usual / again / rate:.1%} | {needed / again / rate:.1%} |",
        flush=True,
    )
    return again, usual, needed


def grown(name: str, rate: float) -> None:
    """Lines of one of the four that grows, and slopes of logarithms."""
    cases = [{**MIDDLE, name: value} for value in GROWTH[name]]
    found = [measured(case["P"], case["S"], case["T"], 2, 1, rate, case["L"]) for case in cases]
    columns = dict(zip(("seconds", "36 S k P", "needed"), zip(*found, strict=True), strict=True))
    print(growth.slopes(name, GROWTH[name], columns), flush=True)


if __name__ == "__main__":
    grows = sys.argv[1:2] == ["growth"]
    asked = [] if grows else [int(each) for each in sys.argv[1:]]
    on_gpu = jax.default_backend() == "gpu"
    rate = matrix_rate(8192 if on_gpu else 1024)
    print(
        f"matrix rate {rate / 1e12:.3g} TFLOP/s\n| problem | scrambles | devices | directions | first s | again s | 36 S k P | needed |"
    )
    if grows:
        for name in sys.argv[2:] or GROWTH:
            grown(name, rate)
    elif asked:
        for count in asked[3:] or [1]:
            measured(asked[0], asked[1], asked[2], 2, count, rate)
    else:
        for scrambles in (2, 8):
            measured(*SMALL, scrambles, 1, rate)
        for count in range(1, len(jax.devices()) + 1 if on_gpu else 1):
            measured(*LARGE, 2, count, rate)
