"""Simulations of models of random data at several scales: all sizes, of modes, features, samples and batches, times m.

    v = w* - A^T w / sqrt N,   g = Psi^T (Psi v + eps) / P,   D_w = A g / sqrt N,   D_A = G sqrt N w (A_0^T A_0 g / N)^T

    deep       q^L = a,   q^l = s q^{l+1} + beta W^{lT} q^{l+1} / sqrt N
               h^1 = W^0 g / sqrt D,   h^{l+1} = s h^l + beta W^l h^l / sqrt N
               D_{W^0} = (gamma0 / sqrt D) q^1 g^T,  D_{W^l} = beta (gamma0 / sqrt N) q^{l+1} h^{lT},  D_a = gamma0 h^L

Directions D drive the recurrence of the optimiser (`dmft.specs.training.recurrence`); gradient flows of random features
are exact, by the eigenvectors of their Gram matrix.  Infinitely many features are A_0 = sqrt M 1: A_0^T A_0 / N is 1.
The target has the same size in all copies of a mode: what signs it has makes no difference in law.

A member is a function of (root seed, scale, seed index) alone: of parameters 0 features, 1 samples, 2 their noise, then
the batches of steps; deep networks have their weights from `WEIGHTS` on.  As many members as fit are trained together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from dmft.running import memory
from dmft.specs import GradientFlow, Problem
from dmft.specs.random_data import DeepLinear, ProjectedLinear, RandomData
from finite_nets.device.free_memory import free_memory
from finite_nets.ensembles.collection import Members
from finite_nets.ensembles.simulated import AT_ONCE, SHARE, Draws, simulated

Array = NDArray[np.float64]
FEATURES, SAMPLES, NOISE, BATCHES = 0, 1, 2, 3
WEIGHTS = 2**24  # beyond the batches of any training
COPIES = 3  # of the largest arrays, with temporaries


class _Sizes:
    """Modes (mode,), samples and batch at a scale."""

    def __init__(self, data: RandomData, scale: int, device: torch.device, dtype: torch.dtype) -> None:
        spectrum = data.spectrum
        copies = spectrum.copies * scale
        counts = np.round(copies).astype(np.int64)
        if (np.abs(copies - counts) > 1e-6).any() or not counts.all():
            at = int(np.argmax(np.abs(copies - counts)))
            raise ValueError(
                f"mode {at} has the multiplicity {spectrum.copies[at]:g}, and a network of scale {scale} cannot have "
                f"{copies[at]:g} of them; give whole multiplicities, e.g. power_law of few modes."
            )
        self.modes = int(counts.sum())
        self.samples, self.batch = (None if n is None else n * scale for n in (data.samples, data.batch))
        each: dict[str, Any] = {"dtype": dtype, "device": device}
        self.eigenvalues = torch.tensor(np.repeat(spectrum.eigenvalues, counts), **each)
        self.target = torch.tensor(np.repeat(np.sqrt(spectrum.power / counts), counts), **each)
        self.noise = data.noise

    @property
    def rows(self) -> int:
        """Samples that are held at once."""
        return self.samples or self.batch or 0


class _Data:
    """Gradients and losses of a step, for errors v (member, mode) of every member."""

    def __init__(self, sizes: _Sizes, draw: Draws) -> None:
        self.sizes, self._draw = sizes, draw
        self._fixed = self.drawn(SAMPLES, NOISE, sizes.samples) if sizes.samples else None

    def drawn(self, inputs: int, noise: int, count: int) -> tuple[Tensor, Tensor]:
        """Samples (member, sample, mode) and the noise of their labels (member, sample)."""
        psi = self._draw(inputs, count, self.sizes.modes) * self.sizes.eigenvalues.sqrt()
        return psi, self._draw(noise, count) * self.sizes.noise**0.5

    @property
    def fixed(self) -> tuple[Tensor, Tensor] | None:
        return self._fixed

    def gradient(self, t: int, v: Tensor) -> tuple[Tensor, Tensor]:
        """g (member, mode) and the mean square of residuals (member,)."""
        sizes, lam = self.sizes, self.sizes.eigenvalues
        if self._fixed is None and sizes.batch is None:
            return lam * v, self.test(v)
        first = BATCHES + 2 * t
        psi, eps = self._fixed or self.drawn(first, first + 1, cast("int", sizes.batch))
        residual = _apply(psi, v) + eps
        loss, count = residual.square().mean(-1), residual.shape[-1]
        if self._fixed is not None and sizes.batch is not None:
            # uniform indices, from normals
            place = torch.special.ndtr(self._draw(first, sizes.batch).double()) * count
            place = place.long().clamp_(max=count - 1)
            residual = residual * torch.zeros_like(residual).scatter_add_(
                1, place, torch.ones_like(place, dtype=v.dtype)
            )
            count = sizes.batch
        return _apply(psi.mT, residual) / count, loss

    def test(self, v: Tensor) -> Tensor:
        """The mean square over new samples, noise included (member,)."""
        return v.square() @ self.sizes.eigenvalues + self.sizes.noise


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v.unsqueeze(-1)).squeeze(-1)


class _Weights:
    """A parameter with what the optimiser remembers of it: (component, member, ...)."""

    def __init__(self, start: Tensor, slots: int) -> None:
        self.all = torch.cat([start[None], start.new_zeros((slots, *start.shape))]) if slots else start[None].clone()

    @property
    def now(self) -> Tensor:
        current: Tensor = self.all[0]
        return current

    def step(self, A: Array, b: Array, direction: Tensor) -> None:
        if len(b) == 1:
            self.all[0].mul_(float(A[0, 0])).add_(direction, alpha=float(b[0]))
            return
        self.all = torch.tensordot(self.all.new_tensor(A), self.all, 1)
        for component, weight in enumerate(b):
            self.all[component].add_(direction, alpha=float(weight))


class _Model(ABC):
    """Members of a model while they train."""

    @abstractmethod
    def errors(self) -> Tensor:
        """v (member, mode), in units in which y = w* . psi."""

    @abstractmethod
    def step(self, A: Array, b: Array, g: Tensor) -> None:
        """The update along the gradient g (member, mode) of those units."""


class _Readout(_Model):
    """Random features; with richness, features that learn in their span."""

    def __init__(self, sizes: _Sizes, features: int | None, richness: float, slots: int, draw: Draws) -> None:
        self._target, self._richness = sizes.target, richness
        if features is None:
            eye = torch.eye(sizes.modes, dtype=sizes.target.dtype, device=sizes.target.device)
            self.start = (eye * sizes.modes**0.5).expand(len(draw.members), -1, -1)
        else:
            self.start = draw(FEATURES, features, sizes.modes)
        self.root = self.start.shape[1] ** 0.5
        self.A = _Weights(self.start, slots) if richness else None
        self.w = _Weights(self.start.new_zeros(self.start.shape[:2]), slots)

    @property
    def features(self) -> Tensor:
        return self.start if self.A is None else self.A.now

    def errors(self) -> Tensor:
        found: Tensor = self._target - _apply(self.features.mT, self.w.now) / self.root
        return found

    def step(self, A: Array, b: Array, g: Tensor) -> None:
        direction = _apply(self.features, g) / self.root
        if self.A is not None:
            projected = _apply(self.start.mT, _apply(self.start, g)) / self.root
            self.A.step(A, b, self._richness * self.w.now[:, :, None] * projected[:, None, :])
        self.w.step(A, b, direction)


class _Deep(_Model):
    """Deep linear networks, plain or residual."""

    def __init__(self, sizes: _Sizes, model: DeepLinear, slots: int, draw: Draws) -> None:
        width, D = round(model.ratio * sizes.modes), sizes.modes
        self._scale, self._target, self._gamma0 = D**0.5, sizes.target, model.gamma0
        self._width, self._skip = width, model.branch is not None
        self._beta = 1.0 if model.branch is None else model.branch / model.depth**0.5
        shapes = [(width, D), *[(width, width)] * (model.depth - 1), (width,)]
        self.weights = [_Weights(draw(WEIGHTS + i, *shape), slots) for i, shape in enumerate(shapes)]

    def _branch(self, W: Tensor, x: Tensor) -> Tensor:
        found: Tensor = _apply(W, x) * (self._beta / self._width**0.5)
        return found.add_(x) if self._skip else found

    def _backward(self) -> list[Tensor]:
        """q^1 .. q^L."""
        _, *hidden, a = self.weights
        q = [a.now]
        for W in reversed(hidden):
            q.insert(0, self._branch(W.now.mT, q[0]))
        return q

    def errors(self) -> Tensor:
        first = _apply(self.weights[0].now.mT, self._backward()[0])
        found: Tensor = self._target - first / (self._gamma0 * self._width)
        return found

    def step(self, A: Array, b: Array, g: Tensor) -> None:
        first, *hidden, _ = self.weights
        q, g = self._backward(), g * self._scale
        h = [_apply(first.now, g) / self._scale]
        for W in hidden:
            h.append(self._branch(W.now, h[-1]))
        directions = [_outer(q[0], g) * (self._gamma0 / self._scale)]
        factor = self._beta * self._gamma0 / self._width**0.5
        directions += [_outer(q[i + 1], h[i]) * factor for i in range(len(hidden))]
        for weights, direction in zip(self.weights, [*directions, self._gamma0 * h[-1]], strict=True):
            weights.step(A, b, direction)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[:, :, None] * b[:, None, :]


def ensemble(
    problem: Problem,
    members: Members,
    *,
    steps: NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
    memory_limit: int | None,
    finished: Callable[[int], Any],
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Losses of members, whose scales take the place of widths.

    Args:
        problem: a model of random data.
        members: scales, seed indices and the root seed.
        steps: the recorded steps.
        device, dtype: where, and in which numbers.
        memory_limit: in bytes, of a batch of members; None for a share of what is available.
        finished: called with the number of members of each batch.
        attrs: what the producer says of itself.

    Returns:
        Dataset of kind "ensemble" (`dmft.schema`): loss and test_loss (width, seed, step); nan where `diverged`.

    Raises:
        MemoryEstimateError: a single member does not fit.  DivergenceError: all members of a scale diverge.
        ValueError: sizes that are not whole at a scale.
    """

    def train(scale: int, draws: Draws, seen: NDArray[np.int64]) -> dict[str, Array]:
        train, test = _train(problem, scale, draws, seen, device, dtype) / 2
        return {"loss": train, "test_loss": test}

    return simulated(
        problem,
        members,
        train,
        lambda scale: _at_once(problem, scale, device, dtype, memory_limit),
        steps=steps,
        device=device,
        dtype=dtype,
        finished=finished,
        attrs=attrs,
        size="scale",
    )


