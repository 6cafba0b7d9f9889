"""What the program of an architecture takes in memory, known before it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from dmft.specs.networks.program import Architecture
from dmft.specs.parameterization import with_bias
from finite_nets.device.precision import PRECISIONS
from finite_nets.device.products import Products
from finite_nets.device.rounding import Quantisation, Rounding
from finite_nets.training.tape import Constants, Numbers, Tape


@dataclass(frozen=True)
class Needs:
    """Numbers that one network of a program takes, times its width where nothing else is said.

    inputs: directions of what is read, not times the width; points: positions of a sample there.
    reader, matrix: of the largest reader of inputs, and of the largest matrix or bank.
    readers, matrices, vectors: how many of them there are, a bank of K counted as K, those of populations of other
        widths by the numbers that they have; numbers: such weights, not times the width; bank: of the largest bank;
    readout: of one output.
    forward: of a pass, by sample; backward: of its gradients, by sample and start; layers: of features, by sample.
    positions: of all uses of a weight together, the most.
    """

    inputs: int
    points: int
    reader: float
    matrix: float
    readers: float
    matrices: float
    vectors: float
    numbers: int
    bank: float
    readout: float
    forward: float
    backward: float
    layers: float
    positions: int

    def weights(self, width: int, samples: int, outputs: int, copies: int, working: int = 0) -> int:
        """So many copies of all weights, `working` of the largest, and a bank that is drawn in another order."""
        inputs = min(self.inputs, self.points * samples)
        weights = self.readers * inputs + self.matrices * width + self.vectors + self.readout * outputs
        largest = max(self.reader * inputs, self.matrix * width, self.readout * outputs)
        return math.ceil(width * (copies * weights + working * largest + self.bank * width)) + copies * self.numbers


@lru_cache(maxsize=64)
def needs(network: Architecture, shape: tuple[int, ...], bits: Quantisation | None = None) -> Needs:
    """Of the networks of a program, rounded to these bits, by a pass of a small one."""
    sketch = network.sketch(shape)
    width, numbers = sketch.whole_width(8), Numbers.of(sketch)
    sizes, shares = sketch.sizes(width), [each.width for each in sketch.described]
    read = np.asarray(network.inputs(np.ones((1, *shape))), np.float64)
    x = torch.tensor(with_bias(read.reshape(-1, read.shape[-1]), network.bias).reshape(*read.shape[:-1], -1))
    tensors = []
    for number, (bank, (source, target)) in enumerate(zip(numbers.banks, numbers.ends, strict=True)):
        inputs = x.shape[-1] if source is None else max(bank, 1) * sizes[source]
        vector = number > numbers.readout
        neurons = 1 if target is None else sizes[target]
        tensors.append(torch.zeros((1, neurons) if vector else (1, neurons, inputs), dtype=x.dtype))
    products = Products(PRECISIONS["float64"], torch.device("cpu"), kernels=False)
    with torch.inference_mode():
        rounding = Rounding(bits)
        tape = Tape(numbers, tensors, products, Constants(x), shape, 1, traced=True, rounding=rounding)
        tape.read_out(network.program(tape, x))
    forward, backward = tape.kept
    matrices = [
        (part.bank, shares[source] * shares[target])
        for part, (source, target) in zip(sketch.matrices, sketch.ends, strict=True)
    ]
    return Needs(
        inputs=x.shape[-1],
        points=math.prod(x.shape[1:-1]),
        reader=max(sketch.share(part.target) for part in sketch.reads),
        matrix=max((max(bank, 1) * share for bank, share in matrices), default=0.0),
        readers=sum(sketch.share(part.target) for part in sketch.reads),
        matrices=sum(max(bank, 1) * share for bank, share in matrices),
        vectors=sum(sketch.share(part.target) for part in sketch.vectors if part.target is not None),
        numbers=sum(part.target is None for part in sketch.vectors),
        bank=max((bank * share for bank, share in matrices), default=0.0),
        readout=sketch.share(sketch.readout) * math.prod(sketch.flattened),
        forward=forward / width,
        backward=backward / width,
        layers=sum(sketch.share(population) * max(positions, 1) for population, positions in sketch.layers),
        positions=tape.positions,
    )
