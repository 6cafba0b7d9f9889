"""Adaptive optimisers, whose steps are not linear in the gradient: a causal rule for the history of each entry.

    -dloss/dtheta = s G / (gamma0 N)                    G = O(1), an entry of the scaled gradient
    Q(t)          = Q(G(0), ..., G(t))                  the rule, `update`
    theta(t+1)    = (1 - eta_t lambda) theta(t) + eta_t gamma0 s Q(t)

s is the factor with which theta enters the forward pass, 1/sqrt(fan-in) of matrices and 1 of biases and of the readout
(`dmft.specs.parameterization` has all of them, and what they are for `torch.optim`).  Q = G is gradient descent.  Decay
is decoupled from the gradient (AdamW): coupled to it, as `torch.optim.Adam(weight_decay=...)` has it, entries of W(0)
would stand inside of Q, and no limit is exact.

In the limit learned parts of matrices are arrays of entries between the particles of two populations, Q a function of
the paths of pairs of neurons, and sums over them averages (`dmft.engine.entrywise`).  A rule is written once, for the
arrays of NumPy, JAX and PyTorch: `xp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dmft.specs import _check
from dmft.specs.training.batches import Batches
from dmft.specs.training.recurrence import Memory, Stepping, Training

ENTRYWISE = Stepping("entrywise", by_entry=True)


class Entrywise(Training):
    """What entrywise optimisers derive from: frozen dataclasses with `steps`, `learning_rate`, and `update`.

    One of one's own needs no more than

        @dataclass(frozen=True)
        class Adagrad(dmft.Entrywise):
            learning_rate: float
            steps: int
            eps: float = 1e-2
            slots = 1

            def update(self, xp, t, state, G):
                (total,) = state
                total = total + G * G
                return (total,), G / (xp.sqrt(total) + self.eps)

    and trains the limit and networks.  Fields named `weight_decay` (decoupled), `clip`, `batches` and `observe` mean
    what they mean for `dmft.Adam`.  A rule reads no others of these: rates and decay act after it.

    slots: how many arrays of the size of the parameters it remembers; zero at the start.
    derivable: the size of scaled gradients below which Q is smooth: 0 where it jumps, inf where first derivatives see
        all of it, as of Q = tanh(G); `eps` unless it is set, and None, it is not said, of a rule without.
        `dmft.fluctuations` needs it.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Root(dmft.Entrywise):
        ...     learning_rate: float
        ...     steps: int
        ...
        ...     def update(self, xp, t, state, G):
        ...         return state, xp.sign(G) * xp.sqrt(abs(G))
        >>> Root(0.1, 3).update(np, 0, (), np.array([-4.0, 9.0]))[1].tolist()
        [-2.0, 3.0]
    """

    slots: int = 0
    by_matrix: bool = False  # whether matrices between neurons move by a rule for each as a whole (`dmft.Muon`)
    divided_by: str = ""  # which norm gradients are divided by, if by any (`dmft.NormalizedDescent`)
    weight_decay: float = 0.0
    clip: float | None = None
    stepping: Stepping = ENTRYWISE

    def update(self, xp: Any, t: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:
        """(state, Q) after the scaled gradients G of step t = 0, 1, ...: arrays of one shape, entry by entry."""
        raise NotImplementedError(f"{type(self).__name__} has no update; see dmft.specs.training.entrywise.")

    def preconditioner(self, xp: Any, t: Any, state: Sequence[Any]) -> Any:
        """P, of the size of 1 / |G|, with which Q is P times an average of gradients, from the state after step t."""
        raise NotImplementedError(f"{type(self).__name__} has no preconditioner.")

    @property
    def preconditions(self) -> bool:
        """Whether entries have a preconditioner."""
        return type(self).preconditioner is not Entrywise.preconditioner

    def clipped(self, xp: Any, G: Any) -> Any:
        """G within [-clip, clip]."""
        return G if self.clip is None else xp.clip(G, -self.clip, self.clip)

    def stepped(self, xp: Any, t: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:
        """What `update` makes of the gradients that it is to see."""
        return self.update(xp, t, state, self.clipped(xp, G))

    @property
    def derivable(self) -> float | None:
        """The size of scaled gradients below which Q is smooth: 0 where it jumps, None where a rule does not say."""
        eps: float | None = getattr(self, "eps", None)
        return eps

    @property
    def flips(self) -> bool:
        """Whether all entries flip where the errors of all samples pass zero together: it jumps, without momentum."""
        return not (self.derivable or self.slots)

    @property
    def rule(self) -> Any:
        """The rule alone: equal for optimisers that differ in rates, steps, decay and batches."""
        found = object.__new__(type(self))
        usual = {"learning_rate": 1.0, "steps": 1, "weight_decay": 0.0, "batches": None, "observe": "all"}
        own: Any = self
        for each in fields(own):
            object.__setattr__(found, each.name, usual.get(each.name, getattr(self, each.name)))
        return found

    def recurrence(self, t: int) -> tuple[ArrayLike, ArrayLike]:
        eta = self.rates[t]
        return [[1 - eta * self.weight_decay]], [eta]

    def checked(self, names: set[str]) -> dict[str, Any]:
        found = super().checked(names)
        if "weight_decay" in names:
            found["weight_decay"] = _check.nonnegative("weight_decay", self.weight_decay)
        if "clip" in names and self.clip is not None:
            found["clip"] = _check.positive("clip", self.clip)
        return found

    @property
    def memory(self) -> Memory:
        self.require_linear("memory kernels d(t), c(t, s)")
        raise AssertionError

    def require_linear(self, what: str) -> None:
        raise ValueError(
            f"{type(self).__name__} is not linear in the gradient, as {what} need it: each entry of a weight moves by "
            "a function of its own gradients. Take dmft.GradientDescent, or dmft.solve, which takes both."
        )

    def _check_fractions(self, *names: str) -> None:
        for name in names:
            object.__setattr__(self, name, _check.nonnegative(name, getattr(self, name), below=1.0))

    def _check_eps(self) -> None:
        object.__setattr__(self, "eps", _check.nonnegative("eps", getattr(self, "eps")))  # noqa: B009


def normalised(xp: Any, m: Any, v: Any, eps: float) -> Any:
    """m / (sqrt(v) + eps), and 0 where v = 0, as no gradient was met there; its derivatives are finite there, too."""
    live = v != 0  # of what is no number, too, which so remains none
    return xp.where(live, m / (xp.sqrt(xp.where(live, v, 1.0)) + eps), 0.0)


def signed(xp: Any, G: Any) -> Any:
    """sign(G); what is no number remains none, of which PyTorch has the sign 0."""
    return xp.where(xp.isnan(G), G, xp.sign(G))


@dataclass(frozen=True)
class Adam(Entrywise):
    """Adam, with decoupled weight decay (AdamW):

        m <- beta1 m + (1 - beta1) G      v <- beta2 v + (1 - beta2) G^2
        Q = m / (1 - beta1^(t+1)) / (sqrt(v / (1 - beta2^(t+1))) + eps)

    Args:
        learning_rate: eta, one number or one for each step (a schedule, which may hold zeros: a warm-up from 0); a step
            moves h by about eta gamma0 at any width and richness.  `dmft.torch_groups` has the rates of `torch.optim`.
        steps: number T of updates; observables are recorded at steps 0..T, each before the update of that step.
        beta1, beta2: of the averages of G and G^2; bias corrections do not depend on width.
        eps: in units of G, so that it means the same at every width.
        weight_decay: lambda, decoupled: theta shrinks by 1 - eta lambda a step.
        clip: value at which entries of G are clipped; None for none.
        batches, observe: as of `dmft.GradientDescent`.

    Raises:
        ValueError, TypeError: naming the argument.

    Source: Kingma & Ba 2015; Loshchilov & Hutter 2019 (decoupled decay); Yang & Littwin 2023 (limits of adaptive
    optimisers).

    Example:
        >>> adam = dmft.Adam(0.1, steps=2, eps=0.0)
        >>> state, Q = adam.update(np, 0, (0.0, 0.0), np.array([3.0, -0.1, 0.0]))
        >>> Q.round(6).tolist()  # the first step is the sign
        [1.0, -1.0, 0.0]
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-3
    weight_decay: float = 0.0
    clip: float | None = None
    batches: Batches | None = None
    observe: str = "all"
    slots = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_fractions("beta1", "beta2")
        self._check_eps()

    def update(self, xp: Any, t: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:
        m = self.beta1 * state[0] + (1 - self.beta1) * G
        v = self.beta2 * state[1] + (1 - self.beta2) * G * G
        return (m, v), normalised(xp, m / (1 - self.beta1 ** (t + 1)), v / (1 - self.beta2 ** (t + 1)), self.eps)

    def preconditioner(self, xp: Any, t: Any, state: Sequence[Any]) -> Any:
        return normalised(xp, 1.0, state[1] / (1 - self.beta2 ** (t + 1)), self.eps)


@dataclass(frozen=True)
class RMSprop(Entrywise):
    """RMSprop: v <- alpha v + (1 - alpha) G^2, Q = G / (sqrt(v) + eps).

    Args:
        alpha: of the average of G^2.
        learning_rate, steps, eps, weight_decay, clip, batches, observe: as of `dmft.Adam`.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> dmft.RMSprop(0.1, steps=3).update(np, 0, (0.0,), np.array([2.0]))[1].round(2).tolist()
        [9.95]
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    alpha: float = 0.99
    eps: float = 1e-3
    weight_decay: float = 0.0
    clip: float | None = None
    batches: Batches | None = None
    observe: str = "all"
    slots = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_fractions("alpha")
        self._check_eps()

    def update(self, xp: Any, t: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:  # noqa: ARG002
        v = self.alpha * state[0] + (1 - self.alpha) * G * G
        return (v,), normalised(xp, G, v, self.eps)

    def preconditioner(self, xp: Any, t: Any, state: Sequence[Any]) -> Any:
        del t
        return normalised(xp, 1.0, state[0], self.eps)


@dataclass(frozen=True)
class SignDescent(Entrywise):
    """Sign descent, Q = sign(G), with sign(0) = 0.

    Where all errors of the training samples pass near zero together, all entries flip at once, and networks are
    mixtures of two branches unless N is large beside Var f / Delta^2; `dmft.solve` warns.

    Args:
        learning_rate, steps, weight_decay, batches, observe: as of `dmft.Adam`.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> dmft.SignDescent(0.1, steps=3).update(np, 0, (), np.array([2.0, -0.5, 0.0]))[1].tolist()
        [1.0, -1.0, 0.0]
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    weight_decay: float = 0.0
    batches: Batches | None = None
    observe: str = "all"
    derivable = 0.0

    def update(self, xp: Any, t: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:  # noqa: ARG002
        return tuple(state), signed(xp, G)


@dataclass(frozen=True)
class Lion(Entrywise):
    """Lion: Q = sign(beta1 m + (1 - beta1) G), then m <- beta2 m + (1 - beta2) G.

    Args:
        beta1, beta2: of what is signed, and of what is remembered.
        learning_rate, steps, weight_decay, clip, batches, observe: as of `dmft.Adam`.

    Raises:
        ValueError, TypeError: naming the argument.

    Source: Chen et al. 2023.

    Example:
        >>> state, Q = dmft.Lion(0.1, steps=3).update(np, 0, (1.0,), np.array([-2.0, -20.0]))
        >>> Q.tolist(), state[0].round(2).tolist()
        ([1.0, -1.0], [0.97, 0.79])
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float | None = None
    batches: Batches | None = None
    observe: str = "all"
    slots = 1
    derivable = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_fractions("beta1", "beta2")

    def update(self, xp: Any, t: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:  # noqa: ARG002
        m = state[0]
        return (self.beta2 * m + (1 - self.beta2) * G,), signed(xp, self.beta1 * m + (1 - self.beta1) * G)


@dataclass(frozen=True)
class ClippedDescent(Entrywise):
    """Gradient descent with entries of G clipped at a value: Q = min(max(G, -clip), clip).

    Args:
        clip: in units of G, the same at every width.
        learning_rate, steps, weight_decay, batches, observe: as of `dmft.Adam`.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> clipped = dmft.ClippedDescent(0.1, steps=3, clip=1.0)
        >>> clipped.stepped(np, 0, (), np.array([2.0, -0.5]))[1].tolist()
        [1.0, -0.5]
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    clip: float = 1.0
    weight_decay: float = 0.0
    batches: Batches | None = None
    observe: str = "all"
    derivable = np.inf  # continuous: first derivatives miss nothing

    def update(self, xp: Any, t: Any, state: Sequence[Any], G: Any) -> tuple[tuple[Any, ...], Any]:  # noqa: ARG002
        return tuple(state), G
