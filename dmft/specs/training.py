"""How the parameters move: the direction D = -gamma0^2 N dloss/dtheta, and what is made of it.

GradientDescent, t = 0 .. T-1, the same rate for every layer, heavy-ball momentum beta, weight decay lambda:

    v(t+1)     = beta v(t) + D(t) - lambda theta(t)
    theta(t+1) = theta(t) + eta_t v(t+1)

D(t) is that of the loss averaged over the batch of step t.  This is `torch.optim.SGD` with lr = eta gamma0^2 N and
weight_decay = lambda / (gamma0^2 N).  Such an optimiser is linear in D, theta(t) = d(t) theta(0) + sum_s c(t, s) D(s):
its limit has the memory kernels d and c where gradient descent has 1 and eta.  Adaptive rates (Adam) are not linear,
and are not offered.

GradientFlow, d theta / dt = eta D, on a grid of times with steps dt:

    "rosenbrock"   second order, also where dt is far above the fastest time scale, as long as the kernels change little
                   in a step: the curvature of f is left out of its linear systems (`dmft.engine.flow`).  `hinge` has no
                   curvature of its own, and the scheme is an explicit one for it.
    "euler"        theta(t+1) = theta(t) + eta dt D(t), and of the output f(t+1) = f(t) + (eta dt / P) K(t) Delta(t)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.specs import _check

OBSERVE = ("all", "test")
SCHEMES = ("rosenbrock", "euler")


@dataclass(frozen=True)
class GradientDescent:
    """Exact discrete gradient descent, full batch or with a given sequence of batches.

    Args:
        learning_rate: eta, in units where one step changes f by about (eta/P) K Delta at any width and richness; one
            number, or one for each step (a schedule, which may hold zeros: a warm-up from 0).
        steps: number T of updates; observables are recorded at steps 0..T, each before the update of that step.
        momentum: beta of the heavy ball, 0 <= beta < 1.
        weight_decay: lambda, a rate like the inverse of `learning_rate`: without data, theta shrinks by 1 - eta lambda
            a step.
        batches: (step, position) indices of the training samples of each step, e.g. from `dmft.random_batches` or
            `dmft.one_pass`; all samples at every step by default.
        observe: "all": results hold training and test samples.  "test": test samples only, and a training sample is
            met in its own batches alone, as a stream of data demands (cost does not grow with the training set).

    Raises:
        ValueError, TypeError: naming the argument.
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    batches: tuple[tuple[int, ...], ...] | None = None
    observe: str = "all"

    def __post_init__(self) -> None:
        steps = _check.integer("steps", self.steps, minimum=1)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "learning_rate", _rates("learning_rate", self.learning_rate, steps, zeros=True))
        for name, below in (("momentum", 1.0), ("weight_decay", np.inf)):
            object.__setattr__(self, name, _check.nonnegative(name, getattr(self, name), below=below))
        if self.batches is not None:
            object.__setattr__(self, "batches", _batches(self.batches, steps))
        if self.observe not in OBSERVE:
            raise ValueError(f"observe={self.observe!r} is unknown; choose one of {', '.join(OBSERVE)}.")

    scheme = "descent"  # flows have others

    @property
    def rates(self) -> NDArray[np.float64]:
        """eta_t, (step,) for steps 0..T-1."""
        return np.full(self.steps, self.learning_rate, dtype=np.float64)

    @property
    def largest_step(self) -> str:
        """The argument to lower where training diverges, with its value."""
        return f"learning_rate={self.rates.max():g}"

    @property
    def times(self) -> NDArray[np.float64]:
        """sum_{s<t} eta_s, (step,) for steps 0..T: the time of the gradient flow that small rates approach."""
        if isinstance(self.learning_rate, float):
            return np.arange(self.steps + 1, dtype=np.float64) * self.learning_rate
        times: NDArray[np.float64] = np.concatenate([np.zeros(1), np.cumsum(self.rates)])
        return times


