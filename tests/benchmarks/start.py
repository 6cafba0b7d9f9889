"""What processes spend before they compute: start, tracing, compilation or reading.

    python tests/benchmarks/start.py [--device cpu|gpu]

Of the example of README (classes 3 and 8 of MNIST, P=60, two layers), with few particles and steps recorded, which
change neither the code nor how much of it there is; the time of the same call once more is taken off.  Processor
seconds, and wall seconds on a quiet machine:

    first, full     nothing is kept from before, and the compiler is asked for all it can do
    first           the same, with the effort that the work is worth (`dmft.running.effort`)
    second          with what the first process has kept
    neighbour       in the second process, a problem of two steps more and another richness
"""

import argparse
import os
import subprocess
import sys
import tempfile

CHILD = """
import time, warnings
START = time.perf_counter()
warnings.simplefilter("ignore")
import dmft
from dmft.running import effort

if {full}:
    effort.LITTLE.clear()
task = dmft.load_task("mnist5k", classes=(3, 8), n_train=30, n_test=30)
few = {{"particles": 256, "scrambles": 2, "save_steps": [0, 1], "progress": False, "device": "{device}"}}


def seconds(steps, gamma0):
    network = dmft.MLP(depth=2, activation=dmft.tanh(), gamma0=gamma0)
    problem = dmft.Problem(network, task, dmft.GradientDescent(1.0, steps=steps))
    times = []
    for _ in range(2):
        begun = time.process_time(), time.perf_counter()
        dmft.{call}
        times.append((time.process_time() - begun[0], time.perf_counter() - begun[1]))
    return [first - again for first, again in zip(*times)]


begun = time.process_time(), time.perf_counter() - START
cpu, wall = seconds(16, 1.0)
print(f"{{begun[0] + cpu:.2f}} processor, {{begun[1] + wall:.2f}} wall", end="")
if {neighbour}:
    cpu, wall = seconds(18, 0.8)
    print(f"; neighbour {{cpu:.2f}}, {{wall:.2f}}", end="")
"""
CALLS = {"solve": "solve(problem, **few)", "fluctuations": "fluctuations(problem, draws=8, **few)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    device = parser.parse_args().device
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("JAX_COMPILATION_CACHE", "DMFT_"))}
    for name, call in CALLS.items():
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
            for process, where in (("first, full", other), ("first", folder), ("second", folder)):
                code = CHILD.format(
                    call=call, device=device, full=process == "first, full", neighbour=process == "second"
                )
                environment = kept | {"DMFT_COMPILE_CACHE": where}
                out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
                print(f"{name}, {process}: {out.stdout.strip() or out.stderr[-500:]}", flush=True)


if __name__ == "__main__":
    main()