def _widths(problem: Problem, scale: int, modes: int) -> tuple[int, int]:
    """Features or neurons, and numbers of all weights, of one member."""
    model: Any = problem.network
    if isinstance(model, DeepLinear):
        width = model.ratio * modes
        if abs(width - round(width)) > 1e-6:
            raise ValueError(
                f"ratio={model.ratio:g} of {modes} dimensions at scale {scale} is a width of {width:g}; take "
                "dimensions of which it is a whole number."
            )
        return round(width), round(width) * (modes + (model.depth - 1) * round(width))
    width = modes if model.features is None else model.features * scale
    return width, width * modes


def _at_once(problem: Problem, scale: int, device: torch.device, dtype: torch.dtype, limit: int | None) -> int:
    """How many members are trained together."""
    sizes = _Sizes(cast("RandomData", problem.task), scale, torch.device("cpu"), dtype)
    width, weights = _widths(problem, scale, sizes.modes)
    flow = isinstance(problem.training, GradientFlow)
    copies = COPIES * (1 if flow else problem.training.recurrences.slots + 1)
    numbers = copies * weights + COPIES * sizes.rows * sizes.modes + (4 * width**2 if flow else 0)
    available = free_memory(device)
    memory.require(
        numbers * dtype.itemsize,
        limit=limit,
        available=available,
        what=f"one network of scale {scale} with {sizes.modes} modes, {width} features and {sizes.rows} samples",
        ways_out="take smaller scales, or fewer modes",
    )
    fits = int((limit or SHARE * available) // (numbers * dtype.itemsize))
    return max(1, min(fits, AT_ONCE[device.type] // numbers))


def _train(
    problem: Problem, scale: int, draw: Draws, steps: NDArray[np.int64], device: torch.device, dtype: torch.dtype
) -> Array:
    """Train and test mean squares (2, member, step)."""
    model: Any = problem.network
    sizes = _Sizes(cast("RandomData", problem.task), scale, device, dtype)
    data = _Data(sizes, draw)
    features = None if isinstance(model, DeepLinear) or model.features is None else model.features * scale
    if isinstance(problem.training, GradientFlow):
        if isinstance(model, ProjectedLinear):
            raise ValueError("networks of ProjectedLinear follow discrete steps; take dmft.GradientDescent.")
        return _flow(data, _Readout(sizes, features, 0.0, 0, draw), problem.training.times[steps])
    A, b = problem.training.recurrences
    slots = b.shape[1] - 1
    trained: _Model
    if isinstance(model, DeepLinear):
        trained = _Deep(sizes, model, slots, draw)
    else:
        trained = _Readout(sizes, features, getattr(model, "richness", 0.0), slots, draw)
    found, recorded = [], set(steps.tolist())
    for t in range(int(steps[-1]) + 1):
        v = trained.errors()
        g, loss = data.gradient(t, v)
        if t in recorded:
            found.append(torch.stack([loss, data.test(v)]).double().cpu().numpy())
        if t < steps[-1]:
            trained.step(A[t], b[t], g)
    return np.moveaxis(np.array(found), 0, -1)


def _flow(data: _Data, model: _Readout, times: Array) -> Array:
    """The same under a gradient flow: w(t) = V (1 - exp(-h t))/h V^T (Phi^T y / P), H = Phi^T Phi / P = V h V^T."""
    sizes = data.sizes
    A, lam, target = model.start.double(), sizes.eigenvalues.double(), sizes.target.double()
    if data.fixed is None:
        H, rhs = (A * lam) @ A.mT / model.root**2, _apply(A, (lam * target).expand(len(A), -1)) / model.root
    else:
        psi, eps = (each.double() for each in data.fixed)
        phi = psi @ A.mT / model.root
        y = psi @ target + eps
        H, rhs = phi.mT @ phi / psi.shape[1], _apply(phi.mT, y) / psi.shape[1]
    h, V = torch.linalg.eigh(H)
    h, rhs = h.clamp(min=0.0), _apply(V.mT, rhs)
    found = []
    for time in times:
        length = torch.where(h * time > 1e-12, -torch.expm1(-h * time) / h.clamp(min=1e-300), time)
        v = target - _apply(A.mT, _apply(V, length * rhs)) / model.root
        test = v.square() @ lam + sizes.noise
        train = test if data.fixed is None else (_apply(psi, v) + eps).square().mean(-1)
        found.append(torch.stack([train, test]).cpu().numpy())
    return np.moveaxis(np.array(found), 0, -1)
