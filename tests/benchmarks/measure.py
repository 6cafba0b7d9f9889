"""Hot loops against the limits of the machine: `python tests/benchmarks/measure.py [--device cpu|cuda]`.

Prints Markdown.  For each loop the floating-point operations and the bytes that it cannot avoid are counted, the rates of a
large copy and of a large matrix product are measured in the same run, and the larger of the two times is the floor.

    solver, a step and a hidden matrix    2 calls of 9 products 2 S k P (k the capacity of the basis), float64;
                                          a product reads an array S k of 8-byte numbers
    networks, a step and a hidden matrix  3 products 2 N^2 P; W is read twice, and read and written by the update: 4 N^2 numbers
"""

import argparse
import platform
import time

import jax
import numpy as np
import torch

import dmft
from dmft.engine import loop
from dmft.engine.normals import sobol, stored
from dmft.engine.population import particles
from finite_nets.network import Trainer, initialise

SOLVER_CASES = {"cpu": [(3, 4, 20, 4096), (2, 60, 16, 4096)]}  # depth, samples, steps, particles
SOLVER_CASES["cuda"] = [*SOLVER_CASES["cpu"], (3, 60, 50, 16384)]
NETWORK_CASES = {"cpu": [(128, 3), (128, 60), (512, 3), (512, 60), (1024, 60), (2048, 60)]}  # width, samples
NETWORK_CASES["cuda"] = [*NETWORK_CASES["cpu"], (8192, 60)]
BUDGET = {"cpu": 2**26, "cuda": 2**33}  # bytes of weights and fields trained at once


def seconds(work, sync, repeats=5):
    """Median time of `work()` after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        sync()
        start = time.perf_counter()
        work()
        sync()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def ceilings(device, dtype):
    """(bytes per second of a copy, operations per second of a matrix product) in PyTorch."""
    sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    size = 2**30 if device.type == "cuda" else 2**27
    a = torch.randn(size // 8, device=device, dtype=torch.float64)
    b = torch.empty_like(a)
    copy = 2 * size / seconds(lambda: b.copy_(a), sync)
    n = 8192 if device.type == "cuda" else 2048
    x, y = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return copy, 2 * n**3 / seconds(lambda: x @ y, sync, 3)


def problem(depth, n_train, n_test, steps):
    x = np.random.default_rng(3).standard_normal((n_train + n_test, 200))
    x *= np.sqrt(200) / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.where(np.arange(n_train + n_test) % 2, 1.0, -1.0)
    test = (x[n_train:], y[n_train:]) if n_test else (None, None)
    return dmft.Problem(dmft.MLP(depth), dmft.Task(x[:n_train], y[:n_train], *test), dmft.GradientDescent(0.3, steps))


def measure_solver(device, copy, rate):
    print("\n| solver: L, P, T, S | directions | first scramble (compiles) s | next s | GFLOP/s | of the floor |")
    print("|---|---|---|---|---|---|")
    with jax.enable_x64(True), jax.default_device(jax.devices("gpu" if device.type == "cuda" else "cpu")[0]):
        for case in SOLVER_CASES[device.type]:
            solver_row(*case, copy, rate)


def solver_row(depth, samples, steps, size, copy, rate):
    described = problem(depth, samples, 0, steps)
    directions = dmft.solve(described, particles=4096, scrambles=2).attrs["directions"]
    capacity = min(samples * (steps + 1), directions + 2 * samples)
    rule, form = loop.rule_of(described), loop.form_of(described)
    seeds = np.random.SeedSequence(0).spawn(depth)
    draws = loop.draws_needed(rule, form, depth, capacity)
    raw = [stored(sobol(n, size, s)) for n, s in zip(draws, seeds, strict=True)]

    def scramble():
        # the loop takes its arguments over: each call needs its own normals
        network = loop.limit_network(rule, form, depth, [particles(z + 0) for z in raw], 3e-3, capacity=capacity)
        history = loop.empty_history(network, rule, form, range(steps + 1))
        jax.block_until_ready(loop.advance(network, history, rule, 0, steps + 1, form=form))

    start = time.perf_counter()
    scramble()
    first = time.perf_counter() - start
    again = seconds(scramble, lambda: None)
    calls = 2 * (depth - 1) * (steps + 1)
    operations = calls * 9 * 2 * size * capacity * samples
    floor = max(operations / rate, calls * 9 * size * capacity * 8 / copy)
    print(
        f"| {depth}, {samples}, {steps}, {size} | {capacity} | {first:.2f} | {again:.3f} "
        f"| {operations / again / 1e9:.1f} | {floor / again:.0%} |"
    )


def measure_networks(device, dtype, copy, rate):
    print(f"\n| networks, {dtype}: N, P, members | draw ns / weight | step ms | GB/s | GFLOP/s | of the floor |")
    print("|---|---|---|---|---|---|")
    for width, samples in NETWORK_CASES[device.type]:
        with torch.inference_mode():
            networks_row(width, samples, device, dtype, copy, rate)


def networks_row(width, samples, device, dtype, copy, rate):
    sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    itemsize = torch.empty((), dtype=dtype).element_size()
    trainer = Trainer(problem(2, samples, 0, 10), device, dtype)
    inputs = trainer.x.shape[1]
    count = max(1, BUDGET[device.type] // ((width**2 + 16 * samples * width) * itemsize))
    members = torch.arange(count, device=device)

    def draw():
        return initialise(2, inputs, width, members, root_seed=0, dtype=dtype)

    drawing = seconds(draw, sync, 1) / (count * width * (width + inputs + 1))
    state, met = trainer.begin(draw()), trainer.meet(0, everything=False)

    def step():
        _, trained = trainer.evaluate(state, met, gradients=False)
        trainer.descend(state, trained, trainer.rates[0])

    each = seconds(step, sync)
    moved = count * 4 * width * (width + inputs) * itemsize
    operations = count * 2 * width * samples * (3 * width + 2 * inputs)
    floor = max(moved / copy, operations / rate)
    print(
        f"| {width}, {samples}, {count} | {drawing * 1e9:.2f} | {each * 1e3:.2f} | {moved / each / 1e9:.1f} "
        f"| {operations / each / 1e9:.0f} | {floor / each:.0%} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}; Python {platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}")
    for dtype in (torch.float64, torch.float32):
        copy, rate = ceilings(device, dtype)
        print(f"\nceilings, {dtype}: copy {copy / 1e9:.0f} GB/s, matrix product {rate / 1e9:.0f} GFLOP/s")
        if dtype == torch.float64:
            measure_solver(device, copy, rate)
        measure_networks(device, dtype, copy, rate)


if __name__ == "__main__":
    main()
