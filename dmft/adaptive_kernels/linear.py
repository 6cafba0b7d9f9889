"""The posterior of deep linear networks in closed form (`dmft.adaptive_kernels.bayes` has the saddle point).

All duals are of rank one, along r, and one number chi >= 0 is left of them.  With v_l the prior variances of the
weights of layer l (v_l s^2 behind an activation s h), V = prod_{l=0}^L v_l, beta = 1/(P T):

    r = [(1+chi)^L V K^x + I/beta]^{-1} y             chi = gamma0^2 V (1+chi)^L r^T K^x r                          (1)
    Phi^l = prod_{j<l} v_j [K^x + ((1+chi)^l - 1) K^x r r^T K^x / (r^T K^x r)],        f(x) = (1+chi)^L V k^x(x)^T r
    dual of Phi^l = -(chi/(1+chi)) r r^T / (r^T C_l r),   C_l = Phi^{l-1} v_{l-1}
    S = (gamma0^2/2) y^T r + (L/2) [chi - ln(1+chi)]

(1) can have several roots, a transition of first order; the one with the least action S is the limit.  Several outputs
have r_c and chi_c each, if outputs are rotated so that r_c^T K^x r_c' = 0 for c != c': a matrix X takes the place of
chi, found from the branch of small gamma0 and from that of large chi; the better one is taken.

Source: Lauditi, Bordelon & Pehlevan 2025; for P and N of one order, Li & Sompolinsky 2021 have such matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, root

from dmft.errors import NotConvergedError

Array = NDArray[np.float64]
GRID = np.concatenate([[0.0], np.logspace(-10, 8, 4000)])  # of chi, between whose points roots are looked for
STAGES = 12  # of gamma0, along the branch of several outputs


@dataclass(frozen=True)
class LinearPosterior:
    """The saddle point (1) of a deep linear network.

    Args:
        input_kernel: K^x of the training samples.
        targets: y (sample, output).
        depth: L; gamma0: richness; noise: P T, in the place of 1/beta.
        variances: v_0 .. v_L of the weights.
        scale: s of the activation s h.

    Example:
        >>> one = LinearPosterior(np.eye(1) * 1e-3, np.ones((1, 1)), 3, 40**0.5, 1.0, (1.0,) * 4)
        >>> one.roots().round(2).tolist()
        [0.05, 4.06, 9.85]
    """

    input_kernel: Array
    targets: Array
    depth: int
    gamma0: float
    noise: float
    variances: tuple[float, ...]
    scale: float = 1.0

    @property
    def effective(self) -> Array:
        """Variances with the scale of the activation in them, by which preactivations follow from each other."""
        return np.array(self.variances) * np.where(np.arange(self.depth + 1) > 0, self.scale**2, 1.0)

    @cached_property
    def modes(self) -> tuple[Array, Array, Array]:
        """Eigenvalues and eigenvectors of K^x, and the targets in these (mode, output)."""
        values, vectors = np.linalg.eigh(self.input_kernel)
        return values, vectors, vectors.T @ self.targets

    def residuals(self, chi: Array) -> Array:
        """r (sample, output), of the matrix X."""
        values, vectors, targets = self.modes
        chis, rotation = np.linalg.eigh(chi)
        gains = np.outer(values, (1 + chis) ** self.depth) * self.effective.prod()
        return np.asarray(vectors @ ((targets @ rotation) / (gains + self.noise)) @ rotation.T)

    def action(self, chi: Array) -> float:
        """S of the matrix X."""
        chis = np.linalg.eigvalsh(chi)
        evidence = np.sum(self.targets * self.residuals(chi)) * self.gamma0**2 / 2
        return float(evidence + np.sum(chis - np.log1p(chis)) * self.depth / 2)

    def roots(self, output: int = 0) -> Array:
        """All chi that solve (1), of one output as if it were the only one."""
        values, _, targets = self.modes
        power = targets[:, output] ** 2
        prior = self.effective.prod()

        def excess(chi: Any) -> Any:
            gain = (1 + np.asarray(chi)[..., None]) ** self.depth * prior
            return chi - self.gamma0**2 * np.sum(gain * values * power / (gain * values + self.noise) ** 2, -1)

        found = excess(GRID)
        ends = np.flatnonzero((found[:-1] < 0) & (found[1:] >= 0) | (found[:-1] >= 0) & (found[1:] < 0))
        if not np.any(self.targets[:, output]):
            return np.zeros(1)
        if not len(ends):
            raise ValueError(
                f"gamma0={self.gamma0:g} has no growth of kernels below {GRID[-1]:.0e}; take a smaller gamma0, "
                "or a higher temperature."
            )
        return np.array([brentq(excess, GRID[i], GRID[i + 1], xtol=1e-14, rtol=1e-13) for i in ends])

    def branches(self) -> list[Array]:
        """The matrices X that were found: all of a single output, of several that from small gamma0, and from large
        chi."""
        outputs = self.targets.shape[1]
        each = [self.roots(c) for c in range(outputs)]
        if outputs == 1:
            return [np.full((1, 1), chi) for chi in each[0]]
        small = np.zeros((outputs, outputs))
        for stage in np.arange(1, STAGES + 1) / STAGES:
            small = self._solved(small, stage * self.gamma0)
        return [small, self._solved(np.diag([chi.max() for chi in each]), self.gamma0)]

    def _solved(self, start: Array, gamma0: float) -> Array:
        """X that solves (1), from a start."""
        upper = np.triu_indices(len(start))

        def full(entries: Array) -> Array:
            chi = np.zeros_like(start)
            chi[upper] = entries
            return np.asarray(chi + np.triu(chi, 1).T)

        def excess(entries: Array) -> Array:
            chis, rotation = np.linalg.eigh(full(entries))
            chis = np.maximum(chis, 0.0)
            r = self.residuals((rotation * chis) @ rotation.T)
            half = (rotation * (1 + chis) ** (self.depth / 2)) @ rotation.T
            driven = gamma0**2 * self.effective.prod() * half @ (r.T @ self.input_kernel @ r) @ half
            return np.asarray((full(entries) - driven)[upper])

        found = root(excess, start[upper], tol=1e-12)
        if np.abs(excess(found.x)).max() > 1e-8 * (1 + np.abs(found.x).max()):
            raise NotConvergedError(
                f"the gains of {len(start)} outputs of a deep linear network were not found at gamma0={gamma0:g}: "
                f"{found.message} Lower gamma0 or raise the temperature."
            )
        return full(found.x)

    def order_parameters(self, kernel: Array, chi: Array) -> dict[str, Array]:
        """Kernels, duals and predictions of all samples, the training samples first, whose inputs have this K^x."""
        n, v = len(self.targets), self.effective
        chis, rotation = np.linalg.eigh(chi)
        r = self.residuals(chi) @ rotation
        u = kernel[:, :n] @ r  # (sample, output)
        size = np.einsum("ac,ac->c", r, u[:n])
        lit = size > 0
        spikes = np.where(lit, 1 / np.where(lit, size, 1.0), 0.0)
        features, duals = [], []
        for layer in range(1, self.depth + 1):
            prior = v[:layer].prod()
            features.append(self.scale**2 * prior * (kernel + (u * (((1 + chis) ** layer - 1) * spikes)) @ u.T))
            dual = np.zeros_like(kernel)
            tilt = chis / (1 + chis) ** layer * spikes / (prior * self.scale**2)
            dual[:n, :n] = -(r * tilt) @ r.T
            duals.append(dual)
        padded = np.zeros((len(kernel), r.shape[1]))
        padded[:n] = r @ rotation.T
        return {
            "feature_kernel": np.array(features),
            "feature_dual": np.array(duals),
            "prediction": v.prod() * (u * (1 + chis) ** self.depth) @ rotation.T,
            "prediction_dual": padded,
            "action": np.array(self.action(chi)),
        }
