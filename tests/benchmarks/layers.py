"""Ensembles of more samples than a few, by layers in one pass and without, beside what one would write instead:
`python tests/benchmarks/layers.py [WIDTH,SAMPLES ...] [--dtype ...] [--compile]` on a GPU.

Prints Markdown.  Nanoseconds a member and step of a perceptron with two hidden layers of N neurons, P samples (points on
a sphere), nothing recorded, batches that fill the card:

    fused        `finite_nets.training.perceptrons` with `finite_nets.device.fused`; replayed as a CUDA graph, too
    products     the same without, a kernel a product
    vmap(grad)   a plain function of PyTorch, differentiated and mapped over members; recorded as a CUDA graph; compiled
    floor        12 N^2 bytes at the rate of a copy, and three times 6 N^2 P operations at that of a product in TF32

and where it is fused the deviation of f(T=10) from float64, of both.
"""

import argparse
import time

import torch
from chip import mapped
from ensembles import BUDGET, STEPS, ceilings, problem, seconds

from finite_nets.device.precision import PRECISIONS
from finite_nets.training.perceptrons import Trainer
from finite_nets.training.trainer import Unseen

DEVICE = torch.device("cuda")
CASES = [(width, samples) for samples in (10, 60, 200) for width in (128, 256, 512, 1024, 2048)]


def count_of(width, samples):
    return max(1, BUDGET["cuda"] // (4 * width * (width + (2 * STEPS + 12) * samples)))


def trained(trainer, width, members):
    """Mean time of the steps of a run, and f after them."""
    state = trainer.begin(trainer.draw(width, members, 0))
    met = trainer.meet(0, everything=False)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for t in range(STEPS):
        trainer.advance(state, t, *trainer.evaluate(state, met, gradients=False))
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS, trainer.evaluate(state, met, gradients=False)[0].output


def ours(width, samples, dtype, *, fused):
    """Seconds a member and step, taken and replayed, and the deviation from float64 of eight members."""
    trainer, exact = (Trainer(problem(samples), DEVICE, PRECISIONS[name]) for name in (dtype, "float64"))
    if not fused:
        trainer.products.fused = trainer.products.readouts = None
    members = torch.arange(count_of(width, samples), device=DEVICE)
    some = members[:8]
    expected = trained(exact, width, some)[1]
    off = float((trained(trainer, width, some)[1] - expected).norm() / expected.norm())
    taken = min(trained(trainer, width, members)[0] for _ in range(4))
    state = trainer.begin(trainer.draw(width, members, 0))
    unseen = Unseen(trainer, state)
    replayed = float("nan")
    if not state.weights.hidden[0].store.left.shape[1]:  # steps with delayed updates do not repeat
        trainer.counted(state, trainer.outputs_at(state, slice(0, samples)), slice(0, samples))
        for t in range(3):
            unseen.step(t)
        replayed = seconds(lambda: [unseen.step(t) for t in range(3, STEPS)]) / (STEPS - 3)
    return taken / len(members), replayed / len(members), off


def by_mapping(width, samples, *, compiled):
    """Taken, recorded, compiled."""
    count = max(1, BUDGET["cuda"] // (4 * width * (3 * width + 20 * samples)))
    taken, recorded, step = mapped(width, samples, count)
    return taken, recorded, seconds(torch.compile(step)) / count if compiled else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "tf32"), default="float32")
    parser.add_argument("--compile", action="store_true", help="compile vmap(grad), too: half a minute each")
    parser.add_argument("cases", nargs="*", metavar="WIDTH,SAMPLES", help="by default 128 to 2,048 with 10, 60, 200")
    given = parser.parse_args()
    cases = [tuple(map(int, case.split(","))) for case in given.cases] or CASES
    copy, rates = ceilings(DEVICE)
    shown = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items())
    print(f"{torch.cuda.get_device_name(DEVICE)}; torch {torch.__version__}; {given.dtype}")
    print(f"ceilings: copy {copy / 1e9:.0f} GB/s; matrix products, TFLOP/s: {shown}")
    columns = ["N, P", "fused", "replayed", "products", "replayed", "vmap(grad)", "recorded", "compiled", "floor"]
    columns += ["off: fused", "products"]
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for width, samples in cases:
        with torch.inference_mode():
            fused, products = (ours(width, samples, given.dtype, fused=which) for which in (True, False))
        torch.cuda.empty_cache()
        written = by_mapping(width, samples, compiled=given.compile)
        torch.cuda.empty_cache()
        floor = max(12 * width**2 / copy, 18 * width**2 * samples / rates["tf32"])
        times = (*fused[:2], *products[:2], *written, floor)
        shown = " | ".join(f"{1e9 * each:.0f}" for each in times)
        print(f"| {width}, {samples} | {shown} | {fused[2]:.1e} | {products[2]:.1e} |", flush=True)


if __name__ == "__main__":
    main()
