"""Deep linear networks from random initialisation, dimension, width and samples proportional, step by step.

    x ~ N(0, diag lambda_k) in D dimensions,  y = b* . x / sqrt D + eps,  N = nu D,  P = alpha D,  B = alpha_B D
    h^1 = W^0 x / sqrt D,   h^{l+1} = s h^l + (beta / sqrt N) W^l h^l,   f = sqrt D / (gamma0 N) a . h^L
    weights and a ~ N(0, 1)
    plain: s = 0, beta = 1;   residual: s = 1, beta = beta0 / sqrt L;   rate eta gamma0^2 N on every weight

    Delta = X v / sqrt D + eps,   g = (sqrt D / P) X^T Delta,   v = b* - beta_eff;   h^l are driven by g, q^L = a,
    q^l = s q^{l+1} + (beta / sqrt N) W^{lT} q^{l+1}.   c(t,s) is what the direction of step s is worth at t

    (1) h^l = s h^{l-1} + u_h^l + A_l q^l,   u_h^l ~ GP(0, beta^2 C_h^{l-1})
        A_l = beta R_{h xi}^{l-1} + gamma0 beta^2 c o C_h^{l-1}                             o entry by entry
        l = 1: no h^0, u ~ GP(0, C_g),  A_1 = R_{g xi}/(gamma0 nu) + gamma0 c o C_g
    (2) q^l = s q^{l+1} + u_q^l + B_l h^l,   u_q^l ~ GP(0, beta^2 C_q^{l+1})
        B_l = beta R_{q chi}^{l+1} + gamma0 beta^2 c o C_q^{l+1}
        l = L: no q^{L+1}, u = a(0) of covariance 11^T,  B_L = gamma0 c
    (3) R_{h xi}^l = beta dh^l/du_q^l,   R_{q chi}^l = beta dq^l/du_h^l (l = 1: without beta)
    (4) v_k = b*_k - u_xi,k - J g_k,   J = R_{q chi}^1/gamma0 + c o C_q^1,   u_xi ~ GP(0, C_q^1/(gamma0^2 nu))
        g_k = u_g,k + lambda_k R_Delta v_k,   u_g,k ~ GP(0, lambda_k U)
    (5) C_v = <lambda v v>,  C_g = <g g>,  R_{g xi} = <dg/du_xi>,  R_02 = <lambda dv/du_g>/alpha
        < > over modes with weight mu_k/D;   R_Delta, C_Delta, U: `dmft.random_data.causal`, in units of D

Within a step: q^L .. q^1, v, Delta, g, h^1 .. h^L; B_l and J are strictly causal, A_l has a diagonal.

    C_v   test errors (excess loss C_v(t,t), train C_Delta(t,t))       gamma0  richness; NTK scaling: gamma0 = nu^{-1/2}
    C_h^l, C_q^l  of forward and backward signals                      L   hidden layers;  T times

Initial loss <lambda b*^2> + <lambda> (1 + beta^2)^{L-1} / (gamma0^2 nu)   (plain: 1/(gamma0^2 nu)).

Cost: O(L T^3), residual O(L^2 T^3);  structured data O(M T^3).

Assumptions and approximations: D -> infinity at fixed T; near the stability edge corrections of finite D explode.

Source: B. Bordelon, C. Pehlevan, arXiv:2502.02531; momentum, schedules, structure and drawn batches by the same cavity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmft.random_data.causal import DataSite, between, require_finite_loss, set_symmetric
from dmft.random_data.projected import optimiser_memory
from dmft.random_data.random_features import OnDiagonal, size
from dmft.running import memory
from dmft.specs import Training, _check
from dmft.specs.random_data.spectra import Spectrum

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DeepTimes(OnDiagonal):
    """Order parameters (step, step_2) at steps 0 .. T.

    error: C_v.  residual: C_Delta.  data_response: R_Delta.  gradient: C_g.
    forward, backward: C_h^l, C_q^l (layer, step, step_2); forward_response, backward_response: R_{h xi}, R_{q chi}.
    """

    error: Array
    residual: Array
    data_response: Array
    gradient: Array
    forward: Array
    backward: Array
    forward_response: Array
    backward_response: Array


class _Layers:
    """Linear single-site processes (1) and (2) of all layers: responses of each field to each source.

    Fields and sources are numbered h^1 .. h^L, q^1 .. q^L; of plain networks a layer sees its own two sources alone.
    """

    def __init__(self, depth: int, steps: int, skip: bool) -> None:
        self.depth, self.skip = depth, skip
        every = range(2 * depth)
        self.seen = [[j for j in every if skip or j % depth == i % depth] for i in every]
        self.response = {(i, j): np.zeros((steps, steps)) for i in every for j in self.seen[i]}
        self.source = [np.zeros((steps, steps)) for _ in every]
        self.correlation = np.zeros((2 * depth, steps, steps))

    def append(self, i: int, t: int, source: Array, coupling: Array, before: int | None) -> None:
        """Row t of field i, driven by its source, by its partner through `coupling` and past the layer by `before`."""
        partner = (i + self.depth) % (2 * self.depth)
        n = len(coupling)  # t for q, which sees earlier h, t + 1 for h
        set_symmetric(self.source[i], t, source)
        for j in self.seen[i]:
            row = np.zeros(t + 1)
            row[:n] = coupling @ self.response[partner, j][:n, :n]
            row[t] += i == j
            if before is not None:
                row += self.response[before, j][t, : t + 1]
            self.response[i, j][t, : t + 1] = row
        total = np.zeros(t + 1)
        for j in self.seen[i]:
            R = self.response[i, j]
            total += between(R[t, : t + 1], self.source[j], R)
        set_symmetric(self.correlation[i], t, total)


def march_deep(
    spectrum: Spectrum,
    training: Training,
    *,
    depth: int,
    ratio: float,
    gamma0: float = 1.0,
    branch: float | None = None,
    samples: float | None = None,
    batch: float | None = None,
    noise: float = 0.0,
) -> DeepTimes:
    """Train a deep linear network in the proportional limit.

    Args:
        spectrum: of data and target; `isotropic(D)` for white data, D = spectrum.modes.
        training: `dmft.GradientDescent` without weight decay; results are at steps 0 .. T.
        depth: L hidden layers.
        ratio: nu = N/D.
        gamma0: richness; 1/sqrt(ratio) is the NTK parameterization.
        branch: beta0 of a residual network, whose branches have the scale beta0/sqrt(L); None for a plain one.
        samples: P of a fixed set, None for fresh data.
        batch: B, with samples drawn with replacement; None for all, or for the population's gradient.
        noise: sigma^2.

    Raises:
        DivergenceError: the loss explodes.
        ValueError, TypeError: arguments out of range.

    Example:
        >>> from dmft.random_data import isotropic
        >>> found = march_deep(isotropic(100), dmft.GradientDescent(0.05, 4), depth=1, ratio=1.0, samples=150)
        >>> found.test.round(3)
        array([2.   , 1.562, 1.304, 1.131, 1.007])
    """
    L, nu = _check.integer("depth", depth, minimum=1), _check.positive("ratio", ratio)
    gam = _check.positive("gamma0", gamma0)
    if training.decays:
        raise ValueError("weights of deep linear networks that decay are not solved; use weight_decay=0.")
    beta = 1.0 if branch is None else _check.positive("branch", branch) / math.sqrt(L)
    D, T, c = spectrum.modes, training.steps + 1, optimiser_memory(training)
    lam, weight, target = spectrum.eigenvalues, spectrum.copies / D, spectrum.power
    _require_memory(len(lam), L, T, branch is not None)
    alpha, alpha_B = (None if n is None else n / D for n in (size("samples", samples), size("batch", batch)))
    data = DataSite(T, alpha, alpha_B, _check.nonnegative("noise", noise))
    layers = _Layers(L, T, branch is not None)
    Ch, Cq = layers.correlation[:L], layers.correlation[L:]
    shape = (T, T)
    Rh, Rq = np.zeros((L, *shape)), np.zeros((L, *shape))
    J, xi, Cv, Cg, Rg = (np.zeros(shape) for _ in range(5))
    U, RD = data.gradient_noise, data.response
    # responses of v and g to b* - u_xi, and to u_g: (mode, step, step_2)
    Vb, Vg, Gb, Gg = (np.zeros((len(lam), *shape)) for _ in range(4))
    what = f"Lower {training.largest_step}."
    for t in range(T):
        s, n = slice(0, t), slice(0, t + 1)
        for l in range(L - 1, -1, -1):  # noqa: E741
            if l == L - 1:
                source, coupling, before = np.ones(t + 1), gam * c[t, s], None
            else:
                source = beta**2 * Cq[l + 1][t, n]
                coupling = beta * Rq[l + 1][t, s] + gam * beta**2 * c[t, s] * Cq[l + 1][t, s]
                before = L + l + 1 if layers.skip else None
            layers.append(L + l, t, source, coupling, before)
            Rq[l][t, n] = (beta if l else 1.0) * layers.response[L + l, l][t, n]
        J[t, s] = Rq[0][t, s] / gam + c[t, s] * Cq[0][t, s]
        set_symmetric(xi, t, Cq[0][t, n] / (gam**2 * nu))
        Vb[:, t, s], Vg[:, t, s] = -np.matmul(J[t, s], Gb[:, s, s]), -np.matmul(J[t, s], Gg[:, s, s])
        Vb[:, t, t] = 1.0
        set_symmetric(Cv, t, _average(weight * lam, target * lam, lam, t, Vb, Vg, xi, U))
        require_finite_loss(t, Cv[t, t], Cv[0, 0], what)
        data.append(t, Cv[t, n], (weight * lam) @ Vg[:, t, s] / (data.samples or np.inf))
        Gb[:, t, n] = lam[:, None] * np.matmul(RD[t, n], Vb[:, n, n])
        Gg[:, t, n] = lam[:, None] * np.matmul(RD[t, n], Vg[:, n, n])
        Gg[:, t, t] += 1.0
        set_symmetric(Cg, t, _average(weight, target, lam, t, Gb, Gg, xi, U))
        Rg[t, n] = -(weight @ Gb[:, t, n])
        for l in range(L):  # noqa: E741
            if l == 0:
                source, coupling = Cg[t, n], Rg[t, n] / (gam * nu) + gam * c[t, n] * Cg[t, n]
            else:
                source = beta**2 * Ch[l - 1][t, n]
                coupling = beta * Rh[l - 1][t, n] + gam * beta**2 * c[t, n] * Ch[l - 1][t, n]
            layers.append(l, t, source, coupling, l - 1 if layers.skip and l else None)
            Rh[l][t, n] = beta * layers.response[l, L + l][t, n]
    return DeepTimes(Cv, data.residual, RD, Cg, Ch, Cq, Rh, Rq)


def _average(weight: Array, target: Array, lam: Array, t: int, by_b: Array, by_g: Array, xi: Array, U: Array) -> Array:
    """Row t of the average over modes of <x x> for x = by_b (b* - u_xi) + by_g u_g: weights of the noises, (mode,), and
    those of b*, whose power is a sum over copies."""
    n = slice(0, t + 1)
    of_b = by_b[:, t, n] @ xi[n, n] * weight[:, None]
    of_g = by_g[:, t, n] @ U[n, n] * (weight * lam)[:, None]
    seen = by_b[:, n, n].sum(axis=2)
    found = (target * seen[:, t]) @ seen
    for row, R in ((of_b, by_b), (of_g, by_g)):
        found = found + np.matmul(R[:, n, n], row[:, :, None])[:, :, 0].sum(axis=0)
    return np.asarray(found)


def _require_memory(modes: int, depth: int, steps: int, skip: bool) -> None:
    responses = (2 * depth) ** 2 if skip else 4 * depth
    memory.require(
        8 * steps**2 * (4 * modes + responses + 6 * depth),
        limit=None,
        available=memory.available_on_host(),
        what=f"{modes} different eigenvalues, {depth} layers and {steps} steps",
        ways_out="merge modes with Spectrum.coarse(100), or take fewer steps",
    )
