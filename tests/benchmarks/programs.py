"""Networks trained by their program against others who train the same:
`python tests/benchmarks/programs.py [--device cpu|cuda]`.

Prints Markdown: time of a step of training (forward, backward, update; 10 samples, float32, the least of several), in
ms; on a CPU processor time of one thread.

    program     `finite_nets.training.programs`
    made for    `finite_nets.training.perceptrons`, which is made for perceptrons
    vmap(grad)  a plain function of PyTorch, differentiated and mapped over members
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.func import grad, vmap
from torch.nn import functional

import dmft
from dmft.specs.networks import Architecture
from finite_nets.device.precision import PRECISIONS
from finite_nets.training.programs import trainer_of

SAMPLES, CHANNELS, REPEATS = 10, 3, 5
# members by width: of a perceptron, and of convolutions over 8, 4 x 4 and 8 x 8 positions
MEMBERS = {
    "cpu": (((128, 64), (128, 8), (512, 8), (512, 1)), ((128, 8), (512, 1)), ((128, 4), (512, 1)), ((128, 2),)),
    "cuda": (
        ((128, 8), (128, 4096), (512, 512), (1024, 128), (2048, 1), (2048, 32)),
        ((128, 1024), (512, 64), (2048, 4)),
        ((128, 256), (512, 16), (2048, 1)),
        ((128, 64), (512, 4)),
    ),
}


def shifts(size, dimension):
    """(matrix, position after, position before) of a convolution of reach 3 with zeros outside."""
    one = np.stack([np.eye(size, k=k) for k in (-1, 0, 1)])
    if dimension == 2:
        one = np.einsum("kyx,lzw->klyzxw", one, one).reshape(9, size**2, size**2)
    return one / np.sqrt(len(one))


@dataclass(frozen=True)
class Convolution(Architecture):
    size: int
    dimension: int

    def inputs(self, x):
        by_position = x.reshape(len(x), -1, CHANNELS)
        patches = np.einsum("kyx,sxc->sykc", shifts(self.size, self.dimension), by_position)
        return patches.reshape(*by_position.shape[:2], -1) / np.sqrt(CHANNELS)

    def program(self, net, x):
        h = net.read("W0", x, to=0)
        for layer in (1, 2):
            features = net.layer(h, net.activate(dmft.tanh(), h))
            h = net.apply(f"W{layer}", features, to=layer, mix=shifts(self.size, self.dimension))
        positions = self.size**self.dimension
        return net.mix(net.layer(h, net.activate(dmft.tanh(), h)), np.full(positions, 1 / positions))


def problem(network, dimension):
    """Of any network, on random inputs of so many numbers."""
    rng = np.random.default_rng(0)
    found = object.__new__(dmft.Problem)
    task = dmft.Task(rng.standard_normal((SAMPLES, dimension)), np.sign(rng.standard_normal(SAMPLES)))
    for name, value in {
        "network": network,
        "task": task,
        "training": dmft.GradientDescent(1e-3, 10),
        "loss": "squared",
    }.items():
        object.__setattr__(found, name, value)
    return found


def milliseconds(step, device):
    """The least time of a call, after two to warm up: of the processor, or until the GPU has done it."""

    def now():
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    step()
    step()
    times = []
    for _ in range(REPEATS):
        start = now()
        step()
        times.append(now() - start)
    return 1e3 * min(times)


def trained(described, width, members, device, program):
    """ms of a step of a batch."""
    trainer = trainer_of(described, device, PRECISIONS["float32"], program=program)
    with torch.inference_mode():
        state = trainer.start(width, torch.arange(members, device=device), 0)
        met = trainer.meet(0, everything=False)

        def step():
            _, seen = trainer.evaluate(state, met, gradients=False)
            trainer.descend(state, seen, 1e-3)

        return milliseconds(step, device)


def mapped(described, width, members, device):
    """ms of a step by vmap(grad) of the same, on other weights."""
    network = described.network
    x, y = (
        torch.tensor(a, dtype=torch.float32, device=device) for a in (described.task.x_train, described.task.y_train)
    )
    dimension = getattr(network, "dimension", 0)
    kernel, channels = [3] * dimension, CHANNELS if dimension else x.shape[1]
    if dimension:
        x = x.reshape(-1, *[network.size] * dimension, CHANNELS).movedim(-1, 1)
    shapes = [(width, channels, *kernel), (width, width, *kernel), (width, width, *kernel), (width,)]
    weights = [torch.randn(members, *shape, device=device) for shape in shapes]
    linear = {0: functional.linear, 1: functional.conv1d, 2: functional.conv2d}[dimension]

    def loss(*w):
        h = x
        for i, W in enumerate(w[:-1]):
            h = torch.tanh(h) if i else h
            h = linear(h, W, **({"padding": 1} if dimension else {})) / W[0].numel() ** 0.5
        features = torch.tanh(h) if not dimension else torch.tanh(h).flatten(2).mean(2)
        return ((features @ w[-1] / width - y) ** 2).mean() / 2

    slopes = vmap(grad(loss, argnums=tuple(range(len(weights)))))

    def step():
        for w, slope in zip(weights, slopes(*weights), strict=True):
            w.sub_(slope, alpha=1e-3 * width)

    return milliseconds(step, device)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    print("| network | N | members | program | made for | vmap(grad) |\n|---|---|---|---|---|---|")
    networks = [(dmft.MLP(3), 8), (Convolution(8, 1), 24), (Convolution(4, 2), 48), (Convolution(8, 2), 192)]
    sizes = MEMBERS[device.type]
    cases = [(*each, *size) for each, of_each in zip(networks, sizes, strict=True) for size in of_each]
    cases += [(dmft.ResidualMLP(3), 8, *size) for size in sizes[0][1:-1]]
    for network, dimension, width, members in cases:
        described, perceptron = problem(network, dimension), not isinstance(network, Convolution)
        size = described, width, members, device
        found = [trained(*size, program=True), trained(*size, program=False) if perceptron else np.nan]
        found.append(np.nan if isinstance(network, dmft.ResidualMLP) else mapped(*size))
        name = type(network).__name__ + ("" if perceptron else f", {network.size}^{network.dimension} positions")
        shown = " | ".join("" if np.isnan(each) else f"{each:.3g}" for each in found)
        print(f"| {name} | {width} | {members} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
