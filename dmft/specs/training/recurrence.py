"""What an optimiser is: a recurrence of the parameters and of what it remembers, driven by the direction of descent.

    x(t+1) = A_t x(t) + b_t D(t)          x = (theta, slot_1, slot_2, ...),  slots zero at t = 0
    D(t)   = -gamma0^2 N dloss/dtheta     of the loss averaged over the batch of step t, at theta(t)

with numbers A_t, b_t, the same for every parameter that is trained (others stay).  Everything that has to do with the
optimiser is read from A and b alone: steps of the limit (`dmft.engine.network`) and of networks
(`finite_nets.training.linear`), the closed forms, and the memory kernels that stand in the equations of the limit,

    theta(t) = d(t) theta(0) + sum_{s<t} c(t, s) D(s)
    d(t) = (A_{t-1} ... A_0)_00             c(t, s) = (A_{t-1} ... A_{s+1} b_s)_0

An optimiser of one's own is a frozen dataclass that derives from `Training` and has one method, `recurrence`.

Optimisers that are not linear in D put something else in its place (`dmft.specs.training.entrywise`), and keep A and b:
of Adam with decoupled decay A = 1 - eta lambda, b = eta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmft.specs import _check
from dmft.specs.training.batches import Batches, checked_batches, checked_observe, checked_rates

Array = NDArray[np.float64]
DECAYED = 1e-12  # |d - 1| above this is no rounding


@dataclass(frozen=True)
class Stepping:
    """What engines do in a step.

    order: in the step size, of a scheme for a flow; 0 where steps are the optimiser itself.
    passes: forward and backward passes.  pushes: directions along which parameters move.
    by_output: whether it needs the NTK, and with it backward passes from every output.
    follows_output: whether the output is a variable of its own, which follows the NTK.
    approximates: whether steps stand for the flow itself, which closed forms take in their place.
    by_entry: whether entries of matrices move by rules of their own, out of the span of what was met.
    """

    name: str
    order: int = 0
    passes: int = 1
    pushes: int = 1
    by_output: bool = False
    follows_output: bool = False
    approximates: bool = False
    by_entry: bool = False


RECURRENCE = Stepping("recurrence")


class Memory(NamedTuple):
    """theta(t) = d(t) theta(0) + sum_s c(t, s) D(s): d (step,) and c (step, step_2), steps 0..T and 0..T-1."""

    d: Array
    c: Array


class Recurrence(NamedTuple):
    """A (step, component, component_2) and b (step, component) of steps 0..T-1; components are theta, then slots."""

    A: Array
    b: Array

    @property
    def slots(self) -> int:
        """How many arrays of the size of the parameters it remembers."""
        components: int = self.b.shape[1]
        return components - 1

    @property
    def step(self) -> tuple[Array, Array]:
        """What a step adds to theta, and makes of slots: A - 1 in the component of theta, A in slots; b."""
        change = self.A.copy()
        change[:, 0, 0] -= 1
        return change, self.b

    def memory(self) -> Memory:
        """d and c, in O(T^2)."""
        steps, components = self.b.shape
        d, c = np.zeros(steps + 1), np.zeros((steps + 1, steps))
        initial, pushed = np.eye(components)[0], np.zeros((components, steps))
        d[0] = 1.0
        for t in range(steps):
            initial, pushed = self.A[t] @ initial, self.A[t] @ pushed
            pushed[:, t] = self.b[t]
            d[t + 1], c[t + 1] = initial[0], pushed[0]
        return Memory(d, c)

    def initial(self) -> Array:
        """d alone, (step,), in O(T)."""
        x, d = np.eye(self.b.shape[1])[0], [1.0]
        for A in self.A:
            x = A @ x
            d.append(x[0])
        return np.array(d)


class Training:
    """What optimisers derive from: frozen dataclasses with `steps`, `learning_rate` and `recurrence`.

    One of one's own needs no more than

        @dataclass(frozen=True)
        class HeavyBall(dmft.Training):
            learning_rate: float
            steps: int
            momentum: float = 0.9

            def recurrence(self, t):
                eta, beta = self.rates[t], self.momentum
                return [[1, eta * beta], [0, beta]], [eta, 1]

    and trains the limit, its fluctuations, the closed forms and networks.  Fields named `batches` and `observe` mean
    what they mean for `dmft.GradientDescent`, and are checked in the same way.  It is described by its module and name,
    which has to be importable where a description is read.

    Example:
        >>> from dataclasses import dataclass, replace
        >>> @dataclass(frozen=True)
        ... class Fading(dmft.Training):
        ...     learning_rate: float
        ...     steps: int
        ...
        ...     def recurrence(self, t):
        ...         return [[0.9]], [self.learning_rate]
        >>> dmft.solve(replace(problem, training=Fading(0.5, 2)), particles=256, scrambles=2).sizes["step"]
        3
        >>> Fading(0.5, 2).memory.d.round(2).tolist()
        [1.0, 0.9, 0.81]
    """

    steps: int
    learning_rate: float | tuple[float, ...]
    batches: Batches | None = None
    observe: str = "all"
    stepping: Stepping = RECURRENCE

    def __post_init__(self) -> None:
        own: Any = self
        for name, value in self.checked({each.name for each in fields(own)}).items():
            object.__setattr__(self, name, value)

    def checked(self, names: set[str]) -> dict[str, Any]:
        """The values, as they should be, of those of steps, learning_rate, batches and observe that are among `names`.

        Raises:
            ValueError, TypeError: naming what is out of range.
        """
        steps = _check.integer("steps", self.steps, minimum=1)
        found: dict[str, Any] = {"steps": steps}
        if "learning_rate" in names:
            found["learning_rate"] = checked_rates("learning_rate", self.learning_rate, steps, zeros=True)
        found["batches"] = None if self.batches is None else checked_batches(self.batches, steps)
        found["observe"] = checked_observe(self.observe)
        return {name: value for name, value in found.items() if name in names}

    # ---- what optimisers say -----------------------------------------------------------------------------------------

    def recurrence(self, t: int) -> tuple[ArrayLike, ArrayLike]:
        """A_t (component, component_2) and b_t (component,); as many components at every step."""
        raise NotImplementedError(f"{type(self).__name__} has no recurrence; see dmft.specs.training.recurrence.")

    @cached_property
    def rates(self) -> Array:
        """eta_t, (step,) for steps 0..T-1: one value or one for each step of `learning_rate`; not to be written to."""
        rates = np.full(self.steps, self.learning_rate, dtype=np.float64)
        rates.flags.writeable = False
        return rates

    @property
    def largest_step(self) -> str:
        """The argument to lower where training diverges, with its value."""
        return f"learning_rate={self.rates.max():g}"

    @property
    def times(self) -> Array:
        """sum_{s<t} eta_s, (step,) for steps 0..T: the time of the gradient flow that small rates approach."""
        if isinstance(self.learning_rate, float):
            return np.arange(self.steps + 1, dtype=np.float64) * self.learning_rate
        times: Array = np.concatenate([np.zeros(1), np.cumsum(self.rates)])
        return times

    # ---- what follows ------------------------------------------------------------------------------------------------

    @cached_property
    def recurrences(self) -> Recurrence:
        """A and b of all steps; not to be written to.

        Raises:
            ValueError: what `recurrence` gives has another shape, differs in it between steps, is not finite or never
                moves anything.
        """
        given = [self.recurrence(t) for t in range(self.steps)]
        found = Recurrence(self._stacked("A", [A for A, _ in given], 2), self._stacked("b", [b for _, b in given], 1))
        if found.A.shape != (*found.b.shape, found.b.shape[1]):
            raise ValueError(
                f"the recurrence of {type(self).__name__} has A of shape {found.A.shape[1:]} and b of shape "
                f"{found.b.shape[1:]}; with n slots they are (n + 1, n + 1) and (n + 1,)."
            )
        if not found.b.any():
            raise ValueError(f"the recurrence of {type(self).__name__} has b = 0 at every step: nothing is learned.")
        return found

    @cached_property
    def memory(self) -> Memory:
        """The memory kernels d and c; O(T^2) numbers."""
        return self.recurrences.memory()

    def require_linear(self, what: str) -> None:
        """ValueError where steps are not linear in D, as `what` (plural) needs it."""
        del what

    @property
    def decays(self) -> bool:
        """Whether initial parameters fade: d is not 1."""
        return bool((abs(self.recurrences.initial() - 1) > DECAYED).any())

    def _stacked(self, name: str, values: Sequence[ArrayLike], axes: int) -> Array:
        what = f"{name} of {type(self).__name__}"
        try:
            stacked = np.array(values, dtype=np.float64)
        except ValueError as error:
            raise ValueError(
                f"{what} is made of other things than numbers, or has not as many components at every step: {error}."
            ) from error
        if stacked.ndim != axes + 1:
            raise ValueError(f"{what} has shape {stacked.shape[1:]} at each step; expected {axes} axes.")
        if (bad := np.argwhere(~np.isfinite(stacked))).size:
            raise ValueError(f"{what} is not finite at step {bad[0, 0]}: {stacked[bad[0, 0]].tolist()}.")
        stacked.flags.writeable = False
        return stacked
