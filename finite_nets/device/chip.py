"""Small perceptrons that a GPU draws and trains without leaving its registers and shared memory: `chip.cu`.

A block of threads has one network.  What is recorded leaves, nothing else is ever written.  Two mappings:

    `Registers`   multiply-adds in float32, hidden matrices in registers, fields in shared memory: for few samples
    `Units`       three products of TF32 on tensor units, added in float32, hidden matrices in shared memory, fields in
                  registers: where less time is foreseen (`mappings`), for samples filled up to a multiple of eight

With L hidden layers of N neurons, P samples trained on and A observed,

    operations of a step    6 (L-1) N^2 P + 2 N P A, by tensor units three times, and some 30 L N P of activations
    bytes                   of device memory: 4 A of a recorded step, 8 L A^2 with its kernels; of shared memory, by
                            registers, a thread with R x C entries of a matrix: 4 (2 R + 2 C) P and 4 (R + C) P of
                            sums, for 3 R C P multiply-adds; by units 48 a lane for 12 products of (16, 8) and (8, 8)
    drawing                 (L-1) N^2 + N A + N normals, of some 60 instructions each

Neither bytes nor the rate of operations bind, but the issue of instructions and waiting.  The first layer is met by the
images of its weights, h^1_b = sum_a c_a g^1_a x_a . x_b / D, so that inputs of many dimensions cost no more than A
numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.errors import DIVERGED
from dmft.specs import Activation
from finite_nets.device import nvrtc
from finite_nets.device.mappings import LANES, TILE, Defined, Shape, filled
from finite_nets.device.nvrtc import Kernel

SOURCE = Path(__file__).with_name("chip.cu")
ACTIVATIONS = ("tanh", "relu", "erf", "gelu", "softplus", "linear")
LOSSES = ("squared", "logistic", "hinge")


class Arguments(ctypes.Structure):
    """`Args` of chip.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("members", "inputs", "overlaps", "targets", "keep", "push", "slot")),
        *((name, ctypes.c_void_p) for name in ("outputs", "phi_kernels", "g_kernels", "exploded", "deviations")),
        *((name, ctypes.c_float) for name in ("input_scale", "hidden_scale", "output_scale", "gain")),
        *((name, ctypes.c_float) for name in ("never", "diverged")),
        *((name, ctypes.c_uint32) for name in ("key_low", "key_high")),
        *((name, ctypes.c_int) for name in ("width", "directions", "input_stride", "trained", "samples")),
        *((name, ctypes.c_int) for name in ("steps", "count")),
        ("centered", ctypes.c_int),
    ]


@dataclass(frozen=True)
class Job:
    """What all networks of a width share.

    inputs: (sample, direction), of which the first `trained` are trained on; targets: (sample,).
    keep, push: (step, layer), by what weights are multiplied, and what multiplies sum_a Delta_a g_a phi_a^T, without
        the factors of the forward pass.
    recorded: the steps, ascending; training ends with the last.
    deviations: (layer,), at initialisation.
    """

    width: int
    activation: Activation
    loss: str
    inputs: NDArray[np.float64]
    trained: int
    targets: NDArray[np.float64]
    keep: NDArray[np.float64]
    push: NDArray[np.float64]
    recorded: Sequence[int]
    deviations: Sequence[float]
    input_scale: float
    hidden_scale: float
    output_scale: float
    centered: bool


class Trained(NamedTuple):
    """outputs: (step, member, sample); phi, g: kernels (step, member, layer, sample, sample_2), or None; exploded_at:
    (member,)."""

    outputs: Tensor
    phi: Tensor | None
    g: Tensor | None
    exploded_at: Tensor


