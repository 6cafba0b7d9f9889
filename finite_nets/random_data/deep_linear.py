"""Deep linear networks, plain or residual.

    q^L = a,   q^l = s q^{l+1} + beta W^{lT} q^{l+1} / sqrt N,            v = w* - W^{0T} q^1 / (gamma0 N)
    h^1 = W^0 g / sqrt D,   h^{l+1} = s h^l + beta W^l h^l / sqrt N
    D_{W^0} = (gamma0 / sqrt D) q^1 g^T,  D_{W^l} = beta (gamma0 / sqrt N) q^{l+1} h^{lT},  D_a = gamma0 h^L

with g of the data in units of b* . x / sqrt D.  Directions D drive the recurrence of the optimiser.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmft.specs import Training
from finite_nets.ensembles.simulated import Draws
from finite_nets.random_data.data import WEIGHTS, Sizes
from finite_nets.random_data.learned import Learned, Vector, memory_of
from finite_nets.random_data.network import Network


def width(model: Any, sizes: Sizes) -> int:
    """N = nu D; ValueError where it is not whole."""
    found: float = model.ratio * sizes.modes
    if abs(found - round(found)) > 1e-6:
        raise ValueError(
            f"ratio={model.ratio:g} of {sizes.modes} dimensions at scale {sizes.scale} is a width of {found:g}; take "
            "dimensions of which it is a whole number."
        )
    return round(found)


class Deep(Network):
    def __init__(self, model: Any, sizes: Sizes, training: Training, draw: Draws) -> None:
        super().__init__(model, sizes, training, draw)
        N, D, L = width(model, sizes), sizes.modes, model.depth
        self._scale, self._width, self._skip = D**0.5, N, model.branch is not None
        self._beta = 1.0 if model.branch is None else model.branch / L**0.5
        memory = memory_of(training, sizes.target)
        shapes = [(N, D), *[(N, N)] * (L - 1)]
        self.weights = [Learned.of(draw(WEIGHTS + i, *shape), memory) for i, shape in enumerate(shapes)]
        self.a = Vector(draw(WEIGHTS + L, N), training)
        self._q: list[Tensor] = []  # q^1 .. q^L of the step

    @staticmethod
    def numbers(model: Any, sizes: Sizes, evaluations: int) -> int:
        N, D, L = width(model, sizes), sizes.modes, int(model.depth)
        return N * D + (L - 1) * N**2 + evaluations * (2 * L * N + D) + 4 * (N + D)

    def _branch(self, product: Tensor, x: Tensor) -> Tensor:
        scale = self._beta / self._width**0.5
        return torch.add(x, product, alpha=scale) if self._skip else product * scale

    def errors(self) -> Tensor:
        self._q = [self.a.now]
        for W in reversed(self.weights[1:]):
            self._q.insert(0, self._branch(W.apply_t(self._q[0]), self._q[0]))
        seen: Tensor = self.weights[0].apply_t(self._q[0]) / (self.model.gamma0 * self._width)
        return self.sizes.target - seen

    def step(self, g: Tensor) -> None:
        first, *hidden = self.weights
        gamma0, q, g = self.model.gamma0, self._q, g * self._scale
        h = [first.apply(g) / self._scale]
        for W in hidden:
            h.append(self._branch(W.apply(h[-1]), h[-1]))
        first.step(q[0] * (gamma0 / self._scale), g)
        for W, q_next, h_before in zip(hidden, q[1:], h, strict=False):
            W.step(q_next * (self._beta * gamma0 / self._width**0.5), h_before)
        self.a.step(gamma0 * h[-1])
