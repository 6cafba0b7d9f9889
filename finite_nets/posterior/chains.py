"""Chains of perceptrons side by side, in Hamiltonian dynamics of all their weights.

    p(theta) ~ exp{ -(gamma0^2 N / T) (1/P) sum_a |f_a - y_a|^2 / 2 - sum_l |W^l|^2 / (2 v_l) }

With W^l = sqrt(v_l) w^l the energy is H = U(w) + |p|^2/2, U of unit weights w.  A draw refreshes p, follows H by so
many leapfrog steps, whose length varies by a fifth from draw to draw, and is accepted with min(1, exp(-change of H)):
one step a draw is the Langevin algorithm with that rule (MALA).  Gradients of U are those of the table in
`dmft.specs.parameterization`, with cotangents (N/T)(gamma0^2/P)(f - y).  H changes by little of what it is, and its
change is summed in double precision.  Normal numbers are functions of (root seed, width, seed index, draw, weight).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dmft.specs import MLP, Problem
from dmft.specs.parameterization import hidden_scale, input_scale, output_scale
from finite_nets.ensembles.simulated import Draws

TARGET = 0.8  # of the acceptance, while steps adapt
FIRST_STEP = 0.3  # times N^{-1/4}


class Chains:
    """Of one width.

    Args:
        problem: an MLP without biases, its task.
        variances: v_0 .. v_L.
        temperature: T.
        width, members, root: N, seed indices, the root seed.
        length: of a trajectory, in standard deviations of the prior.
        leapfrogs: steps of a draw; as many as the length takes, if None.
        dtype, device: of all numbers.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        variances: Sequence[float],
        temperature: float,
        width: int,
        members: Sequence[int],
        root: int,
        length: float,
        leapfrogs: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        network, task = problem.network, problem.task
        assert isinstance(network, MLP)
        self.activation, self.n = network.activation, task.n_train
        self.width, self.length, self.leapfrogs = width, length, leapfrogs
        self._draws = Draws(torch.tensor(list(members), dtype=torch.int64, device=device), root, width, dtype)
        outputs = task.targets.shape[1]
        self.shapes = [(width, task.dimension), *[(width, width)] * (network.depth - 1), (outputs, width)]
        scales = [
            input_scale(task.dimension),
            *[hidden_scale(width)] * (network.depth - 1),
            float(output_scale(network.gamma0, width)),
        ]
        self.scales = [scale * math.sqrt(v) for scale, v in zip(scales, variances, strict=True)]
        self.pull = network.gamma0**2 * width / (temperature * self.n)
        inputs = torch.as_tensor(np.array(task.x.reshape(task.n_samples, -1).T), dtype=dtype, device=device)
        self.inputs = inputs.expand(len(members), *inputs.shape)
        self.targets = torch.as_tensor(np.array(task.targets[: self.n].T), dtype=dtype, device=device)
        self.drawn = 0
        self.weights = self._normals()
        self.drawn = 1
        self.step = FIRST_STEP * width**-0.25
        self._jitter = np.random.default_rng([root, width])

    @property
    def steps(self) -> int:
        """Leapfrog steps of a draw."""
        return max(1, math.ceil(self.length / self.step)) if self.leapfrogs is None else self.leapfrogs

    def observed(self) -> tuple[Tensor, Tensor]:
        """Predictions (member, sample, output) and kernels (member, layer, sample, sample_2) of all samples, in double
        precision."""
        hidden, f = self._forward(self.weights, self.inputs)
        kernels = [(phi.mT.double() @ phi.double()) / self.width for phi, _ in hidden]
        return f.mT.double(), torch.stack(kernels, 1)

    def draw(self) -> Tensor:
        """The next draw of every chain; probabilities of acceptance (member,)."""
        momenta, q = self._normals(), [w.clone() for w in self.weights]
        chance = self._normal(len(self.shapes), 2).double()
        step = self.step * self._jitter.uniform(0.8, 1.2)
        start = self._energy(q, momenta)
        self._follow(q, momenta, step, self.steps)
        gained = torch.nan_to_num(start - self._energy(q, momenta), nan=-math.inf)
        accepted = -(chance**2).sum(-1) / 2 < gained  # the logarithm of a uniform number
        for w, new in zip(self.weights, q, strict=True):
            torch.where(accepted.view(-1, 1, 1), new, w, out=w)
        self.drawn += 1
        return torch.exp(gained.clamp(max=0.0))

    def adapt(self, acceptance: float, rate: float) -> None:
        """Lengthen or shorten steps towards the acceptance `TARGET`."""
        self.step *= math.exp(rate * (acceptance - TARGET))

    def _normal(self, index: int, *shape: int) -> Tensor:
        return self._draws(self.drawn * (len(self.shapes) + 1) + index, *shape)

    def _normals(self) -> list[Tensor]:
        return [self._normal(index, *shape) for index, shape in enumerate(self.shapes)]

    def _forward(self, weights: list[Tensor], x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """phi and phi' (member, neuron, sample) of the layers; f (member, output, sample)."""
        hidden: list[tuple[Tensor, Tensor]] = []
        for w, scale in zip(weights[:-1], self.scales[:-1], strict=True):
            hidden.append(self.activation.both(torch, scale * (w @ (hidden[-1][0] if hidden else x))))
        return hidden, self.scales[-1] * (weights[-1] @ hidden[-1][0])

    def _follow(self, weights: list[Tensor], momenta: list[Tensor], step: float, count: int) -> None:
        """So many leapfrog steps, in place."""
        self._kick(weights, momenta, step / 2)
        for i in range(count):
            for w, p in zip(weights, momenta, strict=True):
                w.add_(p, alpha=step)
            self._kick(weights, momenta, step if i + 1 < count else step / 2)

    def _kick(self, weights: list[Tensor], momenta: list[Tensor], step: float) -> None:
        """p - step dU/dw, in place."""
        x = self.inputs[..., : self.n]
        hidden, f = self._forward(weights, x)
        g = self.pull * (f - self.targets)
        for layer in range(len(weights) - 1, -1, -1):
            below = hidden[layer - 1][0] if layer else x
            momenta[layer].baddbmm_(g, below.mT, alpha=-step * self.scales[layer])
            momenta[layer].add_(weights[layer], alpha=-step)
            if layer:
                g = self.scales[layer] * (weights[layer].mT @ g) * hidden[layer - 1][1]

    def _energy(self, weights: list[Tensor], momenta: list[Tensor]) -> Tensor:
        """H (member,)."""
        _, f = self._forward(weights, self.inputs[..., : self.n])
        total = self.pull * ((f - self.targets).double() ** 2).sum((1, 2))
        for each in (*weights, *momenta):
            total = total + torch.linalg.vector_norm(each, dim=(1, 2), dtype=torch.float64) ** 2
        return total / 2
