"""Random features: w alone learns, so that samples are seen through their features Phi = Psi A^T / sqrt N once and for
all, and the test errors of many steps are one product of matrices.

    fixed samples    y - Phi w and D = Phi^T (y - Phi w)/P       population    D = A Lambda (w* - A^T w/sqrt N)/sqrt N
    flow             w(t) = V (1 - exp(-h t))/h V^T D(0),        H = Phi^T Phi/P = V h V^T

Infinitely many features are A = sqrt M 1: A^T A / N is 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmft.specs import GradientFlow, Training
from finite_nets.ensembles.simulated import Draws
from finite_nets.random_data.data import FEATURES, Sizes, applied
from finite_nets.random_data.learned import Vector
from finite_nets.random_data.network import Network

AT_ONCE = 64  # steps whose errors are found together


def count(model: Any, sizes: Sizes) -> int:
    """N at this scale; M of infinitely many."""
    return sizes.modes if model.features is None else model.features * sizes.scale


def projection(model: Any, sizes: Sizes, draw: Draws) -> Tensor | None:
    """A / sqrt N (member, feature, mode); None, the unit matrix, of infinitely many."""
    if model.features is None:
        return None
    N = count(model, sizes)
    return draw(FEATURES, N, sizes.modes).div_(N**0.5)


class Features(Network):
    def __init__(self, model: Any, sizes: Sizes, training: Training, draw: Draws) -> None:
        super().__init__(model, sizes, training, draw)
        self.A = projection(model, sizes, draw)
        N = count(model, sizes)
        self._start = sizes.target.new_zeros((len(draw.members), N))
        if not isinstance(training, GradientFlow):
            self.w = Vector(self._start, training)

    @staticmethod
    def numbers(model: Any, sizes: Sizes, evaluations: int) -> int:
        N = count(model, sizes)
        del evaluations
        # with Gram matrix and eigenvectors of a flow, in float64
        return 2 * (N * sizes.modes + (sizes.samples or 0) * N) + AT_ONCE * (N + sizes.modes) + 6 * N**2

    def _errors(self, w: Tensor) -> Tensor:
        """v (member, [step,] mode) of w."""
        return self.sizes.target - (w if self.A is None else w @ self.A if w.ndim > 2 else applied(self.A.mT, w))

    def errors(self) -> Tensor:
        return self._errors(self.w.now)

    def step(self, g: Tensor) -> None:
        self.w.step(g if self.A is None else applied(self.A, g))

    def course(self, steps: NDArray[np.int64]) -> Tensor:
        if self.sizes.samples is None:
            return super().course(steps)
        phi, y = self._seen()
        train, test, waiting, place = [], [], [], set(steps.tolist())
        for t in range(int(steps[-1]) + 1):
            w = self.w.now
            residual = y - applied(phi, w)
            if t in place:
                train.append(residual.square().mean(-1))
                waiting.append(w)
            if len(waiting) == AT_ONCE or (waiting and t == steps[-1]):
                test.append(self.data.test(self._errors(torch.stack(waiting, 1))))
                waiting = []
            if t < steps[-1]:
                self.w.step(applied(phi.mT, self.data.seen(t, residual)))
        return torch.stack([torch.stack(train, -1), torch.cat(test, -1)]).double()

    def _seen(self) -> tuple[Tensor, Tensor]:
        """Phi (member, sample, feature) and y (member, sample), in the place of the samples themselves."""
        assert self.data.fixed is not None
        psi, eps = self.data.fixed
        y = psi @ self.sizes.target + eps
        phi = psi if self.A is None else psi @ self.A.mT
        self.data.fixed = None
        return phi, y

    @classmethod
    def flow(cls, model: Any, sizes: Sizes, training: GradientFlow, draw: Draws, steps: NDArray[np.int64]) -> Tensor:
        members = cls(model, sizes, training, draw)
        lam, target = sizes.eigenvalues.double(), sizes.target.double()
        A = None if members.A is None else members.A.double()
        if sizes.samples is None:
            seen = lam * target
            rhs = (seen if A is None else A @ seen).expand(len(draw.members), -1)
            H = torch.diag(lam).expand(len(draw.members), -1, -1) if A is None else (A * lam) @ A.mT
            phi = y = None
        else:
            phi, y = (each.double() for each in members._seen())
            H, rhs = phi.mT @ phi / phi.shape[1], applied(phi.mT, y) / phi.shape[1]
        h, V = torch.linalg.eigh(H)
        h, rhs = h.clamp(min=0.0), applied(V.mT, rhs)
        found = []
        for time in training.times[steps].tolist():
            length = torch.where(h * time > 1e-12, -torch.expm1(-h * time) / h.clamp(min=1e-300), time)
            w = applied(V, length * rhs)
            v = target - (w if A is None else applied(A.mT, w))
            test = v.square() @ lam + sizes.noise
            train = test if phi is None or y is None else (y - applied(phi, w)).square().mean(-1)
            found.append(torch.stack([train, test]))
        return torch.stack(found, -1)
