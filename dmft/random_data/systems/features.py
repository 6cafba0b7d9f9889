"""The theory of `dmft.RandomFeatures`.

full batch or population, one rate      frequencies                  (`dmft.random_data.random_features`)
flows                                   contours, any time           (the same)
schedules, batches, weight decay        marching without richness    (`dmft.random_data.projected`)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dmft.random_data.ensembles import BiasVariance, bias_variance
from dmft.random_data.projected import Marched, march
from dmft.random_data.random_features import flow_between, gradient_descent, gradient_flow
from dmft.random_data.sgd import require_stable_sgd
from dmft.random_data.theory import Found, Steps, Theory, at_steps
from dmft.specs import Training

FREQUENCIES, CONTOURS = "generating functions", "inverse Laplace transforms"


class Features(Theory):
    @property
    def _sizes(self) -> dict[str, Any]:
        return {"features": self.model.features, "samples": self.data.samples, "noise": self.data.noise}

    def march(self, training: Training) -> Marched:
        return march(self.data.spectrum, training, batch=self.data.batch, **self._sizes)

    def descent(self, steps: Steps) -> Found:
        data, training, last = self.data, self.training, int(steps[-1])
        if data.batch is None and last and self.constant:
            descent = gradient_descent(
                data.spectrum,
                steps=last,
                learning_rate=training.learning_rate,
                momentum=training.momentum,
                **self._sizes,
            )
            return at_steps(descent, steps, FREQUENCIES)
        if data.batch is not None and self.constant and not training.momentum:
            require_stable_sgd(data.spectrum, training.learning_rate, data.batch, self.model.features, data.samples)
        return super().descent(steps)

    def flow(self, steps: Steps, *, two_time: bool) -> Found:
        times = self.training.times[steps]
        found = gradient_flow(self.data.spectrum, times, **self._sizes)
        between = flow_between(self.data.spectrum, times, **self._sizes) if two_time else {}
        return Found(found.test, found.train, between, CONTOURS)

    def split(self, steps: Steps) -> BiasVariance:
        if self.data.batch is not None:
            raise ValueError(
                f"ensembles are of RandomFeatures without a batch; with batch={self.data.batch} there is no split into "
                "bias and variances here."
            )
        course: dict[str, Any]
        if self.flows:
            course, at = {"times": self.training.times[steps]}, np.arange(len(steps))
        elif self.constant:
            training, at = self.training, steps
            course = {"learning_rate": training.learning_rate, "momentum": training.momentum}
            course["steps"] = max(int(steps[-1]), 1)
        else:
            raise ValueError("ensembles are there for one learning rate without weight decay, and for flows.")
        return bias_variance(self.data.spectrum, **course, **self._sizes).at(at)
