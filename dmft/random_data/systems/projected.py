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
        data, features = self.data, self.model.features
        if data.samples is not None or (features or 0) >= data.spectrum.modes:
            return super().flow(steps, two_time=two_time)
        coarse, fine = (
            rich_flow(
                data.spectrum,
                self.training.times[steps],
                features=features,
                richness=self.model.richness,
                resolution=resolution,
            )
            for resolution in (RESOLUTION, 2 * RESOLUTION)
        )
        error, feature = (2 * getattr(fine, name) - getattr(coarse, name) for name in ("error", "feature"))
        test = np.diagonal(error).copy()
        between = {"error": error, "residual": error + data.noise, "feature": feature} if two_time else {}
        return Found(test, test + data.noise, between, CLOSED)
