"""Ensembles of networks against the limits of the machine: `python tests/benchmarks/ensembles.py [--device ...] [PART ...]`.

Prints Markdown.  Parts: steps, million, loop, precision, batches (all by default), growth, and gpus, on a machine with
several.

**steps.** A step of training (forward, backward, update; L=2, P samples in P coordinates, nothing recorded), averaged over
the T=10 steps of a run.  Rates of a large copy and of a large matrix product are measured in the same run.  What ordinary
training cannot avoid, a member:

    bytes         4 N (N + P) numbers: weights are read forward and backward, and read and written by the update
    operations    2 N P (3 N + 2 P): three products with the hidden matrix, two with the input weights

"of the floor" is the larger of the two times over the measured one; it exceeds 100 % where delayed updates (column pairs)
move fewer bytes than ordinary training, or three TF32 products beat a float32 one.  "own" is the floor of what is really
done: with fields (P N numbers, each written once and read once a use: some 14 a layer) and, where updates are delayed,
2 N^2 + 4 N j numbers and 4 N^2 P + 8 N j P operations for j pairs, T P / 2 on average; operations of float32 at a third of
the rate of TF32.

**growth.** The same step as `train_ensemble` takes it, drawing included (moments of prediction and loss at the end), where
one of width, samples, steps and layers grows; slopes of logarithms over all values, and over the last two, beside those of
the operations 2 N P ((3 L - 3) N + 2 P) a step (of layers: in L - 1, the hidden matrices).
"""

import argparse
import platform
import tempfile
import time

import growth
import numpy as np
import torch

import comparisons
import dmft
import finite_nets
from finite_nets.device.activations import function
from finite_nets.device.precision import PRECISIONS
from finite_nets.training.perceptrons import Trainer

CASES = [(128, 3), (128, 60), (512, 3), (512, 60), (2048, 3), (2048, 60), (8192, 3), (8192, 60)]  # width, samples
STEPS = 10
BUDGET = {"cpu": 2**26, "cuda": 2**32}  # bytes of weights and fields trained at once
PARTS = ("steps", "million", "loop", "precision", "batches")
MIDDLE = {"N": 512, "P": 60, "T": 40, "L": 2}
GROWTH = {
    "N": (64, 128, 256, 512, 1024, 2048, 4096),
    "P": (4, 15, 60, 240, 500),
    "T": (10, 20, 40, 80, 160),
    "L": (1, 2, 3, 4, 5),
}


