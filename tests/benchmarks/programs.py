"""Networks trained by their program against others who train the same: `python tests/benchmarks/programs.py`.

Prints Markdown: processor time of a step of training (forward, backward, update; 10 samples, float32, one thread, the
least of several), in ms.

    program     `finite_nets.training.programs`
    made for    `finite_nets.training.perceptrons`, which is made for perceptrons
    vmap(grad)  a plain function of PyTorch, differentiated and mapped over members
"""

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
CPU = torch.device("cpu")


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


def milliseconds(step):
    """The least processor time of a call, after one to warm up."""
    step()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def trained(described, width, members, program):
    """ms of a step of a batch."""
    trainer = trainer_of(described, CPU, PRECISIONS["float32"], program=program)
    with torch.inference_mode():
        state = trainer.start(width, torch.arange(members), 0)
        met = trainer.meet(0, everything=False)

        def step():
            _, seen = trainer.evaluate(state, met, gradients=False)
            trainer.descend(state, seen, 1e-3)

        return milliseconds(step)


def mapped(described, width, members):
    """ms of a step by vmap(grad) of the same, on other weights."""
    network = described.network
    x, y = (torch.tensor(a, dtype=torch.float32) for a in (described.task.x_train, described.task.y_train))
    dimension = getattr(network, "dimension", 0)
    kernel, channels = [3] * dimension, CHANNELS if dimension else x.shape[1]
    if dimension:
        x = x.reshape(-1, *[network.size] * dimension, CHANNELS).movedim(-1, 1)
    shapes = [(width, channels, *kernel), (width, width, *kernel), (width, width, *kernel), (width,)]
    weights = [torch.randn(members, *shape) for shape in shapes]
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

    return milliseconds(step)


def main():
    torch.set_num_threads(1)
    print("| network | N | members | program | made for | vmap(grad) |\n|---|---|---|---|---|---|")
    perceptron, residual = dmft.MLP(3), dmft.ResidualMLP(3)
    cases = [
        *(("perceptron", perceptron, 8, n, m) for n, m in ((128, 64), (128, 8), (512, 8), (512, 1))),
        *(("residual", residual, 8, n, m) for n, m in ((128, 8), (512, 8))),
        *(("8 positions", Convolution(8, 1), 24, n, m) for n, m in ((128, 8), (512, 1))),
        *(("4 x 4 positions", Convolution(4, 2), 48, n, m) for n, m in ((128, 4), (512, 1))),
        ("8 x 8 positions", Convolution(8, 2), 192, 128, 2),
    ]
    for name, network, dimension, width, members in cases:
        described = problem(network, dimension)
        found = [trained(described, width, members, True)]
        perceptrons = isinstance(network, (dmft.MLP, dmft.ResidualMLP))
        found.append(trained(described, width, members, False) if perceptrons else np.nan)
        found.append(np.nan if network is residual else mapped(described, width, members))
        shown = " | ".join("" if np.isnan(each) else f"{each:.1f}" for each in found)
        print(f"| {name} | {width} | {members} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
