"""The theory of `dmft.DeepLinear`: marching, for every optimiser and every flow."""

from __future__ import annotations

from dmft.random_data.deep_linear import DeepTimes, march_deep
from dmft.random_data.theory import Theory
from dmft.specs import Training


class Deep(Theory):
    def march(self, training: Training) -> DeepTimes:
        model, data = self.model, self.data
        return march_deep(
            data.spectrum,
            training,
            depth=model.depth,
            ratio=model.ratio,
            gamma0=model.gamma0,
            branch=model.branch,
            samples=data.samples,
            batch=data.batch,
            noise=data.noise,
        )
