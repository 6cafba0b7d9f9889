"""Cost of fluctuations and of networks in law: `python tests/benchmarks/fluctuations.py`, from a cold start (compilation
included), on a GPU if JAX has one.  Prints Markdown."""

import time

import jax
import numpy as np

import dmft
import finite_nets


def problem(depth, samples, steps, rate, activation):
    x = np.random.default_rng(3).standard_normal((samples, 25))
    y = np.where(np.arange(samples) % 2, 1.0, -1.0)
    return dmft.Problem(dmft.MLP(depth, activation), dmft.Task(x, y), dmft.GradientDescent(rate, steps))


def timed(label, work):
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    print(f"| {label} | {times[0]:.1f} | {times[1]:.1f} |", flush=True)


def main():
    device = jax.devices()[0]
    gpu = device.platform != "cpu"
    print(f"{device.device_kind}; jax {jax.__version__}\n\n| work | first call s (compiles) | again s |\n|---|---|---|")
    tanh = problem(2, 3, 10, 0.6, dmft.tanh(0.8))
    for deflate in (True, False):
        timed(
            f"fluctuations, L=2, P=3, T=10, S=16,384, 128 draws, deflate={deflate}",
            lambda deflate=deflate: dmft.fluctuations(tanh, particles=16384, draws=128, deflate=deflate),
        )
    timed("fluctuations at the defaults, same problem", lambda: dmft.fluctuations(tanh))
    for samples, steps, rate in ((1, 100, 0.08), (5, 20, 0.3)):
        linear = problem(2, samples, steps, rate, dmft.linear())
        timed(f"exact linear fluctuations, L=2, P={samples}, T={steps}", lambda p=linear: dmft.fluctuations(p))
    wide = problem(2, 10, 19, 0.6, dmft.tanh(0.8))
    width = 10**6 if gpu else 10**4
    timed(
        f"one network in law, width {width:,}, L=2, T P = 200",
        lambda: finite_nets.sample_in_law(wide, widths=[width], seeds=1),
    )


if __name__ == "__main__":
    main()
