"""Random data in the place of a task: a spectrum, and how many samples of it are seen.

samples  batch     what a step sees
-        -         the population: the exact gradient
-        B         B fresh samples: one pass
P        -         all of P samples that are drawn once
P        B         B of these P, drawn with replacement
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft import faces
from dmft.specs import _check
from dmft.specs.random_data.spectra import Spectrum

ARRAYS = ("eigenvalues", "power", "multiplicity")


class RandomSource:
    """What takes the place of a task for models of random data: its samples are not told apart in results.

    Derived classes are frozen dataclasses with `arrays` and `settings`, their identity, and `stored`.
    """

    # what results ask of data
    outputs = ()
    n_train = n_test = n_samples = 0
    unusual_size = ""
    y = np.zeros(0)

    @property
    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """By name."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """What JSON holds beside the arrays, the name of the class as `kind` among it."""
        raise NotImplementedError

    @classmethod
    def stored(cls, arrays: Mapping[str, NDArray[np.float64]], described: Mapping[str, Any]) -> RandomSource:
        """The data that JSON describes."""
        raise NotImplementedError

    @property
    def provenance(self) -> dict[str, Any]:
        return {}

    @cached_property
    def sha256(self) -> str:
        """Digest of sizes and of the float64 bytes of the arrays."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for name, array in self.arrays.items():
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.astype("<f8").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, RandomSource) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


@dataclass(frozen=True, eq=False)
class RandomData(RandomSource):
    """Gaussian inputs of a given spectrum and a linear target, with noise, for models of random data.

    Args:
        spectrum: of `dmft.random_data`: power_law, isotropic, measured, or Spectrum(...); in deep linear networks the
            number of its modes is the dimension D.
        samples: P, drawn once; None for fresh data.
        batch: B, how many a step sees; None for all.
        noise: sigma^2, variance of the labels' noise.

    Sizes are those of scale 1: networks of scale m have m times as many of everything.

    Raises:
        ValueError, TypeError: not a spectrum, no samples, a negative noise.

    Example:
        >>> from dmft.random_data import power_law
        >>> dmft.RandomData(power_law(60, capacity=1.2, source=1.5), samples=24, noise=0.05)
        RandomData(60 modes, 24 samples, noise 0.05)
    """

    spectrum: Spectrum
    samples: int | None = None
    batch: int | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.spectrum, Spectrum):
            raise TypeError(
                f"spectrum={self.spectrum!r} is not a Spectrum; give dmft.random_data.power_law(...), isotropic(D), "
                "measured(kernel, targets), or Spectrum(eigenvalues, power)."
            )
        for name in ("samples", "batch"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _check.integer(name, getattr(self, name), minimum=1))
        object.__setattr__(self, "noise", _check.nonnegative("noise", self.noise))

    @property
    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The arrays of the spectrum, by name."""
        return {name: getattr(self.spectrum, name) for name in ARRAYS}

    @property
    def settings(self) -> dict[str, Any]:
        """What JSON holds beside the arrays."""
        return {"kind": "RandomData", "samples": self.samples, "batch": self.batch, "noise": self.noise}

    @classmethod
    def stored(cls, arrays: Mapping[str, NDArray[np.float64]], described: Mapping[str, Any]) -> RandomData:
        """The data that JSON describes."""
        return cls(Spectrum(**arrays), described["samples"], described["batch"], described["noise"])

    def __repr__(self) -> str:
        sizes = {"samples": self.samples, "batch": self.batch}
        told = [f"{count} {name}" if name == "samples" else f"batch {count}" for name, count in sizes.items() if count]
        told += [f"noise {self.noise:g}"] if self.noise else []
        return f"RandomData({', '.join([f'{self.spectrum.modes:g} modes', *(told or ['population'])])})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = {"spectrum": self.spectrum, "samples": self.samples, "batch": self.batch, "noise": self.noise}
        return faces.table(rows, "RandomData")