class Chip:
    """Trains members of one job."""

    def __init__(self, job: Job, shape: Shape, device: torch.device) -> None:
        self.job, self.shape, self.device = job, shape, device
        self.layers = shape.layers
        steps = job.recorded[-1]
        factors = np.array([job.input_scale**2, *[job.hidden_scale] * (self.layers - 1), 1.0])
        push, keep = np.zeros((steps + 1, self.layers + 1)), np.ones((steps + 1, self.layers + 1))
        push[:steps], keep[:steps] = job.push[:steps] * factors, job.keep[:steps]
        slot = np.full(steps + 1, -1)
        slot[list(job.recorded)] = np.arange(len(job.recorded))
        samples, directions = job.inputs.shape
        rows, places = shape.rows(samples), shape.mapping.places(samples)
        inputs, overlaps = np.zeros((rows, filled(directions, TILE))), np.zeros((rows, rows))
        inputs[places, :directions] = job.inputs
        overlaps[np.ix_(places, places)] = job.inputs @ job.inputs.T
        given = {
            "inputs": inputs,
            "overlaps": overlaps,
            "targets": job.targets,
            "keep": keep,
            "push": push,
            "deviations": job.deviations,
        }
        self._given = {
            name: torch.tensor(value, dtype=torch.float32, device=device).contiguous() for name, value in given.items()
        }
        self._given["slot"] = torch.tensor(slot, dtype=torch.int32, device=device)

    @property
    def defined(self) -> Defined:
        """For the preprocessor."""
        return defined(self.shape, self.job.activation, self.job.loss)

    def train(self, members: Tensor, root_seed: int) -> Trained:
        """The members with these seed indices (int64), from their draw to the last recorded step."""
        job, count, samples = self.job, len(members), len(self.job.inputs)
        slots = len(job.recorded)
        outputs = torch.empty((slots, count, samples), device=self.device)
        exploded_at = torch.empty(count, device=self.device)
        phi = g = None
        if self.shape.kernels:
            phi, g = (torch.empty((slots, count, self.layers, samples, samples), device=self.device) for _ in range(2))
        members = members.contiguous()
        key = root_seed % 2**64
        argument = Arguments(
            members=members.data_ptr(),
            outputs=outputs.data_ptr(),
            phi_kernels=None if phi is None else phi.data_ptr(),
            g_kernels=None if g is None else g.data_ptr(),
            exploded=exploded_at.data_ptr(),
            input_scale=job.input_scale,
            hidden_scale=job.hidden_scale,
            output_scale=job.output_scale,
            gain=job.activation.gain,
            never=float("inf"),
            diverged=DIVERGED,
            key_low=key % 2**32,
            key_high=key >> 32,
            width=job.width,
            directions=job.inputs.shape[1],
            input_stride=self._given["inputs"].shape[1],
            trained=job.trained,
            samples=samples,
            steps=job.recorded[-1],
            count=count,
            centered=job.centered,
            **{name: value.data_ptr() for name, value in self._given.items()},
        )
        self.launch(argument)
        return Trained(outputs, phi, g, exploded_at)

    def launch(self, argument: Arguments) -> None:
        """A block a member."""
        shape = self.shape
        shared = shape.shared_bytes(argument.samples, argument.trained)
        kernel = _kernel(self.defined, self.device)
        kernel.launch(argument.count, LANES * shape.mapping.warps, shared, argument)


def defined(shape: Shape, activation: Activation, loss: str) -> Defined:
    """What chip.cu is compiled with."""
    return (
        ("NN", shape.padded),
        ("LAYERS", shape.layers),
        *shape.mapping.defined(),
        ("ACT", ACTIVATIONS.index(activation.name)),
        ("SCALED", int(activation.gain != 1)),
        ("LOSS", LOSSES.index(loss)),
        ("KERNELS", int(shape.kernels)),
    )


@lru_cache(maxsize=64)
def compiles(given: Defined, device: torch.device) -> bool:
    """Whether the kernel can be had there; a warning says why not.

    Raises:
        torch.OutOfMemoryError: now it cannot.
    """
    return nvrtc.compiles(lambda: _kernel(given, device), "small networks are not trained on chip")


def _kernel(given: Defined, device: torch.device) -> Kernel:
    return _made(given, nvrtc.numbered(device))


@lru_cache(maxsize=64)
def _made(given: Defined, index: int) -> Kernel:
    return Kernel(SOURCE, "trained", dict(given), torch.device("cuda", index))
