"""Small networks on chip, by products of a batch, and by vmap(grad): `python tests/benchmarks/chip.py` on a GPU.

Prints Markdown.  Nanoseconds a member and step of a perceptron with two hidden layers of N neurons, P samples (points on
a sphere), float32, nothing recorded, batches that fill the card:

    on chip      `finite_nets.device.chip`, difference of 60 and 10 steps
    products     `finite_nets.training.perceptrons`, forward, backward and update by `finite_nets.device.triton`
    vmap(grad)   a plain function of PyTorch, differentiated and mapped over members, and recorded as a CUDA graph
    floor        6 N^2 P + 4 N P^2 operations at the rate of a large product in float32

and whole calls of `train_ensemble`, with all that is drawn and recorded.
"""

import time

import torch
from ensembles import ceilings, problem, seconds
from torch.func import grad, vmap

import comparisons
import finite_nets
from finite_nets.device.precision import PRECISIONS
from finite_nets.ensembles import on_chip
from finite_nets.ensembles.recording import Plan
from finite_nets.ensembles.runner import Runner
from finite_nets.training.perceptrons import Trainer

DEVICE = torch.device("cuda")
CASES = [(width, samples) for width in (32, 64, 128) for samples in (3, 8, 16, 24, 32, 48, 60)]
MEMBERS = {32: 200_000, 64: 100_000, 128: 30_000}
STEPS = 10
BYTES = 2**33
WHOLE = [(128, 3, 10**6), (64, 3, 10**6), (32, 3, 10**6), (128, 16, 200_000), (64, 16, 400_000), (32, 16, 400_000)]
WHOLE += [(128, 48, 50_000), (128, 60, 100_000)]


def by_chip(width, samples):
    members, taken = torch.arange(MEMBERS[width], device=DEVICE), []
    for steps in (STEPS, 6 * STEPS):
        described = problem(samples, steps)
        plan = Plan(described, torch.tensor([0, steps]).numpy(), frozenset({"prediction"}))
        made = Runner(plan, PRECISIONS["float32"], DEVICE, 0, block=None)._chip(width)
        taken.append(seconds(lambda made=made: made.train(members, 0)))
    return (taken[1] - taken[0]) / (5 * STEPS) / len(members)


def by_products(width, samples):
    trainer = Trainer(problem(samples, STEPS), DEVICE, PRECISIONS["float32"])
    count = min(MEMBERS[width], BYTES // (4 * width * (width + (2 * STEPS + 12) * samples)))
    members = torch.arange(count, device=DEVICE)

    def train():
        state, met = trainer.begin(trainer.draw(width, members, 0)), trainer.meet(0, everything=False)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for t in range(STEPS):
            trainer.advance(state, t, *trainer.evaluate(state, met, gradients=False))
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / STEPS / count

    with torch.inference_mode():
        train()
        return min(train() for _ in range(3))


def mapped(width, samples, count):
    """Seconds a member of a step of vmap(grad), of so many members: taken, recorded; and the step."""
    trainer = Trainer(problem(samples, STEPS), DEVICE, PRECISIONS["float32"])
    x, y = trainer.x, trainer.targets[:, 0]
    shapes = [(width, x.shape[1]), (width, width), (width,)]
    weights = [torch.randn(count, *shape, device=DEVICE) for shape in shapes]

    def loss(first, hidden, readout):
        h = torch.tanh(x @ first.T / 200**0.5) @ hidden.T / width**0.5
        return ((torch.tanh(h) @ readout / width - y) ** 2).mean() / 2

    slopes = vmap(grad(loss, argnums=(0, 1, 2)))

    def step():
        for w, slope in zip(weights, slopes(*weights), strict=True):
            w.sub_(slope, alpha=0.3 * width)

    taken = seconds(step) / count
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return taken, seconds(graph.replay) / count, step


def measure_steps():
    copy, rates = ceilings(DEVICE)
    print(f"ceilings: copy {copy / 1e9:.0f} GB/s, float32 matrix product {rates['float32'] / 1e12:.3g} TFLOP/s")
    columns = ["N, P", "on chip", "products", "vmap(grad) taken", "recorded", "floor"]
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for width, samples in CASES:
        floor = (6 * width**2 * samples + 4 * width * samples**2) / rates["float32"]
        count = min(MEMBERS[width], BYTES // (4 * width * (3 * width + 20 * samples)))
        found = by_chip(width, samples), by_products(width, samples), *mapped(width, samples, count)[:2], floor
        torch.cuda.empty_cache()
        print(f"| {width}, {samples} | " + " | ".join(f"{1e9 * each:.3g}" for each in found) + " |", flush=True)


def measure_whole():
    print("\n| networks, N, P | f alone: on chip s | products s | with kernels: on chip s | products s | E f(T) |")
    print("|---|---|---|---|---|---|")
    served = on_chip.served
    for width, samples, count in WHOLE:
        taken, means = [], []
        for observables in (["prediction", "loss"], None):
            for way in (served, lambda *_: None):
                on_chip.served = way
                arguments = {"widths": [width], "keep": "moments", "observables": observables}
                arguments["covariance"] = observables is not None
                finite_nets.train_ensemble(problem(samples), seeds=count // 50, **arguments)
                start = time.perf_counter()
                nets = finite_nets.train_ensemble(problem(samples), seeds=count, **arguments)
                taken.append(time.perf_counter() - start)
                means.append(float(comparisons.statistics(nets)["prediction_mean"][0, -1, 0]) if observables else 0.0)
        on_chip.served = served
        shown = " | ".join(f"{each:.3f}" for each in taken)
        print(f"| {count:,}, {width}, {samples} | {shown} | {means[0]:.7f}, {means[1]:.7f} |", flush=True)


if __name__ == "__main__":
    print(f"{torch.cuda.get_device_name(DEVICE)}; torch {torch.__version__}")
    measure_steps()
    measure_whole()