@dataclass(frozen=True)
class GradientFlow:
    """Gradient flow d theta / dt = eta D, on a grid of times.

    Args:
        learning_rate: eta.
        step_size: dt, one number or one for each step (a non-uniform grid; `dmft.adaptive_flow` chooses one).
        steps: number T of steps; may be left out where `step_size` gives one for each.
        scheme: "rosenbrock" (second order, stable for steps far above the fastest time scale) or "euler" (first order;
            the output follows the NTK, as in published solvers).

    Raises:
        ValueError, TypeError: naming the argument.
    """

    learning_rate: float
    step_size: float | tuple[float, ...]
    steps: int = 0
    scheme: str = "rosenbrock"

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", _check.positive("learning_rate", self.learning_rate))
        given = self.steps
        if not given and isinstance(self.step_size, (Sequence, np.ndarray)):
            given = len(self.step_size)
        steps = _check.integer("steps", given, minimum=1)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "step_size", _rates("step_size", self.step_size, steps))
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme={self.scheme!r} is unknown; choose one of {', '.join(SCHEMES)}.")

    @property
    def rates(self) -> NDArray[np.float64]:
        """eta dt, (step,) for steps 0..T-1."""
        return self.learning_rate * np.full(self.steps, self.step_size, dtype=np.float64)

    @property
    def largest_step(self) -> str:
        """The argument to lower where training diverges, with its value."""
        return f"step_size={np.max(self.step_size):g}"

    @property
    def times(self) -> NDArray[np.float64]:
        """eta t, (step,) for steps 0..T."""
        if isinstance(self.step_size, float):
            return np.arange(self.steps + 1, dtype=np.float64) * (self.learning_rate * self.step_size)
        times: NDArray[np.float64] = np.concatenate([np.zeros(1), np.cumsum(self.rates)])
        return times

    # a flow is plain and takes all samples at every step
    momentum = 0.0
    weight_decay = 0.0
    batches = None
    observe = "all"


def random_batches(n_train: int, size: int, steps: int, *, seed: int = 0) -> NDArray[np.int64]:
    """(step, position): batches of shuffled epochs; the last n_train % size samples of each epoch rest."""
    n_train = _check.integer("n_train", n_train, minimum=1)
    size, steps = _batch_size(size, n_train), _check.integer("steps", steps, minimum=1)
    rng = np.random.default_rng(_check.integer("seed", seed, minimum=0))
    per_epoch = n_train // size
    epochs = [
        rng.permutation(n_train)[: per_epoch * size].reshape(per_epoch, size) for _ in range(-(-steps // per_epoch))
    ]
    return np.concatenate(epochs)[:steps]


def one_pass(n_train: int, size: int) -> NDArray[np.int64]:
    """(step, position): consecutive batches, each sample in one of them (online learning); n_train // size steps."""
    n_train = _check.integer("n_train", n_train, minimum=1)
    size = _batch_size(size, n_train)
    return np.arange(n_train // size * size).reshape(-1, size)


def _batch_size(size: int, n_train: int) -> int:
    size = _check.integer("size", size, minimum=1)
    if size > n_train:
        raise ValueError(f"size={size} is more than the n_train={n_train} samples; take a smaller batch.")
    return size


def _rates(name: str, value: float | ArrayLike, steps: int, *, zeros: bool = False) -> float | tuple[float, ...]:
    """One rate, or one for each step, of which some may be zero if `zeros` says so, but not all."""
    if np.ndim(value) == 0:
        return _check.positive(name, value.item() if isinstance(value, np.ndarray) else value)
    check = _check.nonnegative if zeros else _check.positive
    rates = tuple(check(f"{name}[{i}]", rate) for i, rate in enumerate(_check.real_array(name, value).tolist()))
    if len(rates) != steps:
        raise ValueError(f"{name} has {len(rates)} entries for {steps} steps; give one number, or one for each step.")
    if not any(rates):
        raise ValueError(f"{name} is zero at every step: nothing would be learned; give at least one positive rate.")
    return rates


def _batches(value: ArrayLike, steps: int) -> tuple[tuple[int, ...], ...]:
    try:
        indices = _check.real_array("batches", value)
    except TypeError as error:
        if isinstance(error.__cause__, ValueError):  # NumPy's, of ragged lists
            raise ValueError("batches are of different sizes; give as many samples at every step.") from error
        raise
    if indices.ndim != 2 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"batches has shape {indices.shape} and dtype {indices.dtype}; expected integers (step, position)."
        )
    if len(indices) != steps:
        raise ValueError(f"batches holds {len(indices)} batches for {steps} steps; give one for each.")
    if indices.shape[1] == 0 or indices.min() < 0:
        raise ValueError("batches must hold at least one sample each, and no negative index.")
    repeated = [t for t, batch in enumerate(indices) if len(np.unique(batch)) < len(batch)]
    if repeated:
        raise ValueError(f"the batch of step {repeated[0]} holds a sample twice; the samples of a batch must differ.")
    return tuple(tuple(batch) for batch in indices.tolist())


Training = GradientDescent | GradientFlow
