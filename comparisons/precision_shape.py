"""The law of precision as a function of its constants, with derivatives, and a fit (`comparisons.precision_runs`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from comparisons.precision import LEAST, AfterTraining, PrecisionLaw, Saturation
from comparisons.run_table import LOSS, POST, SIZES

Array = NDArray[np.float64]

EXPONENTS = ("alpha", "beta", "gamma data", "gamma parameters")
AT_MOST = 400  # evaluations of a fit


@dataclass(frozen=True)
class Shape:
    """Which constants there are, and the ceiling of losses.  Sizes are counted in their geometric means."""

    channels: tuple[str, ...]
    tied: bool
    post: bool
    ceiling: float = np.inf

    @property
    def names(self) -> list[str]:
        found = ["A", "B", "E", "alpha"] + ([] if self.tied else ["beta"])
        for name in self.channels:
            found += [f"gamma {name}", f"bias {name}"]
        return found + (["C", "gamma data", "gamma parameters", "gamma post"] if self.post else [])

    def start(self, data: Mapping[str, Array], rng: np.random.Generator) -> Array:
        """Somewhere sensible: a part of the losses does not fall, the rest is shared."""
        low, high = data[LOSS].min(), data[LOSS].max()
        parts = {
            "A": (high - low + 0.1 * low) * rng.uniform(0.1, 1),
            "B": (high - low + 0.1 * low) * rng.uniform(0.1, 1),
            "E": low * rng.uniform(0.3, 0.95),
            "alpha": rng.uniform(0.2, 1.0),
            "beta": rng.uniform(0.2, 1.0),
            "C": (high - low + 0.1 * low) * rng.uniform(0.3, 3),
            "gamma data": rng.uniform(0.2, 0.8),
            "gamma parameters": rng.uniform(0.2, 0.8),
            "gamma post": rng.uniform(0.3, 1.5),
        }
        found: list[float] = []
        for name in self.names:
            if name.startswith("bias "):
                # the law ends at gamma n: below the fewest bits
                gamma = np.exp(found[-1])
                found.append(rng.uniform(0, 0.6) * data[name.removeprefix("bias ")].min() / gamma)
            else:
                found.append(np.log(parts[name] if name in parts else rng.uniform(0.5, 3.0)))
        return np.array(found)

    def bounds(self, data: Mapping[str, Array]) -> tuple[Array, Array]:
        """Far beyond what runs determine; steps into nowhere end there."""
        largest = float(data[LOSS].max())
        found = []
        for name in self.names:
            if name in ("A", "B", "E", "C"):
                found.append(np.log((1e-9 * largest, 1e9 * largest)))
            elif name.startswith("bias "):
                found.append(np.array([-30.0, 30.0]))
            else:  # or gammas, in bits
                found.append(np.log((0.01, 5.0) if name in EXPONENTS else (0.02, 200.0)))
        low, high = np.transpose(found)
        return low, high

    def values(self, v: Array) -> dict[str, float]:
        found = {
            name: float(value if name.startswith("bias ") else np.exp(value))
            for name, value in zip(self.names, v, strict=True)
        }
        return found | ({"beta": found["alpha"]} if self.tied else {})

    def law(self, v: Array, data: Mapping[str, Array]) -> PrecisionLaw:
        """In the units of the table."""
        c, (n, d) = self.values(v), _units(data)
        channels = {name: Saturation(c[f"gamma {name}"], c[f"bias {name}"]) for name in self.channels}
        post = None
        if self.post:
            scale = c["C"] * d ** -c["gamma data"] * n ** c["gamma parameters"]
            post = AfterTraining(scale, c["gamma data"], c["gamma parameters"], c["gamma post"])
        A, B = c["A"] * n ** c["alpha"], c["B"] * d ** c["beta"]
        return PrecisionLaw(A, c["alpha"], B, c["beta"], c["E"], channels, post, self.ceiling)

    def loss(self, v: Array, data: Mapping[str, Array]) -> tuple[Array, Array]:
        """Losses (run,) and their derivatives (run, constant)."""
        c, (n, d) = self.values(v), _units(data)
        log_n, log_d = np.log(data["parameters"] / n), np.log(data["tokens"] / d)
        slopes: dict[str, Array] = {}
        for name in self.channels:
            each = Saturation(c[f"gamma {name}"], c[f"bias {name}"])
            steps = data[name] / each.gamma
            free = each.bias - steps < LEAST  # where the exponent is held, nothing depends on it
            slopes[f"bias {name}"] = np.where(free, -each.odds(data[name]), 0.0)
            slopes[f"gamma {name}"] = slopes[f"bias {name}"] * np.where(np.isfinite(steps), steps, 0.0)
            log_n = log_n + np.log(each.share(data[name]))
        by_n, by_d = c["A"] * np.exp(-c["alpha"] * log_n), c["B"] * np.exp(-c["beta"] * log_d)
        # so far of log N_eff
        slopes = {name: -c["alpha"] * by_n * slope for name, slope in slopes.items()}
        of_n, of_d = -c["alpha"] * by_n * log_n, -c["beta"] * by_d * log_d
        loss = by_n + by_d + c["E"]
        slopes |= {"A": by_n, "B": by_d, "E": np.full_like(loss, c["E"])}
        slopes |= {"alpha": of_n + of_d} if self.tied else {"alpha": of_n, "beta": of_d}
        if self.post:
            steps = data[POST] / c["gamma post"]
            delta = c["C"] * np.exp(c["gamma data"] * log_d - c["gamma parameters"] * log_n - steps)
            slopes |= {"C": delta, "gamma data": c["gamma data"] * log_d * delta}
            slopes |= {"gamma parameters": -c["gamma parameters"] * log_n * delta}
            slopes |= {"gamma post": np.where(np.isfinite(steps), steps, 0.0) * delta}
            loss = loss + delta
        below = loss < self.ceiling
        return np.minimum(loss, self.ceiling), np.stack([slopes[name] * below for name in self.names], axis=1)


def _units(data: Mapping[str, Array]) -> tuple[float, float]:
    """Geometric means of parameters and tokens."""
    n, d = (float(np.exp(np.log(data[name]).mean())) for name in SIZES)
    return n, d


def fitted(shape: Shape, data: Mapping[str, Array], start: Array, delta: float) -> tuple[Array, float]:
    """The best constants from a start, and their cost."""
    log_loss = np.log(data[LOSS])

    def residual(v: Array) -> Array:
        return np.asarray(np.log(shape.loss(v, data)[0]) - log_loss)

    def slopes(v: Array) -> Array:
        loss, jacobian = shape.loss(v, data)
        return np.asarray(jacobian / loss[:, None])

    with np.errstate(over="ignore"):
        found = least_squares(
            residual,
            start,
            slopes,
            bounds=shape.bounds(data),
            loss="huber",
            f_scale=delta,
            x_scale="jac",
            max_nfev=AT_MOST,
        )
    return np.asarray(found.x), float(found.cost)
