"""The theory of `dmft.ProjectedLinear`: marching, and a closed flow of the population."""

from __future__ import annotations

import numpy as np

from dmft.random_data.projected import Marched, march, rich_flow
from dmft.random_data.theory import Found, Steps, Theory
from dmft.specs import Training

RESOLUTION = 200.0  # of the closed flow, and twice that: its error is of first order, and extrapolated
CLOSED = "closed flow, implicit Euler, extrapolated"


class Projected(Theory):
    def march(self, training: Training) -> Marched:
        data = self.data
        return march(
            data.spectrum,
            training,
            features=self.model.features,
            samples=data.samples,
            batch=data.batch,
            noise=data.noise,
            richness=self.model.richness,
        )

    def flow(self, steps: Steps, *, two_time: bool) -> Found:
        if self.model.features is not None or self.data.samples is not None:
            return super().flow(steps, two_time=two_time)
        times, richness = self.training.times[steps], self.model.richness
        coarse, fine = (
            rich_flow(self.data.spectrum, times, richness=richness, resolution=r) for r in (RESOLUTION, 2 * RESOLUTION)
        )
        error, feature = (2 * getattr(fine, name) - getattr(coarse, name) for name in ("error", "feature"))
        test, residual = np.diagonal(error).copy(), error + self.data.noise
        between = {"error": error, "residual": residual, "feature": feature} if two_time else {}
        return Found(test, test + self.data.noise, between, CLOSED)