def problem(samples, steps=STEPS, depth=2):
    """Points on a sphere in 200 dimensions, targets -1 and +1 in turn; tanh."""
    x = np.random.default_rng(3).standard_normal((samples, 200))
    x *= np.sqrt(200) / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.where(np.arange(samples) % 2, 1.0, -1.0)
    return dmft.Problem(dmft.MLP(depth), dmft.Task(x, y), dmft.GradientDescent(0.3, steps))


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work, repeats=3):
    """Median time of `work()`, after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        synchronise()
        start = time.perf_counter()
        work()
        synchronise()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def ceilings(device):
    """Bytes per second of a copy, and operations per second of a matrix product, by precision."""
    size = 2**31 if device.type == "cuda" else 2**27
    a = torch.randn(size // 8, device=device, dtype=torch.float64)
    b = torch.empty_like(a)
    copy = 2 * size / seconds(lambda: b.copy_(a))
    rates = {}
    n = 8192 if device.type == "cuda" else 2048
    for name, dtype, mode in (
        ("float64", torch.float64, "highest"),
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
    ):
        if device.type == "cpu" and name in ("tf32", "bf16"):
            rates[name] = rates["float32"]
            continue
        torch.set_float32_matmul_precision(mode)
        x, y = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        rates[name] = 2 * n**3 / seconds(lambda x=x, y=y: x @ y)
    torch.set_float32_matmul_precision("highest")
    return copy, rates


def measure_steps(device, copy, rates):
    shown = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items())
    print(f"\nceilings: copy {copy / 1e9:.0f} GB/s; matrix products, TFLOP/s: {shown}")
    print("\n| dtype | N, P | members | pairs | ms a step | ns a member | of the floor | own | draw ps a weight |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in ("float32", "tf32", "bf16", "float64") if device.type == "cuda" else ("float32", "float64"):
        for width, samples in CASES:
            if device.type == "cuda" or width <= 2048:
                with torch.inference_mode():
                    steps_row(name, width, samples, device, copy, rates)


def steps_row(name, width, samples, device, copy, rates):
    trainer = Trainer(problem(samples), device, PRECISIONS[name])
    itemsize = PRECISIONS[name].fields.itemsize
    inputs = trainer.x.shape[1]
    each = (width**2 + 2 * STEPS * samples * width + 12 * samples * width) * itemsize
    count = max(1, BUDGET[device.type] // each)
    members = torch.arange(count, device=device)
    drawing = seconds(lambda: trainer.draw(width, members, 0), 1) / (count * width * (width + inputs + 1))

    def train():
        state = trainer.begin(trainer.draw(width, members, 0))
        met = trainer.meet(0, everything=False)
        synchronise()
        start = time.perf_counter()
        for t in range(STEPS):
            trainer.advance(state, t, *trainer.evaluate(state, met, gradients=False))
        synchronise()
        return (time.perf_counter() - start) / STEPS, state.weights.hidden[0].store.left.shape[1]

    train()
    taken, pairs = min(train() for _ in range(3))
    moved = count * 4 * width * (width + inputs) * itemsize
    operations = count * 2 * width * samples * (3 * width + 2 * inputs)
    floor = max(moved / copy, operations / rates[name])
    start = 2 if name == "bf16" else itemsize
    fields = 14 * samples * width * itemsize
    if pairs:
        mean = pairs / 2
        own_bytes = 2 * width**2 * start + 4 * width * mean * itemsize + 4 * width * inputs * itemsize + fields
        own_operations = 4 * width**2 * samples + 8 * width * mean * samples + 4 * width * samples * inputs
    else:
        own_bytes = 4 * width * (width + inputs) * itemsize + fields
        own_operations = operations / count
    rate = rates["tf32"] / 3 if name == "float32" and device.type == "cuda" else rates[name]
    own = count * max(own_bytes / copy, own_operations / rate)
    print(
        f"| {name} | {width}, {samples} | {count} | {pairs} | {taken * 1e3:.2f} | {taken / count * 1e9:.0f} "
        f"| {floor / taken:.0%} | {own / taken:.0%} | {drawing * 1e12:.1f} |",
        flush=True,
    )


def measure_growth(device):
    print("\n| N, P, T, L | members | ns a member and step (float32) |\n|---|---|---|")
    for name, values in GROWTH.items():
        cases = [{**MIDDLE, name: value} for value in values]
        operations = [c["N"] * c["P"] * (3 * (c["L"] - 1) * c["N"] + 2 * c["P"]) for c in cases]
        taken = [growth_row(device, **case) for case in cases]
        print(growth.slopes(name, values, {"time": taken, "operations": operations}), flush=True)


def growth_row(device, N, P, T, L):
    """Nanoseconds a member and step."""
    each = L * (N**2 + 14 * P * N)  # a quarter of its bytes: four blocks
    count = min(max(1, BUDGET[device.type] // each), 40_000 if device.type == "cuda" else 200)
    wanted = {"seeds": count, "device": str(device), "keep": "moments", "save_steps": [T]}
    wanted |= {"observables": ["prediction", "loss"], "progress": False}
    described = problem(P, T, L)
    taken = seconds(lambda: finite_nets.train_ensemble(described, widths=[N], **wanted)) / count / T * 1e9
    print(f"| {N}, {P}, {T}, {L} | {count} | {taken:.0f} |", flush=True)
    return taken


def measure_million(device):
    """10^6 networks (on a CPU 10^4) with full covariance of predictions."""
    seeds = 10**6 if device.type == "cuda" else 10**4
    print(
        f"\n{seeds:,} networks of width 128 (L=2, P=3, T=10), moments with covariance of predictions over (step, sample):"
    )
    for dtype in ("float32", "tf32", "bf16", "float64") if device.type == "cuda" else ("float32",):
        arguments = {"widths": [128], "device": str(device), "dtype": dtype, "keep": "moments", "covariance": True}
        arguments["observables"] = ["prediction", "loss"]
        finite_nets.train_ensemble(problem(3), seeds=seeds // 100, **arguments)  # compiles
        start = time.perf_counter()
        nets = finite_nets.train_ensemble(problem(3), seeds=seeds, **arguments)
        taken = time.perf_counter() - start
        found = comparisons.statistics(nets)
        f, se = (found[f"prediction_mean{part}"].values[0, -1, 0] for part in ("", "_se"))
        print(f"- {dtype}: {taken:.2f} s; E f(T) = {f:.6f} +- {se:.6f}", flush=True)
        everything = arguments | {"observables": None}
        finite_nets.train_ensemble(problem(3), seeds=seeds // 100, **everything)
        start = time.perf_counter()
        finite_nets.train_ensemble(problem(3), seeds=seeds, **everything)
        print(f"  with all kernels: {time.perf_counter() - start:.2f} s", flush=True)


def measure_loop(device):
    """One network after the other, as one would write it: modules, automatic differentiation, SGD."""
    described, width, seeds = problem(3), 128, 40
    gamma0, n = described.network.gamma0, described.task.n_train
    phi = function(described.network.activation)

    class Network(torch.nn.Module):
        def __init__(self, inputs):
            super().__init__()
            shapes = ((width, inputs), (width, width), (1, width))
            self.weights = torch.nn.ParameterList([torch.randn(shape) for shape in shapes])

        def forward(self, x):
            first, hidden, readout = self.weights
            h = phi(x @ first.T / x.shape[1] ** 0.5)[0] @ hidden.T / width**0.5
            return phi(h)[0] @ readout.T / (gamma0 * width)

    def run(where, count):
        x, y = (torch.tensor(a, dtype=torch.float32, device=where) for a in (described.task.x, described.task.targets))
        for seed in range(count):
            torch.manual_seed(seed)
            network = Network(x.shape[1]).to(where)
            optimiser = torch.optim.SGD(network.parameters(), lr=0.3 * gamma0**2 * width)
            with torch.no_grad():
                offset = network(x)
            for _ in range(STEPS):
                optimiser.zero_grad()
                (((network(x) - offset - y)[:n] ** 2).mean() / 2).backward()
                optimiser.step()
        synchronise()

    one_by_one = {}
    for where in {"cpu", device.type}:
        run(where, 5)
        start = time.perf_counter()
        run(where, seeds)
        one_by_one[where] = (time.perf_counter() - start) / seeds
    count = 400_000 if device.type == "cuda" else 4_000
    arguments = {"widths": [width], "device": str(device), "keep": "moments", "observables": ["prediction", "loss"]}
    finite_nets.train_ensemble(described, seeds=count // 100, **arguments)
    start = time.perf_counter()
    finite_nets.train_ensemble(described, seeds=count, **arguments)
    batched = (time.perf_counter() - start) / count
    shown = ", ".join(f"{taken * 1e3:.2f} ms on {where}" for where, taken in one_by_one.items())
    print(f"\nA network of width 128 by itself (float32, L=2, P=3, T=10): {shown}.")
    print(f"In an ensemble: {batched * 1e6:.2f} us; {min(one_by_one.values()) / batched:,.0f} times less.")


def measure_precision(device):
    """Differences to float64 on the same seeds, in units of the standard errors that 10^6 networks would have."""
    print(
        "\n| N, P | dtype | rms difference of f | mean, in s.e. of 10^6 networks | variance, relative (s.e. of 10^6: .0014) |"
    )
    print("|---|---|---|---|---|")
    cases = ((128, 3, 100_000), (1024, 3, 4_000), (256, 60, 30_000), (512, 60, 10_000), (512, 200, 4_000))
    for width, samples, seeds in cases if device.type == "cuda" else ((128, 3, 1_000),):
        arguments = {"widths": [width], "seeds": seeds, "device": str(device), "observables": ["prediction"]}
        exact = finite_nets.train_ensemble(problem(samples), dtype="float64", **arguments).prediction.values[0]
        spread, later = exact[:, 1:].std(axis=0), slice(1, None)
        for dtype in ("float32", "tf32", "bf16"):
            found = finite_nets.train_ensemble(problem(samples), dtype=dtype, **arguments).prediction.values[0]
            difference = (found - exact)[:, later]
            rms = np.sqrt((difference**2).mean())
            mean = abs(difference.mean(axis=0) / spread).max() * 1e3
            resolved = (difference.std(axis=0) / spread).max() * 1e3 / np.sqrt(seeds)
            variance = abs(found[:, later].var(axis=0) / spread**2 - 1).max()
            print(
                f"| {width}, {samples} | {dtype} | {rms:.1e} | {mean:.3f} (+- {resolved:.3f}) | {variance:.1e} |",
                flush=True,
            )


def measure_batches(device):
    """Whether a member's numbers depend on how many are trained with it."""
    arguments = {"widths": [128], "seeds": 64, "device": str(device), "covariance": True, "keep": "moments"}
    for dtype in ("float32", "tf32", "bf16", "float64") if device.type == "cuda" else ("float32", "float64"):
        # at least a block of two, and all at once
        some, every = (
            finite_nets.train_ensemble(problem(3), dtype=dtype, memory_limit=limit, **arguments)
            for limit in (2**23, None)
        )
        differing = [name for name in every.data_vars if not np.array_equal(some[name], every[name])]
        print(
            f"\nbatches of other sizes, {dtype}: {'bit for bit the same' if not differing else f'differ: {differing}'}"
        )


