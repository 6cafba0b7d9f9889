"""What a first and a second process spend before they compute: start, tracing, compilation or reading.

    python tests/benchmarks/start.py

Of the example of README (classes 3 and 8 of MNIST, P=60, two layers), with few particles and steps, which change neither
the code nor how much of it there is; the time of a second call in the same process is taken off.  Processor seconds, and
wall seconds on a quiet machine.
"""

import os
import subprocess
import sys
import tempfile

CHILD = """
import time, warnings
warnings.simplefilter("ignore")
import dmft
task = dmft.load_task("mnist5k", classes=(3, 8), n_train=30, n_test=30)
problem = dmft.Problem(dmft.MLP(depth=2, activation=dmft.tanh()), task, dmft.GradientDescent(1.0, steps=16))
few = {{"particles": 256, "scrambles": 2, "save_steps": [0, 1], "progress": False}}
times = []
for _ in range(2):
    dmft.{call}
    times.append((time.process_time(), time.perf_counter() - START))
(cpu, wall), (cpu_2, wall_2) = times
print(f"{{2 * cpu - cpu_2:.2f}} processor, {{2 * wall - wall_2:.2f}} wall")
"""
CALLS = {"solve": "solve(problem, **few)", "fluctuations": "fluctuations(problem, draws=8, **few)"}


def main() -> None:
    for name, call in CALLS.items():
        with tempfile.TemporaryDirectory() as folder:
            environment = {n: v for n, v in os.environ.items() if not n.startswith(("JAX_", "DMFT_"))}
            environment |= {"DMFT_COMPILE_CACHE": folder}
            code = "import time; START = time.perf_counter()" + CHILD.format(call=call)
            for process in ("first", "second"):
                out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
                print(f"{name}, {process} process: {out.stdout.strip() or out.stderr[-500:]}", flush=True)


if __name__ == "__main__":
    main()
