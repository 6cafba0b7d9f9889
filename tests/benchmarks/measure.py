"""The hot loop of the solver against the limits of the machine: `python tests/benchmarks/measure.py [--device cpu|cuda]`.

Prints Markdown.  Operations and bytes that it cannot avoid are counted, the rates of a large copy and of a large matrix
product are measured in the same run, and the larger of the two times is the floor.  A step and a hidden matrix: 2 calls of
9 products 2 S k P (k the capacity of the basis), float64; a product reads an array S k of 8-byte numbers.

`ensembles.py` does this for networks.
"""

import argparse
import platform
import time

import jax
import numpy as np
import torch
from ensembles import ceilings, problem, seconds

import dmft
from dmft.engine import loop
from dmft.engine.normals import sobol, stored
from dmft.engine.population import particles

SOLVER_CASES = {"cpu": [(3, 4, 20, 4096), (2, 60, 16, 4096)]}  # depth, samples, steps, particles
SOLVER_CASES["cuda"] = [*SOLVER_CASES["cpu"], (3, 60, 50, 16384)]


def measure_solver(device, copy, rate):
    print("\n| solver: L, P, T, S | directions | first scramble (compiles) s | next s | GFLOP/s | of the floor |")
    print("|---|---|---|---|---|---|")
    with jax.enable_x64(True), jax.default_device(jax.devices("gpu" if device.type == "cuda" else "cpu")[0]):
        for case in SOLVER_CASES[device.type]:
            solver_row(*case, copy, rate)


def solver_row(depth, samples, steps, size, copy, rate):
    described = problem(samples, steps, depth)
    directions = dmft.solve(described, particles=4096, scrambles=2).attrs["directions"]
    capacity = min(samples * (steps + 1), directions + 2 * samples)
    rule, form = loop.rule_of(described), loop.form_of(described)
    seeds = np.random.SeedSequence(0).spawn(depth)
    draws = loop.draws_needed(rule, form, capacity)
    raw = [stored(sobol(n, size, s)) for n, s in zip(draws, seeds, strict=True)]

    def scramble():
        # the loop takes its arguments over: each call needs its own normals
        network = loop.limit_network(rule, form, [particles(z + 0) for z in raw], 3e-3, capacity=capacity)
        history = loop.empty_history(network, rule, form, range(steps + 1))
        jax.block_until_ready(loop.advance(network, history, rule, 0, steps + 1, form=form))

    start = time.perf_counter()
    scramble()
    first = time.perf_counter() - start
    again = seconds(scramble)
    calls = 2 * (depth - 1) * (steps + 1)
    operations = calls * 9 * 2 * size * capacity * samples
    floor = max(operations / rate, calls * 9 * size * capacity * 8 / copy)
    print(
        f"| {depth}, {samples}, {steps}, {size} | {capacity} | {first:.2f} | {again:.3f} "
        f"| {operations / again / 1e9:.1f} | {floor / again:.0%} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}; Python {platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}")
    copy, rates = ceilings(device)
    print(f"\nceilings: copy {copy / 1e9:.0f} GB/s, float64 matrix product {rates['float64'] / 1e9:.0f} GFLOP/s")
    measure_solver(device, copy, rates["float64"])


if __name__ == "__main__":
    main()