def measure_gpus():
    """The same sweep on one GPU and on all of them; of two sizes, to tell the networks from the start of the workers."""
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    sizes, taken = (4_000_000, 20_000_000), {}
    for names in (devices[:1], devices):
        for seeds in sizes:
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                summary = finite_nets.sweep(
                    problem(3, steps=20),
                    [128],
                    seeds,
                    store=f"{folder}/store",
                    executor="pool",
                    devices=names,
                    observables=["prediction", "loss"],
                    save_steps=[0, 10, 20],
                )
                taken[len(names), seeds] = time.perf_counter() - start
                print(f"{len(names)} GPU(s): {summary}", flush=True)
    more = sizes[1] - sizes[0]
    rates = {count: more / (taken[count, sizes[1]] - taken[count, sizes[0]]) for count in (1, len(devices))}
    print(
        f"{len(devices)} GPUs: {taken[1, sizes[1]] / taken[len(devices), sizes[1]]:.2f} times as fast with the start of the "
        f"workers, {rates[len(devices)] / rates[1]:.2f} times without ({rates[1]:,.0f} networks a second on one)."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("parts", nargs="*", metavar="PART", help="of " + ", ".join((*PARTS, "growth", "gpus")))
    given = parser.parse_args()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}; Python {platform.python_version()}, torch {torch.__version__}")
    for part in given.parts or PARTS:
        if part == "steps":
            measure_steps(device, *ceilings(device))
        elif part == "gpus":
            measure_gpus()
        else:
            {
                "million": measure_million,
                "loop": measure_loop,
                "precision": measure_precision,
                "batches": measure_batches,
                "growth": measure_growth,
            }[part](device)


if __name__ == "__main__":
    main()
