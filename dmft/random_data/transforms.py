"""From generating functions back to time: points on a circle for discrete steps, Talbot's contour for flows.

    steps    F(x) = sum_t f(t) x^t      f(t) = r^-t / n sum_j F(r e^{2 pi i j / n}) e^{-2 pi i j t / n},  r = 10^(-8/n)
    flow     F(z) = int f(t) e^{-z t}   f(t) = sum_j w_j F(z_j / t) / t,   z_j = n (.5017 th cot(.6407 th) - .6122 +
             .2645 i th),  th = pi j / n, j = -n+1, -n+3, ..., n-1

and both twice for functions of two times.  The circle aliases f(t + n) r^n, of relative size 1e-8; Talbot's rule
converges like 10^(-.6 n) until rounding, 1e-10 or so, stops it.  Both sets of points are symmetric under conjugation:
the upper half comes first, and the lower half is its mirror image.

    x   circle variable        z   Laplace variable        n   number of points        w   weights

Source: A. Talbot 1979, with the parameters of J. Weideman, SIAM J. Numer. Anal. 44, 2342 (2006).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
ALIASING = 8  # decimal digits that the circle gives
PADDING = 3  # points of the circle a step
NODES = 28  # of Talbot's contour


@dataclass(frozen=True)
class Circle:
    """Generating functions of sequences f(0) .. f(steps - 1)."""

    steps: int

    @property
    def size(self) -> int:
        """n, the points of the whole circle."""
        return PADDING * self.steps

    @property
    def radius(self) -> float:
        return float(10.0 ** (-ALIASING / self.size))

    @property
    def points(self) -> Complex:
        """x of the whole circle, (point,), conjugate pairs exact."""
        half = self.radius * np.exp(2j * np.pi * np.arange(self.size // 2 + 1) / self.size)
        half[0] = self.radius
        if self.size % 2 == 0:
            half[-1] = -self.radius
        return np.concatenate([half, half[1 : self.size - len(half) + 1][::-1].conj()])

    def sequence(self, values: Complex) -> Array:
        """f(t), (..., step), of F (..., point)."""
        found = np.fft.fft(values, axis=-1).real[..., : self.steps] / self.size
        return np.asarray(found * self.radius ** -np.arange(self.steps))

    def two_times(self, values: Complex) -> Array:
        """f(t, s), (step, step_2), of F (point, point_2)."""
        found = np.fft.fft2(values).real[: self.steps, : self.steps] / self.size**2
        decay = self.radius ** -np.arange(self.steps)
        return np.asarray(found * np.outer(decay, decay))


@dataclass(frozen=True)
class Talbot:
    """Laplace transforms at one time."""

    nodes: int = NODES

    @property
    def unit(self) -> tuple[Complex, Complex]:
        """z t and the weights times t, (node,): f(t) = weights @ F(z)."""
        n = self.nodes
        th = np.arange(1 if n % 2 == 0 else 2, n, 2) * np.pi / n  # the upper half
        cot = 1 / np.tan(0.6407 * th)
        z = n * (0.5017 * th * cot - 0.6122 + 0.2645j * th)
        slope = n * (0.5017 * cot - 0.5017 * 0.6407 * th / np.sin(0.6407 * th) ** 2 + 0.2645j)
        w = slope * np.exp(z) / (1j * n)
        return np.concatenate([z, z.conj()]), np.concatenate([w, w.conj()])

    def at(self, time: float) -> tuple[Complex, Complex]:
        """z and weights (node,) of a time above zero."""
        z, w = self.unit
        return z / time, w / time
