"""Networks trained by their program against others who train the same:
`python tests/benchmarks/programs.py [--device cpu|cuda]`.

Prints Markdown: time of a step of training (forward, backward, update; 10 samples, float32, the least of several), in
ms; on a CPU processor time of one thread.

    program     `finite_nets.training.programs`; on a GPU replayed (`finite_nets.device.replays`), and as it is taken
    made for    `finite_nets.training.perceptrons`, which is made for perceptrons
    vmap(grad)  a plain function of PyTorch, differentiated and mapped over members; recorded as a CUDA graph, too
    floor       weights read twice, read and written, or their six multiplications and additions a sample, whichever
                takes longer at the measured ceilings
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from ensembles import ceilings
from torch.func import grad, vmap
from torch.nn import functional

import dmft
from dmft.specs.networks import Architecture
from finite_nets.device.precision import PRECISIONS
from finite_nets.training.programs import trainer_of
from finite_nets.training.trainer import Unseen

SAMPLES, CHANNELS, REPEATS = 10, 3, 5
TOKENS, HEAD_DIM = 8, 16
# members by width: of a perceptron, of convolutions over 8, 4 x 4 and 8 x 8 positions, and of a transformer
MEMBERS = {
    "cpu": (
        ((128, 64), (128, 8), (512, 8), (512, 1)),
        ((128, 8), (512, 1)),
        ((128, 4), (512, 1)),
        ((128, 2),),
        ((128, 4), (512, 1)),
    ),
    "cuda": (
        ((128, 8), (128, 4096), (512, 512), (1024, 128), (2048, 1), (2048, 32)),
        ((128, 1024), (512, 64), (2048, 16)),
        ((128, 256), (512, 16), (2048, 8)),
        ((128, 64), (512, 16)),
        ((128, 256), (512, 16), (512, 128), (2048, 16)),
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


TRANSFORMER = dmft.Transformer(blocks=2, head_dim=HEAD_DIM, causal=True)


def problem(network, shape):
    """Of any network, on random inputs of this shape."""
    rng = np.random.default_rng(0)
    task = dmft.Task(rng.standard_normal((SAMPLES, *shape)), np.sign(rng.standard_normal(SAMPLES)))
    return dmft.Problem(network, task, dmft.GradientDescent(1e-3, 10))


def milliseconds(step, device):
    """The least time of a call, after some to warm up: of the processor, or until the GPU has done it, of ten calls."""
    calls = 1 if device.type == "cpu" else 10

    def now():
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(2 * calls):
        step()
    times = []
    for _ in range(REPEATS):
        start = now()
        for _ in range(calls):
            step()
        times.append((now() - start) / calls)
    return 1e3 * min(times)


def trained(described, width, members, device, program):
    """ms of a step of a batch, replayed and taken; on a CPU there is one way."""
    trainer = trainer_of(described, device, PRECISIONS["float32"], program=program)
    found = []
    for replayed in (True, False) if device.type == "cuda" else (False,):
        with torch.inference_mode():
            state = trainer.start(width, torch.arange(members, device=device), 0)
            trainer.evaluate(state, trainer.meet(0, everything=True), gradients=False)
            unseen = Unseen(trainer, state)
            if not replayed:
                unseen._replays = None
            found.append(milliseconds(lambda: unseen.step(1), device))  # noqa: B023
    return found


def plain_convolution(network, x, width):
    """Shapes of the weights of a member, and f(weights); a perceptron is a convolution over no axis."""
    dimension = getattr(network, "dimension", 0)
    kernel, channels = [3] * dimension, CHANNELS if dimension else x.shape[1]
    if dimension:
        x = x.reshape(-1, *[network.size] * dimension, CHANNELS).movedim(-1, 1)
    linear = {0: functional.linear, 1: functional.conv1d, 2: functional.conv2d}[dimension]

    def f(*w):
        h = x
        for i, W in enumerate(w[:-1]):
            h = torch.tanh(h) if i else h
            h = linear(h, W, **({"padding": 1} if dimension else {})) / W[0].numel() ** 0.5
        features = torch.tanh(h) if not dimension else torch.tanh(h).flatten(2).mean(2)
        return features @ w[-1] / width

    return [(width, channels, *kernel), (width, width, *kernel), (width, width, *kernel), (width,)], f


def plain_transformer(network, x, width):
    """Shapes of the weights of a member, and f(weights)."""
    blocks, masked = network.blocks, torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=x.device).triu(1)

    def f(*w):
        h = x @ w[0].T / x.shape[-1] ** 0.5
        for block in range(blocks):
            k, q, v = (
                (h @ W.T / width**0.5).unflatten(-1, (-1, HEAD_DIM)).movedim(-2, -3)
                for W in w[1 + 4 * block : 4 + 4 * block]
            )
            scores = (k @ q.mT / HEAD_DIM).masked_fill(masked, -torch.inf)
            mixed = (scores.softmax(-1) @ v).movedim(-3, -2).flatten(-2)
            h = h + mixed @ w[4 + 4 * block].T / (width**0.5 * blocks)
        return h.mean(-2) @ w[-1] / width

    return [(width, x.shape[-1]), *[(width, width)] * (4 * blocks), (width,)], f


PLAIN = {dmft.MLP: plain_convolution, Convolution: plain_convolution, dmft.Transformer: plain_transformer}


def mapped(described, width, members, device):
    """ms of a step by vmap(grad) of the same, on other weights, and recorded; and numbers of weights of all members."""
    x, y = (
        torch.tensor(a, dtype=torch.float32, device=device) for a in (described.task.x_train, described.task.y_train)
    )
    shapes, f = PLAIN[type(described.network)](described.network, x, width)
    weights = [torch.randn(members, *shape, device=device) for shape in shapes]
    slopes = vmap(grad(lambda *w: ((f(*w) - y) ** 2).mean() / 2, argnums=tuple(range(len(weights)))))

    def step():
        for w, slope in zip(weights, slopes(*weights), strict=True):
            w.sub_(slope, alpha=1e-3 * width)

    found = [milliseconds(step, device)]
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        found.append(milliseconds(graph.replay, device))
    return found, sum(w.numel() for w in weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    copy, rates = ceilings(device)
    print(f"ceilings: copy {copy / 1e9:.0f} GB/s, float32 matrix product {rates['float32'] / 1e12:.3g} TFLOP/s")
    ways = ("replayed", "taken") if device.type == "cuda" else ("",)
    columns = [f"{name} {way}".strip() for name in ("program", "made for", "vmap(grad)") for way in ways]
    header = ["network", "N", "members", *columns, "floor"]
    print("\n| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    networks = [
        ("MLP(3)", dmft.MLP(3), (8,), 1),
        ("CNN, 8 positions", Convolution(8, 1), (8 * CHANNELS,), 8),
        ("CNN, 4 x 4 positions", Convolution(4, 2), (16 * CHANNELS,), 16),
        ("CNN, 8 x 8 positions", Convolution(8, 2), (64 * CHANNELS,), 64),
        (f"Transformer, 2 blocks, {TOKENS} tokens", TRANSFORMER, (TOKENS, CHANNELS), TOKENS),
    ]
    sizes = MEMBERS[device.type]
    cases = [(*each, *size) for each, of_each in zip(networks, sizes, strict=True) for size in of_each]
    cases += [("ResidualMLP(3)", dmft.ResidualMLP(3), (8,), 1, *size) for size in sizes[0][1:-1]]
    for name, network, shape, positions, width, members in cases:
        size = problem(network, shape), width, members, device
        none, floor = [np.nan] * len(ways), np.nan
        found = trained(*size, program=True)
        found += trained(*size, program=False) if shape == (8,) else none
        if type(network) in PLAIN:
            taken, weights = mapped(*size)
            found += taken[::-1]
            floor = 1e3 * weights * max(16 / copy, 6 * SAMPLES * positions / rates["float32"])
        else:
            found += none
        shown = " | ".join("" if np.isnan(each) else f"{each:.3g}" for each in [*found, floor])
        print(f"| {name} | {width} | {members} | {shown} |", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
