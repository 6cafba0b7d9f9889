"""Features that learn in their span.

    v = w* - A^T w / sqrt N,   D_w = A g / sqrt N,   D_A / sqrt N = G w (A_0^T A_0 g / N)^T

Directions D drive the recurrence of the optimiser; infinitely many features are A_0 = sqrt M 1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmft.specs import Training
from finite_nets.ensembles.simulated import Draws
from finite_nets.random_data.data import Sizes, applied
from finite_nets.random_data.features import count, projection
from finite_nets.random_data.learned import Learned, Vector, memory_of
from finite_nets.random_data.network import Network


class Projected(Network):
    def __init__(self, model: Any, sizes: Sizes, training: Training, draw: Draws) -> None:
        super().__init__(model, sizes, training, draw)
        start = sizes.target.new_zeros((len(draw.members), count(model, sizes)))
        self.w, memory, A = Vector(start, training), memory_of(training, start), projection(model, sizes, draw)
        self.A = Learned.of_unit(start, memory) if A is None else Learned.of(A, memory)

    @staticmethod
    def numbers(model: Any, sizes: Sizes, evaluations: int) -> int:
        N, M = count(model, sizes), sizes.modes
        return N * M + evaluations * (N + M) + 4 * (N + M)

    def errors(self) -> Tensor:
        return self.sizes.target - self.A.apply_t(self.w.now)

    def step(self, g: Tensor) -> None:
        start = self.A.start
        along = g if start is None else applied(start.mT, applied(start, g))
        direction = self.A.apply(g)
        self.A.step(self.model.richness * self.w.now, along)
        self.w.step(direction)
